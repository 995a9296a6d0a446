"""Captions of the figures of a database: which models, layers and filters were drawn, in which basis, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import kernel_order

__all__ = ["Caption", "caption_by_size", "coefficients_text", "method_text", "sizes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What a figure shows.

    Attributes:
        what: What is drawn, such as ``Shifts between 8 groups by domain``.
        models: Number of models.
        layers: Number of their layers.
        filters: Number of filters in them.
        kernel: Kernel sizes of the filters.
        where: Condition that narrowed the rows.
        all_layers: Whether transposed and dead layers are among the layers.
        method: How the numbers were computed.

    >>> print(Caption(what="Quality", models=2, layers=9, filters=1000, kernel="3x3", method="By hand"))
    Quality: 2 models, 9 layers, 1,000 3x3 filters, without transposed and dead layers. By hand.
    """

    what: str
    models: int
    layers: int
    filters: int
    kernel: str
    where: str | None = None
    all_layers: bool = False
    method: str = ""

    def __str__(self) -> str:
        parts = [
            f"{self.what}: {counted(self.models, 'model')}",
            counted(self.layers, "layer"),
            counted(self.filters, f"{self.kernel} filter"),
            f"{'with' if self.all_layers else 'without'} transposed and dead layers",
        ]
        selected = f", where {self.where}" if self.where else ""
        return ", ".join(parts) + f"{selected}." + (f" {self.method}." if self.method else "")


def sizes_of(frame: pd.DataFrame) -> dict[str, int]:
    """The numbers of models, layers and filters of a frame with a row per layer."""
    return {
        "models": int(frame["model_id"].nunique()),
        "layers": len(frame),
        "filters": int(frame["filters"].sum()),
    }


def caption_by_size(what: str, frame: pd.DataFrame, where: str | None, all_layers: bool, method: str) -> str:
    """The caption of a figure of the kernel sizes in a frame with a row per layer."""
    kernels = ", ".join(sorted(frame["kernel"].unique(), key=kernel_order))
    method = f"{method}; no basis is involved"
    return str(Caption(what=what, **sizes_of(frame), kernel=kernels, where=where, all_layers=all_layers, method=method))


def method_text(attrs: Mapping[Any, Any]) -> str:
    """How shifts were computed, from the ``.attrs`` of a result that states it."""
    parts = [f"Metric {attrs['metric']}", f"basis {attrs['basis']}", f"recipe {attrs['recipe']}"]
    if "bins" in attrs:
        parts.append(_range_text(attrs["bins"], *attrs["range"]))
    parts.append(f"balance {attrs['balance']}")
    if "permutations" in attrs:
        parts.append(f"{attrs['permutations']:,} permutations")
    return ", ".join(parts)


def coefficients_text(groups: Groups) -> str:
    """How the coefficients of groups were counted."""
    question = groups.grouping
    bins = _range_text(groups.counts.shape[2], groups.low, groups.high)
    return f"Basis {groups.basis_id or 'given'}, recipe {question.recipe}, {bins}, balance {question.balance}"


def _range_text(bins: int, low: float, high: float) -> str:
    return f"{bins} bins from {low:.3g} to {high:.3g}".replace("-", "−")
