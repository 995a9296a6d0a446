"""Figures of the papers, and the report.

Each function takes arrays and frames and returns a matplotlib figure, or draws on a given panel. None of them uses
pyplot: no display is needed, and no figure outlives its last reference.
"""

from __future__ import annotations

from cnnfilterdb.plots.heatmap import METRIC_LABELS, heatmap, ordered_groups
from cnnfilterdb.plots.kernels import BasisLike, eigenfilters, filter_grid
from cnnfilterdb.plots.models import model_map, spread
from cnnfilterdb.plots.phenotypes import phenotypes
from cnnfilterdb.plots.quality import depth_deciles, quality
from cnnfilterdb.plots.report import report
from cnnfilterdb.plots.report_data import Coefficients, GroupingData, Method, ReportData
from cnnfilterdb.plots.ridge import binned_density, ridge, silverman_bandwidth
from cnnfilterdb.plots.style import Figure, to_png
from cnnfilterdb.plots.variance import variance

__all__ = [
    "METRIC_LABELS",
    "BasisLike",
    "Coefficients",
    "Figure",
    "GroupingData",
    "Method",
    "ReportData",
    "binned_density",
    "depth_deciles",
    "eigenfilters",
    "filter_grid",
    "heatmap",
    "model_map",
    "ordered_groups",
    "phenotypes",
    "quality",
    "report",
    "ridge",
    "silverman_bandwidth",
    "spread",
    "to_png",
    "variance",
]
