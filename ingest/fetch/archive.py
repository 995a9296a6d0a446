"""Archives: single members of zip files (wheels) and tar files (source distributions).

Nothing is unpacked to disk: the bytes of a member are returned as a stream, so no path of an archive ever becomes a
path on disk. Members that are not regular files, whose names would escape a folder, or that announce an unexpected size
are refused nevertheless, because no valid archive needs them.
"""

from __future__ import annotations

import difflib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.cache import Readable

__all__ = ["is_zip", "members"]

# Weights hardly compress (the archives of the catalog contain at most twice their size), so a tar file that grows
# beyond this is a bomb, not a package. A zip file needs no such bound: only the wanted member is decompressed.
_MAX_GROWTH = 200


def is_zip(name: str) -> bool:
    """Whether an archive of that name is a zip file, whose members can be read one by one.

    >>> is_zip("net-1.0-py3-none-any.whl"), is_zip("net-1.0.tar.gz")
    (True, False)
    """
    return name.lower().endswith((".whl", ".zip"))


def members(
    file: IO[bytes],
    name: str,
    sizes: Mapping[str, int],
    ahead: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, Readable]]:
    """Streams of the wanted members of an archive, in the order of the archive.

    Each stream must be read before the next one is requested. A tar file is decompressed up to its last wanted member
    and no further.

    Args:
        file: The archive, seekable.
        name: Its file name, which gives its kind and appears in messages.
        sizes: The wanted members: path in the archive, and number of bytes.
        ahead: Called before the bytes of a zip member are read, with their range (start, stop) in the file, so that a
            remote file fetches no more than that.

    Yields:
        Path of a member and its bytes.

    Raises:
        DownloadError: A member is absent, is not a regular file, or has a name that would escape a folder.
        HashMismatchError: A member has an unexpected size, or the archive is damaged.
    """
    for member in sizes:
        _check_name(name, member)
    if not sizes:
        return
    with _undamaged(name):
        if is_zip(name):
            yield from _zip_members(file, name, sizes, ahead)
        else:
            yield from _tar_members(file, name, sizes)


def _zip_members(
    file: IO[bytes], name: str, sizes: Mapping[str, int], ahead: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Readable]]:
    with zipfile.ZipFile(file) as archive:
        wanted = []
        for member, size in sizes.items():
            try:
                info = archive.getinfo(member)
            except KeyError:
                raise _missing(name, [member], archive.namelist()) from None
            # The upper half of the attributes is the Unix mode; 0 if the archive was not made on Unix.
            mode = info.external_attr >> 16
            if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
                raise _not_plain(name, member)
            if info.flag_bits & 0x1:
                raise DownloadError(f"{name}: {member} is encrypted; it cannot be read")
            _check_size(name, member, size, info.file_size)
            wanted.append(info)
        # The next member bounds the bytes of this one: its own header gives its length only when it is read.
        starts = sorted([*(info.header_offset for info in archive.infolist()), archive.start_dir])
        for info in sorted(wanted, key=lambda info: info.header_offset):
            if ahead is not None:
                stop = next((start for start in starts if start > info.header_offset), archive.start_dir)
                ahead(info.header_offset, stop)
            with archive.open(info) as stream:
                yield info.filename, _Stream(name, stream)


def _tar_members(file: IO[bytes], name: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, Readable]]:
    limit = file.seek(0, 2) * _MAX_GROWTH
    file.seek(0)
    missing, seen = set(sizes), []
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for info in archive:
            if info.offset_data + info.size > limit:
                raise DownloadError(f"{name}: grows to more than {_MAX_GROWTH} times its size; refused as a bomb")
            seen.append(info.name)
            member = info.name.removeprefix("./")
            if member not in missing:
                continue
            if not info.isreg():
                raise _not_plain(name, member)
            _check_size(name, member, sizes[member], info.size)
            stream = archive.extractfile(info)
            assert stream is not None  # It is a regular file.
            yield member, _Stream(name, stream)
            missing.remove(member)
            if not missing:
                return
    raise _missing(name, sorted(missing), seen)


class _Stream:
    """The bytes of a member; damage is reported as an error of this package."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream

    def read(self, size: int = -1, /) -> bytes:
        with _undamaged(self._name):
            return self._stream.read(size)


def _check_name(name: str, member: str) -> None:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or PureWindowsPath(member).drive or not path.name:
        raise DownloadError(f"{name}: {member!r} would escape the folder of the archive; refused")


def _check_size(name: str, member: str, expected: int, found: int) -> None:
    if found != expected:
        raise HashMismatchError(
            f"{name}: {member} expected {expected} bytes, announces {found}; it is not the expected file"
        )


def _not_plain(name: str, member: str) -> DownloadError:
    return DownloadError(f"{name}: {member} is a link, a folder or a device, not a regular file; refused")


def _missing(name: str, wanted: list[str], present: list[str]) -> DownloadError:
    near = difflib.get_close_matches(wanted[0], present, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return DownloadError(f"{name}: contains no {', '.join(wanted)} among its {len(present)} members{hint}")


@contextmanager
def _undamaged(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise HashMismatchError(f"{name}: the archive is damaged ({error}); download it again") from error
