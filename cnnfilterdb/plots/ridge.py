"""Ridge plot of coefficient distributions: a row per group, a column per component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase
from matplotlib.path import Path
from scipy.special import ndtr

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title, say_named
from cnnfilterdb.plots.style import (
    INK,
    MUTED,
    RULE,
    bare,
    compact,
    distinct_labels,
    finite_array,
    height_of,
    named_rows,
    panel_of,
    ramp,
    root_figure,
    row_label_width,
    row_labels,
    split,
)

__all__ = ["SHOWN", "binned_density", "ridge", "silverman_bandwidth"]

#: How many components are drawn unless they are named: the first ones.
SHOWN = 9

#: How far a curve reaches up, in rows: above 1 it overlaps the row above.
_REACH = 1.55

#: Share of the filters of any curve that each end of an automatic x range may cut off.
_TRIM = 0.005

_POINTS = 240


def silverman_bandwidth(counts: npt.ArrayLike, low: float, high: float) -> float:
    """Silverman's bandwidth of binned data, from the moments of the histogram.

    h = s (3 n / 4)^(-1/5), where n is the number of values and s their standard deviation (n - 1 in the denominator),
    each value placed at the middle of its bin (Silverman 1986, as in ``scipy.stats.gaussian_kde``).

    Args:
        counts: Values per bin, shape (bins,).
        low: Left edge of the first bin.
        high: Right edge of the last bin.

    Returns:
        The bandwidth, in the unit of the edges; 0 where all values are in one bin.

    Raises:
        SelectionError: Nothing was counted, or the range is empty.
    """
    weights = _histogram(counts, low, high)
    centres = low + (high - low) * (np.arange(weights.size) + 0.5) / weights.size
    total = weights.sum()
    mean = weights @ centres / total
    variance = weights @ (centres - mean) ** 2 / max(total - 1.0, 1.0)
    return float(np.sqrt(variance) * (0.75 * total) ** -0.2)


def binned_density(
    counts: npt.ArrayLike,
    low: float,
    high: float,
    x: npt.ArrayLike,
    *,
    bandwidth: float | Literal["silverman"] = "silverman",
) -> npt.NDArray[np.float64]:
    """Smooth density of binned data: the histogram, as a density, convolved with a normal distribution.

    Within a bin the values are assumed to be evenly spread. Silverman's bandwidth falls with the number of filters; for
    millions of filters it is far narrower than a bin and would show the steps of the histogram, so at least half a bin
    is used. The density integrates to 1 over the real line.

    Args:
        counts: Values per bin, shape (bins,).
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        x: Where to evaluate, shape (points,).
        bandwidth: Standard deviation of the normal distribution, or ``silverman``.

    Returns:
        The density at x, shape (points,), float64.

    Raises:
        SelectionError: Nothing was counted, the range is empty, or the bandwidth is not positive.

    >>> binned_density([0, 10, 0], -1.5, 1.5, [0.0], bandwidth=0.01).round(3).tolist()
    [1.0]
    """
    weights = _histogram(counts, low, high)
    width = _width(weights, low, high, bandwidth)
    density: npt.NDArray[np.float64] = _smoothing(low, high, weights.size, x, width) @ (weights / weights.sum())
    return density


def _width(weights: npt.NDArray[np.float64], low: float, high: float, bandwidth: float | Literal["silverman"]) -> float:
    """The standard deviation of the smoothing of a histogram."""
    if bandwidth == "silverman":
        width = max(silverman_bandwidth(weights, low, high), 0.5 * (high - low) / weights.size)
    elif isinstance(bandwidth, (int, float)) and np.isfinite(bandwidth) and bandwidth > 0:
        width = float(bandwidth)
    else:
        raise SelectionError(f"bandwidth: expected 'silverman' or a positive number, found {bandwidth!r}")
    return width


def _smoothing(low: float, high: float, bins: int, x: npt.ArrayLike, width: float) -> npt.NDArray[np.float64]:
    """The density at x of each bin, smoothed, (points, bins): what shares of a histogram are multiplied with."""
    edges = np.linspace(low, high, bins + 1)
    steps = ndtr((np.asarray(x, dtype=np.float64)[:, None] - edges) / width)
    found: npt.NDArray[np.float64] = -np.diff(steps, axis=1) * (bins / (high - low))
    return found


def _curves(
    counts: npt.NDArray[np.float64],
    low: float,
    high: float,
    x: npt.NDArray[np.float64],
    bandwidth: float | Literal["silverman"],
) -> npt.NDArray[np.float64]:
    """The densities of histograms (n, bins) at x, (n, points); 0 where nothing was counted.

    Histograms of many filters have the same bandwidth, so they share the matrix of their smoothing.
    """
    curves = np.zeros((len(counts), x.size))
    there = np.flatnonzero(counts.any(axis=1))
    shares = counts[there] / counts[there].sum(axis=1, keepdims=True)
    widths = np.array([_width(_histogram(counts[row], low, high), low, high, bandwidth) for row in there])
    for width in np.unique(widths):
        alike = widths == width
        curves[there[alike]] = shares[alike] @ _smoothing(low, high, counts.shape[1], x, float(width)).T
    return curves


@styled
def ridge(
    counts: npt.ArrayLike,
    low: float,
    high: float,
    labels: Sequence[object],
    *,
    filters: Sequence[float] | npt.NDArray[Any] | None = None,
    explained_variance_ratio: Sequence[float] | npt.NDArray[Any] | None = None,
    components: Sequence[int] | None = None,
    bandwidth: float | Literal["silverman"] = "silverman",
    xlim: tuple[float, float] | Literal["auto", "full"] = "auto",
    scale: Literal["curve", "column"] = "curve",
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw coefficient distributions as ridges: one row per group, one column per component.

    The curves are those of :func:`binned_density`. The x axis is the same in all columns.

    Args:
        counts: Histograms of the coefficients, shape (groups, components, bins).
        low: Left edge of the first bin, the same for all.
        high: Right edge of the last bin.
        labels: Names of the groups, from top to bottom.
        filters: Number of filters per group, printed next to its name; by default the number counted.
        explained_variance_ratio: Share of the variance per component of the basis, printed above its column.
        components: Which components to draw; by default the first nine.
        bandwidth: Standard deviation of the smoothing, or ``silverman``.
        xlim: Range of the x axis; ``full`` for low to high, ``auto`` for the narrowest range that keeps 99 % of the
            filters of every curve.
        scale: ``curve`` draws every curve to the same height, as the papers do, and compares shapes; ``column``
            draws the curves of a column to the same area.
        title: Title of the figure.
        ax: Panel or part of a figure in which to place the panels; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a paper's text.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: one Axes per component, from left to right.

    Raises:
        SelectionError: Nothing to draw, or arguments that do not fit together.
    """
    array, names, shown = _checked(counts, labels, components)
    groups, width, _ = array.shape
    sizes = array[:, shown].sum(axis=2).max(axis=1) if filters is None else finite_array(filters, "filters", 1)
    if sizes.size != groups:
        raise SelectionError(f"filters: expected one number for each of {groups} groups, found {sizes.size}")
    ratios = None
    if explained_variance_ratio is not None:
        ratios = finite_array(explained_variance_ratio, "explained_variance_ratio", 1)
        if ratios.size < width:
            raise SelectionError(f"explained_variance_ratio: expected {width} values, found {ratios.size}")
    array = array[:, shown]
    left_x, right_x = _x_range(array, low, high, xlim)
    x = np.linspace(left_x, right_x, _POINTS)
    ticks = _ticks(left_x, right_x)
    label_size = look().body if groups <= 24 else look().small
    notes = [compact(size) for size in sizes]
    pitch = min(float(np.clip(5.6 / groups, 0.19, 0.42)), look().tallest / groups)
    step = named_rows(pitch, label_size)
    figure: MatplotlibFigure
    if ax is None:
        figure, panels = _page(names, notes, label_size, pitch, len(shown), with_ratios=ratios is not None, title=title)
        place_title(figure, title)
        say_named(figure, step)
    else:
        area = panel_of(ax, title)
        figure, panels = root_figure(area), split(area, len(shown))
        step = named_rows(height_of(area) / groups, label_size)
    baselines = np.arange(groups - 1, -1, -1, dtype=np.float64)
    for position, (axes, component) in enumerate(zip(panels, shown, strict=True)):
        bare(axes)
        axes.set_xlim(left_x, right_x)
        axes.set_ylim(-0.12, groups - 1 + _REACH + 0.10)
        axes.axvline(0.0, color=RULE, linewidth=0.6, zorder=0)
        _draw_curves(axes, x, _curves(array[:, position], low, high, x, bandwidth), baselines, scale)
        if position == 0:
            row_labels(axes, list(baselines + 0.14), names, notes, label_size, heading="filters", step=step)
        else:
            axes.set_yticks([])
        axes.set_xticks(ticks, labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
        narrow = axes.get_position().width * figure.get_size_inches()[0] <= 0.56
        axes.tick_params(axis="x", length=2, pad=1.5, labelsize=look().small - 0.5 if narrow else look().small)
        _write_heading(axes, component, None if ratios is None else float(ratios[component]))
    return figure


def _checked(
    counts: npt.ArrayLike, labels: Sequence[object], components: Sequence[int] | None
) -> tuple[npt.NDArray[np.float64], list[str], list[int]]:
    """The histograms, the names of the groups, and the components to draw."""
    array = finite_array(counts, "counts", 3)
    groups, width, _ = array.shape
    if len(labels) != groups:
        raise SelectionError(f"labels: expected one for each of {groups} groups, found {len(labels)}")
    names = distinct_labels(labels)
    for name, total in zip(names, array.sum(axis=(1, 2)), strict=True):
        if not total > 0:
            raise SelectionError(f"counts: group {name!r} has no filters in the range; leave it out")
    shown = list(range(min(width, SHOWN))) if components is None else [int(component) for component in components]
    if not shown or not all(0 <= component < width for component in shown):
        raise SelectionError(f"components: expected some of 0 to {width - 1}, found {shown}")
    return array, names, shown


def _page(
    names: Sequence[str],
    notes: Sequence[str],
    size: float,
    pitch: float,
    columns: int,
    *,
    with_ratios: bool,
    title: str | None,
) -> tuple[Figure, list[Axes]]:
    """A new figure with one panel per column; the columns share what the names leave of the width of a page."""
    groups = len(names)
    left = 0.06 + row_label_width(names, notes, size, "filters")
    column = float(np.clip((look().page - left - 0.08) / columns, 0.50, 1.30))
    top = 0.24 + (0.15 if with_ratios else 0.0) + (0.26 if title else 0.0)
    bottom = 0.38
    height = (groups - 1 + _REACH + 0.22) * pitch
    figure = Figure(left + column * columns + 0.08, top + height + bottom)
    figure.write("coefficient", left + 0.5 * column * columns, 0.07, ha="center", fontsize=look().body, color=INK)
    return figure, [figure.panel(left + column * (i + 0.03), top, 0.94 * column, height) for i in range(columns)]


def _draw_curves(
    axes: Axes,
    x: npt.NDArray[np.float64],
    curves: npt.NDArray[np.float64],
    baselines: npt.NDArray[np.float64],
    scale: Literal["curve", "column"],
) -> None:
    """Draw the curves of a column as one artist: of each curve its area, a white line, and its line."""
    peaks = curves.max(axis=1, keepdims=True)
    peaks = np.full_like(peaks, peaks.max()) if scale == "column" else peaks
    outlines = baselines[:, None] + _REACH * curves / np.where(peaks > 0, peaks, 1.0)
    # A row of hundreds is less than a line of text high: its lines are thinner.
    thin = float(np.clip(height_of(axes) * 72 / (2.0 * len(curves)), 0.2, 1.0))
    paths, fills, edges = [], [], []
    for baseline, outline, colour in zip(baselines, outlines, ramp(len(curves)), strict=True):
        line = np.column_stack([x, outline])
        area = np.concatenate([[(x[0], baseline)], line, [(x[-1], baseline), (x[0], baseline)]])
        paths += [Path(area), Path(line), Path(line)]
        fills += [(*colour[:3], 0.72), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)]
        edges += [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), colour]
    widths = [0.0, 1.5 * thin, 0.7 * thin] * len(curves)
    axes.add_collection(
        PathCollection(paths, facecolors=fills, edgecolors=edges, linewidths=widths, capstyle="butt"), autolim=False
    )


def _write_heading(axes: Axes, component: int, ratio: float | None) -> None:
    """Write the name of a component, and its share of the variance, above its column."""
    share = None if ratio is None else f"{100 * ratio:.1f} %"
    lines = (
        (f"$c_{{{component}}}$", 1.5 if share is None else 11.5, look().title, INK),
        (share, 1.5, look().small, MUTED),
    )
    for text, offset, size, colour in lines:
        if text:
            axes.annotate(
                text, (0.5, 1.0), xycoords="axes fraction", xytext=(0, offset), textcoords="offset points",
                ha="center", va="bottom", fontsize=size, color=colour, annotation_clip=False,
            )  # fmt: skip


def _histogram(counts: npt.ArrayLike, low: float, high: float) -> npt.NDArray[np.float64]:
    weights = finite_array(counts, "counts", 1)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SelectionError(f"low, high: expected the edges of a range, found {low!r} and {high!r}")
    if (weights < 0).any() or not weights.sum() > 0:
        raise SelectionError("counts: expected numbers of filters, not all zero and none negative")
    return weights


def _x_range(
    counts: npt.NDArray[np.float64],
    low: float,
    high: float,
    xlim: tuple[float, float] | Literal["auto", "full"],
) -> tuple[float, float]:
    """Range of the x axis; counts are (groups, components, bins)."""
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SelectionError(f"low, high: expected the edges of a range, found {low!r} and {high!r}")
    if xlim == "full":
        return low, high
    if xlim != "auto":
        left, right = float(xlim[0]), float(xlim[1])
        if not (np.isfinite(left) and np.isfinite(right) and left < right):
            raise SelectionError(f"xlim: expected 'auto', 'full' or (left, right), found {xlim!r}")
        return left, right
    histograms = counts.reshape(-1, counts.shape[-1])
    histograms = histograms[histograms.sum(axis=1) > 0]
    cumulative = np.cumsum(histograms, axis=1) / histograms.sum(axis=1, keepdims=True)
    first = int((cumulative > _TRIM).argmax(axis=1).min())
    last = int((cumulative >= 1.0 - _TRIM).argmax(axis=1).max())
    edges = np.linspace(low, high, counts.shape[-1] + 1)
    # Two more bins on either side, so that the foot of the widest curve is seen.
    return float(edges[max(first - 2, 0)]), float(edges[min(last + 3, counts.shape[-1])])


def _ticks(left: float, right: float) -> list[float]:
    """Three ticks about the middle of a range, far enough from its ends to keep clear of the next column's."""
    middle = 0.0 if left < 0 < right else 0.5 * (left + right)
    reach = 0.8 * min(middle - left, right - middle)
    power = 10.0 ** np.floor(np.log10(reach))
    step = max(float(nice * power) for nice in (1, 1.5, 2, 3, 5) if nice * power <= reach * (1 + 1e-9))
    return [middle - step, middle, middle + step]
