"""A client of S3 that counts the bytes of answers on the meter of the request; see :mod:`cnnfilterdb.release.meter`.

Needs the package ``aiobotocore``, which s3fs uses, and is imported only where that is used.
"""

from __future__ import annotations

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

from cnnfilterdb.release.meter import current
from cnnfilterdb.release.metered_aiohttp import MeteredContent

__all__ = ["MeteredSession"]


class MeteredSession(AIOHTTPSession):  # type: ignore[misc]
    """A session whose answers are refused if they state a larger size than expected, and cut off where they exceed it.

    It is the option ``http_session_cls`` of ``aiobotocore.config.AioConfig``.
    """

    async def send(self, request: Any) -> Any:
        """Send a request.

        Raises:
            ExceededError: The answer is larger than expected.
        """
        meter = current.get()
        if meter is None:
            return await super().send(request)
        streamed, request.stream_output = request.stream_output, True  # so that nothing is read uncounted
        answer = await super().send(request)
        response = answer.raw
        try:
            if request.method != "HEAD":
                meter.require(response.content_length or 0)
            response.content = MeteredContent(response.content, meter)
            if not streamed:
                await answer.content
        except BaseException:
            response.close()
            raise
        return answer
