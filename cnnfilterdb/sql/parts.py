"""The views and macros of several parts: each table is the union of those of the parts, read where they are.

A model of a part is identified by its key and the name of the part, so that only one of two models of the same key is
seen: the views take the models first, and of every other table the rows of these models. The names and locations of
parts get into the statements as quoted literals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cnnfilterdb.core import paths
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.sql import (
    RELEASED_MODELS,
    Definition,
    Relations,
    assembled,
    parquet_rows,
    read_annotations,
    without_wildcards,
)

__all__ = ["PartTables", "part_definitions"]


@dataclass(frozen=True)
class PartTables:
    """Where the tables of a part are.

    Attributes:
        name: Name of the part.
        root: Its folder or address.
        shards: The files of each table of a release, relative to it; None for a folder.
        kernels: Kernel sizes of its filters.
        annotated: Whether it has annotations.
        bases: Keys of the bases whose histograms are taken from the part.
        histograms: Files with further histograms of the part.
        fingerprints: Whether it has fingerprints.
        more_fingerprints: Files with fingerprints that it lacks.
        listed: The files of small tables of a folder, as in :func:`cnnfilterdb.sql.definitions`.
    """

    name: str
    root: str
    shards: Mapping[str, Sequence[str]] | None
    kernels: tuple[str, ...] = ()
    annotated: bool = False
    bases: tuple[str, ...] = ()
    histograms: tuple[str, ...] = ()
    fingerprints: bool = False
    more_fingerprints: tuple[str, ...] = ()
    listed: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def files(self, table: str, pattern: str) -> str:
        """The files of a table as SQL: its shards in a release; those that are listed, or a pattern, in a folder."""
        names = self.names(table, pattern) if self.shards is None else self.shards[table]
        return _listed(f"{without_wildcards(self.root)}/{name}" for name in names)

    def names(self, table: str, pattern: str) -> list[str]:
        """The files of a table of a folder, relative to it, as DuckDB reads them."""
        return [*map(without_wildcards, self.listed.get(table, ()))] or [pattern]


def part_definitions(
    parts: Sequence[PartTables], *, bases: Sequence[str], no_histograms: str, no_fingerprints: str, first_wins: bool
) -> dict[str, Definition]:
    """The views and macros of several parts by name, in an order in which they can be created.

    Args:
        parts: The parts; their order decides which of two models of the same key is taken.
        bases: Files of the bases.
        no_histograms: A file of the histograms table without rows.
        no_fingerprints: A file of the fingerprints table without rows.
        first_wins: Take the first of several models of the same key; otherwise a query that meets them fails.
    """
    relations = Relations(
        models_stored=_models(parts, first_wins),
        annotations=_annotations(parts),
        layers=_union([_of(part, parquet_rows(part.files("layers", paths.layers_pattern()))) for part in parts]),
        bases=parquet_rows(_listed(map(without_wildcards, bases))),
        all_histograms=_histograms(parts, no_histograms),
        histograms="histograms",
        fingerprints=_fingerprints(parts, no_fingerprints),
        filters={kernel: _filters(parts, kernel) for part in parts for kernel in part.kernels},
        key=("model_id", "part"),
    )
    return assembled(relations)


def _models(parts: Sequence[PartTables], first_wins: bool) -> str:
    rows = []
    for place, part in enumerate(parts):
        columns = "* REPLACE (NULL::VARCHAR[] AS files)" if part.shards is None else RELEASED_MODELS
        files = parquet_rows(part.files("models", paths.models_pattern()))
        rows.append(_of(part, files, f"{columns}, {place} AS place"))
    if first_wins:
        once = "row_number() OVER (PARTITION BY model_id ORDER BY place) = 1"
    else:
        there = "string_agg(part, ' and ' ORDER BY place) OVER (PARTITION BY model_id)"
        once = (
            "CASE WHEN count(*) OVER (PARTITION BY model_id) = 1 THEN true\n"
            f"    ELSE error(model_id || ' is in the parts ' || {there}\n"
            "        || '; open them with duplicates=\"first\", or leave one of them out') END"
        )
    return f"SELECT * EXCLUDE (place) FROM {_union(rows)}\nQUALIFY {once}"


def _annotations(parts: Sequence[PartTables]) -> str | None:
    rows = [
        f"SELECT * FROM ({read_annotations(part.files('annotations', paths.ANNOTATIONS))}) "
        f"SEMI JOIN (SELECT model_id FROM models_stored WHERE part = {literal(part.name)}) USING (model_id)"
        for part in parts
        if part.annotated
    ]
    return f"FROM {_union(rows)}" if rows else None


def _fingerprints(parts: Sequence[PartTables], no_fingerprints: str) -> str:
    rows = [_none(no_fingerprints)]
    pattern = paths.fingerprints_pattern()
    rows += [_of(part, parquet_rows(part.files("fingerprints", pattern))) for part in parts if part.fingerprints]
    rows += [
        _of(part, parquet_rows(_listed(map(without_wildcards, part.more_fingerprints))))
        for part in parts
        if part.more_fingerprints
    ]
    return _union(rows)


def _histograms(parts: Sequence[PartTables], no_histograms: str) -> str:
    rows = [_none(no_histograms)]
    for part in parts:
        if part.bases and part.shards is not None:
            chosen = ", ".join(map(literal, part.bases))
            rows.append(f"{_of(part, parquet_rows(part.files('histograms', '')))} WHERE basis_id IN ({chosen})")
        elif part.bases:
            files = _listed(
                f"{without_wildcards(part.root)}/{name}"
                for basis_id in part.bases
                for name in part.names(paths.histograms_table(basis_id), paths.histograms_pattern(basis_id))
            )
            rows.append(_of(part, parquet_rows(files)))
        if part.histograms:
            rows.append(_of(part, parquet_rows(_listed(map(without_wildcards, part.histograms)))))
    return _union(rows)


def _filters(parts: Sequence[PartTables], kernel: str) -> str:
    pattern = paths.filters_pattern(kernel)
    return _union(
        [_of(part, parquet_rows(part.files(f"filters_{kernel}", pattern))) for part in parts if kernel in part.kernels]
    )


def _none(file: str) -> str:
    """The query for a table without rows, by which one over no parts can be bound."""
    return f"SELECT *, NULL::VARCHAR AS part FROM {parquet_rows(_listed([without_wildcards(file)]))}"


def _of(part: PartTables, relation: str, columns: str = "*") -> str:
    return f"SELECT {columns}, {literal(part.name)} AS part FROM {relation}"


def _union(queries: Sequence[str]) -> str:
    return "(\n    " + "\n    UNION ALL BY NAME ".join(queries) + "\n)"


def _listed(files: Iterable[str]) -> str:
    return f"[{', '.join(map(literal, files))}]"
