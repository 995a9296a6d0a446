"""Implements ``db.plot``: passes the data of a database to the functions that draw.

The drawing functions (:mod:`cnnfilterdb.plots`) know nothing of databases. From a :class:`~cnnfilterdb.Reader`
this module uses its public methods and one internal, ``_connect()``: the DuckDB connection that has the views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pandas as pd

from cnnfilterdb import plots
from cnnfilterdb.analysis.grouping import Grouping
from cnnfilterdb.analysis.options import GroupOptions, ShiftOptions
from cnnfilterdb.analysis.significance import how_computed, model_shifts, tested
from cnnfilterdb.core.errors import SelectionError, unknown_model
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.plots.captions import Caption, caption_by_size, caption_of_models, coefficients_text, method_text
from cnnfilterdb.plots.look import StyleName
from cnnfilterdb.plots.ridge import SHOWN
from cnnfilterdb.plots.source import bases_of, cells_of, layer_measures, layers_by_size, sizes_text
from cnnfilterdb.stats import adjusted_holm, variance_map
from cnnfilterdb.stats.arguments import whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.figure import FigureBase

    from cnnfilterdb.questions.lineage import Lineage

__all__ = ["Figures"]

#: Cells per component in the figure of two components.
_CELLS = 70


class Figures:
    """The papers' figures of one database. Each method returns a matplotlib figure.

    Args:
        db: The database.

    ``by``, ``where`` and the other options are those of :meth:`Reader.kl_shift`. With ``ax``, a panel or (part of) a
    figure, the figure is drawn there, without colour bar, instead of on a page of its own. ``style`` is ``screen``, or
    ``paper`` for the widths of a paper's columns. Figures of arrays and frames are in :mod:`cnnfilterdb.plots`.
    """

    def __init__(self, db: Lineage) -> None:
        self._db = db

    def kl_shift(
        self,
        by: str = "domain",
        *,
        order: Literal["mean", "cluster"] | None = "mean",
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
        **options: Unpack[ShiftOptions],
    ) -> MatplotlibFigure:
        """The matrix of shifts as a heat map.

        Args:
            by: Grouping expression.
            order: ``mean`` sorts by ascending column mean (the CVPR paper's Fig. 3), ``cluster`` puts similar groups
                side by side, None keeps the order.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.
            **options: Those of :meth:`Reader.kl_shift`.

        >>> figure = db.plot.kl_shift("name")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['photos-large', 'photos-small', 'scans']
        """
        matrix = self._db.kl_shift(by, **options)
        sizes = pd.DataFrame.from_dict(matrix.attrs["groups"], orient="index")
        label = plots.METRIC_LABELS[options.get("metric", "kl")]
        caption = self._caption(f"Shifts between {counted(len(matrix), 'group')} by {by}", by, options,
                                method_text(matrix.attrs), matrix.attrs["coverage"])  # fmt: skip
        return plots.heatmap(
            matrix, order=order, counts=sizes, title=title, label=label, ax=ax, style=style, caption=caption
        )

    def ridge(
        self,
        by: str = "domain",
        *,
        xlim: tuple[float, float] | Literal["auto", "full"] = "auto",
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """Distributions of the coefficients: one row per group and one column per component (the papers' Fig. 1).

        Args:
            by: Grouping expression.
            xlim: Range of the x axis; see :func:`cnnfilterdb.plots.ridge`.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.
            **options: Those of :meth:`Reader.groups`.

        >>> figure = db.plot.ridge("name", where="domain = 'natural'")
        >>> len(figure.axes) >= 9   # one per component
        True
        """
        groups = self._db.groups(by, **options)
        return plots.ridge(
            groups.counts,
            groups.low,
            groups.high,
            groups.labels,
            filters=groups.filters,
            explained_variance_ratio=groups.basis.explained_variance_ratio,
            xlim=xlim,
            title=title,
            ax=ax,
            style=style,
            caption=self._caption(f"Coefficients of {counted(len(groups.labels), 'group')} by {by}", by, options,
                                  coefficients_text(groups, SHOWN)),
        )  # fmt: skip

    def eigenfilters(
        self,
        by: str | None = None,
        *,
        where: str | None = None,
        kernel: str = "3x3",
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """The components of a basis fitted on each group, with their explained variance ratios.

        Args:
            by: Grouping expression; by default one basis: that of the index, or of what ``where`` selects.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        >>> figure = db.plot.eigenfilters("domain")
        >>> figure.savefig("eigenfilters.pdf")
        """
        options: GroupOptions = {"where": where, "kernel": kernel, "all_layers": all_layers, "basis": "selection",
                                 "min_models": min_models, "min_filters": min_filters}  # fmt: skip
        if by is None:
            bases: dict[Any, Any] = {where or "all": self._db.basis(where=where, kernel=kernel)}
            what, grouping = "Components of a basis", "kernel"
        else:
            bases = bases_of(self._db, by, where, kernel, all_layers, min_models=min_models, min_filters=min_filters)
            what, grouping = f"Components of a basis fitted on each of {counted(len(bases), 'group')} by {by}", by
        caption = self._caption(what, grouping, options, "Below each: its share of the variance")
        return plots.eigenfilters(bases, title=title, ax=ax, style=style, caption=caption)

    def filters(
        self,
        model_id: str,
        *,
        layer: int = 0,
        top: int = 256,
        scale: Literal["filter", "layer"] = "filter",
        columns: int | None = None,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """The kernels of one layer.

        Args:
            model_id: Key of the model.
            layer: Order of the layer.
            top: Largest number of kernels to draw.
            scale: Colour range of each ``filter``, or of the whole ``layer`` (the CVPR paper's Fig. 1).
            columns: Kernels per row.
            title: Title of the figure; by default the key of the model.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        Raises:
            UnknownModelError: No such model.
            SelectionError: No such layer, or its kernels are not stored.

        >>> figure = db.plot.filters("custom/scans", layer=1, top=16)
        >>> figure.savefig("filters.png")
        """
        there = self._db.storage.model_ids()
        if model_id not in there:
            raise unknown_model(model_id, there, self._db.location)
        where = f"model_id = {literal(model_id)} AND layer = {int(layer)}"
        rows = self._db.layers(where=where)
        if rows.empty:
            numbers = self._db.layers(where=f"model_id = {literal(model_id)}")["layer"]
            raise SelectionError(
                f"no layer {layer} in {model_id!r}; its layers are numbered {numbers.min()} to {numbers.max()}"
            )
        row = rows.iloc[0]
        if not row.stored:
            raise SelectionError(
                f"layer {layer} of {model_id} ({row['layer_name']}) has {row.kernel} kernels, which are not stored"
            )
        frame = self._db.filters(where=where, kernel=row.kernel)
        kernels = frame.filter(regex=r"^w\d+$").to_numpy(np.float32).reshape(-1, *kernel_shape(row.kernel))
        channels = list(zip(frame["out_channel"].tolist(), frame["in_channel"].tolist(), strict=True))
        return plots.filter_grid(
            kernels,
            title=title or model_id,
            subtitle=f"layer {layer} ({row['layer_name']}), {len(kernels):,} {row.kernel} kernels",
            channels=channels,
            limit=top,
            scale=scale,
            columns=columns,
            ax=ax,
            style=style,
            caption=f"{model_id}, layer {layer} ({row['layer_name']}): {counted(len(kernels), f'{row.kernel} kernel')} "
            f"of {row.out_channels} output channels. Weights as stored, "
            + ("each kernel over its own range." if scale == "filter" else "all kernels over one range."),
        )

    def quality(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str = "3x3",
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """Sparsity, normalised variance entropy and orthogonality of the layers of each group.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, as :meth:`Reader.quality` does.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        >>> figure = db.plot.quality("domain")
        >>> figure.savefig("quality.svg")
        """
        frame = layer_measures(self._db, by, where, kernel, all_layers, min_models=min_models, min_filters=min_filters)
        groups = "tenths of depth" if by == "conv_depth_norm" else f"{counted(frame[by].nunique(), 'group')} by {by}"
        caption = Caption(what=f"Quality of the layers of {groups}", **frame.attrs["sizes"], kernel=kernel, where=where,
                          all_layers=all_layers, method="Entropy over its threshold; no basis is involved")  # fmt: skip
        return plots.quality(frame, by=by, title=title, ax=ax, style=style, caption=str(caption))

    def variance(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str | Sequence[str] | None = None,
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """Where in a kernel the weights vary, for each group and kernel size (The Power of Linear Combinations).

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: One kernel size or several; by default all that are at least three weights high and wide.
            all_layers: Include transposed and dead layers.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        >>> figure = db.plot.variance("domain", kernel=["3x3", "5x5"])
        >>> figure.savefig("variance.png")
        """
        maps: dict[Any, dict[str, tuple[Any, int]]] = {}
        frame = layers_by_size(self._db, by, where, kernel, all_layers, min_models, min_filters)
        for (label, size), rows in frame.groupby(["group", "kernel"]):
            values = variance_map(
                rows["filters"].to_numpy(), np.stack(list(rows["raw_mean"])), np.stack(list(rows["raw_variance"]))
            )
            if np.isfinite(values).all():
                maps.setdefault(label, {})[str(size)] = (values, int(rows["filters"].sum()))
        if not maps:
            raise Grouping(by, where, sizes_text(kernel)).empty()
        caption = caption_by_size(
            f"Variance of each weight of {counted(len(maps), 'group')} by {by}", frame, where, all_layers,
            "Below each: its number of kernels, in units of the variance of all weights of their layer",
        )  # fmt: skip
        return plots.variance(maps, title=title, ax=ax, style=style, caption=caption)

    def means(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str | Sequence[str] | None = None,
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """The mean kernel of each group and kernel size, each kernel divided by its largest weight.

        Args:
            by: Grouping expression, such as ``"floor(10 * conv_depth_norm) / 10"``.
            where: Condition that narrows the rows.
            kernel: One kernel size or several; by default all that are at least three weights high and wide.
            all_layers: Include transposed and dead layers.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        >>> figure = db.plot.means("domain")
        >>> figure.savefig("means.png")
        """
        maps: dict[Any, dict[str, tuple[Any, int]]] = {}
        frame = layers_by_size(self._db, by, where, kernel, all_layers, min_models, min_filters)
        for (label, size), rows in frame.groupby(["group", "kernel"]):
            filters = rows["filters"].to_numpy()
            values = np.average(np.stack(list(rows["scaled_mean"])), axis=0, weights=filters)
            maps.setdefault(label, {})[str(size)] = (values, int(filters.sum()))
        caption = caption_by_size(
            f"Mean kernel of {counted(len(maps), 'group')} by {by}", frame, where, all_layers,
            "Below each: its number of kernels, each divided by its largest absolute weight",
        )  # fmt: skip
        return plots.mean_kernels(maps, title=title, ax=ax, style=style, caption=caption)

    def map(
        self,
        by: str = "domain",
        *,
        metric: str = "kl",
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """The models as points whose distances approach the shifts between them, coloured by group.

        Args:
            by: Expression with one value per model; models for which it is NULL are drawn grey.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.
            **options: Those of :meth:`Reader.embed`.

        >>> figure = db.plot.map("domain")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['natural (2)', 'medical ct (1)']
        """
        placed = self._db.embed(by=by, metric=metric, **options)
        explained = placed.attrs["explained"]
        caption = caption_of_models(f"Models by their shifts, coloured by {by}", placed.attrs, options)
        return plots.model_map(
            placed[["x0", "x1"]], placed[by].tolist(), explained=explained, title=title, ax=ax, style=style,
            caption=caption,
        )  # fmt: skip

    def spread(
        self,
        by: str = "domain",
        *,
        metric: str = "kl",
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """The shifts between the models of each group, beside those to all other models.

        Args:
            by: Expression with one value per model.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        >>> figure = db.plot.spread("domain")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['natural', 'medical ct']
        """
        data = self._db._labelled("spread", (by,), options, metric, None, by)
        shifts = model_shifts(data, None, metric)
        what = f"Shifts between models of {counted(len(set(data.labels[by])), 'group')} by {by}"
        return plots.spread(
            shifts, data.labels[by], label=plots.METRIC_LABELS[metric], title=title, ax=ax, style=style,
            caption=caption_of_models(what, how_computed(data, metric, None), options,
                                      "Bars: middle half of the pairs, lines: 5 % to 95 %, circles: medians"),
        )  # fmt: skip

    def null(
        self,
        by: str = "domain",
        *,
        within: str | None = None,
        top: int = 12,
        permutations: int = 999,
        seed: int = 0,
        metric: str = "kl",
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """The shifts that occur by chance between groups of these sizes, beside the observed ones: a row per pair.

        p-values are adjusted for the number of all pairs (Holm), as in :meth:`Reader.shift_test`.

        Args:
            by: Expression with one value per model.
            within: Expression of strata within which labels are exchanged.
            top: Number of pairs, those with the smallest p first; pairs that cannot be tested are left out.
            permutations: Number of random permutations.
            seed: The same seed gives the same result.
            metric: As in :meth:`Reader.kl_shift`.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        Raises:
            SelectionError: An argument that cannot be answered, one group only, or no pair that can be tested.

        >>> figure = db.plot.null("domain", permutations=99)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['medical ct, natural']
        """
        whole_number(1, "top", top)
        data = self._db._labelled("null", (by, within), options, metric, None, by)
        found, names, sizes = tested(data, by, within, metric, permutations=permutations, seed=seed)
        adjusted = adjusted_holm(found.p)
        order = sorted(np.flatnonzero(found.arrangements >= 2).tolist(), key=lambda i: (found.p[i], -found.shift[i]))
        chosen = order[:top]
        pairs = [(names[found.first[i]], names[found.second[i]]) for i in chosen]
        return plots.null_distributions(
            [f"{a}, {b}" for a, b in pairs],
            [float(found.shift[i]) for i in chosen],
            [found.null[:, i] for i in chosen] if found.null is not None else [],
            [float(adjusted[i]) for i in chosen],
            [f"{sizes[found.first[i]]} · {sizes[found.second[i]]}" for i in chosen],
            label=plots.METRIC_LABELS[metric],
            title=title,
            ax=ax,
            style=style,
            caption=caption_of_models(
                f"{counted(len(chosen), 'pair')} of {len(order):,} by {by}" + (f" within {within}" if within else ""),
                how_computed(data, metric, permutations),
                options,
                f"p adjusted for {counted(len(order), 'pair')}, in colour up to 0.05; darker grey: the largest 5 %",
            ),
        )

    def lineage(
        self,
        *,
        kurtosis: str | None = None,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """The trees of related models, by their distances.

        Args:
            kurtosis: As in :meth:`Reader.lineage`.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        Raises:
            SelectionError: No related models, or another ``kurtosis``.

        >>> parent = {"conv.weight": db.layer_weights("custom/scans", 1)}
        >>> families = cnnfilterdb.create("families.db")
        >>> keys = families.add(parent, "parent"), families.add({"conv.weight": 2 * parent["conv.weight"]}, "child")
        >>> families.plot.lineage().savefig("lineage.png")
        """
        frame = self._db.lineage(kurtosis=kurtosis)
        caption = (
            f"{counted(len(frame), 'model')} in {counted(frame['tree'].nunique(), 'tree')}, of "
            f"{counted(len(self._db.storage.model_ids()), 'model')}. Related by the cosines of their layers; "
            "no basis is involved."
        )
        return plots.lineage(frame, title=title, ax=ax, style=style, caption=caption)

    def phenotypes(
        self,
        by: str = "domain",
        *,
        components: tuple[int, int] = (0, 1),
        where: str | None = None,
        recipe: str = "cvpr2022",
        kernel: str = "3x3",
        all_layers: bool = False,
        min_models: int = 1,
        min_filters: int = 1,
        title: str | None = None,
        ax: Axes | FigureBase | None = None,
        style: StyleName = "screen",
    ) -> MatplotlibFigure:
        """The joint density of two coefficients for each group, on a logarithmic scale.

        It projects every selected filter, so it takes seconds for millions of filters.

        Args:
            by: Grouping expression.
            components: Numbers of the two components.
            where: Condition that narrows the rows.
            recipe: Range of both coefficients, as in one of the papers.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers.
            min_models: Leave out groups of fewer models.
            min_filters: Leave out groups of fewer filters.
            title: Title of the figure.
            ax: Where to draw; by default on a new figure.
            style: ``screen`` or ``paper``.

        Raises:
            SelectionError: An expression that cannot be answered, no such component, or nothing selected.

        >>> figure = db.plot.phenotypes("domain")
        >>> figure.savefig("phenotypes.png")
        """
        height, width = kernel_shape(kernel)
        for component in components:
            if not 0 <= component < height * width:
                raise SelectionError(
                    f"components: {kernel} filters have components 0 to {height * width - 1}, found {component}"
                )
        groups = self._db.groups(
            by, where=where, recipe=recipe, kernel=kernel, all_layers=all_layers, min_models=min_models,
            min_filters=min_filters,
        )  # fmt: skip
        counts = cells_of(self._db, groups, components, _CELLS)
        options: GroupOptions = {"where": where, "kernel": kernel, "all_layers": all_layers,
                                 "min_models": min_models, "min_filters": min_filters}  # fmt: skip
        first, second = components
        what = f"Coefficients c{first} and c{second} of {counted(len(groups.labels), 'group')} by {by}"
        caption = self._caption(what, by, options, coefficients_text(groups))
        return plots.phenotypes(
            counts, groups.low, groups.high, groups.labels, components=components, title=title, ax=ax, style=style,
            caption=caption,
        )  # fmt: skip

    def _caption(
        self, what: str, by: str, options: GroupOptions, method: str, counts: Mapping[str, Any] | None = None
    ) -> str:
        """The caption of a figure of groups of filters; the counts are those of a coverage."""
        found = counts or self._db._coverage(by, options)
        return str(
            Caption(
                what=what, models=found["used_models"], layers=found["used_layers"], filters=found["used_filters"],
                kernel=options.get("kernel", "3x3"), where=options.get("where"),
                all_layers=options.get("all_layers", False), method=method,
            )
        )  # fmt: skip
