"""Frames of shifts between groups, with what they were made from: what FilterDB's shift methods return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from cnnfilterdb import stats
from cnnfilterdb.analysis.groups import Groups, by_model
from cnnfilterdb.errors import SelectionError

__all__ = ["component_weights", "components", "intervals", "matrix", "nearest"]


def component_weights(weights: Sequence[float] | str | None, groups: Groups) -> npt.NDArray[np.float64]:
    """Weight of each component: the recipe's, ``uniform``, ``explained_variance``, or given numbers.

    Raises:
        SelectionError: Another word, or not one finite number of at least 0 per component.
    """
    size = len(groups.weights)
    if weights is None:
        return groups.weights
    if isinstance(weights, str):
        if weights == "uniform":
            return np.full(size, 1 / size)
        if weights == "explained_variance":
            return groups.basis.explained_variance_ratio
        raise SelectionError(f"weights: {weights!r} is none of uniform, explained_variance, or {size} numbers")
    found = np.asarray(weights, np.float64)
    if found.shape != (size,) or not (np.isfinite(found).all() and (found >= 0).all()):
        raise SelectionError(f"weights: {size} finite numbers of at least 0 are needed, one per component")
    return found


def matrix(groups: Groups, weights: Sequence[float] | str | None, metric: str) -> pd.DataFrame:
    """The square frame of :meth:`FilterDB.kl_shift`."""
    chosen = component_weights(weights, groups)
    found = stats.kl_shift(groups.counts, chosen, groups.low, groups.high, metric=metric)
    labels = pd.Index(groups.labels, name=groups.grouping.by)
    frame = pd.DataFrame(found, index=labels, columns=labels)
    frame.attrs = {
        "basis": groups.basis_id or "given",
        "recipe": groups.grouping.recipe,
        "metric": metric,
        "balance": groups.grouping.balance,
        "range": (groups.low, groups.high),
        "bins": groups.counts.shape[2],
        "weights": chosen.tolist(),
        "groups": groups.sizes().to_dict("index"),
    }
    return frame


def components(groups: Groups, weights: Sequence[float] | str | None, metric: str) -> pd.DataFrame:
    """The long frame of :meth:`FilterDB.kl_shift_components`."""
    chosen = component_weights(weights, groups)
    found = stats.kl_shift_components(groups.counts, groups.low, groups.high, metric=metric)
    size, number, _ = found.shape
    first, second, component = (
        axis.ravel() for axis in np.meshgrid(np.arange(number), np.arange(number), np.arange(size), indexing="ij")
    )
    divergence = found[component, first, second]
    labels = pd.Series(groups.labels)
    return pd.DataFrame(
        {
            "group_a": labels.take(first).to_numpy(),
            "group_b": labels.take(second).to_numpy(),
            "component": component,
            "divergence": divergence,
            "weight": chosen[component],
            "shift": chosen[component] * divergence,
        }
    )


def nearest(shifts: pd.DataFrame, group: Any, limit: int) -> pd.DataFrame:
    """The groups nearest to one of a square frame of shifts.

    Raises:
        SelectionError: There is no such group.
    """
    if group not in shifts.index:
        raise SelectionError(
            f"no group {group!r} by {shifts.index.name}; there are {', '.join(map(str, shifts.index))}"
        )
    sizes = pd.DataFrame.from_dict(shifts.attrs["groups"], orient="index")
    row = shifts.loc[group].drop(group).sort_values(kind="stable").head(limit)
    frame: pd.DataFrame = row.rename("shift").to_frame().join(sizes)
    frame.index.name = shifts.index.name
    return frame


def intervals(
    connection: duckdb.DuckDBPyConnection,
    groups: Groups,
    weights: Sequence[float] | str | None,
    metric: str,
    *,
    samples: int,
    level: float,
    seed: int,
) -> pd.DataFrame:
    """The long frame of :meth:`FilterDB.kl_shift_intervals`.

    Args:
        connection: With the macros of the database.
        groups: Groups of a stored basis.
        weights: Of the components.
        metric: One of :data:`~cnnfilterdb.stats.METRICS`.
        samples: Number of resamples.
        level: Share of the resamples that an interval covers.
        seed: Of the random numbers.
    """
    chosen = component_weights(weights, groups)
    numbers, counts = by_model(connection, groups)
    found = stats.bootstrap_shift(
        counts, numbers, chosen, groups.low, groups.high, metric=metric, samples=samples, level=level, seed=seed
    )
    shift = stats.kl_shift(groups.counts, chosen, groups.low, groups.high, metric=metric)
    first, second = np.triu_indices(len(groups.labels), 1)
    labels = pd.Series(groups.labels)
    return pd.DataFrame(
        {
            "group_a": labels.take(first).to_numpy(),
            "group_b": labels.take(second).to_numpy(),
            "shift": shift[first, second],
            "low": found.low[first, second],
            "high": found.high[first, second],
            "models_a": groups.models[first],
            "models_b": groups.models[second],
            "filters_a": groups.filters[first],
            "filters_b": groups.filters[second],
        }
    )
