"""Where work runs: in threads, a bounded number of tasks ahead of whoever takes the results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["ahead", "threads"]

T = TypeVar("T")
U = TypeVar("U")


def ahead(
    function: Callable[[T], U], items: Iterable[T], *, threads: int, window: int
) -> Generator[tuple[T, Future[U]], None, None]:
    """Run a function over items in a few threads, at most ``window`` of them begun and not yet done with, in order.

    Args:
        function: Called with each item in a worker thread.
        items: Taken one by one, as room comes free, so that there may be any number of them.
        threads: Number of threads.
        window: Number of items in flight, results that were not yet taken included.

    Yields:
        Each item with its future, which holds the result or the error.

    >>> [future.result() for _, future in ahead(abs, [-1, 2, -3], threads=2, window=2)]
    [1, 2, 3]
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        pending = deque((item, pool.submit(function, item)) for item in islice(remaining, window))
        try:
            while pending:
                item, future = pending.popleft()
                yield item, future
                del future  # and with it the result
                for following in islice(remaining, 1):
                    pending.append((following, pool.submit(function, following)))
        finally:
            for _, future in pending:
                future.cancel()


def threads() -> int:
    """Number of worker threads: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
