"""What is computed from filters: moments, bases, histograms, shifts, quality.

NumPy arrays in, NumPy arrays and mergeable states out; nothing here knows of files. Each function gives the source of
its formula.
"""

from __future__ import annotations

from cnnfilterdb.stats.basis import BINS, Basis
from cnnfilterdb.stats.histogram import Histogram, histograms
from cnnfilterdb.stats.moments import Moments, unpacked
from cnnfilterdb.stats.quality import (
    SPARSITY_RULES,
    LayerStatistics,
    isotropy,
    layer_statistics,
    looks_untrained,
    orthogonality,
    randomness_threshold,
    sparse_kernels,
    sparsity,
    variance_entropy,
)
from cnnfilterdb.stats.shift import (
    EMPTY_BIN,
    RECIPES,
    Recipe,
    balance_weights,
    kl_shift,
    kl_shift_components,
    probabilities,
)
from cnnfilterdb.stats.similarity import Nearest, Pattern, symmetries

__all__ = [
    "BINS",
    "EMPTY_BIN",
    "RECIPES",
    "SPARSITY_RULES",
    "Basis",
    "Histogram",
    "LayerStatistics",
    "Moments",
    "Nearest",
    "Pattern",
    "Recipe",
    "balance_weights",
    "histograms",
    "isotropy",
    "kl_shift",
    "kl_shift_components",
    "layer_statistics",
    "looks_untrained",
    "orthogonality",
    "probabilities",
    "randomness_threshold",
    "sparse_kernels",
    "sparsity",
    "symmetries",
    "unpacked",
    "variance_entropy",
]
