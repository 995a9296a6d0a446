"""Pictures of kernels: those of a layer as a grid, and the components of bases as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase
from matplotlib.image import AxesImage

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, image_rows_page, place_title
from cnnfilterdb.plots.style import (
    BAR_AT,
    BAR_WIDE,
    DIVERGING,
    MUTED,
    RULE,
    bar_room,
    bare,
    colour_bar,
    colour_map,
    column_labels,
    distinct_labels,
    finite_array,
    panel_of,
    root_figure,
    row_label_width,
    row_labels,
    text_width,
)

__all__ = ["BasisLike", "eigenfilters", "filter_grid"]

#: Gap between two kernels of a grid, in kernel widths.
_SPACE = 0.14

#: Size of the channel labels of a grid, in points.
_TINY = 4.5

#: The label of their colour bars.
_WEIGHT = "weight"


class BasisLike(Protocol):
    """What :func:`eigenfilters` needs from a basis."""

    @property
    def components(self) -> npt.NDArray[np.float64]:
        """Components, shape (k, weights), row-major kernels of unit length."""

    @property
    def explained_variance_ratio(self) -> npt.NDArray[np.float64]:
        """Share of the variance per component, shape (k,)."""

    @property
    def kernel(self) -> str:
        """Kernel size, such as 3x3."""


@styled
def filter_grid(
    filters: npt.ArrayLike,
    *,
    columns: int | None = None,
    scale: Literal["filter", "layer"] = "filter",
    title: str | None = None,
    subtitle: str | None = None,
    channels: Sequence[tuple[int, int]] | None = None,
    limit: int = 256,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw kernels as small images, blue for negative weights and red for positive ones, white for zero.

    Args:
        filters: Kernels, shape (n, kh, kw), or (n, k) where k is a square: row-major weights.
        columns: Kernels per row; by default about as many as rows, or one output channel per row if that fits.
        scale: ``filter`` shows every kernel over its own range, which compares shapes; ``layer`` shows all over one
            range, the largest absolute weight of all (drawn or not), which compares strengths too.
        title: Title of the figure.
        subtitle: A line under the title; its end is kept if it has to be shortened.
        channels: Output and input channel of each kernel, used to label rows and columns.
        limit: Largest number of kernels to draw, starting with the first; a line below the figure says how many were
            omitted.
        ax: Panel or part of a figure to draw on, without labels and colour bar; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure, with one image per kernel.

    Raises:
        SelectionError: No kernels, weights that are not finite, or weights of an unknown kernel size.
    """
    array = _kernels(filters)
    if scale not in ("filter", "layer"):
        raise SelectionError(f"scale: expected 'filter' or 'layer', found {scale!r}")
    if limit < 1 or (columns is not None and columns < 1):
        raise SelectionError(f"limit, columns: expected at least 1, found {limit} and {columns}")
    total, kernel_h, kernel_w = array.shape
    if channels is not None and len(channels) != total:
        raise SelectionError(f"channels: expected one pair for each of {total} kernels, found {len(channels)}")
    peak = float(np.abs(array).max())
    array = array[:limit]
    drawn = len(array)
    # Lengths are in kernel widths.
    ratio = kernel_h / kernel_w
    if columns is None:
        columns = _columns(channels, drawn, ratio)
    columns = min(columns, drawn)
    rows = -(-drawn // columns)
    wide, high = columns * (1 + _SPACE) - _SPACE, rows * (ratio + _SPACE) - _SPACE
    note = "" if drawn == total else f"first {drawn:,} of {total:,} kernels"

    bar: Axes | None = None
    if ax is None:
        labels, headings = _channel_labels(channels, rows, columns, drawn)
        ends = _bound_names(peak if scale == "layer" else None)
        room = min(5.0, look().column - 0.4 - bar_room(_WEIGHT, ends, 1.0))
        unit = float(np.clip(min(room / wide, 7.0 / high), 0.12, 0.15 * kernel_w))
        figure, ax, bar = _grid_page(unit * wide, unit * high, labels, headings, (title, subtitle), note, ends)
    else:
        labels, headings = [], []
        ax = panel_of(ax, title)
        figure = root_figure(ax)
        if note:
            ax.set_xlabel(note, fontsize=look().small, color=MUTED, loc="left")
    bare(ax)
    for index, kernel in enumerate(array):
        bound = peak if scale == "layer" else float(np.abs(kernel).max())
        place = ((index % columns) * (1 + _SPACE), (index // columns) * (ratio + _SPACE))
        _draw(ax, kernel, *place, 1.0, ratio, bound or 1.0)
    ax.set_xlim(-0.02, wide + 0.02)
    ax.set_ylim(high + 0.02, -0.02)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    if labels:
        row_labels(ax, [row * (ratio + _SPACE) + 0.5 * ratio for row in range(rows)], labels, [], _TINY)
    if headings:
        column_labels(ax, [column * (1 + _SPACE) + 0.5 for column in range(columns)], headings, _TINY)
    if bar is not None:
        _grid_bar(bar, ax, peak if scale == "layer" else None)
    return figure


def _kernels(filters: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Kernels as an array (n, kh, kw) of finite numbers."""
    array = np.asarray(filters, dtype=np.float64)
    if not array.size:
        raise SelectionError("filters: nothing to draw, found no kernels; widen the selection")
    if array.ndim == 2:
        side = round(np.sqrt(array.shape[1]))
        if side * side != array.shape[1]:
            raise SelectionError(
                f"filters: {array.shape[1]} weights are not a square kernel; pass shape (n, height, width)"
            )
        array = array.reshape(-1, side, side)
    return finite_array(array, "filters", 3)


def _columns(channels: Sequence[tuple[int, int]] | None, drawn: int, ratio: float) -> int:
    """Kernels per row: the input channels of one output channel where these are few, else a square."""
    square = int(np.ceil(np.sqrt(drawn * ratio)))
    if channels:
        inputs = len({second for _, second in channels})
        if square <= 2 * inputs <= 48:
            return inputs
    return square


def _channel_labels(
    channels: Sequence[tuple[int, int]] | None, rows: int, columns: int, drawn: int
) -> tuple[list[str], list[str]]:
    """Labels of rows and columns: channels alone where each row is one output channel, else ``out:in`` of its first."""
    if channels is None:
        return [], []
    grid = [channels[row * columns : min((row + 1) * columns, drawn)] for row in range(rows)]
    if all(len({first for first, _ in row}) == 1 for row in grid) and len({row[0][1] for row in grid}) == 1:
        names = [f"out {row[0][0]}" if position == 0 else str(row[0][0]) for position, row in enumerate(grid)]
        heads = [f"in {second}" if position == 0 else str(second) for position, (_, second) in enumerate(grid[0])]
        return names, heads
    names = [f"{row[0][0]}:{row[0][1]}" for row in grid]
    names[0] = f"out:in {names[0]}"
    return names, []


def _grid_page(
    width: float,
    height: float,
    labels: Sequence[str],
    headings: Sequence[str],
    titles: tuple[str | None, str | None],
    note: str,
    ends: Sequence[str],
) -> tuple[MatplotlibFigure, Axes, Axes]:
    """A new figure with room for labels: the figure, the panel of so many inches, and that of the colour bar."""
    left = 0.06 + (row_label_width(labels, [], _TINY) if labels else 0.0)
    upper = 0.06 + (0.26 if titles[0] else 0.0) + (0.15 if titles[1] else 0.0) + (0.16 if headings else 0.0)
    bottom = 0.06 + (0.18 if note else 0.0)
    wanted = max(
        text_width(titles[0] or "", look().title),
        text_width(titles[1] or "", look().small),
        left + text_width(note, look().small),
    )
    bar = float(np.clip(height, 0.55, 1.4))
    right = bar_room(_WEIGHT, ends, bar)
    figure = Figure(max(left + width + right, min(wanted + 0.12, 5.12)), upper + max(height, bar + 0.06) + bottom)
    place_title(figure, *titles)
    if note:
        figure.write(note, left, 0.05)
    panel = figure.panel(left, upper, width, height)
    return figure, panel, figure.panel(left + width + BAR_AT, upper + 0.03, BAR_WIDE, bar)


def _grid_bar(bar: Axes, panel: Axes, peak: float | None) -> None:
    """The colour bar of a grid: weights of the layer, or shares of each kernel's largest weight."""
    bound = peak or 1.0
    colour_bar(bar, ScalarMappable(Normalize(-bound, bound), DIVERGING), label=_WEIGHT, ticks=[-bound, 0.0, bound],
               names=_bound_names(peak))  # fmt: skip


def _bound_names(peak: float | None) -> list[str]:
    """The labels of the colour bar of a grid."""
    return ["−max", "0", "max"] if peak is None else [f"−{peak or 1.0:.2g}", "0", f"{peak or 1.0:.2g}"]


@styled
def eigenfilters(
    bases: Mapping[Any, BasisLike],
    *,
    components: int | None = None,
    vmax: float = 1.0,
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the components of bases as images: a row per basis, a column per component, as the papers do.

    The sign of a component has no meaning: a picture and its negative are the same component. Below each is its share
    of the variance (0.40 is 40 %).

    Args:
        bases: Bases by name of the group that they were fitted on, all of one kernel size.
        components: How many of the first components to draw; by default up to nine.
        vmax: Weight of the darkest red; minus that is the darkest blue. Components have unit length.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on, without colour bar; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure, with one image per component, row by row.

    Raises:
        SelectionError: No basis, or bases of several kernel sizes.
    """
    if not bases:
        raise SelectionError("bases: nothing to draw, found no basis; widen the selection")
    sizes = sorted({basis.kernel for basis in bases.values()})
    if len(sizes) > 1:
        raise SelectionError(f"bases: expected one kernel size, found {', '.join(sizes)}; draw one size at a time")
    if not vmax > 0:
        raise SelectionError(f"vmax: expected a positive number, found {vmax!r}")
    kernel_h, kernel_w = kernel_shape(sizes[0])
    most = max(len(basis.components) for basis in bases.values())
    shown = min(most, 9 if components is None else int(components))
    if shown < 1:
        raise SelectionError(f"components: expected at least 1, found {components!r}")

    names = distinct_labels(bases)
    ratio = kernel_h / kernel_w
    # Lengths in kernel widths: the gap between two columns, and between two rows, where the share is printed.
    bar = bar_room(_WEIGHT, [f"−{vmax:.3g}"], 0.4)
    room = look().column - 0.06 - bar - row_label_width(names, [], look().body)
    unit = float(np.clip(min(6.0 / len(bases), room / (1.16 * shown)), 0.04 * look().small, 0.46))
    across, down = 0.16, 0.20 / unit
    wide = shown * (1 + across) - across
    high = len(bases) * (ratio + down)
    bar_height = min(unit * ratio if len(bases) == 1 else unit * high, 1.4)
    page = image_rows_page(names, unit * wide, unit * (ratio + down), bar=bar_height, room=bar, title=title, ax=ax)
    for number, basis in enumerate(bases.values()):
        axes, row = page.place(number)
        top = row * (ratio + down)
        for column in range(min(shown, len(basis.components))):
            kernel = np.asarray(basis.components[column], dtype=np.float64).reshape(kernel_h, kernel_w)
            x = column * (1 + across)
            _draw(axes, kernel, x, top, 1.0, ratio, vmax)
            axes.text(
                x + 0.5,
                top + ratio + 0.03 / unit,
                f"{float(basis.explained_variance_ratio[column]):.2f}",
                ha="center",
                va="top",
                fontsize=look().small,
                color=MUTED,
            )
    centres, heads = [column * (1 + across) + 0.5 for column in range(shown)], [f"$c_{{{i}}}$" for i in range(shown)]
    for first, axes in zip(range(0, len(bases), page.rows), page.panels, strict=True):
        there = names[first : first + page.rows]
        axes.set_xlim(-0.02, wide + 0.02)
        axes.set_ylim(len(there) * (ratio + down), -0.02)
        row_labels(axes, [row * (ratio + down) + 0.5 * ratio for row in range(len(there))], there, [], look().body)
        column_labels(axes, centres, heads, look().title)
    if page.bar is not None:
        colour_bar(page.bar, ScalarMappable(Normalize(-vmax, vmax), DIVERGING), label=_WEIGHT, ticks=[-vmax, 0.0, vmax])
    return page.figure


def _draw(
    axes: Axes, kernel: npt.NDArray[np.float64], x: float, y: float, width: float, height: float, bound: float
) -> None:
    """Draw a kernel at a place of a panel whose y axis points down, with a hairline around it."""
    image = AxesImage(
        axes, cmap=colour_map(DIVERGING), norm=Normalize(-bound, bound), interpolation="nearest",
        extent=(x, x + width, y + height, y), origin="upper",
    )  # fmt: skip
    image.set_data(kernel)
    image.set_clip_on(False)
    axes.add_image(image)
    axes.plot(
        [x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=RULE, linewidth=0.4, clip_on=False
    )
