"""Filters with their keys as a stream, in the order of models and layers, in bounded memory.

Rows are in that order within a file, and a file or a row group is of one model: nothing has to be sorted, and row
groups that were not requested are skipped by their statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.footers import RowGroup
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.schema import filter_schema, weight_columns
from cnnfilterdb.scan.scan import (
    FilterFile,
    FilterFiles,
    Shard,
    damaged,
    failures,
    filter_groups,
    filters_metadata,
    may_hold,
    only_model,
    open_parquet,
)

__all__ = ["PIECE", "RowCursor", "filters_of"]

#: Rows that are read, or filters of a layer that are looked at, at a time: memory does not grow with the layer.
PIECE = 64 * 1024


def filters_of(storage: FilterFiles, kernel: str, layers: Mapping[str, Collection[int]]) -> Iterator[pa.Table]:
    """The filters of layers of one kernel size, sorted by ``model_id`` and ``layer``.

    Args:
        storage: The database that contains them.
        kernel: Their kernel size.
        layers: The layers of each model.

    Yields:
        Rows of the filters table, those of a row group at a time; no table is empty.

    Raises:
        CorruptError: A file cannot be read, or is not one of filters of that size.
        RemoteError: A remote file cannot be reached.
    """
    names = filter_schema(kernel).names

    runner = storage.resources.runner

    def places() -> Iterator[_Place]:
        files = storage.filter_files(kernel, sorted(layers))
        for model_id, path, metadata, number, group in _in_order(files, kernel, layers):
            chosen = layers[model_id]
            if may_hold(group, chosen):
                yield _Place(path, None if runner.remote else metadata, number, group.rows, kernel, chosen)

    def size(place: _Place) -> int:
        return 4 * len(names) * place.rows

    # Whole tables come back, so that few may wait, even where there are many workers.
    window = 2 * min(runner.workers, storage.resources.threads)
    budget = storage.resources.budget
    with closing(runner.run(_read, places(), window=window, weight=size, budget=budget)) as tables:
        for _, future in tables:
            table = future.result()
            del future  # and with it the table, once it has been used
            if table.num_rows:
                yield table


@dataclass(frozen=True, slots=True)
class _Place:
    """A row group to read, and the layers that are wanted of it."""

    path: FilterFile
    metadata: pq.FileMetaData | None
    group: int
    rows: int
    kernel: str
    wanted: Collection[int]


def _read(place: _Place) -> pa.Table:
    import pyarrow.compute as pc

    path, wanted = place.path, place.wanted
    names = filter_schema(place.kernel).names
    try:
        file = open_parquet(path) if place.metadata is None else open_parquet(path, metadata=place.metadata)
        table = file.read_row_group(place.group, columns=names, use_threads=False)
    except failures(path) as error:
        raise damaged(path, f"row group {place.group} cannot be read ({first_line(error)})") from error
    if table.column_names != names:
        raise damaged(path, f"its columns are not {', '.join(names)}")
    if set(pc.unique(table["layer"]).to_pylist()) <= set(wanted):
        return table
    return table.filter(pc.is_in(table["layer"], pa.array(wanted, pa.int32())))


class RowCursor:
    """Reads the rows of layers from a stream of filters, with one batch in memory at a time.

    Args:
        batches: Record batches of filters, in the order of layers.
        kernel: Their kernel size.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], kernel: str) -> None:
        self._columns = weight_columns(kernel)
        self._batches: Iterator[pa.RecordBatch] = iter(batches)
        self._batch: pa.RecordBatch | None = None

    def pieces(self, count: int) -> Iterator[tuple[int, set[str], npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """The next rows, :data:`PIECE` at a time: the number of the first, and what :meth:`take` returns."""
        for start in range(0, count, PIECE):
            yield start, *self.take(min(PIECE, count - start))

    def take(self, count: int) -> tuple[set[str], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The next rows.

        Returns:
            Their models; (3, count) layer, out channel and in channel; (count, weights) little-endian, C-contiguous.

        Raises:
            CorruptError: The stream ends too early.
        """
        import pyarrow.compute as pc

        models: set[str] = set()
        keys = np.empty((3, count), np.int32)
        weights = np.empty((count, len(self._columns)), "<f4")
        start = 0
        while start < count:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
                if self._batch is None:
                    raise CorruptError(f"ends {count - start:,} filters early")
            part = self._batch.slice(0, count - start)
            stop = start + part.num_rows
            models.update(pc.unique(part["model_id"]).to_pylist())
            for number, column in enumerate(("layer", "out_channel", "in_channel")):
                keys[number, start:stop] = part[column]
            for number, column in enumerate(self._columns):
                weights[start:stop, number] = part[column]
            self._batch = self._batch.slice(part.num_rows)
            start = stop
        return models, keys, weights


_Found = tuple[str, FilterFile, pq.FileMetaData, int, RowGroup]


def _in_order(files: Sequence[FilterFile], kernel: str, layers: Mapping[str, Collection[int]]) -> Iterator[_Found]:
    """The row groups of models, with their keys, sorted by them.

    The files of a folder are sorted here; those of a release are in order, and are opened one after the other. Where
    there are several of these, as in parts, they are merged.
    """
    model_of = {paths.slug(model_id): model_id for model_id in layers}
    own = {path: model_of[path.stem] for path in files if isinstance(path, Path)}
    origins: dict[str, list[Shard]] = {}
    for file in files:
        if not isinstance(file, Path):
            origins.setdefault(file.origin, []).append(file)

    def of_files() -> Iterator[_Found]:
        for path in sorted(own, key=own.__getitem__):
            metadata = filters_metadata(path, kernel)
            for number, group in enumerate(filter_groups(path, metadata)):
                yield own[path], path, metadata, number, group

    def of_shards(shards: list[Shard]) -> Iterator[_Found]:
        for shard in shards:
            metadata = filters_metadata(shard, kernel)
            for number, group in enumerate(filter_groups(shard, metadata)):
                model_id = only_model(group)
                if model_id is not None and model_id in layers and shard.wanted(group):
                    yield model_id, shard, metadata, number, group

    yield from merge(of_files(), *map(of_shards, origins.values()), key=itemgetter(0))
