"""Writes a selection of filters to one file, for tools that do not use this package.

=========== ==================================================================================================
format      content of the file
=========== ==================================================================================================
``parquet`` one row per filter: its keys, its weights ``w0``, ``w1``, ... and the facts that are used for grouping
``arrow``   the same rows as an Arrow IPC file (Feather version 2)
``csv``     the same rows as text, compressed when the name ends in ``.gz``
``npz``     NumPy arrays: the filters, their keys, and the facts of their layers
``h5``      the layout of the papers' released data set, CNN Filter DB 1.0.0
=========== ==================================================================================================

Filters are read a few row groups at a time and written immediately, so memory does not grow with their number.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from gzip import GzipFile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cnnfilterdb.core.durable import replacing
from cnnfilterdb.core.errors import CorruptError, DatabaseError, MissingExtraError, SelectionError
from cnnfilterdb.core.reports import Exported, Progress
from cnnfilterdb.core.schema import LAYERS, MODELS, filter_schema, kernel_shape, weight_columns
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.core.version import package_version
from cnnfilterdb.exchange.papers_hdf5 import frame_image, released_frame
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.store.writer import filter_settings, row_group_rows

if TYPE_CHECKING:
    from cnnfilterdb.questions.tables import Tables

__all__ = ["FACTS", "FORMATS", "export"]

#: Formats of a file, and the file name extensions that select them.
FORMATS = {
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "csv": (".csv", ".csv.gz"),
    "npz": (".npz",),
    "h5": (".h5", ".hdf5"),
}

_KEYS = ("model_id", "layer", "out_channel", "in_channel")

#: The columns beside the keys and the weights of each filter: facts about its model and its layer, by the names that
#: ``where`` and ``by`` use.
FACTS = (
    "domain", "task", "architecture", "family", "training_dataset", "pretraining_dataset", "license", "layer_name",
    "kind", "in_channels", "out_channels", "groups", "conv_depth", "conv_depth_norm", "dead", "bn_folded",
)  # fmt: skip


def export(
    db: Tables,
    target: Path,
    *,
    to: str | None = None,
    where: str | None = None,
    kernel: str = "3x3",
    progress: Progress | None = None,
) -> Exported:
    """Write the selected filters to one file, sorted by model, layer and channel.

    The file appears complete or not at all; an existing one is replaced. Facts are the current ones of the database,
    including annotations; unknown facts are null.

    ``parquet`` and ``arrow`` hold the keys (``model_id``, ``layer``, ``out_channel``, ``in_channel``), the weights as
    float32 columns ``w0``, ``w1``, ..., row-major, and the columns :data:`FACTS`, text of them dictionary-encoded.
    ``csv`` has the same columns with a header; null is an empty field, and weights have enough digits to restore the
    same float32. Text that a spreadsheet would run as a formula, because it begins with ``=``, ``+``, ``-`` or ``@``,
    gets an apostrophe in front.

    ``npz`` is read by ``numpy.load(path, allow_pickle=False)``. For n filters and L layers it contains ``filters``
    (n, kh, kw) float32; ``model``, ``layer``, ``out_channel``, ``in_channel`` and ``layer_row`` (n,) int32;
    ``model_ids``, the names of the numbers in ``model``; and an array (L,) ``layers_<name>`` for ``model_id``,
    ``layer``, ``first`` (the first filter of the layer), ``filters`` (their number) and each of :data:`FACTS`, so
    that ``data["layers_domain"][data["layer_row"]]`` has the domain of each filter. Unknown text is empty, an
    unknown whole number or truth value -1, and an unknown fraction NaN.

    ``h5`` is for 3x3 kernels and needs the extra ``hdf5``. ``/filters`` (n, 3, 3) is uncompressed float64, ``/meta`` is
    a frame for ``pandas.read_hdf(path, "meta")``, one row per layer: index ``model_id``, ``conv_depth`` and
    ``conv_depth_norm``; ``filter_ids``, the rows of ``/filters`` as ``first:last``, both included; and the columns of
    the released data set as far as they are known: for models imported from it its values, with later corrections; for
    others NaN where the value would be a guess, such as ``op_set`` or counts of operators. ``source``,
    ``architecture``, ``family``, ``license``, ``layer_name``, ``in_channels`` (per group) and ``out_channels`` are
    included too. Transposed layers and layers that are known to be dead are left out, because the papers' extraction
    skips both. pandas pickles the text of the frame; NumPy 1.26 and later can read it.

    Args:
        db: The database.
        target: The file.
        to: One of :data:`FORMATS`; None selects it by the file name extension.
        where: Condition over the columns of models and layers; None takes all.
        kernel: Kernel size.
        progress: Called with the current step, the number of filters done and the total.

    Raises:
        SelectionError: An unknown format, a condition that cannot be answered, a kernel size without filters, or
            nothing selected.
        DatabaseError: The file cannot be written, or the filters cannot be read.
        RemoteError: A release cannot be reached.
        CorruptError: The filters do not match the layers table.
        MissingExtraError: ``h5`` without PyTables.
    """
    kind = _format(target, to)
    if kind == "h5":
        if kernel != "3x3":
            raise SelectionError(
                f"{target}: h5 is the layout of the released data, which have 3x3 kernels, not {kernel}; "
                f"export it to {', '.join(name for name in FORMATS if name != 'h5')}"
            )
        if find_spec("tables") is None:
            raise MissingExtraError(f"{target}: h5 needs PyTables; install it: pip install 'cnnfilterdb[hdf5]'")
    filters = _Selection.select(db, where, kernel, papers=kind == "h5")
    with replacing(target) as part:
        _WRITERS[kind](part, filters, progress or (lambda what, done, total: None), target)
    return Exported(target, kind, filters.count, len(filters.model_ids), target.stat().st_size)


def _format(target: Path, to: str | None) -> str:
    if to is None:
        name = target.name.lower()
        to = next((kind for kind, endings in FORMATS.items() if name.endswith(endings)), None)
        if to is None:
            endings = ", ".join(ending for endings in FORMATS.values() for ending in endings)
            raise SelectionError(
                f"{target}: its extension does not select a format; use one of {endings}, or give the format: "
                f"{', '.join(FORMATS)}"
            )
    if to not in FORMATS:
        raise SelectionError(f"format: {to!r} is not one of {', '.join(FORMATS)}")
    return to


# ----------------------------------------------------------------------------------------------------------- selection


class _Selection:
    """The filters to export.

    Args:
        db: The database that contains them.
        kernel: Their kernel size.
        layers: ``model_id``, ``layer``, ``filters`` and :data:`FACTS` of their layers, sorted; each has filters.
    """

    def __init__(self, db: Tables, kernel: str, layers: pa.Table) -> None:
        self.db = db
        self.kernel = kernel
        self.layers = layers.combine_chunks()
        self.numbers: npt.NDArray[np.int32] = layers["layer"].to_numpy()
        self.counts: npt.NDArray[np.int64] = layers["filters"].to_numpy()
        self.count = int(self.counts.sum())
        encoded = layers["model_id"].combine_chunks().dictionary_encode()
        self.model_ids: list[str] = encoded.dictionary.to_pylist()
        self.models: npt.NDArray[np.int32] = encoded.indices.to_numpy()
        self._stops = np.cumsum(self.counts)
        # In a layer without output channels the kernels are numbered by ``in_channel``.
        self._per_output = self.counts // layers["out_channels"].fill_null(1).to_numpy()
        parts = np.split(self.numbers, np.flatnonzero(np.diff(self.models)) + 1)
        self._chosen = {model_id: part.tolist() for model_id, part in zip(self.model_ids, parts, strict=True)}

    @classmethod
    def select(cls, db: Tables, where: str | None, kernel: str, *, papers: bool) -> _Selection:
        """The filters of a kernel size that a condition selects; ``papers`` leaves out what their extraction does."""
        kernel_shape(kernel)
        conditions = [f"stored AND filters > 0 AND kernel = {literal(kernel)}"]
        conditions += ["papers_layer"] if papers else []
        conditions += [f"({where})"] if where else []
        columns = ", ".join(("model_id", "layer", "filters", *FACTS))
        condition = " AND ".join(conditions)
        layers = _ask(db, f"SELECT {columns} FROM facts WHERE {condition} ORDER BY model_id, layer")
        if layers.num_rows:
            return cls(db, kernel, layers)
        db._check_stored(kernel)
        left_out = " in layers that are neither transposed nor dead" if papers else ""
        raise SelectionError(
            f"no {kernel} filters{f' where {where}' if where else ''}{left_out} in {db.location}; "
            "`cnnfilterdb layers` lists the layers"
        )

    def spans(self) -> Iterator[range]:
        """Positions of the filters of each batch, counted over all filters."""
        step = row_group_rows(self.kernel)
        return (range(start, min(start + step, self.count)) for start in range(0, self.count, step))

    def rows(self, span: range) -> npt.NDArray[np.int32]:
        """The row in the layers of each filter of a span."""
        return self._stops.searchsorted(np.arange(span.start, span.stop), "right").astype(np.int32)

    def channels(self, span: range) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Output and input channel of each filter of a span."""
        rows = self.rows(span)
        within = np.arange(span.start, span.stop) - (self._stops - self.counts)[rows]
        out_channel, in_channel = np.divmod(within, self._per_output[rows])
        return out_channel.astype(np.int32), in_channel.astype(np.int32)

    def batches(self, progress: Progress) -> Iterator[tuple[range, pa.Table]]:
        """The filters with their keys, in order, one row group at a time."""
        known = pa.array(self.model_ids)
        done = 0
        progress("exporting", done, self.count)
        for table in _resized(self._stored(), row_group_rows(self.kernel)):
            span = range(done, min(done + table.num_rows, self.count))
            rows = self.rows(span)
            models = pc.index_in(table["model_id"], value_set=known).fill_null(-1).to_numpy()
            found = (models, *(table[key].to_numpy() for key in _KEYS[1:]))
            expected = (self.models[rows], self.numbers[rows], *self.channels(span))
            same = [one[: len(span)] == other for one, other in zip(found, expected, strict=True)]
            differs = np.append(~np.logical_and.reduce(same), table.num_rows > len(span))
            if differs.any():
                place = int(differs.argmax())
                raise self._unlike(done + place, models[place])
            yield span, table
            done = span.stop
            progress("exporting", done, self.count)
        if done < self.count:
            raise self._unlike(done)

    def _stored(self) -> Iterator[pa.Table]:
        try:
            yield from filters_of(self.db.storage, self.kernel, self._chosen)
        except CorruptError as error:
            among = " to ".join(dict.fromkeys((self.model_ids[0], self.model_ids[-1])))
            raise CorruptError(f"{self.kernel} filters of {among}: {error}") from error

    def _unlike(self, place: int, found: int = -1) -> CorruptError:
        """The error for filters that differ from a position on; ``found`` is the number of the model there, if any."""
        due = int(self.models[np.searchsorted(self._stops[:-1], place, "right")])  # after all of them, the last
        # Surplus filters of a model are located where the next one is expected.
        number = due if found < 0 else min(due, found)
        model_id = self.model_ids[number]
        stored = filters_of(self.db.storage, self.kernel, {model_id: self._chosen[model_id]})
        return CorruptError(
            f"{self.db.location}: {self.kernel} filters of {model_id} do not match the layers table, "
            f"{self.counts[self.models == number].sum():,} were expected and "
            f"{sum(table.num_rows for table in stored):,} found; "
            "export again if models were written meanwhile, otherwise run `cnnfilterdb verify`"
        )


def _resized(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of equal size, with the rest in the last; the tables may differ in nullability."""
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        while count >= rows:
            joined = pa.concat_tables(pending, promote_options="default")
            yield joined.slice(0, rows).combine_chunks()
            pending, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(pending, promote_options="default").combine_chunks()


def _ask(db: Tables, query: str) -> pa.Table:
    try:
        return db._table(query)
    except OSError as error:  # which would be attributed to the file that is written
        raise DatabaseError(f"{db.location}: cannot be read: {' '.join(str(error).split())}") from error


def _text_encoded(table: pa.Table) -> pa.Table:
    """The same columns, text dictionary-encoded."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(number, field.name, table[field.name].dictionary_encode())
    return table


# --------------------------------------------------------------------------------------------------------------- tables


def _schema(filters: _Selection, *, encoded: bool) -> pa.Schema:
    """Schema of the rows: keys, weights, facts; each column with its description."""
    described = {field.name: field for field in (*LAYERS, *MODELS, *filter_schema(filters.kernel))}
    names = (*_KEYS, *weight_columns(filters.kernel), *FACTS)
    fields = [described[name].with_nullable(name in FACTS) for name in names]
    if encoded:
        text = pa.dictionary(pa.int32(), pa.string())
        fields = [field.with_type(text) if pa.types.is_string(field.type) else field for field in fields]
    metadata = {"cnnfilterdb": package_version(), "kernel": filters.kernel}
    return pa.schema(fields, metadata=metadata)


def _joined_rows(
    filters: _Selection, progress: Progress, schema: pa.Schema, layers: Callable[[slice], pa.Table]
) -> Iterator[pa.Table]:
    """The rows, one row group at a time.

    Args:
        filters: What is exported.
        progress: Receives progress.
        schema: The result schema, from :func:`_schema`.
        layers: Returns a slice of the layers, encoded as in the schema.
    """
    for span, table in filters.batches(progress):
        rows = filters.rows(span)
        own = layers(slice(rows[0], rows[-1] + 1)).take(pa.array(rows - rows[0]))
        columns = [(own if name in own.column_names else table)[name] for name in schema.names]
        yield pa.table(columns, schema=schema)


def _write_parquet(part: Path, filters: _Selection, progress: Progress, target: Path) -> None:
    schema = _schema(filters, encoded=True)
    settings = filter_settings(filters.kernel) | {"use_dictionary": [*_KEYS, *FACTS]}
    with pq.ParquetWriter(part, schema, **settings) as writer:
        # Each row group stores its whole dictionary, so it gets one with only its layers.
        for table in _joined_rows(filters, progress, schema, lambda rows: _text_encoded(filters.layers[rows])):
            writer.write_table(table)


def _write_arrow(part: Path, filters: _Selection, progress: Progress, target: Path) -> None:
    schema = _schema(filters, encoded=True)
    # The compression of Feather files; it leaves buffers that it cannot shrink, such as weights, uncompressed
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    layers = _text_encoded(filters.layers)
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        # One dictionary for all batches: the format does not allow a second one.
        for table in _joined_rows(filters, progress, schema, layers.__getitem__):
            writer.write_table(table)


def _write_csv(part: Path, filters: _Selection, progress: Progress, target: Path) -> None:
    schema = _schema(filters, encoded=False)
    with part.open("wb") as plain, _compressed(plain, target) as file, pacsv.CSVWriter(file, schema) as writer:
        for table in _joined_rows(filters, progress, schema, filters.layers.__getitem__):
            writer.write_table(_without_formulas(table))


def _without_formulas(table: pa.Table) -> pa.Table:
    """The same rows, with an apostrophe in front of text that a spreadsheet would run as a formula."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table[field.name]
            risky = pc.match_substring_regex(column, r"^[=+\-@\t\r\n]").fill_null(False)
            if pc.any(risky).as_py():
                table = table.set_column(
                    number, field, pc.if_else(risky, pc.binary_join_element_wise("'", column, ""), column)
                )
    return table


def _compressed(file: IO[bytes], target: Path) -> AbstractContextManager[Any]:
    if target.suffix.lower() != ".gz":
        return nullcontext(file)
    # For digits of weights the highest level, gzip's default, takes three times as long to save 2 %.
    return GzipFile("", "wb", 5, file, mtime=0)


# --------------------------------------------------------------------------------------------------------------- arrays


def _kernels_of(filters: _Selection, table: pa.Table) -> npt.NDArray[np.float32]:
    """Kernels (n, kh, kw) of a table of filters."""
    columns = [table[column].to_numpy() for column in weight_columns(filters.kernel)]
    return np.stack(columns, axis=1).reshape(-1, *kernel_shape(filters.kernel))


def _write_npz(part: Path, filters: _Selection, progress: Progress, target: Path) -> None:
    arrays = {f"layers_{name}": _array_of(filters.layers[name]) for name in ("model_id", "layer", "filters", *FACTS)}
    arrays["layers_first"] = np.cumsum(filters.counts) - filters.counts
    arrays["model_ids"] = np.array(filters.model_ids)
    # Each array is a separate file in the archive, and only one can be written at a time; what does not need the
    # filters is computed again for each.
    keys: dict[str, Callable[[range], npt.NDArray[np.int32]]] = {
        "layer_row": filters.rows,
        "model": lambda span: filters.models[filters.rows(span)],
        "layer": lambda span: filters.numbers[filters.rows(span)],
        "out_channel": lambda span: filters.channels(span)[0],
        "in_channel": lambda span: filters.channels(span)[1],
    }
    shape = (filters.count, *kernel_shape(filters.kernel))
    with zipfile.ZipFile(part, "w") as archive:
        blocks = (_kernels_of(filters, table) for _, table in filters.batches(progress))
        _write_npy(archive, "filters", "<f4", shape, blocks)
        for name, of in keys.items():
            _write_npy(archive, name, "<i4", shape[:1], map(of, filters.spans()))
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npy(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterable[npt.NDArray[Any]]
) -> None:
    """Write an array whose rows arrive in blocks."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)


def _array_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as an array that needs no pickle: unknown text is empty, whole numbers and truth values -1."""
    if pa.types.is_string(column.type):
        return np.array([text or "" for text in column.to_pylist()])
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type):
        column = column.fill_null(-1)
    return np.asarray(column.to_numpy())


# ------------------------------------------------------------------------------------------------- the released layout


def _write_h5(part: Path, filters: _Selection, progress: Progress, target: Path) -> None:
    image = frame_image(released_frame(filters.layers, partial(_ask, filters.db)), part)
    try:
        with h5py.File(io.BytesIO(image), "r") as table, h5py.File(part, "w") as file:
            array = file.create_dataset("filters", (filters.count, 3, 3), np.float64)
            for span, kernels in filters.batches(progress):
                array[span.start : span.stop] = _kernels_of(filters, kernels)
            file.copy(table["meta"], "meta")
            file.flush()
    except (OSError, RuntimeError) as error:  # the HDF5 library reports errors of the file system without their number
        found = re.search(r"errno = (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


_WRITERS: dict[str, Callable[[Path, _Selection, Progress, Path], None]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "csv": _write_csv,
    "npz": _write_npz,
    "h5": _write_h5,
}
