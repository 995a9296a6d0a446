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
from collections.abc import Iterable, Sequence
from dataclasses import replace
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

from cnnfilterdb.analysis.bases import (
    Bases,
    FittedBasis,
    basis_table,
    coefficient_range,
    fitted_basis,
    histogram_table,
    indexable,
    moments_of,
    ranges,
)
from cnnfilterdb.reports import Progress
from cnnfilterdb.scan.scan import Run, scan
from cnnfilterdb.schema import papers_layers
from cnnfilterdb.stats import RECIPES, Basis, Histogram, histograms
from cnnfilterdb.store.durable import move, writing
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.writer import Writer, histogram_settings

__all__ = [
    "Index",
    "Projection",
]


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
        return [kernel for kernel in self.store.kernels() if kernel not in current and indexable(kernel)]

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
        built = [self._fit(kernel, progress) for kernel in kernels if indexable(kernel)]
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


def _write_table(table: pa.Table, staging: Path, path: Path, **settings: Any) -> None:
    """Write a Parquet file so that it appears whole or not at all."""
    with writing(path):
        pq.write_table(table, staging / path.name, compression="zstd", **settings)
        move(staging / path.name, path)


@lru_cache(maxsize=256)
def _read_basis(path: Path, changed: int) -> FittedBasis | None:
    rows = pq.ParquetFile(path).read().to_pylist()
    # The zero-row file that lets DuckDB bind the view in a database without a basis has none.
    return fitted_basis(rows[0]) if rows else None


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
