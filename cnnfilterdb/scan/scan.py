"""Scans over the stored filters: Parquet row groups in threads, columns without copies.

Everything that must read each filter again (a new basis, other bins, another range) uses :func:`scan`.
Memory is bounded by the row groups in flight, regardless of the size of the database.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError, RemoteError
from cnnfilterdb.core.footers import RowGroup, row_groups
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.core.schema import filter_schema, weight_columns

__all__ = [
    "FilterFile",
    "FilterFiles",
    "Run",
    "Shard",
    "damaged",
    "failures",
    "filter_groups",
    "filters_metadata",
    "grouped_layers",
    "joined",
    "may_hold",
    "only_model",
    "open_parquet",
    "scan",
]

K = TypeVar("K")
T = TypeVar("T")


class Shard(Protocol):
    """A file of filters that is not in a database folder: part of a release, each row group of one model."""

    @property
    def origin(self) -> str:
        """What it is a part of: the shards of one origin come in the order of their models."""

    def open(self, **options: Any) -> pq.ParquetFile:
        """Open it.

        Args:
            **options: Those of :class:`pyarrow.parquet.ParquetFile`.
        """

    def wanted(self, group: RowGroup) -> bool:
        """Whether a row group is of a requested model."""


#: A Parquet file of filters.
FilterFile = Path | Shard


class FilterFiles(Protocol):
    """A storage with files of filters: a folder, or a release.

    Attributes:
        resources: What reading them may use.
    """

    resources: Resources

    def filter_files(self, kernel: str, model_ids: Iterable[str] | None = None) -> Sequence[FilterFile]:
        """The Parquet files of a kernel size; of some models only, where each file is of one model."""


def open_parquet(file: FilterFile, **options: Any) -> pq.ParquetFile:
    """Open a file of filters; see :class:`pyarrow.parquet.ParquetFile` for the options."""
    if isinstance(file, Path):
        # Not through a memory map: each page of it would be a fault, which takes longer than copying it.
        return pq.ParquetFile(file, pre_buffer=False, **options)
    return file.open(**options)


def filters_metadata(file: FilterFile, kernel: str) -> pq.FileMetaData:
    """The footer of a file of filters.

    Raises:
        CorruptError: It cannot be read, or its columns are not those of filters of that kernel size.
        RemoteError: A remote file cannot be reached.
    """
    try:
        opened = open_parquet(file)
        same = opened.schema_arrow.equals(filter_schema(kernel))
    except failures(file) as error:
        raise damaged(file, f"cannot be read ({first_line(error)})") from error
    if not same:
        raise damaged(file, f"its columns are not those of {kernel} filters")
    return opened.metadata


def filter_groups(file: FilterFile, metadata: pq.FileMetaData) -> list[RowGroup]:
    """The row groups of a file of filters.

    Args:
        file: The file.
        metadata: Its footer, as :func:`filters_metadata` returns it.

    Raises:
        CorruptError: One does not have all columns.
        RemoteError: The same of a remote file.
    """
    try:
        return row_groups(metadata)
    except pa.ArrowInvalid as error:
        raise damaged(file, f"cannot be read ({first_line(error)})") from error


#: How the column of models is read: as one entry of a dictionary, it takes little time.
_BY_DICTIONARY: Mapping[str, Any] = {"read_dictionary": ["model_id"]}

#: Columns of filters by their place; :func:`filters_metadata` has compared all of them.
_MODEL_ID, _LAYER = 0, 1


@dataclass(frozen=True, slots=True)
class Run:
    """Filters of one layer that follow one another in a row group.

    A layer that spans several row groups comes as several runs.

    Attributes:
        model_id: Key of the model.
        layer: Order of the layer in its model.
        path: The file that contains them.
        number: The number of that file among those that are scanned.
        row: Row of the first of them in that file.
        within: Their rows in the row group.
        group: The weights of the row group, one float32 array per kernel weight.
    """

    model_id: str
    layer: int
    path: FilterFile
    number: int
    row: int
    within: slice
    group: list[npt.NDArray[np.float32]]

    @property
    def columns(self) -> list[npt.NDArray[np.float32]]:
        """One float32 array per kernel weight, each of length n, without copies."""
        return [column[self.within] for column in self.group]

    @property
    def filters(self) -> int:
        """Number of filters in the run."""
        return int(self.within.stop - self.within.start)


def joined(runs: Iterable[Run], key: Callable[[Run], K]) -> Iterator[tuple[K, Run]]:
    """The runs of a row group, neighbours with the same key merged, so that computing takes fewer calls.

    Args:
        runs: All runs of a row group, as :func:`scan` yields them.
        key: What neighbours must have in common.

    Yields:
        A key, and a run with the model and layer of the first of its neighbours.
    """
    for found, group in groupby(runs, key):
        neighbours = list(group)
        rows = slice(neighbours[0].within.start, neighbours[-1].within.stop)
        yield found, replace(neighbours[0], within=rows)


def only_model(group: RowGroup) -> str | None:
    """The model of all rows of a row group of filters, by its statistics; None if these do not show that."""
    chunk = group.chunks[_MODEL_ID]
    if chunk.lowest is None or chunk.lowest != chunk.highest:
        return None
    return chunk.lowest.decode(errors="replace")


def may_hold(group: RowGroup, layers: Collection[int]) -> bool:
    """Whether some of these layers may be in a row group of filters, by its smallest and largest layer."""
    chunk = group.chunks[_LAYER]
    if chunk.lowest is None or chunk.highest is None:
        return True
    low, high = (int.from_bytes(value, "little", signed=True) for value in (chunk.lowest, chunk.highest))
    return any(low <= layer <= high for layer in layers)


def _matters(file: FilterFile, group: RowGroup, layers: Mapping[str, Collection[int]] | None) -> bool:
    """Whether a row group is of a requested model, and some of these layers of the models may be in it."""
    if not isinstance(file, Path) and not file.wanted(group):
        return False
    model_id = None if layers is None else only_model(group)
    return layers is None or model_id is None or may_hold(group, layers.get(model_id, ()))


def grouped_layers(keys: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    """The layers of each model, as :func:`scan` takes them.

    >>> grouped_layers([("a", 0), ("b", 2), ("a", 1)])
    {'a': {0, 1}, 'b': {2}}
    """
    found: dict[str, set[int]] = {}
    for model_id, layer in keys:
        found.setdefault(model_id, set()).add(layer)
    return found


@contextmanager
def _reading_ahead(path: FilterFile, rows: int, *, here: bool) -> Iterator[Callable[[int, int], None]]:
    """A function that lets the system read some rows from the disk while earlier ones are computed.

    Workers would wait for the disk where they could compute. All rows take about the same space, so those before and
    after them need not be known.

    Args:
        path: The file.
        rows: Number of its rows.
        here: Whether the workers are in this process.
    """
    with ExitStack() as stack:
        file, size = None, 0
        if here and isinstance(path, Path) and hasattr(os, "posix_fadvise"):
            # What cannot be opened or read ahead is an error of the worker that needs it.
            with suppress(OSError):
                file = stack.enter_context(path.open("rb", buffering=0)).fileno()
                size = os.fstat(file).st_size

        def announce(first: int, count: int) -> None:
            if file is None or not rows:
                return
            start, stop = size * first // rows, size * (first + count) // rows
            with suppress(OSError, OverflowError):
                if not _in_memory(file, stop - 1):
                    os.posix_fadvise(file, start, stop - start, os.POSIX_FADV_WILLNEED)

        yield announce


def _in_memory(file: int, place: int) -> bool:
    """Whether a byte of an open file can be read without waiting for the disk, if the system can say that."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group that is scanned.

    Attributes:
        path: Its file.
        file: Number of the file among those that are scanned.
        group: Its number in the file.
        first: The row with which it begins.
        rows: Number of its rows.
        model_id: The model that all of it is of; None if that is not known before it is read.
        metadata: The footer of the file; None if it is to be read again.
    """

    path: FilterFile
    file: int
    group: int
    first: int
    rows: int
    model_id: str | None
    metadata: pq.FileMetaData | None


def _first_model(path: FilterFile, metadata: pq.FileMetaData) -> str | None:
    """The model of the first row group of a file, which in a folder is that of all of them."""
    try:
        file = open_parquet(path, metadata=metadata, **_BY_DICTIONARY)
        rows = next(file.iter_batches(1, row_groups=[0], columns=["model_id"], use_threads=False), None)
        return None if rows is None else rows["model_id"][0].as_py()
    except failures(path) as error:
        raise damaged(path, f"row group 0 cannot be read ({first_line(error)})") from error


def _runs(place: _RowGroup, columns: Sequence[str]) -> list[Run]:
    # A file of a folder belongs to one model, and so does a row group of a release.
    model_id, path = place.model_id, place.path
    names = ["layer", *columns] if model_id is not None else ["model_id", "layer", *columns]
    options: dict[str, Any] = {} if model_id is not None else dict(_BY_DICTIONARY)
    if place.metadata is not None:
        options["metadata"] = place.metadata
    try:
        file = open_parquet(path, **options)
        table = file.read_row_group(place.group, columns=names, use_threads=False)
    except failures(path) as error:
        raise damaged(path, f"row group {place.group} cannot be read ({first_line(error)})") from error
    there = table.column_names
    if missing := [name for name in names if name not in there]:
        raise damaged(path, f"no column {missing[0]}; expected {', '.join(names)}")
    table = table.combine_chunks()
    layers = table["layer"].to_numpy()
    bounds = [0, *(np.flatnonzero(layers[1:] != layers[:-1]) + 1).tolist(), len(layers)] if len(layers) else []
    weights = [table[column].to_numpy() for column in columns]
    if model_id is None:
        model_id = table["model_id"][0].as_py() if len(layers) else ""
    return [
        Run(model_id, int(layers[start]), path, place.file, place.first + start, slice(start, stop), weights)
        for start, stop in pairwise(bounds)
    ]


def failures(path: FilterFile) -> tuple[type[Exception], ...]:
    """What reading a file may raise; remote file systems have their own errors.

    Names of columns that are not text, and columns that are no longer there, have those of Python.
    """
    return (OSError, ValueError, KeyError, pa.ArrowException) if isinstance(path, Path) else (Exception,)


def damaged(path: FilterFile, what: str) -> CnnFilterDbError:
    """The error for a file that cannot be read: damaged if local, perhaps only unreachable if remote."""
    if not isinstance(path, Path):
        return RemoteError(f"{path}: {what}; check the network and try again")
    return CorruptError(f"{path}: {what}; run `cnnfilterdb verify`, remove the model and import it again")


def scan(
    files: Iterable[FilterFile],
    kernel: str,
    work: Callable[[list[Run]], T],
    *,
    layers: Mapping[str, Collection[int]] | None = None,
    resources: Resources | None = None,
    window: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[T, None, None]:
    """Apply a function to the runs of every row group, where the runner says, and yield its results in order.

    Args:
        files: Parquet files of filters.
        kernel: Their kernel size.
        work: Called with the runs of one row group, in a worker; it should release the interpreter lock, as the
            compiled functions of :mod:`cnnfilterdb.stats` do. For a runner beyond this process it can be pickled. If it
            has a method ``of(model_ids)``, that returns the same for some models only, so that little is sent. Its
            FloatingPointError means that weights are damaged.
        layers: The layers of each model that matter; row groups in which none of them can be are not read. The runs of
            the others come whole. None reads all.
        resources: What the scan may use; by default threads, one for each processor.
        window: How many row groups (for a runner beyond this process, units of many) may be in flight, those included
            whose results have not been consumed; by default two for each worker. More keep the workers busy while a
            result takes its consumer some time.
        progress: Called with the number of filters read since the last call.

    Raises:
        CorruptError: A file is not readable, or not one of filters of that size.
    """
    resources = resources or Resources.of()
    runner = resources.runner
    columns = weight_columns(kernel)

    def row_groups() -> Iterator[_RowGroup]:
        for number, path in enumerate(files):
            metadata, first = filters_metadata(path, kernel), 0
            known = None if runner.remote else metadata
            # Of a file that is read here and whole, its model and the numbers of rows are all that is needed.
            plain = isinstance(path, Path) and layers is None and not runner.remote
            groups = [None] * metadata.num_row_groups if plain else filter_groups(path, metadata)
            own = _first_model(path, metadata) if plain and metadata.num_row_groups > 1 else None
            with _reading_ahead(path, metadata.num_rows, here=not runner.remote) as announce:
                for group, facts in enumerate(groups):
                    rows = metadata.row_group(group).num_rows
                    if facts is None or _matters(path, facts, layers):
                        announce(first, rows)
                        model_id = own if facts is None else only_model(facts)
                        yield _RowGroup(path, number, group, first, rows, model_id, known)
                    first += rows

    if runner.remote:
        places = list(row_groups())
        units = _units(places, work, columns, _remote_filters(places, runner.workers))
    else:
        units = _units(_delayed(row_groups(), _READ_AHEAD), work, columns, 1)

    def size(unit: _Unit[T]) -> int:
        return 4 * (len(columns) + 1) * sum(place.rows for place in unit.places)

    budget = None if runner.remote else resources.budget
    with closing(runner.run(_scanned, units, window=window, weight=size, budget=budget)) as done:
        for _, future in done:
            found = future.result()
            del future  # and with it the results
            for result, filters in found:
                if progress:
                    progress(filters)
                yield result


#: Filters of a unit that is sent to another process, at least and at most: enough that sending it is little beside
#: scanning them, and few enough that little is lost with a worker.
_REMOTE_FILTERS = (1 << 20, 1 << 23)

#: Units for each worker, as far as these limits allow it: with fewer, most workers would wait for the last ones.
_UNITS = 4

#: Row groups that the system reads from the disk before a worker needs them.
_READ_AHEAD = 16


def _remote_filters(places: Sequence[_RowGroup], workers: int) -> int:
    """Filters of a unit that is sent to another process."""
    least, most = _REMOTE_FILTERS
    return min(max(sum(place.rows for place in places) // (_UNITS * workers), least), most)


def _delayed(items: Iterable[K], count: int) -> Iterator[K]:
    """The items, each when so many more were taken from the iterable.

    >>> list(_delayed("abc", 2))
    ['a', 'b', 'c']
    """
    waiting: deque[K] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


@dataclass(frozen=True, slots=True)
class _Unit(Generic[T]):
    """Row groups that are scanned together, and what is done with their runs."""

    places: tuple[_RowGroup, ...]
    work: Callable[[list[Run]], T]
    columns: Sequence[str]


def _units(
    places: Iterable[_RowGroup], work: Callable[[list[Run]], T], columns: Sequence[str], least: int
) -> Iterator[_Unit[T]]:
    """Units of at least so many filters each, the last one excepted."""
    pending: list[_RowGroup] = []
    for place in places:
        pending.append(place)
        if sum(known.rows for known in pending) >= least:
            yield _unit(pending, work, columns, alone=least == 1)
            pending = []
    if pending:
        yield _unit(pending, work, columns, alone=least == 1)


def _unit(
    places: Sequence[_RowGroup], work: Callable[[list[Run]], T], columns: Sequence[str], *, alone: bool
) -> _Unit[T]:
    of = getattr(work, "of", None)
    models = {place.model_id for place in places}
    if not alone and of is not None and None not in models:
        work = of(models)
    return _Unit(tuple(places), work, columns)


def _scanned(unit: _Unit[T]) -> list[tuple[T, int]]:
    """The results of a unit, and the filters of each."""
    found = []
    for place in unit.places:
        runs = _runs(place, unit.columns)
        try:
            found.append((unit.work(runs), sum(run.filters for run in runs)))
        except FloatingPointError as error:
            raise damaged(place.path, f"row group {place.group}: {error}") from error
        del runs  # before the next ones are read
    return found
