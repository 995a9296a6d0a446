"""Answers of aiohttp that count their bytes on the meter of the request; see :mod:`cnnfilterdb.release.meter`.

Needs the package ``aiohttp``, and is imported only where that is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

from cnnfilterdb.release.meter import Meter, current

__all__ = ["MeteredContent", "MeteredResponse", "metered_session"]

_PART = 64 << 10  # bytes that are read at a time


class MeteredContent:
    """The body of an answer, counted as it is read.

    Args:
        content: The body.
        meter: The meter.
    """

    def __init__(self, content: Any, meter: Meter) -> None:
        self._content, self._meter = content, meter

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("read", "iter")):
            raise AttributeError(f"{name}: not counted")
        return getattr(self._content, name)

    async def read(self, size: int = -1) -> bytes:
        """Read at most some bytes, or all of the body."""
        if size >= 0:
            part: bytes = await self._content.read(size)
            self._meter.count(len(part))
            return part
        return b"".join([part async for part in self.iter_chunked(_PART)])

    async def readany(self) -> bytes:
        """Read what has arrived."""
        return await self.read(_PART)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """The body in parts of at most some bytes."""
        while part := await self.read(size):
            yield part


class MeteredResponse(aiohttp.ClientResponse):
    """An answer whose body is counted if the request has a meter."""

    async def start(self, connection: Any) -> Self:
        """Read the headers."""
        await super().start(connection)
        meter = current.get()
        if meter is not None:
            self.content = MeteredContent(self.content, meter)  # type: ignore[assignment]
        return self


async def metered_session(**options: Any) -> aiohttp.ClientSession:
    """A session whose answers are :class:`MeteredResponse`; the argument ``get_client`` of fsspec's http."""
    options.pop("loop", None)
    return aiohttp.ClientSession(response_class=MeteredResponse, **options)
