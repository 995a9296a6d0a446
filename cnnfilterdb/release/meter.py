"""Counts the bytes of answers from other machines, in the clients that let themselves be counted.

A request runs with a meter in its context (see :class:`cnnfilterdb.release.remote.RequestBudget`). The clients of the
Hub, of http(s), of S3, of Google Cloud Storage and of Azure count what they read on that meter, and fail as soon as it
is more than was expected. Requests without a meter are not limited.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["ExceededError", "Meter", "count_answers_of_the_hub", "current", "metered_azure", "metered_options"]


class ExceededError(OSError):
    """An answer is larger than expected, or takes too long."""


class Meter:
    """Counts the bytes of the answers to a request.

    Args:
        size: Bytes that are expected at most.
        deadline: Until when, by :func:`time.monotonic`.

    Attributes:
        failure: Why it fails from now on, once it does.
        ended: Set when the request has ended, or the meter fails.

    >>> meter = Meter(100, time.monotonic() + 60)
    >>> meter.count(60)
    >>> meter.count(60)
    Traceback (most recent call last):
    cnnfilterdb.release.meter.ExceededError: the answer is larger than the 100 bytes that were expected
    """

    def __init__(self, size: int, deadline: float) -> None:
        self._size, self._left, self._deadline = size, size, deadline
        self.failure: str | None = None
        self.ended = threading.Event()

    def stop(self, reason: str) -> None:
        """Fail from now on, whatever arrives."""
        self.failure = self.failure or reason
        self.ended.set()

    def count(self, size: int) -> None:
        """Bytes that have arrived.

        Raises:
            ExceededError: More than were expected, or too late.
        """
        self._left -= size
        if time.monotonic() > self._deadline:
            self.stop("no complete answer in time")
        self.require(0)

    def require(self, size: int) -> None:
        """Make sure that an answer which states its size may arrive.

        Raises:
            ExceededError: It is larger than what is left.
        """
        if size > self._left:
            self.stop(f"the answer is larger than the {self._size:,} bytes that were expected")
        if self.failure is not None:
            raise ExceededError(self.failure)


#: The meter of the request that runs in this context.
current: ContextVar[Meter | None] = ContextVar("current", default=None)


def metered_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which a file system of fsspec counts what it reads.

    Args:
        protocol: Of its addresses.
        options: Those of the user, which hold where they choose another client.

    Returns:
        The options; those of the user where its client cannot be counted, or is not installed.
    """
    found = dict(options)
    try:
        if protocol in ("http", "https"):
            found.setdefault("get_client", _aiohttp().metered_session)
        elif protocol in ("gs", "gcs"):
            session = {"response_class": _aiohttp().MeteredResponse}
            found["session_kwargs"] = {**session, **(found.get("session_kwargs") or {})}
        elif protocol in ("s3", "s3a"):
            session = {"http_session_cls": import_module("cnnfilterdb.release.metered_s3").MeteredSession}
            found["config_kwargs"] = {**session, **(found.get("config_kwargs") or {})}
    except ModuleNotFoundError:  # the file system will say what is missing
        return dict(options)
    return found


def metered_azure() -> Any:
    """The file system class of Azure that counts what it reads; None where the package for Azure is not installed."""
    try:
        return import_module("cnnfilterdb.release.metered_azure").MeteredAzure
    except ModuleNotFoundError:
        return None


def _aiohttp() -> Any:
    return import_module("cnnfilterdb.release.metered_aiohttp")


def count_answers_of_the_hub() -> None:
    """Let the shared client of huggingface_hub count the answers to requests with a meter; it ignores others."""
    if "huggingface_hub" not in sys.modules:
        return
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _metered not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _metered]}


def _metered(response: Any) -> None:
    meter = current.get()
    if meter is not None:
        library = type(response).__module__.partition(".")[0]
        response.stream = _stream_class(library)(response.stream, meter)


@cache
def _stream_class(library: str) -> Callable[[Any, Meter], Any]:
    """The class of a metered stream for the HTTP library that huggingface_hub uses."""
    base: type = import_module(library).SyncByteStream

    def __init__(self: Any, stream: Any, meter: Meter) -> None:
        self.stream, self.meter = stream, meter

    def __iter__(self: Any) -> Iterator[bytes]:
        for part in self.stream:
            self.meter.count(len(part))
            yield part

    def close(self: Any) -> None:
        self.stream.close()

    return type("MeteredStream", (base,), {"__init__": __init__, "__iter__": __iter__, "close": close})
