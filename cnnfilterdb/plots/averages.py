"""What the kernels of groups have in common: their mean, and where their weights vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, Normalize, PowerNorm
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import image_rows_page
from cnnfilterdb.plots.style import (
    DIVERGING,
    MUTED,
    SEQUENTIAL,
    bar_room,
    colour_bar,
    colour_map,
    column_labels,
    compact,
    distinct_labels,
    finite_array,
    root_ticks,
    row_label_width,
    row_labels,
    signed_number,
)

__all__ = ["Averages", "mean_kernels", "variance"]

#: For each group, by kernel size: one value per weight, shape (k,), row by row, and the number of kernels.
Averages = Mapping[Any, Mapping[str, tuple[npt.ArrayLike, int]]]

#: Kernels from which an image sets the range of colours: the standard error of a mean of scaled weights, which are at
#: most 1, is then at most 0.1. The mean of two kernels is as strong as a kernel, and would leave all others white.
_ENOUGH = 100

#: Height of the colour bar, unless the images are lower, in inches.
_BAR = 1.4


@styled
def variance(
    maps: Averages,
    *,
    vmax: float | None = None,
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the variance of each weight over the kernels of groups: a row per group, a column per kernel size.

    The maps are those of :func:`cnnfilterdb.stats.variance_map`, in which 1 is the variance of all weights of a layer:
    random kernels give an even 1, learned large ones are bright at the centre (The Power of Linear Combinations, arXiv
    2301.11360). Under each stands the number of kernels. What a group has no kernels of is left empty.

    Args:
        maps: For each group, by kernel size, the variances (k,) and the number of kernels.
        vmax: Variance shown in the brightest colour, for all images; by default the largest, without images of fewer
            than 100 kernels if there are others. Colours change with the square root.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on, without colour bar; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure, with one image per group and kernel size.

    Raises:
        SelectionError: Nothing to draw, or variances that do not fit their kernel size.
    """
    images = _images(maps, "variances")
    bound = vmax or _largest(maps, images)
    return _rows(maps, images, PowerNorm(0.5, 0, bound), SEQUENTIAL, "variance (layer = 1)", title, ax)


@styled
def mean_kernels(
    maps: Averages,
    *,
    vmax: float | None = None,
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the mean kernel of groups: a row per group, a column per kernel size.

    Blue is negative and red positive, over one range for all images. Under each stands the number of kernels. The mean
    of kernels that have no preferred sign is near zero, which is white; what is left shows blurs and edges that most
    kernels of a group share, as those of depthwise layers do.

    Args:
        maps: For each group, by kernel size, the means (k,) and the number of kernels.
        vmax: Weight of the darkest red; by default the largest absolute mean, without images of fewer than 100 kernels
            if there are others. Colours change with the square root, so that faint means are visible.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on, without colour bar; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure, with one image per group and kernel size.

    Raises:
        SelectionError: Nothing to draw, or means that do not fit their kernel size.
    """
    images = _images(maps, "means")
    bound = vmax or _largest(maps, images)
    norm = FuncNorm((_signed_root, _signed_square), -bound, bound)
    return _rows(maps, images, norm, DIVERGING, "mean of scaled weights", title, ax)


def _signed_root(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.square(values)


def _largest(maps: Averages, images: Mapping[tuple[Any, str], npt.NDArray[np.float64]]) -> float:
    """The largest absolute value of the images, of those of enough kernels if there are any; 1 if all are zero."""
    trusted = [values for (label, size), values in images.items() if maps[label][size][1] >= _ENOUGH]
    return max(float(np.abs(values).max()) for values in trusted or images.values()) or 1.0


def _images(maps: Averages, what: str) -> dict[tuple[Any, str], npt.NDArray[np.float64]]:
    """The values of each group and kernel size."""
    images = {
        (label, size): finite_array(values, f"{label}, {size}", 1)
        for label, group in maps.items()
        for size, (values, _) in group.items()
    }
    if not images:
        raise SelectionError("maps: nothing to draw, found no kernels; widen the selection")
    for (label, size), values in images.items():
        if values.size != np.prod(kernel_shape(size)):
            raise SelectionError(f"maps: {label} has {values.size} {what} for {size} kernels")
    return images


def _rows(
    maps: Averages,
    images: Mapping[tuple[Any, str], npt.NDArray[np.float64]],
    norm: Normalize,
    colours: str,
    what: str,
    title: str | None,
    ax: Axes | FigureBase | None,
) -> MatplotlibFigure:
    """A row of images per group, a column per kernel size."""
    sizes = sorted({size for _, size in images}, key=lambda size: kernel_shape(size))
    names = distinct_labels(maps)
    # Lengths in image widths, which are the same for all sizes: the room between columns, and under a row.
    signed, bound = norm.vmin != 0, float(norm.vmax or 1.0)
    ticks = [signed_number(tick) for tick in root_ticks(bound, _BAR, signed=signed)]
    room = look().column - 0.06 - bar_room(what, ticks, _BAR) - row_label_width(names, [], look().body)
    unit = float(np.clip(min(room / (1.14 * len(sizes)), 7.0 / len(maps)), 0.4, 0.7))
    across, down = 0.14, 0.20 / unit
    wide, high = len(sizes) * (1 + across) - across, len(maps) * (1 + down)
    bar = min(unit * high, _BAR)
    page = image_rows_page(
        names, unit * wide, unit * (1 + down), bar=bar, room=bar_room(what, ticks, bar), title=title, ax=ax
    )  # fmt: skip
    for number, (label, group) in enumerate(maps.items()):
        axes, row = page.place(number)
        for column, size in enumerate(sizes):
            if size not in group:
                continue
            place = (column * (1 + across), row * (1 + down))
            _draw(axes, images[label, size].reshape(kernel_shape(size)), place, norm, colours)
            axes.text(
                place[0] + 0.5, place[1] + 1 + 0.03 / unit, compact(group[size][1]), ha="center", va="top",
                fontsize=look().small, color=MUTED,
            )  # fmt: skip
    for first, axes in zip(range(0, len(maps), page.rows), page.panels, strict=True):
        there = names[first : first + page.rows]
        axes.set_xlim(-0.02, wide + 0.02)
        axes.set_ylim(len(there) * (1 + down), -0.02)
        axes.set_aspect("equal")
        row_labels(axes, [row * (1 + down) + 0.5 for row in range(len(there))], there, [], look().body)
        column_labels(axes, [column * (1 + across) + 0.5 for column in range(len(sizes))], sizes, look().body)
    if page.bar is not None:
        beyond = any(float(np.abs(values).max()) > bound for values in images.values())
        colour_bar(
            page.bar, ScalarMappable(norm, colours), label=what, ticks=root_ticks(bound, bar, signed=signed),
            extend="neither" if not beyond else "both" if signed else "max",
        )  # fmt: skip
    return page.figure


def _draw(
    axes: Axes, values: npt.NDArray[np.float64], place: tuple[float, float], norm: Normalize, colours: str
) -> None:
    """Draw one kernel in the unit square at a place; lines and other long kernels keep their shape in it."""
    height, width = values.shape
    scale = 1 / max(height, width)
    x, y = place[0] + (1 - scale * width) / 2, place[1] + (1 - scale * height) / 2
    axes.imshow(
        values,
        extent=(x, x + scale * width, y + scale * height, y),
        cmap=colour_map(colours),
        norm=norm,
        interpolation="nearest",
        aspect="auto",
    )
