"""What the figures and the report read from a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.analysis.queries import condition, expression, run
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.plots.captions import sizes_of
from cnnfilterdb.stats import Basis

if TYPE_CHECKING:
    from cnnfilterdb.questions.statistics import Statistics

__all__ = ["bases_of", "cells_of", "frame_of", "layer_measures", "layers_by_size", "sizes_text"]


def frame_of(db: Statistics, query: str) -> pd.DataFrame:
    """The rows of a query over the views."""
    frame: pd.DataFrame = run(db._connect(query), query).to_pandas()
    return frame


def _large_enough(frame: pd.DataFrame, by: str, min_models: int, min_filters: int) -> pd.DataFrame:
    """The layers of the groups that have so many models and filters.

    Args:
        frame: Layers: the columns ``group``, ``model_id`` and ``filters``.
        by: Grouping expression, for the message.
        min_models: Least number of models of a group.
        min_filters: Least number of filters of a group.

    Raises:
        SelectionError: No group has.
    """
    sizes = frame.groupby("group").agg(models=("model_id", "nunique"), filters=("filters", "sum"))
    kept = sizes.index[(sizes["models"] >= min_models) & (sizes["filters"] >= min_filters)]
    if not len(kept):
        raise SelectionError(
            f"no group by {by} has {min_models:,} models and {min_filters:,} filters; "
            f"the largest has {sizes['models'].max():,} and {sizes['filters'].max():,}"
        )
    return frame[frame["group"].isin(kept)]


def layer_measures(
    db: Statistics,
    by: str,
    where: str | None,
    kernel: str,
    all_layers: bool,
    *,
    min_models: int = 1,
    min_filters: int = 1,
) -> pd.DataFrame:
    """The measures of the layers of each group, one row per layer, those of :meth:`Reader.quality`.

    ``.attrs["sizes"]`` has the numbers of models, layers and filters.
    """
    papers = "" if all_layers else "AND papers_layer"
    frame = frame_of(
        db,
        f'SELECT {expression(by, "by")} AS "group", model_id, filters, sparsity, variance_entropy, '
        f"randomness_threshold, orthogonality FROM facts WHERE stored AND kernel = {literal(kernel)} "
        f'AND {condition(where)} {papers} AND "group" IS NOT NULL',
    )
    if frame.empty:
        raise Grouping(by, where, kernel).empty()
    chosen = _large_enough(frame, by, min_models, min_filters)
    measures = chosen.drop(columns=["model_id", "filters"]).rename(columns={"group": by})
    measures.attrs["sizes"] = sizes_of(chosen)
    return measures


def bases_of(
    db: Statistics,
    by: str,
    where: str | None,
    kernel: str,
    all_layers: bool,
    *,
    min_models: int = 1,
    min_filters: int = 1,
) -> dict[Any, Basis]:
    """A basis fitted on each group of at least two filters."""
    rows = groupings.selection(db._connect("facts"), Grouping(by, where, kernel, all_layers=all_layers))
    db._require_moments(rows)
    labels = np.asarray(rows["group"].to_pylist(), dtype=object)
    sizes = pd.DataFrame({"group": labels, "model_id": rows["model_id"].to_pylist(), "filters": rows["filters"]})
    bases = {}
    for label in sorted(set(_large_enough(sizes, by, min_models, min_filters)["group"].tolist())):
        moments = moments_of(rows.filter(labels == label), kernel)
        if moments.count > 1:
            bases[label] = Basis.fit(moments, kernel)
    return bases


def layers_by_size(
    db: Statistics,
    by: str,
    where: str | None,
    kernel: str | Sequence[str] | None,
    all_layers: bool,
    min_models: int,
    min_filters: int,
) -> pd.DataFrame:
    """The layers of each group, with the sums of their kernels: one row per layer."""
    chosen = "kernel_h >= 3 AND kernel_w >= 3"
    if kernel is not None:
        sizes = [kernel] if isinstance(kernel, str) else kernel
        chosen = f"kernel IN ({', '.join(literal(size) for size in sizes)})"
    papers = "" if all_layers else "AND papers_layer"
    frame = frame_of(
        db,
        f'SELECT {expression(by, "by")} AS "group", kernel, model_id, filters, raw_mean, raw_variance, scaled_mean '
        f"FROM facts WHERE stored AND filters > 0 AND raw_mean IS NOT NULL AND {chosen} AND {condition(where)} "
        f'{papers} AND "group" IS NOT NULL ORDER BY ALL',
    )
    if frame.empty:
        raise Grouping(by, where, sizes_text(kernel)).empty()
    return _large_enough(frame, by, min_models, min_filters)


def sizes_text(kernel: str | Sequence[str] | None) -> str:
    """What the kernel sizes of a question are called in an error."""
    return "spatial" if kernel is None else kernel if isinstance(kernel, str) else ", ".join(kernel)


def cells_of(db: Statistics, groups: Groups, components: tuple[int, int], cells: int) -> npt.NDArray[np.int64]:
    """The filters of groups by two of their coefficients: (groups, cells of the first, cells of the second).

    Every filter of the groups is read and projected.
    """
    db._require_filters()

    def counted() -> npt.NDArray[np.int64]:
        rows = groupings.selection(db._connect("facts"), groups.grouping, moments=False)
        return groupings.joint_counts(db.storage, groups, rows, components, cells, db._scanned)

    return db._undisturbed(counted)
