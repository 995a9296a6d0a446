"""What is computed from filters: moments, bases, histograms, shifts, quality.

NumPy arrays in, NumPy arrays and mergeable states out; nothing here knows of files. Each function gives the source of
its formula.
"""

from __future__ import annotations

from cnnfilterdb.stats.basis import BINS, Basis
from cnnfilterdb.stats.degeneration import DEGENERATIONS, degenerated, degeneration
from cnnfilterdb.stats.descriptors import DESCRIPTORS, dct_energies, descriptors, layer_descriptors
from cnnfilterdb.stats.histogram import Histogram, histograms
from cnnfilterdb.stats.moments import Moments, unpacked
from cnnfilterdb.stats.quality import (
    BINARY_TOLERANCE,
    QUALITY_RULES,
    LayerStatistics,
    binary_residual,
    isotropy,
    layer_statistics,
    levels,
    looks_untrained,
    norms,
    orthogonality,
    sparse_kernels,
    sparsity,
    variance_entropy,
)
from cnnfilterdb.stats.randomness import randomness_threshold
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
    "BINARY_TOLERANCE",
    "BINS",
    "DEGENERATIONS",
    "DESCRIPTORS",
    "EMPTY_BIN",
    "QUALITY_RULES",
    "RECIPES",
    "Basis",
    "Histogram",
    "LayerStatistics",
    "Moments",
    "Nearest",
    "Pattern",
    "Recipe",
    "balance_weights",
    "binary_residual",
    "dct_energies",
    "degenerated",
    "degeneration",
    "descriptors",
    "histograms",
    "isotropy",
    "kl_shift",
    "kl_shift_components",
    "layer_descriptors",
    "layer_statistics",
    "levels",
    "looks_untrained",
    "norms",
    "orthogonality",
    "probabilities",
    "randomness_threshold",
    "sparse_kernels",
    "sparsity",
    "symmetries",
    "unpacked",
    "variance_entropy",
]
