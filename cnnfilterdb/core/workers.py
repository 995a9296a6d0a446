"""How many threads may work: the processors that this process may use, or less within a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["limited", "threads"]

_limit: ContextVar[int | None] = ContextVar("threads", default=None)


def threads() -> int:
    """Number of worker threads: the processors that this process may use, or less within :func:`limited`."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _limit.get() or found


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let what is computed within the block, by this thread, use so many threads.

    >>> with limited(1):
    ...     threads()
    1
    """
    token = _limit.set(threads)
    try:
        yield
    finally:
        _limit.reset(token)
