"""Bases as values: what a stored basis is, how it is fitted from moments, and the rows of its tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb.core.errors import CorruptError, SelectionError
from cnnfilterdb.core.paths import is_basis_id
from cnnfilterdb.core.recipes import RECIPES, Recipe
from cnnfilterdb.core.reports import Progress, counted, first_line
from cnnfilterdb.core.schema import BASES, HISTOGRAMS, indexable, is_model_id, kernel_shape, storable
from cnnfilterdb.scan.scan import FilterFiles, Run, grouped_layers, joined, scan
from cnnfilterdb.stats import Basis, Histogram, Moments

__all__ = [
    "MAX_BINS",
    "VARIANTS",
    "Bases",
    "FittedBasis",
    "basis_table",
    "coefficient_range",
    "fitted_basis",
    "histogram_table",
    "moments_of",
    "ranges",
]

#: Largest number of bins of a histogram: more than anyone needs, and few enough for the memory of every reader.
MAX_BINS = 10_000

_MAX_COUNT = 2**53
_TOLERANCE = 1e-6  # of rounding

#: Which filters a basis may be fitted on: all, as the CVPR paper does, or without the sparse ones of each layer, as
#: *Adversarial Robustness Through the Lens of Convolutional Filters* (arXiv 2204.02481) does.
VARIANTS = ("all", "nonsparse")


@dataclass(frozen=True, slots=True)
class FittedBasis:
    """A basis of the index with its provenance.

    Attributes:
        basis_id: Its key: kernel size and a digest of what it was fitted on.
        basis: The basis, with its range and bins.
        created_at: When it was fitted, or reused.
        models: Keys of the models that it was fitted on.
        layers: Number of layers that it was fitted on.
        sequence: Number of the fit; of the bases of a kernel size, the one with the highest is in use.
    """

    basis_id: str
    basis: Basis
    created_at: datetime
    models: tuple[str, ...]
    layers: int
    sequence: int = 0

    def __repr__(self) -> str:
        """What it was fitted on, in one line; the keys of its models are left out."""
        return (
            f"<FittedBasis {self.basis_id} of {counted(self.layers, 'layer')} of {counted(len(self.models), 'model')}, "
            f"fitted on {self.created_at:%Y-%m-%d}: {self.basis!r}>"
        )


def ranges(basis: Basis, recipes: Mapping[str, Recipe] = RECIPES) -> list[tuple[float, float]]:
    """The coefficient range of each recipe, in order; a recipe without one takes that of the basis."""
    if basis.low is None or basis.high is None:
        raise SelectionError("the basis has no coefficient range; give one with Basis.with_range")
    return [
        (basis.low if recipe.low is None else recipe.low, basis.high if recipe.high is None else recipe.high)
        for recipe in recipes.values()
    ]


def histogram_table(
    basis_id: str,
    model_id: str,
    basis: Basis,
    layers: Iterable[tuple[int, Sequence[Histogram]]],
    hashes: Mapping[int, str],
) -> pa.Table:
    """Rows of the histograms table for the layers of one model.

    Args:
        basis_id: Key of the basis.
        model_id: Key of the model.
        basis: The basis.
        layers: Pairs of a layer and its histograms, one per recipe in the order of ``RECIPES``.
        hashes: SHA-256 of the weight of each layer.
    """
    found = list(layers)
    # By recipe first: each gets its own row group (cnnfilterdb.store.writer.histogram_settings).
    rows = [(layer, recipe, per_recipe[number]) for number, recipe in enumerate(RECIPES) for layer, per_recipe in found]
    size = len(basis.mean)
    columns: dict[str, Any] = {
        "basis_id": [basis_id] * len(rows),
        "model_id": [model_id] * len(rows),
        "layer": [layer for layer, _, _ in rows],
        "tensor_sha256": [hashes[layer] for layer, _, _ in rows],
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
    """The bases of a database, local or published.

    Attributes:
        location: Where the database is located.
    """

    location: str

    @abstractmethod
    def bases(self) -> list[FittedBasis]:
        """All bases, in the order of their fits."""

    def prepare(  # noqa: B027 (only parts compute theirs on demand)
        self, progress: Progress | None = None, *, fingerprints: bool = False
    ) -> None:
        """Compute what a question needs, where that is kept with the object and not with the database.

        Args:
            progress: Called with the current step, the amount done and the total.
            fingerprints: Also the fingerprints of layers.
        """

    def unsound(self) -> dict[str, str]:
        """What is wrong with files that every question about bases needs: path -> what was found; fast."""
        return {}

    def without_fingerprints(self) -> list[str]:
        """Models whose layers have no fingerprints yet; fast."""
        return []

    def remedy(self, kernel: str, stored: bool) -> str:
        """What to do about a kernel size without a basis.

        Args:
            kernel: The kernel size.
            stored: Whether there are filters of that size.
        """
        return "`cnnfilterdb index` fits one" if stored else "ingest models with kernels of that size first"

    @property
    def renewal(self) -> str:
        """How a basis of all models is got."""
        return "`cnnfilterdb index --refit` fits a new one"

    def current(self) -> dict[str, FittedBasis]:
        """The basis in use for each kernel size: the one of the last fit."""
        return {fitted.basis.kernel: fitted for fitted in self.bases()}

    def get(self, basis_id: str) -> FittedBasis:
        """A basis by its key.

        Raises:
            SelectionError: No such basis exists.
        """
        known = {fitted.basis_id: fitted for fitted in self.bases()}
        if basis_id not in known:
            raise SelectionError(f"no basis {basis_id!r} in {self.location}; known: {', '.join(known) or 'none'}")
        return known[basis_id]


#: Share of the filters that are read before any are left out, at least, and their number: of those layers whose longest
#: filters are longest, and which are therefore likely to have the smallest and the largest coefficient.
_FIRST_SHARE, _FIRST = 1 / 128, 1 << 17


def coefficient_range(
    store: FilterFiles, basis: Basis, layers: pa.Table, progress: Progress | None = None
) -> tuple[float, float]:
    """Smallest and largest coefficient of some layers in a basis, over all components; scans their filters.

    Layers without a filter that is long enough to widen the range (:meth:`cnnfilterdb.Basis.reach`) are not read.
    Half a unit wider on both sides if they coincide, as ``numpy.histogram`` does.

    Args:
        store: The folder.
        basis: The basis.
        layers: Rows of the layers table; ``model_id``, ``layer``, ``filters`` and ``scaled_norm_max`` are read.
        progress: Called with what is being done, the filters done and the filters in all.
    """
    sizes = layers["filters"].to_numpy()
    total = int(sizes.sum())
    norms = layers["scaled_norm_max"].fill_null(np.inf).to_numpy()
    norms = np.where(norms >= 0, norms, np.inf)  # what is not a number is not known
    order = np.argsort(-norms, kind="stable")
    first = int(np.searchsorted(np.cumsum(sizes[order]), max(_FIRST_SHARE * total, _FIRST))) + 1
    low, high, done = np.inf, -np.inf, 0
    for rows in (order[:first], order[first:]):
        if low <= high:
            rows = rows[norms[rows] >= basis.reach(low, high)]
        keys = (layers[name].take(rows).to_pylist() for name in ("model_id", "layer"))
        chosen = grouped_layers(zip(*keys, strict=True))
        files = store.filter_files(basis.kernel, sorted(chosen)) if chosen else []
        for found in scan(files, basis.kernel, _Extremes(basis, chosen), layers=chosen, resources=store.resources):
            low, high = min(low, found[0]), max(high, found[1])
            done += found[2]
            if progress:
                progress(f"range of {basis.kernel}", done, total)
    if progress:
        progress(f"range of {basis.kernel}", total, total)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


@dataclass(frozen=True, slots=True)
class _Extremes:
    """Smallest and largest coefficient of the chosen layers among some runs, and their filters."""

    basis: Basis
    chosen: Mapping[str, Collection[int]]

    def of(self, model_ids: Iterable[str]) -> _Extremes:
        """The same for some models."""
        return replace(self, chosen={model_id: self.chosen.get(model_id, ()) for model_id in model_ids})

    def __call__(self, runs: list[Run]) -> tuple[float, float, int]:
        there = joined(runs, lambda run: run.layer in self.chosen.get(run.model_id, ()))
        wanted = [run for chosen, run in there if chosen]
        found = [self.basis.coefficient_range(run.columns) for run in wanted]
        return (
            min((low for low, _ in found), default=np.inf),
            max((high for _, high in found), default=-np.inf),
            sum(run.filters for run in wanted),
        )


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
        raise SelectionError(f"variant: {variant!r} is not one of {', '.join(VARIANTS)}")
    height, width = kernel_shape(kernel)
    size = height * width
    counts = layers["filters"].to_numpy()
    means = _matrix(layers["scaled_mean"], size)
    scatters = _matrix(layers["scaled_scatter"], size * (size + 1) // 2)
    if variant == "nonsparse":
        # Layers without sparse kernels have no second pair of moments.
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


def basis_table(fitted: FittedBasis) -> pa.Table:
    """The row of the bases table for a basis."""
    basis = fitted.basis
    row = {
        "basis_id": fitted.basis_id,
        "kernel": basis.kernel,
        "created_at": fitted.created_at,
        "sequence": fitted.sequence,
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


def _wrong_values(basis: Basis) -> str | None:
    """What cannot be true of the arrays of a basis of scaled filters, whose shapes have been checked."""
    if np.abs(basis.mean).max() > 1 + _TOLERANCE:
        return "mean: beyond 1"
    shares = basis.explained_variance_ratio
    if min(basis.explained_variance.min(), shares.min()) < -_TOLERANCE or shares.sum() > 1 + _TOLERANCE:
        return "variance: negative, or shares that add up to more than 1"
    product = basis.components @ basis.components.T
    if np.abs(product - np.eye(len(product))).max() > _TOLERANCE:
        return "components: not orthonormal"
    return None


def fitted_basis(row: Mapping[str, Any]) -> FittedBasis:
    """The basis of a row of the bases table, which may be untrusted.

    Raises:
        CorruptError: A value is missing, of the wrong shape, not finite or out of range.
    """
    try:
        height, width = kernel_shape(row["kernel"])
        size = height * width
        basis = Basis(
            kernel=row["kernel"],
            mean=np.asarray(row["mean"], np.float64),
            components=np.asarray(row["components"], np.float64),
            explained_variance=np.asarray(row["explained_variance"], np.float64),
            explained_variance_ratio=np.asarray(row["explained_variance_ratio"], np.float64),
            filters=row["filters"],
            low=float(row["low"]),
            high=float(row["high"]),
            bins=row["bins"],
            variant=row["variant"],
        )
        fitted = FittedBasis(
            row["basis_id"], basis, row["created_at"], tuple(row["models"]), row["layers"], row["sequence"]
        )
        numbers = (basis.filters, basis.bins, fitted.layers, fitted.sequence)
        arrays = (basis.mean, basis.components, basis.explained_variance, basis.explained_variance_ratio)
        shapes = ((size,), (size, size), (size,), (size,))
        wrong = next(
            (
                what
                for what, sound in (
                    ("key", is_basis_id(fitted.basis_id) and fitted.basis_id.startswith(f"{basis.kernel}-")),
                    ("kernel size", storable(basis.kernel) and indexable(basis.kernel)),
                    ("shape of its arrays", tuple(array.shape for array in arrays) == shapes),
                    ("values: not finite", all(np.isfinite(array).all() for array in arrays)),
                    ("variant", basis.variant in VARIANTS),
                    ("counts", all(type(number) is int and 0 <= number <= _MAX_COUNT for number in numbers)),
                    ("bins", 1 <= basis.bins <= MAX_BINS),
                    ("range", -np.inf < row["low"] < row["high"] < np.inf),
                    ("date", isinstance(fitted.created_at, datetime)),
                    ("models", all(map(is_model_id, fitted.models))),
                )
                if not sound
            ),
            None,
        )
        wrong = wrong or _wrong_values(basis)
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptError(f"not a basis ({first_line(error, 100)})") from error
    if wrong:
        raise CorruptError(f"basis {str(fitted.basis_id)!r:.100}: wrong {wrong}")
    return fitted
