"""The data of a report: the models, and what was computed for each grouping of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy.typing as npt
import pandas as pd

from cnnfilterdb.plots.kernels import BasisLike

__all__ = ["Coefficients", "GroupingData", "Method", "ReportData"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How the shifts and the coefficients of a report were computed.

    Attributes:
        recipe: Name of the recipe.
        basis_id: Key of the basis; empty for one that was fitted for this report.
        basis_models: Models that the basis was fitted on; 0 if unknown.
        basis_filters: Filters that it was fitted on.
        bins: Bins of each histogram.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        weights: How components are weighted in the sum, in words: ``explained variance ratio``, ``1/9 each``.
        filters: Filters that were counted in the histograms.
        outside: Coefficient values that fell outside of the range and were not counted.
        balance: What has the same weight within a group, in words: ``filters``, ``models``.
        metric: How two groups were compared; a key of :data:`~cnnfilterdb.plots.METRIC_LABELS`.
        versions: Versions of the packages, by name.
    """

    recipe: str
    basis_id: str
    basis_models: int
    basis_filters: int
    bins: int
    low: float
    high: float
    weights: str
    filters: int
    outside: int
    balance: str = "filters"
    metric: str = "kl"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Histograms of coefficients by group, as :func:`~cnnfilterdb.plots.ridge` takes them.

    Attributes:
        counts: Shape (groups, components, bins).
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        labels: Names of the groups.
        filters: Filters per group; None for the number that was counted.
        explained_variance_ratio: Share of the variance per component of the basis; None if unknown.
    """

    counts: npt.NDArray[Any]
    low: float
    high: float
    labels: Sequence[object]
    filters: Sequence[float] | npt.NDArray[Any] | None = None
    explained_variance_ratio: Sequence[float] | npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingData:
    """One way to group the models, and what was computed for it. Parts that are None or empty are left out.

    Attributes:
        by: Column of the models, or expression, by which they are grouped.
        name: What the page calls this grouping; by default ``by``.
        groups: One row per group, the group as index: any of the columns models, layers and filters (of all kernel
            sizes), used_models, used_layers and used_filters (those compared), licenses; by default counted from
            the models of the report where these have a column ``by``.
        compared: Models and filters of each group that was compared; by default those of ``groups``.
        shift: Symmetric matrix of shifts, groups x groups.
        coefficients: Histograms of the coefficients by group.
        bases: A basis by group.
        layers: One row per layer with the column ``by`` and the measures that :func:`~cnnfilterdb.plots.quality` needs.
        coverage: What was selected, what was compared, and why the rest was not: the attributes of
            :class:`~cnnfilterdb.analysis.coverage.Coverage`.
        method: How the numbers were computed.
    """

    by: str = "domain"
    name: str | None = None
    groups: pd.DataFrame | None = None
    compared: pd.DataFrame | None = None
    shift: pd.DataFrame | None = None
    coefficients: Coefficients | None = None
    bases: Mapping[Any, BasisLike] = field(default_factory=dict)
    layers: pd.DataFrame | None = None
    coverage: Mapping[str, Any] | None = None
    method: Method | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What a report shows.

    Attributes:
        title: Heading of the page.
        models: One row per model, columns as in the models table: ``name`` or ``model_id``, and any of architecture,
            domain, task, training_dataset, conv_layers, stored_filters, sparsity, license, untrained, url, paper.
        groupings: The groupings that the reader can switch between; the first one is shown first.
        description: A paragraph that says what this database is.
        kernel: Kernel size of the shifts, coefficients and bases.
        command: The command or call that writes this page again.
        created_at: Time of creation; without it the page has no date.
    """

    title: str
    models: pd.DataFrame
    groupings: Sequence[GroupingData] = (GroupingData(),)
    description: str | None = None
    kernel: str = "3x3"
    command: str | None = None
    created_at: datetime | None = None
