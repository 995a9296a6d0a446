"""Reports of long operations: progress while they run, and their outcome. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cnnfilterdb.core.errors import CnnFilterDbError

__all__ = [
    "Exported",
    "Failure",
    "IngestReport",
    "Observer",
    "Problem",
    "Progress",
    "TransferReport",
    "counted",
    "escaped",
    "first_line",
    "html_table",
    "printable",
    "read_of",
]

#: Called with the current step, the amount done and the total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem found in a database.

    Attributes:
        model_id: Key of the model; None when it cannot be determined.
        path: The file.
        message: What was expected and what was found.
    """

    model_id: str | None
    path: Path
    message: str

    def __str__(self) -> str:
        """One line.

        >>> print(Problem("pypi/a", Path("db/layers/a.parquet"), "is missing"))
        db/layers/a.parquet: is missing
        """
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be imported, and why.

    Attributes:
        model_id: Its key.
        error: The error.
    """

    model_id: str
    error: CnnFilterDbError

    @property
    def reason(self) -> str:
        """The reason in one line."""
        return " ".join(str(self.error).split()).removeprefix(f"{self.model_id}: ")


@dataclass(slots=True)
class IngestReport:
    """The outcome for each model of a run.

    Attributes:
        done: Models imported: model id -> stored filters.
        skipped: Models that were already in the database, or that another process is importing.
        failed: Models that could not be imported, with the reason.
        stopped: Why the run ended before its last model, such as a full disk; None if it did not.
    """

    done: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    stopped: str | None = None

    def sort(self, model_ids: Iterable[str]) -> None:
        """Put the outcomes in the order of these models."""
        order = {model_id: number for number, model_id in enumerate(model_ids)}
        self.done = dict(sorted(self.done.items(), key=lambda item: order[item[0]]))
        self.skipped.sort(key=order.__getitem__)
        self.failed.sort(key=lambda failure: order[failure.model_id])

    def __str__(self) -> str:
        """One line of counts.

        >>> str(IngestReport(done={"pypi/a": 10}))
        '1 done, 0 skipped, 0 failed'
        """
        return f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"

    def _repr_html_(self) -> str:
        """The counts, for notebooks."""
        return html_table(
            type(self).__name__, [{name: len(getattr(self, name)) for name in ("done", "skipped", "failed")}]
        )


class Observer:
    """Receives the progress events of an ingest; override the methods you need. By default they do nothing."""

    def started(self, total: int) -> None:
        """The number of models is known."""

    def downloading(self, model_id: str, done: int, total: int | None) -> None:
        """Bytes of a model's file have arrived; called from worker threads."""

    def finished(self, model_id: str, outcome: str) -> None:
        """A model is ``done``, ``skipped`` or ``failed``."""


@dataclass(slots=True)
class TransferReport:
    """The outcome for each model.

    Attributes:
        done: Models copied: model id -> stored filters.
        skipped: Models that were already present.
        duplicates: Models left out because another one has the same weights: model id -> that one.
        conflicts: Models present under the same key with other weights, which were kept.
        failed: Models that could not be copied, with the error.
        stopped: Why the run ended before its last model, such as a full disk; None if it did not.
    """

    done: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    duplicates: dict[str, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    failed: dict[str, CnnFilterDbError] = field(default_factory=dict)
    stopped: str | None = None

    def __str__(self) -> str:
        """One line of counts.

        >>> str(TransferReport(done={"pypi/a": 10}, conflicts=["pypi/b"]))
        '1 done, 0 skipped, 0 duplicates, 1 conflicts, 0 failed'
        """
        return ", ".join(f"{count} {name}" for name, count in self._counts().items())

    def _repr_html_(self) -> str:
        """The counts, for notebooks."""
        return html_table(type(self).__name__, [self._counts()])

    def models(self) -> int:
        """Number of models that were dealt with."""
        return sum(self._counts().values())

    def update(self, other: TransferReport) -> None:
        """Add the outcome for other models."""
        self.done |= other.done
        self.skipped += other.skipped
        self.duplicates |= other.duplicates
        self.conflicts += other.conflicts
        self.failed |= other.failed
        self.stopped = self.stopped or other.stopped

    def _counts(self) -> dict[str, int]:
        parts = ("done", "skipped", "duplicates", "conflicts", "failed")
        return {name: len(getattr(self, name)) for name in parts}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        format: One of :data:`FORMATS`.
        filters: Number of filters in it.
        models: Number of models that they are of.
        bytes: Size of the file.
    """

    path: Path
    format: str
    filters: int
    models: int
    bytes: int


def html_table(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for notebooks; numbers get thousands separators, and text is escaped.

    Args:
        caption: Caption above the table.
        rows: The rows, all with the same columns.

    >>> html_table("a < b", [{"models": 1234}])
    '<table><caption>a &lt; b</caption><tr><th>models</th></tr><tr><td>1,234</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[Any]) -> str:
        texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    head = line("th", list(rows[0])) if rows else ""
    return (
        f"<table><caption>{escape(caption)}</caption>{head}"
        + "".join(line("td", list(row.values())) for row in rows)
        + "</table>"
    )


def counted(count: float, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    >>> counted(1, "model"), counted(1752, "filter")
    ('1 model', '1,752 filters')
    """
    return f"{int(count):,} {noun}{'' if count == 1 else 's'}"


def read_of(layers: int, left_out: int) -> str:
    """How many of the weights that look like those of convolutions were read.

    >>> read_of(41, 5), read_of(1, 0)
    ('41 of 46 convolution weights', '1 of 1 convolution weight')
    """
    return f"{layers:,} of {counted(layers + left_out, 'convolution weight')}"


def printable(text: object) -> str:
    r"""Any value as one line of text that is safe to print on a terminal or in a page.

    Control characters, line breaks and invisible formatting, such as marks that reverse the direction of writing,
    become spaces; runs of spaces become one. Text from databases, files and servers of others goes through here.

    >>> printable("conv\x1b]0;title\x07 a\n b\u202e")
    'conv ]0;title a b'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def first_line(error: object, most: int = 1000) -> str:
    r"""The message of an error of a library, without lines that only help its developers, safe to print.

    >>> first_line(OSError("type: \x0f;\nin deserialize.cpp"))
    'type: ;'
    """
    return printable(str(error).partition("\n")[0])[:most]


def escaped(text: str, keep: str = "") -> str:
    r"""A text with its control characters, and what cannot be encoded, as escapes, so that it cannot steer a terminal.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as a line break.

    >>> escaped("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )
