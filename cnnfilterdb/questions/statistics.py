"""Statistics of the filters of a database: bases, coefficients, groups, shifts and quality."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.analysis import descriptors, shifts
from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import FittedBasis, moments_of
from cnnfilterdb.analysis.coverage import coverage
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.groups import Groups
from cnnfilterdb.analysis.options import (
    BasisChoice,
    ComponentWeights,
    GroupOptions,
    ShiftOptions,
    check_histogram,
    check_options,
)
from cnnfilterdb.analysis.queries import condition
from cnnfilterdb.analysis.shifts import ShiftMatrix
from cnnfilterdb.analysis.sums import StoredHistograms
from cnnfilterdb.core import sqltext
from cnnfilterdb.core.errors import DamagedIndexError, SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.questions.tables import Tables, undisturbed
from cnnfilterdb.stats.arguments import whole_number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Statistics"]


class Statistics(Tables):
    """Statistics of the filters of a database. Part of :class:`~cnnfilterdb.Reader`."""

    @undisturbed
    def basis(self, *, where: str | None = None, kernel: str = "3x3", variant: str = "all") -> stats.Basis:
        """An SVD basis.

        Args:
            where: Fit a basis on the selected layers, from their stored moments, in milliseconds. By default, the
                stored basis in use is returned.
            kernel: Kernel size.
            variant: ``all`` filters, or ``nonsparse``, without the sparse ones of each layer (arXiv 2204.02481), which
                is always fitted on request.

        Raises:
            SelectionError: A condition that cannot be answered, nothing selected, or an unknown variant.

        >>> db.basis().explained_variance_ratio.round(3)
        array([0.391, 0.198, 0.185, 0.068, 0.05 , 0.028, 0.028, 0.026, 0.026])
        >>> db.basis(where="domain = 'natural'").filters
        1088
        """
        if condition(where) == "true" and variant == "all":
            return self._fitted(None, kernel).basis
        return stats.Basis.fit(self.moments(where=where, kernel=kernel, variant=variant), kernel, variant=variant)

    def bases(self) -> list[FittedBasis]:
        """All stored bases, oldest first.

        >>> [(fitted.basis.kernel, len(fitted.models), fitted.basis.filters) for fitted in db.bases()]
        [('3x3', 3, 1488), ('5x5', 3, 264)]
        """
        return self._bases.bases()

    @undisturbed
    def coefficients(self, *, where: str | None = None, basis: BasisChoice = None, kernel: str = "3x3") -> pd.DataFrame:
        """SVD coefficients of the selected filters, with their keys.

        Args:
            where: Condition over the columns of models and layers.
            basis: None means the stored one in use; the key of a stored one; ``"selection"`` fits one on the selected
                filters; or any :class:`~cnnfilterdb.Basis` of the kernel size.
            kernel: Kernel size.

        Returns:
            ``model_id``, ``layer``, ``out_channel``, ``in_channel`` and the coefficients ``c0``, ``c1``, ... (float64).

        Raises:
            SelectionError: A condition or basis that cannot be used, or a kernel size that is not stored.

        >>> db.coefficients(where="name = 'scans'")[["layer", "out_channel", "in_channel", "c0", "c1"]].head(2).round(3)
           layer  out_channel  in_channel     c0     c1
        0      0            0           0 -1.187  0.905
        1      0            1           0  0.072 -1.786
        """
        import pandas as pd

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

    @undisturbed
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

        >>> moments = db.moments(where="domain = 'natural'")
        >>> moments.count, moments.mean.shape
        (1088, (9,))
        """
        kernel_shape(kernel)
        question = Grouping("true", where, kernel, all_layers=all_layers)
        rows = groupings.selection(self._connect("facts"), question, variant=variant)
        self._require_moments(rows)
        return moments_of(rows, kernel, variant=variant)

    @undisturbed
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
            basis: None means the stored one in use; the key of a stored one; ``"selection"`` fits one on the selected
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

        >>> db.groups("domain").sizes().round(4)
                    models  layers  filters  outside
        domain
        medical ct       1       2      400      0.0
        natural          2       3     1088      0.0
        >>> db.groups("name", balance="layers", min_models=1).counts.shape   # groups, components, bins
        (3, 9, 70)
        """
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, recipe, balance, all_layers)
        check_histogram(bins, range)
        fitted = self._fitted(basis, kernel) if not isinstance(basis, stats.Basis) and basis != "selection" else None
        if fitted and bins in (None, fitted.basis.bins) and range is None:
            try:
                return self._stored_groups(question, fitted).at_least(min_models, min_filters)
            except DamagedIndexError:
                if not self._indexed_elsewhere:
                    raise
                # Another process has not come to all models yet: their filters give the same answer.
        self._require_filters()
        rows = groupings.selection(self._connect("facts"), question)
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

    def _stored_groups(self, question: Grouping, fitted: FittedBasis) -> Groups:
        """Groups from the stored histograms of a basis."""
        return groupings.stored(self._histograms_in(fitted.basis_id, fitted.basis), question, fitted)

    def _histograms_in(self, basis_id: str, basis: stats.Basis) -> StoredHistograms:
        """The stored histograms of a basis."""
        width = len(basis.mean) * basis.bins
        return StoredHistograms(self._connect("group_layers"), basis_id, width, self.storage.totals)

    @undisturbed
    def kl_shift(
        self, by: str, *, metric: str = "kl", weights: ComponentWeights = None, **options: Unpack[GroupOptions]
    ) -> pd.DataFrame:
        """Distribution shift between every two groups: symmetric KL divergence of their SVD coefficients, in nats.

        D(P, Q) is the sum over components i of w_i (KL(P_i, Q_i) + KL(Q_i, P_i)), as in the papers.

        Args:
            by: Grouping expression, such as ``"domain"`` or ``"floor(10 * conv_depth_norm)"``. Rows where it is NULL
                are left out.
            metric: ``kl``, or another measure: ``directed``, ``jensen_shannon``, ``total_variation`` or
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

        >>> db.kl_shift("name").round(2)
        name          photos-large  photos-small  scans
        name
        photos-large          0.00          1.33   5.71
        photos-small          1.33          0.00   8.00
        scans                 5.71          8.00   0.00
        >>> db.kl_shift("name", where="domain = 'natural'", metric="wasserstein").round(2)
        name          photos-large  photos-small
        name
        photos-large          0.00          0.08
        photos-small          0.08          0.00
        """
        check_options("kl_shift", options, GroupOptions)
        return self.shift_matrix(by, metric=metric, weights=weights, **options).frame()

    @undisturbed
    def shift_matrix(
        self, by: str, *, metric: str = "kl", weights: ComponentWeights = None, **options: Unpack[GroupOptions]
    ) -> ShiftMatrix:
        """The shifts of :meth:`kl_shift` as an array with its labels; the arguments are the same.

        A data frame is only made on request, because importing pandas takes as long as the rest.

        Args:
            by: Grouping expression.
            metric: As in :meth:`kl_shift`.
            weights: As in :meth:`kl_shift`.
            **options: Those of :meth:`groups`.

        Raises:
            SelectionError: An expression or argument that cannot be answered, or nothing selected.

        >>> shifts = db.shift_matrix("domain")
        >>> shifts.labels, shifts.values.round(2).tolist()
        (['medical ct', 'natural'], [[0.0, 5.69], [5.69, 0.0]])
        >>> shifts.attrs["groups"]["natural"]
        {'models': 2, 'layers': 3, 'filters': 1088, 'outside': 0.0}
        """
        check_options("shift_matrix", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        found = shifts.matrix(self.groups(by, **options), weights, metric)
        basis = options.get("basis")
        if isinstance(basis, str):
            found.attrs["basis"] = basis
        found.attrs["coverage"] = self._coverage(by, options)
        return found

    @undisturbed
    def kl_shift_components(
        self, by: str, *, metric: str = "kl", weights: ComponentWeights = None, **options: Unpack[GroupOptions]
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

        >>> db.kl_shift_components("domain").query("group_a < group_b").head(3).round(3)
               group_a  group_b  component  divergence  weight  shift
        9   medical ct  natural          0      11.162   0.391  4.367
        10  medical ct  natural          1       2.545   0.198  0.503
        11  medical ct  natural          2       2.444   0.185  0.453
        """
        check_options("kl_shift_components", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        return self._covered(shifts.components(self.groups(by, **options), weights, metric), by, options)

    @undisturbed
    def kl_shift_intervals(
        self,
        by: str,
        *,
        samples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        metric: str = "kl",
        weights: ComponentWeights = None,
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

        >>> found = db.kl_shift_intervals("filters > 300", samples=100)
        >>> found[["shift", "low", "high", "models_a", "models_b"]].round(2)
           shift   low   high  models_a  models_b
        0   1.38  1.13  12.73         2         2
        """
        check_options("kl_shift_intervals", options, GroupOptions)
        shifts.check_measure(metric, weights, options.get("kernel", "3x3"))
        basis = options.get("basis")
        if isinstance(basis, stats.Basis) or basis == "selection":
            raise SelectionError("kl_shift_intervals: the basis must be a stored one; leave it out, or give its key")
        for name in ("bins", "range"):
            if options.get(name) is not None:
                raise SelectionError(f"kl_shift_intervals: leave out {name}; intervals come from stored histograms")
        found = self.groups(by, **options)
        assert found.basis_id
        frame = shifts.intervals(
            self._histograms_in(found.basis_id, found.basis),
            found,
            weights,
            metric,
            samples=samples,
            level=level,
            seed=seed,
        )
        return self._covered(frame, by, options)

    @undisturbed
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
            SelectionError: No such group exists, or an argument cannot be answered.

        >>> db.nearest_groups("name", "scans", top=1)[["shift", "filters"]].round(2)
                      shift  filters
        name
        photos-large   5.71      960
        """
        check_options("nearest_groups", options, ShiftOptions)
        whole_number(1, "top", top)
        matrix = self.kl_shift(by, **options)
        frame = shifts.nearest_rows(matrix, group, top)
        frame.attrs["coverage"] = matrix.attrs["coverage"]
        return frame

    @undisturbed
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

        >>> db.quality("domain")[["layers", "sparsity", "variance_entropy", "orthogonality"]].round(3)
                    layers  sparsity  variance_entropy  orthogonality
        domain
        medical ct       2       0.0             0.485          0.746
        natural          3       0.0             0.490          0.861
        """
        kernel_shape(kernel)
        question = Grouping(by, where, kernel, all_layers=all_layers)
        query = (
            f'FROM filter_quality({sqltext.expression(by, "by")}, "where" := {condition(where)}, '
            f"kernel := {sqltext.literal(kernel)}, all_layers := {bool(all_layers)}, margin := {float(margin)!r}, "
            f"low_entropy := {float(low_entropy)!r}, high_sparsity := {float(high_sparsity)!r})"
        )
        frame = self._frame(query).set_index("group")
        if frame.empty:
            raise question.empty()
        frame.index.name = by
        frame.attrs["coverage"] = coverage(self._connect("facts"), question).attrs()
        return frame

    @undisturbed
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
            per: One row per ``filter``, with its keys, or per ``layer``, with the means over its filters (see
                :class:`cnnfilterdb.stats.DescriptorSums`), for which memory does not grow with the number of filters.

        Raises:
            SelectionError: A condition that cannot be answered, or another ``per``.

        >>> db.descriptors(per="layer")[["model_id", "layer", "symmetry", "dct_low"]].round(3)
                      model_id  layer  symmetry  dct_low
        0  custom/photos-large      1     0.203    0.749
        1  custom/photos-large      2     0.206    0.745
        2  custom/photos-small      1     0.198    0.757
        3         custom/scans      0     0.811    0.236
        4         custom/scans      1     0.890    0.178
        """
        if per == "layer":
            return descriptors.of_layers(self.storage, self._connect("facts"), where, kernel)
        if per != "filter":
            raise SelectionError(f"per: {per!r} given; expected filter or layer")
        batches = list(self.descriptor_batches(where=where, kernel=kernel))
        frame: pd.DataFrame = pa.Table.from_batches(batches, descriptors.schema()).to_pandas()
        return frame

    def descriptor_batches(
        self, *, where: str | None = None, kernel: str = "3x3", rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """Stream the descriptors of filters with their keys, as Arrow record batches; see :meth:`descriptors`.

        Args:
            where: Condition over the columns of models and layers.
            kernel: Kernel size.
            rows: Largest number of rows in a batch.

        Raises:
            SelectionError: A condition that cannot be answered, or a kernel size that is not stored.

        >>> next(db.descriptor_batches(rows=100)).num_rows
        100
        """
        batches = self.filter_batches(where=where, kernel=kernel, rows=rows)
        return map(partial(descriptors.describe_batch, kernel=kernel), batches)

    # ---------------------------------------------------------------------------------------------- private

    def _covered(self, frame: pd.DataFrame, by: str, options: GroupOptions) -> pd.DataFrame:
        """Store in ``.attrs["coverage"]`` of a result what it counted and left out."""
        frame.attrs["coverage"] = self._coverage(by, options)
        return frame

    def _coverage(self, by: str, options: GroupOptions) -> dict[str, Any]:
        kernel, basis = options.get("kernel", "3x3"), options.get("basis")
        # The question itself has updated the index.
        fitted = self._stored(basis, kernel) if not isinstance(basis, stats.Basis) and basis != "selection" else None
        question = Grouping(by, options.get("where"), kernel, all_layers=options.get("all_layers", False))
        return coverage(
            self._connect("facts"),
            question,
            min_models=options.get("min_models", 1),
            min_filters=options.get("min_filters", 1),
            fitted_on=None if fitted is None else fitted.models,
            renewal=self._bases.renewal,
        ).attrs()

    def _fitted(self, basis: BasisChoice, kernel: str) -> FittedBasis:
        self._ensure_index()
        return self._stored(basis, kernel)

    def _stored(self, basis: BasisChoice, kernel: str) -> FittedBasis:
        if isinstance(basis, str):
            return self._bases.get(basis)
        current = self._bases.current()
        if kernel not in current:
            self._require_filters()
            there = ", ".join(current) or "none"
            remedy = self._bases.remedy(kernel, kernel in self.storage.kernels())
            raise SelectionError(
                f"no basis for {kernel} kernels in {self.storage.location} (there is: {there}); {remedy}"
            )
        return current[kernel]


def _check_kernel(basis: stats.Basis, kernel: str) -> None:
    if basis.kernel != kernel:
        raise SelectionError(
            f"the basis is of {basis.kernel} kernels, the query of {kernel}; give kernel={basis.kernel!r}"
        )
