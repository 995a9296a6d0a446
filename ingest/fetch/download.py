"""Downloads over HTTP: whole files that resume, and remote files of which only some ranges are read.

The client is that of unearth, the package finder: it knows the credentials of package indexes (in addresses, in
``.netrc``, in a keyring), ``file://`` addresses and trusted hosts. What it lacks is patience, which :class:`Session`
adds: requests that fail for a passing reason are repeated, each time after a longer pause, or after the pause that the
server asks for.
"""

from __future__ import annotations

import email.utils
import io
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient
from unearth.link import Link

from cnnfilterdb.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.cache import sha256_of, writing
from cnnfilterdb.ingest.fetch.pip_settings import Settings

__all__ = ["NoRangesError", "RemoteFile", "Session", "download", "explain"]

_log = logging.getLogger(__name__)

# Answers that may be better the next time: a timeout, too many requests, and failures of a server or of one before it.
_PASSING = {408, 429, 500, 502, 503, 504, 520, 527}
_LONGEST_PAUSE = 120.0

_BLOCK = 8 << 20
_TAIL = 64 << 10

# Bytes must come as they are stored: an archive must be neither compressed once more nor helpfully decompressed.
_AS_STORED = {"Accept-Encoding": "identity"}


class NoRangesError(DownloadError):
    """A server does not give parts of a file."""


class Session:
    """An HTTP client with patience; a ``Fetcher`` in terms of unearth.

    Attributes:
        retries: How often a failed request is repeated.
    """

    def __init__(self, settings: Settings, *, index_urls: tuple[str, ...] = (), pause: float = 0.25) -> None:
        """Prepare a client; nothing is connected yet.

        Args:
            settings: How hosts are reached.
            index_urls: Addresses of indexes, which may hold credentials.
            pause: Seconds before the first repetition; doubled each time.
        """
        self.retries = max(0, settings.retries)
        self._pause = pause
        self._client = PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=_certificates(settings),
            proxy=settings.proxy,
            timeout=settings.timeout,
            follow_redirects=True,
        )
        # Never ask for a password: a run of hours must not stand still behind a prompt.
        self._client.auth = MultiDomainBasicAuth(prompting=False, index_urls=index_urls)

    def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Get a page.

        Raises:
            httpx2.HTTPError: It cannot be had; also for an answer that refuses access or tells of a broken server.
        """
        return self._send("GET", url, headers, stream=False)

    def head(self, url: str, *, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Get the headers of a page; errors as :meth:`get`."""
        return self._send("HEAD", url, headers, stream=False)

    @contextmanager
    def get_stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Get a page whose bytes are read while they come; errors as :meth:`get`."""
        response = self._send("GET", url, headers, stream=True)
        try:
            yield response
        finally:
            response.close()

    def iter_secure_origins(self) -> Iterator[tuple[str, str, str]]:
        """(scheme, host, port) of what may be asked."""
        yield from self._client.iter_secure_origins()

    def wait(self, attempt: int) -> None:
        """Pause before a repetition; the first attempt is 0."""
        time.sleep(min(self._pause * 2**attempt, _LONGEST_PAUSE))

    def _send(self, method: str, url: str, headers: Mapping[str, str] | None, *, stream: bool) -> httpx2.Response:
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response: httpx2.Response = self._client.send(
                    self._client.build_request(method, url, headers=headers), stream=stream
                )
            except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError) as error:
                if last:
                    raise
                _log.info("%s: %s; asking again", Link(url).redacted, explain(error))
                self.wait(attempt)
                continue
            asked = _retry_after(response)
            if response.status_code not in _PASSING or last or (asked or 0) > _LONGEST_PAUSE:
                break
            response.close()
            _log.info("%s: answered %d; asking again", Link(url).redacted, response.status_code)
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


def download(
    session: Session,
    url: str,
    path: Path,
    *,
    size: int | None,
    sha256: str,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Bring a whole file, going on from what an earlier attempt has left of it.

    Where no hash is known, an earlier part is gone on with only when the server says by its validator (``ETag`` or
    ``Last-Modified``, kept beside the part) that the file is still the same one.

    Args:
        session: The HTTP client.
        url: Where the file is.
        path: Where it goes. It is whole and checked only when this function returns. Whatever fails underway, it is
            left there for the next attempt.
        size: How many bytes there must be; None where it is not known and the server is believed.
        sha256: What their SHA-256 must be: all of its 64 digits, the first ones, or none where it is not known.
        progress: Called with (bytes done, bytes expected).

    Returns:
        The SHA-256 of the file, as 64 hexadecimal digits.

    Raises:
        DownloadError: No network, no such file, or no space left.
        HashMismatchError: Other bytes than expected; they are removed.
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
        # A server that cannot resume would begin anew for ever: only bytes beyond all earlier ones are progress.
        failures = 0 if now > best else failures + 1
        best = max(best, now)
        if failures > session.retries:
            of = f" of {transfer.size}" if transfer.size is not None else ""
            raise DownloadError(f"{name}: {reason} after {best}{of} bytes; check the network and run again")
        if reason:
            _log.info("%s: %s after %d bytes; going on from there", name, reason, now)
            session.wait(failures)
    found = sha256_of(path)
    transfer.validator.unlink(missing_ok=True)
    if not found.startswith(sha256):
        path.unlink()
        if resumed:
            # What an earlier run left may be of another file, or harmed since.
            return download(session, url, path, size=size, sha256=sha256, progress=progress)
        expected = sha256 if len(sha256) == 64 else f"{sha256}..."
        raise HashMismatchError(f"{name}: expected SHA-256 {expected}, found {found}; it is not the expected file")
    return found


class _Transfer:
    """Attempts at one file, and what they have learnt of it.

    Attributes:
        name: Name of the file, for messages.
        size: Its bytes, None as long as neither caller nor server has told.
        validator: Where the validator of a part is kept whose bytes no hash vouches for.
    """

    def __init__(
        self,
        session: Session,
        url: str,
        path: Path,
        size: int | None,
        hashed: bool,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.name = Link(url).filename
        self.size = size
        self.validator = path.with_name(path.name + ".validator")
        self._session, self._url, self._path, self._hashed, self._progress = session, url, path, hashed, progress
        self._given = size is not None

    def go_on(self, done: int) -> str:
        """One attempt at the bytes from ``done`` on; returns why it ended early, if so."""
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
                    with writing(path.parent):
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
                return "the server could not go on"
            else:
                raise _refused(name, response)
            with writing(path.parent), path.open(mode) as file:
                try:
                    # In whatever pieces they come: gathering larger ones would lose what is gathered when a cut comes.
                    for chunk in response.iter_raw():
                        done += len(chunk)
                        file.write(chunk)
                        if self.size is not None and done > self.size:
                            break
                        if self._progress is not None:
                            self._progress(done, self.size)
                except httpx2.HTTPError as error:
                    return explain(error)
            if self.size is None:
                # Chunks have an end of their own; without them or a length, a cut looks like the end.
                if not self._hashed and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
                    path.unlink()
                    raise DownloadError(
                        f"{name}: the server does not tell its size and no hash is known, so that a cut would not be "
                        "noticed; bring it by other means"
                    )
                self.size = done
        if done > self.size:
            path.unlink()
            raise HashMismatchError(f"{name}: expected {self.size} bytes, but more come; it is not the expected file")
        return "" if done == self.size else "the connection was closed"

    def _announced(self, response: httpx2.Response) -> None:
        """Learn the size from the answer, or hold it against the one that is expected."""
        announced = response.headers.get("Content-Length")
        if not self._given:
            self.size = int(announced) if announced is not None else None
        elif announced is not None and int(announced) != self.size:
            raise HashMismatchError(
                f"{self.name}: expected {self.size} bytes, {announced} are announced; it is not the expected file"
            )


class RemoteFile(io.RawIOBase):
    """A file on a server, read by ranges; wrap it with :meth:`buffered`.

    One request brings its last 64 KiB, where a zip file has its table of contents; later ones bring up to 8 MiB each.

    Args:
        session: The HTTP client.
        url: Where the file is.
        size: How many bytes it must have.

    Raises:
        NoRangesError: The server gives no ranges, or the file has another size.
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
        """Announce that these bytes will be read; blocks then end where they end."""
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
        """Read up to as many bytes as the buffer takes; fewer where a range ends or a connection is cut."""
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
            with _opened(self._session, self._url, self._name, headers) as response:
                if response.status_code != 206 or _content_range(response) != (start, self._size):
                    raise NoRangesError(f"{self._name}: the server gives no ranges of it")
                try:
                    for chunk in response.iter_raw():
                        part = chunk[: len(view) - got]
                        view[got : got + len(part)] = part
                        got += len(part)
                        if len(part) < len(chunk):
                            break
                except httpx2.HTTPError as error:
                    reason = explain(error)
            # What came before a cut counts; the reader asks for the rest by itself.
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
                f"{name}: cannot be brought: {explain(error)}; check the network and pip's configuration"
            ) from error
        if response.status_code >= 400 and response.status_code != 416:
            raise _refused(name, response)
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            # A proxy or a portal, whose pages pass for success.
            raise DownloadError(
                f"{name}: an HTML page came instead of the file (a proxy, a login or a quota?); "
                "check pip's configuration, or bring it with a browser"
            )
        yield response


def _certificates(settings: Settings) -> ssl.SSLContext | bool:
    """What servers are checked against; True stands for the client's own choice, which knows ``SSL_CERT_FILE``."""
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
            f"the certificates that pip is set to use (cert={settings.cert}, client-cert={settings.client_cert}) "
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
    """(first byte, bytes of the whole file) of an answer with a part of a file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _total(response: httpx2.Response) -> int | None:
    """Bytes of the whole file, of an answer that there are none beyond them."""
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator(response: httpx2.Response) -> str:
    """What tells this version of a file from others (RFC 9110, section 8.8): a strong ETag, else its date."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _refused(name: str, response: httpx2.Response) -> DownloadError:
    answer = f"{response.status_code} {response.reason_phrase}".rstrip()
    return DownloadError(f"{name}: the server answered {answer}; check pip's configuration or try again later")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def explain(error: Exception) -> str:
    """What an error of the HTTP client says, in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
