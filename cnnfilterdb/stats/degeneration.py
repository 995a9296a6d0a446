"""Labels of layers that have degenerated or were compressed: thresholds on their statistics, as parameters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnfilterdb.stats.moments import Moments

__all__ = [
    "DEGENERATIONS",
    "HIGH_SPARSITY",
    "LOW_ENTROPY",
    "MARGIN",
    "degenerated",
    "degeneration",
    "is_quantised",
    "kernel_rank",
]

#: The labels, from the first that applies: ``random``, entropy near or above that of random kernels; ``collapsed``,
#: both of the next two; ``sparse``, many kernels with weights near zero; ``repetitive``, low entropy: the kernels are
#: much alike; ``regular``, none of these.
DEGENERATIONS = ("random", "collapsed", "sparse", "repetitive", "regular")

#: How far below the randomness threshold an entropy still counts as random.
MARGIN = 0.02
#: Entropy below which kernels count as repetitive.
LOW_ENTROPY = 0.5
#: Share of sparse kernels from which a layer counts as sparse.
HIGH_SPARSITY = 0.14


def degeneration(
    variance_entropy: npt.ArrayLike,
    randomness_threshold: npt.ArrayLike,
    sparsity: npt.ArrayLike,
    *,
    weights: npt.ArrayLike = 9,
    margin: float = MARGIN,
    low_entropy: float = LOW_ENTROPY,
    high_sparsity: float = HIGH_SPARSITY,
) -> npt.NDArray[np.object_]:
    """Label layers by :data:`DEGENERATIONS`.

    ``random`` is H >= T_H - margin, ``repetitive`` H < low_entropy, ``sparse`` S >= high_sparsity, ``collapsed`` both.
    The defaults are those with which CNN Filter DB counts layers as degenerated in an ablation: random or collapsed
    (:func:`degenerated`). The paper has no thresholds for sparse or repetitive alone, and its H > T_H for random has no
    margin. Margin and low entropy are of 3x3 kernels; for k weights they are multiplied by log k / log 9, as the
    largest possible entropy is.

    Args:
        variance_entropy: Of each layer, (n,). NaN where it is undefined; torchconvquality uses 0 there.
        randomness_threshold: Of each layer, (n,).
        sparsity: Of each layer, (n,).
        weights: Weights of a kernel, one number or (n,).
        margin: How far below the threshold still counts as random.
        low_entropy: Entropy below which kernels are repetitive.
        high_sparsity: Sparsity from which a layer is sparse.

    Returns:
        (n,) labels; None where the entropy is not defined, or the threshold is not known or not positive (one or two
        kernels).

    >>> degeneration([0.95, 0.4, 0.4, 0.8, 0.8], [0.94] * 5, [0, 0.2, 0, 0.2, 0]).tolist()
    ['random', 'collapsed', 'repetitive', 'sparse', 'regular']
    """
    entropy, threshold, sparse_share = (
        np.atleast_1d(np.asarray(values, np.float64)) for values in (variance_entropy, randomness_threshold, sparsity)
    )
    scale = np.log(np.asarray(weights, np.float64)) / np.log(9)
    random = entropy >= threshold - margin * scale
    repetitive = entropy < low_entropy * scale
    sparse = sparse_share >= high_sparsity
    unknown = np.isnan(entropy) | ~(threshold > 0) | np.isnan(sparse_share)
    conditions = [unknown, random, repetitive & sparse, sparse, repetitive]
    return np.select(conditions, [None, *DEGENERATIONS[:-1]], DEGENERATIONS[-1])  # type: ignore[list-item]


def degenerated(labels: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Which labels mean degenerated in the ablation of CNN Filter DB: H >= T_H - 0.02, or H < 0.5 and S >= 0.14.

    >>> degenerated(np.array(["random", "collapsed", "sparse", "repetitive", "regular", None])).tolist()
    [True, True, False, False, False, False]
    """
    return np.isin(labels.astype(str), DEGENERATIONS[:2])


def is_quantised(levels: int | None, channel_weights: float, *, share: float = 0.5) -> bool:
    """Whether the output channels of a layer have few different weights; the SQL macro of this name is the same rule.

    Args:
        levels: Largest number of different weights in an output channel; None where it was not counted to the end.
        channel_weights: Weights of an output channel.
        share: Largest share of them that may be different.

    >>> is_quantised(16, 576), is_quantised(9, 9), is_quantised(None, 576)
    (True, False, False)
    """
    return levels is not None and levels <= share * channel_weights


def kernel_rank(raw: Moments, *, tolerance: float = 1e-5) -> int | None:
    """Dimension of the space that the kernels of a layer span; less than k proves that they are of low rank.

    It is the number of singular values of the kernels (n, k), not centred, above the tolerance. Rounding of single
    precision leaves a share of about 1e-7.

    Args:
        raw: Moments of the raw kernels.
        tolerance: Share of the largest singular value at which one counts as zero.

    Returns:
        None with fewer kernels than weights in a kernel, whose rank is low in any case.

    >>> rng = np.random.default_rng(0)
    >>> few = rng.normal(size=(100, 2)) @ rng.normal(size=(2, 9))
    >>> kernel_rank(Moments.of(few.astype(np.float32), scale=False))
    2
    """
    if raw.count < len(raw.mean):
        return None
    squares = np.linalg.eigvalsh(raw.scatter + raw.count * np.outer(raw.mean, raw.mean))
    return int(np.count_nonzero(squares > max(tolerance**2 * squares[-1], 0)))
