"""What the figures share: colours, sizes, labels, colour bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, NullFormatter

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import look

__all__ = [
    "BAR_AT",
    "BAR_WIDE",
    "CURVES",
    "DIVERGING",
    "INK",
    "LABEL_WIDTH",
    "MUTED",
    "RULE",
    "SEQUENTIAL",
    "bar_room",
    "bare",
    "colour_bar",
    "colour_map",
    "column_labels",
    "compact",
    "contrast",
    "distinct_labels",
    "draw_boxes",
    "finite_array",
    "fitted",
    "height_of",
    "is_unknown",
    "label_text",
    "logarithmic",
    "named_rows",
    "panel_of",
    "ramp",
    "root_figure",
    "root_ticks",
    "row_label_width",
    "row_labels",
    "shorten",
    "signed_number",
    "split",
    "text_width",
]

#: Colours of text, of secondary text, and of hairlines.
INK = "#1b1f24"
MUTED = "#6a7079"
RULE = "#d5d8dd"

#: Colour maps. The first runs evenly from dark to bright, the second is symmetric about white, and the third is cut
#: before it gets too pale for a curve on white. All three remain ordered for the common kinds of colour blindness.
SEQUENTIAL = "inferno"
DIVERGING = "RdBu_r"
CURVES = "viridis"

#: Longest label, in characters; longer ones lose their middle.
LABEL_WIDTH = 35

#: The gap between a panel and its colour bar, and the width of the bar, in inches.
BAR_AT, BAR_WIDE = 0.14, 0.09

_ELLIPSIS = "…"

#: Room between a panel, the notes and the names of its rows, in inches.
_GAP = 5.0 / 72.0


def is_unknown(value: object) -> bool:
    """Whether a value of a frame is missing: None, NaN, NaT or NA."""
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def label_text(value: object) -> str:
    r"""Format the name of a group, which may be any value, as one line of printable text.

    >>> [label_text(value) for value in ("faces", None, 0.5, 3.0, ("thermal", "Detection"), "two\nlines")]
    ['faces', 'unknown', '0.5', '3', 'thermal · Detection', 'two lines']
    """
    if isinstance(value, tuple):
        return " · ".join(label_text(part) for part in value)
    if is_unknown(value):
        return "unknown"
    if isinstance(value, float):
        return f"{value:g}"
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return " ".join(text.split()) or "(empty)"


def shorten(text: str, width: int = LABEL_WIDTH, *, head: int | None = None) -> str:
    """Cut a long text in its middle, where names differ least.

    Args:
        text: Any text.
        width: Longest result, in characters, at least 1.
        head: How many characters to keep before the cut; half of them without it.

    Returns:
        The text itself where it is short enough.

    >>> shorten("compnet_weights_axial_improvement_08_NITRC", 20)
    'compnet_we…_08_NITRC'
    """
    if len(text) <= width:
        return text
    kept = width - 1
    head = (kept + 1) // 2 if head is None else min(head, kept)
    return text[:head] + _ELLIPSIS + text[len(text) - (kept - head) :]


def distinct_labels(values: Iterable[object], width: int = LABEL_WIDTH) -> list[str]:
    """Format the names of groups so that each fits and no two long ones look alike.

    The cut of :func:`shorten` is moved away from the middle where that makes names distinct; names that are still equal
    are numbered.

    Args:
        values: Names of groups.
        width: Longest label, in characters.

    Returns:
        One label per value, in the same order.

    >>> distinct_labels(["model_of_type_a_trained_long", "model_of_type_b_trained_long"], 17)
    ['mo…a_trained_long', 'mo…b_trained_long']
    """
    texts = [label_text(value) for value in values]
    wanted = len(set(texts))
    half = width // 2
    for head in sorted(range(width), key=lambda head: (abs(head - half), head)):
        labels = [shorten(text, width, head=head) for text in texts]
        if len(set(labels)) == wanted:
            return labels
    labels, seen = [], dict[str, int]()
    for text in texts:
        label = shorten(text, width)
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            number = f" ({seen[label]})"
            label = shorten(text, width - len(number)) + number
        labels.append(label)
    return labels


def compact(count: float) -> str:
    """Format a count with three significant digits.

    >>> [compact(count) for count in (0, 999, 12_900, 999_999, 1_464_797_156)]
    ['0', '999', '12.9 k', '1 M', '1.46 B']
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g} {unit}"
    return f"{count:.0f}"


@cache
def colour_map(name: str) -> Colormap:
    """A colour map of matplotlib, which would otherwise be copied each time."""
    return matplotlib.colormaps[name]


def text_width(text: str, size: float) -> float:
    """Width of a line of text in inches, in the font that figures use by default.

    Args:
        text: One line; dollar signs are literal.
        size: Font size in points.
    """
    # Hinting to whole pixels makes a drawn line a little longer than its outlines.
    return 1.03 * size * _width_of(text) / 72.0


@lru_cache(8192)
def _width_of(text: str) -> float:
    """Width of a line of text of one point."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=10.0), ismath=False)
    return float(width) / 10.0


def contrast(colour: tuple[float, float, float, float] | str) -> str:
    """Black or white, whichever reads better on a colour, by the contrast ratio of WCAG 2.

    >>> contrast("yellow"), contrast("navy")
    ('black', 'white')
    """
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def ramp(count: int) -> list[tuple[float, float, float, float]]:
    """Colours of a series of groups, evenly spaced and dark enough for a white page.

    Args:
        count: Number of groups.

    Returns:
        One (red, green, blue, alpha) per group.
    """
    positions = np.linspace(0.12, 0.80, count) if count > 1 else np.array([0.35])
    return [(red, green, blue, alpha) for red, green, blue, alpha in colour_map(CURVES)(positions).tolist()]


def fitted(text: str, size: float, room: float, head: int | None = None) -> str:
    """A line shortened to fit into so many inches."""
    line = text
    while len(line) > 1 and text_width(line, size) > room:
        line = shorten(text, min(len(line) - 1, int(len(line) * room / text_width(line, size)) + 1), head=head)
    return line


def colour_bar(
    bar: Axes,
    image: ScalarMappable,
    *,
    label: str | None = None,
    ticks: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    extend: Literal["neither", "both", "min", "max"] = "neither",
) -> None:
    """Draw the colour scale of an image.

    Args:
        bar: The panel it fills.
        image: The image.
        label: What the values are, in as many lines as the height of the panel requires.
        ticks: Values to label; without it, about four.
        names: Their labels; without it, the values themselves.
        extend: Which ends of the scale also include values beyond it.
    """
    figure = bar.get_figure(root=True)
    assert figure is not None
    artist = figure.colorbar(image, cax=bar, ticks=ticks, extend=extend)
    artist.outline.set_visible(False)
    if label:
        artist.set_label("\n".join(_bar_lines(label, height_of(bar))), fontsize=look().body, color=INK, linespacing=1.1)
    if ticks is None and bar.get_yscale() == "linear":
        bar.locator_params(axis="y", nbins=5)
    elif ticks is not None:
        artist.set_ticks(list(ticks), labels=names or [signed_number(tick) for tick in ticks])
    artist.minorticks_off()
    bar.tick_params(labelsize=look().small, length=2, color=RULE, labelcolor=INK)


def bar_room(label: str, names: Sequence[str], height: float) -> float:
    """Room in inches that a colour bar of so many inches needs at the right of a panel.

    Args:
        label: What the values are.
        names: The labels of its ticks.
        height: Its height, in inches.
    """
    ticks = max(text_width(name, look().small) for name in names)
    return BAR_AT + BAR_WIDE + 0.09 + ticks + 0.06 + 1.2 * look().body / 72 * len(_bar_lines(label, height)) + 0.04


def _bar_lines(label: str, height: float) -> list[str]:
    """The lines of the label of a colour bar: as few as fit beside it."""
    words, lines = label.split(), [label]
    for count in range(1, len(words) + 1):
        lines = textwrap.wrap(label, max(len(label) // count + count, *map(len, words)))
        if all(text_width(line, look().body) <= height for line in lines):
            break
    return lines


def signed_number(value: float) -> str:
    """A number with the sign that matplotlib writes."""
    return f"{value:.3g}".replace("-", "−")


def root_ticks(bound: float, height: float, *, signed: bool = False) -> list[float]:
    """Ticks of a colour bar whose colours change with the square root: squares of evenly spaced numbers.

    Args:
        bound: The largest value.
        height: Height of the bar, in inches.
        signed: Whether it goes from minus to plus that value.

    >>> root_ticks(12.0, 1.4), [round(tick, 4) for tick in root_ticks(0.4, 1.4, signed=True)]
    ([0.0, 1.0, 4.0, 9.0], [-0.36, -0.16, -0.04, 0.0, 0.04, 0.16, 0.36])
    """
    root = math.sqrt(bound)
    most = min(4.5, max(1.0, height / (2 if signed else 1) / (1.5 * look().small / 72)))
    power = 10.0 ** math.floor(math.log10(root / most))
    step = next(nice * power for nice in (1, 2, 5, 10) if root / (nice * power) <= most * (1 + 1e-9))
    ticks = [(number * step) ** 2 for number in range(int(root / step * (1 + 1e-9)) + 1)]
    return [-tick for tick in ticks[:0:-1]] + ticks if signed else ticks


def root_figure(axes: Axes) -> MatplotlibFigure:
    """The figure that a panel belongs to, however deep."""
    figure = axes.get_figure(root=True) if hasattr(axes.figure, "subfigs") else axes.figure
    assert isinstance(figure, MatplotlibFigure)
    return figure


def panel_of(ax: Axes | FigureBase, title: str | None) -> Axes:
    """The panel to draw on, where a user gives one or a whole figure or part of one, with its title."""
    axes = ax if isinstance(ax, Axes) else ax.add_subplot()
    if title:
        axes.set_title(title, fontsize=look().title, color=INK, loc="left", parse_math=False)
    return axes


def height_of(axes: Axes) -> float:
    """Height of a panel, in inches."""
    return float(axes.get_position().height * root_figure(axes).get_size_inches()[1])


def split(axes: Axes, columns: int, rows: int = 1, *, gap: float = 0.1, down: float = 0.3) -> list[Axes]:
    """Replace a panel by a grid of panels in its area.

    Args:
        axes: The panel, which keeps its title only.
        columns: Panels side by side.
        rows: Panels one below the other.
        gap: Room between two columns, in widths of a panel.
        down: Room between two rows, in heights of a panel.

    Returns:
        The panels row by row.
    """
    axes.set_axis_off()
    width, height = 1 / (columns + gap * (columns - 1)), 1 / (rows + down * (rows - 1))
    return [
        axes.inset_axes((column * width * (1 + gap), 1 - height - row * height * (1 + down), width, height))
        for row in range(rows)
        for column in range(columns)
    ]


def bare(axes: Axes, *, keep: Sequence[str] = ()) -> None:
    """Remove the frame and the tick marks of a panel, except on the named sides.

    All colours are set explicitly, so that a user's dark style sheet does not produce white text on white.
    """
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(RULE)
        spine.set_linewidth(0.6)
    axes.tick_params(which="both", length=0, labelsize=look().small, labelcolor=INK, color=RULE, width=0.6)
    axes.grid(False)


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """Make the horizontal axis of a panel logarithmic, with ticks at plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)


def named_rows(pitch: float, size: float) -> int:
    """Of how many rows one is named, so that names do not touch.

    Args:
        pitch: Distance of two rows, in inches.
        size: Size of the names, in points.

    >>> named_rows(0.2, 7.5), named_rows(0.04, 6.5)
    (1, 3)
    """
    return max(1, math.ceil(1.15 * size / 72.0 / pitch - 1e-9))


def row_labels(
    axes: Axes,
    rows: Sequence[float],
    labels: Sequence[str],
    notes: Sequence[str],
    size: float,
    *,
    heading: str = "",
    step: int = 1,
) -> None:
    """Write the names of rows at the left of a panel, and a small grey note behind each.

    Args:
        axes: The panel.
        rows: Vertical position of each row, in data units.
        labels: Names, which become the tick labels.
        notes: One note per row, or none at all.
        size: Font size of the names in points.
        heading: Heading above the notes.
        step: Name only one row in so many, as :func:`named_rows` gives it.
    """
    rows, labels, notes = rows[::step], labels[::step], notes[::step]
    notes_width = _notes_width(notes, size, heading)
    small = size - 1.0
    pad = _GAP + (notes_width + _GAP if notes_width else 0.0)
    axes.set_yticks(list(rows), labels=list(labels), fontsize=size, color=INK, parse_math=False)
    axes.tick_params(axis="y", pad=72.0 * pad, length=0)
    for row, note in zip(rows, notes, strict=False):
        axes.annotate(
            note,
            (0.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(-72.0 * _GAP, 0.0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            fontsize=small,
            color=MUTED,
            annotation_clip=False,
            parse_math=False,
        )
    if notes and heading:
        axes.annotate(
            heading,
            (0.0, 1.0),
            xycoords="axes fraction",
            xytext=(-72.0 * _GAP, 3.0),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=small,
            color=MUTED,
            annotation_clip=False,
        )


def row_label_width(labels: Sequence[str], notes: Sequence[str], size: float, heading: str = "") -> float:
    """Width in inches that :func:`row_labels` needs at the left of a panel."""
    note_width = _notes_width(notes, size, heading)
    return max(text_width(label, size) for label in labels) + note_width + (2 if note_width else 1) * _GAP


def column_labels(axes: Axes, columns: Sequence[float], labels: Sequence[str], size: float) -> None:
    """Write the names of columns above a panel.

    Args:
        axes: The panel.
        columns: Horizontal position of each column, in data units.
        labels: Names, which become the tick labels.
        size: Font size in points.
    """
    axes.xaxis.tick_top()
    axes.set_xticks(list(columns), labels=list(labels), fontsize=size, color=INK)
    axes.tick_params(axis="x", length=0, pad=2)


def draw_boxes(
    axes: Axes,
    rows: Sequence[float],
    groups: Sequence[npt.NDArray[np.float64]],
    colours: Sequence[str | tuple[float, float, float, float]],
) -> None:
    """Draw a box per row: a bar over the middle half, a line from 5 % to 95 %, and a white dot at the median.

    Args:
        axes: The panel.
        rows: Vertical positions, in data units.
        groups: The values of each row; a row without any stays empty.
        colours: Colour of each row.
    """
    there = [place for place, values in enumerate(groups) if values.size]
    if not there:
        return
    at = np.array([rows[place] for place in there])
    inks = [colours[place] for place in there]
    low, first, median, third, high = np.array(
        [np.quantile(groups[place], (0.05, 0.25, 0.5, 0.75, 0.95)) for place in there]
    ).T
    # Narrow rows have thin boxes.
    thick = float(np.clip(40.0 * height_of(axes) / max(abs(np.subtract(*axes.get_ylim())), 1.0), 1.0, 4.2))
    axes.hlines(at, low, high, color=inks, linewidth=min(0.9, 0.4 * thick), zorder=3)
    axes.hlines(at, first, third, color=inks, linewidth=thick, zorder=4)
    axes.scatter(
        median, at, s=(0.8 * thick) ** 2, facecolors="white", edgecolors=inks, linewidths=0.2 * thick, zorder=5
    )


def _notes_width(notes: Sequence[str], size: float, heading: str) -> float:
    return max((text_width(note, size - 1.0) for note in [*notes, heading]), default=0.0) if notes else 0.0


def finite_array(values: Any, name: str, dimensions: int) -> npt.NDArray[np.float64]:
    """Take an argument as an array of finite numbers.

    Raises:
        SelectionError: Empty, of another number of dimensions, or with NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions:
        raise SelectionError(f"{name}: expected {dimensions} dimensions, found an array of shape {array.shape}")
    if array.size == 0:
        raise SelectionError(f"{name}: nothing to draw, found an array of shape {array.shape}; widen the selection")
    if not np.isfinite(array).all():
        raise SelectionError(f"{name}: expected finite numbers, found NaN or infinity; leave those rows out")
    return array
