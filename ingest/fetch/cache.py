"""The cache: a folder of weight files, each under its SHA-256.

    <cache>/members/<first two digits>/<sha256>/<file name>     weight files, complete and verified
    <cache>/models/<first two digits>/<sha256>/<paths>          files that belong together, as links to the above
    <cache>/archives/<sha256>.part                              a download in progress
    <cache>/trusted/<name>.json                                 first seen hash of a file without a published one
    <cache>/locks/                                              one process downloads, the others wait

The folder is ``$CNNFILTERDB_CACHE``, or the user's cache folder for ``cnnfilterdb``. It may be deleted at any time.

It holds weight files and no archives: the wanted members of an archive are extracted together and the archive is
removed, because keeping it would double the space. A file is hashed in full whenever it is requested, not only when its
date has changed: an ingest asks once per model, and hashing (1.3 GiB/s on one core) costs little compared with the
statistics of its kernels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, TypeVar

from cnnfilterdb.core.caching import cache_folder
from cnnfilterdb.core.durable import sha256 as sha256_of
from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.core.locks import acquire
from cnnfilterdb.core.paths import PARTS

__all__ = ["ByteProgress", "Cache", "CacheEntry", "Readable", "Trust", "searched", "sha256_of", "writing_cache"]

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20

#: Called with (bytes done, bytes expected or None) while a file is downloaded.
ByteProgress = Callable[[int, int | None], None]

T = TypeVar("T")


class Readable(Protocol):
    """Any readable stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to that many bytes; none at the end."""


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Convert operating system errors raised while the cache is written to one line with the remedy.

    Raises:
        DownloadError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadError(
                f"{folder}: no space is left for the weight files; free some space, "
                "or set CNNFILTERDB_CACHE to a folder on a larger disk"
            ) from error
        raise DownloadError(
            f"{folder}: the cache cannot be written: {error.strerror or error}; "
            "set CNNFILTERDB_CACHE to a folder that is writable"
        ) from error


def searched(cache: Path, folder: Path | None) -> str:
    """Where a file was looked for, for messages.

    >>> searched(Path("cache"), None), searched(Path("cache"), Path("files"))
    ('not in the cache cache, and no folder is given', 'not in the cache cache nor below files')
    """
    return f"not in the cache {cache}" + (", and no folder is given" if folder is None else f" nor below {folder}")


@dataclass(frozen=True, slots=True)
class Trust:
    """A file without a published hash, as it was when it was first downloaded (trust on first use).

    Attributes:
        sha256: Its SHA-256.
        bytes: Its size.
        url: Its address.
        date: Day of the download, as YYYY-MM-DD.
    """

    sha256: str
    bytes: int
    url: str
    date: str


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: Where it is.
        kind: ``weights``, ``download`` for an unfinished download, ``huggingface`` for a file of a repository, or
            ``partial`` for the convolutions of one.
        bytes: Its size on disk.
        used: When it was last written, in seconds since the epoch.
    """

    path: Path
    kind: str
    bytes: int
    used: float


# What the cache owns: nothing else in its folder is listed or deleted, because the user may have chosen a folder with
# other files.
_OWNED = (
    ("weights", "members/*/*", r"members/[0-9a-f]{2}/[0-9a-f]{64}"),
    ("links", "models/*/*", r"models/[0-9a-f]{2}/[0-9a-f]{64}"),
    ("download", "archives/*", r"archives/[0-9a-f]{64}\.part(\.validator)?"),
    ("huggingface", "huggingface/*", r"huggingface/models--.+"),
    ("partial", "huggingface-partial/*", r"huggingface-partial/.+--.+"),
    ("parts", f"{PARTS}/*", rf"{PARTS}/[0-9a-f]{{16}}"),
)


class Cache:
    """Weight files on disk, found by their hash.

    Every file appears under its name complete and verified, or not at all, even if a process is killed. Any number of
    processes and threads may share a folder.

    Attributes:
        folder: Its folder; created by the first write.

    Example:
        >>> import io, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     digest = hashlib.sha256(b"weights").hexdigest()
        ...     path = cache.add(io.BytesIO(b"weights"), "net.pt", size=7, sha256=digest)
        ...     path == cache.find("net.pt", size=7, sha256=digest)
        True
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else cache_folder()

    def path(self, name: str, sha256: str) -> Path:
        """The path of a weight file, whether or not it exists.

        Args:
            name: Its file name, or its path in an archive, of which the last part is used.
            sha256: SHA-256 of its bytes.
        """
        # The name comes from an archive: it must stay one harmless path component on every platform.
        base = re.sub(r'[\x00-\x1f<>:"|?*]', "_", re.split(r"[/\\]", name)[-1])
        return self.folder / "members" / sha256[:2] / sha256 / (base if base.strip(". ") else "weights")

    def find(self, name: str, *, size: int | None, sha256: str) -> Path | None:
        """The path of a weight file if it is present and intact, else None.

        Args:
            name: As for :meth:`path`.
            size: Its number of bytes; None where only the hash is known.
            sha256: SHA-256 of its bytes.
        """
        path = self.path(name, sha256)
        try:
            if size in (None, path.stat().st_size) and sha256_of(path) == sha256:
                return path
        except OSError:
            return None
        _log.warning("%s was changed after it was downloaded; downloading it again", path)
        return None

    def get_or(self, key: str, find: Callable[[], T | None], fetch: Callable[[], T]) -> T:
        """Return what is in the cache, or download it into the cache, in one process while the others wait.

        Args:
            key: Name of the lock under which it is downloaded.
            find: Returns what is in the cache, or None.
            fetch: Downloads it, verifies it on the way, and returns it.
        """
        found = find()
        if found is None:
            with self.lock(key):
                found = find()
                return fetch() if found is None else found
        return found

    def add(
        self,
        stream: Readable,
        name: str,
        *,
        size: int,
        sha256: str,
        progress: ByteProgress | None = None,
    ) -> Path:
        """Write a weight file, verifying it on the way.

        Args:
            stream: Its bytes. No more than size + 1 of them are read.
            name: As for :meth:`path`.
            size: Its expected number of bytes.
            sha256: Its expected SHA-256.
            progress: Called with (bytes done, bytes expected).

        Raises:
            HashMismatchError: The bytes are not the expected ones.
            DownloadError: The cache cannot be written.
        """
        path = self.path(name, sha256)
        with self.lock(sha256):
            part = path.with_name(path.name + ".part")
            try:
                with writing_cache(self.folder):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with part.open("wb") as file:
                        _copy(stream, file, name, size, sha256, progress)
                    # Not flushed to the disk: find() hashes, so a file torn by a power cut is downloaded again.
                    part.replace(path)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
        return path

    def adopt(self, part: Path, name: str, sha256: str) -> Path:
        """Move a complete and verified download to its place.

        Args:
            part: Where it is, on the file system of this cache (see :meth:`archive_part`).
            name: As for :meth:`path`.
            sha256: Its SHA-256.

        Raises:
            DownloadError: The cache cannot be written.
        """
        path = self.path(name, sha256)
        with self.lock(sha256), writing_cache(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
        return path

    def trusted(self, name: str) -> Trust | None:
        """The record of a file's first download; None if there is none.

        Raises:
            DownloadError: The record cannot be read.
        """
        path = self.trust_path(name)
        try:
            return Trust(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DownloadError(f"{path}: cannot be read ({' '.join(str(error).split())}); delete it") from error

    def trust(self, name: str, trust: Trust) -> None:
        """Record the first download of a file. The caller holds the file's lock.

        Raises:
            DownloadError: The cache cannot be written.
        """
        path = self.trust_path(name)
        part = path.with_name(path.name + ".part")
        with writing_cache(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(trust), indent=1) + "\n", encoding="utf-8")
            part.replace(path)

    def trust_path(self, name: str) -> Path:
        """The path of that record; deleting it accepts a changed file."""
        return self.folder / "trusted" / (re.sub(r"[^A-Za-z0-9._-]", "_", name) + ".json")

    def together(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """Place files that belong together next to each other, as in their archive.

        They are links to the given files, or copies if the file system has no links.

        Args:
            files: Path in the archive -> path in this cache, as :meth:`find` returns it.

        Returns:
            Path in the archive -> path in a folder that contains only these files.

        Raises:
            DownloadError: A path would leave the folder, or the cache cannot be written.
        """
        members = {member: PurePosixPath(member) for member in files}
        for member, path in members.items():
            if path.is_absolute() or ".." in path.parts or re.search(r'[\x00-\x1f<>:"|?*\\]', member):
                raise DownloadError(f"{member!r} would escape the folder of its archive; refused")
        common = PurePosixPath(posixpath.commonpath([path.parent.as_posix() for path in members.values()]))
        # The folder of a cached file is its SHA-256
        listing = "\n".join(sorted(f"{path.relative_to(common)} {files[m].parent.name}" for m, path in members.items()))
        key = hashlib.sha256(listing.encode()).hexdigest()
        placed = {}
        with self.lock(key), writing_cache(self.folder):
            for member, path in members.items():
                target = self.folder / "models" / key[:2] / key / path.relative_to(common)
                placed[member] = target
                if target.exists() and (
                    target.samefile(files[member]) or sha256_of(target) == files[member].parent.name
                ):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                part.unlink(missing_ok=True)
                try:
                    os.link(files[member], part)
                except OSError:
                    shutil.copyfile(files[member], part)
                part.replace(target)
        return placed

    def archive_part(self, sha256: str) -> Path:
        """The path of an unfinished download; its writer must hold the :meth:`lock` of its hash."""
        with writing_cache(self.folder):
            (self.folder / "archives").mkdir(parents=True, exist_ok=True)
        return self.folder / "archives" / f"{sha256}.part"

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of that name; other processes and threads wait for it.

        Raises:
            DownloadError: The cache cannot be written.
        """
        with writing_cache(self.folder):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            held = acquire(self.folder / "locks" / f"{key}.lock", -1)
        with held:
            yield

    def entries(self) -> list[CacheEntry]:
        """The files of models in the cache, largest first."""
        found = []
        for kind, root in self._owned():
            for path in [root, *root.rglob("*")]:
                # Links take no space, and another process may delete a file meanwhile.
                with suppress(OSError):
                    if kind != "links" and path.is_file() and not path.is_symlink():
                        status = path.stat()
                        found.append(CacheEntry(path, kind, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (-entry.bytes, str(entry.path)))

    def clear(self) -> int:
        """Delete the files of models. Records of trusted hashes are kept, because they protect later downloads.

        Returns:
            The number of bytes freed.

        Raises:
            DownloadError: The cache cannot be written.
        """
        freed = sum(entry.bytes for entry in self.entries())
        with writing_cache(self.folder):
            for _, root in self._owned():
                if root.is_dir() and not root.is_symlink():
                    shutil.rmtree(root)
                else:
                    root.unlink(missing_ok=True)
        return freed

    def _owned(self) -> Iterator[tuple[str, Path]]:
        for kind, pattern, name in _OWNED:
            for path in sorted(self.folder.glob(pattern)):
                if re.fullmatch(name, path.relative_to(self.folder).as_posix()):
                    yield kind, path


def _copy(
    stream: Readable,
    file: IO[bytes],
    name: str,
    size: int,
    sha256: str,
    progress: ByteProgress | None,
) -> None:
    done, digest = 0, hashlib.sha256()
    while chunk := stream.read(min(_CHUNK, size + 1 - done)):
        done += len(chunk)
        if done > size:
            raise HashMismatchError(f"{name}: expected {size} bytes, found more; it is not the expected file")
        digest.update(chunk)
        file.write(chunk)
        if progress is not None:
            progress(done, size)
    if done < size:
        raise HashMismatchError(f"{name}: expected {size} bytes, found {done}; it is not the expected file")
    if digest.hexdigest() != sha256:
        raise HashMismatchError(
            f"{name}: expected SHA-256 {sha256}, found {digest.hexdigest()}; it is not the expected file"
        )
