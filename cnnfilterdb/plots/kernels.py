"""Pictures of kernels: those of a layer as a grid, and the components of bases as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MatplotlibFigure

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    DIVERGING,
    INK,
    MUTED,
    RULE,
    SMALL,
    TITLE,
    Figure,
    bare,
    distinct_labels,
    finite_array,
    place_title,
    row_label_width,
    row_labels,
    text_width,
)
from cnnfilterdb.schema import kernel_shape

__all__ = ["BasisLike", "eigenfilters", "filter_grid"]


class BasisLike(Protocol):
    """What :func:`eigenfilters` needs to know of a basis."""

    @property
    def components(self) -> npt.NDArray[np.float64]:
        """Components, shape (k, weights), row-major kernels of unit length."""

    @property
    def explained_variance_ratio(self) -> npt.NDArray[np.float64]:
        """Share of the variance per component, shape (k,)."""

    @property
    def kernel(self) -> str:
        """Kernel size, such as 3x3."""


def filter_grid(
    filters: npt.ArrayLike,
    *,
    columns: int | None = None,
    scale: Literal["filter", "layer"] = "filter",
    title: str | None = None,
    limit: int = 256,
    ax: Axes | None = None,
) -> MatplotlibFigure:
    """Draw kernels as small images, blue for negative weights and red for positive ones, white for zero.

    Args:
        filters: Kernels, shape (n, kh, kw), or (n, k) where k is a square: row-major weights.
        columns: Kernels per row; without it about as many as rows.
        scale: ``filter`` shows every kernel over its own range, which compares shapes; ``layer`` shows all over one
            range, the largest absolute weight of all (drawn or not), which compares strengths too.
        title: Line over the figure.
        limit: Most kernels to draw, from the first on; a line under the figure tells how many were left out.
        ax: Panel to draw on; without it a new figure is made.

    Returns:
        The figure, with one image per kernel.

    Raises:
        SelectionError: Nothing to draw, weights that are not finite, or weights of a kernel size that cannot be known.
    """
    array = np.asarray(filters, dtype=np.float64)
    if not array.size:
        raise SelectionError("filters: nothing to draw, found no kernels; widen the selection")
    if array.ndim == 2:
        side = round(np.sqrt(array.shape[1]))
        if side * side != array.shape[1]:
            raise SelectionError(
                f"filters: {array.shape[1]} weights are no square kernel; pass shape (n, height, width)"
            )
        array = array.reshape(-1, side, side)
    array = finite_array(array, "filters", 3)
    if scale not in ("filter", "layer"):
        raise SelectionError(f"scale: expected 'filter' or 'layer', found {scale!r}")
    if limit < 1 or (columns is not None and columns < 1):
        raise SelectionError(f"limit, columns: expected at least 1, found {limit} and {columns}")
    total, kernel_h, kernel_w = array.shape
    peak = float(np.abs(array).max())
    array = array[:limit]
    drawn = len(array)
    if columns is None:
        columns = int(np.ceil(np.sqrt(drawn * kernel_h / kernel_w)))
    columns = min(columns, drawn)
    rows = -(-drawn // columns)
    # Lengths below are in kernel widths.
    ratio = kernel_h / kernel_w
    gap = 0.14
    wide, high = columns * (1 + gap) - gap, rows * (ratio + gap) - gap
    note = "" if drawn == total else f"first {drawn:,} of {total:,} kernels"

    if ax is None:
        unit = float(np.clip(min(5.0 / wide, 7.0 / high), 0.12, 0.15 * kernel_w))
        upper = 0.06 + (0.26 if title else 0.0)
        bottom = 0.06 + (0.18 if note else 0.0)
        heading = min(max(text_width(title or "", TITLE), text_width(note, SMALL)) + 0.12, 5.12)
        figure: MatplotlibFigure = Figure(max(unit * wide + 0.12, heading), upper + unit * high + bottom)
        width, height = figure.get_size_inches()
        ax = figure.add_axes((0.06 / width, bottom / height, unit * wide / width, unit * high / height))
        place_title(figure, title)
        if note:
            figure.text(0.06 / width, 0.05 / height, note, va="bottom", fontsize=SMALL, color=MUTED)
    else:
        root = ax.get_figure(root=True)
        assert isinstance(root, MatplotlibFigure)
        figure = root
        if title:
            ax.set_title(title, fontsize=TITLE, color=INK, loc="left", parse_math=False)
        if note:
            ax.set_xlabel(note, fontsize=SMALL, color=MUTED, loc="left")
    bare(ax)
    for index, kernel in enumerate(array):
        bound = peak if scale == "layer" else float(np.abs(kernel).max())
        _draw(ax, kernel, (index % columns) * (1 + gap), (index // columns) * (ratio + gap), 1.0, ratio, bound or 1.0)
    ax.set_xlim(-0.02, wide + 0.02)
    ax.set_ylim(high + 0.02, -0.02)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    return figure


def eigenfilters(
    bases: Mapping[Any, BasisLike],
    *,
    components: int | None = None,
    vmax: float = 1.0,
    title: str | None = None,
) -> Figure:
    """Draw the components of bases as images: a row per basis, a column per component, as the papers do.

    The sign of a component has no meaning: a picture and its negative are the same component. Under each stands its
    share of the variance (0.40 is 40 %).

    Args:
        bases: Bases by name of the group that they were fitted on, all of one kernel size.
        components: How many of the first components to draw; without it up to nine.
        vmax: Weight of the darkest red; minus that is the darkest blue. Components have unit length.
        title: Line over the figure.

    Returns:
        The figure, with one image per component, row by row.

    Raises:
        SelectionError: No basis, or bases of several kernel sizes.
    """
    if not bases:
        raise SelectionError("bases: nothing to draw, found no basis; widen the selection")
    sizes = sorted({basis.kernel for basis in bases.values()})
    if len(sizes) > 1:
        raise SelectionError(f"bases: expected one kernel size, found {', '.join(sizes)}; draw them one by one")
    if not vmax > 0:
        raise SelectionError(f"vmax: expected a positive number, found {vmax!r}")
    kernel_h, kernel_w = kernel_shape(sizes[0])
    most = max(len(basis.components) for basis in bases.values())
    shown = min(most, 9 if components is None else int(components))
    if shown < 1:
        raise SelectionError(f"components: expected at least 1, found {components!r}")

    names = distinct_labels(bases)
    ratio = kernel_h / kernel_w
    # Lengths in kernel widths: the room between two columns, and between two rows, where the share stands.
    unit = float(np.clip(6.0 / len(bases), 0.26, 0.46))
    across, down = 0.16, 0.20 / unit
    wide = shown * (1 + across) - across
    high = len(bases) * (ratio + down)
    left = 0.06 + row_label_width(names, [], BODY)
    upper = 0.28 + (0.26 if title else 0.0)
    bar_room = 0.62
    figure = Figure(left + unit * wide + bar_room, upper + unit * high + 0.08)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, 0.08 / height, unit * wide / width, unit * high / height))
    bare(axes)
    for row, basis in enumerate(bases.values()):
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
                fontsize=SMALL,
                color=MUTED,
            )
    axes.set_xlim(-0.02, wide + 0.02)
    axes.set_ylim(high, -0.02)
    row_labels(axes, [row * (ratio + down) + 0.5 * ratio for row in range(len(bases))], names, [], BODY)
    axes.xaxis.tick_top()
    axes.set_xticks(
        [column * (1 + across) + 0.5 for column in range(shown)],
        labels=[f"$c_{{{column}}}$" for column in range(shown)],
        fontsize=TITLE,
        color=INK,
    )
    axes.tick_params(axis="x", length=0, pad=2)
    bar_height = min(unit * ratio if len(bases) == 1 else unit * high, 1.4)
    bar = figure.add_axes(
        ((left + unit * wide + 0.14) / width, 1 - (upper + bar_height) / height, 0.09 / width, bar_height / height)
    )
    colour_bar = figure.colorbar(axes.images[0], cax=bar, ticks=[-vmax, 0.0, vmax])
    colour_bar.outline.set_visible(False)
    bar.tick_params(labelsize=SMALL, length=2, color=RULE, labelcolor=INK)
    place_title(figure, title)
    return figure


def _draw(
    axes: Axes, kernel: npt.NDArray[np.float64], x: float, y: float, width: float, height: float, bound: float
) -> None:
    """Put a kernel at a place of a panel whose y axis points down, with a hairline around it."""
    image = axes.imshow(
        kernel,
        extent=(x, x + width, y + height, y),
        cmap=matplotlib.colormaps[DIVERGING],
        norm=Normalize(-bound, bound),
        interpolation="nearest",
        aspect="auto",
    )
    image.set_clip_on(False)
    axes.plot(
        [x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=RULE, linewidth=0.4, clip_on=False
    )
