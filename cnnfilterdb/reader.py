"""Reader: what can be asked of a database, wherever it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

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
from cnnfilterdb.analysis.options import BasisChoice, GroupOptions, ShiftOptions, Weights, check_options
from cnnfilterdb.analysis.queries import QueryResult, condition, expression, run, translated
from cnnfilterdb.connection import Connection, Storage
from cnnfilterdb.errors import QueryError, SelectionError, unknown_model
from cnnfilterdb.reports import Exported, Problem, Progress
from cnnfilterdb.scan import nearest
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.schema import filter_schema, kernel_name, kernel_shape, weight_columns

if TYPE_CHECKING:
    from cnnfilterdb.plots.figures import Figures

__all__ = ["Reader"]


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

    def models(self, *, where: str | None = None) -> pd.DataFrame:
        """The models table: one row per model.

        Args:
            where: Condition over the columns of models and layers, such as ``"domain LIKE 'medical%'"``. One over
                layers selects the models that have such a layer: ``"kernel = '5x5'"``.

        Raises:
            SelectionError: A condition that cannot be answered.
        """
        rows, chosen = "SELECT * EXCLUDE (files) FROM models", condition(where)
        try:  # the models table alone, which is much smaller than that of the layers
            return self._frame(f"{rows} WHERE {chosen} ORDER BY model_id")
        except SelectionError:
            if chosen == "true":
                raise
        chosen = f"SEMI JOIN (SELECT model_id FROM facts WHERE {chosen}) USING (model_id)"
        return self._frame(f"{rows} {chosen} ORDER BY model_id")

    def layers(self, *, where: str | None = None) -> pd.DataFrame:
        """The layers table: one row per convolution layer, with its statistics.

        Args:
            where: Condition over the columns of models and layers, such as ``"task = 'Segmentation' AND kernel =
                '3x3'"``.

        Raises:
            SelectionError: A condition that cannot be answered.
        """
        return self._frame(
            f"SELECT layers.* FROM layers SEMI JOIN (SELECT model_id, layer FROM facts WHERE {condition(where)}) "
            "USING (model_id, layer) ORDER BY model_id, layer"
        )

    def filters(self, *, where: str | None = None, kernel: str = "3x3") -> pd.DataFrame:
        """The filters of one kernel size: their keys and one column per weight.

        All that ``where`` selects is read into memory; :meth:`filter_batches` streams.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.

        Returns:
            ``model_id``, ``layer``, ``out_channel``, ``in_channel`` and the weights ``w0``, ``w1``, ... row by row
            (float32), sorted by the keys.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.
        """
        batches = self.filter_batches(where=where, kernel=kernel)
        frame: pd.DataFrame = pa.Table.from_batches(batches, filter_schema(kernel)).to_pandas()
        return frame

    def filter_batches(
        self, *, where: str | None = None, kernel: str = "3x3", rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream filters as Arrow record batches, sorted by model, layer and channels.

        A few row groups are in memory at a time. The arguments are checked at once, before the first batch is read.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Largest number of rows in a batch.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.
        """
        kernel_shape(kernel)
        if kernel != "3x3":  # which may be absent from an empty database
            self._check_stored(kernel)
        _at_least_one("rows", rows)
        chosen = run(
            self._connect(),
            f"SELECT model_id, layer FROM facts WHERE stored AND kernel = {sqltext.literal(kernel)} "
            f"AND {condition(where)}",
        )
        layers: dict[str, list[int]] = {}
        for model_id, layer in zip(chosen["model_id"].to_pylist(), chosen["layer"].to_pylist(), strict=True):
            layers.setdefault(model_id, []).append(layer)
        return (
            batch
            for table in filters_of(self.storage, kernel, layers)
            for batch in table.to_batches(max_chunksize=rows)
        )

    def layer_weights(self, model_id: str, layer: int) -> npt.NDArray[np.float32]:
        """The weight of one layer as an array.

        Args:
            model_id: Key of the model.
            layer: Number of the layer in its model, from 0; the column ``layer`` of :meth:`layers`.

        Returns:
            (out channels, in channels / groups, height, width), float32: the weight as frameworks hold it. Where the
            number of output channels is not known, as in the papers' data set, all kernels are in one output channel.

        Raises:
            UnknownModelError: There is no such model.
            SelectionError: There is no such layer, or its kernels are not stored, as those of 1x1 layers.
        """
        found = self._table(
            "SELECT layer, kernel, stored, out_channels FROM layers "
            f"WHERE model_id = {sqltext.literal(model_id)} ORDER BY layer"
        ).to_pylist()
        if not found:
            raise unknown_model(model_id, self.storage.model_ids(), self.location)
        row = next((row for row in found if row["layer"] == layer), None)
        if row is None:
            raise SelectionError(f"{model_id}: no layer {layer!r}; its layers are 0 to {found[-1]['layer']}")
        if not row["stored"]:
            raise SelectionError(f"{model_id}: layer {layer} has {row['kernel']} kernels, which are not stored")
        kernel = row["kernel"]
        parts = [
            np.column_stack([table[name].to_numpy() for name in weight_columns(kernel)])
            for table in filters_of(self.storage, kernel, {model_id: [layer]})
        ]
        weights: npt.NDArray[np.float32] = np.concatenate(parts)
        return weights.reshape(row["out_channels"] or 1, -1, *kernel_shape(kernel))

    def sql(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> QueryResult:
        """Run SQL over the views and macros.

        Args:
            query: One statement; ``$name`` or ``?`` stands for a parameter.
            parameters: Their values, by name or in order.

        Returns:
            The rows, read when they are asked for: ``.df()``, ``.to_arrow_table()``, ``.fetchall()``, ``.show()``, and
            every other method of a DuckDB relation.

        Raises:
            QueryError: DuckDB refuses the query; also when it fails later, while rows are read.
        """
        if any(re.search(rf"\b{name}", query) for name in sqltext.NEEDS_INDEX):
            self._ensure_index()
        connection = self._connect(query)
        try:
            relation = connection.sql(query, params=parameters or None)
        except duckdb.Error as error:
            raise translated(error, QueryError) from error
        if relation is None:
            raise QueryError("the query is empty; give one SQL statement, such as FROM models")
        return QueryResult(relation)

    # ------------------------------------------------------------------------------------------- statistics

    def basis(self, *, where: str | None = None, kernel: str = "3x3", variant: str = "all") -> stats.Basis:
        """An SVD basis.

        Args:
            where: Fit one on the layers that it selects, from their stored moments, in milliseconds. Without it, the
                stored basis in use is returned.
            kernel: Kernel size.
            variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer (arXiv 2204.02481), which
                is always fitted anew.

        Raises:
            SelectionError: A condition that cannot be answered, nothing selected, or an unknown variant.
        """
        if condition(where) == "true" and variant == "all":
            return self._fitted(None, kernel).basis
        return stats.Basis.fit(self.moments(where=where, kernel=kernel, variant=variant), kernel, variant=variant)

    def bases(self) -> list[FittedBasis]:
        """All stored bases, oldest first."""
        return self._bases.bases()

    def coefficients(self, *, where: str | None = None, basis: BasisChoice = None, kernel: str = "3x3") -> pd.DataFrame:
        """SVD coefficients of the selected filters, beside their keys.

        Args:
            where: Condition over the columns of models and layers.
            basis: None is the stored one in use; the key of a stored one; ``"selection"`` fits one on the selected
                filters; or any :class:`~cnnfilterdb.Basis` of the kernel size.
            kernel: Kernel size.

        Returns:
            ``model_id``, ``layer``, ``out_channel``, ``in_channel`` and the coefficients ``c0``, ``c1``, ... (float64).

        Raises:
            SelectionError: A condition or basis that cannot be used, or a kernel size that is not stored.
        """
        if isinstance(basis, stats.Basis):
            chosen = basis
        elif basis == "selection":
            chosen = stats.Basis.fit(self.moments(where=where, kernel=kernel), kernel)
        else:
            chosen = self._fitted(basis, kernel).basis
        _check_kernel(chosen, kernel)
        keys = ["model_id", "layer", "out_channel", "in_channel"]
        frame = self.filters(where=where, kernel=kernel)
        found = chosen.project(frame.drop(columns=keys).to_numpy(np.float32))
        coefficients = pd.DataFrame(found, columns=[f"c{i}" for i in range(found.shape[1])], index=frame.index)
        return pd.concat([frame[keys], coefficients], axis=1)

    def groups(
        self,
        by: str,
        *,
        where: str | None = None,
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
        """Histograms of the coefficients of each group, from which every shift and ridge plot is made.

        Args:
            by: Grouping expression. Rows where it is NULL are left out.
            where: Condition that narrows the rows.
            recipe: ``cvpr2022`` (range from the smallest to the largest coefficient of the basis, weights = explained
                variance ratio) or ``medneurips2022`` (range -3 to 3, uniform weights).
            basis: None is the stored one in use; the key of a stored one; ``"selection"`` fits one on the selected
                rows; or a :class:`~cnnfilterdb.Basis`.
            bins: Number of bins; by default 70.
            range: Range of the histograms; by default the recipe's.
            balance: What has the same weight within a group: ``filters`` (as in the papers), ``layers``, ``models`` or
                ``families``.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, which the papers leave out.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, recipe, balance, all_layers)
        _check_histogram(bins, range)
        fitted = self._fitted(basis, kernel) if not isinstance(basis, stats.Basis) and basis != "selection" else None
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
        self, by: str, *, metric: str = "kl", weights: Weights = None, **options: Unpack[GroupOptions]
    ) -> pd.DataFrame:
        """Distribution shift between every two groups: symmetric KL divergence of their SVD coefficients, in nats.

        D(P, Q) is the sum over components i of w_i (KL(P_i, Q_i) + KL(Q_i, P_i)), as in the papers.

        Args:
            by: Grouping expression, such as ``"domain"`` or ``"floor(10 * conv_depth_norm)"``. Rows where it is NULL
                are left out.
            metric: Another measure than ``kl``: ``directed``, ``jensen_shannon``, ``total_variation`` or
                ``wasserstein``; see :data:`cnnfilterdb.stats.METRICS`.
            weights: Of the components; by default the recipe's.
            **options: ``where``, ``recipe``, ``basis``, ``bins``, ``range``, ``balance``, ``kernel``, ``all_layers``,
                ``min_models`` and ``min_filters``, as in :meth:`groups`.

        Returns:
            Square DataFrame with zero diagonal, groups sorted; symmetric except for ``directed``, where the row is P.
            ``.attrs`` has the basis, recipe, range and bins, and for each group the number of models, layers and
            filters, and the share of coefficients outside the range.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        check_options("kl_shift", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        frame = shifts.matrix(self.groups(by, **options), weights, metric)
        basis = options.get("basis")
        if isinstance(basis, str):
            frame.attrs["basis"] = basis
        return frame

    def kl_shift_components(
        self, by: str, *, metric: str = "kl", weights: Weights = None, **options: Unpack[GroupOptions]
    ) -> pd.DataFrame:
        """The shift of :meth:`kl_shift`, component by component; the arguments are the same.

        Args:
            by: Grouping expression.
            metric: As in :meth:`kl_shift`.
            weights: As in :meth:`kl_shift`.
            **options: Those of :meth:`groups`.

        Returns:
            ``group_a``, ``group_b``, ``component``, the unweighted ``divergence``, ``weight``, and their product
            ``shift``, which adds up to the shift of the groups.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        check_options("kl_shift_components", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        return shifts.components(self.groups(by, **options), weights, metric)

    def kl_shift_intervals(
        self,
        by: str,
        *,
        samples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        metric: str = "kl",
        weights: Weights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """The shift of every two groups with a bootstrap interval over models.

        :func:`cnnfilterdb.stats.bootstrap_shift` explains the method.

        Args:
            by: Grouping expression.
            samples: Number of resamples.
            level: Share of the resamples that an interval covers.
            seed: The same seed gives the same intervals.
            metric: As in :meth:`kl_shift`.
            weights: As in :meth:`kl_shift`.
            **options: Those of :meth:`groups` except ``bins``, ``range`` and a basis that is not stored, which would
                require a scan of the filters for every model.

        Returns:
            ``group_a``, ``group_b``, ``shift``, ``low``, ``high`` (NaN for a group of one model, which cannot be
            resampled), ``models_a``, ``models_b``, ``filters_a``, ``filters_b``; one row per pair.

        Raises:
            SelectionError: An argument that cannot be answered; nothing is scanned then.
        """
        check_options("kl_shift_intervals", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        basis = options.get("basis")
        if isinstance(basis, stats.Basis) or basis == "selection":
            raise SelectionError("kl_shift_intervals: the basis must be a stored one; leave it out, or give its key")
        for name in ("bins", "range"):
            if options.get(name) is not None:
                raise SelectionError(f"kl_shift_intervals: leave out {name}; intervals come from stored histograms")
        return shifts.intervals(
            self._connect(), self.groups(by, **options), weights, metric, samples=samples, level=level, seed=seed
        )

    def nearest_groups(self, by: str, group: Any, *, top: int = 10, **options: Unpack[ShiftOptions]) -> pd.DataFrame:
        """The groups nearest to one of them, by ascending shift.

        Args:
            by: Grouping expression.
            group: The group, such as ``"thermal"``.
            top: How many to return.
            **options: Those of :meth:`kl_shift`.

        Returns:
            ``shift`` and the number of models, layers and filters of each group.

        Raises:
            SelectionError: There is no such group, or an argument that cannot be answered.
        """
        check_options("nearest_groups", options, ShiftOptions)
        _at_least_one("top", top)
        return shifts.nearest(self.kl_shift(by, **options), group, top)

    def quality(
        self,
        by: str,
        *,
        where: str | None = None,
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
            all_layers: Include transposed and dead layers, which the papers leave out.
            margin: How far below the randomness threshold an entropy still counts as random.
            low_entropy: Entropy below which a layer counts as repetitive.
            high_sparsity: Sparsity from which a layer counts as sparse.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.
        """
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, all_layers=all_layers)
        query = (
            f'FROM filter_quality({expression(by, "by")}, "where" := {condition(where)}, '
            f"kernel := {sqltext.literal(kernel)}, all_layers := {bool(all_layers)}, margin := {float(margin)!r}, "
            f"low_entropy := {float(low_entropy)!r}, high_sparsity := {float(high_sparsity)!r})"
        )
        frame = self._frame(query).set_index("group")
        if frame.empty:
            raise groupings.empty(question)
        frame.index.name = by
        return frame

    def moments(
        self, *, where: str | None = None, kernel: str = "3x3", variant: str = "all", all_layers: bool = False
    ) -> stats.Moments:
        """Number, mean and covariance of the scaled filters of one kernel size, from the stored moments of layers.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer.
            all_layers: Include transposed and dead layers, which the papers leave out.

        Raises:
            SelectionError: A condition that cannot be answered, nothing selected, or an unknown variant.
        """
        kernel_shape(kernel)
        question = Grouping("true", where, kernel, all_layers=all_layers)
        rows = groupings.selection(self._connect(), question, variant=variant)
        return moments_of(rows, kernel, variant=variant)

    def descriptor_batches(
        self, *, where: str | None = None, kernel: str = "3x3", rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream the descriptors of filters beside their keys, as Arrow record batches; see :meth:`descriptors`.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Largest number of rows in a batch.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.
        """
        batches = self.filter_batches(where=where, kernel=kernel, rows=rows)
        return map(partial(descriptors.describe_batch, kernel=kernel), batches)

    def descriptors(
        self, *, where: str | None = None, kernel: str = "3x3", per: Literal["filter", "layer"] = "filter"
    ) -> pd.DataFrame:
        """Gain, symmetry, centre-surround contrast, frequency bands and orientation of filters or layers.

        The columns are those of :data:`cnnfilterdb.stats.DESCRIPTORS`, which says what each means;
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
            raise SelectionError(f"per: {per!r} given; expected filter or layer")
        batches = list(self.descriptor_batches(where=where, kernel=kernel))
        frame: pd.DataFrame = pa.Table.from_batches(batches, descriptors.schema()).to_pandas()
        return frame

    def nearest(
        self,
        pattern: npt.ArrayLike,
        *,
        top: int = 10,
        where: str | None = None,
        sign: bool = False,
        centred: bool = False,
        rotation: bool = False,
    ) -> pd.DataFrame:
        """The stored filters most similar to a pattern, whatever their scale.

        One scan over the filters of that size, with a few row groups in memory.

        Args:
            pattern: Kernel to look for, (height, width); only filters of that size are searched.
            top: How many to return.
            where: Condition over the columns of models and layers.
            sign: Negative multiples are similar too.
            centred: Subtract the mean of each kernel first, so that a constant added to all weights does not matter.
            rotation: Rotations by right angles and reflections are similar too.

        Returns:
            By descending similarity (the cosine of the angle between both, 1 for a positive multiple; a correlation
            with ``centred``): ``similarity``, ``variant`` (what was done to the pattern), the keys and the weights.

        Raises:
            SelectionError: A pattern without direction, or of a size of which no filters are stored.
        """
        wanted = stats.Pattern.of(pattern, sign=sign, centred=centred, rotation=rotation)
        size = kernel_name(*np.shape(pattern))
        _at_least_one("top", top)
        self._check_stored(size)
        layers = None
        if (narrowed := condition(where)) != "true":
            rows = run(
                self._connect(),
                f"SELECT model_id, layer FROM facts WHERE stored AND kernel = {sqltext.literal(size)} AND {narrowed}",
            )
            layers = set(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))
        table: pd.DataFrame = nearest.nearest(self.storage, size, wanted, layers, top).to_pandas()
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

    def verify(self, *, progress: Progress | None = None) -> list[Problem]:
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
        return run(self._connect(query), query)

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


def _at_least_one(argument: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise SelectionError(f"{argument}: {value!r} given; expected a whole number of at least 1")


def _check_histogram(bins: int | None, limits: tuple[float, float] | None) -> None:
    if bins is not None:
        _at_least_one("bins", bins)
    if limits is None:
        return
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        raise SelectionError(f"range: {limits!r} given; expected two numbers, such as (-3, 3)") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise SelectionError(f"range: ({low}, {high}) given; expected two finite numbers in ascending order")
