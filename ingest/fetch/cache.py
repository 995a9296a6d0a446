"""The cache: a folder of weight files, each under its own SHA-256.

    <cache>/members/<first two digits>/<sha256>/<file name>     weight files, complete and checked
    <cache>/models/<first two digits>/<sha256>/<paths>          those that belong together, as links to the above
    <cache>/archives/<sha256>.part                              an archive on its way, removed once it is unpacked
    <cache>/trusted/<name>.json                                 hash of a file whose hash nobody told, as first brought
    <cache>/locks/                                              one fetches, the others wait

The folder is ``$CNNFILTERDB_CACHE``, or the user's cache folder for ``cnnfilterdb``. It may be deleted at any time.

It holds weight files and no archives: what is wanted of an archive is taken out in one go, and the archive removed, as
it would double the space. A file is hashed in full whenever it is asked for, not only when its date has changed: an
ingest asks once per model, and hashing (1.3 GiB/s on one core) is little beside the statistics of its kernels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import platformdirs
from filelock import FileLock

from cnnfilterdb.errors import DownloadError, HashMismatchError
from cnnfilterdb.store.durable import sha256 as sha256_of

__all__ = ["Cache", "Readable", "Trust", "default_folder", "sha256_of", "writing"]

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class Readable(Protocol):
    """Anything that bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to that many bytes; none at the end."""


def default_folder() -> Path:
    """The cache folder: ``$CNNFILTERDB_CACHE``, else that of the platform."""
    named = os.environ.get("CNNFILTERDB_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("cnnfilterdb", appauthor=False))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system says while the cache is written into one line with the remedy.

    Raises:
        DownloadError: No space is left, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadError(
                f"{folder}: no space is left for the weight files; free some, "
                "or set CNNFILTERDB_CACHE to a folder on a larger disk"
            ) from error
        raise DownloadError(
            f"{folder}: the cache cannot be written: {error.strerror or error}; "
            "set CNNFILTERDB_CACHE to a folder that can"
        ) from error


@dataclass(frozen=True, slots=True)
class Trust:
    """A file whose hash nobody told, as it was when it was brought first (trust on first use).

    Attributes:
        sha256: Its SHA-256.
        bytes: Its size.
        url: Where it came from.
        date: Day on which it came, as YYYY-MM-DD.
    """

    sha256: str
    bytes: int
    url: str
    date: str


class Cache:
    """Weight files on disk, found by their hash.

    Every file appears under its name whole and checked, or not at all, whatever is killed when. Any number of processes
    and threads may share a folder.

    Attributes:
        folder: Where it is; made when something is written first.

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
        self.folder = Path(folder).expanduser() if folder is not None else default_folder()

    def path(self, name: str, sha256: str) -> Path:
        """Where a weight file is, or would be.

        Args:
            name: Its file name, or its path in an archive, of which the last part is used.
            sha256: SHA-256 of its bytes.
        """
        # The name comes from an archive: it must stay one harmless path component on every platform.
        base = re.sub(r'[\x00-\x1f<>:"|?*]', "_", re.split(r"[/\\]", name)[-1])
        return self.folder / "members" / sha256[:2] / sha256 / (base if base.strip(". ") else "weights")

    def find(self, name: str, *, size: int | None, sha256: str) -> Path | None:
        """The path of a weight file if it is there, unharmed; None if it has to be brought.

        Args:
            name: As for :meth:`path`.
            size: How many bytes it has; None where only the hash is known.
            sha256: SHA-256 of its bytes.
        """
        path = self.path(name, sha256)
        try:
            if size in (None, path.stat().st_size) and sha256_of(path) == sha256:
                return path
        except OSError:
            return None
        _log.warning("%s was changed after it was brought; it is brought again", path)
        return None

    def add(
        self,
        stream: Readable,
        name: str,
        *,
        size: int,
        sha256: str,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Path:
        """Write a weight file, checking it on the way.

        Args:
            stream: Its bytes. No more than size + 1 of them are asked for.
            name: As for :meth:`path`.
            size: How many bytes there must be.
            sha256: What their SHA-256 must be.
            progress: Called with (bytes done, bytes expected).

        Raises:
            HashMismatchError: More, fewer or other bytes.
            DownloadError: The cache cannot be written.
        """
        path = self.path(name, sha256)
        with self.lock(sha256):
            part = path.with_name(path.name + ".part")
            try:
                with writing(self.folder):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with part.open("wb") as file:
                        _copy(stream, file, name, size, sha256, progress)
                    # Not synced to the platter: find() hashes, so a file torn by a power cut is brought again.
                    part.replace(path)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
        return path

    def adopt(self, part: Path, name: str, sha256: str) -> Path:
        """Take in a weight file that was brought whole and checked; it is moved to its place.

        Args:
            part: Where it is, on the file system of this cache (see :meth:`archive_part`).
            name: As for :meth:`path`.
            sha256: Its SHA-256.

        Raises:
            DownloadError: The cache cannot be written.
        """
        path = self.path(name, sha256)
        with self.lock(sha256), writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
        return path

    def trusted(self, name: str) -> Trust | None:
        """What a file was when it was brought first; None for one that was not.

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
        """Record what a file was when it was brought first; whoever brings it holds the lock of it.

        Raises:
            DownloadError: The cache cannot be written.
        """
        path = self.trust_path(name)
        part = path.with_name(path.name + ".part")
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(trust), indent=1) + "\n", encoding="utf-8")
            part.replace(path)

    def trust_path(self, name: str) -> Path:
        """Where that is recorded; a user deletes it to accept another file."""
        return self.folder / "trusted" / (re.sub(r"[^A-Za-z0-9._-]", "_", name) + ".json")

    def together(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """Put files that belong together beside each other, as they are in their archive.

        They are links to the files that are given, or copies where the file system has no links.

        Args:
            files: Path in the archive -> path in this cache, as :meth:`find` gives it.

        Returns:
            Path in the archive -> path in a folder that has these files and no others.

        Raises:
            DownloadError: A path would escape the folder, or the cache cannot be written.
        """
        members = {member: PurePosixPath(member) for member in files}
        for member, path in members.items():
            if path.is_absolute() or ".." in path.parts or re.search(r'[\x00-\x1f<>:"|?*\\]', member):
                raise DownloadError(f"{member!r} would escape the folder of its archive; refused")
        common = PurePosixPath(os.path.commonpath([path.parent for path in members.values()]))
        # The folder of a cached file is its SHA-256
        listing = "\n".join(sorted(f"{path.relative_to(common)} {files[m].parent.name}" for m, path in members.items()))
        key = hashlib.sha256(listing.encode()).hexdigest()
        placed = {}
        with self.lock(key), writing(self.folder):
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
        """Where an archive is gathered while it is brought; whoever writes it holds the :meth:`lock` of its hash."""
        with writing(self.folder):
            (self.folder / "archives").mkdir(parents=True, exist_ok=True)
        return self.folder / "archives" / f"{sha256}.part"

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of that name; other processes and threads wait for it.

        Raises:
            DownloadError: The cache cannot be written.
        """
        with writing(self.folder):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "locks" / f"{key}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _copy(
    stream: Readable,
    file: IO[bytes],
    name: str,
    size: int,
    sha256: str,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    done, digest = 0, hashlib.sha256()
    while chunk := stream.read(min(_CHUNK, size + 1 - done)):
        done += len(chunk)
        if done > size:
            raise HashMismatchError(f"{name}: expected {size} bytes, but more come; it is not the expected file")
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
