"""What a comparison of groups counted and what it left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.queries import condition, expression, run
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.sqltext import is_constant, literal

__all__ = ["Coverage", "coverage"]

#: Number of models that a warning names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was selected, what of it was used, and why the rest was not.

    Attributes:
        by: The grouping expression.
        kernel: The kernel size.
        models: Models that the condition selects.
        layers: Convolution layers that the condition selects, 1x1 and other unstored ones included.
        filters: Filters of those layers that are stored.
        used_models: Models with at least one filter in a group.
        used_layers: Layers in a group.
        used_filters: Filters in a group.
        models_without: Number of unused models by reason.
        layers_without: Number of unused layers by reason.
        untrained: Keys of the used models that are flagged untrained.
        basis_models: Present models with such kernels that the basis was fitted on; None if no stored basis is used.
        basis_possible: Present models with such kernels; None likewise.
        renewal: How a basis of all models is got.
    """

    by: str
    kernel: str
    models: int
    layers: int
    filters: int
    used_models: int
    used_layers: int
    used_filters: int
    models_without: dict[str, int]
    layers_without: dict[str, int]
    untrained: tuple[str, ...]
    basis_models: int | None = None
    basis_possible: int | None = None
    renewal: str = ""

    @property
    def text(self) -> str:
        """One line: what was used, and why the rest was not."""
        used = (
            f"used {self.used_models:,} of {self.models:,} models, {self.used_layers:,} of {self.layers:,} layers, "
            f"{self.used_filters:,} of {self.filters:,} filters"
        )
        reasons = [
            f"{counted(count, noun)} {reason}"
            for noun, found in (("model", self.models_without), ("layer", self.layers_without))
            for reason, count in found.items()
        ]
        return used + (f"; not used: {', '.join(reasons)}" if reasons else "")

    @property
    def warnings(self) -> list[str]:
        """Warnings about the numbers, one line each."""
        found = []
        if is_constant(self.by):
            found.append(f"{self.by} names no column, so all filters are in one group; use a column such as domain")
        if self.basis_models is not None and self.basis_possible and self.basis_models < self.basis_possible:
            found.append(
                f"the basis was fitted on {self.basis_models:,} of {self.basis_possible:,} models with {self.kernel} "
                f"kernels; {self.renewal}"
            )
        if self.untrained:
            names = ", ".join(self.untrained[:_NAMED]) + (", ..." if len(self.untrained) > _NAMED else "")
            found.append(f"{len(self.untrained):,} of the models used are flagged untrained: {names}")
        return found

    def attrs(self) -> dict[str, Any]:
        """The fields, the text and the warnings, for ``.attrs`` of a frame."""
        return {**asdict(self), "text": self.text, "warnings": self.warnings}


def coverage(
    connection: duckdb.DuckDBPyConnection,
    grouping: Grouping,
    *,
    min_models: int = 1,
    min_filters: int = 1,
    fitted_on: Sequence[str] | None = None,
    renewal: str = "",
) -> Coverage:
    """Count what a grouping uses of what its condition selects.

    Args:
        connection: With the views of the database.
        grouping: The question.
        min_models: Groups of fewer models were left out.
        min_filters: Groups of fewer filters were left out.
        fitted_on: Models that the stored basis of the answer was fitted on; None if there is none.
        renewal: How a basis of all models is got.

    Raises:
        SelectionError: ``by`` or ``where`` cannot be answered.
    """
    by, where, kernel = expression(grouping.by, "by"), condition(grouping.where), literal(grouping.kernel)
    query = f"""
        WITH selected AS (
            SELECT model_id, filters, stored, untrained, {by} AS "group",
                   stored AND kernel = {kernel} AND papers_layer AS of_basis,
                   CASE WHEN kernel <> {kernel} THEN 'other size'
                        WHEN NOT stored THEN 'not stored'
                        WHEN {grouping.all_layers} OR papers_layer THEN NULL
                        WHEN kind = 'transposed' THEN 'transposed' ELSE 'dead' END AS reason
            FROM facts WHERE {where}
        ), small AS (
            SELECT "group" FROM selected WHERE reason IS NULL AND "group" IS NOT NULL GROUP BY ALL
            HAVING count(DISTINCT model_id) < {int(min_models)} OR sum(filters) < {int(min_filters)}
        ), judged AS (
            SELECT *, CASE WHEN reason IS NOT NULL THEN reason
                           WHEN "group" IS NULL THEN 'unknown'
                           WHEN "group" IN (FROM small) THEN 'small'
                           ELSE 'used' END AS outcome
            FROM selected
        )
        SELECT model_id, outcome, bool_or(coalesce(untrained, false)) AS untrained, bool_or(of_basis) AS of_basis,
               count(*) AS layers, CAST(coalesce(sum(filters) FILTER (stored), 0) AS BIGINT) AS filters
        FROM judged GROUP BY ALL ORDER BY ALL"""
    rows = run(connection, query).to_pylist()
    layers: dict[str, int] = {}
    outcomes: dict[str, set[str]] = {}
    for row in rows:
        layers[row["outcome"]] = layers.get(row["outcome"], 0) + row["layers"]
        outcomes.setdefault(row["model_id"], set()).add(row["outcome"])
    used = [row for row in rows if row["outcome"] == "used"]
    name, size = grouping.by, grouping.kernel
    spelled = {
        "other size": f"of other kernel sizes than {size}",
        "not stored": f"of {size} kernels that are not stored",
        "transposed": "that are transposed",
        "dead": "that are never executed",
        "unknown": f"without {name}",
        "small": "in groups that are too small",
    }
    models: dict[str, int] = {}
    for found in outcomes.values():
        if "used" not in found:
            reason = next(why for why in ("small", "unknown", "transposed", "dead", "not stored", "other size")
                          if why in found)  # fmt: skip
            text = f"without {size} kernels" if reason == "other size" else spelled[reason]
            text = "with transposed layers only" if reason == "transposed" else text
            models[text] = models.get(text, 0) + 1
    known = None
    if fitted_on is not None:  # without a condition the rows are those of all models
        everything = {row["model_id"] for row in rows if row["of_basis"]} if where == "true" else None
        known = _with_kernel(connection, grouping) if everything is None else everything
    return Coverage(
        by=name,
        kernel=size,
        models=len(outcomes),
        layers=sum(layers.values()),
        filters=sum(row["filters"] for row in rows),
        used_models=len(used),
        used_layers=layers.get("used", 0),
        used_filters=sum(row["filters"] for row in used),
        models_without=models,
        layers_without={text: layers[why] for why, text in spelled.items() if why in layers},
        untrained=tuple(row["model_id"] for row in used if row["untrained"]),
        basis_models=None if known is None else len(known & set(fitted_on or ())),
        basis_possible=None if known is None else len(known),
        renewal=renewal,
    )


def _with_kernel(connection: duckdb.DuckDBPyConnection, grouping: Grouping) -> set[str]:
    """The present models that a basis of this kernel size would be fitted on."""
    query = f"SELECT DISTINCT model_id FROM facts WHERE stored AND kernel = {literal(grouping.kernel)} AND papers_layer"
    return set(run(connection, query)["model_id"].to_pylist())
