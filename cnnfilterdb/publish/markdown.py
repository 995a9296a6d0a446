"""Markdown of whatever text: shown as it is, in tables too, and never taken for markup or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import pandas as pd

__all__ = ["code", "line", "link", "table", "text"]


def line(value: object) -> str:
    r"""A single value on one line, without what cannot be printed; nothing for None and NaN.

    >>> line(" a\nb\x00 ")
    'a b'
    """
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


# A backslash becomes an entity: then every other one is an escape, on which parsers of tables agree.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&#92;", **{mark: f"\\{mark}" for mark in "`*_[]|~$"}}
)


def text(value: object) -> str:
    r"""Any value as Markdown that shows it as it is, on one line, in a table or outside of one; nothing for None.

    >>> text("a|b *c*\n<d>"), text(None), text(float("nan"))
    ('a\\|b \\*c\\* &lt;d&gt;', '', '')
    """
    return line(value).translate(_ESCAPES)


def code(value: object) -> str:
    r"""Any value as Markdown in the type of code.

    >>> code("pypi/a_b"), code("a`b")
    ('`pypi/a_b`', '<code>a\\`b</code>')
    """
    shown = line(value)
    if not shown or re.search(r"[`|\\]", shown):
        return shown and f"<code>{text(shown)}</code>"
    return f"`{shown}`"


def link(address: str, shown: str | None = None) -> str:
    """A link to an address of the web, or the text itself where it is none.

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
    """A table of Markdown.

    Args:
        headings: Headings of the columns; one that begins with ``>`` is of numbers, which stand on the right.
        rows: Cells, which are Markdown already.
    """
    names = [heading.removeprefix(">") for heading in headings]
    marks = ["--:" if heading.startswith(">") else ":--" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, marks, *rows])
