"""Implements ``db.plot`` and ``db.report``: passes the data of a database to the functions that draw.

The drawing functions (:mod:`cnnfilterdb.plots`) know nothing of databases. From a :class:`~cnnfilterdb.reader.Reader`
this module uses its public methods and one internal, ``_connect()``: the DuckDB connection that has the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import pandas as pd

from cnnfilterdb import plots
from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.analysis.groups import Grouping
from cnnfilterdb.analysis.options import GroupOptions, ShiftOptions
from cnnfilterdb.analysis.queries import condition, expression, run
from cnnfilterdb.analysis.significance import model_shifts
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.errors import CnnFilterDbError, SelectionError, unknown_model
from cnnfilterdb.sql import literal
from cnnfilterdb.stats import RECIPES, Basis, variance_map
from cnnfilterdb.store.durable import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from cnnfilterdb.questions.conclusions import Conclusions
    from cnnfilterdb.questions.statistics import Statistics

__all__ = ["Figures"]

#: Cells per component in the figure of two components.
_CELLS = 70


class Figures:
    """The papers' figures of one database. Each method returns a matplotlib figure.

    Args:
        db: The database.

    ``by``, ``where`` and the other options are those of :meth:`Reader.kl_shift`.
    """

    def __init__(self, db: Conclusions) -> None:
        self._db = db

    def kl_shift(
        self,
        by: str = "domain",
        *,
        order: Literal["mean", "cluster"] | None = "mean",
        title: str | None = None,
        **options: Unpack[ShiftOptions],
    ) -> MatplotlibFigure:
        """The matrix of shifts as a heat map.

        Args:
            by: Grouping expression.
            order: ``mean`` sorts by ascending column mean (the CVPR paper's Fig. 3), ``cluster`` puts similar groups
                side by side, None keeps the order.
            title: Title of the figure.
            **options: Those of :meth:`Reader.kl_shift`.

        >>> figure = db.plot.kl_shift("name")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['photos-large', 'photos-small', 'scans']
        """
        matrix = self._db.kl_shift(by, **options)
        sizes = pd.DataFrame.from_dict(matrix.attrs["groups"], orient="index")
        label = plots.METRIC_LABELS[options.get("metric", "kl")]
        return plots.heatmap(matrix, order=order, counts=sizes, title=title, label=label)

    def ridge(
        self,
        by: str = "domain",
        *,
        xlim: tuple[float, float] | Literal["auto", "full"] = "auto",
        title: str | None = None,
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """Distributions of the coefficients: one row per group and one column per component (the papers' Fig. 1).

        Args:
            by: Grouping expression.
            xlim: Range of the x axis; see :func:`cnnfilterdb.plots.ridge`.
            title: Title of the figure.
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
        )

    def eigenfilters(
        self,
        *,
        by: str | None = None,
        where: str | None = None,
        kernel: str = "3x3",
        all_layers: bool = False,
        title: str | None = None,
    ) -> MatplotlibFigure:
        """The components of a basis fitted on each group, with their explained variance ratios.

        Args:
            by: Grouping expression; by default one basis: that of the index, or of what ``where`` selects.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers.
            title: Title of the figure.

        >>> figure = db.plot.eigenfilters(by="domain")
        >>> figure.savefig("eigenfilters.pdf")
        """
        if by is None:
            fitted = self._db.basis(where=where, kernel=kernel)
            return plots.eigenfilters({where or "all": fitted}, title=title)
        return plots.eigenfilters(_bases(self._db, by, where, kernel, all_layers), title=title)

    def filters(
        self,
        model_id: str,
        *,
        layer: int = 0,
        top: int = 256,
        scale: Literal["filter", "layer"] = "filter",
        columns: int | None = None,
        title: str | None = None,
    ) -> MatplotlibFigure:
        """The kernels of one layer.

        Args:
            model_id: Key of the model.
            layer: Order of the layer.
            top: Largest number of kernels to draw.
            scale: Colour range of each ``filter``, or of the whole ``layer`` (the CVPR paper's Fig. 1).
            columns: Kernels per row.
            title: Title of the figure; by default the key of the model.

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
        )

    def quality(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str = "3x3",
        all_layers: bool = False,
        title: str | None = None,
    ) -> MatplotlibFigure:
        """Sparsity, normalised variance entropy and orthogonality of the layers of each group.

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers, as :meth:`Reader.quality` does.
            title: Title of the figure.

        >>> figure = db.plot.quality("domain")
        >>> figure.savefig("quality.svg")
        """
        return plots.quality(_layers(self._db, by, where, kernel, all_layers), by=by, title=title)

    def variance(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str | Sequence[str] | None = None,
        all_layers: bool = False,
        title: str | None = None,
    ) -> MatplotlibFigure:
        """Where in a kernel the weights vary, for each group and kernel size (The Power of Linear Combinations).

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: One kernel size or several; by default all that are at least three weights high and wide.
            all_layers: Include transposed and dead layers.
            title: Title of the figure.

        >>> figure = db.plot.variance("domain", kernel=["3x3", "5x5"])
        >>> figure.savefig("variance.png")
        """
        kernels = [kernel] if isinstance(kernel, str) else kernel
        chosen = (
            "kernel_h >= 3 AND kernel_w >= 3"
            if kernels is None
            else f"kernel IN ({', '.join(literal(size) for size in kernels)})"
        )
        papers = "" if all_layers else "AND papers_layer"
        frame = _frame(
            self._db,
            f'SELECT {expression(by, "by")} AS "group", kernel, filters, raw_mean, raw_variance FROM facts '
            f"WHERE stored AND raw_mean IS NOT NULL AND {chosen} AND {condition(where)} {papers} "
            'AND "group" IS NOT NULL ORDER BY ALL',
        )
        maps: dict[Any, dict[str, tuple[Any, int]]] = {}
        for (label, size), rows in frame.groupby(["group", "kernel"]):
            values = variance_map(
                rows["filters"].to_numpy(), np.stack(list(rows["raw_mean"])), np.stack(list(rows["raw_variance"]))
            )
            if np.isfinite(values).all():
                maps.setdefault(label, {})[str(size)] = (values, int(rows["filters"].sum()))
        if not maps:
            raise groupings.empty(Grouping(by, where, ", ".join(kernels) if kernels else "spatial"))
        return plots.variance(maps, title=title)

    def map(
        self,
        by: str = "domain",
        *,
        metric: str = "kl",
        title: str | None = None,
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """The models as points whose distances approach the shifts between them, coloured by group.

        Args:
            by: Expression with one value per model.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            title: Title of the figure.
            **options: Those of :meth:`Reader.embed`.

        >>> figure = db.plot.map("domain")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['natural (2)', 'medical ct (1)']
        """
        placed = self._db.embed(by=by, metric=metric, **options)
        explained = placed.attrs["explained"]
        return plots.model_map(placed[["x0", "x1"]], placed[by].tolist(), explained=explained, title=title)

    def spread(
        self,
        by: str = "domain",
        *,
        metric: str = "kl",
        title: str | None = None,
        **options: Unpack[GroupOptions],
    ) -> MatplotlibFigure:
        """The shifts between the models of each group, beside those to all other models.

        Args:
            by: Expression with one value per model.
            metric: A symmetric metric of :meth:`Reader.kl_shift`.
            title: Title of the figure.
            **options: Those of :meth:`Reader.groups`; ``balance`` is ``models`` by default.

        >>> figure = db.plot.spread("domain")
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['natural', 'medical ct']
        """
        data = self._db._labelled("spread", (by,), options, metric, None, by)
        shifts = model_shifts(data, None, metric)
        return plots.spread(shifts, data.labels[by], label=plots.METRIC_LABELS[metric], title=title)

    def phenotypes(
        self,
        by: str = "domain",
        *,
        components: tuple[int, int] = (0, 1),
        where: str | None = None,
        kernel: str = "3x3",
        all_layers: bool = False,
        title: str | None = None,
    ) -> MatplotlibFigure:
        """The joint density of two coefficients for each group, on a logarithmic scale.

        It projects every selected filter, so it takes seconds for millions of filters.

        Args:
            by: Grouping expression.
            components: Numbers of the two components.
            where: Condition that narrows the rows.
            kernel: Kernel size.
            all_layers: Include transposed and dead layers.
            title: Title of the figure.

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
        groups = self._db.groups(by, where=where, kernel=kernel, all_layers=all_layers)
        low, high = groups.low, groups.high
        cells = [f"CAST(floor((c{number} - {low!r}) / {(high - low) / _CELLS!r}) AS INTEGER)" for number in components]
        papers = "" if all_layers else "AND papers_layer"
        rows = _frame(
            self._db,
            f'WITH grouped AS (SELECT model_id, layer, {expression(by, "by")} AS "group" FROM facts WHERE stored '
            f"AND kernel = {literal(kernel)} AND {condition(where)} {papers}) "
            f'SELECT "group", {cells[0]} AS x, {cells[1]} AS y, count(*) AS filters '
            f'FROM coefficients_{kernel} JOIN grouped USING (model_id, layer) WHERE "group" IS NOT NULL GROUP BY ALL',
        )
        place = {label: number for number, label in enumerate(groups.labels)}
        rows = rows[rows["x"].between(0, _CELLS - 1) & rows["y"].between(0, _CELLS - 1) & rows["group"].isin(place)]
        counts = np.zeros((len(groups.labels), _CELLS, _CELLS))
        counts[rows["group"].map(place).to_numpy(dtype=int), rows["x"], rows["y"]] = rows["filters"]
        return plots.phenotypes(counts, low, high, groups.labels, components=components, title=title)


def _frame(db: Statistics, query: str) -> pd.DataFrame:
    frame: pd.DataFrame = run(db._connect(query), query).to_pandas()
    return frame


def _layers(db: Statistics, by: str, where: str | None, kernel: str, all_layers: bool) -> pd.DataFrame:
    """The measures of the layers of each group, one row per layer; the layers are those of :meth:`Reader.quality`."""
    papers = "" if all_layers else "AND papers_layer"
    frame = _frame(
        db,
        f'SELECT {expression(by, "by")} AS "group", sparsity, variance_entropy, randomness_threshold, orthogonality '
        f"FROM facts WHERE stored AND kernel = {literal(kernel)} AND {condition(where)} {papers} "
        'AND "group" IS NOT NULL',
    ).rename(columns={"group": by})
    if frame.empty:
        raise groupings.empty(Grouping(by, where, kernel))
    return frame


def _bases(db: Statistics, by: str, where: str | None, kernel: str, all_layers: bool) -> dict[Any, Basis]:
    """A basis fitted on each group of at least two filters."""
    rows = groupings.selection(db._connect("facts"), Grouping(by, where, kernel, all_layers=all_layers))
    db._require_moments(rows)
    labels = np.asarray(rows["group"].to_pylist(), dtype=object)
    bases = {}
    for label in sorted(set(labels.tolist())):
        moments = moments_of(rows.filter(labels == label), kernel)
        if moments.count > 1:
            bases[label] = Basis.fit(moments, kernel)
    return bases


#: The groupings between which the reader of a report can switch: name -> expression.
_GROUPINGS = {
    "domain": "domain",
    "task": "task",
    "family": "family",
    "depth": "floor(10 * conv_depth_norm) / 10",
}


def write_report(
    db: Statistics, path: Path, by: str, title: str | None, command: str | None, options: ShiftOptions
) -> Path:
    """Write the report page; see :meth:`Reader.report`."""
    data = report_data(db, by, title, options, command=command, created_at=datetime.now(UTC).replace(microsecond=0))
    write_text(path, plots.report(data))
    return path


def report_data(
    db: Statistics,
    by: str,
    title: str | None,
    options: ShiftOptions,
    *,
    command: str | None = None,
    created_at: datetime | None = None,
) -> plots.ReportData:
    """Collect the data of a report.

    Args:
        db: The database.
        by: Grouping expression of the grouping shown first; domain, task, family and depth follow where they divide
            the models into at least two groups.
        title: Heading of the page; None for the name of the database.
        options: Those of :meth:`Reader.kl_shift`.
        command: The command that writes the page again.
        created_at: Time of creation; None leaves it out.
    """
    where = options.get("where")
    sparsity = _frame(
        db, "SELECT model_id, sum(sparsity * filters) / sum(filters) AS sparsity FROM layers WHERE stored GROUP BY ALL"
    )
    groupings = [_grouping_data(db, by, _name(by), options)]
    for name, expression_ in _GROUPINGS.items():
        if by not in (name, expression_):
            try:
                found = _grouping_data(db, expression_, name, options)
            except SelectionError:  # no model has such a fact, or the groups are smaller than the options ask for
                continue
            if found.shift is not None and len(found.shift) > 1:
                groupings.append(found)
    return plots.ReportData(
        title=title or Path(db.location).name,
        # Listed by their keys: two sources may have a model of the same name.
        models=db.models(where=where).drop(columns="name").merge(sparsity, how="left", on="model_id"),
        groupings=groupings,
        kernel=options.get("kernel", "3x3"),
        command=command,
        created_at=created_at,
    )


def _name(by: str) -> str:
    """What a report calls a grouping."""
    return next((name for name, known in _GROUPINGS.items() if by == known), by)


def _grouping_data(db: Statistics, by: str, name: str, options: ShiftOptions) -> plots.GroupingData:
    """What a report shows of one grouping."""
    where, kernel, all_layers = options.get("where"), options.get("kernel", "3x3"), options.get("all_layers", False)
    shift = db.kl_shift(by, **options)
    counted: Any = {name: value for name, value in options.items() if name in GroupOptions.__annotations__}
    groups = db.groups(by, **counted)
    fitted = next((basis for basis in db.bases() if basis.basis_id == groups.basis_id), None)
    compared = set(groups.labels)
    try:
        bases = {
            label: basis for label, basis in _bases(db, by, where, kernel, all_layers).items() if label in compared
        }
    except CnnFilterDbError:
        bases = {}
    layers = _layers(db, by, where, kernel, all_layers)
    uniform = RECIPES[groups.grouping.recipe].weights == "uniform"
    return plots.GroupingData(
        by=by,
        name=name,
        groups=_all_groups(db, by, where).join(groups.sizes()[["models", "layers", "filters"]].add_prefix("used_")),
        compared=groups.sizes(),
        shift=shift,
        coefficients=plots.Coefficients(
            counts=groups.counts,
            low=groups.low,
            high=groups.high,
            labels=groups.labels,
            filters=groups.filters,
            explained_variance_ratio=groups.basis.explained_variance_ratio,
        ),
        bases=bases,
        layers=layers[layers[by].isin(compared)],
        coverage=shift.attrs["coverage"],
        method=plots.Method(
            recipe=groups.grouping.recipe,
            metric=options.get("metric", "kl"),
            basis_id=groups.basis_id or "",
            basis_models=len(fitted.models) if fitted else 0,
            basis_filters=groups.basis.filters,
            bins=groups.counts.shape[2],
            low=groups.low,
            high=groups.high,
            weights=f"1/{len(groups.weights)} each" if uniform else "explained variance ratio",
            filters=int(groups.filters.sum()),
            outside=int(groups.outside.sum()),
            balance=groups.grouping.balance,
            versions={name: version(name) for name in ("cnnfilterdb", "duckdb", "numpy", "pyarrow")},
        ),
    )


def _all_groups(db: Statistics, by: str, where: str | None) -> pd.DataFrame:
    """Everything selected, of every kernel size, by group; the last row may be what has no group."""
    return _frame(
        db,
        f'SELECT {expression(by, "by")} AS "group", count(DISTINCT model_id) AS models, count(*) AS layers, '
        "CAST(coalesce(sum(filters) FILTER (stored), 0) AS BIGINT) AS filters, "
        "string_agg(DISTINCT coalesce(license, 'unknown'), ', ' ORDER BY coalesce(license, 'unknown')) AS licenses "
        f'FROM facts WHERE {condition(where)} GROUP BY "group" ORDER BY "group" NULLS LAST',
    ).set_index("group")
