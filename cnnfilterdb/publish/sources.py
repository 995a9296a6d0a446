"""What a release is made of: the models of a database folder, or those of several parts."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb.analysis.bases import Bases, FittedBasis
from cnnfilterdb.analysis.storage import Storage
from cnnfilterdb.core import paths, sqltext
from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.core.schema import FINGERPRINTS, HISTOGRAMS, filter_schema
from cnnfilterdb.parts.parts import Parts
from cnnfilterdb.publish.shards import ModelRows, WholeShard
from cnnfilterdb.release.release import Release, ReleaseShard, model_of
from cnnfilterdb.scan.scan import filter_groups, filters_metadata
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

__all__ = ["FolderSource", "PartsSource", "Query", "ReleaseSource", "source_of"]

#: Answers SQL over the views of a database.
Query = Callable[[str], pa.Table]

# Name of the staging folder that holds the release until it is uploaded
_BUILT = "release"


class ReleaseSource(ABC):
    """What a release is made of.

    Attributes:
        storage: The database, whose views give the models.
    """

    storage: Storage

    @abstractmethod
    def prepare(self, progress: Progress | None) -> None:
        """Bring the bases, histograms and fingerprints up to date."""

    @abstractmethod
    def staging(self) -> AbstractContextManager[Path]:
        """A folder for a release that is uploaded, which is removed afterwards."""

    @abstractmethod
    def bases(self) -> list[FittedBasis]:
        """The bases in use; older ones stay in the database."""

    @abstractmethod
    def filters(self, kernel: str, model_ids: Sequence[str]) -> list[ModelRows | WholeShard]:
        """The filters of models, in the order of models."""

    @abstractmethod
    def histograms(self, bases: Sequence[FittedBasis], model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """Histograms, ordered by basis and recipe, then by model, because a query reads one basis and one recipe."""

    @abstractmethod
    def fingerprints(self, model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """Fingerprints, ordered by model and layer."""


class FolderSource(ReleaseSource):
    """The models of a database folder.

    Args:
        index: Its index, which names the folder as well.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.storage: Store = index.store

    def prepare(self, progress: Progress | None) -> None:
        """Update the index."""
        self.index.build(progress=progress)

    def staging(self) -> AbstractContextManager[Path]:
        """A staging folder in the database."""
        return self.storage.staging(_BUILT)

    def bases(self) -> list[FittedBasis]:
        """The bases in use."""
        return list(self.index.current().values())

    def filters(self, kernel: str, model_ids: Sequence[str]) -> list[ModelRows | WholeShard]:
        """The filters of models."""
        return [*_of_folder(self.storage, kernel, model_ids)]

    def histograms(self, bases: Sequence[FittedBasis], model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The histograms, from the files of models."""
        for fitted in bases:
            for recipe in RECIPES:
                for model_id in model_ids:
                    path = self.storage.path / paths.histograms_path(fitted.basis_id, self.storage.slug(model_id))
                    if path.exists():
                        yield pq.read_table(path, schema=HISTOGRAMS, filters=pc.field("recipe") == recipe)

    def fingerprints(self, model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The fingerprints, from the files of models."""
        for model_id in sorted(model_ids):
            path = self.storage.path / paths.fingerprints_path(self.storage.slug(model_id))
            if path.exists():
                yield pq.read_table(path, schema=FINGERPRINTS)


class PartsSource(ReleaseSource):
    """The models of several parts.

    A shard of a release is copied as it is, compared with its hash, if all of its models are published and none of
    another part comes between them, because the models of a release are in order.

    Args:
        storage: The parts.
        bases: Their bases in common.
        query: Answers SQL over their views.
    """

    def __init__(self, storage: Parts, bases: Bases, query: Query) -> None:
        self.storage: Parts = storage
        self._bases = bases
        self._query = query

    def prepare(self, progress: Progress | None) -> None:
        """Count what is missing in the bases in common."""
        self._bases.prepare(progress, fingerprints=True)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A temporary folder in the cache, where there is space for large files."""
        with tempfile.TemporaryDirectory(prefix=f"{_BUILT}-", dir=self.storage.derived.path) as folder:
            yield Path(folder)

    def bases(self) -> list[FittedBasis]:
        """The bases in common."""
        return self._bases.bases()

    def filters(self, kernel: str, model_ids: Sequence[str]) -> list[ModelRows | WholeShard]:
        """The filters of models: whole shards where that is possible."""
        self.storage.require_filters(model_ids)
        found: list[ModelRows | WholeShard] = []
        shards: list[tuple[Release, ReleaseShard, dict[str, list[int]], set[str]]] = []
        for number, own in sorted(self.storage.owned(model_ids).items()):
            storage = self.storage.parts[number].storage
            if isinstance(storage, Store):
                found += _of_folder(storage, kernel, own)
            else:
                for shard in storage.filter_files(kernel, own):
                    if groups := _groups(shard, kernel):
                        shards.append((storage, shard, groups, set(own)))
        there = {one.first for one in found}.union(*(groups.keys() & own for _, _, groups, own in shards))
        for storage, shard, groups, chosen in shards:
            first, last = min(groups), max(groups)
            if groups.keys() <= chosen and groups.keys() == {one for one in there if first <= one <= last}:
                found.append(WholeShard(first, last, shard.file, partial(storage.copy, shard.file), shard))
            else:
                found += [_of_shard(shard, kernel, one, numbers) for one, numbers in groups.items() if one in chosen]
        return sorted(found, key=lambda one: one.first)

    def histograms(self, bases: Sequence[FittedBasis], model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The histograms, from the parts and from what was counted for all of them."""
        columns = ", ".join(map(sqltext.identifier, HISTOGRAMS.names))
        for fitted in bases:
            for recipe in RECIPES:
                yield self._chosen(
                    f"SELECT {columns} FROM histograms SEMI JOIN layers USING (model_id, layer, tensor_sha256) "
                    f"WHERE basis_id = {sqltext.literal(fitted.basis_id)} AND recipe = {sqltext.literal(recipe)} "
                    "ORDER BY model_id, layer",
                    HISTOGRAMS,
                    model_ids,
                )

    def fingerprints(self, model_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The fingerprints of the parts."""
        columns = ", ".join(map(sqltext.identifier, FINGERPRINTS.names))
        yield self._chosen(
            f"SELECT {columns} FROM fingerprints SEMI JOIN layers USING (model_id, layer, tensor_sha256) "
            "ORDER BY model_id, layer",
            FINGERPRINTS,
            model_ids,
        )

    def _chosen(self, query: str, schema: pa.Schema, model_ids: Sequence[str]) -> pa.Table:
        table = self._query(query)
        return table.filter(pc.is_in(table["model_id"], pa.array(model_ids, pa.string()))).cast(schema)


def source_of(storage: Storage, bases: Bases, query: Query) -> ReleaseSource:
    """What a release of a database is made of.

    Args:
        storage: The database.
        bases: Its bases.
        query: Answers SQL over its views.

    Raises:
        PublishError: It is a release.
    """
    if isinstance(bases, Index):
        return FolderSource(bases)
    if isinstance(storage, Parts):
        return PartsSource(storage, bases, query)
    raise PublishError(f"{storage.location}: a release, which is published already; `cnnfilterdb pull` imports it")


def _of_folder(store: Store, kernel: str, model_ids: Sequence[str]) -> Iterator[ModelRows]:
    files = {path.stem: path for path in store.filter_files(kernel, model_ids)}
    for model_id in sorted(model_ids):
        if path := files.get(store.slug(model_id)):
            metadata = pq.read_metadata(path)
            yield ModelRows(model_id, metadata.num_rows, metadata.num_row_groups, partial(_row_groups, path))


def _row_groups(path: Path, numbers: Sequence[int]) -> Iterator[pa.Table]:
    # Not mapped: for a database larger than the memory, all pages would count as in use.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for number in numbers:
            yield file.read_row_group(number)


def _groups(shard: ReleaseShard, kernel: str) -> dict[str, list[int]]:
    """The row groups of each model of a shard."""
    metadata = filters_metadata(shard, kernel)
    found: dict[str, list[int]] = {}
    for number, group in enumerate(filter_groups(shard, metadata)):
        if group.rows:
            found.setdefault(model_of(group, str(shard)), []).append(number)
    return found


def _of_shard(shard: ReleaseShard, kernel: str, model_id: str, groups: Sequence[int]) -> ModelRows:
    metadata = filters_metadata(shard, kernel)

    def read(numbers: Sequence[int]) -> Iterator[pa.Table]:
        file = shard.open()
        for number in numbers:
            yield file.read_row_group(groups[number], columns=filter_schema(kernel).names)

    rows = sum(metadata.row_group(group).num_rows for group in groups)
    return ModelRows(model_id, rows, len(groups), read, local=False)
