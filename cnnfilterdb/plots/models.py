"""Models as single points: a map of them, and the shifts within and between groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    INK,
    RULE,
    SMALL,
    TEXT_WIDTH,
    Figure,
    bare,
    distinct_labels,
    finite_array,
    is_unknown,
    place_title,
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

_WITHIN = "#0072B2"
_BETWEEN = "#D55E00"


def model_map(
    coordinates: npt.ArrayLike,
    labels: Sequence[object],
    *,
    explained: Sequence[float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> MatplotlibFigure:
    """Draw models as points of a plane, coloured by group.

    The largest groups have colours and shapes of their own; the others share the grey of ``other groups``.

    Args:
        coordinates: Shape (models, 2), such as :meth:`Reader.embed` gives them. Both axes have the same scale.
        labels: The group of each model; unknown ones are drawn grey.
        explained: Share of the shifts that each axis shows.
        title: Title of the figure.
        ax: Panel to draw on, with the legend inside; by default a new figure is created.

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
    if ax is None:
        legend_width = max(text_width(name, SMALL) for name in names) + 0.34
        side, left, upper = 4.6, 0.46, 0.10 + (0.26 if title else 0.0)
        figure: MatplotlibFigure = (page := Figure(left + side + 0.14 + legend_width, upper + side + 0.46))
        ax = page.panel(left, upper, side, side)
        place_title(page, title)
    else:
        figure = root_figure(ax)
        if title:
            ax.set_title(title, fontsize=BODY, color=INK, loc="left", parse_math=False)
        legend_width = 0.0
    bare(ax, keep=("bottom", "left"))
    ax.grid(color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if rest.any():
        ax.plot(*points[rest].T, "o", color=RULE, markersize=4.5, markeredgewidth=0, label=names[-1], zorder=2)
    for place, (label, name) in enumerate(zip(shown, names, strict=False)):
        inside = (groups == label).to_numpy(dtype=bool)
        ax.plot(
            *points[inside].T,
            _SHAPES[place // len(_COLOURS)],
            color=_COLOURS[place % len(_COLOURS)],
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
        axis.set_label_text(f"coordinate {number + 1}{share}", fontsize=BODY, color=INK)
    handles, texts = ax.get_legend_handles_labels()
    order = [texts.index(name) for name in names]
    ax.legend(
        [handles[position] for position in order],
        [texts[position].replace("$", r"\$") for position in order],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0) if legend_width else None,
        fontsize=SMALL,
        labelcolor=INK,
        frameon=False,
        handletextpad=0.2,
        borderaxespad=0.2,
    )
    return figure


def spread(
    matrix: npt.ArrayLike, labels: Sequence[object], *, label: str = "KL shift D (nats)", title: str | None = None
) -> Figure:
    """Draw how the shifts between the models of a group compare with those to all other models.

    Two box plots per group: the shifts of pairs within the group, and of pairs with one model in it. A group is
    distinct where the first box lies left of the second. Boxes span the middle half, whiskers 5 % to 95 %.

    Args:
        matrix: Shifts between the models, shape (models, models), symmetric.
        labels: The group of each model; models of unknown group are left out.
        label: What the values are.
        title: Title of the figure.

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
    size = BODY if len(keys) <= 24 else SMALL
    pitch = float(np.clip(5.4 / len(keys), 0.24, 0.40))
    left, upper, bottom = 0.06 + row_label_width(names, notes, size, "models"), 0.36 + (0.26 if title else 0.0), 0.46
    figure = Figure(TEXT_WIDTH, upper + pitch * len(keys) + bottom)
    place_title(figure, title)
    axes = figure.panel(left, upper, TEXT_WIDTH - left - 0.16, pitch * len(keys))
    bare(axes, keep=("bottom",))
    axes.set_xscale("log")
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    for row, group in enumerate(order):
        _box(axes, inner[group], row - 0.17, _WITHIN)
        _box(axes, outer[group], row + 0.17, _BETWEEN)
    axes.set_xlim(0.8 * least, 1.25 * max(float(values.max()), least))
    axes.set_ylim(len(keys) - 0.5, -0.5)
    row_labels(axes, list(range(len(keys))), names, notes, size, heading="models")
    axes.set_xlabel(label, fontsize=BODY, color=INK)
    axes.text(0.0, 1.0, "▬ within the group", color=_WITHIN, fontsize=SMALL, transform=axes.transAxes, va="bottom")
    axes.text(1.0, 1.0, "▬ to all other models", color=_BETWEEN, fontsize=SMALL, transform=axes.transAxes,
              va="bottom", ha="right")  # fmt: skip
    return figure


def _box(axes: Axes, values: npt.NDArray[np.float64], row: float, colour: str) -> None:
    if not values.size:
        return
    low, first, median, third, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.hlines(row, low, high, color=colour, linewidth=0.9, zorder=3)
    axes.hlines(row, first, third, color=colour, linewidth=4.0, zorder=4)
    axes.plot(median, row, "o", color="white", markersize=3.4, markeredgecolor=colour, markeredgewidth=0.8, zorder=5)
