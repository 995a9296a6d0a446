"""Writes the files of one model, layer by layer, in memory bounded by its largest tensor."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import GrowingFile, sha256, sync, sync_folder, writing
from cnnfilterdb.core.errors import BadWeightsError
from cnnfilterdb.core.schema import HISTOGRAMS, LAYERS, MODELS, filter_schema, kernel_name, weight_columns
from cnnfilterdb.core.version import package_version
from cnnfilterdb.stats.arguments import are_finite
from cnnfilterdb.store.commits import Commit
from cnnfilterdb.store.seals import write_sealed

__all__ = [
    "HISTOGRAM_ENCODING",
    "ROW_GROUP_BYTES",
    "ROW_GROUP_ROWS",
    "Writer",
    "filter_settings",
    "histogram_settings",
]

# Chosen by benchmarks/encoding.py; the table is in benchmarks/README.md. The mantissas of trained weights hardly
# compress: zstd makes the files 3 % smaller than LZ4 does and takes 1.5 to 2.5 times as long to scan. Splitting the
# bytes lets either codec compress the exponents of all weights and the empty mantissas of
# those that came in half precision. Row groups are the unit of parallel scans and of pruning by layer.
_COMPRESSION = "lz4"
ROW_GROUP_ROWS = 128 * 1024
#: Row groups of large kernels have fewer rows, so that the buffers of a writer and of a scan stay small.
ROW_GROUP_BYTES = 16 * 1024 * 1024

#: Weights that are transposed at a time.
_CACHED = 1 << 14

_KEYS = ["model_id", "layer", "out_channel", "in_channel"]


def filter_settings(kernel: str) -> dict[str, Any]:
    """Options of :class:`pyarrow.parquet.ParquetWriter` for the filters of a kernel size."""
    return {
        "compression": _COMPRESSION,
        "use_dictionary": _KEYS,
        "column_encoding": dict.fromkeys(weight_columns(kernel), "BYTE_STREAM_SPLIT"),
        "sorting_columns": [pq.SortingColumn(number) for number in range(len(_KEYS))],
    }


def row_group_rows(kernel: str) -> int:
    """Rows of a full row group.

    >>> row_group_rows("3x3"), row_group_rows("32x32")
    (131072, 4096)
    """
    return min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // (4 * len(weight_columns(kernel))))


#: How the histograms table is encoded. Neighbouring counts are small numbers: encoded as differences they take
#: 15 to 30 % less space, and half the time to read.
HISTOGRAM_ENCODING: dict[str, Any] = {
    "use_dictionary": ["basis_id", "model_id", "recipe"],
    "column_encoding": {"counts.list.element": "DELTA_BINARY_PACKED"},
}


def histogram_settings(table: pa.Table) -> dict[str, Any]:
    """Options of :func:`pyarrow.parquet.write_table` for rows of the histograms table, which are sorted by recipe.

    A query uses one recipe; with a row group for each, DuckDB skips the others.
    """
    import pyarrow.compute as pc

    recipes = pc.count_distinct(table["recipe"]).as_py() or 1
    return HISTOGRAM_ENCODING | {"row_group_size": max(1, -(-table.num_rows // recipes))}


class _Filters:
    """The Parquet file of one kernel size, to which layers are appended.

    Args:
        path: The file.
        kernel: The kernel size.
        model_id: The model of all its filters.
        aside: Hashes the file while it is written.
    """

    def __init__(self, path: Path, kernel: str, model_id: str, aside: ThreadPoolExecutor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._limit = row_group_rows(kernel)
        # Handed over as one entry of a dictionary, the model takes no time to write; as a string in every row, which is
        # how it is read, a fifth of it. So the schema to read with is not that of what is written.
        self._model_ids = pa.DictionaryArray.from_arrays(np.zeros(self._limit, np.int8), [model_id])
        read_as = filter_schema(kernel)
        number = read_as.get_field_index("model_id")
        self._schema = read_as.set(number, read_as.field(number).with_type(self._model_ids.type))
        # A row group is collected here; what of it is never filled takes no memory.
        self._pending = 0
        self._keys = np.empty((3, self._limit), np.int32)
        self._weights = np.empty((len(weight_columns(kernel)), self._limit), np.float32)
        self._writer = pq.ParquetWriter(path, self._schema, store_schema=False, **filter_settings(kernel))
        self._writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(read_as.serialize()).decode()})
        self._written = GrowingFile(path, aside)

    def append(self, layer: int, weight: npt.NDArray[np.float32]) -> None:
        """Append the filters of a weight (out, in / groups, kh, kw)."""
        in_channels = np.int32(weight.shape[1])
        kernels = weight.reshape(-1, weight.shape[2] * weight.shape[3])
        start = 0
        while start < len(kernels):
            stop = min(len(kernels), start + self._limit - self._pending)
            layers, out_channel, in_channel = self._keys[:, self._pending : self._pending + stop - start]
            number = np.arange(start, stop, dtype=np.int32)
            layers[:] = layer
            np.floor_divide(number, in_channels, out=out_channel)
            np.subtract(number, out_channel * in_channels, out=in_channel)
            self._transpose(kernels[start:stop])
            self._pending += stop - start
            start = stop
            if self._pending == self._limit:
                self._flush()
        self.rows += len(kernels)

    def _transpose(self, kernels: npt.NDArray[np.float32]) -> None:
        """Kernels (n, k) as columns, after those that are pending."""
        columns = self._weights[:, self._pending : self._pending + len(kernels)]
        # In parts that stay in the cache: twice as fast as in one.
        rows = max(1, _CACHED // kernels.shape[1])
        for start in range(0, len(kernels), rows):
            columns[:, start : start + rows] = kernels[start : start + rows].T

    def _flush(self) -> None:
        filled = [pa.array(column[: self._pending]) for column in (*self._keys, *self._weights)]
        columns = [self._model_ids.slice(0, self._pending), *filled]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema), row_group_size=self._limit)
        self._pending = 0
        self._written.grown()

    def close(self) -> str:
        """Write what is pending and the footer, wait until all is on the disk, and return the SHA-256 of the file."""
        if self._pending:
            self._flush()
        self._writer.close()
        self._written.grown()
        sync(self.path)
        digest = self._written.sha256()
        self._written.close()
        return digest

    def abandon(self) -> None:
        """Close the file, whatever is in it."""
        # On a full disk the footer cannot be written either; the file is discarded anyway.
        with contextlib.suppress(OSError):
            self._writer.close()
        self._written.close()


class Writer:
    """Writes one model: its layers in order, its histograms, and last the models row that makes it visible.

    Made by :meth:`cnnfilterdb.store.folder.Store.writer`.

    Args:
        model_id: Key of the model.
        folder: Staging folder, inside the database.
        root: Folder of the database.
        publish: Moves the staged files into place.

    Attributes:
        hashes: SHA-256 of the weight of each stored layer so far.
    """

    def __init__(self, model_id: str, folder: Path, root: Path, publish: Callable[[], None]) -> None:
        self.model_id = model_id
        self.committed = False
        self._source, _, self._name = model_id.partition("/")
        self._slug = paths.slug(model_id)
        self._folder = folder
        self._root = root
        self._publish = publish
        self.hashes: dict[int, str] = {}
        self._layers: list[dict[str, Any]] = []
        self._filters: dict[str, _Filters] = {}
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._index: dict[str, pa.Table] = {}

    def add_layer(self, row: Mapping[str, Any], weight: npt.NDArray[np.float32] | None) -> None:
        """Append a layer; its filters are written to the disk immediately.

        Args:
            row: Columns of the layers table. ``model_id`` and ``layer`` (counted from 0) are filled in, and so are,
                when a weight is given, ``kernel``, ``kernel_h``, ``kernel_w``, ``out_channels``, ``stored``,
                ``filters`` and ``tensor_sha256``.
            weight: (out channels, in channels / groups, kernel height, kernel width), float32; None when the layer is
                counted only.

        Raises:
            ValueError: A column that the layers table does not have, or one that contradicts the weight.
            BadWeightsError: A weight is NaN or infinite.
            DatabaseError: The disk is full.
        """
        number = len(self._layers)
        facts: dict[str, Any] = {"model_id": self.model_id, "layer": number}
        if weight is None:
            facts["stored"] = False
        else:
            facts |= self._measured(row, weight)
        for column, value in facts.items():
            if row.get(column) not in (None, value):
                raise ValueError(f"{self.model_id}, layer {number}: {column} is {row[column]!r}, not {value!r}")
        self._layers.append(_complete(LAYERS, {**row, **facts}))
        if weight is None:
            return
        self.hashes[number] = facts.get("tensor_sha256") or str(row["tensor_sha256"])
        kernel = facts["kernel"]
        with writing(self._root):
            if kernel not in self._filters:
                path = self._folder / paths.filters_path(kernel, self._source, self._slug)
                self._filters[kernel] = _Filters(path, kernel, self.model_id, self._aside)
            self._filters[kernel].append(number, weight)

    def _measured(self, row: Mapping[str, Any], weight: npt.NDArray[np.float32]) -> dict[str, Any]:
        if weight.ndim != 4 or weight.dtype != np.float32:
            raise ValueError(
                f"{self.model_id}: expected a float32 weight of four axes, got {weight.dtype} {weight.shape}"
            )
        if not are_finite(weight):
            raise BadWeightsError(f"{self.model_id}: layer {row.get('layer_name')} contains NaN or infinite weights")
        out_channels, in_channels, height, width = weight.shape
        measured = {
            "kernel": kernel_name(height, width),
            "kernel_h": height,
            "kernel_w": width,
            # None means unknown; the weight then has all its kernels in the second axis
            "out_channels": out_channels if row.get("out_channels", out_channels) is not None else None,
            "stored": True,
            "filters": out_channels * in_channels,
        }
        if row.get("tensor_sha256") is None:
            measured["tensor_sha256"] = hashlib.sha256(np.ascontiguousarray(weight, "<f4").data).hexdigest()
        return measured

    def add_index(self, basis_id: str, table: pa.Table) -> None:
        """Add the histograms of this model in one basis; they are committed together with it.

        Args:
            basis_id: Key of the basis.
            table: Rows of the histograms table.
        """
        self._index[basis_id] = table.select(HISTOGRAMS.names).cast(HISTOGRAMS)

    def commit(self, row: Mapping[str, Any]) -> None:
        """Make the complete model visible.

        Args:
            row: Columns of the models table. ``model_id``, ``conv_layers``, ``stored_filters``, ``files``,
                ``cnnfilterdb_version`` and ``ingested_at`` are filled in, and so are ``source`` and ``name`` if absent.

        Raises:
            ValueError: A column that the models table does not have, or a source or name that is not that of the key.
            DatabaseError: The disk is full; nothing of the model is visible then.
        """
        facts: dict[str, Any] = {"model_id": self.model_id, "source": self._source, "name": self._name}
        for column, value in facts.items():
            if row.get(column) not in (None, value):
                raise ValueError(f"{self.model_id}: {column} is {row[column]!r}, not {value!r}")
        with writing(self._root):
            files = [self._close(filters) for _, filters in sorted(self._filters.items())]
            path = paths.layers_path(self._slug)
            write_sealed(_table(LAYERS, self._layers), self._folder / path)
            files.append(self._described(path, len(self._layers), sha256(self._folder / path)))
            moves = [path for kernel in self._filters for path in self._empty(kernel)]
            moves += [file["path"] for file in files]
            for basis_id, table in self._index.items():
                moves.append(paths.histograms_path(basis_id, self._slug))
                write_sealed(table, self._folder / moves[-1], **histogram_settings(table))
            facts |= {
                "conv_layers": len(self._layers),
                "stored_filters": sum(filters.rows for filters in self._filters.values()),
                "files": files,
                "cnnfilterdb_version": package_version(),
                "ingested_at": datetime.now(UTC),
            }
            table = _table(MODELS, [_complete(MODELS, {**row, **facts})])
            self._decide(table, [*moves, paths.models_path(self._slug)])
            self._publish()
        self.committed = True

    def _close(self, filters: _Filters) -> dict[str, Any]:
        digest = filters.close()
        return self._described(filters.path.relative_to(self._folder).as_posix(), filters.rows, digest)

    def _described(self, path: str, rows: int, digest: str) -> dict[str, Any]:
        return {"path": path, "rows": rows, "bytes": (self._folder / path).stat().st_size, "sha256": digest}

    def _empty(self, kernel: str) -> list[str]:
        """Stage the file without rows of a kernel size that is new to the database."""
        path = paths.empty_filters_path(kernel)
        if (self._root / path).exists():
            return []
        write_sealed(filter_schema(kernel).empty_table(), self._folder / path)
        return [path]

    def _decide(self, table: pa.Table, moves: list[str]) -> None:
        """Stage the models row and the commit record, which decides."""
        write_sealed(table, self._folder / moves[-1])
        for folder in {(self._folder / path).parent for path in moves if (self._folder / path).parent.exists()}:
            sync_folder(folder)
        Commit(self.model_id, tuple(moves)).decide(self._folder)

    def close(self) -> None:
        """Close all files; a model that was not committed is not written."""
        if not self.committed:
            for filters in self._filters.values():
                filters.abandon()
        self._aside.shutdown()


def _complete(schema: pa.Schema, row: dict[str, Any]) -> dict[str, Any]:
    """A row that has all that its table requires, and nothing else."""
    unknown = sorted(set(row) - set(schema.names))
    if unknown:
        raise ValueError(f"no such column: {', '.join(unknown)}; known: {', '.join(schema.names)}")
    missing = [field.name for field in schema if not field.nullable and row.get(field.name) is None]
    if missing:
        raise ValueError(f"required: {', '.join(missing)}")
    return row


def _table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    # Column by column: making an array of one value takes as long as making one of a hundred.
    columns = [pa.array([_cell(row.get(field.name), field.type) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _cell(value: Any, kind: pa.DataType) -> Any:
    # Arrow accepts a map only as pairs.
    return list(value.items()) if isinstance(value, Mapping) and pa.types.is_map(kind) else value
