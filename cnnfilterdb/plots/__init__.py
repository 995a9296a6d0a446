"""Figures of the papers, and the report.

Each function takes arrays and frames and returns a matplotlib figure: a new one, or that of the panel or (part of a)
figure given as ``ax``. ``style`` is ``screen`` or ``paper``. None of them uses pyplot: no display is needed,
and no figure outlives its last reference.
"""

from __future__ import annotations

from cnnfilterdb.plots.averages import Averages, mean_kernels, variance
from cnnfilterdb.plots.heatmap import METRIC_LABELS, heatmap, ordered_groups
from cnnfilterdb.plots.kernels import BasisLike, eigenfilters, filter_grid
from cnnfilterdb.plots.lineage import lineage
from cnnfilterdb.plots.look import StyleName
from cnnfilterdb.plots.models import model_map, spread
from cnnfilterdb.plots.null import null_distributions
from cnnfilterdb.plots.page import Figure, to_png
from cnnfilterdb.plots.phenotypes import phenotypes
from cnnfilterdb.plots.quality import depth_deciles, quality
from cnnfilterdb.plots.report import report
from cnnfilterdb.plots.report_data import Coefficients, GroupingData, Method, ReportData
from cnnfilterdb.plots.ridge import binned_density, ridge, silverman_bandwidth

__all__ = [
    "METRIC_LABELS",
    "Averages",
    "BasisLike",
    "Coefficients",
    "Figure",
    "GroupingData",
    "Method",
    "ReportData",
    "StyleName",
    "binned_density",
    "depth_deciles",
    "eigenfilters",
    "filter_grid",
    "heatmap",
    "lineage",
    "mean_kernels",
    "model_map",
    "null_distributions",
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
