"""Models as single points: a map of them, and the shifts within and between groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
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
    draw_boxes,
    finite_array,
    height_of,
    is_unknown,
    named_rows,
    panel_of,
    root_figure,
    row_label_width,
    row_labels,
    text_width,
)

__all__ = ["model_map", "spread"]

#: Colours that remain different for all common kinds of colour blindness (Okabe and Ito, 2008), without the yellow and
#: the black, and the shapes that tell more groups apart than there are colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_SHAPES = ("o", "s", "^")

_INNER, _OUTER = "▬ within the group", "▬ to all other models"
_WITHIN = "#0072B2"
_BETWEEN = "#D55E00"


@styled
def model_map(
    coordinates: npt.ArrayLike,
    labels: Sequence[object],
    *,
    explained: Sequence[float] | None = None,
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw models as points of a plane, coloured by group.

    The largest groups have colours and shapes of their own; the others share the grey of ``other groups``.

    Args:
        coordinates: Shape (models, 2), such as :meth:`Reader.embed` gives them. Both axes have the same scale.
        labels: The group of each model; unknown ones are drawn grey.
        explained: Share of the shifts that each axis shows.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on, with the legend inside; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure.

    Raises:
        SelectionError: No models, or numbers of coordinates and labels that differ.
    """
    points = finite_array(coordinates, "coordinates", 2)
    if points.shape != (len(labels), 2):
        raise SelectionError(f"coordinates: expected shape ({len(labels)}, 2), found {points.shape}")
    groups = pd.Series([None if is_unknown(label) else label for label in labels], dtype=object)
    sizes = groups.value_counts(sort=False)
    named = sorted(sizes.index, key=lambda label: (-sizes[label], str(label)))
    capacity = len(_COLOURS) * len(_SHAPES)
    shown = named if len(named) <= capacity else named[: capacity - 1]
    names = [f"{name} ({sizes[label]})" for name, label in zip(distinct_labels(shown), shown, strict=True)]
    rest = ~groups.isin(shown).to_numpy()
    if rest.any():
        others = len(named) - len(shown)
        names.append(f"{f'{others} other groups' if others else 'unknown'} ({int(rest.sum())})")
    place: dict[str, Any] = {"loc": "best"}
    figure: MatplotlibFigure
    if ax is None:
        figure, ax, place = _map_page(names, title)
    else:
        ax = panel_of(ax, title)
        figure = root_figure(ax)
    bare(ax, keep=("bottom", "left"))
    ax.grid(color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if rest.any():
        ax.plot(*points[rest].T, "o", color=RULE, markersize=4.5, markeredgewidth=0, label=names[-1], zorder=2)
    for number, (label, name) in enumerate(zip(shown, names, strict=False)):
        inside = (groups == label).to_numpy(dtype=bool)
        ax.plot(
            *points[inside].T,
            _SHAPES[number // len(_COLOURS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=5.0,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=name,
            zorder=3,
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.locator_params(nbins=6)
    for axis, number in ((ax.xaxis, 0), (ax.yaxis, 1)):
        share = f" ({100 * explained[number]:.0f} % of the shifts)" if explained is not None else ""
        axis.set_label_text(f"coordinate {number + 1}{share}", fontsize=look().body, color=INK)
    handles, texts = ax.get_legend_handles_labels()
    order = [texts.index(name) for name in names]
    ax.legend(
        [handles[position] for position in order],
        [texts[position].replace("$", r"\$") for position in order],
        **place,
        fontsize=look().small,
        labelcolor=INK,
        frameon=False,
        handletextpad=0.2,
        borderaxespad=0.2,
    )
    return figure


def _map_page(names: Sequence[str], title: str | None) -> tuple[Figure, Axes, dict[str, Any]]:
    """A new figure for a square panel: the figure, the panel, and the place of its legend, beside it or below it."""
    left, upper, bottom, line = 0.58, 0.10 + (0.26 if title else 0.0), 0.46, 1.62 * look().small / 72
    wide = max(text_width(name, look().small) for name in names) + 0.34
    place: dict[str, Any]
    if left + 2.5 + wide <= look().column:
        side = min(4.6, look().column - left - 0.14 - wide)
        figure = Figure(left + side + 0.14 + wide, upper + max(side, line * len(names)) + bottom)
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    else:
        side = look().column - left - 0.14
        columns = max(1, int(look().column // wide))
        figure = Figure(look().column, upper + side + bottom + line * -(-len(names) // columns) + 0.06)
        place = {
            "loc": "lower left", "bbox_to_anchor": (0.0, figure.foot / figure.get_size_inches()[1]),
            "bbox_transform": figure.transFigure, "ncols": columns, "columnspacing": 0.6,
        }  # fmt: skip
    place_title(figure, title)
    return figure, figure.panel(left, upper, side, side), place


@styled
def spread(
    matrix: npt.ArrayLike,
    labels: Sequence[object],
    *,
    label: str = "KL shift D (nats)",
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw how the shifts between the models of a group compare with those to all other models.

    Two box plots per group: the shifts of pairs within the group, and of pairs with one model in it. A group is
    distinct where the first box lies left of the second. Boxes span the middle half, whiskers 5 % to 95 %.

    Args:
        matrix: Shifts between the models, shape (models, models), symmetric.
        labels: The group of each model; models of unknown group are left out.
        label: What the values are.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: one panel, two boxes per row.

    Raises:
        SelectionError: No shifts, a matrix of another shape, or fewer than two groups.
    """
    values = finite_array(matrix, "matrix", 2)
    if values.shape != (len(labels), len(labels)):
        raise SelectionError(f"matrix: expected shape ({len(labels)}, {len(labels)}), found {values.shape}")
    known = np.array([not is_unknown(one) for one in labels])
    values, groups = (
        values[np.ix_(known, known)],
        np.array([one for one in labels if not is_unknown(one)], dtype=object),
    )
    keys = sorted(set(groups.tolist()), key=str)
    if len(keys) < 2:
        raise SelectionError(f"labels: expected models of at least two groups, found {len(keys)}")
    inner, outer = [], []
    for key in keys:
        inside = groups == key
        block = values[np.ix_(inside, inside)]
        inner.append(block[np.triu_indices(len(block), 1)])
        outer.append(values[np.ix_(inside, ~inside)].ravel())
    positive = values[values > 0]
    least = float(positive.min()) if positive.size else 1e-6  # models with the same weights have a shift of 0
    inner, outer = ([np.maximum(pairs, least) for pairs in side] for side in (inner, outer))
    # From the most to the least distinct group; groups of one model, which have no inner pairs, come last.
    order = sorted(
        range(len(keys)), key=lambda i: np.median(inner[i]) / np.median(outer[i]) if inner[i].size else np.inf
    )
    names, notes = distinct_labels([keys[i] for i in order]), [str(int((groups == keys[i]).sum())) for i in order]
    size = look().body if len(keys) <= 24 else look().small
    pitch = min(float(np.clip(5.4 / len(keys), 0.24, 0.40)), look().tallest / len(keys))
    step = named_rows(pitch, size)
    figure: MatplotlibFigure
    if ax is None:
        left, upper, bottom = 0.06 + row_label_width(names, notes, size, "models"), 0.36 + 0.26 * bool(title), 0.46
        legend = text_width(f"{_INNER}   {_OUTER}", look().small)
        width = max(look().column, left + max(1.6, legend) + 0.16)
        figure = page = Figure(width, upper + pitch * len(keys) + bottom)
        place_title(figure, title)
        axes = page.panel(left, upper, width - left - 0.16, pitch * len(keys))
        say_named(figure, step)
    else:
        axes = panel_of(ax, title)
        figure = root_figure(axes)
        step = named_rows(height_of(axes) / len(keys), size)
    bare(axes, keep=("bottom",))
    axes.set_xscale("log")
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    # From the first whisker to the last: models that are nearly equal have shifts of 1e-9.
    ends = np.array([np.quantile(pairs, (0.05, 0.95)) for pairs in (*inner, *outer) if pairs.size])
    axes.set_xlim(0.8 * float(ends.min()), 1.25 * float(ends.max()))
    axes.set_ylim(len(keys) - 0.5, -0.5)
    rows = np.arange(len(keys))
    draw_boxes(axes, list(rows - 0.17), [inner[group] for group in order], [_WITHIN] * len(keys))
    draw_boxes(axes, list(rows + 0.17), [outer[group] for group in order], [_BETWEEN] * len(keys))
    row_labels(axes, list(rows), names, notes, size, heading="models", step=step)
    axes.set_xlabel(label, fontsize=look().body, color=INK)
    axes.text(0.0, 1.0, _INNER, color=_WITHIN, fontsize=look().small, transform=axes.transAxes, va="bottom")
    axes.text(1.0, 1.0, _OUTER, color=_BETWEEN, fontsize=look().small, transform=axes.transAxes,
              va="bottom", ha="right")  # fmt: skip
    return figure
