"""The heat map of the report: places, colours and texts of its cells, which the page draws as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, to_hex

from cnnfilterdb.core.reports import counted
from cnnfilterdb.plots.heatmap import brightest
from cnnfilterdb.plots.style import (
    RULE,
    SEQUENTIAL,
    colour_map,
    compact,
    contrast,
    distinct_labels,
    label_text,
    text_width,
)

__all__ = ["HeatMap", "heat_map"]

#: Longest label of a row or column, in characters, and the size of its text in pixels.
_LABEL = 28
_TEXT = 11.0
#: Up to this many groups the cells show their values.
_VALUES = 24
#: Room between the groups that are compared and those that are set apart, in pixels.
_APART = 10
#: Steps of the colour bar.
_STEPS = 32


@dataclass(frozen=True, slots=True)
class _Group:
    text: str
    short: str
    offset: float
    at: float


@dataclass(frozen=True, slots=True)
class _Square:
    x: float
    y: float
    fill: str
    ink: str
    text: str
    title: str


@dataclass(frozen=True, slots=True)
class _Step:
    y: float
    height: float
    fill: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A heat map in pixels.

    Attributes:
        width: Width of the drawing.
        height: Height of the drawing.
        left: Left edge of the cells.
        bottom: Lower edge of the cells.
        cell: Side of a cell, with its gap of one pixel.
        groups: The groups, with the offset of their row and column.
        cells: The cells.
        bar: Steps of the colour bar, the largest value first.
        bar_x: Left edge of the colour bar.
        alt: What the drawing shows, in words.
        caption: The text below it.
    """

    width: int
    height: int
    left: float
    bottom: float
    cell: int
    groups: Sequence[_Group]
    cells: Sequence[_Square]
    bar: Sequence[_Step]
    bar_x: float
    alt: str
    caption: str


def heat_map(shift: pd.DataFrame, *, apart: int, sizes: pd.DataFrame | None, label: str, caption: str) -> HeatMap:
    """Lay out a heat map.

    Args:
        shift: Shifts, groups x groups, in the order in which they are drawn.
        apart: How many of the last groups are set apart; they do not influence the colours.
        sizes: ``models`` and ``filters`` of each group, for the text of a cell.
        label: What the values are.
        caption: The text below the drawing.
    """
    values = shift.to_numpy(dtype=np.float64, na_value=np.nan)
    count = len(values)
    names = [label_text(key) for key in shift.index]
    notes = ["" if sizes is None else _note(row) for row in ([] if sizes is None else sizes.to_dict("records"))]
    notes = notes or [""] * count
    cell = int(np.clip(620 // count, 16, 44))
    short = distinct_labels(list(shift.index), _LABEL)
    # A pixel of the page is 1/96 inch; the font of the reader may be wider than the one measured here.
    room = 1.15 * 96 * max(text_width(text, 0.75 * _TEXT) for text in short)
    offsets = [position * cell + (_APART if position >= count - apart else 0) for position in range(count)]
    left, top, side = room + 16, 8.0, offsets[-1] + cell
    norm = Normalize(0.0, brightest(values[: count - apart, : count - apart]) or 1.0)
    colours = colour_map(SEQUENTIAL)
    cells = []
    for (row, column), value in np.ndenumerate(values):
        known = bool(np.isfinite(value))
        colour = colours(norm(value)) if known else to_hex(RULE)
        cells.append(
            _Square(
                x=round(left + offsets[column], 1),
                y=round(top + offsets[row], 1),
                fill=to_hex(colour),
                ink=to_hex(contrast(to_hex(colour))),
                text=_value(float(value)) if known and count <= _VALUES and row != column else "",
                title=f"{names[row]}{notes[row]}\n{names[column]}{notes[column]}\n"
                + (f"{float(value):.4f}, {label}" if known else "unknown"),
            )
        )
    bar_height = max(min(side, 240.0), 80.0)
    steps = [
        _Step(
            y=round(top + position * bar_height / _STEPS, 2),
            height=round(bar_height / _STEPS + 0.3, 2),
            fill=to_hex(colours(1 - (position + 0.5) / _STEPS)),
            text=_tick(position, float(norm.vmax or 1.0), bool(np.nanmax(values, initial=0.0) > (norm.vmax or 1.0))),
        )
        for position in range(_STEPS)
    ]
    return HeatMap(
        width=round(left + side + 90),
        height=round(top + max(side, bar_height) + 16 + (room + 8) * 0.75),
        left=round(left, 1),
        bottom=round(top + side, 1),
        cell=cell,
        groups=[
            _Group(name, text, offset, round(top + offset, 1))
            for name, text, offset in zip(names, short, offsets, strict=True)
        ],
        cells=cells,
        bar=steps,
        bar_x=round(left + side + 16, 1),
        alt=f"Heat map of the {label} between {count} groups; the tables below it list the extreme pairs.",
        caption=caption,
    )


def _note(row: Mapping[Any, Any]) -> str:
    return f" ({counted(row['models'], 'model')}, {compact(row['filters'])} filters)"


def _tick(position: int, top: float, beyond: bool) -> str:
    if position == 0:
        return ("≥ " if beyond else "") + f"{top:.3g}"
    if position == _STEPS // 2:
        return f"{top / 2:.3g}"
    return "0" if position == _STEPS - 1 else ""


def _value(value: float) -> str:
    text = f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return text.removeprefix("0") if value < 1 else text
