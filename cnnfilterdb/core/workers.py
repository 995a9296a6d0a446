"""How many threads may work: the processors that this process may use, or less within a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["limited", "one_blas_thread", "threads"]

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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the linear algebra of NumPy and SciPy to the calling thread within the block, where BLAS allows that.

    Units of work take all processors already. Threads that BLAS starts for each of them wait for each other: the
    eigenvalues of layers took seven times the processor time, and longer than on one thread.
    """
    from threadpoolctl import ThreadpoolController

    with ThreadpoolController().limit(limits=1, user_api="blas"):
        yield
