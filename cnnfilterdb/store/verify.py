"""Verification: every count and every hash of a database, in bounded memory.

Where the hash of each file is kept is described in :mod:`cnnfilterdb.store.seals`. Besides the bytes, the contents are
compared with each other: weights with the hashes of their layers, moments with weights, histograms and fingerprints
with both.

Models are checked independently, several at a time, and each layer is read once: each thread needs memory for the
largest layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cnnfilterdb.analysis.bases import fitted_basis
from cnnfilterdb.analysis.fingerprints import wrong_fingerprints
from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.errors import CorruptError, DatabaseError, UnsafePathError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import Problem, Progress, first_line
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.core.schema import (
    BASES,
    FINGERPRINTS,
    HISTOGRAMS,
    LAYERS,
    MODELS,
    filter_schema,
    kernel_name,
    marker_sealed,
    weight_columns,
)
from cnnfilterdb.scan.ordered import PIECE, RowCursor
from cnnfilterdb.stats import Moments, scaled_norm_max
from cnnfilterdb.store.regular import check_size, read_small, require_regular
from cnnfilterdb.store.rows import WITHOUT_ROWS
from cnnfilterdb.store.seals import sealed, text_sealed

__all__ = ["BROKEN_SEAL", "FOREIGN", "TOLERANCE", "UNREAD", "verify_folder", "verify_models"]

#: Message for a file whose content is not what was written.
BROKEN_SEAL = "its checksum is missing or wrong; `cnnfilterdb verify --repair` rebuilds what can be rebuilt"

#: Message for a file beside those of models that the views read, too.
FOREIGN = "is no file of the database, but SQL reads it; move it elsewhere"
#: Message for one that they do not read.
UNREAD = "is no file of the database, and is not read; move it elsewhere"

#: How far stored moments may be from recomputed ones, as a share of their largest value. They are sums in double
#: precision, and a different order of addition changes only their last digits.
TOLERANCE = 1e-9

_THREADS = 4


def verify_models(
    root: Path,
    slugs: Sequence[str],
    files: Callable[[str], Iterable[str]],
    resources: Resources,
    progress: Progress | None = None,
) -> list[Problem]:
    """Check models.

    Args:
        root: Folder of the database.
        slugs: The models.
        files: Returns the files of a slug that are in place, relative to the folder.
        resources: What that may use.
        progress: Called with the key of a model, the number of models done and of all.
    """
    problems: list[Problem] = []
    runner = resources.runner
    units = ((root, slug, tuple(files(slug))) for slug in slugs)
    # Each holds the largest layer of its model, so that few threads of one process check at a time.
    window = None if runner.remote else min(_THREADS, runner.workers)
    with closing(runner.run(_checked, units, window=window)) as checks:
        for done, (_, check) in enumerate(checks, 1):
            model_id, found = check.result()
            problems += found
            if progress:
                progress(model_id or slugs[done - 1], done, len(slugs))
    return problems


def _checked(unit: tuple[Path, str, tuple[str, ...]]) -> tuple[str | None, list[Problem]]:
    """The key of a model, if it could be read, and what is wrong with its files."""
    check = _Check(*unit).run()
    return check.model_id, check.problems


def verify_folder(root: Path) -> list[Problem]:
    """Check the files that belong to no single model: marker, ``init.sql``, bases and the files without rows."""
    problems = []
    for path in sorted({*root.glob(paths.bases_pattern()), *_empty_files(root)}):
        try:
            require_regular(root, path)
            message = BROKEN_SEAL if not sealed(path) else _wrong_basis(path)
        except UnsafePathError as error:
            message = str(error).removeprefix(f"{path}: ")
        except OSError as error:
            message = f"cannot be read: {error.strerror or error}"
        if message:
            problems.append(Problem(None, path, message))
    for there, read in ((paths.models_path, paths.models_pattern), (paths.layers_path, paths.layers_pattern)):
        for path in sorted(root.glob(there("*"))):
            if path.stem != paths.EMPTY and not paths.is_slug(path.stem):
                problems.append(Problem(None, path, FOREIGN if path.match(read()) else UNREAD))
    marker, init = root / paths.MARKER, root / paths.INIT
    try:
        if not marker_sealed(read_small(root, paths.MARKER).decode()):
            problems.append(Problem(None, marker, BROKEN_SEAL))
    except (OSError, ValueError, RecursionError, DatabaseError) as error:
        problems.append(Problem(None, marker, f"cannot be read: {first_line(error)}"))
    try:
        if os.path.lexists(init) and not text_sealed(read_small(root, paths.INIT)):
            problems.append(Problem(None, init, BROKEN_SEAL))
    except (OSError, DatabaseError) as error:
        problems.append(Problem(None, init, f"cannot be read: {first_line(error)}"))
    return problems


def _wrong_basis(path: Path) -> str | None:
    """What is wrong with the content of a basis."""
    if path.name != paths.BASIS or path.parent.name == paths.EMPTY:
        return None
    try:
        rows = _read(path, BASES).to_pylist()
        if len(rows) != 1:
            return f"{len(rows)} rows, expected 1"
        basis_id = fitted_basis(rows[0]).basis_id
    except (_Damaged, CorruptError) as error:
        return str(error)
    return None if basis_id == path.parent.name else f"contains the basis {basis_id}"


def _empty_files(root: Path) -> set[Path]:
    """The files without rows that exist, and those that every database has."""
    kernels = {path.parent.parent.name.partition("=")[2] for path in root.glob(paths.filters_pattern())}
    # Databases that were written before there were fingerprints lack theirs.
    late = {name for name in (paths.fingerprints_path(paths.EMPTY),) if not os.path.lexists(root / name)}
    names = WITHOUT_ROWS.keys() - late
    return {root / name for name in names | {paths.empty_filters_path(kernel) for kernel in {"3x3", *kernels}}}


class _Damaged(Exception):
    """A file that cannot be read to its end."""


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a small table, checking the checksums of its pages and its columns."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        check_size(file, path)
        table = file.read()
    except (OSError, ValueError, pa.ArrowException, CorruptError) as error:
        raise _Damaged(f"cannot be read: {first_line(error)}") from error
    if not table.schema.equals(schema):
        raise _Damaged("its columns are not those of the schema")
    return table


class _Check:
    """The check of one model."""

    def __init__(self, root: Path, slug: str, files: Iterable[str]) -> None:
        self.model_id: str | None = None
        self.problems: list[Problem] = []
        self._root = root
        self._slug = slug
        self._in_place = set(files)

    def run(self) -> _Check:
        """Check everything, and return itself."""
        for path in sorted(self._in_place):
            try:
                require_regular(self._root, self._root / path)
            except (UnsafePathError, FileNotFoundError) as error:
                self._problem(path, str(error).removeprefix(f"{self._root / path}: "))
                self._in_place.discard(path)
        if paths.models_path(self._slug) not in self._in_place:
            return self
        row = self._models_row()
        if row is not None:
            self._listed_files(row)
            layers = self._layers(row)
            if layers is not None:
                self._filters(row, layers)
                self._index(layers)
        return self

    def _problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.model_id, self._root / path, message))

    def _sealed(self, path: str) -> None:
        with contextlib.suppress(OSError):  # reported when the file is read
            if not sealed(self._root / path):
                self._problem(path, BROKEN_SEAL)

    def _models_row(self) -> dict[str, Any] | None:
        path = paths.models_path(self._slug)
        self._sealed(path)
        try:
            rows: list[dict[str, Any]] = _read(self._root / path, MODELS).to_pylist()
        except _Damaged as error:
            self._problem(path, str(error))
            return None
        if len(rows) != 1:
            self._problem(path, f"{len(rows)} rows, expected 1")
            return None
        row = rows[0]
        self.model_id = row["model_id"]
        if paths.slug(row["model_id"]) != self._slug:
            self._problem(
                path, f"contains {row['model_id']}, whose file is {paths.models_path(paths.slug(row['model_id']))}"
            )
            return None
        if row["model_id"] != f"{row['source']}/{row['name']}":
            self._problem(path, f"source {row['source']!r} and name {row['name']!r} are not those of {row['model_id']}")
        return row

    def _listed_files(self, row: dict[str, Any]) -> None:
        listed = {file["path"]: file for file in row["files"] or ()}
        expected = {
            path for path in self._in_place if path != paths.models_path(self._slug) and not paths.is_indexed(path)
        }
        for path in sorted(expected - listed.keys()):
            self._problem(path, "is not in the list of files of its model")
        for path, file in listed.items():
            if path not in expected:
                self._problem(path, "is missing")
                continue
            target = self._root / path
            try:
                size = target.stat().st_size
                if size != file["bytes"]:
                    self._problem(path, f"{size:,} bytes, expected {file['bytes']:,}")
                elif (found := sha256(target)) != file["sha256"]:
                    self._problem(path, f"SHA-256 {found}, expected {file['sha256']}")
            except OSError as error:
                self._problem(path, f"cannot be read: {error.strerror or error}")
                continue
            try:
                rows = pq.read_metadata(target).num_rows
            except (OSError, ValueError, pa.ArrowException):
                continue  # reported when it is read
            if rows != file["rows"]:
                self._problem(path, f"{rows:,} rows, expected {file['rows']:,}")

    def _layers(self, row: dict[str, Any]) -> pa.Table | None:
        import pyarrow.compute as pc

        path = paths.layers_path(self._slug)
        if path not in self._in_place:
            return None
        try:
            layers = _read(self._root / path, LAYERS)
        except _Damaged as error:
            self._problem(path, str(error))
            return None
        if layers.num_rows != row["conv_layers"]:
            self._problem(path, f"{layers.num_rows:,} layers, expected {row['conv_layers']:,}")
        filters = pc.sum(layers.filter(layers["stored"])["filters"]).as_py() or 0
        if filters != row["stored_filters"]:
            self._problem(path, f"{filters:,} stored filters, expected {row['stored_filters']:,}")
        if layers["layer"].to_pylist() != list(range(layers.num_rows)):
            self._problem(path, "the layers are not numbered from 0 in order")
        if set(layers["model_id"].to_pylist()) - {row["model_id"]}:
            self._problem(path, f"contains layers of a model other than {row['model_id']}")
        sizes = zip(layers["kernel_h"].to_pylist(), layers["kernel_w"].to_pylist(), strict=True)
        if layers["kernel"].to_pylist() != [kernel_name(height, width) for height, width in sizes]:
            self._problem(path, "kernel is not kernel_h x kernel_w everywhere")
        return layers

    def _filters(self, row: dict[str, Any], layers: pa.Table) -> None:
        import pyarrow.compute as pc

        stored = layers.filter(layers["stored"])
        for kernel in sorted(set(stored["kernel"].to_pylist())):
            path = paths.filters_path(kernel, row["source"], self._slug)
            if path not in self._in_place:
                self._problem(path, f"is missing, though the model has {kernel} layers")
                continue
            columns = [
                "layer",
                "layer_name",
                "out_channels",
                "filters",
                "tensor_sha256",
                "scaled_norm_max",
                "scaled_mean",
                "scaled_scatter",
            ]
            expected = stored.filter(pc.equal(stored["kernel"], kernel)).select(columns)
            try:
                self._filter_file(path, kernel, expected)
            except (_Damaged, CorruptError, OSError, ValueError, pa.ArrowException) as error:
                self._problem(path, f"cannot be read: {first_line(error)}")

    def _filter_file(self, path: str, kernel: str, layers: pa.Table) -> None:
        import pyarrow.compute as pc

        # Not buffered ahead: all of the file would be read before the first batch.
        with pq.ParquetFile(self._root / path, pre_buffer=False) as file:
            if not file.schema_arrow.equals(filter_schema(kernel)):
                raise _Damaged("its columns are not those of the schema")
            rows, expected = file.metadata.num_rows, pc.sum(layers["filters"]).as_py()
            if rows != expected:
                self._problem(path, f"{rows:,} filters, expected {expected:,} by the layers table")
                return
            rows_of = RowCursor(file.iter_batches(PIECE, use_threads=False), kernel)
            for batch in layers.to_batches(max_chunksize=1):
                (layer,) = batch.to_pylist()
                self._layer(path, layer, rows_of)

    def _layer(self, path: str, layer: dict[str, Any], rows_of: RowCursor) -> None:
        where = f"layer {layer['layer']} ({layer['layer_name']})"
        count, out_channels = layer["filters"], 1 if layer["out_channels"] is None else layer["out_channels"]
        in_channels = max(1, count // max(1, out_channels))
        models: set[str] = set()
        ordered, finite = count == out_channels * in_channels, True
        digest, moments, norm_max = hashlib.sha256(), None, 0.0
        for start, found, keys, weights in rows_of.pieces(count):
            models |= found
            out_channel, in_channel = np.divmod(np.arange(start, start + len(weights)), in_channels)
            ordered = ordered and bool(
                (keys[0] == layer["layer"]).all() and (keys[1] == out_channel).all() and (keys[2] == in_channel).all()
            )
            digest.update(weights.data)
            finite = finite and bool(np.isfinite(weights).all())
            if finite:
                kernels = weights.astype(np.float32, copy=False)
                part = Moments.of(kernels)
                moments = part if moments is None else moments.merge(part)
                norm_max = max(norm_max, scaled_norm_max(kernels))
        if models != {self.model_id}:
            self._problem(path, f"{where} belongs to {', '.join(sorted(models - {self.model_id or ''}))}")
        if not ordered:
            self._problem(path, f"{where}: its {count:,} filters are not in order of layer, out_channel, in_channel")
        if digest.hexdigest() != layer["tensor_sha256"]:
            expected = layer["tensor_sha256"]
            self._problem(path, f"{where}: SHA-256 of the weight is {digest.hexdigest()}, expected {expected}")
        if not finite:
            self._problem(path, f"{where} contains NaN or infinite weights")
        elif moments is not None and (layer["scaled_mean"] is not None or layer["scaled_scatter"] is not None):
            known = {"scaled_mean": moments.mean, "scaled_scatter": moments.packed()}
            if layer["scaled_norm_max"] is not None:  # otherwise it is unknown, and never used
                known["scaled_norm_max"] = np.asarray(norm_max)
            for column, value in known.items():
                if not _close(layer[column], value):
                    self._problem(paths.layers_path(self._slug), f"{where}: {column} is not that of its filters")

    def _index(self, layers: pa.Table) -> None:
        for path in sorted(path for path in self._in_place if paths.is_indexed(path)):
            try:
                if path == paths.fingerprints_path(self._slug):
                    self._fingerprint_file(path, layers)
                else:
                    self._histogram_file(path, layers)
            except _Damaged as error:
                self._problem(path, str(error))

    def _fingerprint_file(self, path: str, layers: pa.Table) -> None:
        self._sealed(path)
        stored = layers.filter(layers["stored"])
        keys = ((self.model_id or "", layer) for layer in stored["layer"].to_pylist())
        hashes = dict(zip(keys, stored["tensor_sha256"].to_pylist(), strict=True))
        table = _read(self._root / path, FINGERPRINTS)
        if wrong := wrong_fingerprints(table, self.model_id or "", hashes):
            self._problem(path, wrong)

    def _histogram_file(self, path: str, layers: pa.Table) -> None:
        import pyarrow.compute as pc

        basis_id = path.split("/")[1]
        basis_file = self._root / paths.basis_path(basis_id)
        try:
            require_regular(self._root, basis_file)
            if _wrong_basis(basis_file):
                return  # it is reported itself, with the files of the folder: nothing is wrong with the model
        except FileNotFoundError as error:
            raise _Damaged(f"no basis {basis_id} exists") from error
        except UnsafePathError:
            return  # likewise
        basis = _read(basis_file, BASES).to_pylist()
        self._sealed(path)
        table = _read(self._root / path, HISTOGRAMS)
        if set(table["model_id"].to_pylist()) - {self.model_id} or set(table["basis_id"].to_pylist()) - {basis_id}:
            self._problem(path, "contains histograms of another model or basis")
        kernel, bins = basis[0]["kernel"], basis[0]["bins"]
        chosen = layers.filter(pc.and_(layers["stored"], pc.equal(layers["kernel"], kernel)))
        filters = dict(zip(chosen["layer"].to_pylist(), chosen["filters"].to_pylist(), strict=True))
        hashes = dict(zip(layers["layer"].to_pylist(), layers["tensor_sha256"].to_pylist(), strict=True))
        for layer, digest in zip(table["layer"].to_pylist(), table["tensor_sha256"].to_pylist(), strict=True):
            if hashes.get(layer) != digest:
                self._problem(path, f"layer {layer}: computed from other weights than the model has now")
                break
        for recipe in sorted({*RECIPES, *table["recipe"].to_pylist()}):
            if sorted(table.filter(pc.equal(table["recipe"], recipe))["layer"].to_pylist()) != sorted(filters):
                self._problem(path, f"the layers of recipe {recipe} are not the {kernel} layers of the model")
        size = len(weight_columns(kernel))
        for row in table.to_pylist():
            where = f"layer {row['layer']}, recipe {row['recipe']}"
            counts, below, above = (np.asarray(row[column], np.int64) for column in ("counts", "below", "above"))
            if (len(counts), len(below), len(above)) != (size * bins, size, size):
                self._problem(path, f"{where}: not {bins} counts for each of {size} components")
            elif ((counts.reshape(size, bins).sum(axis=1) + below + above) != row["filters"]).any():
                self._problem(path, f"{where}: its counts do not add up to its {row['filters']:,} filters")
            elif not np.isfinite((row["low"], row["high"])).all():
                self._problem(path, f"{where}: a range that is not of numbers")
            elif row["filters"] != filters.get(row["layer"], row["filters"]):
                self._problem(path, f"{where}: {row['filters']:,} filters, the layer has {filters[row['layer']]:,}")


def _close(found: Any, expected: npt.NDArray[np.float64]) -> bool:
    if found is None or np.size(found) != expected.size:
        return False
    difference = np.abs(np.ravel(found) - expected.ravel())
    # The comparison is false for NaN.
    return bool((difference <= TOLERANCE * np.abs(expected).max(initial=0.0)).all())
