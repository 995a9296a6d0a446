"""Azure Blob Storage whose answers count their bytes on the meter of the request; see :mod:`cnnfilterdb.release.meter`.

Needs the package ``adlfs``, and is imported only where that is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from adlfs import AzureBlobFileSystem

from cnnfilterdb.release.metered_aiohttp import metered_session

__all__ = ["MeteredAzure"]


class MeteredAzure(AzureBlobFileSystem):  # type: ignore[misc]  # adlfs has no types
    """A file system of adlfs, which has no option for the session of its client."""

    @classmethod
    def at(cls, location: str, options: Mapping[str, Any]) -> tuple[Self, str]:
        """The file system of an address, and the path in it."""
        return cls(**{**cls._get_kwargs_from_urls(location), **options}), cls._strip_protocol(location)

    def do_connect(self) -> None:
        """Make the client; it opens its session at its first request."""
        super().do_connect()
        transport = self.service_client._pipeline._transport
        open_session = transport.open

        async def open_metered() -> None:
            transport.open = open_session
            # As the transport makes its own; it closes this one, too.
            transport.session = await metered_session(
                trust_env=True, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
            await open_session()

        transport.open = open_metered
