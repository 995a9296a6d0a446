"""Requests to other machines: each has a deadline and a limit of bytes, and fails with one line.

At best, file systems of fsspec time out on silence: a server that sends a byte every few seconds, or an answer
without end, keeps them waiting forever or fills the memory. So every request runs under a budget. The deadline holds
for any file system. The limit of bytes holds for the Hub, http(s), S3, Google Cloud Storage and Azure, whose clients
:mod:`cnnfilterdb.release.meter` counts; others are asked for a known number of bytes only.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from cnnfilterdb.core.errors import CnnFilterDbError, MissingExtraError, RemoteError
from cnnfilterdb.core.reports import printable
from cnnfilterdb.release.meter import (
    ExceededError,
    Meter,
    count_answers_of_the_hub,
    current,
    metered_azure,
    metered_options,
)

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
# Protocols of addresses on Azure
_AZURE = ("abfs", "abfss", "az")
# Headers and padding of an answer
_SLACK = 64 << 10


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
        meter = Meter(self.size, time.monotonic() + self.seconds)
        outcome: list[_T] = []
        failure: list[BaseException] = []

        def run() -> None:
            current.set(meter)
            try:
                outcome.append(request())
            except BaseException as error:
                failure.append(error)
            finally:
                meter.ended.set()

        count_answers_of_the_hub()
        thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True, name="cnnfilterdb-request")
        thread.start()
        if not meter.ended.wait(self.seconds):
            meter.stop(f"no complete answer within {self.seconds:,.0f} seconds")
        if meter.failure is not None:  # clients wrap it, or try again; each time it fails at once
            raise ExceededError(meter.failure)
        if failure:
            raise failure[0]
        return outcome[0]


def filesystem_of(location: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and the path in it.

    Args:
        location: The address, such as ``s3://bucket/folder``.
        options: Options of the file system.

    Raises:
        MissingExtraError: The package of the file system is not installed.
    """
    protocol = location.partition("://")[0]
    if protocol in _AZURE and (azure := metered_azure()):
        filesystem, root = azure.at(location, options)
        return filesystem, root
    try:
        filesystem, root = fsspec.core.url_to_fs(location, **metered_options(protocol, options))
    except ImportError as error:
        extra = {"s3": "s3", **dict.fromkeys(_AZURE, "azure")}.get(protocol)
        hint = f"pip install 'cnnfilterdb[{extra}]'" if extra else f"pip install the package for {protocol}://"
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
            raise ExceededError(f"{len(data):,} bytes arrived where {stop - start:,} were expected")
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
