"""Reader: what can be asked of a database, wherever it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cnnfilterdb import sql as sqltext
from cnnfilterdb import stats
from cnnfilterdb.analysis import descriptors, shifts
from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import Bases, FittedBasis, moments_of
from cnnfilterdb.analysis.groups import Grouping, Groups
from cnnfilterdb.connection import Connection, Storage
from cnnfilterdb.errors import SelectionError
from cnnfilterdb.reports import Problem, Progress
from cnnfilterdb.reports import Progress as ModelProgress
from cnnfilterdb.scan import nearest
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.schema import filter_schema, kernel_name, kernel_shape

if TYPE_CHECKING:
    from cnnfilterdb.exchange.export import Exported
    from cnnfilterdb.plots.figures import Figures

__all__ = ["Reader"]

BasisChoice = stats.Basis | Literal["selection"] | str | None


class Reader:
    """A database of convolution kernels, to be read. Made by :func:`cnnfilterdb.open` for a release.

    Args:
        storage: Where it lies.
        bases: Its bases.

    Attributes:
        storage: Where it lies.

    Wherever a method takes ``where`` or ``by``, it is a SQL expression over the columns of the view ``facts``: every
    column of the models and the layers table (``name`` is the model's, ``layer_name`` the layer's).
    """

    def __init__(self, storage: Storage, bases: Bases) -> None:
        self.storage = storage
        self._bases = bases
        self._views = Connection(storage, bases)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.storage.location!r}: {len(self.storage.model_ids())} models)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the DuckDB connection; the object can be used again, which opens a new one."""
        self._views.close()

    @property
    def location(self) -> str:
        """Where the database lies: the absolute path of a folder, or an address."""
        return self.storage.location

    @property
    def name(self) -> str:
        """The last part of its location."""
        return Path(self.location).name

    # ---------------------------------------------------------------------------------------------- reading

    def models(self, where: str | None = None) -> pd.DataFrame:
        """The models table, one row per model.

        Args:
            where: Condition over the columns of models, such as ``"domain LIKE 'medical%'"``.
        """
        condition = f"WHERE {where}" if where else ""
        return self._frame(f"SELECT * EXCLUDE (files) FROM models {condition} ORDER BY model_id")

    def layers(self, where: str | None = None) -> pd.DataFrame:
        """The layers table, one row per convolution layer with its statistics.

        Args:
            where: Condition over the columns of models and layers, such as ``"task = 'Segmentation' AND kernel =
                '3x3'"``.
        """
        return self._frame(f"SELECT layers.* FROM layers {self._chosen(where)} ORDER BY model_id, layer")

    def filters(self, where: str | None = None, kernel: str = "3x3") -> pd.DataFrame:
        """Filters of one kernel size: the keys and one column per weight.

        All that ``where`` selects is brought into memory; :meth:`filter_batches` streams.
        """
        batches = self.filter_batches(where, kernel)
        frame: pd.DataFrame = pa.Table.from_batches(batches, filter_schema(kernel)).to_pandas()
        return frame

    def filter_batches(
        self, where: str | None = None, kernel: str = "3x3", *, rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream filters as Arrow record batches, sorted by model, layer and channels, a few row groups in memory.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Rows of a batch at most.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not there.
        """
        kernel_shape(kernel)
        if kernel != "3x3":  # of which an empty database has none
            self._check_stored(kernel)
        condition = f"AND ({where})" if where else ""
        chosen = groupings.run(
            self._connect(),
            f"SELECT model_id, layer FROM facts WHERE stored AND kernel = {sqltext.literal(kernel)} {condition}",
        )
        layers: dict[str, list[int]] = {}
        for model_id, layer in zip(chosen["model_id"].to_pylist(), chosen["layer"].to_pylist(), strict=True):
            layers.setdefault(model_id, []).append(layer)
        for table in filters_of(self.storage, kernel, layers):
            yield from table.to_batches(max_chunksize=rows)

    def sql(self, query: str, **parameters: Any) -> duckdb.DuckDBPyRelation:
        """Run SQL over the views and macros.

        Args:
            query: One statement; ``$name`` stands for a parameter.
            **parameters: Values of the parameters.

        Returns:
            A DuckDB relation: ``.df()``, ``.to_arrow_table()``, ``.fetchall()``, ``.show()``.

        Raises:
            SelectionError: DuckDB refuses it; the message is DuckDB's.
        """
        if any(re.search(rf"\b{name}", query) for name in sqltext.NEEDS_INDEX):
            self._ensure_index()
        try:
            return self._connect(query).sql(query, params=parameters or None)
        except duckdb.Error as error:
            raise groupings.unreachable(error) or SelectionError(str(error)) from error

    # ------------------------------------------------------------------------------------------- statistics

    def basis(self, where: str | None = None, *, kernel: str = "3x3", variant: str = "all") -> stats.Basis:
        """An SVD basis.

        Args:
            where: Fit on the layers that it selects, from their stored moments, in milliseconds; without it, the basis
                of the index over everything.
            kernel: Kernel size.
            variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer (arXiv 2204.02481), which
                is always fitted anew.
        """
        if where is None and variant == "all":
            return self._fitted(None, kernel).basis
        return stats.Basis.fit(self.moments(where, kernel=kernel, variant=variant), kernel, variant=variant)

    def coefficients(
        self, where: str | None = None, *, basis: stats.Basis | None = None, kernel: str = "3x3"
    ) -> pd.DataFrame:
        """SVD coefficients c0, c1, ... of the selected filters, beside their keys.

        Args:
            where: Condition over the columns of models and layers.
            basis: Any basis of the kernel size; None is that of the index.
            kernel: Kernel size.
        """
        basis = basis or self._fitted(None, kernel).basis
        _check_kernel(basis, kernel)
        keys = ["model_id", "layer", "out_channel", "in_channel"]
        frame = self.filters(where, kernel)
        found = basis.project(frame.drop(columns=keys).to_numpy(np.float32))
        coefficients = pd.DataFrame(found, columns=[f"c{i}" for i in range(found.shape[1])], index=frame.index)
        return pd.concat([frame[keys], coefficients], axis=1)

    def groups(
        self,
        by: str,
        where: str | None = None,
        *,
        recipe: str = "cvpr2022",
        basis: BasisChoice = None,
        bins: int | None = None,
        range: tuple[float, float] | None = None,
        balance: str = "filters",
        kernel: str = "3x3",
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
    ) -> Groups:
        """Histograms of the coefficients by group: what every shift and ridge plot starts from.

        Args:
            by: Grouping expression. Rows where it is NULL are left out.
            where: Condition that narrows the rows.
            recipe: ``cvpr2022`` (range from the smallest to the largest coefficient of the basis, weights = explained
                variance ratio) or ``medneurips2022`` (range -3 to 3, uniform weights).
            basis: None is the stored one over everything; a key of the index; ``"selection"`` fits on the selected
                rows; or a :class:`~cnnfilterdb.stats.Basis`.
            bins: Number of bins, instead of 70.
            range: Range of the histograms, instead of the recipe's.
            balance: What counts the same within a group: ``filters`` (as the papers do), ``layers``, ``models`` or
                ``families``.
            kernel: Kernel size.
            all_layers: Take in transposed and dead layers.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, recipe, balance, all_layers)
        fitted = (
            self._fitted(basis, kernel) if basis is None or (isinstance(basis, str) and basis != "selection") else None
        )
        if fitted and bins in (None, fitted.basis.bins) and range is None:
            return groupings.stored(self._connect(), question, fitted).at_least(min_models, min_filters)
        rows = groupings.selection(self._connect(), question)
        if fitted:
            chosen = fitted.basis
        elif isinstance(basis, stats.Basis):
            chosen = basis
        else:
            chosen = stats.Basis.fit(moments_of(rows, kernel), kernel)
        _check_kernel(chosen, kernel)
        return groupings.scanned(
            self.storage,
            question,
            rows,
            chosen,
            bins=chosen.bins if bins is None else bins,
            limits=range,
            basis_id=fitted.basis_id if fitted else None,
        ).at_least(min_models, min_filters)

    def kl_shift(
        self,
        by: str,
        where: str | None = None,
        *,
        metric: str = "kl",
        weights: Sequence[float] | Literal["uniform", "explained_variance"] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Distribution shift between every two groups: symmetric KL divergence, in nats, of their SVD coefficients.

        D(P, Q) is the sum over components i of w_i (KL(P_i, Q_i) + KL(Q_i, P_i)), as in the papers.

        Args:
            by: Grouping expression, such as ``"domain"`` or ``"floor(10 * conv_depth_norm)"``. Rows where it is NULL
                are left out.
            where: Condition that narrows the rows.
            metric: Another measure than ``kl``: ``directed``, ``jensen_shannon``, ``total_variation`` or
                ``wasserstein``; see :data:`cnnfilterdb.stats.METRICS`.
            weights: Of the components, instead of the recipe's.
            **options: ``recipe``, ``basis``, ``bins``, ``range``, ``balance``, ``kernel``, ``all_layers``,
                ``min_models`` and ``min_filters``; see :meth:`groups`.

        Returns:
            Square DataFrame with zero diagonal, groups sorted; symmetric but for ``directed``, where the row is P.
            ``.attrs`` says which basis, recipe, range and bins, and for each group how many models, layers and filters
            it holds and the share of coefficients outside.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        frame = shifts.matrix(self.groups(by, where, **options), weights, metric)
        if isinstance(options.get("basis"), str):
            frame.attrs["basis"] = options["basis"]
        return frame

    def kl_shift_components(
        self,
        by: str,
        where: str | None = None,
        *,
        metric: str = "kl",
        weights: Sequence[float] | Literal["uniform", "explained_variance"] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """The shift of :meth:`kl_shift`, component by component; the arguments are the same.

        Returns:
            ``group_a``, ``group_b``, ``component``, the unweighted ``divergence``, ``weight``, and their product
            ``shift``, which adds up to the shift of the groups.
        """
        return shifts.components(self.groups(by, where, **options), weights, metric)

    def kl_shift_intervals(
        self,
        by: str,
        where: str | None = None,
        *,
        metric: str = "kl",
        weights: Sequence[float] | Literal["uniform", "explained_variance"] | None = None,
        samples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        **options: Any,
    ) -> pd.DataFrame:
        """The shift of every two groups with a bootstrap interval over models; see :func:`stats.bootstrap_shift`.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            metric: As in :meth:`kl_shift`.
            weights: As in :meth:`kl_shift`.
            samples: Number of resamples.
            level: Share of the resamples that an interval covers.
            seed: The same one gives the same intervals.
            **options: Those of :meth:`groups` but ``bins``, ``range`` and a basis that is not stored, which would have
                to look at every filter again for each model.

        Returns:
            ``group_a``, ``group_b``, ``shift``, ``low``, ``high`` (NaN for a group of one model, which cannot be
            resampled), ``models_a``, ``models_b``, ``filters_a``, ``filters_b``; each pair once.

        Raises:
            SelectionError: An argument that cannot be answered.
        """
        groups = self.groups(by, where, **options)
        if groups.basis_id is None or options.get("bins") or options.get("range"):
            raise SelectionError("intervals are made from the histograms of a stored basis: leave out bins and range")
        return shifts.intervals(self._connect(), groups, weights, metric, samples=samples, level=level, seed=seed)

    def nearest_groups(
        self, group: Any, by: str, where: str | None = None, *, limit: int = 10, **options: Any
    ) -> pd.DataFrame:
        """The groups nearest to one of them, by falling likeness.

        Args:
            group: The group, such as ``"thermal"``.
            by: Grouping expression.
            where: Condition that narrows the rows.
            limit: How many.
            **options: Those of :meth:`kl_shift`.

        Raises:
            SelectionError: There is no such group.
        """
        return shifts.nearest(self.kl_shift(by, where, **options), group, limit)

    def quality(
        self,
        by: str,
        where: str | None = None,
        *,
        kernel: str = "3x3",
        all_layers: bool = False,
        margin: float = stats.MARGIN,
        low_entropy: float = stats.LOW_ENTROPY,
        high_sparsity: float = stats.HIGH_SPARSITY,
    ) -> pd.DataFrame:
        """Sparsity, variance entropy, orthogonality and shares of degenerated layers of each group of layers.

        Sparsity and entropies are weighted by filters, orthogonality by output channels. ``nonsparse_filters`` is what
        structured pruning of sparse kernels would keep. ``random_layers``, ``collapsed_layers``, ``sparse_layers`` and
        ``repetitive_layers`` are shares of the layers by :func:`cnnfilterdb.stats.degeneration`, where the thresholds
        are explained; ``degenerated_layers`` is the first two together. ``quantised_layers`` have few different weights
        per output channel, ``binary_filters`` weights of one magnitude.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Take in transposed and dead layers.
            margin: How far below the randomness threshold an entropy still counts as random.
            low_entropy: Entropy below which a layer counts as repetitive.
            high_sparsity: Sparsity from which a layer counts as sparse.
        """
        condition = f"({where})" if where else "true"
        query = (
            f'FROM filter_quality(({by}), "where" := {condition}, kernel := {sqltext.literal(kernel)}, '
            f"all_layers := {all_layers}, margin := {float(margin)!r}, low_entropy := {float(low_entropy)!r}, "
            f"high_sparsity := {float(high_sparsity)!r})"
        )
        frame = self._frame(query).set_index("group")
        frame.index.name = by
        return frame

    def moments(
        self, where: str | None = None, *, kernel: str = "3x3", variant: str = "all", all_layers: bool = False
    ) -> stats.Moments:
        """Number, mean and covariance of the scaled filters of one kernel size, from the stored moments of layers.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer.
            all_layers: Take in transposed and dead layers.

        Raises:
            SelectionError: Nothing is selected, or an unknown variant.
        """
        kernel_shape(kernel)
        question = Grouping("true", where, kernel, all_layers=all_layers)
        rows = groupings.selection(self._connect(), question, variant=variant)
        return moments_of(rows, kernel, variant=variant)

    def descriptor_batches(
        self, where: str | None = None, kernel: str = "3x3", *, rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream the descriptors of filters beside their keys, as Arrow record batches; see :meth:`descriptors`.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Rows per batch.
        """
        return map(partial(descriptors.describe_batch, kernel=kernel), self.filter_batches(where, kernel, rows=rows))

    def descriptors(
        self, where: str | None = None, kernel: str = "3x3", *, per: Literal["filter", "layer"] = "filter"
    ) -> pd.DataFrame:
        """Gain, symmetry, centre-surround contrast, frequency bands and orientation of filters or layers.

        The columns are those of :data:`cnnfilterdb.stats.DESCRIPTORS`, which says what they tell;
        :func:`cnnfilterdb.stats.descriptors` has the formulas. In SQL they are macros: ``symmetry(w)``, ``dct_low(w)``,
        ...

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            per: One row per ``filter``, beside its keys, or per ``layer``, with the means over its filters (see
                :class:`cnnfilterdb.stats.DescriptorSums`), for which memory does not grow with the number of filters.

        Raises:
            SelectionError: A condition that cannot be answered, or another ``per``.
        """
        if per == "layer":
            return descriptors.of_layers(self.storage, self._connect(), where, kernel)
        if per != "filter":
            raise SelectionError(f"per: {per!r} is none of filter, layer")
        batches = list(self.descriptor_batches(where, kernel))
        frame: pd.DataFrame = pa.Table.from_batches(batches, descriptors.schema()).to_pandas()
        return frame

    def nearest(
        self,
        kernel: npt.ArrayLike,
        limit: int = 10,
        where: str | None = None,
        *,
        sign: bool = False,
        offset: bool = False,
        rotation: bool = False,
    ) -> pd.DataFrame:
        """The stored filters most similar to a kernel, whatever their scale.

        One scan over the filters of that size, in memory for a few row groups.

        Args:
            kernel: (height, width); its size tells which filters are searched.
            limit: How many to return.
            where: Condition over the columns of models and layers.
            sign: Negative multiples are similar too.
            offset: A constant that is added to all weights does not matter.
            rotation: Rotations by right angles and reflections are similar too.

        Returns:
            By falling similarity (the cosine of the angle between both, 1 for a positive multiple; a correlation with
            ``offset``): ``similarity``, ``variant`` (what was done to the given kernel), the keys and the weights.

        Raises:
            SelectionError: A kernel without direction, or of a size of which no filters are stored.
        """
        pattern = stats.Pattern.of(kernel, sign=sign, offset=offset, rotation=rotation)
        size = kernel_name(*np.shape(kernel))
        if limit < 1:
            raise SelectionError(f"limit: {limit} given; at least 1 is needed")
        self._check_stored(size)
        layers = None
        if where is not None:
            rows = groupings.selection(self._connect(), Grouping("true", where, size, all_layers=True))
            layers = set(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))
        table: pd.DataFrame = nearest.nearest(self.storage, size, pattern, layers, limit).to_pandas()
        return table

    def shared_models(self) -> pd.DataFrame:
        """Pairs of models that hold the very same layers, bit for bit: shared ancestry, such as a common pretraining.

        Returns:
            ``model_a``, ``model_b``, ``shared_layers``, ``shared_filters``, and ``share``, of the stored layers of the
            model with fewer of them. Layers of zeros do not count.
        """
        return self._frame("FROM shared_models")

    @property
    def plot(self) -> Figures:
        """The papers' figures."""
        from cnnfilterdb.plots.figures import Figures

        return Figures(self)

    def report(self, path: str | Path, *, by: str = "domain", kernel: str = "3x3") -> Path:
        """Write one self-contained HTML page: what the database holds, how its groups differ, how it was computed.

        Args:
            path: The page.
            by: Grouping expression.
            kernel: Kernel size.

        Returns:
            The path of the page.
        """
        from cnnfilterdb.plots.figures import write_report

        return write_report(self, Path(path), by, kernel)

    def bases(self) -> list[FittedBasis]:
        """All bases, oldest first."""
        return self._bases.bases()

    def verify(self, progress: ModelProgress | None = None) -> list[Problem]:
        """Check every count and every hash; an empty list means that all is well."""
        return self.storage.verify(progress=progress)

    def export(
        self,
        path: str | Path,
        *,
        to: str | None = None,
        where: str | None = None,
        kernel: str = "3x3",
        progress: Progress | None = None,
    ) -> Exported:
        """Write filters to a file for other tools; see :mod:`cnnfilterdb.exchange.export` for what is in it.

        Args:
            path: The file.
            to: ``parquet``, ``arrow``, ``csv``, ``npz`` or ``h5``; by default told by the ending of its name.
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            progress: Called with what is being done, how much is done and how much there is.

        Raises:
            SelectionError: An unknown format, or nothing selected.
            DatabaseError: The file cannot be written.
            MissingExtraError: ``h5`` without the extra ``hdf5``.
        """
        from cnnfilterdb.exchange.export import export

        return export(self, Path(path), to=to, where=where, kernel=kernel, progress=progress)

    # ---------------------------------------------------------------------------------------------- private

    def _connect(self, query: str = "") -> duckdb.DuckDBPyConnection:
        return self._views.connect(query)

    def _frame(self, query: str) -> pd.DataFrame:
        frame: pd.DataFrame = self._table(query).to_pandas()
        return frame

    def _table(self, query: str) -> pa.Table:
        return groupings.run(self._connect(query), query)

    def _chosen(self, where: str | None) -> str:
        if where is None:
            return ""
        return f"SEMI JOIN (SELECT model_id, layer FROM facts WHERE {where}) USING (model_id, layer)"

    def _check_stored(self, kernel: str) -> None:
        there = self.storage.kernels()
        if kernel not in there:
            raise SelectionError(f"no {kernel} filters in {self.location}; there are: {', '.join(there) or 'none'}")

    def _ensure_index(self) -> None:
        """Bring the index up to date, where this can be done."""

    def _fitted(self, basis: BasisChoice, kernel: str) -> FittedBasis:
        self._ensure_index()
        if isinstance(basis, str):
            return self._bases.get(basis)
        current = self._bases.current()
        if kernel not in current:
            there = ", ".join(current) or "none"
            raise SelectionError(
                f"no basis for {kernel} kernels in {self.storage.location} (there is: {there}); "
                "ingest models with kernels of that size first"
            )
        return current[kernel]


def _check_kernel(basis: stats.Basis, kernel: str) -> None:
    if basis.kernel != kernel:
        raise SelectionError(
            f"the basis is of {basis.kernel} kernels, the question of {kernel}; give kernel={basis.kernel!r}"
        )
