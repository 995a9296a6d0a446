"""Requests to other machines: each has a deadline and a limit of bytes, and fails with one line.

At best, file systems of fsspec time out on silence: a server that sends a byte every few seconds, or an answer
without end, keeps them waiting forever or fills the memory. So every request runs under a budget. The deadline holds
for any file system. The limit of bytes holds for the Hub and for http(s), whose clients can count; others
are asked for a known number of bytes only.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import fsspec

from cnnfilterdb.core.errors import CnnFilterDbError, MissingExtraError, RemoteError
from cnnfilterdb.core.reports import printable

__all__ = [
    "ANSWER_BYTES",
    "SLOWEST",
    "RangeFile",
    "RequestBudget",
    "filesystem_of",
    "reaching",
    "read_range",
    "status_of",
]

_T = TypeVar("_T")

#: Seconds that a request may take, besides the time that its bytes need.
REQUEST_SECONDS = 120.0
#: Bytes per second that a server is expected to send at least.
SLOWEST = 32 << 10
#: Bytes that an answer may have which is not part of a file, such as a listing.
ANSWER_BYTES = 64 << 20
# Headers and padding of an answer
_SLACK = 64 << 10

_current: ContextVar[_Meter | None] = ContextVar("_current", default=None)


class _Exceeded(OSError):
    """An answer is larger than expected, or takes too long."""


@dataclass(frozen=True, slots=True)
class RequestBudget:
    """What a request may take.

    Attributes:
        size: Bytes of the answer.
        seconds: Time for all of it.
    """

    size: int
    seconds: float

    @classmethod
    def of(cls, size: int) -> RequestBudget:
        """The budget of a request that moves so many bytes."""
        return cls(size + _SLACK, REQUEST_SECONDS + size / SLOWEST)

    @classmethod
    def answer(cls) -> RequestBudget:
        """The budget of a request that moves no file, such as for a listing."""
        return cls(ANSWER_BYTES, REQUEST_SECONDS)

    def spend(self, request: Callable[[], _T]) -> _T:
        """Run a request within the budget.

        It runs in a separate thread, which is abandoned if it does not end in time: blocking reads cannot be
        interrupted in any other way.

        Raises:
            OSError: The answer is too large or takes too long.
        """
        meter = _Meter(self.size, time.monotonic() + self.seconds)
        outcome: list[_T] = []
        failure: list[BaseException] = []

        def run() -> None:
            _current.set(meter)
            try:
                outcome.append(request())
            except BaseException as error:
                failure.append(error)

        _count_answers_of_the_hub()
        thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True, name="cnnfilterdb-request")
        thread.start()
        thread.join(self.seconds)
        if thread.is_alive():
            meter.stop()
            raise _Exceeded(f"no complete answer within {self.seconds:,.0f} seconds")
        if failure:
            raise failure[0]
        return outcome[0]


class _Meter:
    """Counts the bytes of the answers to a request."""

    def __init__(self, size: int, deadline: float) -> None:
        self._size, self._left, self._deadline = size, size, deadline

    def stop(self) -> None:
        """Make the next bytes fail."""
        self._left = -1

    def count(self, size: int) -> None:
        """Bytes that have arrived."""
        self._left -= size
        if self._left < 0:
            raise _Exceeded(f"the answer is larger than the {self._size:,} bytes that were expected")
        if time.monotonic() > self._deadline:
            raise _Exceeded("no complete answer in time")


def _count_answers_of_the_hub() -> None:
    """Let the shared client of huggingface_hub count the answers to requests with a budget; it ignores others."""
    if "huggingface_hub" not in sys.modules:
        return
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _metered not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _metered]}


def _metered(response: Any) -> None:
    meter = _current.get()
    if meter is not None:
        library = type(response).__module__.partition(".")[0]
        response.stream = _stream_class(library)(response.stream, meter)


@cache
def _stream_class(library: str) -> type:
    """The class of a metered stream for the HTTP library that huggingface_hub uses."""
    base: type = import_module(library).SyncByteStream

    def __init__(self: Any, stream: Any, meter: _Meter) -> None:
        self.stream, self.meter = stream, meter

    def __iter__(self: Any) -> Iterator[bytes]:
        for part in self.stream:
            self.meter.count(len(part))
            yield part

    def close(self: Any) -> None:
        self.stream.close()

    return type("MeteredStream", (base,), {"__init__": __init__, "__iter__": __iter__, "close": close})


async def _counting_session(**options: Any) -> Any:
    """A session of aiohttp whose answers count their bytes."""
    import aiohttp

    class Counted(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            meter = _current.get()
            if meter is None or self._body is not None:
                return await super().read()
            parts = []
            async for part in self.content.iter_chunked(_SLACK):
                meter.count(len(part))
                parts.append(part)
            self._body = b"".join(parts)
            return self._body

    options.pop("loop", None)
    return aiohttp.ClientSession(response_class=Counted, **options)


def filesystem_of(location: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and the path in it.

    Args:
        location: The address, such as ``s3://bucket/folder``.
        options: Options of the file system.

    Raises:
        MissingExtraError: The package of the file system is not installed.
    """
    protocol = location.partition("://")[0]
    if protocol in ("http", "https"):  # a client that counts what arrives
        options = {"get_client": _counting_session, **options}
    try:
        filesystem, root = fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        hint = "pip install 'cnnfilterdb[s3]'" if protocol == "s3" else f"pip install the package for {protocol}://"
        raise MissingExtraError(f"{location}: {' '.join(str(error).split())}; {hint}") from error
    return filesystem, root


def read_range(filesystem: fsspec.AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    """The bytes of a file from start to before stop, in one request.

    Raises:
        RemoteError: They cannot be read, or the file ends too early.
    """

    def request() -> bytes:
        with filesystem.open(path, "rb", cache_type="none") as file:
            file.seek(start)
            data: bytes = file.read(stop - start)
            return data

    with reaching(path):
        data = RequestBudget.of(stop - start).spend(request)
        if len(data) != stop - start:
            raise _Exceeded(f"{len(data):,} bytes arrived where {stop - start:,} were expected")
    return data


class RangeFile(io.BufferedIOBase):
    """A file whose bytes are provided by a function of a range.

    Args:
        fetch: Returns the bytes from a start to before a stop.
        size: Size of the file in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._place = 0
        self.size = size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """The place where the next byte is read."""
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes, or all that are left."""
        stop = self.size if size is None or size < 0 else min(self.size, self._place + size)
        if stop <= self._place:
            return b""
        data = self._fetch(self._place, stop)
        self._place += len(data)
        return data


def status_of(error: BaseException) -> int | None:
    """HTTP status of the answer behind an error; None if the error does not state one.

    >>> status_of(ValueError("401"))
    """
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # of botocore
        response = response.get("ResponseMetadata", {})
        status = response.get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None) or getattr(error, "status", None)  # of httpx, of aiohttp
    return status if isinstance(status, int) else None


@contextmanager
def reaching(where: str, doing: str = "read") -> Iterator[None]:
    """Convert what a file system raises to a :class:`RemoteError` of one line.

    Args:
        where: What is being reached.
        doing: What is being done with it, as a participle.

    Raises:
        RemoteError: Replaces any error that is not one of this package.
    """
    try:
        yield
    except CnnFilterDbError:
        raise
    except Exception as error:  # each file system has its own errors
        raise RemoteError(f"{where}: {_reason(error, doing)}") from error


def _reason(error: Exception, doing: str) -> str:
    status = status_of(error)
    if status == 401:
        return "the server asks for a token, or refuses the one given; `hf auth login` stores one, or set HF_TOKEN"
    if status == 403 or isinstance(error, PermissionError):
        return "access is refused; ask its owner for access, and check whose token is in use"
    if status == 429:
        return "the server asks to wait; try again later"
    if status == 404 or isinstance(error, FileNotFoundError):
        return "not found; check the address and the version, and for something private the token"
    text = printable(str(error))[:300]
    return f"cannot be {doing} ({text or type(error).__name__}); check the address and the network and try again"
