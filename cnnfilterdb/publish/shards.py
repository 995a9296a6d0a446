"""The Parquet files of a release: few and large, sorted by model, split by content.

Releases of nearly the same database have nearly the same bytes, so that only new content has to be sent. Three measures
ensure this. A row group contains filters of one model, so an added model leaves the bytes of all others unchanged, and
a store that deduplicates chunks finds them within a changed file. Where a file ends is decided by the keys of the
models, which leaves most other files unchanged. And the pages of tables whose row groups span many models are split by
content (content-defined chunking of Parquet).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import replacing, sha256, writing
from cnnfilterdb.core.errors import PublishError
from cnnfilterdb.core.reports import Progress, first_line
from cnnfilterdb.core.schema import release_schema, weight_columns
from cnnfilterdb.release.manifest import ReleaseFile
from cnnfilterdb.release.release import ReleaseShard
from cnnfilterdb.store.fingerprints import FINGERPRINT_ENCODING
from cnnfilterdb.store.writer import HISTOGRAM_ENCODING, filter_settings

__all__ = [
    "KEPT",
    "SIZES",
    "Absent",
    "BuiltShard",
    "ModelRows",
    "TableWriter",
    "WholeShard",
    "plain",
    "plan",
    "write_filter_shards",
    "write_shards",
]

#: Smallest and largest size of a file of filters before compression, in bytes.
SIZES = (128 << 20, 512 << 20)

#: Bytes from which a file is not kept until the release is sent, but built again then. The Hub takes files of less than
#: 10 MB with the commit, where they must still be there.
KEPT = 32 << 20

# Rows per row group. Rows of layers contain moments and rows of histograms contain counts, so both are wide.
_ROWS = {"models": 4096, "layers": 4096, "histograms": 1024, "bases": 64, "fingerprints": 4096}

_ENCODINGS = {"histograms": HISTOGRAM_ENCODING, "fingerprints": FINGERPRINT_ENCODING}


def _settings(table: str) -> dict[str, Any]:
    """Options of :class:`pyarrow.parquet.ParquetWriter`, for readers on the other side of a network."""
    settings: dict[str, Any] = {
        "compression": "zstd",
        # The chunker of pyarrow carries state from one row group to the next, which would make them depend on each
        # other.
        "use_content_defined_chunking": not table.startswith("filters_"),
        "write_page_index": True,
        "write_page_checksum": True,
    }
    if table.startswith("filters_"):
        return filter_settings(table.removeprefix("filters_")) | settings
    return _ENCODINGS.get(table, {}) | settings


def plan(models: Sequence[tuple[str, int]], least: int, most: int) -> list[int]:
    """The last model of each file, by its place in the list.

    Among the models at which a file would have at least ``least`` and at most ``most`` bytes, the one whose key has the
    smallest hash is chosen. Adding or removing a model shifts the windows of the choice, but rarely the choice.

    Args:
        models: Key and bytes of each model, in order.
        least: Smallest size of a file in bytes, except for the last one.
        most: Largest size, except for a single larger model.

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
            # If there is none, the model that exceeds the limit gets its own file, or ends this one.
            over = next(i for i, size in enumerate(sizes) if size > most)
            end = start + (min(allowed, key=lambda i: _rank(models[start + i][0])) if allowed else max(over - 1, 0))
        ends.append(end)
        rest -= sizes[end - start]
        start = end + 1
    return ends


def _rank(model_id: str) -> bytes:
    return hashlib.sha256(model_id.encode()).digest()


class _RowGroups:
    """A file of a table, written row group by row group.

    Args:
        path: Its path.
        table: Name of the table.

    Attributes:
        rows: Number of rows so far.
    """

    def __init__(self, path: Path, table: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._schema = release_schema(table)
        self._writer = pq.ParquetWriter(path, self._schema, **_settings(table))

    def add(self, rows: pa.Table) -> None:
        """Append rows as one row group."""
        self._writer.write_table(rows.cast(self._schema), row_group_size=max(1, rows.num_rows))
        self.rows += rows.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class TableWriter:
    """Writes the files of one table.

    Args:
        folder: Folder of the release.
        table: Name of the table.
        most: Size in bytes at which a file always ends.
        absent: Takes files that are not needed in the folder.
    """

    def __init__(self, folder: Path, table: str, most: int = SIZES[1], absent: Absent | None = None) -> None:
        self._absent = absent
        self._folder = folder
        self._table = table
        self._most = most
        self._files: list[ReleaseFile] = []
        self._writer: _RowGroups | None = None
        self._groups: list[tuple[ModelRows, int]] = []

    def add(self, rows: pa.Table) -> None:
        """Append rows as one row group."""
        if self._writer is None:
            self._writer = _RowGroups(self._path, self._table)
        self._writer.add(rows)
        if self._path.stat().st_size >= self._most:
            self.end_file()

    def add_model(self, model: ModelRows) -> None:
        """Append the filters of a model, in their row groups."""
        for number, rows in enumerate(model.read(range(model.groups))):
            self._groups.append((model, number))
            self.add(rows)

    def end_file(self) -> None:
        """End the file, if one is open; rows that follow go into another."""
        if self._writer is None:
            return
        self._writer.close()
        path, groups = self._path, self._groups
        file = ReleaseFile(
            path=path.relative_to(self._folder).as_posix(),
            table=self._table,
            rows=self._writer.rows,
            bytes=path.stat().st_size,
            sha256=sha256(path),
            first_model=groups[0][0].model_id if groups else None,
            last_model=groups[-1][0].model_id if groups else None,
        )
        if self._absent is not None and groups and self._absent.takes_built(BuiltShard(file, groups)):
            path.unlink()
        self._files.append(file)
        self._writer, self._groups = None, []

    def copy(self, shard: WholeShard) -> None:
        """Add a whole file of another release."""
        self.end_file()
        path = self._path
        name = path.relative_to(self._folder).as_posix()
        if self._absent is None or not self._absent.takes_whole(name, shard):
            path.parent.mkdir(parents=True, exist_ok=True)
            shard.copy(path)
        self._files.append(replace(shard.file, path=name, first_model=shard.first, last_model=shard.last))

    def close(self) -> list[ReleaseFile]:
        """Finish the last file; a table without rows has one too, for its columns.

        Returns:
            The files.
        """
        if self._writer is None and not self._files:
            self.add(release_schema(self._table).empty_table())
        self.end_file()
        return self._files

    @property
    def _path(self) -> Path:
        return self._folder / paths.shard_path(self._table, len(self._files))


def write_shards(folder: Path, table: str, parts: Iterable[pa.Table]) -> list[ReleaseFile]:
    """Write a table other than filters; its rows keep their order.

    Args:
        folder: Folder of the release.
        table: ``models``, ``layers``, ``histograms``, ``bases`` or ``fingerprints``.
        parts: Its rows, with the columns of the table in a database folder.
    """
    schema, step = release_schema(table), _ROWS[table]
    pending: list[pa.Table] = []
    with writing(folder):
        writer = TableWriter(folder, table)
        for part in parts:
            pending.append(pa.table([plain(part[name]) for name in schema.names], schema.names))
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


def plain(column: pa.ChunkedArray) -> pa.Array:
    """A column with lists of key and value in place of maps."""
    array = column.combine_chunks()
    if not pa.types.is_map(array.type):
        return array
    entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    return pa.ListArray.from_arrays(array.offsets, entries, mask=array.is_null())


@dataclass(frozen=True)
class ModelRows:
    """The filters of one kernel size of a model.

    Attributes:
        model_id: Its key.
        rows: Their number.
        groups: Number of their row groups.
        read: Yields row groups, by their numbers.
        local: Whether they can be read twice at no cost: not through a network.
    """

    model_id: str
    rows: int
    groups: int
    read: Callable[[Sequence[int]], Iterator[pa.Table]]
    local: bool = True

    @property
    def first(self) -> str:
        """The key of the model."""
        return self.model_id


@dataclass(frozen=True)
class WholeShard:
    """A file of filters of another release, which is copied as it is.

    Attributes:
        first: Key of its first model.
        last: Key of its last model.
        file: Its description there.
        copy: Writes it to a path, and compares it with its hash.
        there: Where it is.
    """

    first: str
    last: str
    file: ReleaseFile
    copy: Callable[[Path], None]
    there: ReleaseShard


@dataclass(frozen=True)
class BuiltShard:
    """A file of filters that was built and not kept.

    Attributes:
        file: Its description.
        groups: Its row groups: each a model, and the number of the row group in that.
    """

    file: ReleaseFile
    groups: Sequence[tuple[ModelRows, int]]

    def copy(self, path: Path) -> None:
        """Build it again.

        Args:
            path: Where to write it.

        Raises:
            PublishError: Its models are not what they were.
        """
        with replacing(path) as part:
            writer = _RowGroups(part, self.file.table)
            for rows in self._rows():
                writer.add(rows)
            writer.close()
            if sha256(part) != self.file.sha256:
                raise self._changed(f"SHA-256 is no longer {self.file.sha256}")

    def _rows(self) -> Iterator[pa.Table]:
        for model_id, groups in groupby(self.groups, key=lambda group: group[0].model_id):
            found = list(groups)
            try:
                yield from found[0][0].read([number for _, number in found])
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._changed(f"{model_id} cannot be read ({first_line(error)})") from error

    def _changed(self, what: str) -> PublishError:
        return PublishError(
            f"{self.file.path}: {what}: a model was changed while the release was published; publish it again"
        )


class Absent:
    """The files of filters of a release that are not in its folder, so that it takes little space.

    Those of other releases that the target copies itself do not pass through this machine. Those that were built are
    built again, one after the other, when they are sent.

    Args:
        takes: Whether the target can copy a file of another release.

    Attributes:
        shards: These files, by their paths in the release.
    """

    def __init__(self, takes: Callable[[WholeShard], bool]) -> None:
        self._takes = takes
        self.shards: dict[str, WholeShard | BuiltShard] = {}

    def takes_whole(self, path: str, shard: WholeShard) -> bool:
        """Whether the target copies a file to this path, which is then remembered."""
        if not self._takes(shard):
            return False
        self.shards[path] = shard
        return True

    def takes_built(self, shard: BuiltShard) -> bool:
        """Whether a file can be built again, which is then remembered: it is large, and all of it is at hand."""
        if shard.file.bytes < KEPT or not all(model.local for model, _ in shard.groups):
            return False
        self.shards[shard.file.path] = shard
        return True


def write_filter_shards(
    folder: Path,
    kernel: str,
    filters: Sequence[ModelRows | WholeShard],
    *,
    sizes: tuple[int, int] = SIZES,
    absent: Absent | None = None,
    progress: Progress | None = None,
) -> list[ReleaseFile]:
    """Write the filters of one kernel size, one row group in memory at a time.

    Args:
        folder: Folder of the release.
        kernel: Kernel size.
        filters: Those of each model, in the order of models.
        sizes: Smallest and largest size of a file before compression, in bytes.
        absent: Takes files that are not needed in the folder.
        progress: Called with the kernel size, the number of models or whole files done and the total.
    """
    row, done = 4 * len(weight_columns(kernel)), 0
    with writing(folder):
        writer = TableWriter(folder, f"filters_{kernel}", sizes[1], absent)
        for whole, group in groupby(filters, key=lambda one: isinstance(one, WholeShard)):
            found = list(group)
            ends = plan(
                [] if whole else [(one.first, row * one.rows) for one in found if isinstance(one, ModelRows)], *sizes
            )
            for number, one in enumerate(found):
                if isinstance(one, WholeShard):
                    writer.copy(one)
                else:
                    writer.add_model(one)
                    if number in ends:
                        writer.end_file()
                done += 1
                if progress:
                    progress(f"filters of {kernel}", done, len(filters))
        return writer.close()
