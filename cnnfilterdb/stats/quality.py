"""Quality of the kernels of one layer: sparsity, variance entropy, orthogonality, norms, quantisation.

The authors' codes disagree on edge cases. The defaults are those of the notebook of CNN Filter DB; each function says
what the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats.moments import Moments, first_filter
from cnnfilterdb.stats.randomness import randomness_threshold

__all__ = [
    "BINARY_TOLERANCE",
    "MAX_LEVELS",
    "QUALITY_RULES",
    "LayerStatistics",
    "binary_residual",
    "isotropy",
    "layer_statistics",
    "levels",
    "looks_untrained",
    "norms",
    "orthogonality",
    "scaled_norm_max",
    "sparse_kernels",
    "sparsity",
    "statistics_row",
    "variance_entropy",
]

#: Which code a rule follows: the notebook of CNN Filter DB; torchconvquality; the code of *Adversarial Robustness
#: Through the Lens of Convolutional Filters*; that of *Does Medical Imaging learn different Convolution Filters?*
QUALITY_RULES = ("cvpr2022", "torchconvquality", "cvprw2022", "medneurips2022")

#: Share of a layer's largest absolute weight below which all weights of a sparse kernel are (all of the codes).
SPARSITY_THRESHOLD = 0.01

#: Largest :func:`binary_residual` of a kernel that counts as binary: magnitudes that spread by 10 % of their mean.
BINARY_TOLERANCE = 0.01

#: Most levels that are counted: those of 8 bits.
MAX_LEVELS = 256


def sparse_kernels(
    filters: npt.NDArray[np.float32], threshold: float = SPARSITY_THRESHOLD, *, rule: str = "cvpr2022"
) -> npt.NDArray[np.bool_]:
    """Which kernels of a layer are sparse: all their weights are small compared with the largest of the layer.

    With t = threshold x the largest absolute weight of the layer, a kernel is sparse when max |w| < t. The rules
    differ:

    - ``cvpr2022`` (notebook of CNN Filter DB, the default): strictly less; in a layer of zeros no kernel is sparse.
    - ``torchconvquality``: strictly less; in a layer of zeros every kernel is sparse.
    - ``cvprw2022``: max |w| <= t, so in a layer of zeros every kernel is sparse.
    - ``medneurips2022``: max w < threshold x max of the layer, both **signed**, without absolute values.

    Args:
        filters: Raw kernels of one layer, (n, k).
        threshold: Share of the layer's largest weight.
        rule: One of :data:`QUALITY_RULES`.

    Returns:
        (n,) bool.

    Raises:
        SelectionError: An unknown rule.

    >>> filters = np.array([[1, 0, 0], [0.001, 0, 0.002]], np.float32)
    >>> sparse_kernels(filters).tolist()
    [False, True]
    """
    from cnnfilterdb.stats import compiled

    _check_rule(rule)
    low, high = compiled.extremes(filters)
    return _small(high if rule == "medneurips2022" else np.maximum(high, -low), threshold, rule)


def _check_rule(rule: str) -> None:
    if rule not in QUALITY_RULES:
        raise SelectionError(f"rule: {rule!r} is not one of {', '.join(QUALITY_RULES)}")


def _small(peaks: npt.NDArray[np.float32], threshold: float, rule: str) -> npt.NDArray[np.bool_]:
    """Which of the largest weights of kernels (n,) are below the threshold."""
    exact = threshold * float(peaks.max(initial=-np.inf))
    # One rounding to single precision, as in all of the codes.
    limit = np.float32(exact)
    small: npt.NDArray[np.bool_]
    if rule == "torchconvquality" and exact == 0:
        small = np.ones(len(peaks), np.bool_)
    elif rule == "cvprw2022":
        small = peaks <= limit
    else:
        small = peaks < limit
    return small


def sparsity(
    filters: npt.NDArray[np.float32], threshold: float = SPARSITY_THRESHOLD, *, rule: str = "cvpr2022"
) -> float:
    """Share of sparse kernels of a layer, 0 to 1; see :func:`sparse_kernels`. NaN without kernels.

    The rest, 1 - sparsity, is the share of kernels that structured pruning of whole kernels would keep.
    """
    sparse = sparse_kernels(filters, threshold, rule=rule)
    return float(sparse.mean()) if len(sparse) else float("nan")


def variance_entropy(moments: Moments, *, rule: str = "cvpr2022") -> float:
    """Entropy, base 10, of the explained variance of the kernels of a layer: H = -sum p_i log10 p_i.

    p are the shares of the variances along the principal components of the kernels, centred. From 0, all kernels
    multiples of one pattern about their mean, to log10 k, 0.954 for 3x3. 0 log 0 counts as 0. The rules differ in the
    kernels that they use, and in the result if there is no variance (one kernel, or all the same):

    - ``cvpr2022`` (the default): raw kernels, NaN without variance. The notebook rounds the weights to half precision
      first, to save memory; that is not done here.
    - ``torchconvquality``: raw kernels; 0 when all kernels are the same, NaN for one. Its "clean" entropy is that
      without sparse kernels.
    - ``cvprw2022``: kernels that are scaled by their largest absolute weight, without the sparse ones; NaN.
    - ``medneurips2022`` has no entropy.

    Args:
        moments: Of the raw kernels, ``Moments.of(filters, scale=False)``, or as the rule wants it.
        rule: One of :data:`QUALITY_RULES`; it decides what is returned without variance.

    Raises:
        SelectionError: An unknown rule.

    >>> round(variance_entropy(Moments.of(np.eye(9, dtype=np.float32), scale=False)), 4)   # log10 8
    0.9031
    """
    from cnnfilterdb.stats import compiled

    _check_rule(rule)
    if moments.count < 2:
        return float("nan")
    found = float(compiled.entropies(np.linalg.eigvalsh(moments.scatter)[None])[0])
    return 0.0 if rule == "torchconvquality" and found != found else found


def orthogonality(weight: npt.NDArray[np.float32]) -> float:
    """How orthogonal the output filters of a layer are: O = 1 - sum |W W' - I| / (n (n - 1)).

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
    return _orthogonality(weight)()


def _orthogonality(weight: npt.NDArray[np.float32]) -> Callable[[], float]:
    """Start to compute it; the function that is returned waits for the result."""
    from cnnfilterdb.stats import compiled

    n = len(weight)
    if n < 2:
        return partial(float, "nan")
    rows = np.ascontiguousarray(weight.reshape(n, -1), np.float32)
    lengths = np.sqrt(compiled.squares(rows))
    zeros = lengths == 0
    lengths[zeros] = 1
    if not (lengths.min() > 1e-10 and lengths.max() < 1e15):
        # Their products would vanish or overflow in single precision.
        rows, lengths = (rows / lengths[:, None]).astype(np.float32), np.ones(n)
    total = compiled.cosines(rows, 1 / lengths)
    return lambda: 1 - (2 * total() + int(np.count_nonzero(zeros))) / (n * (n - 1))


def norms(weight: npt.NDArray[np.float32], *, standardise: bool = False) -> tuple[float, float]:
    """L1 and L2 norm of the weights of a layer: sum of absolute values, and root of the sum of squares.

    Args:
        weight: Of any shape.
        standardise: Standardise the weights to mean 0 and standard deviation 1 first, with n - 1 in the denominator, as
            torchconvquality 0.4 does. The L2 norm is then the root of n - 1; a constant layer gives NaN.

    >>> norms(np.array([3, -4], np.float32))
    (7.0, 5.0)
    """
    values = weight.astype(np.float64).ravel()
    if standardise:
        spread = values.std(ddof=1) if values.size > 1 else 0.0
        if not spread > 0:
            return float("nan"), float("nan")
        values = (values - values.mean()) / spread
    return float(np.abs(values).sum()), float(np.sqrt(values @ values))


def binary_residual(filters: npt.NDArray[np.float32], *, values: int = 2) -> npt.NDArray[np.float64]:
    """How far kernels are from having weights of one magnitude: 1 - (sum |w|)^2 / (k sum w^2), 0 to 1 - 1/k.

    It is the squared distance to the nearest kernel of weights a and -a, as a share of the squared norm (XNOR-Net,
    arXiv 1603.05279). Such kernels are the isolated spots ("spikes") in the coefficients of CompNet, in *Does Medical
    Imaging learn different Convolution Filters?*; kernels with all weights equal, as box filters, are among them. The
    paper gives no rule; this one, and :data:`BINARY_TOLERANCE`, are ours. Of random normal kernels, 13 % pass
    with 2 weights, 2 % with 3, 0.3 % with 4, and one in a million with 9.

    Args:
        filters: (n, k).
        values: 2 for a and -a; 3 for a, -a and 0, with the best choice of zeros (Ternary Weight Networks, arXiv
            1605.04711).

    Returns:
        (n,) float64; NaN for kernels of zeros.

    Raises:
        SelectionError: Neither 2 nor 3 values.

    >>> filters = np.array([[2, -2, 2, 2], [1, 0, -1, 0], [0, 0, 0, 0]], np.float32)
    >>> binary_residual(filters).tolist(), binary_residual(filters, values=3).tolist()
    ([0.0, 0.5, nan], [0.0, 0.0, nan])
    """
    if values not in (2, 3):
        raise SelectionError(f"values: {values} given; expected 2 (a and -a) or 3 (with 0)")
    magnitudes = np.abs(filters.astype(np.float64))
    energy = np.einsum("ij,ij->i", magnitudes, magnitudes)
    if values == 2:
        explained = magnitudes.sum(axis=1) ** 2 / magnitudes.shape[1]
    else:
        falling = np.sort(magnitudes, axis=1)[:, ::-1]
        explained = (falling.cumsum(axis=1) ** 2 / np.arange(1, falling.shape[1] + 1)).max(axis=1)
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = np.maximum(1 - explained / energy, 0)
    return found


def levels(weight: npt.NDArray[np.float32], most: int = MAX_LEVELS) -> int | None:
    """Largest number of different weights in an output channel; None when it is more than ``most``.

    A layer that was quantised, per tensor or per channel, has few, at most 256 with 8 bits, where one that was not has
    as many as there are weights. It means little where a channel has not many more weights than levels, as in
    depthwise layers.

    Args:
        weight: (out channels, in channels / groups, kernel height, kernel width).
        most: How many are counted; the pass ends at the first channel with more.

    >>> levels(np.float32([[[[1, -1], [1, 0]]], [[[2, 2], [2, 2]]]]))
    3
    """
    from cnnfilterdb.stats import compiled

    found = compiled.levels(weight.reshape(len(weight), -1), most)
    return found if found <= most else None


def isotropy(moments: Moments) -> float | None:
    """How well kernels agree with independent random weights of mean zero: a p-value, 0 to 1.

    Two tests are combined: of sphericity, that the covariance is a multiple of the identity (Mauchly 1940, with
    Bartlett's correction: -(n - 1 - (2 k^2 + k + 2) / 6 k) ln(det S / (tr S / k)^k) is chi-squared with
    k (k + 1) / 2 - 1 degrees of freedom), and of a mean of zero (n m'm / (tr S / k), chi-squared with k).

    Args:
        moments: Of the raw kernels: ``Moments.of(filters, scale=False)``.

    Returns:
        None if there are too few kernels (less than 10 k), or no variance.
    """
    return _isotropy(moments, np.linalg.eigvalsh(moments.scatter))


def _isotropy(moments: Moments, spectrum: npt.NDArray[np.floating]) -> float | None:
    from scipy.special import chdtrc

    n, k = moments.count, len(moments.mean)
    if n < 10 * k or k < 2:
        return None
    values = spectrum / (n - 1)
    scale = float(values.sum()) / k
    if not scale > 0:
        return None
    log_ratio = float(np.log(values / scale).sum()) if values[0] > 0 else -np.inf
    sphericity = -(n - 1 - (2 * k * k + k + 2) / (6 * k)) * log_ratio
    centre = n * float(moments.mean @ moments.mean) / scale
    return min(1.0, 2 * min(float(chdtrc(k * (k + 1) / 2 - 1, sphericity)), float(chdtrc(k, centre))))


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Statistics of the kernels of one layer, by the rules of ``cvpr2022``; undefined ones are None.

    Attributes:
        moments: Moments of the scaled kernels.
        nonsparse: Moments of the scaled kernels without the sparse ones; None when no kernel is sparse.
        raw: Moments of the raw kernels.
        sparsity: Share of sparse kernels.
        variance_entropy: Entropy, base 10, of the explained variance of the raw kernels.
        randomness_threshold: Expected entropy of as many random kernels.
        variance_entropy_clean: The entropy without the sparse kernels.
        variance_entropy_scaled: The entropy of the scaled kernels without the sparse ones, the rule of ``cvprw2022``.
        orthogonality: 1 = all output filters orthogonal, 0 = all parallel.
        norm_l1: Sum of absolute weights.
        norm_l2: Root of the sum of squared weights.
        isotropy: Agreement with independent random weights, a p-value.
        binary_filters: Number of kernels with weights of one magnitude.
        levels: Largest number of different weights in an output channel; None above 256.
        scaled_norm_max: Largest norm of a scaled kernel, which bounds its coefficients in any basis.
    """

    moments: Moments
    nonsparse: Moments | None
    raw: Moments
    sparsity: float
    variance_entropy: float | None
    randomness_threshold: float | None
    variance_entropy_clean: float | None
    variance_entropy_scaled: float | None
    orthogonality: float | None
    norm_l1: float
    norm_l2: float
    isotropy: float | None
    binary_filters: int
    levels: int | None
    scaled_norm_max: float


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
    from cnnfilterdb.stats import compiled

    out_channels, in_channels, height, width = weight.shape
    n, k = out_channels * in_channels, height * width
    filters = weight.reshape(n, k)
    apart = _orthogonality(weight)  # runs in threads while the rest is computed
    raw_shift, shift = first_filter(filters, scale=False), first_filter(filters, scale=True)
    raw_sums, sums, peaks, norm_l1, energy, binary, norm_max = compiled.layer_sums(
        filters, raw_shift, shift, BINARY_TOLERANCE
    )
    raw, moments = Moments.from_sums(n, raw_shift, *raw_sums), Moments.from_sums(n, shift, *sums)
    sparse = _small(peaks, SPARSITY_THRESHOLD, "cvpr2022")
    dropped = int(np.count_nonzero(sparse))
    raw_kept, kept = raw, moments
    if dropped:
        raw_kept = _without(filters, sparse, raw_shift, raw_sums, scale=False)
        kept = _without(filters, sparse, shift, sums, scale=True)
    # One call for all of them: for small kernels, the calls take most of the time.
    spectra = np.linalg.eigvalsh(np.array([raw.scatter, kept.scatter, raw_kept.scatter][: 3 if dropped else 2]))
    entropies = [_defined(entropy) for entropy in compiled.entropies(spectra).tolist()]
    return LayerStatistics(
        moments=moments,
        nonsparse=kept if dropped else None,
        raw=raw,
        sparsity=dropped / n,
        variance_entropy=entropies[0],
        randomness_threshold=_defined(randomness_threshold(n, k)),
        variance_entropy_clean=entropies[2 if dropped else 0],
        variance_entropy_scaled=entropies[1],
        orthogonality=_defined(apart()),
        norm_l1=norm_l1,
        norm_l2=float(np.sqrt(energy)),
        isotropy=_isotropy(raw, spectra[0]),
        binary_filters=binary,
        levels=levels(weight),
        scaled_norm_max=norm_max,
    )


def scaled_norm_max(filters: npt.NDArray[np.float32]) -> float:
    """Largest norm of filters (n, k) after each is divided by its largest absolute weight; 0 without filters.

    >>> scaled_norm_max(np.array([[2, -2], [0, 3], [0, 0]], np.float32))
    1.4142135623730951
    """
    from cnnfilterdb.stats import compiled

    return compiled.longest(filters)


def statistics_row(statistics: LayerStatistics) -> dict[str, Any]:
    """The columns of the layers table that hold the statistics of a layer."""
    moments, nonsparse = statistics.moments, statistics.nonsparse
    return {
        "sparsity": statistics.sparsity,
        "variance_entropy": statistics.variance_entropy,
        "randomness_threshold": statistics.randomness_threshold,
        "variance_entropy_clean": statistics.variance_entropy_clean,
        "variance_entropy_scaled": statistics.variance_entropy_scaled,
        "orthogonality": statistics.orthogonality,
        "norm_l1": statistics.norm_l1,
        "norm_l2": statistics.norm_l2,
        "isotropy": statistics.isotropy,
        "binary_filters": statistics.binary_filters,
        "levels": statistics.levels,
        "scaled_norm_max": statistics.scaled_norm_max,
        "raw_mean": statistics.raw.mean,
        "raw_variance": statistics.raw.scatter.diagonal() / statistics.raw.count,
        "scaled_mean": moments.mean,
        "scaled_scatter": moments.packed(),
        "nonsparse_filters": nonsparse.count if nonsparse else None,
        "nonsparse_mean": nonsparse.mean if nonsparse else None,
        "nonsparse_scatter": nonsparse.packed() if nonsparse else None,
    }


# Below this share of the sum of squares, a difference of two sums has lost too many digits.
_CANCELLED = 1e-5


def _without(
    filters: npt.NDArray[np.float32],
    dropped: npt.NDArray[np.bool_],
    shift: npt.NDArray[np.float64],
    sums: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    *,
    scale: bool,
) -> Moments:
    """Moments without some of the filters, given the sums of all: only the smaller part is read again."""
    from cnnfilterdb.stats import compiled

    kept = ~dropped
    count = int(np.count_nonzero(kept))
    if 2 * count > len(filters):
        total, products = compiled.sums(filters[dropped], shift, scale=scale)
        moments = Moments.from_sums(count, shift, sums[0] - total, sums[1] - products)
        # If those that are kept hardly differ, the subtraction leaves mostly rounding errors.
        if np.trace(moments.scatter) > _CANCELLED * np.trace(sums[1]):
            return moments
    return Moments.of(filters[kept], scale=scale)


#: A model counts as untrained when no layer's kernels differ from random ones at this level.
UNTRAINED_LEVEL = 1e-4


def looks_untrained(layers: Iterable[LayerStatistics]) -> bool | None:
    """Whether a model looks as if it had been left at random initialisation.

    Training makes the weights of a kernel depend on one another. When no layer with enough kernels shows that (see
    :func:`isotropy`), the model looks untrained. The levels are divided by the number of layers (Bonferroni).

    Returns:
        None if no layer has enough kernels.
    """
    found = [layer.isotropy for layer in layers if layer.isotropy is not None]
    return min(found) * len(found) > UNTRAINED_LEVEL if found else None
