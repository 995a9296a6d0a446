"""What ``db.plot`` and ``db.report`` are: figures drawn from a database.

The pictures themselves know nothing of databases (:mod:`cnnfilterdb.plots`); here the data is fetched for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cnnfilterdb import plots
from cnnfilterdb.analysis import groups as groupings
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.analysis.groups import Grouping, Groups
from cnnfilterdb.errors import CnnFilterDbError, SelectionError
from cnnfilterdb.schema import kernel_shape
from cnnfilterdb.sql import literal
from cnnfilterdb.stats import Basis, kl_shift, variance_map
from cnnfilterdb.store.durable import write_text, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from cnnfilterdb.reader import Reader

__all__ = ["Figures"]


class Figures:
    """The papers' figures of one database. Each method returns a matplotlib figure.

    Args:
        db: The database.

    ``by``, ``where`` and the further arguments are those of :meth:`Reader.kl_shift`.
    """

    def __init__(self, db: Reader) -> None:
        self._db = db

    def kl_shift(
        self, by: str = "domain", *, where: str | None = None, order: Any = "mean", **options: Any
    ) -> MatplotlibFigure:
        """The matrix of shifts as a heat map, sorted by ascending column mean (the CVPR paper's Fig. 3)."""
        matrix = self._db.kl_shift(by, where=where, **options)
        sizes = pd.DataFrame.from_dict(matrix.attrs["groups"], orient="index")
        return plots.heatmap(matrix, order=order, counts=sizes)

    def ridge(
        self, by: str = "domain", *, where: str | None = None, xlim: Any = "auto", **options: Any
    ) -> MatplotlibFigure:
        """Distributions of the coefficients, one row per group and one column per component (the papers' Fig. 1)."""
        groups = self._db.groups(by, where=where, **options)
        return plots.ridge(
            groups.counts,
            groups.low,
            groups.high,
            groups.labels,
            filters=groups.filters,
            explained_variance_ratio=groups.basis.explained_variance_ratio,
            xlim=xlim,
        )

    def eigenfilters(
        self, *, by: str | None = None, where: str | None = None, kernel: str = "3x3", all_layers: bool = False
    ) -> MatplotlibFigure:
        """The components of a basis fitted on each group, with their explained variance ratios.

        Without ``by`` it is one basis: that of the index, or of what ``where`` selects.
        """
        if by is None:
            return plots.eigenfilters({where or "all": self._db.basis(where=where, kernel=kernel)})
        return plots.eigenfilters(self._bases(by, where, kernel, all_layers))

    def filters(
        self, model_id: str, *, layer: int = 0, top: int = 256, scale: Any = "filter", columns: int | None = None
    ) -> MatplotlibFigure:
        """The kernels of one layer.

        Args:
            model_id: Key of the model.
            layer: Order of the layer.
            top: How many at most.
            scale: Colour range of each ``filter``, or of the whole ``layer`` (the CVPR paper's Fig. 1).
            columns: Kernels per row.

        Raises:
            SelectionError: No such layer, or its kernels are not stored.
        """
        where = f"model_id = {literal(model_id)} AND layer = {int(layer)}"
        rows = self._db.layers(where=where)
        if rows.empty:
            raise SelectionError(f"no layer {layer} of {model_id!r}; db.layers() lists what there is")
        row = rows.iloc[0]
        if not row.stored:
            raise SelectionError(
                f"layer {layer} of {model_id} ({row['layer_name']}) has {row.kernel} kernels, which are not stored"
            )
        frame = self._db.filters(where=where, kernel=row.kernel)
        kernels = frame.filter(regex=r"^w\d+$").to_numpy(np.float32).reshape(-1, *kernel_shape(row.kernel))
        title = f"{model_id}, layer {layer} ({row['layer_name']})"
        return plots.filter_grid(kernels, title=title, limit=top, scale=scale, columns=columns)

    def quality(self, by: str = "domain", *, where: str | None = None, kernel: str = "3x3") -> MatplotlibFigure:
        """Sparsity, normalised variance entropy and orthogonality of the layers of each group."""
        return plots.quality(self._layers(by, where, kernel), by=by)

    def variance(
        self,
        by: str = "domain",
        *,
        where: str | None = None,
        kernel: str | Sequence[str] | None = None,
        all_layers: bool = False,
    ) -> MatplotlibFigure:
        """Where in a kernel the weights vary, for each group and kernel size (The Power of Linear Combinations).

        Args:
            by: Grouping expression.
            where: Condition that narrows the rows.
            kernel: One kernel size or several; without it all that are at least three weights high and wide.
            all_layers: Take in transposed and dead layers.
        """
        kernels = [kernel] if isinstance(kernel, str) else kernel
        chosen = (
            "kernel_h >= 3 AND kernel_w >= 3"
            if kernels is None
            else f"kernel IN ({', '.join(literal(size) for size in kernels)})"
        )
        condition = f"AND ({where})" if where else ""
        papers = "" if all_layers else "AND papers_layer"
        frame = self._db._frame(
            f'SELECT ({by}) AS "group", kernel, filters, raw_mean, raw_variance FROM facts '
            f'WHERE stored AND raw_mean IS NOT NULL AND {chosen} {condition} {papers} AND "group" IS NOT NULL '
            "ORDER BY ALL"
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
        return plots.variance(maps)

    def _layers(self, by: str, where: str | None, kernel: str) -> pd.DataFrame:
        keep = f"AND ({where})" if where else ""
        query = (
            f'SELECT ({by}) AS "group", sparsity, variance_entropy, randomness_threshold, orthogonality FROM facts '
            f'WHERE stored AND kernel = {literal(kernel)} AND "group" IS NOT NULL {keep}'
        )
        frame = self._db._frame(query).rename(columns={"group": by})
        if frame.empty:
            raise groupings.empty(Grouping(by, where, kernel))
        return frame

    def _bases(self, by: str, where: str | None, kernel: str, all_layers: bool) -> dict[Any, Basis]:
        rows = groupings.selection(self._db._connect(), Grouping(by, where, kernel, all_layers=all_layers))
        labels = np.asarray(rows["group"].to_pylist(), dtype=object)
        bases = {}
        for label in sorted(set(labels.tolist())):
            moments = moments_of(rows.filter(labels == label), kernel)
            if moments.count > 1:
                bases[label] = Basis.fit(moments, kernel)
        return bases


def write_report(db: Reader, path: Path, by: str, kernel: str) -> Path:
    """Write the report page; see :meth:`Reader.report`."""
    groups = db.groups(by, kernel=kernel)
    page = plots.report(report_data(db, groups))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def report_data(db: Reader, groups: Groups) -> plots.ReportData:
    """Collect what the report of a database shows."""
    by, kernel = groups.grouping.by, groups.grouping.kernel
    labels = pd.Index(groups.labels, name=by)
    shift = pd.DataFrame(kl_shift(groups.counts, groups.weights, groups.low, groups.high), index=labels, columns=labels)
    licences = db._frame(
        f"SELECT ({by}) AS \"group\", string_agg(DISTINCT coalesce(license, 'unknown'), ', ' "
        "ORDER BY coalesce(license, 'unknown')) AS licenses FROM facts WHERE \"group\" IS NOT NULL GROUP BY ALL"
    ).set_index("group")
    sparsity = db._frame(
        "SELECT model_id, sum(sparsity * filters) / sum(filters) AS sparsity FROM layers WHERE stored GROUP BY ALL"
    )
    fitted = next((basis for basis in db.bases() if basis.basis_id == groups.basis_id), None)
    try:
        bases: dict[Any, Basis] = db.plot._bases(by, None, kernel, groups.grouping.all_layers)
    except CnnFilterDbError:
        bases = {}
    return plots.ReportData(
        title=Path(db.location).name,
        # Listed by their keys: two sources may have a model of the same name.
        models=db.models().drop(columns="name").merge(sparsity, how="left", on="model_id"),
        by=by,
        kernel=kernel,
        groups=groups.sizes().join(licences),
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
        layers=db.plot._layers(by, None, kernel),
        method=plots.Method(
            recipe=groups.grouping.recipe,
            basis_id=groups.basis_id or "",
            basis_models=len(fitted.models) if fitted else 0,
            basis_filters=groups.basis.filters,
            bins=groups.counts.shape[2],
            low=groups.low,
            high=groups.high,
            weights="explained variance ratio",
            filters=int(groups.filters.sum()),
            outside=int(groups.outside.sum()),
            balance=groups.grouping.balance,
            versions={name: version(name) for name in ("cnnfilterdb", "duckdb", "numpy", "pyarrow")},
        ),
    )
