"""The small tables of a release, checked once before anything uses them.

A release is untrusted input, so each of its claims is compared with the schema and with the others: keys
are well formed and unique, layers have no gaps, filters add up, bases are orthonormal and finite, the histograms of
each layer count each of its filters once, and each stored layer has one fingerprint, of its weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from threading import RLock
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb.analysis.bases import FittedBasis, fitted_basis, ranges
from cnnfilterdb.analysis.fingerprints import wrong_numbers
from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.schema import MAX_KERNEL_WEIGHTS, is_model_id, is_sha256, kernel_name, kernel_shape, storable
from cnnfilterdb.release.footers import open_table
from cnnfilterdb.release.manifest import Manifest, ReleaseFile, shown

__all__ = ["SmallTables"]

_MOST_FILTERS = 1 << 40
_KINDS = frozenset({None, "conv", "depthwise", "grouped", "transposed"})
_MOST_BASES = 1000
_ENTROPY = math.log10(MAX_KERNEL_WEIGHTS) + 1e-6
#: The range of each column of numbers in the layers table, where it is known. NaN is in none.
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "stride_h": (1, 2**31),
        "stride_w": (1, 2**31),
        "dilation_h": (1, 2**31),
        "dilation_w": (1, 2**31),
        "conv_depth": (0, 2**31),
        "conv_depth_norm": (0, 1),
        "sparsity": (0, 1),
        "variance_entropy": (0, _ENTROPY),
        "variance_entropy_clean": (0, _ENTROPY),
        "variance_entropy_scaled": (0, _ENTROPY),
        "randomness_threshold": (-10, 10),
        "orthogonality": (-1e-6, 1 + 1e-6),
        "norm_l1": (0, 1e300),
        "norm_l2": (0, 1e300),
        "isotropy": (0, 1),
        "binary_filters": (0, _MOST_FILTERS),
        "levels": (1, 256),
        "scaled_norm_max": (0, math.sqrt(MAX_KERNEL_WEIGHTS) * (1 + 1e-6)),
    }
)


class SmallTables:
    """The tables of models, layers, bases, histograms and fingerprints of a release.

    Args:
        location: Address of the release, for messages.
        manifest: Its manifest.
        read: Reads a file of the release.
    """

    def __init__(self, location: str, manifest: Manifest, read: Callable[[ReleaseFile], bytes]) -> None:
        self._location = location
        self._manifest = manifest
        self._read = read
        self._lock = RLock()  # so that several threads fetch a table once
        self._known: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_known": {}}  # a copy in another process reads its own tables

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    def models(self) -> pa.Table:
        """The models table, sorted by ``model_id``."""
        return self._once("models", self._checked_models)

    def layers(self) -> pa.Table:
        """The layers table, sorted by ``model_id`` and ``layer``."""
        return self._once("layers", self._checked_layers)

    def bases(self) -> list[FittedBasis]:
        """The bases, oldest first."""
        return list(self._once("bases", self._checked_bases))

    def check_histograms(self) -> None:
        """Check the histograms; they are not kept, because they may be large."""
        self._once("histograms", self._checked_histograms)

    def check_fingerprints(self) -> None:
        """Check the fingerprints of the layers."""
        self._once("fingerprints", self._checked_fingerprints)

    def _once(self, name: str, checked: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._known:
                self._known[name] = checked()
            return self._known[name]

    # -------------------------------------------------------------------------------------------------- reading

    def _shards(self, table: str) -> Iterator[pq.ParquetFile]:
        for file in self._manifest.of(table):
            where = f"{self._location}/{file.path}"
            content = self._read(file)
            if len(content) != file.bytes:
                raise CorruptError(f"{where}: {len(content):,} bytes, expected {file.bytes:,}; try again")
            digest = hashlib.sha256(content).hexdigest()
            if digest != file.sha256:
                raise CorruptError(
                    f"{where}: SHA-256 {digest}, expected {file.sha256}; try again, or ask its publisher to rebuild it"
                )
            yield open_table(content, file, where)

    def _table(self, name: str) -> pa.Table:
        try:
            table = pa.concat_tables([shard.read() for shard in self._shards(name)])
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, CnnFilterDbError):
                raise
            self._refuse(name, f"cannot be read ({first_line(error, 200)})")
        _check_required(table, name, self._refuse)
        return table

    def _refuse(self, table: str, what: str) -> NoReturn:
        raise CorruptError(
            f"{self._location}/{self._manifest.of(table)[0].path}: {what}; do not use this release, or ask "
            "its publisher to rebuild it"
        )

    # --------------------------------------------------------------------------------------------------- models

    def _checked_models(self) -> pa.Table:
        table = self._table("models")
        ids = table["model_id"].to_pylist()
        for model_id, source, name in zip(ids, table["source"].to_pylist(), table["name"].to_pylist(), strict=True):
            if not is_model_id(model_id) or model_id != f"{source}/{name}":
                self._refuse("models", f"{shown(model_id)} is not the key of a model, source/name")
        if any(first >= second for first, second in pairwise(ids)):
            self._refuse("models", "its models are not sorted, or not unique")
        if (table["parameters"].fill_null(0).to_numpy() < 0).any():
            self._refuse("models", "a negative number of parameters")
        counts, layers = table["stored_filters"].to_numpy(), table["conv_layers"].to_numpy()
        if (counts < 0).any() or (counts > _MOST_FILTERS).any() or (layers < 0).any():
            self._refuse("models", "a count that is negative or too large")
        if len(ids) != self._manifest.models or sum(map(int, counts)) != self._manifest.filters:
            self._refuse(
                "models",
                f"{len(ids):,} models with {sum(map(int, counts)):,} filters, but the manifest states "
                f"{self._manifest.models:,} with {self._manifest.filters:,}",
            )
        return table

    # --------------------------------------------------------------------------------------------------- layers

    def _checked_layers(self) -> pa.Table:
        models, table = self.models(), self._table("layers").combine_chunks()
        rows = _positions(table["model_id"], models["model_id"])
        per_model = np.bincount(rows[rows >= 0], minlength=models.num_rows)
        starts = np.cumsum(per_model) - per_model
        numbers = table["layer"].to_numpy()
        if (rows < 0).any() or (np.diff(rows) < 0).any() or (numbers != np.arange(len(rows)) - starts[rows]).any():
            self._refuse("layers", "its layers are not those of its models, numbered from 0 without gaps")
        if (per_model != models["conv_layers"].to_numpy()).any():
            self._refuse("layers", "the numbers of layers are not those of the models table")
        self._check_sizes(table)
        stored = table["stored"].to_numpy(zero_copy_only=False)
        filters = table["filters"].to_numpy()
        if (filters < 0).any() or (filters > _MOST_FILTERS).any() or (filters[stored] == 0).any():
            self._refuse("layers", "a layer with an impossible number of filters")
        totals = np.bincount(rows[stored], weights=filters[stored], minlength=models.num_rows).astype(np.int64)
        if (totals != models["stored_filters"].to_numpy()).any():
            self._refuse("layers", "the numbers of filters are not those of the models table")
        for column in ("in_channels", "out_channels", "groups"):
            if (table[column].fill_null(1).to_numpy() < 1).any():
                self._refuse("layers", f"{column} of less than 1")
        if (filters[stored] % table["out_channels"].fill_null(1).to_numpy()[stored]).any():
            self._refuse("layers", "a number of filters that out_channels does not divide")
        if not set(table["kind"].unique().to_pylist()) <= _KINDS:
            self._refuse("layers", "a kind of convolution that does not exist")
        hashes = table.filter(table["stored"])["tensor_sha256"].to_pylist()
        if not all(is_sha256(text) for text in hashes):
            self._refuse("layers", "tensor_sha256 is not a SHA-256")
        self._check_ranges(table)
        for kernel in table["kernel"].unique().to_pylist():
            self._check_moments(table.filter(pc.and_(table["stored"], pc.equal(table["kernel"], kernel))), kernel)
        self._check_shards(table)
        return table

    def _check_sizes(self, table: pa.Table) -> None:
        sizes = table.select(["kernel", "kernel_h", "kernel_w", "stored"]).group_by(
            ["kernel", "kernel_h", "kernel_w", "stored"]
        )
        for row in sizes.aggregate([]).to_pylist():
            height, width = row["kernel_h"], row["kernel_w"]
            if height < 1 or width < 1 or row["kernel"] != kernel_name(height, width):
                self._refuse("layers", f"{shown(row['kernel'])} is not the kernel size {height}x{width}")
            if row["stored"] and not storable(row["kernel"]):
                self._refuse("layers", f"stored filters of {row['kernel']}")

    def _check_ranges(self, table: pa.Table) -> None:
        for column, (low, high) in _RANGES.items():
            values = table[column].drop_null().to_numpy().astype(np.float64)
            if not ((low <= values) & (values <= high)).all():
                self._refuse("layers", f"{column} that is not a number from {low:g} to {high:g}")
        stored = table.filter(table["stored"])
        for column in ("sparsity", "norm_l1", "norm_l2", "binary_filters", "scaled_norm_max"):
            if stored[column].null_count:
                self._refuse("layers", f"{column} of a stored layer is missing")
        if (stored["binary_filters"].to_numpy() > stored["filters"].to_numpy()).any():
            self._refuse("layers", "binary_filters is larger than filters")

    def _check_moments(self, layers: pa.Table, kernel: str) -> None:
        if not layers.num_rows:
            return
        height, width = kernel_shape(kernel)
        size = height * width
        packed = size * (size + 1) // 2
        lists = {"raw_mean": size, "raw_variance": size, "scaled_mean": size, "scaled_scatter": packed}
        lists |= {"nonsparse_mean": size, "nonsparse_scatter": packed}
        nonsparse = layers["nonsparse_filters"].fill_null(0).to_numpy()
        if (nonsparse < 0).any() or (nonsparse > layers["filters"].to_numpy()).any():
            self._refuse("layers", "nonsparse_filters is not among the filters")
        if self._manifest.statistics_only and all(layers[name].null_count == layers.num_rows for name in lists):
            return  # statistics without moments, which are those of other sizes only
        for column, length in lists.items():
            values = layers[column]
            if column.startswith("scaled") and values.null_count:
                self._refuse("layers", f"{column} of a stored layer is missing")
            if not _lengths_are(values, length) or not _finite(values):
                self._refuse("layers", f"{column} of {kernel} layers is not a list of {length:,} finite numbers")
        known = layers["nonsparse_filters"].is_valid()
        for column in ("nonsparse_mean", "nonsparse_scatter"):
            if not known.equals(layers[column].is_valid()):
                self._refuse("layers", f"{column} is not known where nonsparse_filters is")

    def _check_shards(self, table: pa.Table) -> None:
        """Each filter once: as many rows of each kernel size as the layers have filters; none of statistics only."""
        stored = table.filter(table["stored"])
        if self._manifest.statistics_only:
            stored = stored.slice(0, 0)
        sums = stored.group_by("kernel").aggregate([("filters", "sum")]).to_pylist()
        expected = {f"filters_{row['kernel']}": row["filters_sum"] for row in sums}
        found: dict[str, int] = {}
        for file in self._manifest.files:
            if file.table.startswith("filters_"):
                found[file.table] = found.get(file.table, 0) + file.rows
        for name in sorted(expected.keys() | {name for name, rows in found.items() if rows}):
            if expected.get(name) != found.get(name):
                self._refuse(
                    "layers",
                    f"{expected.get(name, 0):,} filters in {name}, but its shards have {found.get(name, 0):,} rows",
                )

    # ---------------------------------------------------------------------------------------------------- bases

    def _checked_bases(self) -> list[FittedBasis]:
        table = self._table("bases")
        if table.num_rows > _MOST_BASES:
            self._refuse("bases", f"{table.num_rows:,} bases; expected at most {_MOST_BASES:,}")
        rows = table.to_pylist()
        try:
            found = [fitted_basis(row) for row in rows]
        except CorruptError as error:
            self._refuse("bases", str(error))
        if len({fitted.basis_id for fitted in found}) < len(rows):
            self._refuse("bases", "two bases of one key")
        return sorted(found, key=lambda fitted: (fitted.sequence, fitted.basis_id))

    # ----------------------------------------------------------------------------------------------- histograms

    def _checked_histograms(self) -> bool:
        bases = {fitted.basis_id: fitted for fitted in self.bases()}
        layers = self.layers()
        models = self.models()["model_id"]
        owners = _positions(layers["model_id"], models)
        first = np.searchsorted(owners, np.arange(len(models)))
        seen: list[npt.NDArray[np.int64]] = []
        names = list(bases)
        recipes = list(RECIPES)
        for shard in self._shards("histograms"):
            for batch in shard.iter_batches(batch_size=1024, use_threads=False):
                table = pa.Table.from_batches([batch])
                _check_required(table, "histograms", self._refuse)
                basis = _positions(table["basis_id"], pa.chunked_array([pa.array(names, pa.string())]))
                recipe = _positions(table["recipe"], pa.chunked_array([pa.array(recipes, pa.string())]))
                model = _positions(table["model_id"], models)
                number = table["layer"].to_numpy()
                counts = np.bincount(owners, minlength=len(models))
                if (basis < 0).any() or (recipe < 0).any() or (model < 0).any() or (number < 0).any():
                    self._refuse("histograms", "a histogram of an unknown basis, recipe, model or layer")
                if (number >= counts[model]).any():
                    self._refuse("histograms", "a histogram of an unknown layer")
                rows = first[model] + number
                seen.append((basis * len(recipes) + recipe) * layers.num_rows + rows)
                for place, fitted in enumerate(bases.values()):
                    mine = basis == place
                    if mine.any():
                        self._check_counts(table.filter(pa.array(mine)), fitted, layers.take(pa.array(rows[mine])))
        self._check_complete(np.concatenate(seen) if seen else np.empty(0, np.int64), bases, layers)
        return True

    def _check_counts(self, table: pa.Table, fitted: FittedBasis, layers: pa.Table) -> None:
        kernel, size = fitted.basis.kernel, len(fitted.basis.mean)
        stored = layers["stored"].to_numpy(zero_copy_only=False)
        if not stored.all() or layers["kernel"].unique().to_pylist() != [kernel]:
            self._refuse("histograms", f"a histogram of a layer without {kernel} filters in a basis of {kernel}")
        due = dict(zip(RECIPES, ranges(fitted.basis), strict=True))
        bounds = [due[recipe] for recipe in table["recipe"].to_pylist()]
        if list(zip(table["low"].to_pylist(), table["high"].to_pylist(), strict=True)) != bounds:
            self._refuse("histograms", "a range that is not that of its basis and recipe")
        filters = table["filters"].to_numpy()
        sums = np.zeros((table.num_rows, size), np.int64)
        for column, length in (("counts", size * fitted.basis.bins), ("below", size), ("above", size)):
            if not _lengths_are(table[column], length):
                self._refuse("histograms", f"{column} is not a list of {length:,} numbers")
            values = table[column].combine_chunks().flatten()
            if values.null_count:
                self._refuse("histograms", f"{column} with a number that is missing")
            numbers = values.to_numpy().reshape(table.num_rows, size, -1)
            if (numbers < 0).any() or (numbers > filters[:, None, None]).any():
                self._refuse("histograms", f"{column} with a number that is negative or larger than the layer")
            sums += numbers.sum(axis=2)
        if (filters != layers["filters"].to_numpy()).any() or (sums != filters[:, None]).any():
            self._refuse("histograms", "counts that do not add up to the filters of the layer")

    def _check_complete(self, seen: npt.NDArray[np.int64], bases: dict[str, FittedBasis], layers: pa.Table) -> None:
        """Each stored layer once, in each basis of its kernel size and each recipe."""
        if len(np.unique(seen)) < len(seen):
            self._refuse("histograms", "two histograms of one layer")
        stored = layers.filter(layers["stored"])["kernel"].value_counts().to_pylist()
        counts = {row["values"]: row["counts"] for row in stored}
        due = sum(counts.get(fitted.basis.kernel, 0) for fitted in bases.values()) * len(RECIPES)
        if due != len(seen):
            self._refuse("histograms", f"{len(seen):,} histograms, but the layers need {due:,}")

    # --------------------------------------------------------------------------------------------- fingerprints

    def _checked_fingerprints(self) -> bool:
        """Each stored layer once, in order, of the weight that it has."""
        table, layers = self._table("fingerprints"), self.layers()
        stored = layers.filter(layers["stored"])
        keys = ["model_id", "layer", "tensor_sha256"]
        if any(not table[key].combine_chunks().equals(stored[key].combine_chunks()) for key in keys):
            self._refuse("fingerprints", "its rows are not those of the stored layers, in order")
        if wrong := wrong_numbers(table):
            self._refuse("fingerprints", wrong)
        return True


def _check_required(table: pa.Table, name: str, refuse: Callable[[str, str], NoReturn]) -> None:
    # Arrow does not check that a column declared as not null has no nulls.
    for field in table.schema:
        if not field.nullable and table[field.name].null_count:
            refuse(name, f"{field.name} is missing in a row")


def _positions(column: pa.ChunkedArray, among: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where each value is among others; -1 for one that is not."""
    found = pc.index_in(column, value_set=among.combine_chunks()).fill_null(-1)
    return np.asarray(found.to_numpy()).astype(np.int64)


def _lengths_are(lists: pa.ChunkedArray, length: int) -> bool:
    lengths = pc.list_value_length(lists).drop_null()
    return not len(lengths) or (pc.min(lengths).as_py(), pc.max(lengths).as_py()) == (length, length)


def _finite(lists: pa.ChunkedArray) -> bool:
    values = lists.combine_chunks().flatten()
    return not values.null_count and bool(np.isfinite(values.to_numpy(zero_copy_only=False)).all())
