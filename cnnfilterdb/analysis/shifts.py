"""Frames of shifts between groups with their provenance: the results of Reader.kl_shift and related methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb import stats
from cnnfilterdb.analysis.groups import Groups, by_model
from cnnfilterdb.analysis.options import ComponentWeights
from cnnfilterdb.analysis.sums import StoredHistograms
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ShiftMatrix",
    "check_measure",
    "component_weights",
    "components",
    "intervals",
    "matrix",
    "nearest_rows",
]


def check_measure(metric: str, weights: ComponentWeights, kernel: str) -> None:
    """Check the options of a comparison before anything is read.

    Raises:
        SelectionError: An unknown metric, or weights that are neither a known word nor one finite number of at least 0
            per component.
    """
    if metric not in stats.METRICS:
        raise SelectionError(f"metric: {metric!r} given; expected one of {', '.join(stats.METRICS)}")
    height, width = kernel_shape(kernel)
    size = height * width
    if weights is None or (isinstance(weights, str) and weights in ("uniform", "explained_variance")):
        return
    wanted = (
        f"expected uniform, explained_variance, or {size} finite numbers of at least 0, one per component, not all of "
        "them 0"
    )
    if isinstance(weights, str):
        raise SelectionError(f"weights: {weights!r} given; {wanted}")
    try:
        found = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise SelectionError(f"weights: {weights!r} given; {wanted}") from error
    if found.shape != (size,) or not (np.isfinite(found).all() and (found >= 0).all() and found.any()):
        raise SelectionError(f"weights: {found.tolist()} given; {wanted}")


def component_weights(weights: ComponentWeights, groups: Groups) -> npt.NDArray[np.float64]:
    """Weight of each component, (k,): those of the recipe, ``uniform``, ``explained_variance``, or given numbers."""
    if weights is None:
        return groups.weights
    if isinstance(weights, str):
        size = len(groups.weights)
        return np.full(size, 1 / size) if weights == "uniform" else groups.basis.explained_variance_ratio
    return np.asarray(weights, np.float64)


@dataclass(frozen=True, slots=True)
class ShiftMatrix:
    """Shifts between every two groups; :meth:`frame` is what :meth:`Reader.kl_shift` returns.

    Attributes:
        by: The grouping expression.
        labels: The groups, sorted.
        values: The shifts, (g, g) float64, in nats for a KL divergence.
        attrs: How they were computed and what went into them: the ``.attrs`` of the frame.
    """

    by: str
    labels: list[Any]
    values: npt.NDArray[np.float64]
    attrs: dict[str, Any]

    def frame(self) -> pd.DataFrame:
        """A square frame with the groups as its index and columns."""
        import pandas as pd

        labels = pd.Index(self.labels, name=self.by)
        frame = pd.DataFrame(self.values, index=labels, columns=labels)
        frame.attrs.update(self.attrs)
        return frame


def matrix(groups: Groups, weights: ComponentWeights, metric: str) -> ShiftMatrix:
    """The shifts between every two groups."""
    chosen = component_weights(weights, groups)
    found = stats.kl_shift(groups.counts, chosen, groups.low, groups.high, metric=metric)
    attrs = {
        "basis": groups.basis_id or "given",
        "recipe": groups.grouping.recipe,
        "metric": metric,
        "balance": groups.grouping.balance,
        "range": (groups.low, groups.high),
        "bins": groups.counts.shape[2],
        "weights": chosen.tolist(),
        "groups": groups.sizes_by_label(),
    }
    return ShiftMatrix(groups.grouping.by, groups.labels, found, attrs)


def components(groups: Groups, weights: ComponentWeights, metric: str) -> pd.DataFrame:
    """The long frame of :meth:`Reader.kl_shift_components`."""
    import pandas as pd

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


def nearest_rows(shifts: pd.DataFrame, group: Any, top: int) -> pd.DataFrame:
    """The groups nearest to one of a square frame of shifts.

    Raises:
        SelectionError: No such group exists.
    """
    import pandas as pd

    if group not in shifts.index:
        raise SelectionError(
            f"no group {group!r} by {shifts.index.name}; the groups are {', '.join(map(str, shifts.index))}"
        )
    sizes = pd.DataFrame.from_dict(shifts.attrs["groups"], orient="index")
    row = shifts.loc[group].drop(group).sort_values(kind="stable").head(top)
    frame: pd.DataFrame = row.rename("shift").to_frame().join(sizes)
    frame.index.name = shifts.index.name
    return frame


def intervals(
    histograms: StoredHistograms,
    groups: Groups,
    weights: ComponentWeights,
    metric: str,
    *,
    samples: int,
    level: float,
    seed: int,
) -> pd.DataFrame:
    """The long frame of :meth:`Reader.kl_shift_intervals`.

    Args:
        histograms: Those of the basis of the groups.
        groups: Groups of a stored basis.
        weights: Of the components.
        metric: One of :data:`~cnnfilterdb.stats.METRICS`.
        samples: Number of resamples.
        level: Share of the resamples that an interval covers.
        seed: Of the random numbers.
    """
    import pandas as pd

    chosen = component_weights(weights, groups)
    numbers, counts = by_model(histograms, groups)
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
