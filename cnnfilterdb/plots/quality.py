"""Quality of layers by group: sparsity, normalised variance entropy, orthogonality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.style import (
    BODY,
    INK,
    MUTED,
    RULE,
    SMALL,
    TEXT_WIDTH,
    Figure,
    bare,
    distinct_labels,
    place_title,
    ramp,
    row_label_width,
    row_labels,
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


def quality(frame: pd.DataFrame, *, by: str = "domain", title: str | None = None) -> Figure:
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
    size = BODY if len(groups) <= 24 else SMALL
    figure, panels = _page(len(groups), names, notes, size, title)
    colours = ramp(len(groups))
    for axes, (measure, heading) in zip(panels, _HEADINGS.items(), strict=True):
        bare(axes, keep=("bottom",))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        for row, (_, layers) in enumerate(groups):
            _draw_spread(axes, layers[measure].dropna().to_numpy(dtype=np.float64), row, colours[row])
        if measure == "normalised_entropy":
            axes.axvline(1.0, color=INK, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        axes.set_xlim(*_limits(measures[measure].to_numpy(dtype=np.float64)))
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", length=2, pad=2)
        axes.set_title(heading, fontsize=BODY, color=INK, pad=5)
        if axes is panels[0]:
            row_labels(axes, list(range(len(groups))), names, notes, size, heading="layers")
        else:
            axes.set_yticks([])
    return figure


def _page(
    groups: int, names: Sequence[str], notes: Sequence[str], size: float, title: str | None
) -> tuple[Figure, list[Axes]]:
    """A new figure with a legend line and one panel per measure."""
    pitch = float(np.clip(4.6 / groups, 0.17, 0.30))
    left = 0.06 + row_label_width(names, notes, size, "layers")
    # The gap has room for half a tick label on either side.
    upper, bottom, gap = 0.32 + (0.26 if title else 0.0), 0.48, 0.26
    panel = max((TEXT_WIDTH - left - 0.1) / 3 - gap, 1.1)
    figure = Figure(left + 3 * (panel + gap), upper + pitch * groups + bottom)
    width, height = figure.get_size_inches()
    figure.text(0.06 / width, 0.06 / height, _LEGEND, fontsize=SMALL - 0.5, color=MUTED, va="bottom")
    place_title(figure, title)
    return figure, [figure.panel(left + i * (panel + gap), upper, panel, pitch * groups) for i in range(3)]


def _draw_spread(
    axes: Axes, values: npt.NDArray[np.float64], row: int, colour: tuple[float, float, float, float]
) -> None:
    """The layers of one group as dots, and their quantiles over them."""
    if not values.size:
        return
    low, first, median, third, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    # Golden-ratio steps spread the dots evenly, and the same way each time; the more there are, the fainter each is.
    spread = (np.arange(values.size) * 0.6180339887 % 1.0 - 0.5) * 0.62
    faint = float(np.clip(9.0 / np.sqrt(values.size), 0.15, 0.45))
    axes.plot(values, row + spread, ".", color=colour, markersize=3.2, markeredgewidth=0, alpha=faint, zorder=2)
    axes.hlines(row, low, high, color=colour, linewidth=0.9, zorder=3)
    axes.hlines(row, first, third, color=colour, linewidth=4.2, zorder=4)
    axes.plot(median, row, "o", color="white", markersize=3.4, markeredgecolor=colour, markeredgewidth=0.8, zorder=5)


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
