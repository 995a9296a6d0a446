"""How certain a shift is: bootstrap intervals over models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats.arguments import between, random_numbers, whole_number
from cnnfilterdb.stats.divergence import kl_shift

__all__ = ["Interval", "bootstrap_shift"]

#: Numbers that the shifts of all resamples may occupy: 800 MB.
_MOST = 100_000_000
#: Numbers that the histograms of the resamples in progress occupy.
_CHUNK = 8_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Confidence intervals of the shifts between groups.

    Attributes:
        low: Lower ends, (g, g) float64. NaN for a pair with a group of one model, which cannot be resampled.
        high: Upper ends, (g, g); NaN likewise.
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def bootstrap_shift(
    counts: npt.NDArray[np.float64],
    groups: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    low: float,
    high: float,
    *,
    metric: str = "kl",
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron, 1979) of the shifts between groups, with the models of each group resampled.

    Filters of one model are alike, so models are resampled, not filters: each group gets as many models as it has, with
    replacement, each with the histograms of all its filters in the group. Shifts of small samples are biased upwards,
    and so are those of resamples, which contain fewer different models: read an interval above the shift itself
    as a sign of too few models. :func:`~cnnfilterdb.stats.population_shift` has intervals without this bias.

    Args:
        counts: Histograms of the models, (m, k, bins), weighted as the groups are balanced. A model that is in several
            groups has a row for each.
        groups: Number of the group of each row, (m,), from 0, none left out.
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.
        metric: One of :data:`~cnnfilterdb.stats.METRICS`.
        samples: Number of resamples.
        level: Share of the resamples that an interval covers.
        seed: Of the random numbers; the same one gives the same intervals.

    Raises:
        SelectionError: Fewer than 2 samples, a level outside 0 to 1, or more samples of more groups than memory should
            hold.

    >>> counts = np.array([[[3.0, 1.0]], [[2.0, 2.0]], [[1.0, 3.0]]])
    >>> found = bootstrap_shift(counts, np.array([0, 0, 1]), np.ones(1), 0, 1, samples=10)
    >>> bool(np.isnan(found.low[0, 1]))   # the second group has one model
    True
    """
    whole_number(2, "samples", samples, "better 1000")
    between(np.finfo(np.float64).tiny, 1, "level", level, "a share between 0 and 1, such as 0.95")
    sizes = np.bincount(groups)
    number, width = len(sizes), int(np.prod(counts.shape[1:]))
    if samples * number**2 > _MOST:
        raise SelectionError(
            f"bootstrap: {samples} samples of {number} groups do not fit into memory; use at most "
            f"{_MOST // number**2} samples of so many groups, or group by something coarser"
        )
    rng = random_numbers(seed)
    rows = [counts[groups == group].reshape(-1, width).astype(np.float64) for group in range(number)]
    draws = [rng.multinomial(size, np.full(size, 1 / size), samples) for size in sizes.tolist()]
    shifts = np.empty((samples, number, number))
    step = max(1, _CHUNK // (number * width))
    for start in range(0, samples, step):
        chosen = slice(start, start + step)
        drawn = np.stack([draw[chosen] @ row for draw, row in zip(draws, rows, strict=True)], axis=1)
        drawn = drawn.reshape(-1, number, *counts.shape[1:])
        # A resample of models that are all outside the range says nothing about its group.
        nothing = ~(drawn.sum(axis=-1) > 0).all(axis=-1)
        drawn[nothing] = 1
        for place, (sample, without) in enumerate(zip(drawn, nothing, strict=True), start):
            shifts[place] = kl_shift(sample, weights, low, high, metric=metric)
            shifts[place, without] = shifts[place, :, without] = np.nan
    single = sizes < 2
    shifts[:, single] = shifts[:, :, single] = 0
    tail = (1 - level) / 2
    ends = np.nanquantile(shifts, [tail, 1 - tail], axis=0)
    ends[:, single] = ends[:, :, single] = np.nan
    ends[:, np.arange(number), np.arange(number)] = 0
    return Interval(*ends)
