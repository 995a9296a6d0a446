"""What a verb prints or writes at its end: rows in every format, without loss, and the outcome of an ingest."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from cnnfilterdb.cli.tables import Column, columns_of, number_column, table_text
from cnnfilterdb.core.durable import replacing
from cnnfilterdb.core.reports import escaped

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from cnnfilterdb.analysis.shifts import ShiftMatrix
    from cnnfilterdb.core.reports import IngestReport

__all__ = [
    "FORMATS",
    "QUIET",
    "Output",
    "emit",
    "encoded",
    "event",
    "is_quiet",
    "log_as",
    "logs_json",
    "on_terminal",
    "print_basis",
    "print_shift",
    "print_summary",
    "remark",
    "say",
    "warn",
]

#: Formats of rows, with the suffixes of files that select them.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "table": (".txt",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "json": (".json",),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
}

#: Where the context of a command keeps --quiet.
QUIET = "cnnfilterdb.quiet"

#: Words at the beginning of a message that state its level.
_LEVELS = ("error", "warning", "failed")

_log_format = "text"

#: Rows that a table on a terminal shows unless --rows asks for more.
_ROWS = 40


@dataclass(frozen=True, slots=True)
class Output:
    """How a verb prints its rows: the options ``--format``, ``--output`` and ``--rows``.

    Attributes:
        style: Name of a format; None for the one that the suffix of ``output`` selects, or a table.
        output: The file to write; None prints.
        limit: Rows that a table shows; 0 for all; None for all in a file or pipe, and a screenful on a terminal.
    """

    style: str | None = None
    output: Path | None = None
    limit: int | None = None

    def chosen(self) -> str:
        """The format.

        Raises:
            click.UsageError: A suffix that selects none.
        """
        if self.style is not None:
            return self.style
        if self.output is None:
            return "table"
        for style, suffixes in FORMATS.items():
            if self.output.suffix.lower() in suffixes:
                return style
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise click.UsageError(
            f"{self.output}: the suffix {self.output.suffix or '(none)'!r} selects no format; "
            f"expected one of {known}, or give --format"
        )

    def for_people(self) -> bool:
        """Whether the rows are printed as a table rather than written for a program."""
        return self.chosen() == "table" and self.output is None

    def most(self) -> int:
        """Rows that are printed at most; 0 for all."""
        if not self.for_people():
            return 0
        return (_ROWS if on_terminal() else 0) if self.limit is None else self.limit


def emit(
    rows: pd.DataFrame | pa.Table | pa.RecordBatchReader,
    how: Output,
    *,
    missing: Mapping[str, str] | None = None,
    total: int | None = None,
) -> None:
    """Print rows, or write them to a file.

    Args:
        rows: A table, or a stream, which is written batch by batch; the index of a frame is not written.
        how: Format and place.
        missing: What a table shows for NULL, by column; in every other format NULL stays NULL.
        total: How many rows there are, if these are only the first.
    """
    import pyarrow as pa

    from cnnfilterdb.core.rows import BINARY

    style = how.chosen()
    if isinstance(rows, pa.RecordBatchReader) and style == "table":
        rows = rows.read_all()  # the width of a column is that of its widest cell
    if style == "table" and how.output is None:
        table = _table_of(rows)
        _print_table(table, how.most(), missing or {}, table.num_rows if total is None else total)
        return
    if how.output is None and on_terminal() and style in BINARY:
        raise click.UsageError(f"{style} is binary: add -o FILE or redirect standard output")
    if how.output is None:
        _write(rows, style, cast("BinaryIO", _Printed(binary=style in BINARY)))
        return
    with replacing(how.output) as part, part.open("wb") as file:
        _write(rows, style, file)


def _table_of(rows: pd.DataFrame | pa.Table) -> pa.Table:
    import pyarrow as pa

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    return table.replace_schema_metadata(None)


def _write(rows: pd.DataFrame | pa.Table | pa.RecordBatchReader, style: str, target: BinaryIO) -> None:
    import pyarrow as pa

    from cnnfilterdb.core.rows import write

    if style == "table":
        target.write(str(encoded(_table_of(rows), style)).encode())
    else:
        write(rows if isinstance(rows, pa.RecordBatchReader) else _table_of(rows).to_reader(), style, target)


class _Printed(io.RawIOBase):
    """Standard output, which shows no control characters on a terminal.

    Args:
        binary: What is written is no text; else each piece is, and ends with a whole character.
    """

    def __init__(self, *, binary: bool) -> None:
        super().__init__()
        self._binary = binary

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Print bytes."""
        content = bytes(data)
        if self._binary:
            click.echo(content, nl=False)
        else:
            text = content.decode()
            click.echo(escaped(text, keep="\n\t") if on_terminal() else text, nl=False)
        return len(content)


def encoded(table: pa.Table, style: str) -> str | bytes:
    """A table in one of :data:`FORMATS`; every value is complete."""
    if style == "table":
        return table_text(columns_of(table, short=False))[0] if table.num_columns else ""
    from cnnfilterdb.core import rows

    return rows.encoded(table, style)


def _print_table(table: pa.Table, shown: int, missing: Mapping[str, str], total: int) -> None:
    terminal = on_terminal()
    if not table.num_columns:
        return
    part = table.slice(0, shown) if shown else table
    width = shutil.get_terminal_size().columns if terminal else None
    text, change = table_text(columns_of(part, short=terminal, missing=missing), width)
    click.echo(text, nl=False)
    rest = total - part.num_rows
    remarks = [f"{rest:,} more rows; --rows 0 prints all"] if rest else []
    if change:
        remarks.append(f"{change}; -o FILE writes everything")
    if remarks:
        click.echo("; ".join(remarks))


def print_shift(matrix: ShiftMatrix, name: str, *, limit: int | None = None) -> None:
    """Print the matrix with the sizes of its groups, and below it how it was computed.

    Args:
        matrix: From :meth:`Reader.shift_matrix`.
        name: What the groups are called.
        limit: As in :class:`Output`.
    """
    sizes = matrix.attrs["groups"]
    terminal = on_terminal()
    shown = (_ROWS if terminal else 0) if limit is None else limit
    labels = matrix.labels[: shown or None]
    columns = [Column(escaped(name), [escaped(str(label)) for label in labels])]
    for size in ("models", "filters"):
        columns.append(Column(size, [f"{sizes[label][size]:,}" for label in labels], right=True))
    for position, label in enumerate(matrix.labels):
        column = matrix.values[: len(labels), position].tolist()
        columns.append(number_column(escaped(str(label)), column, decimals=3))
    text, change = table_text(columns, shutil.get_terminal_size().columns if terminal else None)
    click.echo(text, nl=False)
    rest = len(matrix.labels) - len(labels)
    if rest:
        click.echo(f"{rest:,} more rows; --rows 0 prints all")
    if change:
        click.echo(f"{change}; -o FILE writes everything")
    remark("")
    print_basis(matrix.attrs)


def print_basis(attrs: Mapping[Any, Any]) -> None:
    """Print how an answer was computed and what went into it, one line each."""
    if "metric" in attrs:
        low, high = attrs["range"]
        outside = max(size["outside"] for size in attrs["groups"].values())
        remark(
            f"metric {attrs['metric']}, basis {attrs['basis']}, recipe {attrs['recipe']}, {attrs['bins']} bins "
            f"from {low:.3f} to {high:.3f}, balance {attrs['balance']}; "
            f"at most {outside:.2%} of a group's coefficients fall outside"
        )
    if "coverage" in attrs:
        remark(attrs["coverage"]["text"])
        for warning in attrs["coverage"]["warnings"]:
            warn(f"warning: {warning}")


def print_summary(outcome: IngestReport, *, quiet: bool) -> None:
    """Print what happened to the models; the command ends with status 1 if some failed."""
    for failure in outcome.failed:
        warn(f"failed: {failure.model_id}: {failure.reason}")
    if outcome.failed:
        warn(str(outcome))
        sys.exit(1)
    if not quiet:
        say(str(outcome))


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def say(text: str) -> None:
    """Print a line to standard output, without control characters."""
    click.echo(escaped(text))


def remark(text: str) -> None:
    """Print a line about how a result was computed, unless --quiet is given; a terminal breaks it between words."""
    if is_quiet():
        return
    lines = [text]
    if on_terminal():
        width = shutil.get_terminal_size().columns
        lines = textwrap.wrap(escaped(text), width, break_long_words=False, break_on_hyphens=False) or [""]
    for line in lines:
        say(line)


def is_quiet() -> bool:
    """Whether the command has --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def warn(text: str) -> None:
    """Print a line to standard error, without control characters, or as an event of the log."""
    level, separator, message = text.partition(": ")
    if level not in _LEVELS:
        level, separator, message = "info", "", text
    if not event(level, message if separator else text):
        with contextlib.suppress(OSError):  # nobody may be left to read it, which is no reason to fail
            click.echo(escaped(text), err=True)


def log_as(style: str) -> None:
    """Choose how messages and progress are written to standard error: ``text`` or ``json``."""
    global _log_format
    _log_format = style


def logs_json() -> bool:
    """Whether messages and progress are written as JSON."""
    return _log_format == "json"


def event(level: str, message: str | None = None, **facts: Any) -> bool:
    """Write an event as a line of JSON, if the log is JSON.

    Args:
        level: ``info``, ``warning``, ``failed``, ``error`` or ``progress``.
        message: What a person reads.
        **facts: What else is known.

    Returns:
        Whether it was written.
    """
    if _log_format != "json":
        return False
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": now, "level": level, **({} if message is None else {"message": message}), **facts}
    click.echo(json.dumps(record), err=True)
    return True
