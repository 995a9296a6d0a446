"""Where in a kernel its weights vary: one image per group and kernel size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import PowerNorm

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    INK,
    MUTED,
    RULE,
    SEQUENTIAL,
    SMALL,
    Figure,
    bare,
    compact,
    distinct_labels,
    finite_array,
    place_title,
    row_label_width,
    row_labels,
)
from cnnfilterdb.schema import kernel_shape

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
        vmax: Variance of the brightest colour, of all images; without it the largest of all.
        title: Line over the figure.

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
    # Roots of variances, so that both what is near 1 and the peaks of large kernels can be seen.
    norm = PowerNorm(0.5, 0, vmax or max(float(values.max()) for values in images.values()) or 1.0)

    names = distinct_labels(maps)
    # Lengths in image widths, which are the same for all sizes: the room between columns, and under a row.
    unit = float(np.clip(min(4.8 / len(sizes), 7.0 / len(maps)), 0.45, 0.7))
    across, down = 0.14, 0.20 / unit
    wide, high = len(sizes) * (1 + across) - across, len(maps) * (1 + down)
    left, upper, bar_room = 0.06 + row_label_width(names, [], BODY), 0.28 + (0.26 if title else 0.0), 0.62
    figure = Figure(left + unit * wide + bar_room, upper + unit * high + 0.08)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, 0.08 / height, unit * wide / width, unit * high / height))
    bare(axes)
    for row, (label, group) in enumerate(maps.items()):
        for column, size in enumerate(sizes):
            if size not in group:
                continue
            kernel_h, kernel_w = kernel_shape(size)
            # Lines and other long kernels keep their shape within the square.
            scale = 1 / max(kernel_h, kernel_w)
            x = column * (1 + across) + (1 - scale * kernel_w) / 2
            y = row * (1 + down) + (1 - scale * kernel_h) / 2
            box = (x, x + scale * kernel_w, y + scale * kernel_h, y)
            axes.imshow(
                images[label, size].reshape(kernel_h, kernel_w),
                extent=box,
                cmap=matplotlib.colormaps[SEQUENTIAL],
                norm=norm,
                interpolation="nearest",
                aspect="auto",
            )
            axes.text(
                column * (1 + across) + 0.5,
                row * (1 + down) + 1 + 0.03 / unit,
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
    axes.xaxis.tick_top()
    axes.set_xticks(
        [column * (1 + across) + 0.5 for column in range(len(sizes))], labels=sizes, fontsize=BODY, color=INK
    )
    axes.tick_params(axis="x", length=0, pad=2)
    bar_height = min(unit * high, 1.4)
    bar = figure.add_axes(
        ((left + unit * wide + 0.14) / width, 1 - (upper + bar_height) / height, 0.09 / width, bar_height / height)
    )
    colour_bar = figure.colorbar(axes.images[0], cax=bar)
    colour_bar.outline.set_visible(False)
    bar.locator_params(axis="y", nbins=4)
    bar.tick_params(labelsize=SMALL, length=2, color=RULE, labelcolor=INK)
    place_title(figure, title)
    return figure
