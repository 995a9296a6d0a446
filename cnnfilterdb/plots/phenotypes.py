"""Where the filters of groups are in the plane of two components (the phenotypes of CNN Filter DB)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title
from cnnfilterdb.plots.style import (
    INK,
    MUTED,
    SEQUENTIAL,
    bare,
    colour_bar,
    colour_map,
    compact,
    distinct_labels,
    finite_array,
    fitted,
    panel_of,
    root_figure,
    split,
)

__all__ = ["phenotypes"]


@styled
def phenotypes(
    counts: npt.ArrayLike,
    low: float,
    high: float,
    labels: Sequence[object],
    *,
    components: tuple[int, int] = (0, 1),
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the joint density of two coefficients for each group, in colours on a logarithmic scale.

    The CVPR paper names what such scatter plots show: one cloud around the origin ("sun"), several clouds ("spikes"),
    a narrow cross ("symbols"), or a single point. All panels share their colours: the density of the largest cell is
    the brightest.

    Args:
        counts: Filters by group and cell, shape (groups, bins of the first component, bins of the second).
        low: Left edge of the first bin of both components.
        high: Right edge of their last bin.
        labels: Names of the groups.
        components: Numbers of the two components.
        title: Title of the figure.
        ax: Panel or part of a figure in which to place the panels, without colour bar; by default a new figure is
            created.
        style: ``screen``, or ``paper`` for the width of a paper's text.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: one panel per group.

    Raises:
        SelectionError: No filters, a range without width, or other numbers of groups and labels.
    """
    filters = finite_array(counts, "counts", 3)
    if len(filters) != len(labels):
        raise SelectionError(f"labels: expected {len(filters)} names, found {len(labels)}")
    if not low < high:
        raise SelectionError(f"range: expected a left edge below the right one, found {low:g} to {high:g}")
    totals = filters.sum(axis=(1, 2))
    if not (totals > 0).all():
        raise SelectionError("counts: every group needs at least one filter in the range; leave the others out")
    density = filters / totals[:, None, None] / ((high - low) / filters.shape[1]) ** 2
    least, most = float(density[density > 0].min()), float(density.max())
    norm = LogNorm(least, most if most > least else 2 * least)

    names = distinct_labels(labels, 26)
    # About as many columns as rows, once a page's width is full.
    columns = min(len(names), max(5 if len(names) > 4 else len(names), round(np.sqrt(len(names)))))
    rows = -(-len(names) // columns)
    bar: Axes | None = None
    figure: MatplotlibFigure
    if ax is None:
        left, right, gap, head = 0.46, 0.92, 0.14, 0.34
        side = float(np.clip((look().page - left - right) / min(columns, 5) - gap, 0.5, 1.25))
        upper, bottom = 0.08 + (0.26 if title else 0.0), 0.40
        figure = page = Figure(left + columns * (side + gap) + right, upper + rows * (side + head) + bottom)
        place_title(figure, title)
        panels = [
            page.panel(left + column * (side + gap), upper + head + row * (side + head), side, side)
            for row in range(rows)
            for column in range(columns)
            if row * columns + column < len(names)
        ]
        bar = page.panel(left + columns * (side + gap), upper + head, 0.09, side)
    else:
        area = panel_of(ax, title)
        figure, panels = root_figure(area), split(area, columns, rows)
        for empty in panels[len(names) :]:
            empty.remove()
    image = None
    for place, (axes, name, total) in enumerate(zip(panels, names, totals, strict=False)):
        column = place % columns
        bare(axes)
        colours = colour_map(SEQUENTIAL)
        axes.set_facecolor(colours(0.0))
        image = axes.imshow(
            density[place].T, origin="lower", extent=(low, high, low, high), cmap=colours, norm=norm,
            interpolation="nearest", aspect="auto",
        )  # fmt: skip
        wide = axes.get_position().width * figure.get_size_inches()[0]
        line = fitted(name, look().small, 1.1 * wide)
        axes.text(
            0, 1.13, line, fontsize=look().small, color=INK, transform=axes.transAxes, va="bottom", parse_math=False
        )
        axes.text(0, 1.02, f"{compact(float(total))} filters", fontsize=look().small - 1, color=MUTED,
                  transform=axes.transAxes, va="bottom")  # fmt: skip
        axes.locator_params(nbins=3)
        last = place + columns >= len(names)
        axes.tick_params(labelbottom=last, labelleft=column == 0, length=2)
        if last:
            axes.set_xlabel(f"$c_{{{components[0]}}}$", fontsize=look().body, color=INK, labelpad=1)
        if column == 0:
            axes.set_ylabel(f"$c_{{{components[1]}}}$", fontsize=look().body, color=INK, labelpad=1)
    assert image is not None
    if bar is not None:
        colour_bar(bar, image, label="density")
    return figure
