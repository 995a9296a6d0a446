"""Worker threads that run a bounded number of tasks ahead of the consumer of their results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "limited", "threads"]

T = TypeVar("T")
U = TypeVar("U")

_limit: ContextVar[int | None] = ContextVar("threads", default=None)


def ahead(
    function: Callable[[T], U], items: Iterable[T], *, threads: int, window: int
) -> Generator[tuple[T, Future[U]], None, None]:
    """Run a function over items in a few threads, in order, with at most ``window`` items in flight.

    Args:
        function: Called with each item in a worker thread.
        items: Consumed one by one as space becomes free, so the iterable may be of any length.
        threads: Number of threads.
        window: Number of items in flight, including results that have not been consumed yet.

    Yields:
        Each item with its future, which contains the result or the error.

    >>> [future.result() for _, future in ahead(abs, [-1, 2, -3], threads=2, window=2)]
    [1, 2, 3]
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        pending = deque((item, pool.submit(copy_context().run, function, item)) for item in islice(remaining, window))
        try:
            while pending:
                item, future = pending.popleft()
                yield item, future
                del future  # and with it the result
                for following in islice(remaining, 1):
                    pending.append((following, pool.submit(copy_context().run, function, following)))
        finally:
            for _, future in pending:
                future.cancel()


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
