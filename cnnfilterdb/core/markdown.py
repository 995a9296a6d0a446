"""Markdown for arbitrary text: shown literally, in tables too, never interpreted as markup or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import pandas as pd

from cnnfilterdb.core.reports import printable

__all__ = ["code", "line", "link", "table", "text"]


def line(value: object) -> str:
    r"""A single value on one line, without unprintable characters; empty for None and NaN.

    >>> line(" a\nb\x00 ")
    'a b'
    """
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return printable(value)


# A backslash becomes an entity, so every other one is an escape; parsers of tables agree on that.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&#92;", **{mark: f"\\{mark}" for mark in "`*_[]|~$"}}
)


def text(value: object) -> str:
    r"""Any value as Markdown that shows it literally, on one line, inside or outside a table; empty for None.

    >>> text("a|b *c*\n<d>"), text(None), text(float("nan"))
    ('a\\|b \\*c\\* &lt;d&gt;', '', '')
    """
    return line(value).translate(_ESCAPES)


def code(value: object) -> str:
    r"""Any value as inline code.

    >>> code("pypi/a_b"), code("a`b")
    ('`pypi/a_b`', '<code>a\\`b</code>')
    """
    shown = line(value)
    if not shown or re.search(r"[`|\\]", shown):
        return shown and f"<code>{text(shown)}</code>"
    return f"`{shown}`"


def link(address: str, shown: str | None = None) -> str:
    """A link to a web address, or the text itself if it is not one.

    >>> link("https://example.org/a b"), link("javascript:alert(1)")
    ('[example.org/a b](<https://example.org/a%20b>)', 'javascript:alert(1)')
    """
    address = line(address)
    if not re.match(r"https?://[^/\s]", address):
        return text(shown or address)
    short = shown or re.sub(r"^https?://(www\.)?", "", address).rstrip("/")
    short = short if len(short) <= 50 else f"{short[:24]}...{short[-23:]}"
    target = quote(address, safe=":/?#[]@!$&'()*+,;=%~").replace("&", "&amp;")
    return f"[{text(short)}](<{target}>)"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        headings: Column headings; ``>`` in front of one aligns its column to the right.
        rows: Cells, already in Markdown.
    """
    names = [heading.removeprefix(">") for heading in headings]
    marks = ["--:" if heading.startswith(">") else ":--" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, marks, *rows])
