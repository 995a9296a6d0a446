"""Queries that are repeated if files were replaced while they ran: readers take no lock.

A model exists if its models row exists, which is moved away first when the model is replaced or removed and put in
place last when it is written. So a query saw one state of the database if every row and basis that existed when it
began was unchanged when it ended. Otherwise the library repeats it with a fresh listing. Models that were only added do
not matter: they were seen completely or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from cnnfilterdb.core.errors import CorruptError, DatabaseError

__all__ = ["SECONDS", "Snapshot", "steady", "watched"]

T = TypeVar("T")

#: What identifies a state of a database: files that are replaced as a whole, and what distinguishes their contents.
Snapshot = Mapping[str, object]

#: How long a query is repeated while others write.
SECONDS = 60.0

# How messages of DuckDB and of the operating system begin if a file no longer exists.
_GONE = ("IO Error", "No such file", "Cannot open file", "No files found", "cannot be read", "changed during")
_PAUSE = 0.02  # seconds
_TRIES = 10  # of a query that fails while nothing seems to change: a model may be about to appear


def steady(
    snapshot: Callable[[], Snapshot],
    ask: Callable[[], T],
    repair: Callable[[Exception], bool] = lambda error: False,
    *,
    since: Snapshot | None = None,
) -> T:
    """Repeat a query until nothing that existed at its start was replaced or removed before its end.

    Args:
        snapshot: Returns the state of the database.
        ask: The query; it must be repeatable.
        repair: Called with an error of the query; returns True if it has removed the cause, so that repeating helps.
        since: An earlier state that the first attempt must have seen unchanged, because it began then.

    Raises:
        DatabaseError: Others kept writing for :data:`SECONDS`.
    """
    end, tries = time.monotonic() + SECONDS, 0
    while True:
        before, since = snapshot() if since is None else since, None
        failure: Exception | None = None
        try:
            answer = ask()
        except Exception as error:
            failure = error
        if failure is not None and repair(failure):
            continue
        after = snapshot()
        if failure is None and before.items() <= after.items():
            return answer
        if failure is not None and before == after:
            tries += 1
            if not _gone(failure) or tries >= _TRIES:
                raise failure
        if time.monotonic() > end:
            raise failure or DatabaseError(
                f"other processes replaced models for {SECONDS:.0f} s while they were read; wait for them and try again"
            )
        time.sleep(_PAUSE)


def watched(snapshot: Callable[[], Snapshot], before: Snapshot, rows: Iterator[T]) -> Iterator[T]:
    """Pass a stream on, and end it with an error if what it reads was replaced or removed meanwhile.

    A stream cannot be repeated as a query can: a part of it has been used already.

    Args:
        snapshot: Returns the state of the database.
        before: The state of what the stream reads, when it was chosen.
        rows: The stream.

    Raises:
        DatabaseError: Something was replaced or removed before the stream ended.
    """
    failure: Exception | None = None
    try:
        yield from rows
    except Exception as error:
        failure = error
    if not before.items() <= snapshot().items():
        raise DatabaseError(
            "a model was replaced or removed by another process while its filters were read; read them again"
        ) from failure
    if failure is not None:
        raise failure


def _gone(error: Exception) -> bool:
    """Whether an error may come from a file that was replaced or removed."""
    return isinstance(error, FileNotFoundError | CorruptError) or any(text in str(error) for text in _GONE)
