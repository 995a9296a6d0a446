"""Questions that are asked again when what they read was replaced meanwhile: readers take no lock.

A model exists by its models row, which goes first when the model is replaced or removed and comes last when it is
written. So a question saw one state of the database if every row and basis that existed when it began was still the
same when it ended. Otherwise it is asked again, with a fresh listing; the library does that, not the caller. Models
that were only added do not disturb: they were seen whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from cnnfilterdb.errors import CorruptError, DatabaseError

__all__ = ["SECONDS", "Snapshot", "steady"]

T = TypeVar("T")

#: What identifies a state of a database: files that are replaced as a whole, and what tells their contents apart.
Snapshot = Mapping[str, object]

#: How long a question is repeated while others write.
SECONDS = 60.0

# Beginnings of what DuckDB says, and the operating system, when a file is not there any more.
_GONE = ("IO Error", "No such file", "Cannot open file", "No files found", "cannot be read", "changed during")
_PAUSE = 0.02  # seconds
_TRIES = 10  # of a question that fails while nothing seems to change: a model may be on its way


def steady(
    snapshot: Callable[[], Snapshot], ask: Callable[[], T], mend: Callable[[Exception], bool] = lambda error: False
) -> T:
    """Ask until nothing that existed at the start was replaced or removed before the end.

    Args:
        snapshot: Returns the state of the database.
        ask: The question; it must be possible to repeat it.
        mend: Called with an error of the question; True when it has removed the cause, so that asking again helps.

    Raises:
        DatabaseError: Others kept writing for :data:`SECONDS`.
    """
    end, tries = time.monotonic() + SECONDS, 0
    while True:
        before = snapshot()
        failure: Exception | None = None
        try:
            answer = ask()
        except Exception as error:
            failure = error
        if failure is not None and mend(failure):
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


def _gone(error: Exception) -> bool:
    """Whether an error may come from a file that was replaced or removed."""
    return isinstance(error, FileNotFoundError | CorruptError) or any(text in str(error) for text in _GONE)
