"""Where in a kernel its weights vary: one image per group and kernel size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    MUTED,
    SEQUENTIAL,
    SMALL,
    Figure,
    colour_bar,
    column_labels,
    compact,
    distinct_labels,
    finite_array,
    image_rows_page,
    row_labels,
)

__all__ = ["variance"]


def variance(
    maps: Mapping[Any, Mapping[str, tuple[npt.ArrayLike, int]]], *, vmax: float | None = None, title: str | None = None
) -> Figure:
    """Draw the variance of each weight over the kernels of groups: a row per group, a column per kernel size.

    The maps are those of :func:`cnnfilterdb.stats.variance_map`, in which 1 is the variance of all weights of a layer:
    random kernels give an even 1, learned large ones are bright at the centre (The Power of Linear Combinations, arXiv
    2301.11360). Under each stands the number of kernels. What a group has no kernels of is left empty.

    Args:
        maps: For each group, by kernel size, the variances (k,) and the number of kernels.
        vmax: Variance shown in the brightest colour, for all images; by default the largest of all.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        SelectionError: Nothing to draw, or variances that do not fit their kernel size.
    """
    sizes = sorted({size for group in maps.values() for size in group}, key=lambda size: kernel_shape(size))
    if not sizes:
        raise SelectionError("maps: nothing to draw, found no kernels; widen the selection")
    images = {
        (label, size): finite_array(values, f"{label}, {size}", 1)
        for label, group in maps.items()
        for size, (values, _) in group.items()
    }
    for (label, size), values in images.items():
        if values.size != np.prod(kernel_shape(size)):
            raise SelectionError(f"maps: {label} has {values.size} variances for {size} kernels")
    # Square roots, so that both values near 1 and the peaks of large kernels are visible.
    norm = PowerNorm(0.5, 0, vmax or max(float(values.max()) for values in images.values()) or 1.0)

    names = distinct_labels(maps)
    # Lengths in image widths, which are the same for all sizes: the room between columns, and under a row.
    unit = float(np.clip(min(4.8 / len(sizes), 7.0 / len(maps)), 0.45, 0.7))
    across, down = 0.14, 0.20 / unit
    wide, high = len(sizes) * (1 + across) - across, len(maps) * (1 + down)
    figure, axes, bar = image_rows_page(names, unit * wide, unit * high, bar=min(unit * high, 1.4), title=title)
    for row, (label, group) in enumerate(maps.items()):
        for column, size in enumerate(sizes):
            if size not in group:
                continue
            place = (column * (1 + across), row * (1 + down))
            _draw(axes, images[label, size].reshape(kernel_shape(size)), place, norm)
            axes.text(
                place[0] + 0.5,
                place[1] + 1 + 0.03 / unit,
                compact(group[size][1]),
                ha="center",
                va="top",
                fontsize=SMALL,
                color=MUTED,
            )
    axes.set_xlim(-0.02, wide + 0.02)
    axes.set_ylim(high, -0.02)
    axes.set_aspect("equal")
    row_labels(axes, [row * (1 + down) + 0.5 for row in range(len(maps))], names, [], BODY)
    column_labels(axes, [column * (1 + across) + 0.5 for column in range(len(sizes))], sizes, BODY)
    colour_bar(bar, axes.images[0])
    return figure


def _draw(axes: Axes, values: npt.NDArray[np.float64], place: tuple[float, float], norm: PowerNorm) -> None:
    """Draw one kernel in the unit square at a place; lines and other long kernels keep their shape in it."""
    height, width = values.shape
    scale = 1 / max(height, width)
    x, y = place[0] + (1 - scale * width) / 2, place[1] + (1 - scale * height) / 2
    axes.imshow(
        values,
        extent=(x, x + scale * width, y + scale * height, y),
        cmap=matplotlib.colormaps[SEQUENTIAL],
        norm=norm,
        interpolation="nearest",
        aspect="auto",
    )
