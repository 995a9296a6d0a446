"""Where the filters of groups are in the plane of two components (the phenotypes of CNN Filter DB)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy.typing as npt
from matplotlib.colors import LogNorm

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    INK,
    MUTED,
    SEQUENTIAL,
    SMALL,
    Figure,
    bare,
    compact,
    distinct_labels,
    finite_array,
    place_title,
    shorten,
)

__all__ = ["phenotypes"]


def phenotypes(
    counts: npt.ArrayLike,
    low: float,
    high: float,
    labels: Sequence[object],
    *,
    components: tuple[int, int] = (0, 1),
    title: str | None = None,
) -> Figure:
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
    columns = min(len(names), 5 if len(names) > 4 else len(names))
    rows = -(-len(names) // columns)
    side, gap, head = 1.25, 0.14, 0.34
    left, upper, bottom = 0.46, 0.08 + (0.26 if title else 0.0), 0.40
    figure = Figure(left + columns * (side + gap) + 1.05, upper + rows * (side + head) + bottom)
    place_title(figure, title)
    image = None
    for place, (name, total) in enumerate(zip(names, totals, strict=True)):
        row, column = divmod(place, columns)
        axes = figure.panel(left + column * (side + gap), upper + head + row * (side + head), side, side)
        bare(axes)
        colours = matplotlib.colormaps[SEQUENTIAL]
        axes.set_facecolor(colours(0.0))
        image = axes.imshow(
            density[place].T, origin="lower", extent=(low, high, low, high), cmap=colours, norm=norm,
            interpolation="nearest", aspect="auto",
        )  # fmt: skip
        axes.text(0, 1.13, shorten(name, 22), fontsize=SMALL, color=INK, transform=axes.transAxes, va="bottom",
                  parse_math=False)  # fmt: skip
        axes.text(0, 1.02, f"{compact(float(total))} filters", fontsize=SMALL - 1, color=MUTED,
                  transform=axes.transAxes, va="bottom")  # fmt: skip
        axes.locator_params(nbins=3)
        last = place + columns >= len(names)
        axes.tick_params(labelbottom=last, labelleft=column == 0, length=2)
        if last:
            axes.set_xlabel(f"$c_{{{components[0]}}}$", fontsize=BODY, color=INK, labelpad=1)
        if column == 0:
            axes.set_ylabel(f"$c_{{{components[1]}}}$", fontsize=BODY, color=INK, labelpad=1)
    assert image is not None
    bar = figure.panel(left + columns * (side + gap), upper + head, 0.09, side)
    figure.colorbar(image, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=SMALL, length=2, labelcolor=INK)
    bar.set_ylabel("density", fontsize=SMALL, color=INK)
    return figure
