"""Progress bars and notes while a verb runs, on a terminal only and never with `--quiet`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnfilterdb.core.reports import Observer

__all__ = ["index_progress", "progress_bars", "progress_observer", "status"]

#: Seconds between two lines of :func:`index_progress`.
_PAUSE = 10.0


def index_progress() -> Callable[[str, int, int], None]:
    """Prints a line now and then while a question updates the index, even without a terminal; not with --quiet."""
    from cnnfilterdb.cli.output import is_quiet, warn

    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PAUSE and not is_quiet():
            last = time.monotonic()
            warn(f"updating the index: {what}, {done:,} of {total:,}")

    return report


def _bars(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console, disable=quiet or not console.is_terminal, transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def progress_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work, updated with (what, done, total)."""
    with _bars(quiet) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, note="")
            bars.update(tasks[what], completed=done, total=total)

        yield update


@contextlib.contextmanager
def status(what: str, quiet: bool) -> Iterator[None]:
    """A note shown while one piece of work is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(what):
            yield


@contextlib.contextmanager
def progress_observer(quiet: bool) -> Iterator[Observer]:
    """A bar of models for an ingest, with the current download."""
    from cnnfilterdb.core.reports import Observer

    with _bars(quiet) as bars:
        task = bars.add_task("models", total=None, note="")

        class Bar(Observer):
            def started(self, total: int) -> None:
                bars.update(task, total=total)

            def downloading(self, model_id: str, done: int, total: int | None) -> None:
                share = f" {done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f" {done / 1e6:.1f} MB"
                bars.update(task, note=model_id + share)

            def finished(self, model_id: str, outcome: str) -> None:
                bars.update(task, advance=1, note=f"{model_id} {outcome}")

        yield Bar()
