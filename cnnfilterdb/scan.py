"""Scans over the stored filters: Parquet row groups in threads, columns as they lie in memory.

Everything that must look at each filter again (a new basis, other bins, another range) goes through :func:`scan`.
Memory is bounded by the row groups in flight, whatever the size of the database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.errors import CnnFilterDbError, CorruptError, RemoteError
from cnnfilterdb.runners import ahead
from cnnfilterdb.schema import weight_columns

__all__ = ["FilterFile", "FilterFiles", "Run", "Shard", "open_parquet", "scan", "threads"]

T = TypeVar("T")


class Shard(Protocol):
    """A file of filters that does not lie in a folder: part of a release, each row group of one model."""

    def open(self, **options: Any) -> pq.ParquetFile:
        """Open it.

        Args:
            **options: Those of :class:`pyarrow.parquet.ParquetFile`.
        """

    def wanted(self, metadata: pq.FileMetaData, group: int) -> bool:
        """Whether a row group is of a model that was asked for."""


#: A Parquet file of filters.
FilterFile = Path | Shard


class FilterFiles(Protocol):
    """What has files of filters: a folder, or a release."""

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> Sequence[FilterFile]:
        """The Parquet files of a kernel size; of some models only, as far as files are of models."""


def open_parquet(file: FilterFile, **options: Any) -> pq.ParquetFile:
    """Open a file of filters; see :class:`pyarrow.parquet.ParquetFile` for the options."""
    if isinstance(file, Path):
        return pq.ParquetFile(file, memory_map=True, pre_buffer=False, **options)
    return file.open(**options)


def threads() -> int:
    """Number of worker threads: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Run:
    """Filters of one layer that follow one another in a row group.

    A layer that spans several row groups comes as several runs.

    Attributes:
        model_id: Key of the model.
        layer: Order of the layer in its model.
        columns: One float32 array per kernel weight, each of length n, without copies.
        path: The file that they are in.
        row: Row of the first of them in that file.
    """

    model_id: str
    layer: int
    columns: list[npt.NDArray[np.float32]]
    path: FilterFile
    row: int

    @property
    def filters(self) -> int:
        """Number of filters in the run."""
        return len(self.columns[0])


def _runs(path: FilterFile, metadata: pq.FileMetaData, group: int, first: int, columns: Sequence[str]) -> list[Run]:
    names = ["model_id", "layer", *columns]
    try:
        # The key is the same in every row, and is not spelt out for each.
        file = open_parquet(path, metadata=metadata, read_dictionary=["model_id"])
        table = file.read_row_group(group, columns=names, use_threads=False)
    except _failures(path) as error:
        raise _damaged(path, f"row group {group} cannot be read ({_first_line(error)})") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise _damaged(path, f"no column {missing[0]}; expected {', '.join(names)}")
    table = table.combine_chunks()
    layers = table["layer"].to_numpy()
    bounds = [0, *(np.flatnonzero(layers[1:] != layers[:-1]) + 1).tolist(), len(layers)] if len(layers) else []
    weights = [table[column].to_numpy() for column in columns]
    # A file belongs to one model, so its first row tells the model of all.
    model_id = table["model_id"][0].as_py() if len(layers) else ""
    return [
        Run(model_id, int(layers[start]), [column[start:stop] for column in weights], path, first + start)
        for start, stop in pairwise(bounds)
    ]


def _failures(path: FilterFile) -> tuple[type[Exception], ...]:
    """What reading a file may raise; file systems that are elsewhere have errors of their own."""
    return (OSError, pa.ArrowException) if isinstance(path, Path) else (Exception,)


def _damaged(path: FilterFile, what: str) -> CnnFilterDbError:
    if not isinstance(path, Path):
        return RemoteError(f"{path}: {what}; check the network and try again")
    return CorruptError(f"{path}: {what}; run `cnnfilterdb verify`, remove the model and bring it again")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def scan(
    files: Iterable[FilterFile],
    kernel: str,
    work: Callable[[list[Run]], T],
    *,
    progress: Callable[[int], None] | None = None,
) -> Iterator[T]:
    """Apply a function to the runs of every row group, in threads, and yield its results in order.

    Args:
        files: Parquet files of filters.
        kernel: Their kernel size.
        work: Called with the runs of one row group, in a worker thread; it should release the interpreter lock, as
            the compiled functions of :mod:`cnnfilterdb.stats` do.
        progress: Called with the number of filters done since the last call.

    Raises:
        CorruptError: A file is not readable, or not one of filters of that size.
    """
    columns = weight_columns(kernel)

    def task(place: tuple[FilterFile, pq.FileMetaData, int, int]) -> tuple[T, int]:
        path, metadata, group, first = place
        runs = _runs(path, metadata, group, first, columns)
        return work(runs), sum(run.filters for run in runs)

    def row_groups() -> Iterator[tuple[FilterFile, pq.FileMetaData, int, int]]:
        for path in files:
            try:
                metadata, first = open_parquet(path).metadata, 0
            except _failures(path) as error:
                raise _damaged(path, f"cannot be read ({_first_line(error)})") from error
            for group in range(metadata.num_row_groups):
                if isinstance(path, Path) or path.wanted(metadata, group):
                    yield path, metadata, group, first
                first += metadata.row_group(group).num_rows

    workers = threads()
    with closing(ahead(task, row_groups(), threads=workers, window=2 * workers)) as done:
        for _, future in done:
            result, filters = future.result()
            del future  # and with it the result
            if progress:
                progress(filters)
            yield result
