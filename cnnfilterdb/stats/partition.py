"""What explains the differences between models: distance-based partition of variation, dispersion, scaling, neighbours.

All of it starts from the matrix of shifts between models. Its square roots are taken as distances, so that the total
variation is in the unit of the shift (nats for KL) and a share of it reads like a share of variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats.arguments import random_numbers, whole_number
from cnnfilterdb.stats.permutation import orders_within

__all__ = [
    "Dispersion",
    "Embedding",
    "ExplainedTerm",
    "Purity",
    "dispersion",
    "embedding",
    "gower",
    "held_fixed",
    "neighbour_purity",
    "partition",
]

#: A column of a design that adds less than this share of its length to those before it adds nothing.
_RANK = 1e-8
#: Two statistics that differ by less than this share are equal: sums in another order round differently.
_EQUAL = 1e-9
#: A residual below this share of the total is rounding: it counts as this share, so that no F is infinite.
_RESIDUE = 1e-12
#: Most steps towards a spatial median.
_STEPS = 1000


@dataclass(frozen=True, slots=True)
class ExplainedTerm:
    """One row of a partition of variation.

    Attributes:
        df: Degrees of freedom that the factor adds; 0 when the other factors determine it.
        ss: Sum of squares, in the unit of the shift.
        r2: Its share of the total.
        omega2: The share corrected for what a factor of as many levels explains by chance; it may be negative.
        f: Pseudo-F statistic; None for the residual and the total.
        p: Probability of an F at least as large by chance; None likewise. A factor that cannot be tested, because df or
            the residual degrees of freedom are 0, has omega2 = 0, f = 0 and p = 1.
    """

    df: int
    ss: float
    r2: float
    omega2: float | None
    f: float | None
    p: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Dispersion:
    """Whether groups differ in their spread.

    Attributes:
        distances: Distance of each model from the centre of its group, (m,), in roots of the unit of the shift.
        means: Mean distance of each group, (g,).
        f: F statistic of an analysis of variance of the distances.
        p: Probability of an F at least as large by chance. Where the distances of no group vary, there is nothing to
            test against: f = 0 and p = 1.
    """

    distances: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    f: float
    p: float


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Coordinates of models whose Euclidean distances approach their distances.

    Attributes:
        coordinates: (m, dimensions), by falling variance, centred.
        explained: Share of the sum of the positive eigenvalues along each dimension, (dimensions,).
        negative: Sum of the negative eigenvalues as a share of that of the positive ones: how far the distances are
            from being Euclidean.
    """

    coordinates: npt.NDArray[np.float64]
    explained: npt.NDArray[np.float64]
    negative: float


@dataclass(frozen=True, slots=True)
class Purity:
    """How often the nearest models have the same label.

    Attributes:
        share: Share of the nearest neighbours that have the label of their model.
        null_mean: Mean share if labels are arbitrary.
        null_high: 95th percentile of that.
        p: Probability of a share at least as large by chance.
        models: Number of models whose neighbours were counted.
    """

    share: float
    null_mean: float
    null_high: float
    p: float
    models: int


def gower(shifts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gower's centred matrix G = -1/2 J S J of squared distances S, the shifts (Gower, 1966).

    Args:
        shifts: (m, m), symmetric, with a diagonal of 0.

    Returns:
        (m, m); its trace is the total sum of squares about the centroid.

    Raises:
        SelectionError: The matrix is not square and symmetric, or not finite.

    >>> gower(np.array([[0.0, 4.0], [4.0, 0.0]])).tolist()   # two points at -1 and 1
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    if shifts.ndim != 2 or shifts.shape[0] != shifts.shape[1] or not np.isfinite(shifts).all():
        raise SelectionError(f"shifts of shape {shifts.shape} given; a square matrix of finite numbers is needed")
    if not np.allclose(shifts, shifts.T, rtol=1e-9, atol=1e-12):
        raise SelectionError("the shifts are not symmetric; choose a symmetric metric, such as kl or jensen_shannon")
    half = -shifts / 2
    centred: npt.NDArray[np.float64] = half - half.mean(axis=0) - half.mean(axis=1)[:, None] + half.mean()
    return centred


def held_fixed(levels: npt.NDArray[np.int64], strata: npt.NDArray[np.int64]) -> bool:
    """Whether a factor has one level in each stratum, so that exchanges within strata cannot test it.

    Args:
        levels: Number of the level of each model, (m,).
        strata: Number of the stratum of each model, (m,).

    >>> held_fixed(np.array([0, 0, 1]), np.array([5, 5, 7])), held_fixed(np.array([0, 1, 1]), np.array([5, 5, 7]))
    (True, False)
    """
    return len(np.unique(np.stack([strata, levels]), axis=1)[0]) == len(np.unique(strata))


def partition(
    shifts: npt.NDArray[np.float64],
    factors: Sequence[npt.NDArray[np.int64]],
    *,
    marginal: bool = False,
    strata: npt.NDArray[np.int64] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> list[ExplainedTerm]:
    """Permutational multivariate analysis of variance (Anderson, 2001; McArdle and Anderson, 2001).

    With H the projection on the indicator columns of some factors, the sum of squares that they explain is tr(H G). A
    factor is tested by permuting the models, all factors together, as ``adonis2`` of the R package vegan does; p is 1
    for a factor with one value in each stratum (:func:`held_fixed`).

    Args:
        shifts: Shifts between models, (m, m), symmetric.
        factors: Number of the level of each model, one array (m,) per factor.
        marginal: Each factor after all others; otherwise each after those before it (sequential).
        strata: Number of the stratum of each model, (m,); models are exchanged within a stratum only.
        permutations: Number of random permutations.
        seed: Of the random numbers.

    Returns:
        One row per factor, then the residual and the total.

    Raises:
        SelectionError: No factor, fewer than three models, or fewer than 1 permutation.

    >>> points = np.array([0.0, 1.0, 10.0, 11.0])
    >>> shifts = (points[:, None] - points) ** 2
    >>> between, residual, total = partition(shifts, [np.array([0, 0, 1, 1])])
    >>> round(between.ss, 6), round(residual.ss, 6), round(total.ss, 6), round(between.f, 6)
    (100.0, 1.0, 101.0, 200.0)
    """
    centred = gower(np.asarray(shifts, np.float64))
    count = len(centred)
    whole_number(1, "permutations", permutations, "better 999")
    if not factors or count < 3:
        raise SelectionError(f"{len(factors)} factors and {count} models given; at least 1 and 3 are needed")
    indicators = [_indicators(levels) for levels in factors]
    everything = _basis(indicators)
    added: list[npt.NDArray[np.float64]] = []
    for number, own in enumerate(indicators):
        before = _basis(indicators[:number] + indicators[number + 1 :] if marginal else indicators[:number])
        added.append(_beyond(own, before))
    df_residual = count - 1 - everything.shape[1]
    projections = [basis @ basis.T for basis in added]
    full = everything @ everything.T
    total = float(np.trace(centred))

    def squares(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # Not by BLAS: for products of this size, starting its threads takes longer than the work.
        return np.array([np.einsum("ij,ij->", projection, matrix) for projection in (*projections, full)])

    observed = squares(centred)
    df = np.array([basis.shape[1] for basis in added])
    f = _f(observed, df, total, df_residual)
    rng = random_numbers(seed)
    strata = np.zeros(count, np.int64) if strata is None else strata
    as_large = np.zeros(len(added))
    for order in orders_within(strata, permutations, rng):
        found = _f(squares(centred[np.ix_(order, order)]), df, total, df_residual)
        as_large += found >= f - _EQUAL * np.abs(f)
    testable = (df > 0) & (df_residual > 0) & (total > 0)
    # F of a factor that no exchange changes would vary with the residual alone, which says nothing of the factor.
    exchanged = np.array([not held_fixed(levels, strata) for levels in factors])
    p = np.where(testable & exchanged, (as_large + 1) / (permutations + 1), 1.0)
    residual = total - float(observed[-1])
    mean_residual = residual / max(1, df_residual)
    terms = [
        ExplainedTerm(
            int(df[i]),
            float(observed[i]),
            float(observed[i] / total) if total > 0 else 0.0,
            float((observed[i] - df[i] * mean_residual) / (total + mean_residual)) if testable[i] else 0.0,
            float(f[i]) if testable[i] else 0.0,
            float(p[i]),
        )
        for i in range(len(added))
    ]
    share = residual / total if total > 0 else 0.0
    terms.append(ExplainedTerm(df_residual, residual, share, None, None, None))
    terms.append(ExplainedTerm(count - 1, total, 1.0, None, None, None))
    return terms


def dispersion(
    shifts: npt.NDArray[np.float64],
    groups: npt.NDArray[np.int64],
    *,
    centre: Literal["median", "centroid"] = "median",
    permutations: int = 999,
    seed: int = 0,
) -> Dispersion:
    """Test of equal spread (Anderson, *Distance-based tests for homogeneity of multivariate dispersions*, 2006).

    Where groups differ in spread, a partition of variation can find a difference although their centres are equal. The
    distance of each model from the centre of its group is measured in the space of the principal coordinates; the
    contribution of negative eigenvalues is subtracted. Residuals are permuted.

    The centre is the spatial median, the point from which the sum of the distances is least, as ``betadisper`` of the R
    package vegan and ``permdisp`` of scikit-bio have it by default: shifts have long tails, and one odd model pulls a
    centroid towards itself, which makes all others look spread out. Of two models it is the middle.

    Args:
        shifts: Shifts between models, (m, m), symmetric.
        groups: Number of the group of each model, (m,), from 0, none left out.
        centre: ``median``, or ``centroid``, with which the test is one of the mean distance from the mean.
        permutations: Number of random permutations.
        seed: Of the random numbers.

    Raises:
        SelectionError: Fewer than two groups, no group of two models, or an unknown centre.

    >>> points = np.array([0.0, 1.0, 2.0, 9.0, 10.0, 30.0])
    >>> groups = np.array([0, 0, 0, 0, 1, 1])
    >>> shifts = (points[:, None] - points) ** 2
    >>> [dispersion(shifts, groups, centre=centre).means.round(3).tolist() for centre in ("median", "centroid")]
    [[2.5, 10.0], [3.0, 10.0]]
    """
    centred = gower(np.asarray(shifts, np.float64))
    sizes = np.bincount(groups)
    whole_number(1, "permutations", permutations, "better 999")
    if centre not in ("median", "centroid"):
        raise SelectionError(f"centre: {centre!r} given; expected 'median' or 'centroid'")
    if len(sizes) < 2 or sizes.max() < 2:
        raise SelectionError("dispersion: at least two groups are needed, one of them with two models")
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    squared = np.zeros(len(groups))
    # The products of the coordinates along positive eigenvalues, and those along negative ones, which are subtracted.
    for sign in (1, -1):
        products = (vectors * (sign * values).clip(0)) @ vectors.T
        for group in range(len(sizes)):
            inside = np.flatnonzero(groups == group)
            squared[inside] += sign * _from_centre(products[np.ix_(inside, inside)], centre)
    # Models that are equal are apart by the rounding of the eigenvectors.
    squared[np.abs(squared) <= _RESIDUE * centred.diagonal().max()] = 0
    distances = np.sqrt(np.abs(squared))
    averages = np.bincount(groups, distances) / sizes
    residuals = distances - averages[groups]
    rng = random_numbers(seed)
    observed = _anova(distances, groups, sizes)
    null = np.array([_anova(rng.permutation(residuals), groups, sizes) for _ in range(permutations)])
    p = (np.count_nonzero(null >= observed - _EQUAL * abs(observed)) + 1) / (permutations + 1) if observed > 0 else 1.0
    return Dispersion(distances, averages, observed, float(p))


def _from_centre(products: npt.NDArray[np.float64], centre: str) -> npt.NDArray[np.float64]:
    """Squared distances (n,) of points from their centre, of which the scalar products (n, n) are known.

    Centres are weighted means of the points, so that no coordinates are needed. The spatial median is found by
    Weiszfeld's iteration, with the step of Vardi and Zhang (2000) where it is at a point.
    """
    count = len(products)
    shares = np.full(count, 1 / count)
    scale = float(np.sqrt(products.diagonal().max(initial=0.0)))
    squared = _squared_from(products, shares)
    if centre == "centroid" or count < 3 or scale == 0:
        return squared
    for _ in range(_STEPS):
        distances = np.sqrt(squared)
        # Distances are differences of products, which are exact to half of the digits.
        there = distances <= 1e-7 * scale
        nearness = np.where(there, 0.0, 1 / np.where(there, 1.0, distances))
        if not nearness.any():
            break
        step = nearness / nearness.sum() - shares
        if there.any():
            force = nearness - nearness.sum() * shares
            pull = float(np.sqrt(max(force @ products @ force, 0.0)))
            step *= max(0.0, 1 - np.count_nonzero(there) / pull) if pull > 0 else 0.0
        shares = shares + step
        squared = _squared_from(products, shares)
        if step @ products @ step <= (1e-8 * scale) ** 2:
            break
    return squared


def _squared_from(products: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared distances (n,) of points from their mean, weighted by shares (n,)."""
    along = products @ shares
    squared: npt.NDArray[np.float64] = (products.diagonal() - 2 * along + shares @ along).clip(0)
    return squared


def embedding(shifts: npt.NDArray[np.float64], dimensions: int = 2) -> Embedding:
    """Classical multidimensional scaling (Torgerson, 1952) of the square roots of the shifts.

    Args:
        shifts: Shifts between models, (m, m), symmetric.
        dimensions: Number of coordinates; dimensions without variance are 0.

    Raises:
        SelectionError: Fewer than 1 dimension, or more than there are models.

    >>> points = np.array([0.0, 1.0, 3.0])
    >>> found = embedding((points[:, None] - points) ** 2, 1)
    >>> np.abs(np.diff(found.coordinates[:, 0])).round(6).tolist()
    [1.0, 2.0]
    """
    centred = gower(np.asarray(shifts, np.float64))
    whole_number(1, "dimensions", dimensions)
    if dimensions > len(centred):
        raise SelectionError(f"dimensions: {dimensions} given; from 1 to the number of models, {len(centred)}")
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    positive = values.clip(0)
    # The sign of an eigenvector is arbitrary: the coordinate of largest size is positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    coordinates = (vectors * signs * np.sqrt(positive))[:, :dimensions]
    whole = positive.sum() or 1.0
    return Embedding(coordinates, positive[:dimensions] / whole, float(-values.clip(max=0).sum() / whole))


def neighbour_purity(
    shifts: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    *,
    neighbours: int = 1,
    of: int | None = None,
    strata: npt.NDArray[np.int64] | None = None,
    apart: npt.NDArray[np.int64] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Purity:
    """How often the nearest neighbours of a model have its label, compared with arbitrary labels.

    Args:
        shifts: Shifts between models, (m, m); of a directed shift, from the row to the column.
        labels: Number of the label of each model, (m,).
        neighbours: How many of the nearest models are considered.
        of: Consider only models with this label.
        strata: Number of the stratum of each model, (m,); labels are exchanged within a stratum only.
        apart: Number of the family of each model, (m,): neighbours of the same family do not count.
        permutations: Number of random permutations of the labels.
        seed: Of the random numbers.

    Raises:
        SelectionError: Too few models for so many neighbours, or no model of the label.

    >>> points = np.array([0.0, 1.0, 10.0, 11.0])
    >>> shifts = (points[:, None] - points) ** 2
    >>> neighbour_purity(shifts, np.array([0, 0, 1, 1])).share
    1.0
    """
    count = len(labels)
    far = np.array(shifts, np.float64)
    far[np.arange(count), np.arange(count)] = np.inf
    if apart is not None:
        far[apart[:, None] == apart] = np.inf
    whole_number(1, "neighbours", neighbours)
    whole_number(1, "permutations", permutations, "better 999")
    asked = np.isfinite(far).sum(axis=1) >= neighbours
    if not asked.any() or (of is not None and not (asked & (labels == of)).any()):
        raise SelectionError(f"purity: no model has {neighbours} others to be compared with; choose fewer neighbours")
    model, other, part = _nearest(far, np.flatnonzero(asked), neighbours)

    def share(names: npt.NDArray[np.int64]) -> float:
        chosen = np.ones(len(model), bool) if of is None else names[model] == of
        whole = part[chosen].sum()
        return float(part[chosen] @ (names[other[chosen]] == names[model[chosen]]) / whole) if whole else 0.0

    rng = random_numbers(seed)
    strata = np.zeros(count, np.int64) if strata is None else strata
    observed = share(labels)
    null = np.array([share(labels[order]) for order in orders_within(strata, permutations, rng)])
    p = (np.count_nonzero(null >= observed - _EQUAL) + 1) / (permutations + 1)
    models = int((asked if of is None else asked & (labels == of)).sum())
    return Purity(observed, float(null.mean()), float(np.quantile(null, 0.95)), float(p), models)


def _nearest(
    far: npt.NDArray[np.float64], asked: npt.NDArray[np.int64], neighbours: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The nearest neighbours of some models: model, neighbour, and the part of a place that it takes, (n,) each.

    Models that are equally far share the places that are left for them.
    """
    distances = far[asked]
    last = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1 : neighbours]
    slack = _EQUAL * np.abs(last)
    nearer, tied = distances < last - slack, np.abs(distances - last) <= slack
    places = neighbours - nearer.sum(axis=1, keepdims=True)
    part = nearer + tied * (places / tied.sum(axis=1, keepdims=True))
    rows, columns = np.nonzero(part)
    return asked[rows], columns, part[rows, columns]


def _indicators(levels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Centred indicator columns of the levels of a factor."""
    codes = np.unique(levels, return_inverse=True)[1]
    columns = np.eye(int(codes.max(initial=0)) + 1)[codes]
    centred: npt.NDArray[np.float64] = columns - columns.mean(axis=0)
    return centred


def _basis(parts: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Orthonormal basis of the span of some columns."""
    if not parts:
        return np.empty((0, 0))
    return _span(np.concatenate(parts, axis=1))


def _beyond(columns: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Orthonormal basis of what some columns add to a basis."""
    if not before.size:
        return _span(columns)
    # Twice, because a single pass leaves rounding errors along the basis.
    rest = columns - before @ (before.T @ columns)
    return _span(rest - before @ (before.T @ rest), np.abs(np.linalg.svd(columns, compute_uv=False)).max(initial=0))


def _span(columns: npt.NDArray[np.float64], scale: float | None = None) -> npt.NDArray[np.float64]:
    vectors, values, _ = np.linalg.svd(columns, full_matrices=False)
    limit = _RANK * (values.max(initial=0) if scale is None else scale)
    found: npt.NDArray[np.float64] = vectors[:, values > limit]
    return found


def _f(
    squares: npt.NDArray[np.float64], df: npt.NDArray[np.int64], total: float, df_residual: int
) -> npt.NDArray[np.float64]:
    residual = max(total - float(squares[-1]), _RESIDUE * total) / max(1, df_residual)
    return np.asarray(squares[:-1] / np.maximum(1, df) / residual) if residual > 0 else np.zeros(len(df))


def _anova(values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> float:
    means = np.bincount(groups, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (len(sizes) - 1)
    within = float(((values - means[groups]) ** 2).sum()) / max(1, len(values) - len(sizes))
    return between / within if within > _RESIDUE * float((values**2).sum()) else 0.0
