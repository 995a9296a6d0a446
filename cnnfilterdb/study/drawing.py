"""The figures of a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from cnnfilterdb.plots import Figure
from cnnfilterdb.plots.look import look
from cnnfilterdb.plots.style import (
    INK,
    MUTED,
    RULE,
    bare,
    distinct_labels,
    logarithmic,
    root_figure,
    row_label_width,
    row_labels,
    text_width,
)
from cnnfilterdb.study.document import p_value
from cnnfilterdb.study.sample import Contrast

__all__ = ["against_chance", "factor_bars", "places", "ranked"]

#: One colour for what the study is about, one for the rest.
MEDICAL = "#c2410c"
OTHER = "#8a929c"
CHANCE = "#cfd6de"

_ROW = 0.21


def against_chance(contrasts: Sequence[Contrast], yardstick: float | None, yardstick_name: str) -> Figure:
    """Observed shifts beside what occurs by chance: one row per contrast, on a logarithmic scale.

    Args:
        contrasts: The rows, from top to bottom.
        yardstick: A shift to compare with, drawn as a line; None draws none.
        yardstick_name: What it is.
    """
    names = distinct_labels([one.what for one in contrasts], 48)
    notes = [f"{one.units} · {one.others}" for one in contrasts]
    figure, axes = _rows_page(names, notes, "medical · other", len(contrasts), right=0.62)
    for row, one in enumerate(contrasts):
        low = max(one.chance, 1e-4)
        axes.barh(row, one.chance_high - low, left=low, height=0.5, color=CHANCE, linewidth=0)
        axes.plot([low, low], [row - 0.25, row + 0.25], color=MUTED, linewidth=0.9)
        colour = MEDICAL if one.p <= 0.05 else INK
        axes.plot([max(one.shift, 1e-4)], [row], "o", markersize=4, color=colour)
        axes.annotate(
            f"p {p_value(one.p)}", (1.0, row), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=look().small, color=colour, annotation_clip=False,
        )  # fmt: skip
    values = [value for one in contrasts for value in (one.shift, one.chance, one.chance_high) if value > 1e-4]
    ends = [*values, *([yardstick] if yardstick else [])]
    logarithmic(axes, min(ends) / 1.5, max(ends) * 1.5)
    if yardstick:
        axes.axvline(yardstick, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            yardstick_name, (yardstick, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", va="bottom", fontsize=look().small, color=MUTED,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel(
        "shift (nats); grey: from the mean to the 95th percentile by chance", fontsize=look().body, color=INK
    )
    return figure


def factor_bars(names: Sequence[str], r2: Sequence[float], omega2: Sequence[float], notes: Sequence[str]) -> Figure:
    """Shares of the differences that factors explain: one bar per factor, with a dark part beyond chance."""
    figure, axes = _rows_page(names, notes, "levels", len(names))
    rows = np.arange(len(names))
    axes.barh(rows, r2, height=0.55, color=CHANCE, linewidth=0, label="explained")
    axes.barh(rows, np.clip(omega2, 0, None), height=0.55, color=INK, linewidth=0, label="beyond chance")
    axes.set_xlim(0, max(0.05, *r2) * 1.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("share of the differences between models", fontsize=look().body, color=INK)
    axes.legend(
        fontsize=look().small,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        borderaxespad=0,
        labelcolor=INK,
    )
    return figure


def places(
    coordinates: npt.NDArray[np.float64], medical: npt.NDArray[np.bool_], shown: Sequence[float], names: Sequence[str]
) -> Figure:
    """Units in a plane in which distances approach the roots of the shifts.

    Args:
        coordinates: (n, 2).
        medical: Which are medical, (n,).
        shown: Share of the differences along each axis.
        names: Label of each unit, empty for none, (n,); one that would lie on a unit or on another label is left out.
    """
    figure = Figure(look().page, 4.6)
    axes = figure.panel(0.5, 0.3, look().page - 0.6, 3.85)
    bare(axes, keep=("left", "bottom"))
    for chosen, colour, label, layer in ((~medical, OTHER, "other", 1), (medical, MEDICAL, "medical", 2)):
        axes.scatter(
            coordinates[chosen, 0], coordinates[chosen, 1], s=22, color=colour, alpha=0.8, linewidths=0.4,
            edgecolors="white", label=label, zorder=layer,
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    _name_points(axes, coordinates, names)
    axes.set_xlabel(f"first axis, {100 * shown[0]:.0f} % of the differences", fontsize=look().body, color=INK)
    axes.set_ylabel(f"second axis, {100 * shown[1]:.0f} %", fontsize=look().body, color=INK)
    axes.legend(
        fontsize=look().small, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0,
        labelcolor=INK,
    )  # fmt: skip
    return figure


#: Where a label may stand: its offset from the point, and which part of it is there, as shares of its size.
_BESIDE: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (
    ((5, 0), (0.0, 0.5)),
    ((-5, 0), (1.0, 0.5)),
    ((0, 5), (0.5, 0.0)),
    ((0, -5), (0.5, 1.0)),
)


def _name_points(axes: Axes, coordinates: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    """Write names beside points, where they touch no other point and no other name."""
    axes.apply_aspect()
    unit = 72 / root_figure(axes).dpi
    points = axes.transData.transform(coordinates) * unit
    low, high = (unit * np.array(corner) for corner in (axes.bbox.min, axes.bbox.max))
    # Lower and upper corners of what is taken: points have a radius of about 2.5 points.
    taken = [(point - 2.5, point + 2.5) for point in points]
    for point, place, name in zip(points, coordinates, names, strict=True):
        if not name:
            continue
        size = np.array([72 * text_width(name, look().small), 1.2 * look().small])
        for offset, anchor in _BESIDE:
            lower = point + np.array(offset) - size * np.array(anchor)
            upper = lower + size
            if (lower < low).any() or (upper > high).any():
                continue
            if any((lower < there[1]).all() and (upper > there[0]).all() for there in taken):
                continue
            taken.append((lower, upper))
            axes.annotate(
                name, place, xytext=offset, textcoords="offset points", fontsize=look().small, color=INK,
                ha=("left", "center", "right")[round(2 * anchor[0])],
                va=("bottom", "center", "top")[round(2 * anchor[1])], parse_math=False,
            )  # fmt: skip
            break


def ranked(names: Sequence[str], values: Sequence[float], notes: Sequence[str], usual: float, limit: float) -> Figure:
    """Distances of models, largest first, with the usual one of others and the limit of outliers."""
    figure, axes = _rows_page(distinct_labels(names, 48), notes, "3x3 filters", len(names), top=0.45)
    rows = np.arange(len(names))
    colours = [MEDICAL if value > limit else INK for value in values]
    axes.scatter(values, rows, s=16, color=colours, zorder=2)
    logarithmic(axes, min([*values, usual]) / 1.4, max([*values, limit]) * 1.4)
    for place, text in ((usual, "median of others"), (limit, "95 % of others")):
        axes.axvline(place, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            text, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", fontsize=look().small, color=MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel("median shift to the other models (nats)", fontsize=look().body, color=INK)
    return figure


def _rows_page(
    names: Sequence[str], notes: Sequence[str], heading: str, rows: int, *, right: float = 0.15, top: float = 0.3
) -> tuple[Figure, Axes]:
    """A page with one row per name; rows run downwards."""
    left = 0.08 + row_label_width(names, notes, look().body, heading)
    height = rows * _ROW
    figure = Figure(look().page, top + height + 0.5)
    axes = figure.panel(left, top, look().page - left - right, height)
    bare(axes, keep=("bottom",))
    axes.set_ylim(rows - 0.5, -0.5)
    row_labels(axes, list(range(rows)), names, notes, look().body, heading=heading)
    axes.tick_params(axis="x", length=2, color=RULE)
    return figure, axes
