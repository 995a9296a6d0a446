"""Conclusions about groups of models: statistical tests, and shares of explained variation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

from cnnfilterdb.analysis import significance
from cnnfilterdb.analysis.options import ComponentWeights, GroupOptions, check_options, names_of
from cnnfilterdb.analysis.shifts import check_measure
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.questions.statistics import Statistics

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Conclusions"]


class Conclusions(Statistics):
    """Comparisons of groups of models that state their certainty. Part of :class:`~cnnfilterdb.Reader`."""

    def shift_test(
        self,
        by: str,
        *,
        within: str | None = None,
        level: float | None = None,
        tolerance: float | None = None,
        permutations: int = 999,
        seed: int = 0,
        metric: str = "kl",
        weights: ComponentWeights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """Test the shift of every pair of groups against chance, by permuting the labels of whole models.

        A divergence is never negative, and it is large between small groups. ``null_mean`` and ``null_high`` show what
        occurs by chance for groups of these sizes; ``excess`` is the rest. Models have the same weight unless
        ``balance`` says otherwise. :func:`cnnfilterdb.stats.shift_test` explains the method.

        A test alone cannot show that groups do not differ. With ``tolerance``, the largest shift that counts as none,
        it is also tested whether the populations of models that the groups come from are closer than that;
        :func:`cnnfilterdb.stats.population_shift` explains how, and how ``level`` gives intervals of their shift.

        Args:
            by: Grouping expression, with one value per model.
            within: Expression of strata, such as ``family``: labels are exchanged within a stratum only, which holds it
                fixed. Not together with ``level`` or ``tolerance``.
            level: Probability with which an interval contains the shift of the populations, such as 0.95; findings are
                made at 1 - level. By default 0.95 with a tolerance, otherwise there are no intervals.
            tolerance: Largest shift that counts as none, in the unit of the metric (nats for ``kl``), such as 0.05.
            permutations: Number of random permutations.
            seed: The same seed gives the same result.
            metric: As in :meth:`Reader.kl_shift`.
            weights: As in :meth:`Reader.kl_shift`.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        Returns:
            One row per pair: ``group_a``, ``group_b``, the observed ``shift``, mean and 95th percentile of the
            permutations (``null_mean``, ``null_high``), ``excess`` (shift - null_mean), ``p``, ``p_holm`` and ``p_bh``
            (adjusted for the number of pairs, by family-wise error and by false discovery rate), ``models_a``,
            ``models_b``, ``arrangements`` (the number of different permutations; p cannot be below its inverse) and a
            ``remark`` for pairs that cannot be tested. ``attrs["overall"]`` is the test of all groups at once,
            ``attrs["unlabelled"]`` the number of models left out.

            With ``level`` also ``unbiased``, the shift without what sampling adds to it (it may be negative), and the
            interval ``low`` to ``high`` of the shift of the populations, which is also one of the excess over chance;
            missing for a group of one model. With ``tolerance`` also ``p_equivalent``, the probability of a shift as
            small as this one if the populations differed by the tolerance, ``p_equivalent_holm``, and the ``finding``
            by the p-values adjusted after Holm: ``differ``, ``do not differ by 0.05``, ``differ, by less than 0.05``
            or ``undecided``.

        Raises:
            SelectionError: An argument that cannot be answered, one group only, or a grouping that splits models.

        >>> found = db.shift_test("domain", permutations=99)
        >>> found[["group_a", "group_b", "models_a", "models_b"]].values.tolist()
        [['medical ct', 'natural', 1, 2]]
        >>> found.loc[0, "remark"]
        'too few models: p cannot be below 0.333'
        >>> found = db.shift_test("name LIKE 'photos%'", tolerance=0.05, permutations=99)
        >>> found.loc[0, ["finding", "remark"]].tolist()  # doctest: +NORMALIZE_WHITESPACE
        ['undecided', 'too few models: p cannot be below 0.333; a group of one model has no interval']
        """
        data = self._labelled("shift_test", (by, within), options, metric, weights, by)
        return significance.test_frame(
            data, by, within, weights, metric, level=level, tolerance=tolerance, permutations=permutations, seed=seed
        )

    def variance_explained(
        self,
        factors: str | Sequence[str],
        *,
        marginal: bool = False,
        within: str | None = None,
        permutations: int = 999,
        seed: int = 0,
        metric: str = "kl",
        weights: ComponentWeights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """How much of the differences between models some factors explain (PERMANOVA).

        The shifts between models are taken as squared distances; each factor explains a share ``r2`` of their sum.
        :func:`cnnfilterdb.stats.partition` explains the method. Groups of unequal spread confound it:
        :meth:`dispersion_test` shows whether that is the case.

        Args:
            factors: Expressions with one value per model, such as ``["family", "task", "domain"]``.
            marginal: Each factor after all others; otherwise each after those before it, so that their order matters.
            within: Expression of strata within which models are exchanged.
            permutations: Number of random permutations.
            seed: The same seed gives the same result.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            weights: As in :meth:`Reader.kl_shift`.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        Returns:
            One row per factor, then ``residual`` and ``total``: ``factor``, ``df``, ``ss``, ``r2``, ``omega2`` (r2
            without the share that as many levels explain by chance), ``f``, ``p`` and a ``remark`` for a factor that
            the others determine, or that does not vary within the strata. ``attrs["unlabelled"]`` is the number of
            models left out because a factor is NULL.

        Raises:
            SelectionError: An argument that cannot be answered, a factor with one value, or one that splits models.

        >>> db.variance_explained("domain", permutations=99)[["factor", "df", "r2"]].round(3)
             factor  df     r2
        0    domain   1  0.868
        1  residual   1  0.132
        2     total   2  1.000
        """
        names = [factors] if isinstance(factors, str) else list(factors)
        data = self._labelled(
            "variance_explained", (*names, within), options, metric, weights, names[0] if names else ""
        )
        return significance.partition_frame(
            data, names, within, weights, metric, marginal=marginal, permutations=permutations, seed=seed
        )

    def dispersion_test(
        self,
        by: str,
        *,
        centre: Literal["median", "centroid"] = "median",
        permutations: int = 999,
        seed: int = 0,
        metric: str = "kl",
        weights: ComponentWeights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """Test whether the models of some groups are equally spread out (betadisper).

        Args:
            by: Grouping expression, with one value per model.
            centre: What distances are measured from: the spatial ``median`` of a group, on which single odd models
                have little influence, or its ``centroid``.
            permutations: Number of random permutations.
            seed: The same seed gives the same result.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            weights: As in :meth:`Reader.kl_shift`.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        Returns:
            ``models`` and mean ``distance`` from the centre of each group; ``attrs["f"]`` and ``attrs["p"]`` are the
            test.

        Raises:
            SelectionError: An argument that cannot be answered, or no group of two models.

        >>> db.dispersion_test("task", permutations=99)["models"].to_dict()
        {'Classification': 2, 'Segmentation': 1}
        """
        data = self._labelled("dispersion_test", (by,), options, metric, weights, by)
        return significance.dispersion_frame(
            data, by, weights, metric, centre=centre, permutations=permutations, seed=seed
        )

    def embed(
        self,
        *,
        by: str | Sequence[str] = (),
        dimensions: int = 2,
        metric: str = "kl",
        weights: ComponentWeights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """Place the models in a plane so that their distances approach their shifts (classical scaling).

        Args:
            by: Expressions with one value per model that become columns, such as ``"domain"``; NULL is missing.
            dimensions: Number of coordinates.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            weights: As in :meth:`Reader.kl_shift`.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default, and ``min_models`` counts
                the groups of the first expression.

        Returns:
            ``x0``, ``x1``, ... and the columns of ``by``, by ``model_id``; ``attrs["explained"]`` is the share of each
            coordinate, ``attrs["negative"]`` how far the shifts are from Euclidean distances.

        Raises:
            SelectionError: An argument that cannot be answered.

        >>> db.embed(by="domain").round(1)  # doctest: +NORMALIZE_WHITESPACE
                              x0   x1      domain
        model_id
        custom/photos-large -0.6  0.6     natural
        custom/photos-small -1.1 -0.5     natural
        custom/scans         1.7 -0.1  medical ct
        """
        names = [by] if isinstance(by, str) else list(by)
        by = names[0] if names else "model_id"
        data = self._labelled("embed", names, options, metric, weights, by, unknown=True)
        return significance.embedding_frame(data, weights, metric, dimensions)

    def neighbour_purity(
        self,
        by: str,
        *,
        across: str | None = None,
        neighbours: int = 1,
        permutations: int = 999,
        seed: int = 0,
        metric: str = "kl",
        weights: ComponentWeights = None,
        **options: Unpack[GroupOptions],
    ) -> pd.DataFrame:
        """How often the model nearest to a model has the same label, compared with chance.

        Args:
            by: Grouping expression, with one value per model.
            across: Expression such as ``family``: neighbours with the same value do not count.
            neighbours: How many of the nearest models are considered.
            permutations: Number of random permutations of the labels.
            seed: The same seed gives the same result.
            metric: As in :meth:`Reader.kl_shift`.
            weights: As in :meth:`Reader.kl_shift`.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        Returns:
            One row for ``all`` models and one per group: ``share``, ``null_mean``, ``null_high``, ``p`` and the number
            of ``models`` considered.

        Raises:
            SelectionError: An argument that cannot be answered, or too few models.

        >>> db.neighbour_purity("task", permutations=99)["share"].round(2).to_dict()
        {'all': 0.67, 'Classification': 1.0, 'Segmentation': 0.0}
        """
        data = self._labelled("neighbour_purity", (by, across), options, metric, weights, by)
        return significance.purity_frame(
            data, by, across, weights, metric, neighbours=neighbours, permutations=permutations, seed=seed
        )

    def _labelled(
        self,
        question: str,
        expressions: Sequence[str | None],
        options: GroupOptions,
        metric: str,
        weights: ComponentWeights,
        by: str,
        *,
        unknown: bool = False,
    ) -> significance.Labelled:
        """One histogram per model with the labels of some expressions, without the models of small groups of ``by``.

        Models that an expression is NULL for are left out too, unless ``unknown``.
        """
        check_options(question, options, GroupOptions)
        check_measure(metric, weights, options.get("kernel", "3x3"))
        if not by:
            raise SelectionError(f"{question}: no factor given; name at least one, such as domain")
        options = {"balance": "models", **options}
        least = options.pop("min_models", 1)
        models = self.groups("model_id", **options)
        wanted = names_of("by", [text for text in expressions if text is not None])
        data = significance.labelled(self._connect("facts"), models, wanted, unknown=unknown)
        if least <= 1:
            return data
        if by not in data.labels:
            raise SelectionError(f"{question}: min_models counts the models of each group; give by, such as domain")
        return significance.at_least(data, by, least)
