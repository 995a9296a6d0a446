"""Tables for people: aligned text that fits the terminal and never sends it control characters."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from cnnfilterdb.core.reports import escaped

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Column", "columns_of", "number_column", "table_text"]

#: A text column is not shortened below this many characters.
_NARROWEST = 12

#: Values of a list that a cell shows on a terminal.
_LISTED = 3


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        cells: One text per row.
        right: Whether its cells are aligned to the right, as numbers are.
    """

    title: str
    cells: list[str]
    right: bool = False

    @property
    def width(self) -> int:
        """Width of the column on a terminal, in characters."""
        return max([_width(self.title), *map(_width, self.cells)])


def columns_of(table: pa.Table, *, short: bool, missing: Mapping[str, str] | None = None) -> list[Column]:
    """The columns of a table as text.

    Args:
        table: Any table.
        short: Show only the first values of lists, followed by the number of values.
        missing: Texts for NULL, by column.
    """
    from pyarrow import types

    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        kind = column.type
        if types.is_floating(kind) or types.is_decimal(kind):
            columns.append(number_column(escaped(name), values))
        elif types.is_integer(kind):
            texts = ["" if value is None else f"{value:,}" for value in values]
            columns.append(Column(escaped(name), texts, right=True))
        else:
            absent = (missing or {}).get(name, "")
            cells = [absent if value is None else _cell(value, short) for value in values]
            columns.append(Column(escaped(name), cells))
    return columns


def number_column(title: str, values: Sequence[Any], decimals: int | None = None) -> Column:
    """A column of numbers that all have the same number of decimals, so that they align.

    Args:
        title: Its heading.
        values: Numbers; None and NaN give an empty cell.
        decimals: Number of decimals; by default enough for the smallest value.
    """
    known = [None if value is None or value != value else value for value in values]
    finite = [abs(float(value)) for value in known if value is not None and math.isfinite(value)]
    if decimals is None:
        decimals = _decimals(finite)
    spelled = ".3e" if decimals > 6 else f",.{decimals}f"
    return Column(title, ["" if value is None else format(value, spelled) for value in known], right=True)


def _decimals(values: Sequence[float]) -> int:
    """Decimals that show two digits of the smallest value, 3 at least; 0 for whole numbers, 7 where 6 are too few."""
    if all(value == int(value) for value in values):
        return 0
    if max(values) < 1e-4:
        return 7
    smallest = min(value for value in values if value > 0)
    return min(max(3, 1 + math.ceil(-math.log10(smallest))), 6)


def _cell(value: Any, short: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        return f"{value:.4g}" if value != int(value) else f"{value:g}"
    if isinstance(value, dict):
        return "{" + _listed([f"{escaped(str(k))}: {_cell(v, short)}" for k, v in value.items()], short) + "}"
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
            return _cell(dict(value), short)
        return "[" + _listed(value if short else [_cell(one, short) for one in value], short) + "]"
    return escaped(str(value))


def _listed(values: Sequence[Any], short: bool) -> str:
    if not short or len(values) <= _LISTED + 1:
        return ", ".join(value if isinstance(value, str) else _cell(value, short) for value in values)
    shown = ", ".join(value if isinstance(value, str) else _cell(value, short) for value in values[:_LISTED])
    return f"{shown}, … {len(values):,} values"


def table_text(columns: Sequence[Column], width: int | None = None, *, keys: int = 1) -> tuple[str, str]:
    """Lay out columns as plain text.

    Args:
        columns: At least one column, all of the same length.
        width: Characters of a line; longer texts are shortened in their middle, and a table that still does not fit
            is printed in parts that repeat its first columns. None prints lines of any length.
        keys: How many of the first columns each part repeats.

    Returns:
        The table, which ends with a line break, and a remark on what was changed to make it fit ("" for nothing).
    """
    if width is None or _total(columns) <= width:
        return _lines(columns), ""
    fitted = _shortened(columns, width, _NARROWEST)
    if _total(fitted) > width:  # it is split in any case: shorten only what takes a third of a line
        fitted = [_limited(column, max(width // 3, _NARROWEST)) for column in columns]
    remarks = ["texts shortened"] if fitted != list(columns) else []
    parts = _parts(fitted, width, min(keys, len(columns) - 1))
    if len(parts) > 1:
        remarks.append(f"columns split into {len(parts)} parts")
    return "\n".join(_lines(part) for part in parts), " and ".join(remarks) + " to fit the terminal"


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)


def _shortened(columns: Sequence[Column], width: int, narrowest: int) -> list[Column]:
    """Shorten the widest texts until the table fits, or none is left to shorten."""
    chosen = list(columns)
    limits = [column.width for column in chosen]
    while sum(limits) + 2 * (len(chosen) - 1) > width:
        wide = [i for i, column in enumerate(chosen) if not column.right and limits[i] > narrowest]
        if not wide:
            break
        limits[max(wide, key=lambda i: limits[i])] -= 1
    return [_limited(column, limit) for column, limit in zip(chosen, limits, strict=True)]


def _limited(column: Column, limit: int) -> Column:
    """A column with its texts shortened to so many characters; numbers are never shortened."""
    if column.right or column.width <= limit:
        return column
    return replace(column, title=_cut(column.title, limit), cells=[_cut(cell, limit) for cell in column.cells])


def _cut(text: str, width: int) -> str:
    """Shorten a text in its middle."""
    if _width(text) <= width:
        return text
    head = width // 2
    while _width(text) > width and len(text) > 2:
        text = text[:head] + text[head + 1 :]
    return text[: head - 1] + "…" + text[head:]


def _parts(columns: Sequence[Column], width: int, keys: int) -> list[list[Column]]:
    """Split columns into tables that fit, each of which starts with the key columns."""
    lead, rest = list(columns[:keys]), list(columns[keys:])
    parts: list[list[Column]] = []
    while rest:
        count = 1
        while count < len(rest) and _total([*lead, *rest[: count + 1]]) <= width:
            count += 1
        parts.append([*lead, *rest[:count]])
        rest = rest[count:]
    return parts or [lead]


def _lines(columns: Sequence[Column]) -> str:
    widths = [column.width for column in columns]

    def line(texts: Iterable[str]) -> str:
        padded = (
            " " * (width - _width(text)) + text if column.right else text + " " * (width - _width(text))
            for text, width, column in zip(texts, widths, columns, strict=True)
        )
        return "  ".join(padded).rstrip()

    body = [line(row) for row in zip(*(column.cells for column in columns), strict=True)]
    head = [line(column.title for column in columns), line("-" * width for width in widths)]
    return "\n".join([*head, *body]) + "\n"


def _width(text: str) -> int:
    """Width of a text on a terminal: ideographs take two columns, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
