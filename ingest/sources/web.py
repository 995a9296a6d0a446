"""Models whose weight files are published at web addresses: by libraries, and by single repositories.

TorchXRayVision, lungmask, TorchVision and a few repositories publish plain files. Each is an entry of the catalog: its
addresses, what is known of its hash, and what a file of tensors does not state. The libraries are never imported and
none of their code is run. For a file that must be downloaded by hand (from Google Drive, say) the link is given, and
the file is searched for in the user's folder.

If no hash is published, the first download is trusted and its hash recorded; a different file is refused later,
until the record is deleted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cnnfilterdb.core.errors import CatalogError, DownloadError, HashMismatchError, IngestError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch import pip_settings
from cnnfilterdb.ingest.fetch.cache import ByteProgress, Cache, Trust, searched, sha256_of
from cnnfilterdb.ingest.fetch.download import Session, download
from cnnfilterdb.ingest.network.extract import conv_depths
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.ingest.sources import register
from cnnfilterdb.ingest.sources.catalog_source import CatalogSource

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel

__all__ = ["CustomSource", "LungmaskSource", "TorchVisionSource", "TorchXRayVisionSource", "WebFile", "WebSource"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WebFile:
    """Where the weight file of a model is, and what it does not state itself.

    Attributes:
        file: Its name, by which it is also found in folders.
        urls: Addresses of the same file, by preference; none if it must be downloaded by hand.
        size: Its number of bytes, None where it is unknown.
        sha256: Its SHA-256: all of its 64 digits, the first ones, or none where it is unknown.
        manual: How to get it by hand, if no program can download it.
        dead: Shell-style pattern of the layers that are stored and never executed.
        drop: Shell-style pattern of what the file contains besides the network, such as a loss with weights.
        ordered: Whether the layers are in the file in the order of their execution.
    """

    file: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    sha256: str = ""
    manual: str = ""
    dead: str = ""
    drop: str = ""
    ordered: bool = False

    @classmethod
    def parse(cls, model_id: str, origin: Mapping[str, str]) -> WebFile:
        """From the catalog's text fields.

        Args:
            model_id: The model, for messages.
            origin: The fields; ``urls`` are separated by spaces, ``execution_order`` is ``yes`` or empty.

        Raises:
            CatalogError: The file name is missing, a size is not a number, or no way to get the file is given.

        >>> WebFile.parse("custom/net", {"file": "a.pt", "urls": "https://a.org/a.pt https://b.org/a.pt"}).urls
        ('https://a.org/a.pt', 'https://b.org/a.pt')
        """
        size = origin.get("bytes", "")
        found = cls(
            file=origin.get("file", ""),
            urls=tuple(origin.get("urls", "").split()),
            size=int(size) if size.isdecimal() else None,
            sha256=(origin.get("sha256") or origin.get("sha256_prefix") or "").lower(),
            manual=origin.get("manual", ""),
            dead=origin.get("dead", ""),
            drop=origin.get("drop", ""),
            ordered=origin.get("execution_order") == "yes",
        )
        if not found.file or (size and found.size is None) or not (found.urls or found.manual):
            raise CatalogError(
                f"{model_id}: its origin needs a file, urls or manual, and bytes as a number; correct the catalog"
            )
        return found


class WebSource(CatalogSource):
    """Models of the catalog that are one file each, at addresses that the catalog knows.

    Each subclass is one source, with a name; this class has none.
    """

    unsupported = MappingProxyType({"partial": "its files are read as a whole"})
    isolated = False  # the catalog names each file and most of the hashes

    def __init__(
        self,
        models: Sequence[CatalogModel] | None = None,
        *,
        folder: str | Path | None = None,
        offline: bool = False,
        mirror: str | None = None,
        cache: Cache | None = None,
        session: Session | None = None,
    ) -> None:
        """Offer models; nothing is connected yet.

        Args:
            models: The models on offer; those of the catalog by default.
            folder: Where files are looked for by their names, subfolders included, before anything is downloaded.
            offline: Do not access the network.
            mirror: Address of a server that replaces all others. It has the file of ``https://host/path`` at
                ``<mirror>/host/path``.
            cache: Where files are kept; the user's cache by default.
            session: How servers are reached; by pip's settings by default.
        """
        super().__init__(models, folder=folder, offline=offline, cache=cache)
        self._mirror = mirror
        self._given_session = session
        self._hashes: dict[str, str] = {}

    @cached_property
    def _session(self) -> Session:
        return self._given_session or Session(pip_settings.read_settings())

    def describe(self, name: str) -> ModelFacts:
        """What the catalog knows about a model; no network.

        The hash is that of the file that :meth:`resolve` found; before that, the one that the catalog or an earlier run
        recorded.

        Raises:
            UnknownModelError: No such model exists.
        """
        origin = self._origin(name)
        sha256 = self._hashes.get(name) or self._expected(origin)
        return self._models[name].facts.updated(
            url=origin.urls[0] if origin.urls else None,
            weights_sha256=sha256 if len(sha256) == 64 else None,
        )

    def resolve(self, name: str, progress: ByteProgress | None = None) -> Path:
        """Find the weight file of a model in the folder or the cache, or download it, and return its path.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected).

        Raises:
            UnknownModelError: No such model exists.
            DownloadError: It cannot be downloaded; the message states how to get it.
            HashMismatchError: It is not the expected file.
            WeightFileError: An address sent something else, such as a page.
        """
        origin = self._origin(name)
        for path in self._search(origin.file):
            self._hashes[name] = sha256_of(path)
            if not self._hashes[name].startswith(origin.sha256):
                raise HashMismatchError(
                    f"{path}: expected SHA-256 {origin.sha256}{'...' * (len(origin.sha256) < 64)}, "
                    f"found {self._hashes[name]}; it is not the file of {self.name}/{name}"
                )
            return path
        path = self._cache.get_or(
            _key(f"{self.name}/{origin.file}"),
            lambda: self._cached(origin),
            lambda: self._fetch(name, origin, progress),
        )
        self._hashes[name] = path.parent.name
        return path

    def download_size(self, name: str) -> int | None:
        """Bytes of the file if the catalog states them; 0 for a cached file or one in the folder."""
        origin = self._origin(name)
        sha256 = self._expected(origin)
        cached = len(sha256) == 64 and self._cache.path(origin.file, sha256).exists()
        return 0 if cached or self._search(origin.file) else origin.size

    def enrich(self, name: str, weights: Weights) -> Weights:
        """Leave out what is not part of the network, mark what is never executed, and give the order of the rest.

        If the catalog states that the layers are in the file in the order of their execution, their rank is their
        depth, unless the file has a graph that gives a better one.
        """
        origin = self._origin(name)
        kept = [layer for layer in weights.layers if not _fits(layer, origin.drop)]
        skipped = [
            Skipped(layer.name, "not part of the network") for layer in weights.layers if _fits(layer, origin.drop)
        ]
        layers = [replace(layer, dead=_fits(layer, origin.dead)) if origin.dead else layer for layer in kept]
        if origin.ordered and not any(layer.depth_source for layer in layers):
            depths = conv_depths([None if layer.dead else place for place, layer in enumerate(layers)])
            layers = [
                replace(layer, conv_depth=depth, conv_depth_norm=norm, depth_source=None if depth is None else "order")
                for layer, (depth, norm) in zip(layers, depths, strict=True)
            ]
        self._compare(name, layers)
        return replace(
            weights,
            layers=tuple(layers),
            # The number of other parameters left out is unknown
            parameters=None if skipped else weights.parameters,
            skipped=(*weights.skipped, *skipped),
        )

    def _compare(self, name: str, layers: Sequence[ConvLayer]) -> None:
        """Warn about a file that is not the network that the catalog describes."""
        model = self._models[name]
        squares = [layer.shape[0] * layer.shape[1] for layer in layers if layer.kernel == "3x3"]
        found = len(layers), len(squares), sum(squares)
        expected = model.conv_layers, model.conv3x3_layers, model.conv3x3_filters
        if any(count not in (None, actual) for actual, count in zip(found, expected, strict=True)):
            _log.warning(
                "%s/%s: expected (convolutions, 3x3 ones, their kernels) %s, found %s; is it another network?",
                *(self.name, name, expected, found),
            )

    def _origin(self, name: str) -> WebFile:
        return WebFile.parse(f"{self.name}/{name}", self._model(name).origin)

    def _expected(self, origin: WebFile) -> str:
        """The expected hash, if it is known: from the catalog, or from the first download."""
        if len(origin.sha256) == 64:
            return origin.sha256
        first = self._cache.trusted(f"{self.name}/{origin.file}")
        return first.sha256 if first and first.sha256.startswith(origin.sha256) else origin.sha256

    def _cached(self, origin: WebFile) -> Path | None:
        sha256 = self._expected(origin)
        return self._cache.find(origin.file, size=origin.size, sha256=sha256) if len(sha256) == 64 else None

    def _reachable(self, name: str, origin: WebFile) -> None:
        """Explain how to get a file that cannot be downloaded."""
        remedy = f"put {origin.file} into a folder and pass it with --from (option folder)"
        if not origin.urls:
            raise DownloadError(
                f"{self.name}/{name}: no program can download it; get it by hand: {origin.manual}; then {remedy}"
            )
        if self._offline:
            raise DownloadError(
                f"{self.name}/{name}: offline, and it is {searched(self._cache.folder, self._folder)}; {remedy}, "
                f"or go online for {origin.urls[0]}"
            )

    def _fetch(self, name: str, origin: WebFile, progress: ByteProgress | None) -> Path:
        """Download it from the first address that works."""
        self._reachable(name, origin)
        errors: list[IngestError] = []
        for url in origin.urls:
            try:
                return self._from(url, origin, progress)
            except IngestError as error:
                errors.append(error)
                if url is not origin.urls[-1]:
                    _log.warning("%s; trying the next address", error)
        reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
        # The last error decides the class, except that a wrong file anywhere matters more than a dead address.
        kind = next((type(error) for error in errors if isinstance(error, HashMismatchError)), type(errors[-1]))
        raise kind(
            f"{self.name}/{name}: {reasons}; or put {origin.file} into a folder and pass it with --from (option folder)"
        ) from errors[-1]

    def _from(self, url: str, origin: WebFile, progress: ByteProgress | None) -> Path:
        trusted = f"{self.name}/{origin.file}"
        expected = self._expected(origin)
        address = _mirrored(url, self._mirror)
        part = self._cache.archive_part(_key(address))
        try:
            sha256 = download(self._session, address, part, size=origin.size, sha256=expected, progress=progress)
        except HashMismatchError as error:
            if expected == origin.sha256 or len(expected) < 64:
                raise
            first = self._cache.trust_path(trusted)
            raise HashMismatchError(
                f"{error}: the file has changed since its first download; delete {first} to accept the change"
            ) from error
        try:
            with part.open("rb") as file:
                formats.reject(Path(origin.file), file.read(4096))
            size = part.stat().st_size
            path = self._cache.adopt(part, origin.file, sha256)
        finally:
            part.unlink(missing_ok=True)
        if len(expected) < 64:
            self._cache.trust(trusted, Trust(sha256, size, url, datetime.now(UTC).date().isoformat()))
            _log.info("%s: its full SHA-256 is not known; %s is trusted from now on", origin.file, sha256)
        return path


def _mirrored(url: str, mirror: str | None) -> str:
    """The address of a file on a mirror.

    >>> _mirrored("https://github.com/a/b/net.pt", "http://mirror.example/weights/")
    'http://mirror.example/weights/github.com/a/b/net.pt'
    """
    if mirror is None:
        return url
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}{query}"


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fits(layer: ConvLayer, pattern: str) -> bool:
    """Whether a pattern means a layer, or the part of the network that it belongs to."""
    return bool(pattern) and fnmatchcase(layer.name, pattern)


@register
class TorchXRayVisionSource(WebSource):
    """The models of TorchXRayVision (Cohen et al., arXiv 2111.00595), read without the library."""

    name = "torchxrayvision"


@register
class LungmaskSource(WebSource):
    """The U-Nets of lungmask (Hofmanninger et al., doi 10.1186/s41747-020-00173-2), read without the library."""

    name = "lungmask"


@register
class TorchVisionSource(WebSource):
    """The weights that TorchVision publishes, read without the library."""

    name = "torchvision"


@register
class CustomSource(WebSource):
    """Models of single repositories.

    Models that a user adds to a database (:meth:`cnnfilterdb.FilterDB.add`) are named ``custom/...`` too.
    """

    name = "custom"
