"""Implements ``db.report``: collects the data of the page and writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cnnfilterdb import plots
from cnnfilterdb.analysis.options import GroupOptions, ShiftOptions
from cnnfilterdb.analysis.queries import condition, expression
from cnnfilterdb.analysis.shifts import check_measure, matrix
from cnnfilterdb.core.durable import write_text
from cnnfilterdb.core.errors import CnnFilterDbError, SelectionError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.plots.source import bases_of, frame_of, layer_measures

if TYPE_CHECKING:
    from cnnfilterdb.questions.statistics import Statistics

__all__ = ["report_data", "write_report"]

#: The groupings between which the reader of a report can switch: name -> expression.
_GROUPINGS = {
    "domain": "domain",
    "task": "task",
    "family": "family",
    "depth": "floor(10 * conv_depth_norm) / 10",
}


def write_report(
    db: Statistics, path: Path, by: str, title: str | None, command: str | None, options: ShiftOptions
) -> Path:
    """Write the report page; see :meth:`Reader.report`."""
    data = report_data(db, by, title, options, command=command, created_at=datetime.now(UTC).replace(microsecond=0))
    write_text(path, plots.report(data))
    return path


def report_data(
    db: Statistics,
    by: str,
    title: str | None,
    options: ShiftOptions,
    *,
    command: str | None = None,
    created_at: datetime | None = None,
) -> plots.ReportData:
    """Collect the data of a report.

    Args:
        db: The database.
        by: Grouping expression of the grouping shown first; domain, task, family and depth follow where they divide
            the models into at least two groups.
        title: Heading of the page; None for the name of the database.
        options: Those of :meth:`Reader.kl_shift`.
        command: The command that writes the page again.
        created_at: Time of creation; None leaves it out.
    """
    where = options.get("where")
    sparsity = frame_of(
        db, "SELECT model_id, sum(sparsity * filters) / sum(filters) AS sparsity FROM layers WHERE stored GROUP BY ALL"
    )
    groupings = [_grouping_data(db, by, _name(by), options)]
    for name, expression_ in _GROUPINGS.items():
        if by not in (name, expression_):
            try:
                found = _grouping_data(db, expression_, name, options)
            except SelectionError:  # no model has such a fact, or the groups are smaller than the options ask for
                continue
            if found.shift is not None and len(found.shift) > 1:
                groupings.append(found)
    return plots.ReportData(
        title=title or Path(db.location).name,
        # Listed by their keys: two sources may have a model of the same name.
        models=db.models(where=where).drop(columns="name").merge(sparsity, how="left", on="model_id"),
        groupings=groupings,
        kernel=options.get("kernel", "3x3"),
        command=command,
        created_at=created_at,
    )


def _name(by: str) -> str:
    """What a report calls a grouping."""
    return next((name for name, known in _GROUPINGS.items() if by == known), by)


def _grouping_data(db: Statistics, by: str, name: str, options: ShiftOptions) -> plots.GroupingData:
    """What a report shows of one grouping."""
    where, kernel, all_layers = options.get("where"), options.get("kernel", "3x3"), options.get("all_layers", False)
    counted: Any = {name: value for name, value in options.items() if name in GroupOptions.__annotations__}
    metric, weights = options.get("metric", "kl"), options.get("weights")
    check_measure(metric, weights, kernel)
    groups = db.groups(by, **counted)
    shift = matrix(groups, weights, metric).frame()  # as Reader.kl_shift, of the groups that are drawn
    fitted = next((basis for basis in db.bases() if basis.basis_id == groups.basis_id), None)
    compared = set(groups.labels)
    try:
        bases = {
            label: basis for label, basis in bases_of(db, by, where, kernel, all_layers).items() if label in compared
        }
    except CnnFilterDbError:
        bases = {}
    layers = layer_measures(db, by, where, kernel, all_layers)
    uniform = RECIPES[groups.grouping.recipe].weights == "uniform"
    return plots.GroupingData(
        by=by,
        name=name,
        groups=_all_groups(db, by, where).join(groups.sizes()[["models", "layers", "filters"]].add_prefix("used_")),
        compared=groups.sizes(),
        shift=shift,
        coefficients=plots.Coefficients(
            counts=groups.counts,
            low=groups.low,
            high=groups.high,
            labels=groups.labels,
            filters=groups.filters,
            explained_variance_ratio=groups.basis.explained_variance_ratio,
        ),
        bases=bases,
        layers=layers[layers[by].isin(compared)],
        coverage=db._coverage(by, counted),
        method=plots.Method(
            recipe=groups.grouping.recipe,
            metric=metric,
            basis_id=groups.basis_id or "",
            basis_models=len(fitted.models) if fitted else 0,
            basis_filters=groups.basis.filters,
            bins=groups.counts.shape[2],
            low=groups.low,
            high=groups.high,
            weights=f"1/{len(groups.weights)} each" if uniform else "explained variance ratio",
            filters=int(groups.filters.sum()),
            outside=int(groups.outside.sum()),
            balance=groups.grouping.balance,
            versions={name: version(name) for name in ("cnnfilterdb", "duckdb", "numpy", "pyarrow")},
        ),
    )


def _all_groups(db: Statistics, by: str, where: str | None) -> pd.DataFrame:
    """Everything selected, of every kernel size, by group; the last row may be what has no group."""
    return frame_of(
        db,
        f'SELECT {expression(by, "by")} AS "group", count(DISTINCT model_id) AS models, count(*) AS layers, '
        "CAST(coalesce(sum(filters) FILTER (stored), 0) AS BIGINT) AS filters, "
        "string_agg(DISTINCT coalesce(license, 'unknown'), ', ' ORDER BY coalesce(license, 'unknown')) AS licenses "
        f'FROM facts WHERE {condition(where)} GROUP BY "group" ORDER BY "group" NULLS LAST',
    ).set_index("group")
