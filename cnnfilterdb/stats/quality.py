"""Quality of the kernels of one layer: sparsity, variance entropy, orthogonality, norms.

The authors' codes disagree on edge cases. The defaults are those of the notebook of CNN Filter DB; each function says
what the others do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.stats.kernels import extremes
from cnnfilterdb.stats.moments import Moments

__all__ = [
    "SPARSITY_RULES",
    "LayerStatistics",
    "isotropy",
    "layer_statistics",
    "looks_untrained",
    "orthogonality",
    "randomness_threshold",
    "sparse_kernels",
    "sparsity",
    "variance_entropy",
]

#: Which code a rule of sparsity follows: the notebook of CNN Filter DB; torchconvquality; the code of *Adversarial
#: Robustness Through the Lens of Convolutional Filters*; that of *Does Medical Imaging learn different Convolution
#: Filters?*
SPARSITY_RULES = ("cvpr2022", "torchconvquality", "cvprw2022", "medneurips2022")

#: Share of a layer's largest absolute weight below which all weights of a sparse kernel lie (all of the codes).
SPARSITY_THRESHOLD = 0.01


def sparse_kernels(
    filters: npt.NDArray[np.float32], threshold: float = SPARSITY_THRESHOLD, *, rule: str = "cvpr2022"
) -> npt.NDArray[np.bool_]:
    """Which kernels of a layer are sparse: all their weights are small beside the largest of the layer.

    With t = threshold x the largest absolute weight of the layer, a kernel is sparse when max |w| < t. The rules
    differ:

    - ``cvpr2022`` (notebook of CNN Filter DB, the default): strictly less; in a layer of zeros no kernel is sparse.
    - ``torchconvquality``: strictly less; in a layer of zeros every kernel is sparse.
    - ``cvprw2022``: max |w| <= t, so in a layer of zeros every kernel is sparse.
    - ``medneurips2022``: max w < threshold x max of the layer, both **signed**, without absolute values.

    Args:
        filters: Raw kernels of one layer, (n, k).
        threshold: Share of the layer's largest weight.
        rule: One of :data:`SPARSITY_RULES`.

    Returns:
        (n,) bool.

    Raises:
        SelectionError: An unknown rule.

    >>> filters = np.array([[1, 0, 0], [0.001, 0, 0.002]], np.float32)
    >>> sparse_kernels(filters).tolist()
    [False, True]
    """
    if rule not in SPARSITY_RULES:
        raise SelectionError(f"rule: {rule!r} is none of {', '.join(SPARSITY_RULES)}")
    low, high = extremes(filters)
    peak = high if rule == "medneurips2022" else np.maximum(high, -low)
    limit = np.float32(threshold) * peak.max(initial=-np.inf)
    sparse: npt.NDArray[np.bool_]
    if rule == "torchconvquality" and limit == 0:
        sparse = np.ones(len(peak), np.bool_)
    elif rule == "cvprw2022":
        sparse = peak <= limit
    else:
        sparse = peak < limit
    return sparse


def sparsity(
    filters: npt.NDArray[np.float32], threshold: float = SPARSITY_THRESHOLD, *, rule: str = "cvpr2022"
) -> float:
    """Share of sparse kernels of a layer, 0 to 1; see :func:`sparse_kernels`. NaN without kernels.

    What is left, 1 - sparsity, is the share of kernels that structured pruning of whole kernels would keep.
    """
    sparse = sparse_kernels(filters, threshold, rule=rule)
    return float(sparse.mean()) if len(sparse) else float("nan")


def variance_entropy(moments: Moments) -> float:
    """Entropy, base 10, of the explained variance of the kernels of a layer: H = -sum p_i log10 p_i.

    p are the shares of the variances along the principal components of the raw kernels, centred but not scaled
    (notebook of CNN Filter DB, which rounds the weights to half precision first; not done here). From 0, all kernels
    multiples of one pattern about their mean, to log10 k, 0.954 for 3x3. 0 log 0 counts as 0.

    Args:
        moments: Of the raw kernels: ``Moments.of(filters, scale=False)``.

    Returns:
        NaN where there is no variance: one kernel, or all the same. The notebook gives NaN as well, torchconvquality 0.

    >>> round(variance_entropy(Moments.of(np.eye(9, dtype=np.float32), scale=False)), 4)   # log10 8
    0.9031
    """
    if moments.count < 2:
        return float("nan")
    values = np.maximum(np.linalg.eigvalsh(moments.scatter), 0)
    total = values.sum()
    if not total > 0:
        return float("nan")
    shares = values[values > 0] / total
    return float(max(0.0, -(shares * np.log10(shares)).sum()))


def randomness_threshold(count: int) -> float:
    """Variance entropy expected of ``count`` random 3x3 kernels, T_H(n) = L / (1 + exp(-k (log2 n - x0))) + b.

    Fitted by the authors to the smallest entropies of sets of random normal kernels (CNN Filter DB; the constants are
    those of torchconvquality, of which the paper prints two decimals). A layer with a higher entropy looks random.
    Below 3 kernels the fit is negative and means nothing.

    >>> round(randomness_threshold(4096), 5)
    0.95107
    """
    scale, centre, slope, offset = 1.2618047, 2.30436435, 0.88767525, -0.31050834
    return float(scale / (1 + np.exp(-slope * (np.log2(count) - centre))) + offset)


#: Rows and columns of the similarity matrix that are in memory at a time.
_TILE = 1024


def orthogonality(weight: npt.NDArray[np.float32]) -> float:
    """How far apart the output filters of a layer point: O = 1 - sum |W W' - I| / (n (n - 1)).

    W holds the filters of the n output channels as rows of unit length; rows of zeros stay zeros. 1 when all are
    orthogonal, 0 when all are parallel or antiparallel (Adversarial Robustness Through the Lens of Convolutional
    Filters, arXiv 2204.02481). A row of zeros adds 1 to the sum by its diagonal element, as in the authors' code.

    Args:
        weight: (out channels, in channels / groups, kernel height, kernel width).

    Returns:
        NaN for a single output channel, for which the quotient is 0/0.

    >>> orthogonality(np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2))
    1.0
    """
    n = len(weight)
    if n < 2:
        return float("nan")
    rows = weight.reshape(n, -1)
    # The squares of weights below 1e-19 vanish in single precision, so the rows are scaled before they are summed.
    peak = np.abs(rows).max(axis=1, keepdims=True)
    unit = rows / np.where(peak > 0, peak, 1)
    length = np.sqrt(np.einsum("ij,ij->i", unit, unit, dtype=np.float64))
    zeros = int(np.count_nonzero(length == 0))
    unit /= np.where(length > 0, length, 1).astype(np.float32)[:, None]
    total = 0.0
    for start in range(0, n, _TILE):
        tile = unit[start : start + _TILE]
        similar = np.abs(tile @ tile.T)
        total += float(similar.sum(dtype=np.float64)) - float(similar.diagonal().sum(dtype=np.float64))
        for other in range(start + _TILE, n, _TILE):
            # The matrix is symmetric: what is right of the diagonal counts twice.
            total += 2 * float(np.abs(tile @ unit[other : other + _TILE].T).sum(dtype=np.float64))
    return 1 - (total + zeros) / (n * (n - 1))


def isotropy(moments: Moments) -> float | None:
    """How well kernels agree with independent random weights of mean zero: a p-value, 0 to 1.

    Two tests are joined: of sphericity, that the covariance is a multiple of the identity (Mauchly 1940, with
    Bartlett's
    correction: -(n - 1 - (2 k^2 + k + 2) / 6 k) ln(det S / (tr S / k)^k) is chi-squared with k (k + 1) / 2 - 1 degrees
    of freedom), and of a mean of zero (n m'm / (tr S / k), chi-squared with k).

    Args:
        moments: Of the raw kernels: ``Moments.of(filters, scale=False)``.

    Returns:
        None where there are too few kernels to tell (less than 10 k), or no variance.
    """
    n, k = moments.count, len(moments.mean)
    if n < 10 * k or k < 2:
        return None
    values = np.linalg.eigvalsh(moments.scatter / (n - 1))
    scale = values.mean()
    if not scale > 0:
        return None
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.maximum(values, 0) / scale).sum()
    sphericity = -(n - 1 - (2 * k * k + k + 2) / (6 * k)) * log_ratio
    centre = n * float(moments.mean @ moments.mean) / scale
    return float(min(1.0, 2 * min(chdtrc(k * (k + 1) / 2 - 1, sphericity), chdtrc(k, centre))))


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of the kernels of one layer. What is undefined is None.

    Attributes:
        moments: Moments of the scaled kernels.
        nonsparse: Moments of the scaled kernels without the sparse ones; None when no kernel is sparse.
        sparsity: Share of sparse kernels.
        variance_entropy: Entropy, base 10, of the explained variance of the raw kernels.
        randomness_threshold: What as many random kernels are expected to have; 3x3 only.
        variance_entropy_clean: The entropy without the sparse kernels.
        orthogonality: 1 = all output filters orthogonal, 0 = all parallel.
        norm_l1: Sum of absolute weights.
        norm_l2: Root of the sum of squared weights.
        isotropy: Agreement with independent random weights, a p-value.
    """

    moments: Moments
    nonsparse: Moments | None
    sparsity: float
    variance_entropy: float | None
    randomness_threshold: float | None
    variance_entropy_clean: float | None
    orthogonality: float | None
    norm_l1: float
    norm_l2: float
    isotropy: float | None


def _defined(value: float) -> float | None:
    return None if value != value else value


def layer_statistics(weight: npt.NDArray[np.float32]) -> LayerStatistics:
    """All statistics of one layer.

    Args:
        weight: (out channels, in channels / groups, kernel height, kernel width) float32, finite, not empty.

    >>> weight = np.random.default_rng(0).normal(size=(16, 8, 3, 3)).astype(np.float32)
    >>> statistics = layer_statistics(weight)
    >>> statistics.sparsity, statistics.variance_entropy > 0.9
    (0.0, True)
    """
    out_channels, in_channels, height, width = weight.shape
    filters = weight.reshape(out_channels * in_channels, height * width)
    raw = Moments.of(filters, scale=False)
    entropy = _defined(variance_entropy(raw))
    sparse = sparse_kernels(filters)
    share = float(sparse.mean())
    kept = filters[~sparse] if share else filters
    return LayerStatistics(
        moments=Moments.of(filters),
        nonsparse=Moments.of(kept) if share else None,
        sparsity=share,
        variance_entropy=entropy,
        randomness_threshold=randomness_threshold(len(filters)) if (height, width) == (3, 3) else None,
        variance_entropy_clean=_defined(variance_entropy(Moments.of(kept, scale=False))) if share else entropy,
        orthogonality=_defined(orthogonality(weight)),
        norm_l1=float(np.abs(filters).sum(dtype=np.float64)),
        # Through the moments: sum w^2 = trace of the scatter + n mean^2.
        norm_l2=float(np.sqrt(raw.scatter.trace() + raw.count * (raw.mean @ raw.mean))),
        isotropy=isotropy(raw),
    )


#: A model counts as untrained when no layer's kernels differ from random ones at this level.
UNTRAINED_LEVEL = 1e-4


def looks_untrained(layers: Iterable[LayerStatistics]) -> bool | None:
    """Whether a model looks as if it had been left at random initialisation.

    Training makes the weights of a kernel depend on one another. When no layer with enough kernels shows that (see
    :func:`isotropy`), the model looks untrained. The levels are divided by the number of layers (Bonferroni).

    Returns:
        None when no layer has enough kernels to tell.
    """
    found = [layer.isotropy for layer in layers if layer.isotropy is not None]
    return min(found) * len(found) > UNTRAINED_LEVEL if found else None
