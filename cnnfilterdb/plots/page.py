"""The page of a figure: a figure that needs no display, its title, and the caption that says what was drawn.

Nothing here uses pyplot, so no backend is selected and no global registry keeps figures alive.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.figure import FigureBase
from matplotlib.text import Text

from cnnfilterdb.plots.look import caption_given, look
from cnnfilterdb.plots.style import (
    BAR_AT,
    BAR_WIDE,
    INK,
    MUTED,
    bare,
    fitted,
    label_text,
    panel_of,
    root_figure,
    row_label_width,
    text_width,
)

__all__ = ["Figure", "ImageRows", "image_rows_page", "place_title", "say_named", "to_png"]

#: Width of the narrowest page that has a caption, in inches.
_NARROWEST = 3.25

#: Room between rows of images that stand beside each other, in inches.
_BETWEEN = 0.14

#: What the formats of files call a caption.
_KEYS = {"png": "Description", "svg": "Description", "svgz": "Description", "pdf": "Subject"}


class Figure(MatplotlibFigure):
    """A matplotlib figure that is independent of pyplot and still shows itself in a notebook.

    A caption is written below what is drawn, in the look of a screen; in that of a paper it belongs into the text, and
    is an attribute only. Files contain it as metadata.

    Args:
        width: Width in inches.
        height: Height in inches, without the caption.

    Attributes:
        caption: What was drawn; empty if unknown.
        foot: Height of the caption below, in inches.
    """

    def __init__(self, width: float, height: float) -> None:
        self.caption = caption_given()
        captioned = bool(self.caption) and look().captions
        width = max(width, _NARROWEST) if captioned else width
        # Hinting makes small text up to a twentieth wider on a screen than it is in print.
        lines = _wrapped(self.caption, look().small, 0.95 * (width - 0.12)) if captioned else []
        line = 1.36 * look().small / 72
        self.foot = 0.10 + line * len(lines) if lines else 0.0
        super().__init__(figsize=(width, height + self.foot), facecolor="white")
        FigureCanvasAgg(self)
        for number, text in enumerate(lines):
            self.write(text, 0.06, 0.05 + line * (len(lines) - 1 - number) - self.foot, color=MUTED)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add a panel at a place of the page.

        Args:
            left: From the left edge of the page to the panel, in inches.
            top: From the top edge of the page to the panel, in inches.
            width: Width of the panel, in inches.
            height: Height of the panel, in inches.
        """
        page_width, page_height = (float(inches) for inches in self.get_size_inches())
        return self.add_axes(
            (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
        )

    def write(self, text: str, left: float, up: float, **properties: Any) -> Text:
        """Write a line.

        Args:
            text: The line.
            left: From the left edge of the page, in inches.
            up: From the caption up to the line, in inches.
            **properties: Those of matplotlib's texts; by default the line is small and starts at the place.
        """
        page_width, page_height = (float(inches) for inches in self.get_size_inches())
        given: dict[str, Any] = {
            "va": "bottom",
            "fontsize": look().small,
            "color": MUTED,
            "parse_math": False,
        } | properties
        return self.text(left / page_width, (self.foot + up) / page_height, text, **given)

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save the figure, as matplotlib does, with its caption in the metadata of the formats that have any."""
        suffix = Path(fname).suffix[1:] if isinstance(fname, str | Path) else ""
        key = _KEYS.get(str(options.get("format") or suffix or "png").lower())
        if key and self.caption:
            options["metadata"] = {key: self.caption} | (options.get("metadata") or {})
        super().savefig(fname, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return to_png(self), {"width": round(96 * width), "height": round(96 * height)}


def _wrapped(text: str, size: float, room: float) -> list[str]:
    """The lines of a text that is so many inches wide; words that are wider are shortened."""
    lines: list[str] = []
    for word in label_text(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= room:
            lines[-1] = joined
        else:
            lines.append(fitted(word, size, room))
    return lines


def to_png(figure: MatplotlibFigure, *, dpi: float = 192.0) -> bytes:
    """Draw a figure as PNG: equal bytes for equal figures.

    Args:
        figure: What to draw.
        dpi: Pixels per inch; the default is twice the density of a common screen.

    Returns:
        The file's content.
    """
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    return target.getvalue()


def place_title(figure: MatplotlibFigure, title: str | None, subtitle: str | None = None) -> None:
    """Write a title at the top left of a figure, and a smaller line under it.

    Text too long for the figure is shortened: the title in its middle, the subtitle after its first words, because
    the last part of the name of a layer says most.

    Args:
        figure: The figure.
        title: The title.
        subtitle: The line under it.
    """
    width, height = (float(inches) for inches in figure.get_size_inches())
    top = 0.07
    for text, size, head, colour in ((title, look().title, None, INK), (subtitle, look().small, 12, MUTED)):
        if text:
            line = fitted(label_text(text), size, 0.99 * width - 0.12, head)
            figure.text(0.06 / width, 1 - top / height, line, va="top", fontsize=size, color=colour, parse_math=False)
            top += 0.17


def say_named(figure: Figure, step: int) -> str:
    """Write at the bottom left of a figure that not all of its rows are named; the text, empty if all are."""
    text = f"one name in {step} is shown" if step > 1 else ""
    if text:
        figure.write(text, 0.06, 0.06)
    return text


@dataclass(frozen=True, slots=True)
class ImageRows:
    """A page for rows of small images.

    Attributes:
        figure: The figure.
        panels: Panels side by side, each with so many rows, the last with the rest.
        rows: Rows of a panel.
        bar: Panel of the colour bar, which only a new page has.
    """

    figure: MatplotlibFigure
    panels: Sequence[Axes]
    rows: int
    bar: Axes | None

    def place(self, row: int) -> tuple[Axes, int]:
        """The panel of a row, and its number there."""
        return self.panels[row // self.rows], row % self.rows


def image_rows_page(
    names: Sequence[str],
    width: float,
    pitch: float,
    *,
    bar: float,
    room: float,
    title: str | None,
    ax: Axes | FigureBase | None,
) -> ImageRows:
    """A page for rows of small images with column labels above them and a colour bar at their right.

    Rows that do not fit below each other are continued beside them.

    Args:
        names: Names of the rows.
        width: Width of a row of images, in inches.
        pitch: Height of a row, in inches.
        bar: Height of the colour bar, in inches.
        room: Room for it and its labels, in inches.
        title: Title of the figure.
        ax: What to draw on; None for a new page.
    """
    if ax is not None:
        images = panel_of(ax, title)
        bare(images)
        return ImageRows(root_figure(images), [images], len(names), None)
    left, upper = 0.06 + row_label_width(names, [], look().body), 0.28 + (0.26 if title else 0.0)
    block, height = left + width, pitch * len(names)
    blocks = 1 if height <= look().tallest else math.ceil(math.sqrt(height / (block + _BETWEEN)))
    rows = math.ceil(len(names) / blocks)
    blocks = math.ceil(len(names) / rows)
    wide = blocks * block + (blocks - 1) * _BETWEEN
    figure = Figure(wide + room, upper + max(pitch * rows, bar) + 0.08)
    place_title(figure, title)
    panels = []
    for number in range(blocks):
        there = min(rows, len(names) - number * rows)
        panels.append(figure.panel(number * (block + _BETWEEN) + left, upper, width, pitch * there))
        bare(panels[-1])
    return ImageRows(figure, panels, rows, figure.panel(wide + BAR_AT, upper, BAR_WIDE, bar))
