"""Limits of time and bytes for requests, so that no server can stall a run or fill memory or disk.

A read timeout is not enough: a server that sends one byte every ten seconds never exceeds it. A :class:`Budget`
requires a minimum average rate instead, which leaves a slow connection all the time it needs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cnnfilterdb.core.errors import DownloadError

__all__ = ["GRACE", "LARGEST", "SLOWEST", "Budget", "supervised", "within"]

#: Seconds that any transfer may take, even if it sends little.
GRACE = 60.0

#: Bytes per second that a transfer must average beyond that.
SLOWEST = 8 << 10

#: Bytes of the largest file that is downloaded if its size is not stated.
LARGEST = 64 << 30

T = TypeVar("T")


class Budget:
    """The limits of one transfer.

    Args:
        what: Name of the transfer, for messages.
        limit: Bytes that it may have.
        grace: Seconds that it may take even if little is sent.

    >>> budget = Budget("net.pt", limit=10)
    >>> budget.charge(10)
    >>> budget.charge(1)
    Traceback (most recent call last):
    cnnfilterdb.DownloadError: net.pt: the server sends more than 10 bytes; refused
    """

    def __init__(self, what: str, *, limit: int = LARGEST, grace: float = GRACE) -> None:
        self._what, self._limit, self._grace = what, limit, grace
        self._received = 0
        self._began = time.monotonic()

    def charge(self, count: int) -> None:
        """Account for received bytes.

        Raises:
            DownloadError: There are too many of them, or they arrive too slowly.
        """
        self._received += count
        if self._received > self._limit:
            raise DownloadError(f"{self._what}: the server sends more than {self._limit:,} bytes; refused")
        elapsed = time.monotonic() - self._began
        if elapsed > self._grace + self._received / SLOWEST:
            raise DownloadError(
                f"{self._what}: only {self._received:,} bytes arrived in {elapsed:.0f} s; the server is too slow, "
                "try again later or use a mirror"
            )

    def extend(self, seconds: float) -> None:
        """Allow for a pause that the server asked for."""
        self._grace += seconds


def within(seconds: float, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """Call a function and wait at most a number of seconds.

    A late function occupies its thread until it returns; the thread does not keep the process alive.

    Args:
        seconds: How long to wait.
        function: What to call.
        discard: Called with a result that arrives too late, to close it.

    Raises:
        TimeoutError: It did not return in time.
        BaseException: Any exception that it raises.

    >>> within(10, lambda: 1 + 1)
    2
    """
    call = _Call(function, discard)
    if not call.returned(seconds) and call.abandon():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return call.result()


def supervised(function: Callable[[], T], budget: Budget) -> T:
    """Call a function that charges a budget, and raise as soon as the budget is exhausted, even if it never returns.

    Raises:
        DownloadError: The budget is exhausted.
        BaseException: Any exception that the function raises.
    """
    call = _Call(function, None)
    while not call.returned(1.0):
        budget.charge(0)
    return call.result()


class _Call(Generic[T]):
    """A call in a separate thread."""

    def __init__(self, function: Callable[[], T], discard: Callable[[T], object] | None) -> None:
        self._function, self._discard = function, discard
        self._lock, self._done, self._late = threading.Lock(), threading.Event(), False
        self._value: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="transfer").start()

    def _run(self) -> None:
        try:
            self._value.append(self._function())
        except BaseException as error:
            self._error = error
        with self._lock:
            self._done.set()
            if self._late and self._value and self._discard is not None:
                self._discard(self._value.pop())

    def returned(self, seconds: float) -> bool:
        """Wait for it; whether it has returned."""
        return self._done.wait(seconds)

    def abandon(self) -> bool:
        """Discard the result when it arrives; False if it has arrived in the meantime."""
        with self._lock:
            self._late = not self._done.is_set()
        return self._late

    def result(self) -> T:
        """Its result; raises the exception that it raised."""
        if self._error is not None:
            raise self._error
        return self._value[0]
