"""Databases as origins of models: whole models out of a folder or a release, one at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cnnfilterdb import paths
from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.errors import CorruptError
from cnnfilterdb.release.cached_filesystem import reaching
from cnnfilterdb.release.manifest import ReleaseFile
from cnnfilterdb.release.release import Release, ReleaseBases
from cnnfilterdb.scan.ordered import Rows, filters_of
from cnnfilterdb.scan.scan import FilterFiles
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.durable import writing
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

__all__ = ["IDENTITY", "DatabaseOrigin", "FolderOrigin", "ReleaseOrigin", "signatures"]

_CHUNK = 4 << 20  # bytes fetched at a time


class DatabaseOrigin(ABC):
    """What models are taken from.

    Attributes:
        location: Where it lies.
        bases: Its bases.
        files: Has the files of its filters.
    """

    location: str
    bases: Bases
    files: FilterFiles

    @abstractmethod
    def models(self) -> pa.Table:
        """The models table, sorted by ``model_id``."""

    @abstractmethod
    def layers(self, model_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers of one model or of all, in order; these columns only."""

    def rows(self, model_id: str, kernel: str, layers: Collection[int]) -> Rows:
        """The filters of layers of one kernel size of a model."""
        tables = filters_of(self.files, kernel, {model_id: layers})
        return Rows((batch for table in tables for batch in table.to_batches()), kernel)

    @abstractmethod
    def histograms(self, model_id: str) -> dict[str, pa.Table]:
        """The histograms of a model in each basis: basis id -> rows of the histograms table."""

    def annotations(self) -> notes.Facts:
        """Corrections that are not part of the models table."""
        return {}

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The rows of the models table by model."""
        return {row["model_id"]: _row(row) for row in self.models().to_pylist()}

    def signatures(self) -> dict[str, str]:
        """What a model is by its weights: a hash of the hashes of its layers; none for a model without filters."""
        return signatures(self.layers(columns=IDENTITY))


#: Columns of the layers table that tell what a model is.
IDENTITY = ("model_id", "layer", "kernel", "stored", "tensor_sha256")


def signatures(layers: pa.Table) -> dict[str, str]:
    """See :meth:`DatabaseOrigin.signatures`; from the columns :data:`IDENTITY` of all layers, in order."""
    hashes: dict[str, list[str]] = defaultdict(list)
    columns = (layers[name].to_pylist() for name in IDENTITY)
    for model_id, _, kernel, stored, digest in zip(*columns, strict=True):
        if stored:
            hashes[model_id].append(f"{kernel} {digest}")
    return {model_id: hashlib.sha256("\n".join(of).encode()).hexdigest() for model_id, of in hashes.items()}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the models table, with mappings for what Arrow gives as pairs."""
    for name in ("metrics", "original"):
        if row[name] is not None:
            row[name] = {pair["key"]: pair["value"] for pair in row[name]} if _entries(row[name]) else dict(row[name])
    row.pop("files", None)
    return row


def _entries(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict)


class FolderOrigin(DatabaseOrigin):
    """The models of a database folder.

    Args:
        store: The folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = self.files = store
        self.location = store.location
        self.bases = Index(store)

    def models(self) -> pa.Table:
        """The models table as it was stored."""
        return self._store.models()

    def layers(self, model_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers of one model or of all."""
        return self._store.layers(None if model_id is None else [model_id], columns=columns)

    def histograms(self, model_id: str) -> dict[str, pa.Table]:
        """The histograms of a model in each basis."""
        slug = self._store.slug(model_id)
        files = {
            fitted.basis_id: self._store.path / paths.histograms_path(fitted.basis_id, slug)
            for fitted in self.bases.bases()
        }
        return {basis_id: pq.ParquetFile(path).read() for basis_id, path in files.items() if path.exists()}

    def annotations(self) -> notes.Facts:
        """The annotations of the folder."""
        return notes.read(self._store.path)


class ReleaseOrigin(DatabaseOrigin):
    """The models of a release.

    Its small tables are fetched whole, and their hashes compared with the manifest; of the filters the row groups of
    the models that are asked for are fetched, which the hashes of their layers prove.

    Args:
        release: The release.
        folder: Where the small tables are kept meanwhile.
    """

    def __init__(self, release: Release, folder: Path) -> None:
        self._release = self.files = release
        self._folder = folder
        self._lock = Lock()  # what several models need is fetched once
        self.location = release.location
        self.bases = ReleaseBases(self.location, lambda: self._table("bases").to_table())

    def models(self) -> pa.Table:
        """The models table."""
        return self._table("models").to_table()

    def layers(self, model_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers of one model or of all."""
        chosen = None if model_id is None else pc.field("model_id") == model_id
        table = self._table("layers").to_table(filter=chosen, columns=None if columns is None else list(columns))
        return table.sort_by([("model_id", "ascending"), ("layer", "ascending")])

    def histograms(self, model_id: str) -> dict[str, pa.Table]:
        """The histograms of a model in each basis."""
        table = self._table("histograms").to_table(filter=pc.field("model_id") == model_id)
        keys = pc.unique(table["basis_id"]).to_pylist()
        return {key: table.filter(pc.equal(table["basis_id"], key)) for key in keys}

    def _table(self, name: str) -> ds.Dataset:
        with self._lock:
            return ds.dataset([self._fetched(file) for file in self._release.manifest.of(name)], format="parquet")

    def _fetched(self, file: ReleaseFile) -> Path:
        """The local copy of a file, checked by its hash."""
        target = self._folder / file.path
        if target.exists():
            return target
        where, digest = f"{self.location}/{file.path}", hashlib.sha256()
        with writing(self._folder):
            target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        with reaching(where), self._release.filesystem.open(self._release.path(file.path), "rb") as content:
            with writing(part):
                out = part.open("wb")
            with out:
                while data := content.read(_CHUNK):
                    digest.update(data)
                    with writing(part):
                        out.write(data)
        if digest.hexdigest() != file.sha256:
            raise CorruptError(
                f"{where}: SHA-256 {digest.hexdigest()}, expected {file.sha256}; try again, or publish it again"
            )
        part.replace(target)
        return target
