"""Fitting a basis on layers, and counting the coefficients of models in it: what an index consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter

import pyarrow as pa

from cnnfilterdb.analysis.bases import FittedBasis, coefficient_range, histogram_table, moments_of, ranges
from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.reports import Progress
from cnnfilterdb.core.resources import Resources
from cnnfilterdb.scan.scan import FilterFile, FilterFiles, Run, scan
from cnnfilterdb.stats import BINS, Basis, Histogram, histograms

__all__ = ["basis_key", "fit", "hashes_of", "model_histograms"]

#: Row groups in flight for each worker: writing the histograms of a model takes as long as counting some of them.
_AHEAD = 12


def basis_key(layers: pa.Table, kernel: str) -> str:
    """The key of the basis that is fitted on some layers: the same layers have the same one everywhere.

    Args:
        layers: Rows of the layers table, sorted by model and layer.
        kernel: Their kernel size.
    """
    digest = hashlib.sha256()
    for column in ("model_id", "layer", "tensor_sha256"):
        digest.update("\n".join(map(str, layers[column].to_pylist())).encode())
    digest.update(f"{BINS} {list(RECIPES)}".encode())
    return f"{kernel}-{digest.hexdigest()[:8]}"


def fit(
    store: FilterFiles,
    layers: pa.Table,
    kernel: str,
    *,
    sequence: int,
    measured: bool = True,
    progress: Progress | None = None,
) -> FittedBasis | None:
    """Fit a basis on layers, from their moments; None for fewer than two filters.

    Args:
        store: Where their filters are.
        layers: Rows of the layers table, sorted by model and layer, with their moments.
        kernel: Their kernel size.
        sequence: Number of the fit.
        measured: Scan the filters for the range of their coefficients.
        progress: Called with the current step, the amount done and the total.
    """
    moments = moments_of(layers, kernel)
    if moments.count < 2:
        return None
    basis = Basis.fit(moments, kernel)
    if measured:
        basis = basis.with_range(*coefficient_range(store, basis, layers, progress))
    fitted_on = tuple(sorted(set(layers["model_id"].to_pylist())))
    return FittedBasis(basis_key(layers, kernel), basis, datetime.now(UTC), fitted_on, layers.num_rows, sequence)


def model_histograms(
    files: Sequence[FilterFile],
    fitted: FittedBasis,
    hashes: Mapping[tuple[str, int], str],
    resources: Resources | None = None,
) -> Generator[tuple[str, pa.Table], None, None]:
    """Count the coefficients of every layer of some files.

    Args:
        files: Files of filters of the kernel size of the basis, in which the rows of a model follow one another.
        fitted: The basis, with its range.
        hashes: SHA-256 of the weight of each layer that is expected.
        resources: What that may use; by default threads, one for each processor.

    Yields:
        For each model its key, and its rows of the histograms table.

    Raises:
        CorruptError: A layer that is not expected: its model was replaced meanwhile.
    """
    basis = fitted.basis
    project = _Projected(basis, ranges(basis))
    resources = resources or Resources.of()
    window = _AHEAD * resources.runner.workers
    found = (part for parts in scan(files, basis.kernel, project, resources=resources, window=window) for part in parts)
    # A file, or a row group of a release, belongs to one model, and row groups come in order.
    for model_id, runs in groupby(found, key=itemgetter(0)):
        layers: dict[int, list[Histogram]] = {}
        for _, layer, parts in runs:
            known = layers.get(layer)
            layers[layer] = parts if known is None else [a.merge(b) for a, b in zip(known, parts, strict=True)]
        if not all((model_id, layer) in hashes for layer in layers):
            raise CorruptError(f"{model_id}: changed during the scan of its filters; try again")
        signed = {layer: hashes[model_id, layer] for layer in layers}
        yield model_id, histogram_table(fitted.basis_id, model_id, basis, layers.items(), signed)


@dataclass(frozen=True, slots=True)
class _Projected:
    """The histograms of each of some runs, with its model and layer."""

    basis: Basis
    limits: Sequence[tuple[float, float]]

    def __call__(self, runs: list[Run]) -> list[tuple[str, int, list[Histogram]]]:
        basis, limits = self.basis, self.limits
        return [(run.model_id, run.layer, histograms(run.columns, basis, limits, basis.bins)) for run in runs]


def hashes_of(layers: pa.Table) -> dict[tuple[str, int], str]:
    """Hash of the weight of each stored layer.

    Raises:
        CorruptError: One is missing.
    """
    stored = layers.filter(layers["stored"])
    if stored["tensor_sha256"].null_count:
        missing = stored.filter(stored["tensor_sha256"].is_null())["model_id"][0].as_py()
        raise CorruptError(f"{missing}: a stored layer has no hash; remove the model and import it again")
    keys = zip(stored["model_id"].to_pylist(), stored["layer"].to_pylist(), strict=True)
    return dict(zip(keys, stored["tensor_sha256"].to_pylist(), strict=True))
