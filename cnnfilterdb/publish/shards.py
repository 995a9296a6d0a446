"""The Parquet files of a release: few and large, sorted by model, cut where their content says.

Two releases of nearly the same database have nearly the same bytes, so that only what is new need be sent. Three things
see to it. A row group holds filters of one model, so that an added model leaves the bytes of all others as they were,
and a store that looks for known chunks finds them within a changed file. A file ends behind a model whose key says so,
which leaves most other files as they were. And the pages of tables whose row groups are of many models are cut by their
content (content-defined chunking of Parquet).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.release.manifest import ReleaseFile, shard_path
from cnnfilterdb.reports import Progress
from cnnfilterdb.schema import release_schema, weight_columns
from cnnfilterdb.store.durable import sha256, writing
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.writer import HISTOGRAM_ENCODING, filter_settings

__all__ = ["SIZES", "TableWriter", "plan", "write_filter_shards", "write_shards"]

#: Bytes of a file of filters before compression: at least, and at most.
SIZES = (128 << 20, 512 << 20)

# Rows of the other tables are wide: those of layers hold their moments, those of histograms their counts.
_ROWS = {"models": 4096, "layers": 4096, "histograms": 1024, "bases": 64}


def _settings(table: str) -> dict[str, Any]:
    """Options of :class:`pyarrow.parquet.ParquetWriter`, for readers on the other side of a network."""
    settings: dict[str, Any] = {
        "compression": "zstd",
        # The chunker of pyarrow remembers a row group in the next one: it would undo that they do not depend on each
        # other.
        "use_content_defined_chunking": not table.startswith("filters_"),
        "write_page_index": True,
        "write_page_checksum": True,
    }
    if table.startswith("filters_"):
        return filter_settings(table.removeprefix("filters_")) | settings
    return (HISTOGRAM_ENCODING if table == "histograms" else {}) | settings


def plan(models: Sequence[tuple[str, int]], least: int, most: int) -> list[int]:
    """Where files end: behind which models, by their place in the list.

    Of the models behind which a file may end, because it has at least ``least`` and at most ``most`` bytes then, it is
    the one whose key has the smallest hash. A model more or less moves the windows in which the choice is made, but
    mostly not the choice.

    Args:
        models: Key and bytes of each model, in order.
        least: Bytes that a file has at least, but for the last one.
        most: Bytes that it has at most, but for a single larger model.

    >>> plan([("custom/a", 5), ("custom/b", 5), ("custom/c", 5)], 5, 10)
    [0, 2]
    """
    ends = []
    start, rest = 0, sum(size for _, size in models)
    while start < len(models):
        sizes = list(accumulate(size for _, size in models[start:]))
        if rest <= most:
            end = len(models) - 1
        else:
            allowed = [i for i, size in enumerate(sizes) if least <= size <= most]
            # With none, the model that leads over the limit has a file for itself, or ends this one.
            over = next(i for i, size in enumerate(sizes) if size > most)
            end = start + (min(allowed, key=lambda i: _rank(models[start + i][0])) if allowed else max(over - 1, 0))
        ends.append(end)
        rest -= sizes[end - start]
        start = end + 1
    return ends


def _rank(model_id: str) -> bytes:
    return hashlib.sha256(model_id.encode()).digest()


class TableWriter:
    """Writes the files of one table.

    Args:
        folder: Folder of the release.
        table: Name of the table.
        most: Bytes at which a file ends in any case.
    """

    def __init__(self, folder: Path, table: str, most: int = SIZES[1]) -> None:
        self._folder = folder
        self._table = table
        self._schema = release_schema(table)
        self._most = most
        self._files: list[ReleaseFile] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0
        self._models: list[str] = []

    def add(self, rows: pa.Table, model_id: str | None = None) -> None:
        """Append rows as one row group.

        Args:
            rows: The rows.
            model_id: The model that they are of; None where they are of several.
        """
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, self._schema, **_settings(self._table))
        self._writer.write_table(rows.cast(self._schema), row_group_size=max(1, rows.num_rows))
        self._rows += rows.num_rows
        if model_id is not None:
            self._models.append(model_id)
        if self._path.stat().st_size >= self._most:
            self.end_file()

    def end_file(self) -> None:
        """End the file, if one is begun; what follows goes into another."""
        if self._writer is None:
            return
        self._writer.close()
        path = self._path
        self._files.append(
            ReleaseFile(
                path=path.relative_to(self._folder).as_posix(),
                table=self._table,
                rows=self._rows,
                bytes=path.stat().st_size,
                sha256=sha256(path),
                first_model=self._models[0] if self._models else None,
                last_model=self._models[-1] if self._models else None,
            )
        )
        self._writer, self._rows, self._models = None, 0, []

    def close(self) -> list[ReleaseFile]:
        """Finish the last file; a table without rows has one all the same, which tells its columns.

        Returns:
            The files.
        """
        if self._writer is None and not self._files:
            self.add(self._schema.empty_table())
        self.end_file()
        return self._files

    @property
    def _path(self) -> Path:
        return self._folder / shard_path(self._table, len(self._files))


def write_shards(folder: Path, table: str, parts: Iterable[pa.Table]) -> list[ReleaseFile]:
    """Write a table that is not of filters; its rows are taken in the order in which they come.

    Args:
        folder: Folder of the release.
        table: ``models``, ``layers``, ``histograms`` or ``bases``.
        parts: Its rows, with the columns of the table in a database folder.
    """
    schema, step = release_schema(table), _ROWS[table]
    pending: list[pa.Table] = []
    with writing(folder):
        writer = TableWriter(folder, table)
        for part in parts:
            pending.append(pa.table([_plain(part[name]) for name in schema.names], schema.names))
            if sum(rows.num_rows for rows in pending) >= step:
                rows = pa.concat_tables(pending)
                whole = rows.num_rows - rows.num_rows % step
                for start in range(0, whole, step):
                    writer.add(rows.slice(start, step))
                pending = [rows.slice(whole)]
        rest = [rows for rows in pending if rows.num_rows]
        if rest:
            writer.add(pa.concat_tables(rest))
        return writer.close()


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """A column with lists of key and value in the place of maps."""
    array = column.combine_chunks()
    if not pa.types.is_map(array.type):
        return array
    entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    return pa.ListArray.from_arrays(array.offsets, entries, mask=array.is_null())


def write_filter_shards(
    folder: Path,
    store: Store,
    kernel: str,
    model_ids: Sequence[str],
    *,
    sizes: tuple[int, int] = SIZES,
    progress: Progress | None = None,
) -> list[ReleaseFile]:
    """Write the filters of one kernel size, a row group in memory at a time.

    Args:
        folder: Folder of the release.
        store: The database.
        kernel: Kernel size.
        model_ids: The models.
        sizes: Bytes of a file before compression: at least, and at most.
        progress: Called with the kernel size, the number of models done and of all.
    """
    paths = {path.stem: path for path in store.filter_files(kernel, model_ids)}
    chosen = [(model_id, path) for model_id in sorted(model_ids) if (path := paths.get(store.slug(model_id)))]
    row = 4 * len(weight_columns(kernel))
    ends = plan([(model_id, row * pq.read_metadata(path).num_rows) for model_id, path in chosen], *sizes)
    with writing(folder):
        writer = TableWriter(folder, f"filters_{kernel}", sizes[1])
        for done, (model_id, path) in enumerate(chosen, 1):
            for rows in _row_groups(path):
                writer.add(rows, model_id)
            if done - 1 in ends:
                writer.end_file()
            if progress:
                progress(f"filters of {kernel}", done, len(chosen))
        return writer.close()


def _row_groups(path: Path) -> Iterator[pa.Table]:
    # Not mapped: of a database that is larger than the memory all pages would be counted as in use.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group)
