"""How statistics are computed from arrays of filters: moments, bases, histograms, shifts, quality.

NumPy arrays in, NumPy arrays and mergeable states out; nothing here knows about files. Each function gives the source
of its formula. The compiled loops and SciPy are imported by the functions that call them: most questions are answered
from stored statistics and need neither, and importing them takes longer than answering.
"""

from __future__ import annotations

from cnnfilterdb.stats.basis import BINS, Basis
from cnnfilterdb.stats.bootstrap import Interval, bootstrap_shift
from cnnfilterdb.stats.degeneration import (
    DEGENERATIONS,
    HIGH_SPARSITY,
    LOW_ENTROPY,
    MARGIN,
    degenerated,
    degeneration,
    is_quantised,
    kernel_rank,
)
from cnnfilterdb.stats.descriptors import DESCRIPTORS, DescriptorSums, dct_energies, descriptors, variance_map
from cnnfilterdb.stats.difference import WeightDifference, weight_difference
from cnnfilterdb.stats.divergence import METRICS, kl_shift, kl_shift_components, paired_shift
from cnnfilterdb.stats.forest import Forest, forest
from cnnfilterdb.stats.histogram import Histogram, histograms, joint_histogram
from cnnfilterdb.stats.moments import Moments, unpacked
from cnnfilterdb.stats.partition import (
    Dispersion,
    Embedding,
    ExplainedTerm,
    Purity,
    dispersion,
    embedding,
    gower,
    held_fixed,
    neighbour_purity,
    partition,
)
from cnnfilterdb.stats.permutation import (
    OverallTest,
    ShiftTest,
    adjusted_bh,
    adjusted_holm,
    overall_test,
    shift_test,
)
from cnnfilterdb.stats.population import PopulationShift, population_shift
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
    scaled_norm_max,
    sparse_kernels,
    sparsity,
    statistics_row,
    variance_entropy,
)
from cnnfilterdb.stats.randomness import randomness_threshold
from cnnfilterdb.stats.sampling import Initializer
from cnnfilterdb.stats.shapes import SHAPE_COSINE, SHAPES, NamedShapes, by_chance, named_shapes, shape_bank
from cnnfilterdb.stats.shift import EMPTY_BIN, balance_weights, probabilities, shares
from cnnfilterdb.stats.similarity import Nearest, Pattern, symmetries
from cnnfilterdb.stats.sketch import SKETCH_LEVELS, SKETCH_NUMBERS, WeightSketch, sketch_cosine, weight_sketch
from cnnfilterdb.stats.spectral import LayerSpectrum, layer_spectrum, power_law
from cnnfilterdb.stats.structure import (
    COLOURS,
    first_layer_profile,
    mean_symmetry,
    spatial_correlation,
    subspace_overlap,
)

__all__ = [
    "BINARY_TOLERANCE",
    "BINS",
    "COLOURS",
    "DEGENERATIONS",
    "DESCRIPTORS",
    "EMPTY_BIN",
    "HIGH_SPARSITY",
    "LOW_ENTROPY",
    "MARGIN",
    "METRICS",
    "QUALITY_RULES",
    "SHAPES",
    "SHAPE_COSINE",
    "SKETCH_LEVELS",
    "SKETCH_NUMBERS",
    "Basis",
    "DescriptorSums",
    "Dispersion",
    "Embedding",
    "ExplainedTerm",
    "Forest",
    "Histogram",
    "Initializer",
    "Interval",
    "LayerSpectrum",
    "LayerStatistics",
    "Moments",
    "NamedShapes",
    "Nearest",
    "OverallTest",
    "Pattern",
    "PopulationShift",
    "Purity",
    "ShiftTest",
    "WeightDifference",
    "WeightSketch",
    "adjusted_bh",
    "adjusted_holm",
    "balance_weights",
    "binary_residual",
    "bootstrap_shift",
    "by_chance",
    "dct_energies",
    "degenerated",
    "degeneration",
    "descriptors",
    "dispersion",
    "embedding",
    "first_layer_profile",
    "forest",
    "gower",
    "held_fixed",
    "histograms",
    "is_quantised",
    "isotropy",
    "joint_histogram",
    "kernel_rank",
    "kl_shift",
    "kl_shift_components",
    "layer_spectrum",
    "layer_statistics",
    "levels",
    "looks_untrained",
    "mean_symmetry",
    "named_shapes",
    "neighbour_purity",
    "norms",
    "orthogonality",
    "overall_test",
    "paired_shift",
    "partition",
    "population_shift",
    "power_law",
    "probabilities",
    "randomness_threshold",
    "scaled_norm_max",
    "shape_bank",
    "shares",
    "shift_test",
    "sketch_cosine",
    "sparse_kernels",
    "sparsity",
    "spatial_correlation",
    "statistics_row",
    "subspace_overlap",
    "symmetries",
    "unpacked",
    "variance_entropy",
    "variance_map",
    "weight_difference",
    "weight_sketch",
]
