"""Looks of figures: how large text is and how wide a page, on a screen and in a paper."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from cnnfilterdb.core.errors import SelectionError

__all__ = ["LOOKS", "Look", "StyleName", "caption_given", "look", "styled"]

P = ParamSpec("P")
T = TypeVar("T")

StyleName = Literal["paper", "screen"]


@dataclass(frozen=True, slots=True)
class Look:
    """Sizes of a figure.

    Attributes:
        title: Size of titles, in points.
        body: Size of names and axis labels, in points.
        small: Size of numbers and notes, in points.
        column: Width of a figure of one panel, in inches, unless its groups need more.
        page: Width of a figure of several panels, in inches, unless its groups need more.
        tallest: Height in inches above which rows are narrowed and only some of them named.
        short_numbers: Whether values below 1 lose the zero before the point.
        notes: Whether a heat map, whose cells are square, has the sizes of groups beside their names.
        captions: Whether captions are part of the picture.
    """

    title: float
    body: float
    small: float
    column: float
    page: float
    tallest: float
    short_numbers: bool
    notes: bool
    captions: bool


#: ``screen`` is legible in a browser. ``paper`` has the widths of the CVPR paper's column and text block (8.25 cm and
#: 17.46 cm), text that stays at least 5 points high when it is printed, and numbers as the papers write them.
LOOKS: dict[StyleName, Look] = {
    "screen": Look(
        title=9.0,
        body=7.5,
        small=6.5,
        column=7.16,
        page=7.16,
        tallest=16.0,
        short_numbers=False,
        notes=True,
        captions=True,
    ),
    "paper": Look(
        title=7.5,
        body=6.5,
        small=5.5,
        column=3.25,
        page=6.875,
        tallest=8.8,
        short_numbers=True,
        notes=False,
        captions=False,
    ),
}

_current: ContextVar[Look] = ContextVar("look", default=LOOKS["screen"])
_caption: ContextVar[str] = ContextVar("caption", default="")


def look() -> Look:
    """The look of the figure that this thread is drawing."""
    return _current.get()


def caption_given() -> str:
    """The caption of the figure that this thread is drawing; empty for none."""
    return _caption.get()


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Let a function that draws, which has the arguments ``style`` and ``caption``, draw in that look and with it."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> T:
        name: Any = options.get("style", "screen")
        if name not in LOOKS:
            raise SelectionError(f"style: {name!r} given; expected {' or '.join(map(repr, LOOKS))}")
        caption: Any = options.get("caption")
        token, caption_token = _current.set(LOOKS[name]), _caption.set(caption or "")
        try:
            return draw(*args, **options)
        finally:
            _current.reset(token)
            _caption.reset(caption_token)

    return drawn
