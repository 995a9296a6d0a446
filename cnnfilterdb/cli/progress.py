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


class _Events:
    """Progress as events of the log: of each step its beginning, its end, and at most one event per second between."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def step(self, what: str, done: int, total: int | None) -> bool:
        """Report progress; False if the log is not JSON."""
        from cnnfilterdb.cli.output import event, logs_json

        if not logs_json():
            return False
        now = time.monotonic()
        if what not in self._last or done == total or now - self._last[what] >= 1:
            self._last[what] = now
            event("progress", step=what, done=done, total=total)
        return True


def index_progress() -> Callable[[str, int, int], None]:
    """Prints a line now and then while a question updates the index, even without a terminal; not with --quiet."""
    from cnnfilterdb.cli.output import is_quiet, warn

    last = time.monotonic()
    events = _Events()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        if not is_quiet() and events.step(what, done, total):
            return
        if time.monotonic() - last >= _PAUSE and not is_quiet():
            last = time.monotonic()
            warn(f"updating the index: {what}, {done:,} of {total:,}")

    return report


def _bars(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cnnfilterdb.cli.output import logs_json

    console = Console(stderr=True)
    shown = console.is_terminal and not quiet and not logs_json()
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console, disable=not shown, transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def progress_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work, updated with (what, done, total)."""
    events = _Events()
    with _bars(quiet) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if not quiet and events.step(what, done, total):
                return
            if what not in tasks:
                tasks[what] = bars.add_task(what, note="")
            bars.update(tasks[what], completed=done, total=total)

        yield update


@contextlib.contextmanager
def status(what: str, quiet: bool) -> Iterator[None]:
    """A note shown while one piece of work is done."""
    from rich.console import Console

    from cnnfilterdb.cli.output import logs_json

    console = Console(stderr=True)
    if quiet or not console.is_terminal or logs_json():
        yield
    else:
        with console.status(what):
            yield


@contextlib.contextmanager
def progress_observer(quiet: bool) -> Iterator[Observer]:
    """A bar of models for an ingest, with the current download."""
    from cnnfilterdb.cli.output import event, logs_json
    from cnnfilterdb.core.reports import Observer

    class Log(Observer):
        _done = _total = 0

        def started(self, total: int) -> None:
            self._total = total
            event("progress", step="models", done=0, total=total)

        def downloading(self, model_id: str, done: int, total: int | None) -> None:
            self._downloads.step(f"download {model_id}", done, total)

        def finished(self, model_id: str, outcome: str) -> None:
            self._done += 1
            event("progress", step="models", done=self._done, total=self._total, model_id=model_id, outcome=outcome)

        def __init__(self) -> None:
            self._downloads = _Events()

    if logs_json():
        yield Observer() if quiet else Log()
        return
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
