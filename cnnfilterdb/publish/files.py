"""The files of a release that was built in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.errors import DatabaseError, PublishError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.publish.shards import KEPT, BuiltShard, WholeShard
from cnnfilterdb.release.manifest import Manifest

__all__ = ["LocalFile", "release_files"]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of a release, and where it is located before it is sent.

    Attributes:
        path: In the release, with ``/``.
        source: The local file.
        size: Bytes.
        sha256: SHA-256 of the content.
        absent: Where its content comes from, if there is no local file before it is fetched.
    """

    path: str
    source: Path
    size: int
    sha256: str
    absent: WholeShard | BuiltShard | None = None

    def fetch(self) -> None:
        """Make sure that there is a local file."""
        if self.absent is not None and not self.source.exists():
            self.source.parent.mkdir(parents=True, exist_ok=True)
            self.absent.copy(self.source)

    def forget(self) -> None:
        """Remove a local file that was fetched, and is large, now that it was sent."""
        if self.absent is not None and self.size >= KEPT:
            self.source.unlink(missing_ok=True)


def release_files(
    folder: Path, manifest: Manifest, absent: Mapping[str, WholeShard | BuiltShard] | None = None
) -> list[LocalFile]:
    """The files of a release folder: those of the manifest in its order, then the pages and the manifest itself.

    Args:
        folder: The folder.
        manifest: The manifest of the release.
        absent: Where files come from that are not in the folder, by their paths in the release.

    Raises:
        PublishError: The folder does not match the manifest.
    """
    try:
        marker = folder / MARKER
        if Manifest.from_json(marker.read_text(encoding="utf-8"), str(marker)) != manifest:
            raise PublishError(f"{marker}: not the manifest of this release; build it again")
        found = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        files = []
        for file in manifest.files:
            if absent and file.path in absent:
                files.append(LocalFile(file.path, folder / file.path, file.bytes, file.sha256, absent[file.path]))
                continue
            source = found.pop(file.path, None)
            size = source.stat().st_size if source else None
            if source is None or size != file.bytes:
                there = "no such file" if size is None else f"{size}"
                raise PublishError(
                    f"{folder / file.path}: expected {file.bytes} bytes, found {there}; build the release again"
                )
            files.append(LocalFile(file.path, source, file.bytes, file.sha256))
        stray = [source for path, source in found.items() if path.endswith(".parquet")]
        if stray:
            raise PublishError(f"{stray[0]}: not in the manifest; build the release in an empty folder")
        texts = [LocalFile(path, source, source.stat().st_size, sha256(source)) for path, source in found.items()]
    except (OSError, DatabaseError) as error:
        raise PublishError(f"{folder}: not a release ({error}); build it again") from error
    return files + texts
