"""Heat map of a matrix of shifts between groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase
from matplotlib.image import AxesImage
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title, say_named
from cnnfilterdb.plots.style import (
    BAR_AT,
    BAR_WIDE,
    INK,
    RULE,
    SEQUENTIAL,
    bar_room,
    bare,
    colour_bar,
    colour_map,
    compact,
    contrast,
    distinct_labels,
    height_of,
    named_rows,
    panel_of,
    root_figure,
    row_label_width,
    row_labels,
    text_width,
)

__all__ = ["METRIC_LABELS", "brightest", "heatmap", "ordered_groups"]

#: What the values of each metric are, with their unit, for a colour bar.
METRIC_LABELS = {
    "kl": "KL shift D (nats)",
    "directed": "directed KL divergence, row from column (nats)",
    "jensen_shannon": "Jensen–Shannon divergence (nats)",
    "total_variation": "total variation distance",
    "wasserstein": "Wasserstein-1 distance",
}

#: With more groups than this the cells show no numbers unless requested.
_ANNOTATED = 40

#: Points below which numbers are left out of the cells unless requested.
_LEGIBLE = 3.9

#: Least height of the colour bar, in inches.
_BAR = 1.3

#: A group is an outlier if its median shift is more than this many times that of most groups.
_OUTLYING = 4.0


def ordered_groups(matrix: pd.DataFrame, order: Literal["mean", "cluster"] | None = "mean") -> list[int]:
    """Positions of the groups of a square matrix in the order in which a heat map shows them.

    Args:
        matrix: Shifts, groups x groups, the same groups in rows and columns.
        order: ``mean`` sorts by ascending column mean, the diagonal included, as in the papers' figures; ``cluster``
            puts similar groups side by side (average linkage, optimal leaf ordering); None keeps the order.

    Returns:
        One position per group.

    Raises:
        SelectionError: Not such a matrix, or an unknown order.

    >>> ordered_groups(pd.DataFrame([[0, 9, 1], [9, 0, 2], [1, 2, 0]]))
    [2, 0, 1]
    """
    values = _square(matrix)
    if order is None:
        return list(range(len(values)))
    if order == "mean":
        means = np.array(
            [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.inf for column in values.T]
        )
        return [int(position) for position in np.argsort(means, kind="stable")]
    if order == "cluster":
        if len(values) < 3:
            return list(range(len(values)))
        distances = 0.5 * (values + values.T)
        # An unknown shift counts as the largest, so that it does not place two groups side by side.
        known = distances[np.isfinite(distances)]
        distances = np.where(np.isfinite(distances), distances, known.max() if known.size else 0.0)
        np.fill_diagonal(distances, 0.0)
        condensed = squareform(distances, checks=False)
        return [int(leaf) for leaf in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]
    raise SelectionError(f"order: expected 'mean', 'cluster' or None, found {order!r}")


@styled
def heatmap(
    matrix: pd.DataFrame,
    *,
    order: Literal["mean", "cluster"] | None = "mean",
    counts: pd.DataFrame | None = None,
    annotate: bool | None = None,
    title: str | None = None,
    vmax: float | None = None,
    label: str = "KL shift D (nats)",
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw a matrix of shifts between groups as a heat map.

    Args:
        matrix: Shifts, groups x groups, the same groups in rows and columns. NaN is drawn grey.
        order: How to sort the groups; see :func:`ordered_groups`.
        counts: Numbers of ``models`` and ``filters`` (either or both columns) by group, printed next to the names
            on a ``screen``; on paper they belong into the caption.
        annotate: Whether to print the values in the cells; by default for up to 40 groups, if they are legible.
        title: Title of the figure.
        vmax: Value of the brightest colour. By default the largest of the matrix, or, if a few groups are far from all
            others, the largest among the remaining groups; larger values then share the brightest colour.
        label: What the values are, printed along the colour bar.
        ax: Panel or part of a figure to draw on, without colour bar; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a column; groups that do not fit in need more.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure. Its first image holds the ordered matrix.

    Raises:
        SelectionError: Empty, not square, or with other groups in the rows than in the columns.
    """
    positions = ordered_groups(matrix, order)
    values = _square(matrix)[np.ix_(positions, positions)]
    groups = len(values)
    keys = [matrix.index[position] for position in positions]
    names = distinct_labels(keys)
    heading, notes = _notes(counts, keys) if look().notes else ("", [])
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 0.0
    top = brightest(values) if vmax is None else float(vmax)
    if not np.isfinite(top) or (vmax is not None and top <= 0):
        raise SelectionError(f"vmax: expected a positive number, found {vmax!r}")

    size = look().body if groups <= (20 if look().notes else 12) else look().small
    left = 0.06 + row_label_width(names, notes, size, heading)
    names_need = 1.15 * size / 72 / np.sin(np.pi / 4)  # inches between names at an angle of 45 degrees
    least = max(0.21 if look().notes else 0.125, names_need)  # room for numbers, or for the names alone
    right = bar_room(label, ["0.000"], _BAR)
    cell = float(np.clip((look().column - left - right) / groups, least, 0.56))
    cell = min(cell, look().tallest / groups)
    figure: MatplotlibFigure
    bar: Axes | None = None
    step = named_rows(cell * np.sin(np.pi / 4), size)  # of names at an angle of 45 degrees
    if ax is None:
        page, ax, bar = _page(
            cell * groups, left, right, names, size, title, with_notes=bool(notes), all_named=step == 1
        )  # fmt: skip
        figure = page
        say_named(page, step)
    else:
        ax = panel_of(ax, title)
        figure = root_figure(ax)
        cell = height_of(ax) / groups
        step = named_rows(cell * np.sin(np.pi / 4), size)
    # Matplotlib needs a range of colours for zeros, too.
    norm = Normalize(0.0, top or 1.0)
    image = _draw_cells(ax, values, norm)
    row_labels(ax, list(range(groups)), names, notes, size, heading=heading, step=step)
    ax.set_xticks(
        range(0, groups, step),
        labels=names[::step],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        fontsize=size,
        color=INK,
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0, pad=3)
    if annotate is not False and (annotate or groups <= _ANNOTATED):
        _draw_numbers(ax, values, norm, cell, least=0.0 if annotate else _LEGIBLE)
    if bar is not None and top > 0:
        colour_bar(bar, image, label=label, extend="max" if largest > top else "neither")
    elif bar is not None:  # one group, or equal ones: a single colour needs no scale
        bar.remove()
    return figure


def _page(
    side: float,
    left: float,
    right: float,
    names: Sequence[str],
    size: float,
    title: str | None,
    *,
    with_notes: bool,
    all_named: bool,
) -> tuple[Figure, Axes, Axes]:
    """A new figure with room for the labels: the figure, the panel (``side`` inches) and that of the colour bar."""
    # Names hang from the panel at an angle of 45 degrees: the corner of a line of text is its lowest point.
    hanging = (max(text_width(name, size) for name in names) + 1.2 * size / 72) * np.sin(np.pi / 4)
    upper = 0.08 + (0.24 if title else 0.0) + (0.14 if with_notes else 0.0)
    bar = max(side, _BAR)
    figure = Figure(left + side + right, upper + max(side + 0.08 + hanging, bar + 0.08) + (0.0 if all_named else 0.16))
    place_title(figure, title)
    return figure, figure.panel(left, upper, side, side), figure.panel(left + side + BAR_AT, upper, BAR_WIDE, bar)


def brightest(values: npt.NDArray[np.float64]) -> float:
    """The value of the brightest colour: the largest shift, without outlying groups.

    A group is outlying if its median shift is over four times the usual one.

    Args:
        values: Shifts, shape (groups, groups); NaN where unknown.
    """
    others = np.where(np.eye(len(values), dtype=bool), np.nan, values)
    known = np.isfinite(others).any(axis=1) | np.isfinite(others).any(axis=0)
    if known.sum() < 4:
        finite = values[np.isfinite(values)]
        return float(finite.max()) if finite.size else 0.0
    medians = np.array([np.nanmedian(row) if np.isfinite(row).any() else np.nan for row in others])
    usual = np.nanmedian(medians)
    kept = ~(medians > _OUTLYING * usual)
    if kept.sum() < 3 or usual == 0:
        kept = np.ones(len(values), dtype=bool)
    return float(np.nanmax(others[np.ix_(kept, kept)], initial=0.0))


def _draw_cells(ax: Axes, values: npt.NDArray[np.float64], norm: Normalize) -> AxesImage:
    bare(ax)
    ax.set_facecolor(RULE)
    image = ax.imshow(values, cmap=colour_map(SEQUENTIAL), norm=norm, interpolation="nearest", aspect="equal")
    if len(values) <= 60:
        for edge in np.arange(len(values) - 1) + 0.5:
            ax.axhline(edge, color="white", linewidth=0.5)
            ax.axvline(edge, color="white", linewidth=0.5)
    return image


def _draw_numbers(ax: Axes, values: npt.NDArray[np.float64], norm: Normalize, cell: float, *, least: float) -> None:
    """Print the values in cells of the given size in inches, all in the largest font that fits, if that is legible."""
    short = cell <= 0.34 or look().short_numbers
    texts = [[_number(value, short=short) for value in row] for row in values]
    colours = colour_map(SEQUENTIAL)
    room = 0.78 * cell / max(max(text_width(text, 1.0) for row in texts for text in row), 1e-9)
    size = min(room, look().small + 0.5)
    if size < least:
        return
    for row, column in np.ndindex(*values.shape):
        value = float(values[row, column])
        ax.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=contrast(colours(norm(value))) if np.isfinite(value) else INK,
        )


def _square(matrix: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The values of a square matrix of shifts."""
    if matrix.empty:
        raise SelectionError("matrix: nothing to draw, found no groups; widen the selection")
    if matrix.shape[0] != matrix.shape[1] or [str(key) for key in matrix.index] != [str(key) for key in matrix.columns]:
        raise SelectionError(
            "matrix: expected the same groups in rows and columns, in the same order, "
            f"found a table of {matrix.shape[0]} x {matrix.shape[1]}"
        )
    return matrix.to_numpy(dtype=np.float64, na_value=np.nan)


def _notes(counts: pd.DataFrame | None, keys: Sequence[object]) -> tuple[str, list[str]]:
    """The grey notes after the names: a heading such as "models · filters", and "4 · 1.2 M" for each group."""
    if counts is None:
        return "", []
    columns = [column for column in ("models", "filters") if column in counts.columns]
    missing = [key for key in keys if key not in counts.index]
    if not columns or missing:
        found = f"no row for {missing[0]!r}" if missing else f"columns {list(counts.columns)}"
        raise SelectionError(f"counts: expected 'models' or 'filters' for every group, found {found}")
    numbers = counts.loc[list(keys), columns].to_numpy(dtype=np.float64)
    return " · ".join(columns), [" · ".join(compact(number) for number in row) for row in numbers]


def _number(value: float, *, short: bool) -> str:
    """Three decimals below 1, fewer above; ``short`` drops the zero before the point, as the papers do."""
    if not np.isfinite(value):
        return "–"
    if value >= 100:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 and short else f"{value:.3f}"
    return text.removeprefix("0") if short else text
