"""Databases as origins of models: whole models from a folder or a release, one at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa

from cnnfilterdb.analysis.bases import Bases
from cnnfilterdb.release.release import Release
from cnnfilterdb.scan.ordered import RowCursor, filters_of
from cnnfilterdb.scan.scan import FilterFiles
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

__all__ = ["IDENTITY", "DatabaseOrigin", "FolderOrigin", "ReleaseOrigin", "signatures"]


class DatabaseOrigin(ABC):
    """A database that models are copied from.

    Attributes:
        location: Its address.
        bases: Its bases.
        files: Access to its filter files.
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

    def rows(self, model_id: str, kernel: str, layers: Collection[int]) -> RowCursor:
        """The filters of layers of one kernel size of a model."""
        tables = filters_of(self.files, kernel, {model_id: layers})
        return RowCursor((batch for table in tables for batch in table.to_batches()), kernel)

    def annotations(self) -> notes.Facts:
        """Corrections that are not part of the models table."""
        return {}

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The rows of the models table by model."""
        return {row["model_id"]: _row(row) for row in self.models().to_pylist()}

    def signatures(self) -> dict[str, str]:
        """A hash over the hashes of the layers of each model, which identifies its weights.

        A model without stored filters has none.
        """
        return signatures(self.layers(columns=IDENTITY))


#: Columns of the layers table that identify the weights of a model.
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
    """A row of the models table, with mappings in place of the pairs that Arrow gives."""
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

    def annotations(self) -> notes.Facts:
        """The annotations of the folder."""
        return notes.stored_facts(self._store.path)


class ReleaseOrigin(DatabaseOrigin):
    """The models of a release.

    Its small tables are read completely, compared with the hashes of the manifest and checked. Of the filters, only row
    groups of the selected models are read; the hashes of the layers show whether they are complete.

    Args:
        release: The release.
    """

    def __init__(self, release: Release) -> None:
        self._release = self.files = release
        self.location = release.location
        self.bases = release.bases

    def models(self) -> pa.Table:
        """The models table."""
        return self._release.models()

    def layers(self, model_id: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The layers of one model or of all."""
        table = self._release.layers()
        if model_id is not None:
            table = table.slice(*self._spans[model_id])
        return table if columns is None else table.select(list(columns))

    @cached_property
    def _spans(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows of each model: the table is sorted, so no model needs a search."""
        counts = self._release.layers()["model_id"].value_counts().to_pylist()
        stops = accumulate(entry["counts"] for entry in counts)
        return {
            entry["values"]: (stop - entry["counts"], entry["counts"])
            for entry, stop in zip(counts, stops, strict=True)
        }
