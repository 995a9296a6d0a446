"""Bases and their histograms: built, frozen, projected on, refitted.

A basis is fitted on the layers of the database as it stands, from the moments in the layers table, and is never changed
afterwards. Beside it lie the histograms of every layer's coefficients in it, one file per model. Because histograms add
up, every shift between any groups is a sum of these small rows. Models that come later are projected on every basis
that exists, and what falls outside a basis's range is counted.

::

    index/<basis id>/basis.parquet
    index/<basis id>/histograms/<slug>.parquet
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb.disk import move, writing
from cnnfilterdb.errors import SelectionError
from cnnfilterdb.scan import FilterFiles, Run, joined, scan
from cnnfilterdb.schema import BASES, HISTOGRAMS, kernel_shape
from cnnfilterdb.stats import RECIPES, Basis, Histogram, Moments, Recipe, histograms
from cnnfilterdb.store import Store
from cnnfilterdb.writer import Writer, histogram_settings

__all__ = [
    "MAX_INDEXED_WEIGHTS",
    "VARIANTS",
    "Bases",
    "FittedBasis",
    "Index",
    "Projection",
    "basis_table",
    "coefficient_range",
    "fitted_basis",
    "histogram_table",
    "moments_of",
    "papers_layers",
    "ranges",
]

#: Kernel sizes with more weights (over 11 x 11) are stored but not indexed: too few exist for a distribution of so many
#: coefficients, and a histogram row would hold tens of thousands of numbers.
MAX_INDEXED_WEIGHTS = 121

#: Which filters a basis may be fitted on: all, as the CVPR paper does, or without the sparse ones of each layer, as
#: *Adversarial Robustness Through the Lens of Convolutional Filters* (arXiv 2204.02481) does.
VARIANTS = ("all", "nonsparse")

#: Called with what is being done, how much is done and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class FittedBasis:
    """A basis of the index with its provenance.

    Attributes:
        basis_id: Its key: kernel size and a digest of what it was fitted on.
        basis: The basis, with its range and bins.
        created_at: When it was last fitted; of the bases of a kernel size, the newest is in use.
        models: Keys of the models that it was fitted on.
        layers: Number of layers that it was fitted on.
    """

    basis_id: str
    basis: Basis
    created_at: datetime
    models: tuple[str, ...]
    layers: int


def papers_layers(layers: pa.Table) -> pa.Table:
    """The layers that the papers would have seen: what is stored, without transposed and dead ones.

    Their extraction reads the Conv nodes of exported graphs, in which transposed convolutions are other nodes and
    layers that are never executed do not occur (papers' extraction code).
    """
    transposed = pc.fill_null(pc.equal(layers["kind"], "transposed"), False)
    kept = pc.and_not(layers["stored"], pc.or_(transposed, pc.fill_null(layers["dead"], False)))
    return layers.filter(kept)


def ranges(basis: Basis, recipes: Mapping[str, Recipe] = RECIPES) -> list[tuple[float, float]]:
    """The coefficient range of each recipe, in order; a recipe without one takes that of the basis."""
    if basis.low is None or basis.high is None:
        raise SelectionError("the basis has no coefficient range; give one with Basis.with_range")
    return [
        (basis.low if recipe.low is None else recipe.low, basis.high if recipe.high is None else recipe.high)
        for recipe in recipes.values()
    ]


def histogram_table(
    basis_id: str, model_id: str, basis: Basis, layers: Iterable[tuple[int, Sequence[Histogram]]]
) -> pa.Table:
    """Rows of the histograms table for the layers of one model.

    Args:
        basis_id: Key of the basis.
        model_id: Key of the model.
        basis: The basis.
        layers: Pairs of a layer and its histograms, one per recipe in the order of ``RECIPES``.
    """
    found = list(layers)
    # By recipe first: each gets a row group of its own (cnnfilterdb.writer.histogram_settings).
    rows = [(layer, recipe, per_recipe[number]) for number, recipe in enumerate(RECIPES) for layer, per_recipe in found]
    size = len(basis.mean)
    columns: dict[str, Any] = {
        "basis_id": [basis_id] * len(rows),
        "model_id": [model_id] * len(rows),
        "layer": [layer for layer, _, _ in rows],
        "recipe": [recipe for _, recipe, _ in rows],
        "low": [histogram.low for *_, histogram in rows],
        "high": [histogram.high for *_, histogram in rows],
        "filters": [histogram.filters for *_, histogram in rows],
        "counts": _lists([histogram.counts for *_, histogram in rows], size * basis.bins),
        "below": _lists([histogram.below for *_, histogram in rows], size),
        "above": _lists([histogram.above for *_, histogram in rows], size),
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in HISTOGRAMS}, schema=HISTOGRAMS)


def _lists(arrays: list[npt.NDArray[np.int64]], length: int) -> pa.Array:
    flat = np.concatenate([array.ravel() for array in arrays]) if arrays else np.empty(0, np.int64)
    offsets = np.arange(0, len(flat) + 1, length, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


class Bases(ABC):
    """The bases of a database, wherever they lie.

    Attributes:
        location: Where the database lies.
    """

    location: str

    @abstractmethod
    def bases(self) -> list[FittedBasis]:
        """All bases, oldest first."""

    def current(self) -> dict[str, FittedBasis]:
        """The basis in use for each kernel size: the newest."""
        return {fitted.basis.kernel: fitted for fitted in self.bases()}

    def get(self, basis_id: str) -> FittedBasis:
        """A basis by its key.

        Raises:
            SelectionError: There is none.
        """
        known = {fitted.basis_id: fitted for fitted in self.bases()}
        if basis_id not in known:
            raise SelectionError(f"no basis {basis_id!r} in {self.location}; known: {', '.join(known) or 'none'}")
        return known[basis_id]


class Index(Bases):
    """The index of a database folder.

    Args:
        store: The folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.location = store.location
        self.path = store.path / "index"

    def bases(self) -> list[FittedBasis]:
        """All bases, oldest first."""
        # A basis file never changes in place but by a rename, which gives it another time.
        found = [_read_basis(path, path.stat().st_mtime_ns) for path in sorted(self.path.glob("*/basis.parquet"))]
        return sorted((b for b in found if b is not None), key=lambda b: (b.created_at, b.basis_id))

    def missing(self) -> dict[str, list[str]]:
        """Models whose layers are not yet in a basis: basis id -> model ids.

        Told by the names of files alone, because every question asks it first.
        """
        gaps: dict[str, set[str]] = {}
        for fitted in self.bases():
            there = {path.stem for path in (self.path / fitted.basis_id / "histograms").glob("*.parquet")}
            stored = {path.stem for path in self.store.filter_files(fitted.basis.kernel)}
            if stored - there:
                gaps[fitted.basis_id] = stored - there
        names = {self.store.slug(model_id): model_id for model_id in self.store.model_ids()} if gaps else {}
        return {basis_id: sorted(names[slug] for slug in slugs if slug in names) for basis_id, slugs in gaps.items()}

    def unindexed(self) -> list[str]:
        """Kernel sizes that could have a basis and have none."""
        current = self.current()
        return [kernel for kernel in self.store.kernels() if kernel not in current and _indexable(kernel)]

    def build(self, *, refit: bool = False, progress: Progress | None = None) -> list[FittedBasis]:
        """Bring the index up to date.

        Fits a basis for each kernel size that has none (for every size with ``refit``) and adds the histograms of
        models that are missing in any basis.

        Args:
            refit: Fit anew on all the models that are there now. The older bases stay; one that was fitted on the same
                layers is put in use again.
            progress: Called with what is being done, how much is done and how much there is.

        Returns:
            The bases that were fitted.
        """
        for basis_id, model_ids in self.missing().items():
            fitted = self.get(basis_id)
            with self.store.staging(basis_id) as staging:
                self._write_histograms(fitted, model_ids, staging, self.path / basis_id, progress)
        kernels = self.store.kernels() if refit else self.unindexed()
        built = [self._fit(kernel, progress) for kernel in kernels if _indexable(kernel)]
        return [fitted for fitted in built if fitted is not None]

    def project(self, basis: Basis, columns: Sequence[npt.NDArray[np.float32]]) -> list[Histogram]:
        """Histograms of some filters in a basis, one per recipe."""
        return histograms(columns, basis, ranges(basis), basis.bins)

    def _fit(self, kernel: str, progress: Progress | None) -> FittedBasis | None:
        layers = self.store.layers().filter((pc.field("kernel") == kernel) & pc.field("stored"))
        chosen = papers_layers(layers)
        moments = moments_of(chosen, kernel)
        if moments.count < 2:
            return None
        basis = Basis.fit(moments, kernel)
        digest = hashlib.sha256()
        for column in ("model_id", "layer", "tensor_sha256"):
            digest.update("\n".join(map(str, chosen[column].to_pylist())).encode())
        digest.update(f"{basis.bins} {list(RECIPES)}".encode())
        basis_id = f"{kernel}-{digest.hexdigest()[:8]}"
        if (self.path / basis_id / "basis.parquet").exists():
            return self._renew(basis_id)
        basis = basis.with_range(*coefficient_range(self.store, basis, chosen, progress))
        fitted_on = tuple(sorted(set(chosen["model_id"].to_pylist())))
        fitted = FittedBasis(basis_id, basis, datetime.now(UTC), fitted_on, chosen.num_rows)

        # Staged outside of `index/`, whose files every reader takes for whole; it appears by one rename, with the
        # histograms of every model in it.
        with self.store.staging(basis_id) as staging:
            if (self.path / basis_id / "basis.parquet").exists():
                return None  # by another process, a moment ago
            place = staging / basis_id
            model_ids = sorted(set(layers["model_id"].to_pylist()))
            self._write_histograms(fitted, model_ids, staging, place, progress)
            _write_table(basis_table(fitted), staging, place / "basis.parquet")
            with writing(self.path):
                self.path.mkdir(exist_ok=True)
                place.rename(self.path / basis_id)
        return fitted

    def _renew(self, basis_id: str) -> FittedBasis | None:
        """Put a basis in use again that was fitted on the very layers that are there now; None if it is in use."""
        fitted = self.get(basis_id)
        if self.current()[fitted.basis.kernel].basis_id == basis_id:
            return None
        fitted = replace(fitted, created_at=datetime.now(UTC))
        self.put(fitted)
        return fitted

    def put(self, fitted: FittedBasis) -> None:
        """Write a basis without its histograms: one that is there already, or of another database."""
        with self.store.staging(fitted.basis_id) as staging:
            _write_table(basis_table(fitted), staging, self.path / fitted.basis_id / "basis.parquet")

    def _write_histograms(
        self,
        fitted: FittedBasis,
        model_ids: Sequence[str],
        staging: Path,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        """Write one file of histograms per model into ``folder``, by way of ``staging``."""
        basis = fitted.basis
        files = self.store.filter_files(basis.kernel, model_ids)

        def project(runs: list[Run]) -> list[tuple[str, int, list[Histogram]]]:
            return [(run.model_id, run.layer, self.project(basis, run.columns)) for run in runs]

        found = (part for parts in scan(files, basis.kernel, project) for part in parts)
        # A file belongs to one model, and row groups come in order, so a model's runs follow one another.
        for number, (model_id, runs) in enumerate(groupby(found, key=itemgetter(0)), 1):
            layers: dict[int, list[Histogram]] = {}
            for _, layer, parts in runs:
                known = layers.get(layer)
                layers[layer] = parts if known is None else [a.merge(b) for a, b in zip(known, parts, strict=True)]
            table = histogram_table(fitted.basis_id, model_id, basis, layers.items())
            path = folder / "histograms" / f"{self.store.slug(model_id)}.parquet"
            _write_table(table, staging, path, **histogram_settings(table))
            if progress:
                progress(f"histograms of {basis.kernel}", number, len(files))


def coefficient_range(
    store: FilterFiles, basis: Basis, layers: pa.Table, progress: Progress | None = None
) -> tuple[float, float]:
    """Smallest and largest coefficient of some layers in a basis, over all components; scans their filters.

    Half a unit wider on both sides if they coincide, as ``numpy.histogram`` does.

    Args:
        store: The folder.
        basis: The basis.
        layers: Rows of the layers table, of which ``model_id``, ``layer`` and ``filters`` are read.
        progress: Called with what is being done, the filters done and the filters in all.
    """
    keys = set(zip(layers["model_id"].to_pylist(), layers["layer"].to_pylist(), strict=True))
    total, done = pc.sum(layers["filters"]).as_py(), 0

    def extremes(runs: list[Run]) -> tuple[float, float, int]:
        chosen = [run for wanted, run in joined(runs, lambda run: (run.model_id, run.layer) in keys) if wanted]
        found = [basis.coefficient_range(run.columns) for run in chosen]
        return (
            min((low for low, _ in found), default=np.inf),
            max((high for _, high in found), default=-np.inf),
            sum(run.filters for run in chosen),
        )

    low, high = np.inf, -np.inf
    files = store.filter_files(basis.kernel, sorted({model_id for model_id, _ in keys}))
    for found in scan(files, basis.kernel, extremes):
        low, high = min(low, found[0]), max(high, found[1])
        done += found[2]
        if progress:
            progress(f"range of {basis.kernel}", done, total)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def moments_of(layers: pa.Table, kernel: str, *, variant: str = "all") -> Moments:
    """Moments of the filters of some rows of the layers table, which must be of one kernel size.

    Args:
        layers: The rows.
        kernel: Their kernel size.
        variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer.

    Raises:
        SelectionError: An unknown variant.
    """
    if variant not in VARIANTS:
        raise SelectionError(f"variant: {variant!r} is none of {', '.join(VARIANTS)}")
    height, width = kernel_shape(kernel)
    size = height * width
    counts = layers["filters"].to_numpy()
    means = _matrix(layers["scaled_mean"], size)
    scatters = _matrix(layers["scaled_scatter"], size * (size + 1) // 2)
    if variant == "nonsparse":
        # Layers without sparse kernels hold no second pair of moments.
        there = layers["nonsparse_filters"].is_valid().to_numpy()
        counts, means, scatters = counts.copy(), means.copy(), scatters.copy()
        some = layers.filter(pa.array(there))
        counts[there] = some["nonsparse_filters"].to_numpy()
        means[there] = _matrix(some["nonsparse_mean"], size)
        scatters[there] = _matrix(some["nonsparse_scatter"], size * (size + 1) // 2)
    return Moments.stacked(counts, means, scatters)


def _matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.float64]:
    """A column of lists of one length as an array (rows, length)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[np.float64] = flat.reshape(len(column), width)
    return matrix


def _indexable(kernel: str) -> bool:
    height, width = kernel_shape(kernel)
    return height * width <= MAX_INDEXED_WEIGHTS


def _write_table(table: pa.Table, staging: Path, path: Path, **settings: Any) -> None:
    """Write a Parquet file so that it appears whole or not at all."""
    with writing(path):
        pq.write_table(table, staging / path.name, compression="zstd", **settings)
        move(staging / path.name, path)


def basis_table(fitted: FittedBasis) -> pa.Table:
    """The row of the bases table for a basis."""
    basis = fitted.basis
    row = {
        "basis_id": fitted.basis_id,
        "kernel": basis.kernel,
        "created_at": fitted.created_at,
        "variant": basis.variant,
        "models": list(fitted.models),
        "layers": fitted.layers,
        "filters": basis.filters,
        "mean": basis.mean.tolist(),
        "components": basis.components.tolist(),
        "explained_variance": basis.explained_variance.tolist(),
        "explained_variance_ratio": basis.explained_variance_ratio.tolist(),
        "bins": basis.bins,
        "low": basis.low,
        "high": basis.high,
    }
    return pa.Table.from_pylist([row], schema=BASES)


@lru_cache(maxsize=256)
def _read_basis(path: Path, changed: int) -> FittedBasis | None:
    rows = pq.ParquetFile(path).read().to_pylist()
    # The zero-row file that lets DuckDB bind the view in a database without a basis has none.
    return fitted_basis(rows[0]) if rows else None


def fitted_basis(row: Mapping[str, Any]) -> FittedBasis:
    """The basis of a row of the bases table."""
    basis = Basis(
        kernel=row["kernel"],
        mean=np.asarray(row["mean"]),
        components=np.asarray(row["components"]),
        explained_variance=np.asarray(row["explained_variance"]),
        explained_variance_ratio=np.asarray(row["explained_variance_ratio"]),
        filters=row["filters"],
        low=row["low"],
        high=row["high"],
        bins=row["bins"],
        variant=row["variant"],
    )
    return FittedBasis(row["basis_id"], basis, row["created_at"], tuple(row["models"]), row["layers"])


class Projection:
    """Projects a model that is being written on every basis that exists, so that no rescan is needed later.

    Args:
        index: The index.
        but: Keys of bases in which its histograms are known.
    """

    def __init__(self, index: Index, but: Iterable[str] = ()) -> None:
        self._index = index
        self._bases = [fitted for fitted in index.bases() if fitted.basis_id not in set(but)]
        self._model_id = ""
        self._found: dict[str, list[tuple[int, list[Histogram]]]] = {}

    def begin(self, model_id: str) -> None:
        """Start a model."""
        self._model_id = model_id
        self._found = {}

    def add(self, layer: int, kernel: str, filters: npt.NDArray[np.float32]) -> None:
        """Take in the filters (n, k) of one layer."""
        bases = [fitted for fitted in self._bases if fitted.basis.kernel == kernel]
        if not bases:
            return
        columns = list(np.ascontiguousarray(filters.T))
        for fitted in bases:
            found = self._index.project(fitted.basis, columns)
            self._found.setdefault(fitted.basis_id, []).append((layer, found))

    def finish(self, writer: Writer) -> None:
        """Hand the rows to the writer, which commits them together with the model."""
        for fitted in self._bases:
            if rows := self._found.get(fitted.basis_id):
                writer.add_index(fitted.basis_id, histogram_table(fitted.basis_id, self._model_id, fitted.basis, rows))
