"""Permutation tests of shifts: how large would a shift be if the labels of the models were arbitrary?

A divergence is never negative, and between small groups it is large by chance. The tests exchange the labels of whole
models, never of the layers or filters of one model, which are not independent of each other, and compare the shift that
was observed with those that occur by chance (Good, *Permutation, Parametric and Bootstrap Tests of Hypotheses*, 2005).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats.arguments import random_numbers, whole_number
from cnnfilterdb.stats.divergence import kl_shift, paired_shift

__all__ = ["OverallTest", "ShiftTest", "adjusted_bh", "adjusted_holm", "orders_within", "overall_test", "shift_test"]

#: Numbers that the histograms of the permutations in progress occupy: 100 MB.
_CHUNK = 12_000_000
#: Two shifts that differ by less than this share of the larger are equal: sums in another order round differently.
_EQUAL = 1e-9
#: Shifts below this are those of equal groups, rounded.
_ROUNDING = 1e-12
#: A difference of two sums below this share of the larger is rounding. One filter of a bin is a larger share of it.
_RESIDUE = 1e-11


@dataclass(frozen=True, slots=True, eq=False)
class ShiftTest:
    """Tests of all pairs of groups. Arrays have one entry per pair (a, b), a < b, in row-major order.

    Attributes:
        first: Number of the first group, (n,).
        second: Number of the second group, (n,).
        shift: Observed shift, (n,).
        null_mean: Mean shift of the permutations, (n,).
        null_high: Their 95th percentile, (n,).
        p: Probability of a shift at least as large by chance, (b + 1) / (m + 1), (n,), but at least 1 / arrangements;
            1 for a pair that cannot be tested, because every permutation of its labels is the observed one.
        arrangements: Number of different ways to exchange the labels, (n,) float64, infinite where
            a float cannot hold it; p cannot be below its inverse.
        null: Shifts of the permutations, (permutations, n); None unless they were to be kept.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    shift: npt.NDArray[np.float64]
    null_mean: npt.NDArray[np.float64]
    null_high: npt.NDArray[np.float64]
    p: npt.NDArray[np.float64]
    arrangements: npt.NDArray[np.float64]
    null: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class OverallTest:
    """Test of all groups at once.

    Attributes:
        shift: Mean of the observed shifts of all pairs.
        null_mean: Mean over the permutations.
        null_high: 95th percentile of the permutations.
        p: Probability of a mean shift at least as large by chance.
    """

    shift: float
    null_mean: float
    null_high: float
    p: float


def shift_test(
    counts: npt.NDArray[np.float64],
    groups: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    low: float,
    high: float,
    *,
    metric: str = "kl",
    strata: npt.NDArray[np.int64] | None = None,
    permutations: int = 999,
    seed: int = 0,
    keep_null: bool = False,
) -> ShiftTest:
    """Test the shift of every pair of groups against exchanging the labels of their models.

    For each pair, only the models of its two groups are exchanged, within their strata, so that other groups have no
    influence. The observed arrangement counts as one of the permutations, so that p is never 0 and the test
    keeps its level (Phipson and Smyth, *Permutation P-values Should Never Be Zero*, 2010).

    Args:
        counts: Histograms of the models, (m, k, bins), whole or weighted.
        groups: Number of the group of each model, (m,), from 0, none left out.
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.
        metric: One of :data:`~cnnfilterdb.stats.METRICS`.
        strata: Number of the stratum of each model, (m,); labels are exchanged within a stratum only.
        permutations: Number of random permutations.
        seed: Of the random numbers; the same seed gives the same result.
        keep_null: Also return the shifts of the permutations.

    Raises:
        SelectionError: Fewer than 1 permutation, or fewer than two groups.

    >>> rng = np.random.default_rng(1)
    >>> counts = rng.multinomial(500, [0.5, 0.3, 0.2], size=8)[:, None, :].astype(float)
    >>> counts[4:] = rng.multinomial(500, [0.2, 0.3, 0.5], size=4)[:, None, :]
    >>> found = shift_test(counts, np.repeat([0, 1], 4), np.ones(1), 0, 1)
    >>> found.arrangements.tolist(), bool(found.p[0] < 0.05)
    ([70.0], True)
    """
    groups, number = _checked(groups, permutations)
    strata = np.zeros(len(groups), np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    first, second = np.triu_indices(number, 1)
    flat = np.asarray(counts, np.float64).reshape(len(groups), -1)
    shape = counts.shape[1:]
    in_first, in_second = groups == first[:, None], groups == second[:, None]

    def shifts(chosen: npt.NDArray[np.bool_], rest: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        a, b = (_filled((part.astype(np.float64) @ flat).reshape(-1, *shape)) for part in (chosen, rest))
        return paired_shift(a, b, weights, low, high, metric=metric)

    observed = shifts(in_first, in_second)
    member = in_first | in_second
    levels = int(strata.max(initial=0)) + 1
    one_hot = np.eye(levels, dtype=np.int64)[strata]
    quota, size = in_first.astype(np.int64) @ one_hot, member.astype(np.int64) @ one_hot
    arrangements = np.array(
        [
            float(np.prod([_ways(int(n), int(k)) for n, k in zip(sizes, quotas, strict=True)]))
            for sizes, quotas in zip(size, quota, strict=True)
        ]
    )
    # Models are sorted by stratum and then at random; the first of each stratum get the label of the first group. The
    # sums of the smaller group are formed, and those of the other are the rest of the pair.
    start = np.cumsum(size, axis=1) - size
    smaller = in_first.sum(axis=1) <= in_second.sum(axis=1)
    pair_sums = member.astype(np.float64) @ flat
    rng = random_numbers(seed)
    null = np.empty((permutations, len(first)))
    step = max(1, _CHUNK // max(1, len(first) * (2 * len(groups) + 3 * flat.shape[1])))
    for begin in range(0, permutations, step):
        keys = rng.random((min(step, permutations - begin), len(groups))) + strata
        order = np.argsort(keys, axis=1, kind="stable")
        there = member[:, order].transpose(1, 0, 2)
        rank = np.cumsum(there, axis=2, dtype=np.int32) - 1
        stratum = strata[order]
        limit = (start + quota).astype(np.int32)[:, stratum].transpose(1, 0, 2)
        chosen = there & ((rank < limit) == smaller[:, None])
        part = _sums_of(chosen, order, flat)
        rest = np.maximum(pair_sums - part.reshape(len(keys), *pair_sums.shape), 0).reshape(part.shape)
        # What rounding leaves of a difference is no coefficient: an empty bin counts as one.
        rest[rest < _RESIDUE * np.tile(pair_sums, (len(keys), 1))] = 0
        a, b = (_filled(one.reshape(-1, *shape)) for one in (part, rest))
        swap = np.tile(~smaller, len(keys))[:, None, None]
        found = paired_shift(np.where(swap, b, a), np.where(swap, a, b), weights, low, high, metric=metric)
        null[begin : begin + len(keys)] = found.reshape(len(keys), -1)
    p, mean, upper = _summary(observed, null)
    # One arrangement is the observed one; that random draws met it too seldom is no evidence.
    p = np.maximum(p, 1 / arrangements)
    return ShiftTest(first, second, observed, mean, upper, p, arrangements, null if keep_null else None)


def overall_test(
    counts: npt.NDArray[np.float64],
    groups: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    low: float,
    high: float,
    *,
    metric: str = "kl",
    strata: npt.NDArray[np.int64] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> OverallTest:
    """Test the mean shift of all pairs of groups against exchanging the labels of all models, within their strata.

    The arguments and errors are those of :func:`shift_test`.

    >>> rng = np.random.default_rng(1)
    >>> counts = rng.multinomial(500, [0.5, 0.3, 0.2], size=9)[:, None, :].astype(float)
    >>> overall_test(counts, np.repeat([0, 1, 2], 3), np.ones(1), 0, 1, permutations=99).p > 0.05
    True
    """
    groups, number = _checked(groups, permutations)
    strata = np.zeros(len(groups), np.int64) if strata is None else strata
    flat = np.asarray(counts, np.float64).reshape(len(groups), -1)
    pairs = np.triu_indices(number, 1)

    def mean_shift(labels: npt.NDArray[np.int64]) -> float:
        sums = _picked(labels, np.arange(len(labels)), number, flat)
        matrix = kl_shift(_filled(sums.reshape(number, *counts.shape[1:])), weights, low, high, metric=metric)
        return float(matrix[pairs].mean())

    rng = random_numbers(seed)
    observed = mean_shift(groups)
    null = np.array([mean_shift(groups[order]) for order in orders_within(strata, permutations, rng)])
    p, mean, upper = _summary(np.array([observed]), null[:, None])
    return OverallTest(observed, float(mean[0]), float(upper[0]), float(p[0]))


def orders_within(
    strata: npt.NDArray[np.int64], permutations: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Random orders of models, (m,) each, that exchange models of the same stratum only.

    Args:
        strata: Number of the stratum of each model, (m,).
        permutations: Number of orders.
        rng: Random numbers.

    >>> [order] = orders_within(np.array([0, 1, 0, 2]), 1, np.random.default_rng(0))
    >>> order[1], order[3], sorted(order[[0, 2]].tolist())
    (np.int64(1), np.int64(3), [0, 2])
    """
    within = np.argsort(strata, kind="stable")
    for _ in range(permutations):
        order = np.empty(len(strata), np.int64)
        order[within] = np.lexsort((rng.random(len(strata)), strata))
        yield order


def adjusted_holm(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjusted p-values that control the family-wise error (Holm, 1979).

    >>> adjusted_holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    found, order = np.empty(len(p)), np.argsort(p, kind="stable")
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return found


def adjusted_bh(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjusted p-values that control the false discovery rate (Benjamini and Hochberg, 1995).

    >>> adjusted_bh(np.array([0.01, 0.04, 0.03])).round(6).tolist()
    [0.03, 0.04, 0.04]
    """
    found, order = np.empty(len(p)), np.argsort(p, kind="stable")[::-1]
    factors = len(order) / np.arange(len(order), 0, -1)
    found[order] = np.minimum(1, np.minimum.accumulate(factors * p[order]))
    return found


def _checked(groups: npt.NDArray[np.int64], permutations: int) -> tuple[npt.NDArray[np.int64], int]:
    whole_number(1, "permutations", permutations, "better 999")
    groups = np.asarray(groups, np.int64)
    number = int(groups.max(initial=-1)) + 1
    if number < 2:
        raise SelectionError(f"{number} groups given; a test needs at least two")
    return groups, number


def _ways(number: int, chosen: int) -> float:
    """Ways to choose some of a number of models; infinite where it is beyond a float, as for halves of 1,030."""
    ways = comb(number, chosen)
    return float(ways) if ways.bit_length() < 1024 else float("inf")


def _sums_of(
    chosen: npt.NDArray[np.bool_], order: npt.NDArray[np.int64], flat: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Sums of the histograms of some models for each permutation and pair.

    Args:
        chosen: Which models, in the order of the permutation, (permutations, pairs, m).
        order: The models in that order, (permutations, m).
        flat: Histograms, (m, k x bins).

    Returns:
        (permutations x pairs, k x bins).
    """
    permutation, pair, place = np.nonzero(chosen)
    rows = chosen.shape[0] * chosen.shape[1]
    return _picked(permutation * chosen.shape[1] + pair, order[permutation, place], rows, flat)


def _picked(
    rows: npt.NDArray[np.int64], models: npt.NDArray[np.int64], number: int, flat: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Sums of histograms: row i of the answer has the sum of those of the models whose ``rows`` is i, (number, n)."""
    from scipy.sparse import coo_array

    picked = coo_array((np.ones(len(models)), (rows, models)), shape=(number, len(flat)))
    return np.asarray(picked.tocsr() @ flat)


def _filled(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A histogram without a coefficient in the range carries no information: it counts as uniform."""
    empty = ~(counts.sum(axis=-1, keepdims=True) > 0)
    return np.where(empty, 1.0, counts)


def _summary(
    observed: npt.NDArray[np.float64], null: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """p, mean and 95th percentile of the shifts by chance, (n,) each; those equal to the observed one become that."""
    equal = np.abs(null - observed) <= np.maximum(_EQUAL * np.abs(observed), _ROUNDING)
    np.copyto(null, observed, where=equal)
    p = ((null >= observed).sum(axis=0) + 1) / (len(null) + 1)
    # Equal numbers do not always have themselves as their mean.
    return p, np.where(equal.all(axis=0), observed, null.mean(axis=0)), np.quantile(null, 0.95, axis=0)
