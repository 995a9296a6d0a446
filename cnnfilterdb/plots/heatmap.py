"""Heat map of a matrix of shifts between groups, and the joint density of two coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as MatplotlibFigure
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    INK,
    MUTED,
    RULE,
    SEQUENTIAL,
    SMALL,
    TITLE,
    Figure,
    bare,
    compact,
    contrast,
    distinct_labels,
    finite_array,
    place_title,
    row_label_width,
    row_labels,
    text_width,
)

__all__ = ["density2d", "heatmap", "ordered_groups"]

#: With more groups than this the numbers are left out unless they are asked for.
_ANNOTATED = 40


def ordered_groups(matrix: pd.DataFrame, order: Literal["mean", "cluster"] | None = "mean") -> list[int]:
    """Positions of the groups of a square matrix in the order in which a heat map shows them.

    Args:
        matrix: Shifts, groups x groups, the same groups in rows and columns.
        order: ``mean`` sorts by ascending column mean, the diagonal included, as in the papers' figures; ``cluster``
            puts similar groups side by side (average linkage, optimal leaf ordering); None leaves the order alone.

    Returns:
        One position per group.

    Raises:
        SelectionError: Not such a matrix, or an order of another name.

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
        # A shift that is not known counts as the largest, so that it pulls no group to another.
        known = distances[np.isfinite(distances)]
        distances = np.where(np.isfinite(distances), distances, known.max() if known.size else 0.0)
        np.fill_diagonal(distances, 0.0)
        condensed = squareform(distances, checks=False)
        return [int(leaf) for leaf in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]
    raise SelectionError(f"order: expected 'mean', 'cluster' or None, found {order!r}")


def heatmap(
    matrix: pd.DataFrame,
    *,
    order: Literal["mean", "cluster"] | None = "mean",
    counts: pd.DataFrame | None = None,
    annotate: bool | None = None,
    title: str | None = None,
    vmax: float | None = None,
    label: str = "KL shift D (nats)",
    ax: Axes | None = None,
) -> MatplotlibFigure:
    """Draw a matrix of shifts between groups as a heat map.

    Args:
        matrix: Shifts, groups x groups, the same groups in rows and columns. NaN is drawn grey.
        order: How to sort the groups; see :func:`ordered_groups`.
        counts: Numbers of ``models`` and ``filters`` (either or both columns) by group, written behind the names.
        annotate: Whether to print the values in the cells; without it, up to 40 groups.
        title: Line over the figure.
        vmax: Value of the brightest colour; without it the largest of the matrix.
        label: What the values are, written along the colour bar.
        ax: Panel to draw on, without colour bar; without it a new figure is made.

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
    heading, notes = _notes(counts, keys)
    if annotate is None:
        annotate = groups <= _ANNOTATED
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 0.0
    top = largest if vmax is None else float(vmax)
    if not np.isfinite(top) or (vmax is not None and top <= 0):
        raise SelectionError(f"vmax: expected a positive number, found {vmax!r}")
    # A matrix of zeros (a single group) still needs a range of colours.
    norm = Normalize(0.0, top or 1.0)

    cell = float(np.clip(5.2 / groups, 0.21, 0.56))
    label_size = BODY if cell >= 0.24 else SMALL
    colour_bar: Axes | None = None
    if ax is None:
        label_width = max(text_width(name, label_size) for name in names)
        left = 0.06 + row_label_width(names, notes, label_size, heading)
        side = cell * groups
        bottom = 0.16 + (label_width + 0.1) * np.sin(np.pi / 4)
        upper = 0.08 + (0.24 if title else 0.0) + (0.14 if notes else 0.0)
        bar = max(side, 1.3)
        figure: MatplotlibFigure = Figure(left + side + 0.85, upper + max(side, bar) + bottom)
        width, height = figure.get_size_inches()
        ax = figure.add_axes((left / width, 1 - (upper + side) / height, side / width, side / height))
        colour_bar = figure.add_axes(
            ((left + side + 0.14) / width, 1 - (upper + bar) / height, 0.12 / width, bar / height)
        )
        place_title(figure, title)
    else:
        figure = _root(ax)
        if title:
            ax.set_title(title, fontsize=TITLE, color=INK, loc="left", parse_math=False)

    bare(ax)
    ax.set_facecolor(RULE)
    colours = matplotlib.colormaps[SEQUENTIAL]
    image = ax.imshow(values, cmap=colours, norm=norm, interpolation="nearest", aspect="equal")
    if groups <= 60:
        for edge in np.arange(groups - 1) + 0.5:
            ax.axhline(edge, color="white", linewidth=0.5)
            ax.axvline(edge, color="white", linewidth=0.5)
    row_labels(ax, list(range(groups)), names, notes, label_size, heading=heading)
    ax.set_xticks(
        range(groups),
        labels=names,
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        fontsize=label_size,
        color=INK,
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0, pad=3)
    if annotate:
        decimals = 3 if cell > 0.34 else 2
        texts = [[_number(value, decimals) for value in row] for row in values]
        room = 0.78 * cell / max(max(text_width(text, 1.0) for row in texts for text in row), 1e-9)
        size = min(room, 7.0)
        for row in range(groups):
            for column in range(groups):
                value = values[row, column]
                ax.text(
                    column,
                    row,
                    texts[row][column],
                    ha="center",
                    va="center_baseline",
                    fontsize=size,
                    color=contrast(colours(norm(value))) if np.isfinite(value) else INK,
                )
    if colour_bar is not None:
        bar_artist = figure.colorbar(image, cax=colour_bar, extend="max" if largest > top else "neither")
        bar_artist.outline.set_visible(False)
        bar_artist.set_label(label, fontsize=BODY, color=INK)
        colour_bar.tick_params(labelsize=SMALL, length=2, color=RULE, labelcolor=INK)
    return figure


def density2d(
    counts2d: npt.ArrayLike,
    low: float,
    high: float,
    labels: Sequence[object] | None = None,
    *,
    components: tuple[int, int] = (0, 1),
    columns: int | None = None,
    floor: float = 1e-5,
    title: str | None = None,
    ax: Axes | None = None,
) -> MatplotlibFigure:
    """Draw the joint density of two coefficients, where phenotypes show (suns, spikes, symbols, points).

    Counts are divided by the largest of their group and drawn on a logarithmic scale.

    Args:
        counts2d: Two-dimensional histograms, shape (bins, bins) or (groups, bins, bins); the first axis of a
            histogram is the first component, as ``numpy.histogram2d`` has it.
        low: Left and lower edge, the same for both components.
        high: Right and upper edge.
        labels: Names of the groups, written over the panels.
        components: Which two components these are, for the axis labels.
        columns: Panels per row; without it about as many as rows.
        floor: Share of the largest count that is drawn black.
        title: Line over the figure.
        ax: Panel to draw a single histogram on, without colour bar.

    Returns:
        The figure: one panel per group.

    Raises:
        SelectionError: Nothing to draw, or arguments that do not fit together.
    """
    array = np.asarray(counts2d, dtype=np.float64)
    array = finite_array(array[None] if array.ndim == 2 else array, "counts2d", 3)
    groups = len(array)
    if array.shape[1] != array.shape[2]:
        raise SelectionError(f"counts2d: expected as many bins on both axes, found shape {array.shape[1:]}")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SelectionError(f"low, high: expected the edges of a range, found {low!r} and {high!r}")
    if not 0 < floor < 1:
        raise SelectionError(f"floor: expected a share between 0 and 1, found {floor!r}")
    if labels is not None and len(labels) != groups:
        raise SelectionError(f"labels: expected one for each of {groups} groups, found {len(labels)}")
    names = [""] * groups if labels is None else distinct_labels(labels, 24)
    for name, histogram in zip(names, array, strict=True):
        if (histogram < 0).any() or not histogram.max() > 0:
            raise SelectionError(f"counts2d: group {name!r} has no filters in the range; leave it out")
    if ax is not None and groups > 1:
        raise SelectionError(f"ax: a given panel holds one histogram, found {groups}")

    norm = LogNorm(floor, 1.0)
    extent = (low, high, low, high)
    bar: Axes | None = None
    if ax is not None:
        figure, panels = _root(ax), [ax]
        if title:
            ax.set_title(title, fontsize=TITLE, color=INK, loc="left", parse_math=False)
        rows, columns = 1, 1
    else:
        columns = min(int(np.ceil(np.sqrt(1.6 * groups))), 6) if columns is None else max(columns, 1)
        columns = min(columns, groups)
        rows = -(-groups // columns)
        side = float(np.clip(6.0 / columns, 1.1, 2.6))
        above = 0.20 if labels is not None else 0.0
        left, bottom, gap, upper = 0.50, 0.42, 0.10, 0.08 + (0.26 if title else 0.0)
        figure = Figure(left + columns * (side + gap) + 0.70, upper + rows * (side + above) + (rows - 1) * gap + bottom)
        width, height = figure.get_size_inches()
        panels = [
            figure.add_axes(
                (
                    (left + (index % columns) * (side + gap)) / width,
                    1 - (upper + (index // columns) * (side + above + gap) + above + side) / height,
                    side / width,
                    side / height,
                )
            )
            for index in range(groups)
        ]
        bar = figure.add_axes(
            (
                (left + columns * (side + gap) + 0.02) / width,
                1 - (upper + above + side) / height,
                0.1 / width,
                side / height,
            )
        )
        place_title(figure, title)

    for index, panel in enumerate(panels):
        bare(panel)
        density = array[index] / array[index].max()
        image = panel.imshow(
            np.maximum(density.T, floor),
            origin="lower",
            extent=extent,
            cmap=SEQUENTIAL,
            norm=norm,
            interpolation="nearest",
        )
        panel.set_title(names[index], fontsize=SMALL, color=INK, pad=3, parse_math=False)
        panel.locator_params(nbins=5)
        if index % columns:
            panel.set_yticklabels([])
        else:
            panel.set_ylabel(f"$c_{{{components[1]}}}$", fontsize=TITLE, color=INK, labelpad=1)
        if index + columns < groups:
            panel.set_xticklabels([])
        else:
            panel.set_xlabel(f"$c_{{{components[0]}}}$", fontsize=TITLE, color=INK, labelpad=1)
    if bar is not None:
        artist = figure.colorbar(image, cax=bar)
        artist.outline.set_visible(False)
        artist.set_label("share of the fullest bin", fontsize=SMALL, color=MUTED)
        bar.tick_params(which="both", labelsize=SMALL, length=2, color=RULE, labelcolor=INK)
    return figure


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
    """What stands in grey behind the names: a heading such as "models · filters", and "4 · 1.2 M" by group."""
    if counts is None:
        return "", []
    columns = [column for column in ("models", "filters") if column in counts.columns]
    missing = [key for key in keys if key not in counts.index]
    if not columns or missing:
        found = f"no row for {missing[0]!r}" if missing else f"columns {list(counts.columns)}"
        raise SelectionError(f"counts: expected 'models' or 'filters' for every group, found {found}")
    numbers = counts.loc[list(keys), columns].to_numpy(dtype=np.float64)
    return " · ".join(columns), [" · ".join(compact(number) for number in row) for row in numbers]


def _number(value: float, decimals: int) -> str:
    if not np.isfinite(value):
        return "–"
    if value >= 10:
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{value:.{decimals}f}"


def _root(axes: Axes) -> MatplotlibFigure:
    figure = axes.get_figure(root=True) if hasattr(axes.figure, "subfigs") else axes.figure
    assert isinstance(figure, MatplotlibFigure)
    return figure
