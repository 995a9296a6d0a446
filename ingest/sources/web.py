"""Models whose weight files lie at addresses of the web: of libraries, and of single repositories.

TorchXRayVision, lungmask, TorchVision and a few repositories publish plain files. Each is an entry of the catalog: its
addresses, what is known of its hash, and what a file of tensors does not tell. The libraries are never imported and no
code of theirs is run. A file that a person must fetch (from Google Drive, say) is named with its link, and found in a
folder of the user's.

Where nobody publishes a hash, the first file that comes is trusted and its hash recorded; another one that comes later
is refused until the record is deleted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cnnfilterdb.errors import CatalogError, DownloadError, HashMismatchError, IngestError, UnknownModelError
from cnnfilterdb.ingest import formats
from cnnfilterdb.ingest.fetch import pip_settings
from cnnfilterdb.ingest.fetch.cache import Cache, Trust, sha256_of
from cnnfilterdb.ingest.fetch.download import Session, download
from cnnfilterdb.ingest.network.extract import conv_depths
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Weights
from cnnfilterdb.ingest.sources import Progress, register
from cnnfilterdb.schema import ModelFacts

if TYPE_CHECKING:
    from cnnfilterdb.catalog import CatalogModel

__all__ = ["CustomSource", "LungmaskSource", "Origin", "TorchVisionSource", "TorchXRayVisionSource", "WebSource"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weight file of a model is, and what it does not tell by itself.

    Attributes:
        file: Its name, under which it is looked for in folders too.
        urls: Addresses of the same file, by preference; none where a person must fetch it.
        size: Its bytes, None where they are not known.
        sha256: Its SHA-256: all of its 64 digits, the first ones, or none where it is not known.
        manual: How a person gets it, where no address gives it to a program.
        dead: Shell-style pattern of the layers that are stored and never executed.
        drop: Shell-style pattern of what the file holds besides the network, such as a loss with weights.
        ordered: Whether the file has the layers in the order in which they are executed.
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
    def parse(cls, model_id: str, origin: Mapping[str, str]) -> Origin:
        """From the catalog's text fields.

        Args:
            model_id: The model, for messages.
            origin: The fields; ``urls`` are separated by spaces, ``execution_order`` is ``yes`` or empty.

        Raises:
            CatalogError: There is no file name, a size is no number, or there is no way to the file.

        >>> Origin.parse("custom/net", {"file": "a.pt", "urls": "https://a.org/a.pt https://b.org/a.pt"}).urls
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


class WebSource:
    """Models of the catalog that are one file each, at addresses that the catalog knows.

    Each subclass is the source of its name; this class has none.
    """

    name = ""

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
            folder: Where files are looked for by their names, with all folders below, before anything is downloaded.
            offline: Ask nothing of the network.
            mirror: Address of a server that is asked in the place of all others. It has the file of
                ``https://host/path`` at ``<mirror>/host/path``.
            cache: Where files go; the user's cache by default.
            session: How servers are reached; by the settings that pip has by default.
        """
        if models is None:
            from cnnfilterdb import catalog

            models = catalog.models(self.name)
        self._models = {model.name: model for model in models}
        self._folder = None if folder is None else Path(folder).expanduser()
        self._offline, self._mirror = offline, mirror
        self._cache = cache or Cache()
        self._given_session = session
        self._hashes: dict[str, str] = {}

    @cached_property
    def _session(self) -> Session:
        return self._given_session or Session(pip_settings.read())

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """Names of the models that match any of the patterns, all without patterns; no network.

        Raises:
            UnknownModelError: A pattern matches nothing; the message gives the nearest names.
        """
        from cnnfilterdb import catalog

        return catalog.match([*self._models], patterns) if patterns else [*self._models]

    def describe(self, name: str) -> ModelFacts:
        """What the catalog knows about a model; no network.

        The hash is that of the file that :meth:`resolve` found; before, the one that the catalog or an earlier run
        knows.

        Raises:
            UnknownModelError: There is no such model.
        """
        origin = self._origin(name)
        sha256 = self._hashes.get(name) or self._expected(origin)
        return self._models[name].facts.updated(
            url=origin.urls[0] if origin.urls else None,
            weights_sha256=sha256 if len(sha256) == 64 else None,
        )

    def resolve(self, name: str, progress: Progress | None = None) -> Path:
        """Find the weight file of a model in the folder or in the cache, or bring it, and return its path.

        Args:
            name: Name of the model.
            progress: Called with (bytes done, bytes expected).

        Raises:
            UnknownModelError: There is no such model.
            DownloadError: It cannot be brought; the message tells how it can be had.
            HashMismatchError: It is not the expected file.
            WeightFileError: An address gave something else, such as a page.
        """
        origin = self._origin(name)
        if path := self._in_folder(origin):
            self._hashes[name] = sha256_of(path)
            if not self._hashes[name].startswith(origin.sha256):
                raise HashMismatchError(
                    f"{path}: expected SHA-256 {origin.sha256}{'...' * (len(origin.sha256) < 64)}, "
                    f"found {self._hashes[name]}; it is not the file of {self.name}/{name}"
                )
            return path
        path = self._cached(origin)
        if path is None:
            self._reachable(name, origin)
            # One brings it, the others wait
            with self._cache.lock(_key(f"{self.name}/{origin.file}")):
                path = self._cached(origin) or self._bring(name, origin, progress)
        self._hashes[name] = path.parent.name
        return path

    def enrich(self, name: str, weights: Weights) -> Weights:
        """Leave out what is no part of the network, mark what is never executed, and give the order of the rest.

        Where the catalog knows that the file has the layers in the order of their execution, their rank in it is their
        depth, unless the file has a graph that tells more.
        """
        origin = self._origin(name)
        kept = [layer for layer in weights.layers if not _fits(layer, origin.drop)]
        skipped = [
            Skipped(layer.name, "no part of the network") for layer in weights.layers if _fits(layer, origin.drop)
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
            # How many numbers besides kernels were left out is not known
            parameters=None if skipped else weights.parameters,
            skipped=(*weights.skipped, *skipped),
        )

    def _compare(self, name: str, layers: Sequence[ConvLayer]) -> None:
        """Warn of a file that is not the network that the catalog describes."""
        model = self._models[name]
        squares = [layer.shape[0] * layer.shape[1] for layer in layers if layer.kernel == "3x3"]
        found = len(layers), len(squares), sum(squares)
        expected = model.conv_layers, model.conv3x3_layers, model.conv3x3_filters
        if any(count not in (None, there) for there, count in zip(found, expected, strict=True)):
            _log.warning(
                "%s/%s: expected (convolutions, 3x3 ones, their kernels) %s, found %s; is it another network?",
                *(self.name, name, expected, found),
            )

    def _origin(self, name: str) -> Origin:
        if name not in self._models:
            # Patterns match in either case, names do not.
            near = self.list([escape(name)])
            raise UnknownModelError(f"no model {name!r}; nearest: {', '.join(near)}")
        return Origin.parse(f"{self.name}/{name}", self._models[name].origin)

    def _expected(self, origin: Origin) -> str:
        """The hash that the file must have, as far as it is known: of the catalog, or of the first time."""
        if len(origin.sha256) == 64:
            return origin.sha256
        first = self._cache.trusted(f"{self.name}/{origin.file}")
        return first.sha256 if first and first.sha256.startswith(origin.sha256) else origin.sha256

    def _in_folder(self, origin: Origin) -> Path | None:
        if self._folder is None:
            return None
        if not self._folder.is_dir():
            raise DownloadError(f"{self._folder}: no such folder to look for {origin.file} in; name one that exists")
        direct = self._folder / origin.file
        if direct.is_file():
            return direct
        return next((path for path in sorted(self._folder.rglob(escape(origin.file))) if path.is_file()), None)

    def _cached(self, origin: Origin) -> Path | None:
        sha256 = self._expected(origin)
        return self._cache.find(origin.file, size=origin.size, sha256=sha256) if len(sha256) == 64 else None

    def _reachable(self, name: str, origin: Origin) -> None:
        """Say how a file can be had that no server will be asked for."""
        searched = f"it is not in the cache {self._cache.folder}"
        searched += ", and no folder is named" if self._folder is None else f" nor below {self._folder}"
        remedy = f"put {origin.file} into a folder and name it with --from (option folder)"
        if not origin.urls:
            raise DownloadError(
                f"{self.name}/{name}: no program can fetch it; get it by hand: {origin.manual}; then {remedy}"
            )
        if self._offline:
            raise DownloadError(
                f"{self.name}/{name}: offline, and {searched}; {remedy}, or go online for {origin.urls[0]}"
            )

    def _bring(self, name: str, origin: Origin, progress: Progress | None) -> Path:
        """From the first address that gives it."""
        errors: list[IngestError] = []
        for url in origin.urls:
            try:
                return self._from(url, origin, progress)
            except IngestError as error:
                errors.append(error)
                if url is not origin.urls[-1]:
                    _log.warning("%s; trying the next address", error)
        reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
        # What came last is what the user is told of most; a wrong file anywhere matters more than a dead address.
        kind = next((type(error) for error in errors if isinstance(error, HashMismatchError)), type(errors[-1]))
        raise kind(
            f"{self.name}/{name}: {reasons}; or put {origin.file} into a folder and name it with --from (option folder)"
        ) from errors[-1]

    def _from(self, url: str, origin: Origin, progress: Progress | None) -> Path:
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
                f"{error}: it was another one when it came first; delete {first} to accept the change"
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
            _log.info("%s: no whole SHA-256 is known of it; %s is trusted from now on", origin.file, sha256)
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
    """Whether a layer, or a part of the network that it belongs to, is meant."""
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

    Models that a user adds to a database from memory (:meth:`cnnfilterdb.FilterDB.add`) are named ``custom/...`` too.
    """

    name = "custom"
