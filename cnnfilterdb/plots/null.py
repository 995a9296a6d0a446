"""What occurs by chance: the null distribution of a test beside what was observed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title, say_named
from cnnfilterdb.plots.style import (
    INK,
    RULE,
    bare,
    distinct_labels,
    logarithmic,
    named_rows,
    panel_of,
    root_figure,
    row_label_width,
    row_labels,
)

__all__ = ["null_distributions"]

_CHANCE = "#b8c2cd"
_TAIL = "#8fa0b3"
_FOUND = "#c2410c"
_BINS = 44


@styled
def null_distributions(
    names: Sequence[str],
    observed: Sequence[float],
    nulls: Sequence[npt.NDArray[np.float64]],
    p: Sequence[float],
    notes: Sequence[str],
    *,
    heading: str = "models",
    label: str = "shift (nats)",
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the distribution of a statistic under the null hypothesis, and the value that was observed.

    Each row is a test. The grey area is how often each shift occurs when the labels are exchanged, the darker part the
    largest 5 %; the line is the shift that was observed, in colour where p is at most 0.05. The axis is logarithmic.

    Args:
        names: The tests, from top to bottom.
        observed: The observed value of each.
        nulls: The values of the permutations of each, (m,).
        p: The p-value of each, as it is judged.
        notes: A text after each name, such as the sizes of the groups.
        heading: What the notes are.
        label: What the values are.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a page.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: one panel.

    Raises:
        SelectionError: No test.
    """
    if not len(names):
        raise SelectionError("no pair of groups can be tested: each has one model only, or all labels are the same")
    positive = [float(value) for one in nulls for value in one[one > 0]] + [value for value in observed if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1e-6, 1.0)
    low, high = low / 1.15, high * 1.15
    edges = np.geomspace(low, high, _BINS + 1)
    shown = distinct_labels(names, 40)
    pitch = min(0.46, look().tallest / len(names))
    step = named_rows(pitch, look().body)
    figure: MatplotlibFigure
    if ax is None:
        left = 0.08 + row_label_width(shown, notes, look().body, heading)
        upper, right = 0.3 + (0.26 if title else 0.0), 0.74
        width = max(look().page, left + right + 1.6)
        figure = page = Figure(width, upper + pitch * len(names) + 0.5)
        place_title(page, title)
        axes = page.panel(left, upper, width - left - right, pitch * len(names))
        say_named(page, step)
    else:
        axes = panel_of(ax, title)
        figure = root_figure(axes)
    bare(axes, keep=("bottom",))
    for row, (value, null, probability) in enumerate(zip(observed, nulls, p, strict=True)):
        values = np.maximum(null, low)
        shares = np.histogram(values, edges)[0] / max(1, len(values))
        heights = 0.8 * shares / max(shares.max(), 1e-12)
        base = row + 0.42
        axes.fill_between(np.repeat(edges, 2)[1:-1], base, base - np.repeat(heights, 2), color=_CHANCE, linewidth=0)
        upper_tail = edges[:-1] >= np.quantile(values, 0.95)
        if upper_tail.any():
            axes.bar(
                edges[:-1][upper_tail], -heights[upper_tail], np.diff(edges)[upper_tail], base, align="edge",
                color=_TAIL, linewidth=0,
            )  # fmt: skip
        axes.hlines(base, low, high, color=RULE, linewidth=0.6)
        colour = _FOUND if probability <= 0.05 else INK
        axes.vlines(max(value, low), base - 0.84, base, color=colour, linewidth=1.4, zorder=3)
        if row % step == 0:
            axes.annotate(
                f"p {probability:.3g}", (1.0, row), xycoords=("axes fraction", "data"), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=look().small, color=colour, annotation_clip=False,
            )  # fmt: skip
    logarithmic(axes, low, high)
    axes.set_ylim(len(names) - 0.5, -0.5)
    row_labels(axes, list(range(len(names))), shown, notes, look().body, heading=heading, step=step)
    axes.tick_params(axis="x", length=2, color=RULE)
    axes.set_xlabel(f"{label}; grey: by chance, line: observed", fontsize=look().body, color=INK)
    return figure
