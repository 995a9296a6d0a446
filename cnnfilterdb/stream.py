"""Streams the filters of chosen layers with their keys, in the order of models and layers, in bounded memory.

Rows lie in that order within a file, and a file or a row group is of one model: nothing has to be sorted, and what was
not asked for is passed over by the statistics of row groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb import layout
from cnnfilterdb.runners import ahead
from cnnfilterdb.scan import FilterFile, FilterFiles, damaged, failures, first_line, open_parquet, threads
from cnnfilterdb.schema import filter_schema

__all__ = ["filters_of"]


def filters_of(storage: FilterFiles, kernel: str, layers: Mapping[str, Collection[int]]) -> Iterator[pa.Table]:
    """The filters of layers of one kernel size, sorted by ``model_id`` and ``layer``.

    Args:
        storage: Whose they are.
        kernel: Their kernel size.
        layers: The layers of each model.

    Yields:
        Rows of the filters table, those of a row group at a time; no table is empty.

    Raises:
        CorruptError: A file cannot be read, or is not one of filters of that size.
        RemoteError: One that lies elsewhere cannot be reached.
    """
    names = filter_schema(kernel).names

    def read(place: tuple[FilterFile, pq.FileMetaData, int, Collection[int]]) -> pa.Table:
        path, metadata, group, wanted = place
        try:
            table = open_parquet(path, metadata=metadata).read_row_group(group, columns=names, use_threads=False)
        except failures(path) as error:
            raise damaged(path, f"row group {group} cannot be read ({first_line(error)})") from error
        if table.column_names != names:
            raise damaged(path, f"its columns are not {', '.join(names)}")
        if set(pc.unique(table["layer"]).to_pylist()) <= set(wanted):
            return table
        return table.filter(pc.is_in(table["layer"], pa.array(wanted, pa.int32())))

    def row_groups() -> Iterator[tuple[FilterFile, pq.FileMetaData, int, Collection[int]]]:
        for path, model_id in _in_order(storage.filter_files(kernel, sorted(layers)), layers):
            try:
                metadata = open_parquet(path).metadata
            except failures(path) as error:
                raise damaged(path, f"cannot be read ({first_line(error)})") from error
            for group in range(metadata.num_row_groups):
                chosen = layers.get(model_id or str(_bounds(metadata, group, 0)[0]), ())
                low, high = _bounds(metadata, group, 1)
                if any(low is None or low <= layer <= high for layer in chosen):
                    yield path, metadata, group, chosen

    workers = threads()
    with closing(ahead(read, row_groups(), threads=workers, window=2 * workers)) as tables:
        for _, future in tables:
            table = future.result()
            del future  # and with it the table, when it has been used
            if table.num_rows:
                yield table


def _in_order(
    files: Sequence[FilterFile], layers: Mapping[str, Collection[int]]
) -> Iterator[tuple[FilterFile, str | None]]:
    """Files by the key of their model, with it; those of a release are in order, and tell it by row group."""
    model_of = {layout.slug(model_id): model_id for model_id in layers}
    own = {path: model_of[path.stem] for path in files if isinstance(path, Path)}
    yield from ((path, own[path]) for path in sorted(own, key=own.__getitem__))
    yield from ((path, None) for path in files if not isinstance(path, Path))


def _bounds(metadata: pq.FileMetaData, group: int, column: int) -> tuple[object, object]:
    """Smallest and largest value of a column of a row group; None where its statistics do not tell."""
    statistics = metadata.row_group(group).column(column).statistics
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else (None, None)
