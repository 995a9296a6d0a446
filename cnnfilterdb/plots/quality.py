"""Quality of layers by group: sparsity, normalised variance entropy, orthogonality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import StyleName, look, styled
from cnnfilterdb.plots.page import Figure, place_title
from cnnfilterdb.plots.style import (
    INK,
    RULE,
    bare,
    distinct_labels,
    draw_boxes,
    height_of,
    named_rows,
    panel_of,
    ramp,
    root_figure,
    row_label_width,
    row_labels,
    split,
)

__all__ = ["depth_deciles", "quality"]

_HEADINGS = {
    "sparsity": "sparsity",
    "normalised_entropy": "normalised variance entropy",
    "orthogonality": "orthogonality",
}

_LEGEND = "dot: layer; bar: middle half of the layers; line: 5 % to 95 %; circle: median; dashed: random kernels"


def depth_deciles(depth: pd.Series[float]) -> pd.Series[str]:
    """Tenth of the depth that contains each layer, named as in the papers: ``[0, 0.1]``, ``(0.1, 0.2]``, ...

    Args:
        depth: Normalised depths from 0 to 1; NaN where a depth is unknown.

    Returns:
        An ordered categorical, missing where the depth is missing.

    >>> depth_deciles(pd.Series([0.0, 0.1, 0.11, 1.0])).tolist()
    ['[0, 0.1]', '[0, 0.1]', '(0.1, 0.2]', '(0.9, 1]']
    """
    edges = [tenth / 10 for tenth in range(11)]
    names = [f"{'[' if i == 0 else '('}{edges[i]:g}, {edges[i + 1]:g}]" for i in range(10)]
    tenths: pd.Series[str] = pd.cut(depth, edges, labels=names, include_lowest=True)
    return tenths


@styled
def quality(
    frame: pd.DataFrame,
    *,
    by: str = "domain",
    title: str | None = None,
    ax: Axes | FigureBase | None = None,
    style: StyleName = "screen",
    caption: str | None = None,
) -> MatplotlibFigure:
    """Draw the quality of layers by group: the spread of three measures, a row per group.

    The thick bar spans the middle half of the layers, the thin line 5 % to 95 %; the white dot is the median, and each
    small dot a layer. Entropy is divided by the randomness threshold of the layer's size: about 1 is as diverse as
    random kernels, lower is more redundant. It is omitted where the threshold is unknown (sizes other than 3x3) or not
    positive (one or two kernels).

    Args:
        frame: One row per layer: the column ``by``, and ``sparsity``, ``orthogonality``, and ``normalised_entropy`` or
            both ``variance_entropy`` and ``randomness_threshold``.
        by: Column of groups; ``conv_depth_norm`` is cut into tenths.
        title: Title of the figure.
        ax: Panel or part of a figure in which to place the panels; by default a new figure is created.
        style: ``screen``, or ``paper`` for the width of a paper's text.
        caption: What was drawn, which is written below the figure on a screen.

    Returns:
        The figure: three panels that share their rows.

    Raises:
        SelectionError: No layers, or columns that are missing.
    """
    measures = _measures(frame, by)
    groups = list(measures.groupby("group", observed=True, sort=True, dropna=False))
    if not groups:
        raise SelectionError(f"frame: nothing to draw, found no layer with a {by}; widen the selection")
    names = distinct_labels([key for key, _ in groups])
    notes = [f"{len(rows):,}" for _, rows in groups]
    size = look().body if len(groups) <= 24 else look().small
    pitch = min(float(np.clip(4.6 / len(groups), 0.17, 0.30)), look().tallest / len(groups))
    step = named_rows(pitch, size)
    figure: MatplotlibFigure
    if ax is None:
        legend = _LEGEND if step == 1 else f"{_LEGEND}; one name in {step} is shown"
        figure, panels = _page(len(groups) * pitch, names, notes, size, title, legend)
    else:
        area = panel_of(ax, title)
        figure, panels = root_figure(area), split(area, 3, gap=0.14)
        step = named_rows(height_of(area) / len(groups), size)
    colours = ramp(len(groups))
    for axes, (measure, heading) in zip(panels, _HEADINGS.items(), strict=True):
        bare(axes, keep=("bottom",))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        _draw_spreads(axes, [layers[measure].dropna().to_numpy(dtype=np.float64) for _, layers in groups], colours)
        if measure == "normalised_entropy":
            axes.axvline(1.0, color=INK, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        axes.set_xlim(*_limits(measures[measure].to_numpy(dtype=np.float64)))
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", length=2, pad=2)
        axes.set_title(heading, fontsize=look().body, color=INK, pad=5)
        if axes is panels[0]:
            row_labels(axes, list(range(len(groups))), names, notes, size, heading="layers", step=step)
        else:
            axes.set_yticks([])
    return figure


def _page(
    rows: float, names: Sequence[str], notes: Sequence[str], size: float, title: str | None, legend: str
) -> tuple[Figure, list[Axes]]:
    """A new figure with a legend line and one panel per measure, so many inches high."""
    left = 0.06 + row_label_width(names, notes, size, "layers")
    # The gap has room for half a tick label on either side.
    upper, bottom, gap = 0.32 + (0.26 if title else 0.0), 0.48, 0.26
    panel = max((look().page - left - 0.1) / 3 - gap, 1.1)
    figure = Figure(left + 3 * (panel + gap), upper + rows + bottom)
    figure.write(legend, 0.06, 0.06, fontsize=look().small - 0.5)
    place_title(figure, title)
    return figure, [figure.panel(left + i * (panel + gap), upper, panel, rows) for i in range(3)]


def _draw_spreads(
    axes: Axes, groups: Sequence[npt.NDArray[np.float64]], colours: Sequence[tuple[float, float, float, float]]
) -> None:
    """The layers of each group as dots, and their quantiles over them."""
    for row, values in enumerate(groups):
        # Golden-ratio steps spread the dots evenly, and the same way each time; many dots are faint.
        spread = (np.arange(values.size) * 0.6180339887 % 1.0 - 0.5) * 0.62
        faint = float(np.clip(9.0 / np.sqrt(max(values.size, 1)), 0.15, 0.45))
        axes.plot(
            values, row + spread, ".", color=colours[row], markersize=3.2, markeredgewidth=0, alpha=faint, zorder=2
        )
    draw_boxes(axes, list(range(len(groups))), groups, colours)


def _measures(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The groups and the three measures, one row per layer."""
    needed = [by, "sparsity", "orthogonality"]
    if "normalised_entropy" not in frame.columns:
        needed += ["variance_entropy", "randomness_threshold"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise SelectionError(f"frame: expected the columns {', '.join(needed)}, missing {', '.join(missing)}")
    if "normalised_entropy" in frame.columns:
        entropy = frame["normalised_entropy"].astype(float)
    else:
        threshold = frame["randomness_threshold"].astype(float)
        entropy = frame["variance_entropy"].astype(float) / threshold.where(threshold > 0)
    by_depth = by == "conv_depth_norm"
    measures = pd.DataFrame(
        {
            "group": depth_deciles(frame[by].astype(float)) if by_depth else frame[by],
            "sparsity": frame["sparsity"].astype(float),
            "normalised_entropy": entropy,
            "orthogonality": frame["orthogonality"].astype(float),
        }
    )
    return measures.dropna(subset=["group"]) if by_depth else measures


def _limits(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    """Range of a panel: all values with a margin, at least a tenth wide, and from 0 if they come close to it."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if 0 <= low < 0.35 * high or high == 0:
        low = 0.0
    margin = max(0.04 * (high - low), 0.5 * (0.1 - (high - low)), 0.005)
    return (low - margin if low > 0 else low - 0.25 * margin), high + margin
