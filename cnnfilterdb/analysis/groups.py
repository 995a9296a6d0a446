"""Groups of filters and the histograms of their coefficients: what every shift and every ridge plot starts from.

A grouping is answered from the index where possible, by summing a few small rows. Another basis, other bins or another
range need the filters themselves, which are then scanned once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb.analysis.bases import FittedBasis, coefficient_range, ranges
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.queries import condition, run
from cnnfilterdb.analysis.sums import StoredHistograms
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.sqltext import expression, literal
from cnnfilterdb.scan.scan import FilterFiles, Run, joined, scan
from cnnfilterdb.stats import Basis, Histogram, balance_weights, joint_histogram

if TYPE_CHECKING:
    import pandas as pd

    from cnnfilterdb.stats.compiled import Columns

__all__ = [
    "Groups",
    "Histograms",
    "by_model",
    "joint_counts",
    "scanned",
    "selection",
    "stored",
    "summed",
]

K = TypeVar("K")
T = TypeVar("T")

#: Histograms of layers that are added up at a time.
_CHUNK = 512


@dataclass(frozen=True, slots=True, repr=False)
class Groups:
    """Groups with the histograms of their coefficients. All arrays have one row per group.

    Attributes:
        labels: The groups, sorted.
        models: Number of models, (g,).
        layers: Number of layers, (g,).
        filters: Number of filters, (g,).
        outside: Number of coefficients outside the range, (g,).
        counts: Histograms, weighted when balanced, (g, k, bins) float64.
        low: Left edge of the range.
        high: Right edge.
        weights: Weight of each component in a shift, (k,).
        basis: The basis.
        basis_id: Its key; None for one that is not in the index.
        grouping: The grouping that they answer.
    """

    labels: list[Any]
    models: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int64]
    filters: npt.NDArray[np.int64]
    outside: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float64]
    low: float
    high: float
    weights: npt.NDArray[np.float64]
    basis: Basis
    basis_id: str | None
    grouping: Grouping

    def sizes(self) -> pd.DataFrame:
        """Number of models, layers and filters of each group, and the share of coefficients outside the range."""
        import pandas as pd

        return pd.DataFrame(
            {
                "models": self.models,
                "layers": self.layers,
                "filters": self.filters,
                "outside": self.outside / (self.filters * self.counts.shape[1]),
            },
            index=pd.Index(self.labels, name=self.grouping.by),
        )

    def sizes_by_label(self) -> dict[Any, dict[str, Any]]:
        """The rows of :meth:`sizes` by group, without a data frame."""
        outside = self.outside / (self.filters * self.counts.shape[1])
        columns = [self.models.tolist(), self.layers.tolist(), self.filters.tolist(), outside.tolist()]
        rows = zip(*columns, strict=True)
        names = ("models", "layers", "filters", "outside")
        return {label: dict(zip(names, row, strict=True)) for label, row in zip(self.labels, rows, strict=True)}

    def __repr__(self) -> str:
        return f"Groups by {self.grouping.by}: {', '.join(map(str, self.labels))}"

    def _repr_html_(self) -> str:
        """The sizes of the groups, for notebooks."""
        return self.sizes().to_html()

    def at_least(self, models: int, filters: int) -> Groups:
        """The groups that have at least so many models and filters.

        Raises:
            SelectionError: No group has.
        """
        kept = np.flatnonzero((self.models >= models) & (self.filters >= filters))
        if len(kept) == len(self.labels):
            return self
        if len(kept) == 0:
            raise SelectionError(
                f"no group by {self.grouping.by} has {models:,} models and {filters:,} filters; "
                f"the largest has {self.models.max():,} and {self.filters.max():,}"
            )
        return self.take(kept.tolist())

    def take(self, places: Sequence[int]) -> Groups:
        """Some of the groups, by their numbers."""
        return replace(
            self,
            labels=[self.labels[place] for place in places],
            models=self.models[places],
            layers=self.layers[places],
            filters=self.filters[places],
            outside=self.outside[places],
            counts=self.counts[places],
        )


@dataclass(frozen=True, slots=True, repr=False)
class Histograms:
    """Histograms of all layers in one basis and recipe.

    Attributes:
        places: Row of each layer, by model, layer and hash of the weight.
        counts: Their counts, (layers, k * bins), whole numbers.
        outside: Coefficients outside the range, (layers,).
        low: Left edge of the range.
        high: Right edge.
    """

    places: dict[tuple[str, int, str], int]
    counts: npt.NDArray[np.integer[Any]]
    outside: npt.NDArray[np.int64]
    low: float
    high: float


def stored(histograms: StoredHistograms, grouping: Grouping, fitted: FittedBasis) -> Groups:
    """Groups from the index.

    Raises:
        SelectionError: ``by`` or ``where`` cannot be answered, or selects nothing.
    """
    sums = histograms.sums(grouping)
    return Groups(
        labels=sums.labels,
        models=sums.models,
        layers=sums.layers,
        filters=sums.filters,
        outside=sums.outside,
        counts=sums.counts.reshape(len(sums.counts), -1, fitted.basis.bins),
        low=sums.low,
        high=sums.high,
        weights=recipe_weights(grouping.recipe, fitted.basis),
        basis=fitted.basis,
        basis_id=fitted.basis_id,
        grouping=grouping,
    )


def by_model(histograms: StoredHistograms, groups: Groups) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The histograms of the models of some groups of the index, balanced as the groups are.

    Returns:
        Number of the group of each, (m,), and its counts, (m, k, bins). A model that is in several groups has one entry
        for each.
    """
    import pyarrow.compute as pc

    sums = histograms.sums(groups.grouping, by_model=True)
    labels, known = (pa.array(some, sums.kind) for some in (sums.labels, groups.labels))
    places = pc.fill_null(pc.index_in(labels, value_set=known), -1).to_numpy()
    return places[places >= 0], sums.counts.reshape(len(places), *groups.counts.shape[1:])[places >= 0]


def selection(
    connection: duckdb.DuckDBPyConnection, grouping: Grouping, *, variant: str = "all", moments: bool = True
) -> pa.Table:
    """The layers of a grouping, one row each: group, model_id, layer, tensor_sha256, filters, scaled_norm_max, moments.

    Args:
        connection: With the views of the database.
        grouping: The grouping; if families have the same weight, there is also a column ``family``.
        variant: Which moments :func:`~cnnfilterdb.analysis.bases.moments_of` will need.
        moments: Include the moments.
    """
    family = "coalesce(family, architecture, model_id) AS family, " if grouping.balance == "families" else ""
    nonsparse = ", nonsparse_filters, nonsparse_mean, nonsparse_scatter" if variant == "nonsparse" else ""
    sums = f", scaled_mean, scaled_scatter{nonsparse}" if moments else ""
    papers = "" if grouping.all_layers else "AND papers_layer"
    by, where = expression(grouping.by, "by"), condition(grouping.where)
    table = run(
        connection,
        f'SELECT {by} AS "group", model_id, layer, tensor_sha256, {family}filters, scaled_norm_max{sums} '
        f"FROM facts WHERE stored AND kernel = {literal(grouping.kernel)} AND {where} {papers} "
        'AND "group" IS NOT NULL ORDER BY "group", model_id, layer',
    )
    if not table.num_rows:
        raise grouping.empty()
    grouping.check_kind(table)
    return table


def scanned(
    store: FilterFiles,
    grouping: Grouping,
    rows: pa.Table,
    basis: Basis,
    *,
    bins: int,
    limits: tuple[float, float] | None = None,
    basis_id: str | None = None,
) -> Groups:
    """Groups from the filters themselves.

    Args:
        store: The storage whose files are scanned.
        grouping: The question.
        rows: Its layers, from :func:`selection`.
        basis: Any basis of the kernel size.
        bins: Number of bins.
        limits: Range of the histograms; by default that of the recipe, or, if the recipe has none, the
            smallest and largest coefficient of the basis, or of the selection for a basis without a range.
        basis_id: Key of the basis, if it is in the index.
    """
    recipe = RECIPES[grouping.recipe]
    if limits is None:
        if basis.low is None and recipe.low is None:
            basis = basis.with_range(*coefficient_range(store, basis, rows))
        elif basis.low is None:
            basis = basis.with_range(*(float(edge) for edge in (recipe.low or 0.0, recipe.high or 0.0)))
        limits = dict(zip(RECIPES, ranges(basis), strict=True))[grouping.recipe]
    low, high = limits

    labels, groups, factors = _labelled(rows, grouping)
    places: dict[str, dict[int, tuple[int, float]]] = {}
    for (model_id, layer), group, factor in zip(_keys(rows), groups.tolist(), factors.tolist(), strict=True):
        places.setdefault(model_id, {})[layer] = group, factor

    k = len(basis.mean)
    counts = np.zeros((len(labels), k, bins))
    outside = np.zeros(len(labels), np.int64)

    count = _Counted(partial(Histogram.of_columns, basis=basis, low=low, high=high, bins=bins), places)
    files = store.filter_files(basis.kernel, sorted(places))
    for found in scan(files, basis.kernel, count, layers=places, resources=store.resources):
        for (group, factor), histogram in found:
            counts[group] += factor * histogram.counts
            outside[group] += histogram.below.sum() + histogram.above.sum()

    return _assembled(rows, grouping, (labels, groups), counts, outside, (low, high), basis, basis_id)


@dataclass(frozen=True, slots=True)
class _Counted(Generic[K, T]):
    """What is counted of some runs, each with the place of its layers."""

    count: Callable[[Columns], T]
    places: Mapping[str, Mapping[int, K]]

    def of(self, model_ids: Iterable[str]) -> _Counted[K, T]:
        """The same for some models."""
        return replace(self, places={model_id: self.places.get(model_id, {}) for model_id in model_ids})

    def __call__(self, runs: list[Run]) -> list[tuple[K, T]]:
        there = joined(runs, lambda run: self.places.get(run.model_id, {}).get(run.layer))
        return [(place, self.count(run.columns)) for place, run in there if place is not None]


def joint_counts(
    store: FilterFiles,
    groups: Groups,
    rows: pa.Table,
    components: tuple[int, int],
    cells: int,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.int64]:
    """The filters of groups by two of their coefficients, from the filters themselves.

    Args:
        store: The storage whose files are scanned.
        groups: The groups, with their basis and range.
        rows: The layers of their grouping, from :func:`selection`; those of other groups are not read.
        components: Numbers of the two components.
        cells: Number of cells in each direction.
        progress: Called with the number of filters done since the last call.

    Returns:
        (groups, cells of the first component, cells of the second). What is outside the range is not counted.
    """
    # By their texts: NaN is a group, and does not equal itself.
    numbers = {repr(label): number for number, label in enumerate(groups.labels)}
    places: dict[str, dict[int, int]] = {}
    for (model_id, layer), label in zip(_keys(rows), rows["group"].to_pylist(), strict=True):
        if (number := numbers.get(repr(label))) is not None:
            places.setdefault(model_id, {})[layer] = number
    count = partial(
        joint_histogram, basis=groups.basis, components=components, low=groups.low, high=groups.high, bins=cells
    )
    counts = np.zeros((len(groups.labels), cells, cells), np.int64)
    kernel = groups.basis.kernel
    files = store.filter_files(kernel, sorted(places))
    work = _Counted(count, places)
    for found in scan(files, kernel, work, layers=places, resources=store.resources, progress=progress):
        for number, here in found:
            counts[number] += here
    return counts


def summed(grouping: Grouping, rows: pa.Table, fitted: FittedBasis, histograms: Histograms) -> Groups:
    """Groups from histograms that are in memory.

    Args:
        grouping: The grouping.
        rows: Its layers, from :func:`selection`.
        fitted: The basis of the histograms.
        histograms: Those of all layers, in the recipe of the grouping.

    Raises:
        KeyError: A layer has none.
    """
    labels, groups, factors = _labelled(rows, grouping)
    keys = zip(*(rows[name].to_pylist() for name in ("model_id", "layer", "tensor_sha256")), strict=True)
    places = np.array([histograms.places[key] for key in keys], np.int64)
    k, bins = len(fitted.basis.mean), fitted.basis.bins
    counts = np.zeros((len(labels), k * bins))
    for start in range(0, len(places), _CHUNK):
        part = slice(start, start + _CHUNK)
        weighted = histograms.counts[places[part]] * factors[part, None]
        here, first = np.unique(groups[part], return_index=True)  # the rows are sorted by group
        counts[here] += np.add.reduceat(weighted, first, axis=0)
    outside = np.bincount(groups, histograms.outside[places], len(labels)).astype(np.int64)
    limits = (histograms.low, histograms.high)
    return _assembled(
        rows, grouping, (labels, groups), counts.reshape(-1, k, bins), outside, limits, fitted.basis, fitted.basis_id
    )


def _labelled(rows: pa.Table, grouping: Grouping) -> tuple[list[Any], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """The groups of some layers, the number of the group of each layer, and the factor that balances it."""
    # The rows are sorted by group. Arrow finds the groups, because it treats all NaN as equal, as DuckDB does.
    coded = rows["group"].combine_chunks().dictionary_encode()
    labels, groups = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    members = _members(rows, grouping.balance)
    return labels, groups, balance_weights(rows["filters"].to_numpy(), groups, members, grouping.balance)


def _assembled(
    rows: pa.Table,
    grouping: Grouping,
    grouped: tuple[list[Any], npt.NDArray[np.int32]],
    counts: npt.NDArray[np.float64],
    outside: npt.NDArray[np.int64],
    limits: tuple[float, float],
    basis: Basis,
    basis_id: str | None,
) -> Groups:
    import pandas as pd

    labels, groups = grouped
    filters = rows["filters"].to_numpy()
    frame = pd.DataFrame({"group": groups, "model_id": rows["model_id"].to_pylist(), "filters": filters}).groupby(
        "group"
    )
    return Groups(
        labels=labels,
        models=np.asarray(frame["model_id"].nunique(), np.int64),
        layers=np.asarray(frame.size(), np.int64),
        filters=frame["filters"].sum().to_numpy(),
        outside=outside,
        counts=counts,
        low=limits[0],
        high=limits[1],
        weights=recipe_weights(grouping.recipe, basis),
        basis=basis,
        basis_id=basis_id,
        grouping=grouping,
    )


def recipe_weights(recipe: str, basis: Basis) -> npt.NDArray[np.float64]:
    """Weights of the components in a recipe: explained variance ratio, or all the same."""
    if RECIPES[recipe].weights == "uniform":
        return np.full(len(basis.mean), 1 / len(basis.mean))
    return basis.explained_variance_ratio


def _keys(rows: pa.Table) -> list[tuple[str, int]]:
    return list(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))


def _members(rows: pa.Table, balance: str) -> Sequence[Any]:
    if balance == "families":
        return list(rows["family"].to_pylist())
    if balance == "models":
        return list(rows["model_id"].to_pylist())
    return _keys(rows)
