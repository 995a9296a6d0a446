"""Captions of the figures of a database: which models, layers and filters were drawn, in which basis, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.analysis.options import GroupOptions
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import kernel_order

__all__ = ["Caption", "caption_by_size", "caption_of_models", "coefficients_text", "method_text", "sizes_of"]

#: How many kernel sizes a caption lists.
_LISTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What a figure shows.

    Attributes:
        what: What is drawn, such as ``Shifts between 8 groups by domain``.
        models: Number of models.
        layers: Number of their layers.
        filters: Number of filters in them.
        kernel: Kernel size of the filters, or several.
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
    kernel: str | Sequence[str]
    where: str | None = None
    all_layers: bool = False
    method: str = ""

    def __str__(self) -> str:
        parts = [
            f"{self.what}: {counted(self.models, 'model')}",
            counted(self.layers, "layer"),
            self._filters(),
            f"{'with' if self.all_layers else 'without'} transposed and dead layers",
        ]
        selected = f", where {self.where}" if self.where else ""
        return ", ".join(parts) + f"{selected}." + (f" {self.method}." if self.method else "")

    def _filters(self) -> str:
        """The number of filters, with their sizes where these are few."""
        sizes = [self.kernel] if isinstance(self.kernel, str) else self.kernel
        if len(sizes) > _LISTED:
            return f"{counted(self.filters, 'filter')} of {len(sizes)} kernel sizes"
        return counted(self.filters, f"{', '.join(sizes)} filter")


def sizes_of(frame: pd.DataFrame) -> dict[str, int]:
    """The numbers of models, layers and filters of a frame with a row per layer."""
    return {
        "models": int(frame["model_id"].nunique()),
        "layers": len(frame),
        "filters": int(frame["filters"].sum()),
    }


def caption_by_size(what: str, frame: pd.DataFrame, where: str | None, all_layers: bool, method: str) -> str:
    """The caption of a figure of the kernel sizes in a frame with a row per layer."""
    kernels = sorted(frame["kernel"].unique(), key=kernel_order)
    method = f"{method}; no basis is involved"
    return str(Caption(what=what, **sizes_of(frame), kernel=kernels, where=where, all_layers=all_layers, method=method))


def caption_of_models(what: str, attrs: Mapping[Any, Any], options: GroupOptions, reading: str = "") -> str:
    """The caption of a figure of single models.

    Args:
        what: What is drawn.
        attrs: Their numbers, and how shifts were computed: the ``.attrs`` of a result that states both.
        options: The options that selected them.
        reading: How the figure is read.
    """
    sizes = {name: attrs[name] for name in ("models", "layers", "filters")}
    return str(
        Caption(
            what=what, **sizes, kernel=attrs["kernel"], where=options.get("where"),
            all_layers=options.get("all_layers", False), method=". ".join(filter(None, (method_text(attrs), reading))),
        )
    )  # fmt: skip


def method_text(attrs: Mapping[Any, Any]) -> str:
    """How shifts were computed, from the ``.attrs`` of a result that states it."""
    parts = [f"Metric {attrs['metric']}", f"basis {attrs['basis']}", f"recipe {attrs['recipe']}"]
    if "bins" in attrs:
        parts.append(_range_text(attrs["bins"], *attrs["range"]))
    parts.append(f"balance {attrs['balance']}")
    if "permutations" in attrs:
        parts.append(f"{attrs['permutations']:,} permutations")
    return ", ".join(parts)


def coefficients_text(groups: Groups, shown: int | None = None) -> str:
    """How the coefficients of groups were counted, and whether only so many of them are shown."""
    question = groups.grouping
    bins = _range_text(groups.counts.shape[2], groups.low, groups.high)
    method = f"Basis {groups.basis_id or 'given'}, recipe {question.recipe}, {bins}, balance {question.balance}"
    components = groups.counts.shape[1]
    return method if shown is None or components <= shown else f"{method}. The first {shown} of {components} components"


def _range_text(bins: int, low: float, high: float) -> str:
    return f"{bins} bins from {low:.3g} to {high:.3g}".replace("-", "−")
