"""The trees of related models."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title
from cnnfilterdb.plots.style import (
    INK,
    MUTED,
    RULE,
    bare,
    distinct_labels,
    panel_of,
    root_figure,
    text_width,
)

__all__ = ["lineage"]

_ROW = 0.2
#: Between trees, in rows.
_GAP = 0.7
_LINES = {"known": "-", "likely": (0, (4, 2)), "unknown": (0, (1, 1.6))}
_COLOURS = {"known": "#0072B2", "likely": "#009E73", "unknown": MUTED}


@styled
def lineage(
    frame: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw trees of related models: a row per model, with a line to its parent.

    Models are placed by their distance from the root, along the tree: the line to a child is as long as it is far from
    its parent. Solid lines have a known direction, dashed ones a likely one, dotted ones none.

    Args:
        frame: Rows as of :meth:`Reader.lineage`, parents before children.
        title: Title of the figure.
        ax: Panel or part of a figure to draw on; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a page.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: one panel.

    Raises:
        SelectionError: No related models.
    """
    if frame.empty:
        raise SelectionError("no two of these models are related; `cnnfilterdb lineage` lists them where there are any")
    entries: list[dict[Any, Any]] = frame.to_dict("records")
    models = [str(entry["model"]) for entry in entries]
    labels = dict(zip(models, distinct_labels(models, 60), strict=True))
    rows: dict[str, float] = {}
    places: dict[str, float] = {}
    row, tree = -1.0, None
    for entry in entries:
        row += 1.0 if entry["tree"] == tree or tree is None else 1.0 + _GAP
        tree = entry["tree"]
        rows[entry["model"]] = row
        places[entry["model"]] = 0.0 if pd.isna(entry["parent"]) else places[entry["parent"]] + float(entry["distance"])
    left, upper, bottom, right = 0.12, 0.3 + (0.26 if title else 0.0), 0.46, 0.1
    widest = max(places.values()) or 1.0
    # The room that labels need beyond the rightmost points, solved for the scale of the axis.
    width = look().page - left - right
    axes: Axes
    figure: MatplotlibFigure
    if ax is not None:
        axes = panel_of(ax, title)
        figure = root_figure(axes)
        width = axes.get_position().width * float(figure.get_size_inches()[0])
    needed = {model: text_width(labels[model], look().small) + 0.12 for model in models}
    scale = min([width / widest, *((width - needed[model]) / places[model] for model in models if places[model] > 0)])
    scale = max(scale, 0.8 / widest)
    total = max(width, max(places[model] * scale + needed[model] for model in models))
    if ax is None:
        pitch = min(_ROW, max(look().tallest, 0.11 * row) / (row + 1))
        figure = page = Figure(left + total + right, upper + pitch * (row + 1) + bottom)
        place_title(page, title)
        axes = page.panel(left, upper, total, pitch * (row + 1))
    bare(axes, keep=("bottom",))
    axes.set_xlim(-0.04 / scale, total / scale)
    axes.set_ylim(row + 0.5, -0.5)
    axes.set_yticks([])
    for entry in entries:
        y = rows[entry["model"]]
        if not pd.isna(entry["parent"]):
            line: dict[str, Any] = {"linestyle": _LINES[entry["direction"]], "linewidth": 1.1}
            line["color"] = _COLOURS[entry["direction"]]
            x = places[entry["parent"]]
            axes.plot([x, x, places[entry["model"]]], [rows[entry["parent"]], y, y], solid_joinstyle="miter", **line)
        axes.plot(places[entry["model"]], y, "o", color=INK, markersize=3.2, zorder=3)
        axes.annotate(
            labels[entry["model"]], (places[entry["model"]], y), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=look().small, color=INK, parse_math=False, annotation_clip=False,
        )  # fmt: skip
    axes.tick_params(axis="x", length=2, color=RULE)
    axes.set_xlabel("distance from the root along the tree, |a - b| / sqrt(|a| |b|)", fontsize=look().body, color=INK)
    shown = [name for name in _LINES if name in set(frame["direction"].dropna())]
    handles = [axes.plot([], [], color=_COLOURS[name], linestyle=_LINES[name], linewidth=1.1)[0] for name in shown]
    axes.legend(
        handles, [f"direction {name}" for name in shown], fontsize=look().small, frameon=False, loc="lower left",
        bbox_to_anchor=(0, 1), ncols=len(shown), borderaxespad=0, labelcolor=INK,
    )  # fmt: skip
    return figure
