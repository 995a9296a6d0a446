"""The selected models: facets, search and conditions as one SQL condition, which every view takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from cnnfilterdb.analysis.queries import run
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.sqltext import expression, identifier, literal
from cnnfilterdb.explore.watched import WatchedReader

__all__ = ["COLUMNS", "FACETS", "Models", "Selection"]

#: Columns of the table of models, in the order in which it shows them.
COLUMNS = (
    "model_id",
    "source",
    "name",
    "architecture",
    "family",
    "task",
    "domain",
    "training_dataset",
    "license",
    "parameters",
    "conv_layers",
    "stored_filters",
    "untrained",
)

_SEARCHED = "concat_ws(' ', model_id, architecture, family, task, domain, training_dataset, license)"

#: Facets: what a SQL expression over the columns of a model is; values that are NULL are shown as "unknown".
FACETS: Mapping[str, str] = {
    "source": "source",
    "domain": "domain",
    "task": "task",
    "family": "family",
    "license": "license",
    "framework": "framework",
    "size": "CASE WHEN parameters < 1e6 THEN '< 1 M' WHEN parameters < 1e7 THEN '1 M to 10 M' "
    "WHEN parameters < 1e8 THEN '10 M to 100 M' WHEN parameters >= 1e8 THEN '>= 100 M' END",
}

#: Conditions that are offered as one facet; a model may meet several of them.
FLAGS: Mapping[str, str] = {
    "trained": "untrained IS NOT TRUE",
    "flagged untrained": "untrained",
    "some layers left out": "len(skipped) > 0",
    "licence unknown": "license IS NULL",
    "has published metrics": "cardinality(metrics) > 0",
}

#: Age at which the models are read again even if no model has changed.
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which models are selected.

    Attributes:
        facets: Chosen values of each facet; None is "unknown". Within a facet any of them, between facets all.
        search: Words that occur in the key or a fact of a model.
        where: A free condition over the columns of models and layers.
        models: Keys of models, picked one by one; empty for no restriction.
    """

    facets: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    search: str = ""
    where: str = ""
    models: Sequence[str] = ()

    @classmethod
    def of(cls, given: Any) -> Selection:
        """The selection in a request.

        Raises:
            SelectionError: It is not one.
        """
        wanted = "selection: expected facets, search, where and models"
        if not isinstance(given, Mapping):
            raise SelectionError(wanted)
        facets, models = given.get("facets", {}), given.get("models", [])
        search, where = given.get("search", ""), given.get("where", "")
        texts = isinstance(search, str) and isinstance(where, str)
        if not (texts and isinstance(facets, Mapping) and _are_texts(models)):
            raise SelectionError(wanted)
        for name, values in facets.items():
            if name not in FACETS and name != "flags":
                raise SelectionError(f"selection: no facet {name!r}; there are {', '.join(FACETS)} and flags")
            if not isinstance(values, list) or not _are_texts([value for value in values if value is not None]):
                raise SelectionError(f"selection: facet {name}: expected a list of texts")
        return cls(facets, search, where, models)

    def condition(self, *, without: str | None = None, free: bool = True) -> str | None:
        """The selection as a SQL condition over the columns of models and layers; None if it selects everything.

        Args:
            without: A facet to leave out, as for the counts of its own values.
            free: Include ``where``.

        Raises:
            SelectionError: ``where`` is not an expression; an unknown flag.

        >>> Selection({"domain": ["faces", None]}, search="res").condition(free=False)  # doctest: +ELLIPSIS
        "(domain IN ('faces') OR domain IS NULL) AND contains(lower(concat_ws(' ', model_id, ...)), 'res')"
        """
        parts = []
        for name, values in self.facets.items():
            if name == without or not values:
                continue
            if name == "flags":
                if unknown := [value for value in values if value not in FLAGS]:
                    raise SelectionError(f"flags: {unknown[0]!r} is not one of {', '.join(FLAGS)}")
                parts.append(" OR ".join(FLAGS[str(value)] for value in values))
                continue
            known = [literal(value) for value in values if value is not None]
            either = [f"{FACETS[name]} IN ({', '.join(known)})"] if known else []
            parts.append(" OR ".join(either + [f"{FACETS[name]} IS NULL"] * (None in values)))
        parts = [f"({part})" if " OR " in part else part for part in parts]
        parts += [f"contains(lower({_SEARCHED}), {literal(word)})" for word in self.search.lower().split()]
        if self.models:
            parts.append(f"model_id IN ({', '.join(map(literal, self.models))})")
        if free and self.where.strip():
            parts.append(expression(self.where, "where"))
        return " AND ".join(parts) or None


def _are_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


class Models:
    """The models table in memory, so that facets are counted in milliseconds.

    Args:
        db: The database.
    """

    def __init__(self, db: WatchedReader) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._state: object = None
        self._read_at = 0.0
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._by_where: dict[str, list[str]] = {}

    def _current(self) -> duckdb.DuckDBPyConnection:
        """A cursor on the models as they are now, in the table ``models``."""
        state = self._db.storage.snapshot()
        with self._lock:
            # An annotation changes no models row; it is seen a few seconds later.
            old = time.monotonic() - self._read_at > _SECONDS
            if self._connection is None or old or state != self._state:
                table = self._db._table("SELECT * EXCLUDE (files, original) FROM models ORDER BY model_id")
                connection = duckdb.connect(config={"enable_external_access": False, "threads": 1})
                connection.register("given", table)
                connection.execute("CREATE TABLE models AS FROM given")
                self._connection, self._state, self._by_where = connection, state, {}
                self._read_at = time.monotonic()
            return self._connection.cursor()

    def keys(self) -> list[str]:
        """The keys of all models."""
        return [key for (key,) in self._current().execute("SELECT model_id FROM models").fetchall()]

    def _restricted(self, selection: Selection) -> tuple[duckdb.DuckDBPyConnection, str]:
        """A cursor, and the models that ``selection.where`` selects, as SQL."""
        cursor = self._current()
        if not selection.where.strip():
            return cursor, "models"
        expression(selection.where, "where")
        if selection.where not in self._by_where:
            self._by_where[selection.where] = self._db.models(where=selection.where)["model_id"].tolist()
        cursor.register("where_keys", pa.table({"model_id": pa.array(self._by_where[selection.where], pa.string())}))
        return cursor, "models SEMI JOIN where_keys USING (model_id)"

    def rows(
        self, selection: Selection, *, order: str = "model_id", descending: bool = False, limit: int = 200
    ) -> tuple[pa.Table, int]:
        """The first of the selected models, and how many there are.

        Args:
            selection: Which models.
            order: Column to sort by.
            descending: From the largest value to the smallest.
            limit: Largest number of rows.

        Raises:
            SelectionError: An unknown column, or a condition that cannot be answered.
        """
        if order not in COLUMNS:
            raise SelectionError(f"order: no column {order!r}; there are {', '.join(COLUMNS)}")
        cursor, models = self._restricted(selection)
        narrowed = selection.condition(free=False) or "true"
        direction = "DESC" if descending else "ASC"
        table = run(
            cursor,
            f"SELECT {', '.join(map(identifier, COLUMNS))} FROM {models} WHERE {narrowed} "
            f"ORDER BY {identifier(order)} {direction} NULLS LAST, model_id LIMIT {int(limit)}",
        )
        total = run(cursor, f"SELECT count(*) AS n FROM {models} WHERE {narrowed}")["n"][0].as_py()
        return table, total

    def facets(self, selection: Selection) -> dict[str, list[dict[str, Any]]]:
        """The values of each facet with their numbers of models, most frequent first.

        The numbers of a facet count the models that all other facets select.
        """
        cursor, models = self._restricted(selection)
        found = {}
        for name, text in FACETS.items():
            narrowed = selection.condition(without=name, free=False) or "true"
            query = f"SELECT {text} AS value, count(*) AS models FROM {models} WHERE {narrowed} GROUP BY ALL"
            found[name] = run(cursor, f"{query} ORDER BY models DESC, value").to_pylist()
        narrowed = selection.condition(without="flags", free=False) or "true"
        counted = ", ".join(f"count(*) FILTER ({text}) AS {identifier(name)}" for name, text in FLAGS.items())
        row = run(cursor, f"SELECT {counted} FROM {models} WHERE {narrowed}").to_pylist()[0]
        found["flags"] = [{"value": name, "models": number} for name, number in row.items() if number]
        # What is chosen stays in the list, so that it can be unchosen.
        for name, values in selection.facets.items():
            there = {one["value"] for one in found[name]}
            found[name] += [{"value": value, "models": 0} for value in values if value not in there]
        return found
