"""A release, read where it lies: on the Hugging Face Hub, in an object store, or in a folder.

What is asked for is all that moves: the manifest first, then the small tables, and of the filters the row groups of the
models that are wanted. Any file system that fsspec knows will do.
"""

from __future__ import annotations

import atexit
import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cnnfilterdb.analysis.bases import Bases, FittedBasis, fitted_basis
from cnnfilterdb.errors import (
    DatabaseError,
    MissingExtraError,
    NotADatabaseError,
    RemoteError,
    unknown_model,
)
from cnnfilterdb.paths import MARKER
from cnnfilterdb.release.cached_filesystem import CachedFileSystem, reaching
from cnnfilterdb.release.manifest import Manifest, ReleaseFile, version_of
from cnnfilterdb.reports import Problem, Progress
from cnnfilterdb.scan.scan import constant
from cnnfilterdb.schema import kernel_order

if TYPE_CHECKING:
    import duckdb

__all__ = ["Release", "ReleaseBases", "ReleaseShard", "is_release"]


def is_release(path: str | Path) -> bool:
    """Whether a path stands for a release: an address, or a folder with the manifest of one.

    >>> is_release("hf://datasets/owner/name"), is_release("mydb")
    (True, False)
    """
    if "://" in str(path):
        return True
    try:
        text = (Path(path) / MARKER).read_text(encoding="utf-8")
        Manifest.from_json(text, str(path))
    except (OSError, ValueError, DatabaseError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """A file of filters in a release.

    Attributes:
        path: Its path in the file system.
        filesystem: The file system; None for that of the machine.
        models: Only row groups of these models are wanted; None wants all.
        footers: Footers by path, so that each is fetched once.
    """

    path: str
    filesystem: fsspec.AbstractFileSystem | None
    models: frozenset[str] | None = None
    footers: dict[str, pq.FileMetaData] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return self.path if self.filesystem is None else str(self.filesystem.unstrip_protocol(self.path))

    def open(self, **options: Any) -> pq.ParquetFile:
        """Open it; row groups are then fetched by a request or two each."""
        options.setdefault("metadata", self.footers.get(self.path))
        if self.filesystem is None:
            file = pq.ParquetFile(self.path, memory_map=True, **options)
        else:
            # Ranges are asked for as they are needed: pyarrow joins those of a row group.
            content = self.filesystem.open(self.path, "rb", cache_type="none")
            file = pq.ParquetFile(content, pre_buffer=True, **options)
        self.footers.setdefault(self.path, file.metadata)
        return file

    def wanted(self, metadata: pq.FileMetaData, group: int) -> bool:
        """Whether a row group is of a model that was asked for."""
        return self.models is None or model_of(metadata, group) in self.models


def model_of(metadata: pq.FileMetaData, group: int) -> str:
    """The model of a row group of filters, by its statistics: the release has a model in each."""
    model_id: str | None = constant(metadata, group, "model_id")
    if model_id is None:
        raise DatabaseError(f"row group {group} does not tell its model; publish the release again")
    return model_id


class Release:
    """A release. Made by :meth:`open`.

    Attributes:
        location: Its address, with the version or commit that is read; for a folder its absolute path.
        filesystem: The file system that it is in.
        root: Its folder in there.
        manifest: What it says of itself.
    """

    published = True
    annotated = False

    def __init__(self, location: str, filesystem: fsspec.AbstractFileSystem, root: str, manifest: Manifest) -> None:
        self.location = location
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.manifest = manifest
        self._remote = None if isinstance(filesystem, LocalFileSystem) else filesystem
        self._files = filesystem if self._remote is None else CachedFileSystem(filesystem)
        self._footers: dict[str, pq.FileMetaData] = {}

    def __repr__(self) -> str:
        return f"Release({self.location!r})"

    @classmethod
    def open(cls, location: str | Path, **options: Any) -> Self:
        """Open a release. Its manifest is read, and nothing else.

        Args:
            location: A folder, or an address such as ``hf://datasets/owner/name@v1.0.0`` or ``s3://bucket/folder``. A
                branch of the Hub (without a version the default one) is pinned to the commit that it points at.
            **options: Of the file system of fsspec, such as ``token`` or ``endpoint_url``.

        Raises:
            RemoteError: It cannot be reached.
            NotADatabaseError: No release lies there.
            MissingExtraError: The file system needs a package that is not installed.
        """
        text = str(location)
        if "://" not in text:
            text = str(Path(location).resolve())
        with reaching(text):
            filesystem, root = _filesystem(text, options)
            if filesystem.protocol == "hf" or "hf" in filesystem.protocol:
                text, root = _pinned(text, filesystem, root)
            try:
                manifest = filesystem.cat_file(f"{root.rstrip('/')}/{MARKER}").decode("utf-8")
            except FileNotFoundError as error:
                if filesystem.exists(root):
                    raise NotADatabaseError(
                        f"{text}: holds no release of cnnfilterdb ({MARKER} is missing); check the address"
                    ) from error
                raise
        return cls(text.rstrip("/"), filesystem, root, Manifest.from_json(manifest, text))

    def path(self, relative: str) -> str:
        """The path of a file in the file system."""
        return f"{self.root}/{relative}"

    def model_ids(self) -> list[str]:
        """Keys of its models, sorted."""
        ids: list[str] = self.table("models", columns=["model_id"])["model_id"].to_pylist()
        return ids

    def require(self, model_ids: Iterable[str]) -> None:
        """Make sure that models are in it.

        Raises:
            UnknownModelError: One of them is not; the message gives the nearest keys.
        """
        there = self.model_ids()
        for model_id in set(model_ids).difference(there):
            raise unknown_model(model_id, there, self.location)

    def kernels(self) -> list[str]:
        """Kernel sizes of its filters, sorted by number of weights, then by name."""
        sizes = {file.table.removeprefix("filters_") for file in self.manifest.files if "filters_" in file.table}
        return sorted(sizes, key=kernel_order)

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> Sequence[ReleaseShard]:
        """The files of a kernel size that may hold some models; none for a size that it does not have.

        Args:
            kernel: Kernel size.
            model_ids: Only row groups of these models are wanted.
        """
        chosen = None if model_ids is None else frozenset(model_ids)
        return [
            ReleaseShard(self.path(file.path), self._remote, chosen, self._footers)
            for file in self.manifest.of(f"filters_{kernel}")
            if chosen is None or any(_within(model_id, file.first_model, file.last_model) for model_id in chosen)
        ]

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the small tables, in the order in which it is stored.

        Args:
            name: ``models``, ``layers``, ``histograms`` or ``bases``.
            columns: These columns only.
        """
        parts = []
        for file in self.manifest.of(name):
            # What is small is read at once, and remembered for the queries that follow.
            with reaching(f"{self.location}/{file.path}"), self._files.open(self.path(file.path)) as content:
                parts.append(pq.ParquetFile(pa.BufferReader(content.read())).read(columns=columns))
        return pa.concat_tables(parts)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Teach a connection to reach it through fsspec."""
        if isinstance(self._files, CachedFileSystem):
            connection.register_filesystem(self._files)
            # DuckDB should not outlive the interpreter that its file system needs.
            atexit.register(_close, weakref.ref(connection))

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Read every file and compare its size and hash with the manifest.

        Args:
            progress: Called with the path of a file, the number of files done and of all.
        """
        problems = []
        for done, file in enumerate(self.manifest.files, 1):
            if message := self._problem(file):
                problems.append(Problem(None, Path(file.path), message))
            if progress:
                progress(file.path, done, len(self.manifest.files))
        return problems

    def _problem(self, file: ReleaseFile) -> str | None:
        digest, size = hashlib.sha256(), 0
        try:
            with reaching(file.path), self.filesystem.open(self.path(file.path), "rb") as content:
                while data := content.read(8 << 20):
                    digest.update(data)
                    size += len(data)
        except RemoteError as error:
            return str(error).removeprefix(f"{file.path}: ")
        if size != file.bytes:
            return f"{size:,} bytes, expected {file.bytes:,}"
        if digest.hexdigest() != file.sha256:
            return f"SHA-256 {digest.hexdigest()}, expected {file.sha256}"
        return None


class ReleaseBases(Bases):
    """The bases of a release.

    Args:
        location: Where the release lies.
        read: Reads the bases table, when it is asked for first.
    """

    def __init__(self, location: str, read: Callable[[], pa.Table]) -> None:
        self.location = location
        self._read = read

    @cached_property
    def _all(self) -> list[FittedBasis]:
        found = [fitted_basis(row) for row in self._read().to_pylist()]
        return sorted(found, key=lambda fitted: (fitted.created_at, fitted.basis_id))

    def bases(self) -> list[FittedBasis]:
        """All bases, oldest first."""
        return list(self._all)


def _close(reference: weakref.ref[duckdb.DuckDBPyConnection]) -> None:
    if (connection := reference()) is not None:
        connection.close()


def _within(model_id: str, first: str | None, last: str | None) -> bool:
    return (first is None or first <= model_id) and (last is None or model_id <= last)


def _filesystem(location: str, options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        protocol = location.partition("://")[0]
        hint = "pip install 'cnnfilterdb[s3]'" if protocol == "s3" else f"pip install the package for {protocol}://"
        raise MissingExtraError(f"{location}: {' '.join(str(error).split())}; {hint}") from error
    return filesystem, root


def _pinned(location: str, filesystem: Any, root: str) -> tuple[str, str]:
    """An address of the Hub whose answers do not change: branches move, versions and commits do not."""
    resolved = filesystem.resolve_path(root)
    if version_of(resolved.revision):
        return location, root
    commit = filesystem._api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision).sha
    root = f"{resolved.repo_type}s/{resolved.repo_id}@{commit}/{resolved.path_in_repo}".rstrip("/")
    return f"hf://{root}", root
