"""Files of Hugging Face repositories, complete or only their convolutions, downloaded into the cache folder.

huggingface_hub makes the requests: it knows tokens (``HF_TOKEN``, ``hf auth login``), waits as long as the server asks,
and resumes where a connection was cut. ``HF_ENDPOINT`` names a mirror, ``HF_HUB_OFFLINE=1`` forbids the network. A
branch or a tag is resolved to its commit once, with the first request; cached files need none. The library is imported
on first use.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.core.schema import is_sha256
from cnnfilterdb.ingest.fetch.budget import GRACE, Budget, supervised
from cnnfilterdb.ingest.fetch.cache import ByteProgress, Cache, searched, sha256_of, writing_cache
from cnnfilterdb.ingest.fetch.hub_cache import (
    HubCache,
    RepositoryFile,
    RepositoryFiles,
    snapshot_of,
    stated_sha256,
)
from cnnfilterdb.ingest.fetch.partial_safetensors import gather

__all__ = ["HuggingFace"]

_log = logging.getLogger(__name__)

# Seconds without progress after which the download of a whole file is given up. huggingface_hub waits for minutes
# if the server limits the rate of requests.
_PATIENCE = 600.0
# Bytes of the largest answer that lists the files of a repository
_LARGEST_ANSWER = 64 << 20


class _NoRangesError(DownloadError):
    """A server does not send ranges of a file."""


class HuggingFace:
    """Downloads files of repositories into a cache.

    Args:
        cache: Where they are kept; the user's cache by default.
        offline: Do not access the network. By default the value of ``HF_HUB_OFFLINE``.
        folder: Where the caller has looked for files before, for messages.
        endpoint: Address of the server. By default the value of ``HF_ENDPOINT``, else the public one.
        token: Token of the user. By default the one that huggingface_hub uses.
        patience: How often a request that fails for a temporary reason is repeated.

    Attributes:
        local: The files in the cache.
    """

    def __init__(
        self,
        *,
        cache: Cache | None = None,
        offline: bool = False,
        folder: Path | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        patience: int = 5,
    ) -> None:
        self.cache = cache or Cache()
        self.offline = offline or os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        # Read now, not when some other module first imports huggingface_hub
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.local = HubCache(self.cache.folder / "huggingface", self.cache.folder / "huggingface-partial")
        self._folder, self._token, self._patience = folder, token, patience

    def repository(self, repo: str, revision: str = "main") -> RepositoryFiles:
        """Ask for the commit and the files of a repository.

        Raises:
            DownloadError: No such repository or revision exists, access is refused, or there is no network.
        """
        self._reachable(repo, ())
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
        with self._errors(repo, revision):
            body = self._patiently(lambda: self._api(repo, url))
            try:
                answer = json.loads(body)
                commit = answer["sha"]
                files = tuple(sibling["rfilename"] for sibling in answer["siblings"] or ())
                if not all(isinstance(text, str) for text in (commit, *files)):
                    raise TypeError("names that are not text")
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise DownloadError(
                    f"{repo}: {self.endpoint} gave an answer that does not list its files; is it a mirror of the Hub?"
                ) from error
        return RepositoryFiles(repo, commit, files)

    def fetch(
        self, repo: str, files: Sequence[str], revision: str = "main", progress: ByteProgress | None = None
    ) -> RepositoryFile:
        """Download the first of some files that the repository has, and verify its hash.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A branch, a tag or a commit.
            progress: Called with (bytes done, bytes expected).

        Raises:
            DownloadError: It cannot be downloaded; the message states why and what to do.
            HashMismatchError: Its bytes are not those that the server states, twice.
        """
        self._reachable(repo, files)
        for file in files:
            for again in (False, True):
                path = self._download(repo, file, revision, progress, again)
                if path is None:
                    break
                stated, sha256 = stated_sha256(path), sha256_of(path)
                if stated in (None, sha256):
                    return RepositoryFile(path, repo, file, snapshot_of(path, file).name, sha256, stated)
                if again:
                    _forget(path)
                    raise HashMismatchError(
                        f"{repo}: {file}: expected SHA-256 {stated}, found {sha256}; it is not the expected file"
                    )
                _log.warning("%s: %s arrived with another SHA-256 than %s; downloading it again", repo, file, stated)
        raise self._missing(repo, files, revision)

    def fetch_partial(
        self, repo: str, files: Sequence[str], revision: str = "main", progress: ByteProgress | None = None
    ) -> RepositoryFile:
        """Download only the convolutions of a safetensors file, by ranges, as a small file of the same format.

        The hash of the whole file cannot be verified this way. An earlier part is resumed. Where the repository has no
        such file, or the server sends no ranges, a whole file is downloaded.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A branch, a tag or a commit.
            progress: Called with (bytes done, bytes expected).

        Raises:
            DownloadError, HashMismatchError: As :meth:`fetch`.
            WeightFileError: The header is damaged.
        """
        self._reachable(repo, files)
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for file in files:
            if not file.endswith(".safetensors"):
                continue
            try:
                with self._errors(repo, revision):
                    remote = _Remote(self, repo, file, revision)
            except RemoteEntryNotFoundError:
                continue
            path = self.local.partial_path(repo, remote.commit, file)
            try:
                with self.cache.lock(f"{repo.replace('/', '--')}-{remote.commit}"):
                    if not path.is_file():
                        with writing_cache(self.cache.folder), self._errors(repo, revision):
                            gather(remote, path, progress)
            except _NoRangesError as error:
                _log.info("%s; downloading the whole file", error)
                break
            self.local.note(repo, revision, remote.commit)
            return RepositoryFile(path, repo, file, remote.commit, None, remote.sha256)
        return self.fetch(repo, files, revision, progress)

    # -------------------------------------------------------------------------------------------------- private

    def _download(self, repo: str, file: str, revision: str, progress: ByteProgress | None, again: bool) -> Path | None:
        """Where huggingface_hub put a file; None if the repository has none of that name."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        budget = Budget(f"{repo}: {file}", grace=_PATIENCE)
        with writing_cache(self.local.folder), self._errors(repo, revision):
            try:
                path = supervised(
                    lambda: hf_hub_download(
                        repo,
                        file,
                        revision=revision,
                        cache_dir=self.local.folder,
                        endpoint=self.endpoint,
                        token=self._token,
                        library_name="cnnfilterdb",
                        tqdm_class=_bar(progress, budget),
                        force_download=again,
                    ),
                    budget,
                )
            except RemoteEntryNotFoundError:
                return None
        return Path(path)

    def _api(self, repo: str, url: str) -> bytes:
        """The answer of the API, read within a budget: huggingface_hub would read one of any length."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(token=self._token, library_name="cnnfilterdb")
        budget = Budget(repo, limit=_LARGEST_ANSWER, grace=GRACE)

        def ask() -> Any:
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                parts = []
                for part in response.iter_bytes():
                    budget.charge(len(part))
                    parts.append(part)
                kept = {
                    key: value for key, value in response.headers.items() if key.lower().startswith(("x-", "retry"))
                }
                return type(response)(
                    response.status_code, headers=kept, content=b"".join(parts), request=response.request
                )

        answer = supervised(ask, budget)
        hf_raise_for_status(answer)
        body: bytes = answer.content
        return body

    def _reachable(self, repo: str, files: Sequence[str]) -> None:
        if self.offline:
            raise DownloadError(
                f"{repo}: offline, and {' or '.join(files) or 'its weight file'} is "
                f"{searched(self.local.folder, self._folder)}; put the file into a folder and pass it with --from "
                "(option folder), or go online"
            )

    def _missing(self, repo: str, files: Sequence[str], revision: str) -> DownloadError:
        return DownloadError(
            f"{repo}: has no {' or '.join(files)} at revision {revision}; see {self.endpoint}/{repo}/tree/{revision}"
        )

    def _patiently(self, ask: Callable[[], bytes]) -> bytes:
        """Repeat what fails for a temporary reason; most calls of huggingface_hub do so themselves."""
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(self._patience + 1):
            try:
                return ask()
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status not in {408, 429, 500, 502, 503, 504} or attempt == self._patience:
                    raise
                asked = error.response.headers.get("Retry-After", "")
                time.sleep(min(float(asked), 120.0) if asked.isdecimal() else min(2.0**attempt, 8.0))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _errors(self, repo: str, revision: str) -> Iterator[None]:
        """Convert the errors of huggingface_hub to one line with the remedy."""
        from huggingface_hub import errors

        try:
            yield
        except errors.RemoteEntryNotFoundError:
            raise
        except errors.GatedRepoError as error:
            raise DownloadError(
                f"{repo}: its owner grants access on request; accept the conditions at {self.endpoint}/{repo}, "
                "then set HF_TOKEN or run `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DownloadError(
                f"{repo}: no such repository at {self.endpoint}, or a private one; "
                "check the name, or set HF_TOKEN to a token that may read it"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise DownloadError(
                f"{repo}: has no revision {revision}; see {self.endpoint}/{repo}/commits/main"
            ) from error
        except errors.HFValidationError as error:
            raise DownloadError(f"{repo}: not the name of a repository; expected owner/name") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            remedy = {
                401: "the token is refused; set HF_TOKEN to a valid one",
                403: "access is refused; set HF_TOKEN to a token that may read it",
                429: "too many requests; wait, or set HF_TOKEN, which raises the limit",
            }.get(status, "try again later")
            raise DownloadError(f"{repo}: {self.endpoint} answered {status}; {remedy}") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.FileMetadataError) as error:
            raise DownloadError(
                f"{repo}: {self.endpoint} cannot be reached, or is not such a server, and the cache "
                f"{self.local.folder} does not have the file; check the network and HF_ENDPOINT, or pass a folder with "
                "--from (option folder)"
            ) from error
        except (OSError, RuntimeError) as error:
            # The cache explains a full disk better
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise
            raise _interrupted(repo, error) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"}:
                raise
            raise _interrupted(repo, error) from error


def _interrupted(repo: str, error: Exception) -> DownloadError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DownloadError(f"{repo}: cannot be downloaded: {reason}; check the network and run again")


def _forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _bar(progress: ByteProgress | None, budget: Budget) -> Any:
    """A progress bar in terms of huggingface_hub that draws nothing, charges a budget and reports to the caller."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done = int(kwargs.get("initial") or 0)
            self.expected = kwargs.get("total")
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            budget.charge(max(0, int(n or 0)))
            if progress is not None:
                progress(self.done, int(self.expected) if self.expected else None)
            return None

    return Bar


class _Remote:
    """A file on the server of which ranges are read."""

    def __init__(self, client: HuggingFace, repo: str, file: str, revision: str) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self._client = client
        self._headers = build_hf_headers(token=client._token, library_name="cnnfilterdb")
        self.name = f"{repo}: {file}"
        self._url = hf_hub_url(repo, file, revision=revision, endpoint=client.endpoint)
        self._locate()

    def _locate(self) -> None:
        from huggingface_hub import get_hf_file_metadata

        found = get_hf_file_metadata(
            self._url, token=self._client._token, endpoint=self._client.endpoint, retry_on_errors=True
        )
        if not found.commit_hash or not found.size:
            raise _NoRangesError(f"{self.name}: the server states neither commit nor size")
        self.commit, self.size, self._location = found.commit_hash, int(found.size), str(found.location)
        self.sha256 = found.etag if is_sha256(found.etag) else None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop.

        Raises:
            _NoRangesError: The server sends something else.
        """
        budget = Budget(self.name, limit=stop - start, grace=_PATIENCE)
        for attempt in range(2):
            headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            # The token is for the server of the repository, and not for the store that it redirects to
            if urlsplit(self._location).netloc == urlsplit(self._client.endpoint).netloc:
                headers |= self._headers
            data = supervised(lambda headers=headers: self._range(start, stop, headers, budget), budget)  # type: ignore[misc]
            if data is None and not attempt:
                self._locate()  # a signed address is valid only for a while
                continue
            break
        if data is None:
            raise DownloadError(f"{self.name}: access to the store was refused; run again")
        if len(data) != stop - start:
            raise DownloadError(f"{self.name}: expected {stop - start} bytes, {len(data)} arrived; run again")
        return data

    def _range(self, start: int, stop: int, headers: dict[str, str], budget: Budget) -> bytes | None:
        """The answer to one request; None where access is refused."""
        from huggingface_hub.utils import http_stream_backoff

        with http_stream_backoff("GET", self._location, headers=headers, follow_redirects=True) as response:
            if response.status_code in (401, 403):
                return None
            if response.status_code >= 400 and response.status_code != 416:
                response.raise_for_status()
            given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
            if (
                response.status_code != 206
                or not given
                or tuple(map(int, given.groups())) != (start, stop - 1, self.size)
            ):
                raise _NoRangesError(f"{self.name}: the server sends no ranges of it")
            parts = []
            for part in response.iter_raw():
                budget.charge(len(part))
                parts.append(part)
        return b"".join(parts)
