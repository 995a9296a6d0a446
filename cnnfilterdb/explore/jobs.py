"""Questions that end: each has a time limit, and can be cancelled, which interrupts DuckDB."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import duckdb

from cnnfilterdb.core.errors import CnnFilterDbError

__all__ = ["CancelledError", "Job", "current"]

#: Seconds between two interrupts of a job: one that arrives between two queries of a job has no effect.
_PAUSE = 0.05


class CancelledError(CnnFilterDbError):
    """A question was cancelled, or took longer than its limit."""


class Job:
    """One question, which runs in one thread and may be stopped from another.

    Args:
        seconds: Its time limit.

    Attributes:
        done: Number of filters that were searched.
    """

    def __init__(self, seconds: float) -> None:
        self.done = 0
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._reason = ""
        self._timer = threading.Timer(
            seconds, self.stop, [f"stopped after {seconds:g} seconds, the limit; select less, or raise it by --seconds"]
        )
        self._timer.daemon = True

    def __enter__(self) -> Job:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._timer.cancel()
        with self._lock:
            self._cursors.clear()

    def watch(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Let :meth:`stop` interrupt a cursor.

        Raises:
            CancelledError: The job was stopped already.
        """
        with self._lock:
            self.check()
            self._cursors.append(cursor)

    def check(self) -> None:
        """Raise CancelledError if the job was stopped."""
        if self._reason:
            raise CancelledError(self._reason)

    def advance(self, filters: int) -> None:
        """Count filters that were searched; raise CancelledError if the job was stopped."""
        self.check()
        self.done += filters

    def stop(self, reason: str) -> None:
        """Interrupt the queries of the job, and refuse further ones. Returns when the job has ended."""
        with self._lock:
            self._reason = self._reason or reason
        while not self._done.wait(_PAUSE):
            with self._lock:
                for cursor in self._cursors:
                    cursor.interrupt()

    def stopped(self) -> bool:
        """Whether it was stopped."""
        return bool(self._reason)


#: The job that the current thread works on.
current: ContextVar[Job | None] = ContextVar("current", default=None)
