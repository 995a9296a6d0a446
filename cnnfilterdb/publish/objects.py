"""Parts in object storage: releases that are written without locks and without renaming anything.

An object is only put where there is none (``If-None-Match`` on S3), and is never replaced. The manifest is put last:
until then there is no part at the address, afterwards there is a complete one that does not change. So readers never
see half of a part; of several writers at an address the first one wins, and a writer that was killed leaves objects
that the next one with the same content takes over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from cnnfilterdb.core.errors import CnnFilterDbError, PublishError, RemoteError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.core.reports import Progress, counted
from cnnfilterdb.publish.files import LocalFile, release_files
from cnnfilterdb.publish.repository import AGAIN
from cnnfilterdb.publish.shards import BuiltShard, WholeShard
from cnnfilterdb.release.manifest import MANIFEST_BYTES, Manifest
from cnnfilterdb.release.remote import RequestBudget, filesystem_of, reaching, read_range, status_of

__all__ = ["SCHEMES", "ObjectFolder"]

#: Object storage that can put an object only where there is none.
SCHEMES = ("abfs", "abfss", "az", "gcs", "gs", "s3")

_BLOCK = 16 << 20  # bytes that are read at a time
_PRECONDITION_FAILED = 412
#: Answers of a server that copies nothing, or not under a condition.
_COPIES_NOT = frozenset({400, 403, 405, 501})
_REMEDY = "choose another address, or remove what is there"


@dataclass(frozen=True, slots=True)
class ObjectFolder:
    """A folder in object storage.

    Attributes:
        address: Its address.
        filesystem: The file system.
        root: The folder in there.
    """

    address: str
    filesystem: fsspec.AbstractFileSystem
    root: str

    @classmethod
    def at(cls, address: str, options: Mapping[str, Any]) -> ObjectFolder:
        """The folder at an address.

        Args:
            address: Such as ``s3://bucket/part``.
            options: Options of the file system.

        Raises:
            PublishError: Not an address of object storage.
            MissingExtraError: The package of the file system is not installed.
        """
        scheme, separator, rest = address.partition("://")
        if not separator or scheme not in SCHEMES or not rest.strip("/"):
            raise PublishError(
                f"{address}: not an address in object storage; expected one such as s3://bucket/part "
                f"({', '.join(SCHEMES)})"
            )
        return cls(address.rstrip("/"), *filesystem_of(address.rstrip("/"), options))

    def takes(self, shard: WholeShard) -> bool:
        """Whether the server can copy a file: it has it, reached by the same options, and copies under a condition."""
        protocol = self.filesystem.protocol
        return "s3" in ([protocol] if isinstance(protocol, str) else protocol) and (
            shard.there.filesystem == self.filesystem
        )

    def put(
        self,
        folder: Path,
        manifest: Manifest,
        progress: Progress | None = None,
        *,
        absent: Mapping[str, WholeShard | BuiltShard] | None = None,
    ) -> Manifest:
        """Put a release there that was built in a folder.

        Args:
            folder: The folder.
            manifest: Its manifest.
            absent: Where files come from that are not in the folder, by their paths.
            progress: Called with "upload", the number of files that are there and of all.

        Returns:
            The manifest of what is there.

        Raises:
            PublishError: There is something else at the address, or it cannot be written.
        """
        files = sorted(release_files(folder, manifest, absent), key=lambda file: file.path == MARKER)
        with _writing(self.address):
            if (held := self._manifest()) is not None:
                return self._same(held, manifest)
            for done, file in enumerate(files):
                if progress:
                    progress("upload", done, len(files))
                if self._put(file) or self._holds(file):
                    continue
                if file.path == MARKER and (held := self._manifest()) is not None:
                    return self._same(held, manifest)
                raise PublishError(f"{self.address}/{file.path}: is there with other content; {_REMEDY}")
        return manifest

    def _put(self, file: LocalFile) -> bool:
        """Put a file, unless there is one at its path."""
        target = f"{self.root}/{file.path}"
        if isinstance(file.absent, WholeShard) and (copied := self._copied(file.absent, target)) is not None:
            return copied
        if file.absent is not None:
            if RequestBudget.answer().spend(lambda: bool(self.filesystem.exists(target))):
                return False  # nothing is built to be refused
            file.fetch()

        def put() -> bool:
            if self.filesystem.exists(target):  # so that nothing is sent to be refused, or twice
                return False
            try:
                self.filesystem.put_file(str(file.source), target, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if status_of(error.__cause__ or error) != _PRECONDITION_FAILED:
                    raise
                return False
            return True

        done = RequestBudget.of(file.size).spend(put)
        file.forget()
        return done

    def _copied(self, shard: WholeShard, target: str) -> bool | None:
        """Let the server copy a file, unless there is one at its path; None if the server does not do that."""

        def copy() -> bool | None:
            if self.filesystem.exists(target):
                return False
            try:
                self.filesystem.cp_file(shard.there.path, target, IfNoneMatch="*")
            except FileExistsError:
                return False
            except Exception as error:
                status = status_of(error.__cause__ or error)
                if status == _PRECONDITION_FAILED:
                    return False
                if status in _COPIES_NOT or isinstance(error, NotImplementedError | TypeError | ValueError):
                    return None  # an older client or server
                raise
            return True

        return RequestBudget.of(shard.file.bytes).spend(copy)

    def _holds(self, file: LocalFile) -> bool:
        """Whether the object at the path of a file has its content."""
        target = f"{self.root}/{file.path}"
        if RequestBudget.answer().spend(lambda: int(self.filesystem.info(target)["size"])) != file.size:
            return False
        digest = hashlib.sha256()
        for start in range(0, file.size, _BLOCK):
            digest.update(read_range(self.filesystem, target, start, min(file.size, start + _BLOCK)))
        return digest.hexdigest() == file.sha256

    def _manifest(self) -> Manifest | None:
        """The manifest of the part that is there; None if there is none."""
        target = f"{self.root}/{MARKER}"

        def size() -> int | None:
            try:
                return int(self.filesystem.info(target)["size"])
            except FileNotFoundError:
                return None

        found = RequestBudget.answer().spend(size)
        if found is None:
            return None
        text = read_range(self.filesystem, target, 0, min(found, MANIFEST_BYTES)).decode("utf-8", "replace")
        return Manifest.from_json(text, f"{self.address}/{MARKER}")

    def _same(self, held: Manifest, wanted: Manifest) -> Manifest:
        """The manifest of the part that is there, if it is the part that was to be put there."""
        if held.files != wanted.files:
            raise PublishError(
                f"{self.address}: contains another part, of {counted(held.models, 'model')}, and parts do not change; "
                f"{_REMEDY}"
            )
        return held


@contextmanager
def _writing(address: str) -> Iterator[None]:
    """Raise a :class:`PublishError` for whatever goes wrong while a part is put at an address."""
    try:
        with reaching(address, "written"):
            yield
    except PublishError:
        raise
    except CnnFilterDbError as error:
        raise PublishError(f"{error}; {AGAIN}" if isinstance(error, RemoteError) else str(error)) from error
