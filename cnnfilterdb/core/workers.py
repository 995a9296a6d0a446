"""How many threads may work: the processors that this process may use, or less within a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


class _Blas:
    """The limit of BLAS, which is one of the process: it ends with the last of the blocks that ask for it.

    If each block restored what it had found, blocks of several threads that overlap could leave the limit behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._controller: Any = None
        self._limit: Any = None

    def enter(self) -> None:
        """A block begins."""
        from threadpoolctl import ThreadpoolController

        with self._lock:
            if not self._blocks:
                self._controller = ThreadpoolController()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._blocks += 1

    def leave(self) -> None:
        """A block has ended."""
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._release()
                self._limit.restore_original_limits()
                self._release()

    def _release(self) -> None:
        # Newer versions of threadpoolctl ignore, without a word, all threads but the first that set a limit.
        for library in self._controller.lib_controllers:
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


_blas = _Blas()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the linear algebra of NumPy and SciPy to the calling thread within the block, where BLAS allows that.

    Units of work take all processors already. Threads that BLAS starts for each of them wait for each other: the
    eigenvalues of layers took seven times the processor time, and longer than on one thread.
    """
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()
