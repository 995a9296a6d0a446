"""Downloads over HTTP: whole files that resume, and remote files of which only some ranges are read.

The client is that of unearth, the package finder: it knows the credentials of package indexes (in addresses, in
``.netrc``, in a keyring), ``file://`` addresses and trusted hosts. :class:`Session` adds retries (requests that fail
for a temporary reason are repeated, after growing pauses or the pause that the server asks for) and budgets of time and
bytes (:mod:`cnnfilterdb.ingest.fetch.budget`).
"""

from __future__ import annotations

import email.utils
import io
import logging
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient
from unearth.link import Link

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.budget import GRACE, LARGEST, Budget, within
from cnnfilterdb.ingest.fetch.cache import ByteProgress, sha256_of, writing_cache
from cnnfilterdb.ingest.fetch.pip_settings import Settings

__all__ = ["NoRangesError", "RemoteFile", "Session", "download", "explain_failure"]

_log = logging.getLogger(__name__)

# Answers that may differ the next time: a timeout, too many requests, and failures of a server or of a gateway.
_PASSING = {408, 429, 500, 502, 503, 504, 520, 527}
_LONGEST_PAUSE = 120.0

# Bytes of the largest page of an index, decompressed; the largest ones of the public index have about 40 MB.
_LARGEST_PAGE = 256 << 20

_BLOCK = 8 << 20
_TAIL = 64 << 10

# Bytes must arrive as stored: an archive must be neither compressed again nor automatically decompressed.
_AS_STORED = {"Accept-Encoding": "identity"}


class NoRangesError(DownloadError):
    """A server does not send ranges of a file."""


class Session:
    """An HTTP client with retries and budgets; a ``Fetcher`` in terms of unearth.

    Attributes:
        retries: How often a failed request is repeated.
        grace: Seconds in which an answer must begin, and that a transfer may take even if it sends little.
    """

    def __init__(self, settings: Settings, *, index_urls: tuple[str, ...] = (), pause: float = 0.25) -> None:
        """Prepare a client; nothing is connected yet.

        Args:
            settings: How hosts are reached.
            index_urls: Addresses of indexes, which may contain credentials.
            pause: Seconds before the first repetition; doubled each time.
        """
        self.retries = max(0, settings.retries)
        self.grace = GRACE
        self._pause = pause
        self._client = PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=_certificates(settings),
            proxy=settings.proxy,
            timeout=settings.timeout,
            follow_redirects=True,
        )
        # Never ask for a password: a run of hours must not wait at a prompt.
        self._client.auth = MultiDomainBasicAuth(prompting=False, index_urls=index_urls)

    def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Get a page.

        Raises:
            httpx2.HTTPError: It cannot be fetched; also for an answer that refuses access or reports a server error.
            DownloadError: It is too large or arrives too slowly.
        """
        response = self._send("GET", url, headers)
        budget = self.budget(Link(url).redacted, limit=_LARGEST_PAGE)
        parts = []
        try:
            for part in response.iter_bytes():
                budget.charge(len(part))
                parts.append(part)
        finally:
            response.close()
        lines = [
            (key, value)
            for key, value in response.headers.multi_items()
            if key.lower() not in {"content-encoding", "content-length", "transfer-encoding"}
        ]
        return httpx2.Response(
            response.status_code,
            headers=lines,
            content=b"".join(parts),
            request=response.request,
            extensions=response.extensions,
            history=response.history,
        )

    def head(self, url: str, *, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Get the headers of a page; errors as :meth:`get`."""
        response = self._send("HEAD", url, headers)
        response.close()
        return response

    @contextmanager
    def get_stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Get a page whose bytes are read as they arrive; errors as :meth:`get`."""
        response = self._send("GET", url, headers)
        try:
            yield response
        finally:
            response.close()

    def budget(self, what: str, limit: int | None = None) -> Budget:
        """A budget for one transfer.

        Args:
            what: Its name, for messages.
            limit: Bytes that it may have; None where they are unknown.
        """
        return Budget(what, limit=LARGEST if limit is None else limit, grace=self.grace)

    def iter_secure_origins(self) -> Iterator[tuple[str, str, str]]:
        """(scheme, host, port) of the origins that may be contacted."""
        yield from self._client.iter_secure_origins()

    def wait(self, attempt: int) -> float:
        """Pause before a repetition; the first attempt is 0. Returns the seconds of the pause."""
        seconds: float = min(self._pause * 2**attempt, _LONGEST_PAUSE)
        time.sleep(seconds)
        return seconds

    def _send(self, method: str, url: str, headers: Mapping[str, str] | None) -> httpx2.Response:
        """An answer whose body has not been read."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self._answer(method, url, headers)
            except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError) as error:
                if last:
                    raise
                _log.info("%s: %s; repeating the request", Link(url).redacted, explain_failure(error))
                self.wait(attempt)
                continue
            asked = _retry_after(response)
            if response.status_code not in _PASSING or last or (asked or 0) > _LONGEST_PAUSE:
                break
            response.close()
            _log.info("%s: answered %d; repeating the request", Link(url).redacted, response.status_code)
            if asked is None:
                self.wait(attempt)
            else:
                time.sleep(asked)
        if response.status_code in _PASSING | {401, 403, 407}:
            response.close()
            raise httpx2.HTTPStatusError(
                f"answered {response.status_code} {response.reason_phrase}".strip(),
                request=response.request,
                response=response,
            )
        return response

    def _answer(self, method: str, url: str, headers: Mapping[str, str] | None) -> httpx2.Response:
        """One request, whose headers must be complete in time: a server may send them byte by byte for hours."""
        request = self._client.build_request(method, url, headers=headers)
        try:
            answer: httpx2.Response = within(
                self.grace, lambda: self._client.send(request, stream=True), lambda late: late.close()
            )
            return answer
        except TimeoutError as error:
            raise httpx2.HTTPError(str(error)) from error


def download(
    session: Session,
    url: str,
    path: Path,
    *,
    size: int | None,
    sha256: str,
    progress: ByteProgress | None = None,
) -> str:
    """Download a whole file, resuming an earlier attempt.

    If no hash is known, an earlier part is resumed only if the server's validator (``ETag`` or ``Last-Modified``,
    kept beside the part) shows that the file has not changed.

    Args:
        session: The HTTP client.
        url: Address of the file.
        path: Where it is written. It is complete and verified only when this function returns. After a failure the
            part stays there for the next attempt.
        size: Expected number of bytes; None if it is unknown, in which case the server is trusted.
        sha256: Expected SHA-256: all of its 64 digits, the first ones, or none where it is unknown.
        progress: Called with (bytes done, bytes expected).

    Returns:
        The SHA-256 of the file, as 64 hexadecimal digits.

    Raises:
        DownloadError: No network, no such file, a server that is too slow or sends too much, or no space left.
        HashMismatchError: The bytes are not the expected ones; they are removed.
    """
    transfer = _Transfer(session, url, path, size, bool(sha256), progress)
    name = transfer.name
    resumed = path.exists()
    best = failures = 0
    while (done := _size(path)) != transfer.size:
        if transfer.size is not None and done > transfer.size:
            path.unlink()
            continue
        reason = transfer.go_on(done)
        now = _size(path)
        # A server that cannot resume would start over forever: only bytes beyond all earlier ones are progress.
        failures = 0 if now > best else failures + 1
        best = max(best, now)
        if failures > session.retries:
            of = f" of {transfer.size}" if transfer.size is not None else ""
            raise DownloadError(f"{name}: {reason} after {best}{of} bytes; check the network and run again")
        if reason:
            _log.info("%s: %s after %d bytes; resuming", name, reason, now)
            transfer.budget.extend(session.wait(failures))
    found = sha256_of(path)
    transfer.validator.unlink(missing_ok=True)
    if not found.startswith(sha256):
        path.unlink()
        if resumed:
            # The part from an earlier run may belong to another file, or be damaged.
            return download(session, url, path, size=size, sha256=sha256, progress=progress)
        expected = sha256 if len(sha256) == 64 else f"{sha256}..."
        raise HashMismatchError(f"{name}: expected SHA-256 {expected}, found {found}; it is not the expected file")
    return found


class _Transfer:
    """Attempts to download one file, and what they have learnt about it.

    Attributes:
        name: Name of the file, for messages.
        size: Its bytes, None until the caller or the server states it.
        validator: File with the validator of a part without a known hash.
        budget: Limits of time and bytes for all attempts together.
    """

    def __init__(
        self,
        session: Session,
        url: str,
        path: Path,
        size: int | None,
        hashed: bool,
        progress: ByteProgress | None,
    ) -> None:
        self.name = Link(url).filename
        self.size = size
        self.validator = path.with_name(path.name + ".validator")
        self._session, self._url, self._path, self._hashed, self._progress = session, url, path, hashed, progress
        self._given = size is not None
        self.budget = session.budget(self.name)

    def go_on(self, done: int) -> str:
        """One attempt at the bytes from ``done`` on; returns why it ended early, if it did."""
        path, name = self._path, self.name
        known = "" if self._hashed else _text(self.validator)
        if done and not self._hashed and not known:
            path.unlink()
            done = 0
        headers = dict(_AS_STORED)
        if done:
            headers["Range"] = f"bytes={done}-"
            if known:
                headers["If-Range"] = known
        with _opened(self._session, self._url, name, headers) as response:
            span = _content_range(response)
            same = self._hashed or not done or _validator(response) == known
            if response.status_code == 206 and span and span[0] == done and self.size in (None, span[1]) and same:
                mode, self.size = "ab", span[1]
            elif response.status_code == 200:
                mode, done = "wb", 0
                self._announced(response)
                if not self._hashed:
                    with writing_cache(path.parent):
                        self.validator.write_text(_validator(response), encoding="utf-8")
            elif (
                done and response.status_code == 416 and self._hashed and self.size is None and _total(response) == done
            ):
                self.size = done
                return ""
            elif done:
                path.unlink()
                if not self._given:
                    self.size = None
                return "the server could not resume"
            else:
                raise _refused(name, response)
            with writing_cache(path.parent), path.open(mode) as file:
                try:
                    # In pieces as they arrive: larger buffers would be lost when the connection breaks.
                    for chunk in response.iter_raw():
                        self.budget.charge(len(chunk))
                        done += len(chunk)
                        file.write(chunk)
                        if self.size is not None and done > self.size:
                            break
                        if self._progress is not None:
                            self._progress(done, self.size)
                except httpx2.HTTPError as error:
                    return explain_failure(error)
            if self.size is None:
                # Chunked transfers mark their end; without chunks or a length, a cut looks like the end.
                if not self._hashed and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
                    path.unlink()
                    raise DownloadError(
                        f"{name}: the server sent no size and no checksum is known, so a truncated download would "
                        "go unnoticed; download it another way"
                    )
                self.size = done
        if done > self.size:
            path.unlink()
            raise HashMismatchError(f"{name}: expected {self.size} bytes, found more; it is not the expected file")
        return "" if done == self.size else "the connection was closed"

    def _announced(self, response: httpx2.Response) -> None:
        """Learn the size from the answer, or compare it with the expected one."""
        announced = response.headers.get("Content-Length")
        if not self._given:
            self.size = int(announced) if announced is not None else None
            if self.size is not None and self.size > LARGEST:
                raise DownloadError(f"{self.name}: the server announces {self.size:,} bytes; refused")
        elif announced is not None and int(announced) != self.size:
            raise HashMismatchError(
                f"{self.name}: expected {self.size} bytes, {announced} are announced; it is not the expected file"
            )


class RemoteFile(io.RawIOBase):
    """A file on a server, read by ranges; wrap it with :meth:`buffered`.

    One request fetches its last 64 KiB, where a zip file has its table of contents; later ones fetch up to 8 MiB each.

    Args:
        session: The HTTP client.
        url: Where the file is.
        size: Its expected number of bytes.

    Raises:
        NoRangesError: The server sends no ranges, or the file has another size.
        DownloadError: It cannot be reached. This may also happen later, while it is read.
    """

    def __init__(self, session: Session, url: str, size: int) -> None:
        self._session, self._url, self._size = session, url, size
        self._name = Link(url).filename
        self._position = 0
        self._window = (0, 0)
        self._tail = b""
        tail = bytearray(min(_TAIL, size))
        start, got = size - len(tail), 0
        while got < len(tail):
            got += self._fetch(start + got, memoryview(tail)[got:])
        self._tail = bytes(tail)

    def buffered(self) -> io.BufferedReader:
        """The same file, read in large blocks."""
        return io.BufferedReader(self, _BLOCK)

    def ahead(self, start: int, stop: int) -> None:
        """Announce that these bytes will be read, so that blocks end where they end."""
        self._window = (start, stop)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position from which bytes are read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; nothing is requested."""
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Read at most as many bytes as fit into the buffer; fewer if a range ends or a connection breaks."""
        view = memoryview(buffer).cast("B")
        start, tail = self._position, self._size - len(self._tail)
        if start >= tail:
            part = self._tail[start - tail : start - tail + len(view)]
            view[: len(part)] = part
            got = len(part)
        else:
            inside = self._window[0] <= start < self._window[1]
            stop = self._window[1] if inside else min(start + _TAIL, tail)
            got = self._fetch(start, view[: stop - start])
        self._position += got
        return got

    def _fetch(self, start: int, view: memoryview) -> int:
        """Bytes from ``start`` on into the view, at least one."""
        headers = _AS_STORED | {"Range": f"bytes={start}-{start + len(view) - 1}"}
        for attempt in range(self._session.retries + 1):
            if attempt:
                self._session.wait(attempt - 1)
            got, reason = 0, "the connection was closed"
            budget = self._session.budget(self._name)
            with _opened(self._session, self._url, self._name, headers) as response:
                if response.status_code != 206 or _content_range(response) != (start, self._size):
                    raise NoRangesError(f"{self._name}: the server sends no ranges of it")
                try:
                    for chunk in response.iter_raw():
                        budget.charge(len(chunk))
                        part = chunk[: len(view) - got]
                        view[got : got + len(part)] = part
                        got += len(part)
                        if len(part) < len(chunk):
                            break
                except httpx2.HTTPError as error:
                    reason = explain_failure(error)
            # Bytes that arrived before the break count; the reader requests the rest.
            if got:
                return got
        raise DownloadError(f"{self._name}: {reason}; check the network and run again")


@contextmanager
def _opened(session: Session, url: str, name: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """An answer that may be an archive, or a part of one."""
    with ExitStack() as stack:
        try:
            response = stack.enter_context(session.get_stream(url, headers=headers))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise DownloadError(
                f"{name}: cannot be downloaded: {explain_failure(error)}; check the network and pip's configuration"
            ) from error
        if response.status_code >= 400 and response.status_code != 416:
            raise _refused(name, response)
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            # A proxy or a login portal, whose pages look like success.
            raise DownloadError(
                f"{name}: the server sent an HTML page instead of the file (a proxy, a login or a quota?); "
                "check pip's configuration, or download it with a browser"
            )
        yield response


def _certificates(settings: Settings) -> ssl.SSLContext | bool:
    """How certificates are verified; True means the client's default, which uses ``SSL_CERT_FILE``."""
    if settings.cert is None and settings.client_cert is None:
        return True
    try:
        if settings.cert is None:
            context = ssl.create_default_context()
        elif Path(settings.cert).is_dir():
            context = ssl.create_default_context(capath=settings.cert)
        else:
            context = ssl.create_default_context(cafile=settings.cert)
        if settings.client_cert is not None:
            context.load_cert_chain(settings.client_cert)
    except OSError as error:
        raise DownloadError(
            f"the certificates of pip's configuration (cert={settings.cert}, client-cert={settings.client_cert}) "
            f"cannot be read: {error.strerror or error}; correct pip's configuration"
        ) from error
    return context


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait: a number, or the time until a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date - datetime.now(date.tzinfo or UTC)).total_seconds())


def _content_range(response: httpx2.Response) -> tuple[int, int] | None:
    """(first byte, bytes of the whole file) of an answer with a range of a file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _total(response: httpx2.Response) -> int | None:
    """Bytes of the whole file, from an answer that a range begins beyond its end."""
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator(response: httpx2.Response) -> str:
    """What identifies this version of a file (RFC 9110, section 8.8): a strong ETag, else its date."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _refused(name: str, response: httpx2.Response) -> DownloadError:
    answer = f"{response.status_code} {response.reason_phrase}".rstrip()
    return DownloadError(f"{name}: the server answered {answer}; check pip's configuration or try again later")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def explain_failure(error: Exception) -> str:
    """The message of an error of the HTTP client, in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
