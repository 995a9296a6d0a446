"""Files of Hugging Face repositories, whole or only their convolutions, in the cache folder.

    <cache>/huggingface/models--<owner>--<name>/...     the cache of huggingface_hub, with its layout
    <cache>/huggingface-partial/<owner>--<name>/<commit>/<file>     files of convolution tensors, read by ranges

Repositories are reached by huggingface_hub, which knows tokens (``HF_TOKEN``, ``hf auth login``), waits where the
server asks for it, and goes on where a connection was cut. ``HF_ENDPOINT`` names a mirror, ``HF_HUB_OFFLINE=1`` forbids
the network. A branch or a tag is resolved to its commit once, with the first request; what is in the cache needs none.
The library is imported when something is asked for first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cnnfilterdb.errors import DownloadError, HashMismatchError, WeightFileError
from cnnfilterdb.ingest.fetch.cache import Cache, sha256_of, writing
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.layers import Tensor
from cnnfilterdb.schema import ModelFacts

__all__ = ["Brought", "HuggingFace", "Repository", "partial_origin"]

_log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A gap shorter than that is read over: another request would take longer
_GAP = 64 << 10
_BLOCK = 8 << 20
_HEADER = 64 << 10
_MAX_HEADER = 100 << 20
_FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# Beginning of the keys that a partial file has in its metadata
_MARK = "cnnfilterdb."


@dataclass(frozen=True, slots=True)
class Brought:
    """A file of a repository that lies in the cache.

    Attributes:
        path: Where it is.
        repo: The repository, ``owner/name``.
        file: Its path in there.
        revision: The commit that it is of, 40 hexadecimal digits.
        sha256: Its SHA-256; None for a partial file, whose bytes are not those of the repository.
        stated: The SHA-256 that the server states; None where it states none.
    """

    path: Path
    repo: str
    file: str
    revision: str
    sha256: str | None
    stated: str | None = None

    @property
    def url(self) -> str:
        """The package URL (purl, ECMA-427).

        >>> Brought(Path("x"), "timm/vgg11.tv_in1k", "model.safetensors", "0" * 40, None).url[:44]
        'pkg:huggingface/timm/vgg11.tv_in1k@000000000'
        """
        return f"pkg:huggingface/{self.repo}@{self.revision}#{self.file}"

    @property
    def partial(self) -> bool:
        """Only convolution tensors were read."""
        return self.sha256 is None

    def facts(self, known: ModelFacts) -> ModelFacts:
        """Facts of a model with those of its file.

        Of a partial file the hash is the one that the server states of the whole, unchecked: it stands in ``original``.
        """
        original = dict(known.original or {})
        if self.partial:
            original["partial"] = "convolutions only; the hash of the whole file was not checked"
            if self.stated:
                original["stated_sha256"] = self.stated
        return known.updated(
            url=self.url, revision=self.revision, weights_sha256=self.sha256, original=original or None
        )


@dataclass(frozen=True, slots=True)
class Repository:
    """What is known of a repository.

    Attributes:
        name: ``owner/name``.
        revision: The commit, 40 hexadecimal digits.
        files: Paths of its files; from the cache, of those that were brought.
    """

    name: str
    revision: str
    files: tuple[str, ...] = field(default=())


class _NoRangesError(DownloadError):
    """A server does not give parts of a file."""


class HuggingFace:
    """Brings files of repositories into a cache.

    Args:
        cache: Where they go; the user's cache by default.
        offline: Ask nothing of the network. By default what ``HF_HUB_OFFLINE`` says.
        endpoint: Address of the server. By default what ``HF_ENDPOINT`` says, else the public one.
        token: Token of the user. By default the one that huggingface_hub knows.
        patience: How often a request that fails for a passing reason is repeated.
    """

    def __init__(
        self,
        *,
        cache: Cache | None = None,
        offline: bool = False,
        endpoint: str | None = None,
        token: str | None = None,
        patience: int = 5,
    ) -> None:
        self.cache = cache or Cache()
        self.offline = offline or os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        # Read now, not when huggingface_hub was imported by whomever
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._token, self._patience = token, patience
        self.folder = self.cache.folder / "huggingface"

    # ---------------------------------------------------------------------------------------------- what is there

    def cached(self, repo: str, files: Sequence[str], revision: str = "main") -> Brought | None:
        """The first of some files that is in the cache, whole and unharmed; None where none is.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A commit, or a branch or tag as it was when a file of it was brought last.
        """
        return self.found(self.folder, repo, files, revision)

    @staticmethod
    def found(folder: Path, repo: str, files: Sequence[str], revision: str = "main") -> Brought | None:
        """The same in any cache of huggingface_hub, such as that of another program."""
        from huggingface_hub import try_to_load_from_cache

        for file in files:
            known = try_to_load_from_cache(repo, file, cache_dir=folder, revision=revision)
            if isinstance(known, str):
                path = Path(known)
                stated = _stated(path)
                sha256 = sha256_of(path)
                if stated in (None, sha256):
                    commit = _snapshot(path, file).name
                    return Brought(path, repo, file, commit, sha256, stated)
                _log.warning("%s was changed after it was brought", path)
        return None

    def cached_partial(self, repo: str, files: Sequence[str], revision: str = "main") -> Brought | None:
        """The first of some files whose convolutions are in the cache."""
        commit = self._commit(repo, revision)
        for file in files if commit else ():
            path = self._partial_path(repo, commit, file)
            if path.is_file() and (origin := partial_origin(path)) is not None:
                return Brought(path, repo, file, commit, None, origin.get("sha256"))
        return None

    def cached_repository(self, repo: str, revision: str = "main") -> Repository | None:
        """What the cache has of a repository; None where it has nothing."""
        commit = self._commit(repo, revision)
        snapshot = self._storage(repo) / "snapshots" / commit
        whole = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
        parts = self._partial_path(repo, commit, "x").parent
        partial = [
            path.relative_to(parts).as_posix() for path in parts.rglob("*") if path.is_file() and path.suffix != ".part"
        ]
        files = sorted({*whole, *partial}) if commit else []
        return Repository(repo, commit, tuple(files)) if files else None

    # ---------------------------------------------------------------------------------------------- what is brought

    def repository(self, repo: str, revision: str = "main") -> Repository:
        """Ask for the commit and the files of a repository.

        Raises:
            DownloadError: There is no such repository or revision, access is refused, or there is no network.
        """
        self._reachable(repo, ())
        from huggingface_hub import HfApi

        with self._told(repo, revision):
            api = HfApi(endpoint=self.endpoint, token=self._token, library_name="cnnfilterdb")
            info = self._patiently(lambda: api.model_info(repo, revision=revision))
        return Repository(repo, info.sha or revision, tuple(sibling.rfilename for sibling in info.siblings or ()))

    def bring(
        self,
        repo: str,
        files: Sequence[str],
        revision: str = "main",
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Brought:
        """Bring the first of some files that the repository has, and check its hash.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A branch, a tag or a commit.
            progress: Called with (bytes done, bytes expected).

        Raises:
            DownloadError: It cannot be brought; the message tells why and what to do.
            HashMismatchError: Other bytes came than the server states, twice.
        """
        self._reachable(repo, files)
        for file in files:
            for again in (False, True):
                path = self._download(repo, file, revision, progress, again)
                if path is None:
                    break
                stated, sha256 = _stated(path), sha256_of(path)
                if stated in (None, sha256):
                    return Brought(path, repo, file, _snapshot(path, file).name, sha256, stated)
                if again:
                    _forget(path)
                    raise HashMismatchError(
                        f"{repo}: {file}: expected SHA-256 {stated}, found {sha256}; it is not the expected file"
                    )
                _log.warning("%s: %s came with another SHA-256 than %s; it is brought again", repo, file, stated)
        raise self._missing(repo, files, revision)

    def bring_partial(
        self,
        repo: str,
        files: Sequence[str],
        revision: str = "main",
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Brought:
        """Bring the convolutions of a safetensors file only, by ranges, as a small file of the same format.

        Taken are all tensors of four dimensions that are weights, all vectors (few bytes, and they tell the kind of a
        layer), and the matrices of CondConv. The hash of the whole file cannot be checked so. What was begun is gone
        on with. Where the repository has no such file, or the server gives no ranges, a whole file is brought.

        Args:
            repo: The repository, ``owner/name``.
            files: Paths in it, by preference.
            revision: A branch, a tag or a commit.
            progress: Called with (bytes done, bytes expected).

        Raises:
            DownloadError, HashMismatchError: As :meth:`bring`.
            WeightFileError: The header is damaged.
        """
        self._reachable(repo, files)
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for file in files:
            if not file.endswith(".safetensors"):
                continue
            try:
                with self._told(repo, revision):
                    remote = _Remote(self, repo, file, revision)
            except RemoteEntryNotFoundError:
                continue
            path = self._partial_path(repo, remote.commit, file)
            try:
                with self.cache.lock(f"{repo.replace('/', '--')}-{remote.commit}"):
                    if not path.is_file():
                        with writing(self.cache.folder), self._told(repo, revision):
                            _gather(remote, path, progress)
            except _NoRangesError as error:
                _log.info("%s; bringing the whole file", error)
                break
            self.note(repo, revision, remote.commit)
            return Brought(path, repo, file, remote.commit, None, remote.sha256)
        return self.bring(repo, files, revision, progress)

    # -------------------------------------------------------------------------------------------------- privately

    def _download(
        self,
        repo: str,
        file: str,
        revision: str,
        progress: Callable[[int, int | None], None] | None,
        again: bool,
    ) -> Path | None:
        """Where huggingface_hub put a file; None where the repository has none of that name."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with writing(self.folder), self._told(repo, revision):
            try:
                path = hf_hub_download(
                    repo,
                    file,
                    revision=revision,
                    cache_dir=self.folder,
                    endpoint=self.endpoint,
                    token=self._token,
                    library_name="cnnfilterdb",
                    tqdm_class=_bar(progress),
                    force_download=again,
                )
            except RemoteEntryNotFoundError:
                return None
        return Path(path)

    def _storage(self, repo: str) -> Path:
        return self.folder / f"models--{repo.replace('/', '--')}"

    def _partial_path(self, repo: str, commit: str, file: str) -> Path:
        return self.cache.folder / "huggingface-partial" / repo.replace("/", "--") / commit / file

    def _commit(self, repo: str, revision: str) -> str:
        """The commit of a revision as far as the cache knows it, else nothing."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            return (self._storage(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def note(self, repo: str, revision: str, commit: str) -> None:
        """Record the commit of a branch or tag as huggingface_hub does."""
        if revision != commit:
            path = self._storage(repo) / "refs" / revision
            with writing(self.folder):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(commit, encoding="utf-8")

    def _reachable(self, repo: str, files: Sequence[str]) -> None:
        if self.offline:
            raise DownloadError(
                f"{repo}: offline, and {' or '.join(files) or 'nothing of it'} is not in the cache {self.folder}; "
                "put the file into a folder and name it with --from (option folder), or go online"
            )

    def _missing(self, repo: str, files: Sequence[str], revision: str) -> DownloadError:
        return DownloadError(
            f"{repo}: has no {' or '.join(files)} at revision {revision}; see {self.endpoint}/{repo}/tree/{revision}"
        )

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Repeat what fails for a passing reason; most calls of huggingface_hub do so themselves."""
        import time

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
    def _told(self, repo: str, revision: str) -> Iterator[None]:
        """Turn what huggingface_hub raises into one line with the remedy."""
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
            raise DownloadError(f"{repo}: not a name of a repository; expected owner/name") from error
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
                f"{repo}: {self.endpoint} cannot be reached, or is no such server, and the cache {self.folder} does "
                "not have the file; check the network and HF_ENDPOINT, or name a folder with --from (option folder)"
            ) from error
        except (OSError, RuntimeError) as error:
            # Of a full disk the cache tells better
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise
            raise _interrupted(repo, error) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"}:
                raise
            raise _interrupted(repo, error) from error


def _interrupted(repo: str, error: Exception) -> DownloadError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DownloadError(f"{repo}: cannot be brought: {reason}; check the network and run again")


def _snapshot(path: Path, file: str) -> Path:
    """The folder of the commit that a cached file is of."""
    return path.parents[file.count("/")]


def _stated(path: Path) -> str | None:
    """The SHA-256 under which huggingface_hub keeps a large file; small ones have another kind of hash."""
    name = path.resolve().name
    return name if path.is_symlink() and _SHA256.fullmatch(name) else None


def _forget(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _bar(progress: Callable[[int, int | None], None] | None) -> Any:
    """A progress bar in terms of huggingface_hub that shows nothing and tells the caller."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done = int(kwargs.get("initial") or 0)
            self.expected = kwargs.get("total")
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if progress is not None:
                progress(self.done, int(self.expected) if self.expected else None)
            return None

    return Bar


# ---------------------------------------------------------------------------------------------------------------------
# Reading by ranges


class _Remote:
    """A file on the server, of which ranges are read."""

    def __init__(self, client: HuggingFace, repo: str, file: str, revision: str) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self._client = client
        self._headers = build_hf_headers(token=client._token, library_name="cnnfilterdb")
        self.repo, self.file = repo, file
        self._url = hf_hub_url(repo, file, revision=revision, endpoint=client.endpoint)
        self._locate()

    def _locate(self) -> None:
        from huggingface_hub import get_hf_file_metadata

        found = get_hf_file_metadata(
            self._url, token=self._client._token, endpoint=self._client.endpoint, retry_on_errors=True
        )
        if not found.commit_hash or not found.size:
            raise _NoRangesError(f"{self.repo}: {self.file}: the server tells neither commit nor size")
        self.commit, self.size, self._location = found.commit_hash, int(found.size), str(found.location)
        self.sha256 = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop.

        Raises:
            _NoRangesError: The server sends something else.
        """
        from huggingface_hub.utils import http_backoff

        for attempt in range(2):
            headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            # The token is for the server of the repository, and not for the store that it may point at
            if urlsplit(self._location).netloc == urlsplit(self._client.endpoint).netloc:
                headers |= self._headers
            response = http_backoff("GET", self._location, headers=headers, follow_redirects=True)
            if response.status_code in (401, 403) and not attempt:
                self._locate()  # a signed address is good for a while only
                continue
            break
        if response.status_code >= 400 and response.status_code != 416:
            response.raise_for_status()
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        data: bytes = response.content
        if response.status_code != 206 or not given or tuple(map(int, given.groups())) != (start, stop - 1, self.size):
            raise _NoRangesError(f"{self.repo}: {self.file}: the server gives no ranges of it")
        if len(data) != stop - start:
            raise DownloadError(f"{self.repo}: {self.file}: {len(data)} bytes came of {stop - start}; run again")
        return data


def _is_wanted(name: str, shape: Sequence[int], mixing: bool) -> bool:
    """Whether a tensor is a kernel, or one of the few that tell what kind a kernel is."""
    return len(shape) == 4 or len(shape) == 1 or (mixing and len(shape) == 2 and name.endswith(".weight"))


def _gather(remote: _Remote, path: Path, progress: Callable[[int, int | None], None] | None) -> None:
    """Write the wanted tensors of a remote safetensors file into a file of that format."""
    what = f"{remote.repo}: {remote.file}"
    head = remote.read(0, min(_HEADER, remote.size))
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= min(_MAX_HEADER, remote.size - 8):
        raise WeightFileError(f"{what}: a header of {length:,} bytes; it is not a safetensors file")
    if len(head) < 8 + length:
        head += remote.read(len(head), 8 + length)
    try:
        entries = json.loads(head[8 : 8 + length])
        metadata = entries.pop("__metadata__", None) or {}
        places = {name: _place(entry, remote.size - 8 - length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightFileError(f"{what}: its header is damaged ({' '.join(str(error).split())})") from error
    # CondConv has a gate beside the matrices of its experts
    mixing = any(".routing_fn." in name for name in entries)
    wanted = sorted(
        (name for name, entry in entries.items() if _is_wanted(name, entry["shape"], mixing)), key=lambda n: places[n]
    )
    total = parameters(
        Tensor(name, tuple(entry["shape"]), _FLOATING.get(entry["dtype"], entry["dtype"].lower()), _unread)
        for name, entry in entries.items()
    )
    told = {"parameters": str(total), "file_bytes": str(remote.size)}
    if remote.sha256:
        told["sha256"] = remote.sha256
    header: dict[str, Any] = {"__metadata__": metadata | {_MARK + key: value for key, value in told.items()}}
    at = 0
    for name in wanted:
        start, stop = places[name]
        header[name] = entries[name] | {"data_offsets": [at, at + stop - start]}
        at += stop - start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    beginning = len(text).to_bytes(8, "little") + text
    _write(remote, path, beginning, [places[name] for name in wanted], 8 + length, progress)


def _place(entry: Mapping[str, Any], size: int) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers) or not start <= stop <= size:
        raise ValueError("a tensor with an impossible place")
    if not isinstance(entry["dtype"], str) or (stop > start) != (math.prod(entry["shape"]) > 0):
        raise ValueError("a tensor with an impossible type or shape")
    return start, stop


def _unread() -> np.ndarray[Any, Any]:
    raise AssertionError("only its shape is looked at")


def _write(
    remote: _Remote,
    path: Path,
    beginning: bytes,
    places: Sequence[tuple[int, int]],
    offset: int,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Write a file of some beginning and the bytes of some places, going on from what is there."""
    total = len(beginning) + sum(stop - start for start, stop in places)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab+") as file:
        file.seek(0)
        # A commit does not change, so that its bytes can be gone on with
        if file.read(len(beginning)) != beginning:
            file.truncate(0)
            file.write(beginning)
        file.seek(0, os.SEEK_END)
        done = file.tell()
        skip = done - len(beginning)
        for pieces in _requests(places, skip):
            first, last = pieces[0][0], pieces[-1][1]
            data = remote.read(offset + first, offset + last)
            for start, stop in pieces:
                file.write(data[start - first : stop - first])
                done += stop - start
            file.flush()
            if progress is not None:
                progress(done, total)
    if done != total:
        part.unlink()
        raise DownloadError(f"{path.name}: {done} bytes were gathered of {total}; run again")
    part.replace(path)


def _requests(places: Sequence[tuple[int, int]], skip: int = 0) -> list[list[tuple[int, int]]]:
    """Places joined to requests: those near to each other together, long ones in several.

    Args:
        places: (start, stop) in rising order.
        skip: Bytes of the places that are there already.

    >>> _requests([(0, 10), (20, 30), (1_000_000, 1_000_010)])
    [[(0, 10), (20, 30)], [(1000000, 1000010)]]
    >>> _requests([(0, 10), (20, 30)], skip=15)
    [[(25, 30)]]
    """
    pieces: list[tuple[int, int]] = []
    for start, stop in places:
        over = min(skip, stop - start)
        skip -= over
        pieces += [(at, min(at + _BLOCK, stop)) for at in range(start + over, stop, _BLOCK)]
    requests: list[list[tuple[int, int]]] = []
    for start, stop in pieces:
        last = requests[-1] if requests else None
        if last and start - last[-1][1] <= _GAP and stop - last[0][0] <= _BLOCK:
            last.append((start, stop))
        else:
            requests.append([(start, stop)])
    return requests


def partial_origin(path: Path) -> dict[str, str] | None:
    """What a partial file says of the whole one: ``parameters``, ``file_bytes`` and, where known, ``sha256``.

    None for a file that is whole, or of another format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                return None
            metadata = json.loads(file.read(length)).get("__metadata__") or {}
    except (OSError, ValueError, AttributeError):
        return None
    told = {key.removeprefix(_MARK): value for key, value in metadata.items() if key.startswith(_MARK)}
    return told or None
