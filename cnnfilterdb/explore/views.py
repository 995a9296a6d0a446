"""The views of the explorer: what each request asks the database, and the answer as plain values.

The numbers are those of the public methods; each answer says with which SQL, command line or Python to repeat it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.analysis import shifts
from cnnfilterdb.analysis.grouping import BALANCES
from cnnfilterdb.analysis.queries import condition
from cnnfilterdb.core import schema, sqltext
from cnnfilterdb.core.errors import CnnFilterDbError, SelectionError, unknown_model
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.rows import plain_rows
from cnnfilterdb.core.version import package_version
from cnnfilterdb.explore.equivalents import DEFAULTS, call, command, python
from cnnfilterdb.explore.jobs import CancelledError
from cnnfilterdb.explore.selection import COLUMNS, FACETS, Models, Selection
from cnnfilterdb.explore.statements import answer
from cnnfilterdb.explore.values import (
    densities,
    distinct,
    encoded_table,
    group_text,
    json_value,
    kind_of,
    packed,
    records,
    simple,
)
from cnnfilterdb.explore.vocabulary import macros, tables
from cnnfilterdb.explore.watched import WatchedReader

__all__ = ["MEDIA_TYPES", "Explorer"]

Request = Mapping[str, Any]

#: Groups that a ridge plot shows at most, and those whose components are compared.
_RIDGES = 60

#: Rows of a query that a page shows, and that a file contains.
_SHOWN, _WRITTEN = 10_000, 1_000_000

#: Kernels of a layer along each channel that one picture shows.
_SIDE = 512

#: Groupings that the page suggests.
_GROUPINGS = (
    "domain",
    "task",
    "family",
    "architecture",
    "training_dataset",
    "source",
    "license",
    "framework",
    "model_id",
    "kind",
    "floor(10 * conv_depth_norm)",
    "domain || ' / ' || task",
)

#: Media types of files that can be downloaded.
MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
}


class Explorer:
    """The views of one database.

    Args:
        db: The database.
        shown: How command lines name it: its location, or the options that name several.
    """

    def __init__(self, db: WatchedReader, shown: str | tuple[str, ...]) -> None:
        self._db = db
        self._shown = shown
        self._models = Models(db)
        self.views: dict[str, Callable[[Request], dict[str, Any] | bytes]] = {
            "start": self.start,
            "models": self.models,
            "groups": self.groups,
            "ridges": self.ridges,
            "pair": self.pair,
            "quality": self.quality,
            "map": self.map,
            "model": self.model,
            "related": self.related,
            "layer": self.layer,
            "coefficients": self.coefficients,
            "kernel": self.kernel,
            "nearest": self.nearest,
            "sql": self.sql,
        }

    def prepare(self) -> None:
        """Read what the first views need."""
        with contextlib.suppress(CnnFilterDbError):
            self._models.rows(Selection())
            self._db.groups("domain")
        import cnnfilterdb.plots  # noqa: F401 (matplotlib takes a second to load)

    # ------------------------------------------------------------------------------------------------- the views

    def start(self, request: Request) -> dict[str, Any]:
        """What the page needs to know of the database."""
        kernels = sorted(self._db.storage.kernels(), key=schema.kernel_order)
        described = {field.name: field.metadata[b"description"].decode() for field in (*schema.MODELS, *schema.LAYERS)}
        queries = json.loads(files(__package__).joinpath("queries.json").read_text(encoding="utf-8"))
        return {
            "database": self._shown if isinstance(self._shown, str) else self._db.location,
            "version": package_version(),
            "models": len(self._models.keys()),
            "kernels": kernels,
            "compared": [kernel for kernel in kernels if schema.indexable(kernel)],
            "groupings": ("part", *_GROUPINGS) if self._db.storage.composed else _GROUPINGS,
            "metrics": list(stats.METRICS),
            "recipes": list(RECIPES),
            "balances": BALANCES,
            "columns": described,
            "tables": tables(kernels),
            "macros": macros(self._db.storage.definitions().values()),
            "queries": queries,
            "rows": {"shown": _SHOWN, "written": _WRITTEN},
        }

    def models(self, request: Request) -> dict[str, Any]:
        """The selected models, and facets with counts."""
        selection = Selection.of(request.get("selection", {}))
        order, descending = _text(request, "order", "model_id"), request.get("descending") is True
        table, total = self._models.rows(
            selection, order=order, descending=descending, limit=_whole(request, "limit", 200, 10_000)
        )
        where = selection.condition()
        chosen = "models" if where is None else f"models WHERE {where}"
        if selection.where.strip():  # which may name columns of layers
            chosen = f"models SEMI JOIN (SELECT model_id FROM facts WHERE {where}) USING (model_id)"
        columns = ", ".join(COLUMNS)
        ordered = f"ORDER BY {order} {'DESC ' if descending else ''}NULLS LAST"
        return {
            "rows": list(plain_rows(table)),
            "total": total,
            "facets": self._models.facets(selection),
            "where": where,
            "sql": f"SELECT {columns} FROM {chosen} {ordered}",
            "command": command("models", db=self._shown, where=where),
        }

    def groups(self, request: Request) -> dict[str, Any]:
        """The shifts between groups, with their sizes, and what was left out."""
        by, metric, options = self._grouping(request)
        order = _text(request, "order", "mean")
        frame = self._db.kl_shift(by, metric=metric, **options)
        from cnnfilterdb.plots import ordered_groups

        places = ordered_groups(frame, None if order == "name" else order)  # type: ignore[arg-type]
        sizes = frame.attrs["groups"]
        labels = [frame.index[place] for place in places]
        narrowed = {name: options[name] for name in ("where", "kernel", "all_layers")}
        everything = self._db._table(call("group_sizes", by, **narrowed)).to_pylist()
        there = {group_text(label) for label in labels}
        macro = "kl_shift" if metric in ("kl", "directed") else "shift_metrics"
        column = "shift" if metric == "kl" else metric
        return {
            "labels": [group_text(label) for label in labels],
            "sizes": [{name: json_value(value) for name, value in sizes[label].items()} for label in labels],
            "matrix": packed(frame.to_numpy()[np.ix_(places, places)]),
            "excluded": [
                {**row, "group": group_text(row["group"])}
                for row in everything
                if group_text(row["group"]) not in there
            ],
            "coverage": frame.attrs["coverage"]["text"],
            "warnings": frame.attrs["coverage"]["warnings"],
            "method": {
                **{name: frame.attrs[name] for name in ("basis", "recipe", "balance", "bins")},
                "metric": metric,
                "range": list(frame.attrs["range"]),
            },
            "sql": f"SELECT group_a, group_b, {column} {call(macro, by, **options)}",
            "command": command("shift", by, db=self._shown, metric=metric, **options),
        }

    def ridges(self, request: Request) -> dict[str, Any]:
        """The distributions of the coefficients of groups."""
        by, _, options = self._grouping(request)
        groups = self._db.groups(by, **options)
        names = [group_text(label) for label in groups.labels]
        wanted = request.get("labels") or names
        places = [names.index(label) for label in wanted if label in names][:_RIDGES]
        return {
            **densities(groups.take(places)),
            "total": len(names),
            "sql": call("group_probabilities", by, **options),
            "command": command("plot ridge", db=self._shown, by=by, output="ridge.svg", **options),
        }

    def pair(self, request: Request) -> dict[str, Any]:
        """The shift between two groups, component by component."""
        by, metric, options = self._grouping(request)
        groups = self._db.groups(by, **options)
        names = [group_text(label) for label in groups.labels]
        wanted = [_text(request, "a", ""), _text(request, "b", "")]
        if missing := [label for label in wanted if label not in names]:
            raise SelectionError(f"no group {missing[0]!r} by {by} among those compared")
        two = groups.take([names.index(label) for label in wanted])
        found = shifts.components(two, None, metric)
        rows = found[(found["group_a"] == two.labels[0]) & (found["group_b"] == two.labels[1])]
        if wanted[0] == wanted[1]:
            rows = rows.head(len(groups.weights))
        ends = " AND ".join(
            f"CAST(group_{side} AS VARCHAR) = {sqltext.literal(label)}"
            for side, label in zip("ab", wanted, strict=True)
        )
        column = {"kl": "divergence, shift"}.get(metric, f"{metric}, weight * {metric} AS shift")
        return {
            "components": rows[["component", "divergence", "weight", "shift"]].to_dict("records"),
            "shift": float(rows["shift"].sum()),
            **densities(two),
            "sql": f"SELECT component, weight, {column} {call('kl_shift_components', by, **options)} WHERE {ends}",
            "command": command("shift", by, db=self._shown, components=True, metric=metric, **options),
        }

    def quality(self, request: Request) -> dict[str, Any]:
        """Quality of the layers of each group."""
        by, _, options = self._grouping(request)
        narrowed = {name: options[name] for name in ("where", "kernel", "all_layers")}
        frame = self._db.quality(by, **narrowed)
        rows = frame.reset_index(names="group")
        rows["group"] = [group_text(label) for label in rows["group"]]
        return {
            "rows": records(rows),
            "sql": call("filter_quality", by, **narrowed),
            "command": command("quality", by, db=self._shown, **narrowed),
        }

    def map(self, request: Request) -> dict[str, Any]:
        """The models in a plane, so that distances approach shifts."""
        _, metric, options = self._grouping(request)
        colour = _text(request, "colour", "domain")
        if colour not in schema.MODELS.names and colour != "size":
            raise SelectionError(f"colour: {colour!r} is not a column of the models")
        options.pop("min_models")
        alike = {**DEFAULTS, "balance": "models"}  # models are compared one by one
        frame = self._db.embed(metric=metric, **options)
        facts, _ = self._models.rows(Selection(), limit=1_000_000)
        columns = [colour] if colour in facts.column_names else []
        by = FACETS.get(colour, colour)
        extra = facts if columns else self._db._table(f"SELECT model_id, {by} AS {colour} FROM models")
        colours = dict(zip(extra["model_id"].to_pylist(), extra[colour].to_pylist(), strict=True))
        return {
            "models": frame.index.tolist(),
            "x": frame["x0"].tolist(),
            "y": frame["x1"].tolist(),
            "colour": [simple(colours.get(key)) for key in frame.index],
            "explained": frame.attrs["explained"],
            "negative": float(frame.attrs["negative"]),
            "sql": f"SELECT group_a, group_b, {'shift' if metric == 'kl' else metric} "
            + call("kl_shift" if metric == "kl" else "shift_metrics", "model_id", **options),
            "python": python("embed", defaults=alike, metric=metric, **options),
            "command": command("plot map", db=self._shown, defaults=alike, by=by, metric=metric, **options),
        }

    def model(self, request: Request) -> dict[str, Any]:
        """Everything about one model."""
        key = self._key(request)
        here = f"model_id = {sqltext.literal(key)}"
        facts = self._db._table(f"SELECT * EXCLUDE (files) FROM models WHERE {here}")
        lists = ("raw_mean", "raw_variance", "scaled_mean", "scaled_scatter", "nonsparse_mean", "nonsparse_scatter")
        layers = self._db._table(f"SELECT * EXCLUDE ({', '.join(lists)}) FROM layers WHERE {here} ORDER BY layer")
        rows = list(plain_rows(layers))
        stored: dict[str, int] = {}
        for row in rows:
            if row["stored"] and schema.indexable(row["kernel"]):
                stored[row["kernel"]] = stored.get(row["kernel"], 0) + row["filters"]
        kernel = max(stored, key=lambda size: stored[size]) if stored else "3x3"
        near, reason = [], ""
        try:
            frame = self._db.nearest_groups("model_id", key, top=12, kernel=kernel)
            near = records(frame.reset_index(names="model_id"))
        except SelectionError as error:
            reason = str(error)
        shared = self._db._table(
            f"FROM shared_models WHERE model_a = {sqltext.literal(key)} OR model_b = {sqltext.literal(key)}"
        )
        nearest = call("nearest_groups", "model_id", top=12, kernel=kernel)
        return {
            "facts": next(iter(plain_rows(facts))),
            "layers": rows,
            "kernel": kernel,
            "nearest": near,
            "nearest_reason": reason,
            "shared": list(plain_rows(shared)),
            "sql": f"SELECT * FROM layers WHERE {here} ORDER BY layer;\n"
            + nearest.replace("(model_id,", f"(model_id, {sqltext.literal(key)},"),
            "command": command("layers", db=self._shown, where=here)
            + "\n"
            + command("shift", "model_id", db=self._shown, nearest=key, kernel=kernel),
        }

    def related(self, request: Request) -> dict[str, Any]:
        """The models that were trained from one, or from which it was."""
        key = sqltext.literal(self._key(request))
        query = f"FROM related_models WHERE model_a = {key} OR model_b = {key} ORDER BY cosine DESC"
        rows, reason = [], ""
        try:
            rows = list(plain_rows(answer(self._db, query, _SHOWN).table))
        except CancelledError:
            raise
        except CnnFilterDbError as error:  # a database that cannot be written to may lack what this needs
            reason = str(error)
        return {"rows": rows, "reason": reason, "sql": query, "command": command("sql", query, db=self._shown)}

    def layer(self, request: Request) -> bytes:
        """The weights of a layer: the length of a JSON header (4 bytes), the header, and float32 weights."""
        key, number = self._key(request), _whole(request, "layer", 0, 2**31)
        weight = self._db.layer_weights(key, number)
        outs, ins = (_whole(request, name, 0, 2**31) for name in ("out", "in"))
        part = weight[outs : outs + _SIDE, ins : ins + _SIDE]
        finite = weight[np.isfinite(weight)]
        row = self._db._table(
            "SELECT layer_name, kind, kernel, in_channels, out_channels, groups, stride_h, stride_w, conv_depth, "
            "conv_depth_norm, dtype, filters, sparsity, variance_entropy, randomness_threshold, orthogonality, levels "
            f"FROM layers WHERE model_id = {sqltext.literal(key)} AND layer = {number}"
        )
        here = f"model_id = {sqltext.literal(key)} AND layer = {number}"
        kernel = row["kernel"][0].as_py()
        header = {
            "layer": next(iter(plain_rows(row))),
            "whole": list(weight.shape),
            "shape": list(part.shape),
            "start": [outs, ins],
            "largest": float(np.abs(finite).max()) if finite.size else 0.0,
            "sql": f"FROM filters_{kernel} WHERE {here} ORDER BY out_channel, in_channel",
            "command": command("plot filters", db=self._shown, model=key, layer=number, scale="layer"),
        }
        text = json.dumps(header).encode()
        return len(text).to_bytes(4, "little") + text + np.ascontiguousarray(part, "<f4").tobytes()

    def coefficients(self, request: Request) -> dict[str, Any]:
        """The distributions of the coefficients of a layer, and of the layers of the same family."""
        key, number = self._key(request), _whole(request, "layer", 0, 2**31)
        here = f"model_id = {sqltext.literal(key)} AND layer = {number}"
        row = self._db._table(f"SELECT family, kernel FROM facts WHERE {here}").to_pylist()[0]
        family, kernel = row["family"], row["kernel"]
        others = f"family = {sqltext.literal(family)}" if family else "true"
        name = f"family {family}" if family else "all models"
        by = f"CASE WHEN {here} THEN 'this layer' ELSE {sqltext.literal(name)} END"
        options: dict[str, Any] = {"where": f"{others} OR ({here})", "kernel": kernel, "all_layers": True}
        groups = self._db.groups(by, **options)
        places = sorted(range(len(groups.labels)), key=lambda place: groups.labels[place] != "this layer")
        return {**densities(groups.take(places)), "sql": call("group_probabilities", by, **options)}

    def kernel(self, request: Request) -> dict[str, Any]:
        """One kernel and its coefficients."""
        key, number, channels, pattern = self._pattern(request)
        kernel = schema.kernel_name(*pattern.shape)
        outs, ins = (_whole(request, name, 0, 2**31) for name in ("out", "in"))
        projected, reason = [], ""
        if schema.indexable(kernel):
            try:
                projected = self._db.basis(kernel=kernel).project(pattern.reshape(1, -1))[0].tolist()
            except SelectionError as error:
                reason = str(error)
        here = f"model_id = {sqltext.literal(key)} AND layer = {number}"
        where = Selection.of(request.get("selection", {})).condition()
        searched = self._db._table(
            f"SELECT CAST(coalesce(sum(filters), 0) AS BIGINT) AS n FROM facts WHERE stored "
            f"AND kernel = {sqltext.literal(kernel)} AND {condition(where)}"
        )
        return {
            "searched": searched["n"][0].as_py(),
            "shape": list(pattern.shape),
            "weights": pattern.ravel().tolist(),
            "channels": channels,
            "coefficients": projected,
            "coefficients_reason": reason,
            "sql": f"FROM filters_{kernel} WHERE {here} AND out_channel = {outs} AND in_channel = {ins}",
        }

    def nearest(self, request: Request) -> dict[str, Any]:
        """The kernels most similar to one: a scan over all of its size, of seconds for tens of millions."""
        _, _, _, pattern = self._pattern(request)
        kernel = schema.kernel_name(*pattern.shape)
        flags: dict[str, Any] = {name: True for name in ("sign", "centred", "rotation") if request.get(name) is True}
        where = Selection.of(request.get("selection", {})).condition()
        near, reason = [], ""
        try:
            frame = self._db.nearest(pattern, top=25, where=where, **flags)
            columns = schema.weight_columns(kernel)
            weights = frame[columns].to_numpy().round(6).tolist()
            near = [
                {**row, "weights": values}
                for row, values in zip(records(frame.drop(columns=columns)), weights, strict=True)
            ]
        except SelectionError as error:
            reason = str(error)
        numbers = [str(value) for value in pattern.ravel()]
        width = pattern.shape[1]
        typed = "; ".join(" ".join(numbers[i : i + width]) for i in range(0, len(numbers), width))
        macro = call(f"nearest_{kernel}", top=25, where=where, **{k: v for k, v in flags.items() if k != "rotation"})
        pattern_sql = f"[{', '.join(numbers)}]"
        return {
            "nearest": near,
            "nearest_reason": reason,
            "sql": macro.replace("(", f"({pattern_sql}, ", 1) if "rotation" not in flags else None,
            "command": command("nearest", typed, db=self._shown, top=25, where=where, **flags),
        }

    def _pattern(self, request: Request) -> tuple[str, int, list[int], npt.NDArray[np.float32]]:
        """The model, layer and number of channels of a kernel, and its weights."""
        key, number = self._key(request), _whole(request, "layer", 0, 2**31)
        weight = self._db.layer_weights(key, number)
        outs, ins = _whole(request, "out", 0, weight.shape[0] - 1), _whole(request, "in", 0, weight.shape[1] - 1)
        return key, number, list(weight.shape[:2]), weight[outs, ins]

    def sql(self, request: Request) -> dict[str, Any]:
        """The rows of a query."""
        query = _text(request, "query", "")
        found = answer(self._db, query, _whole(request, "rows", 1000, _SHOWN))
        names = distinct(found.table.column_names)
        kinds = [kind_of(kind) for kind in found.table.schema.types]
        rows = plain_rows(found.table.rename_columns(names))
        return {
            "columns": [{"name": name, "type": kind} for name, kind in zip(names, kinds, strict=True)],
            "rows": [list(row.values()) for row in rows],
            "more": found.more,
            "command": command("sql", query, db=self._shown),
        }

    # ------------------------------------------------------------------------------------------------- files

    def file(self, request: Request) -> tuple[bytes, str]:
        """A file to download, and its name: rows as CSV or Parquet, or a figure as PNG, SVG or PDF.

        Raises:
            SelectionError: An unknown kind or format, or more rows than a file may have.
        """
        kind, style = _text(request, "kind", ""), _text(request, "format", "")
        if kind == "sql" and style in ("csv", "parquet"):
            found = answer(self._db, _text(request, "query", ""), _WRITTEN)
            if found.more:
                raise SelectionError(
                    f"more than {_WRITTEN:,} rows; write them with `cnnfilterdb sql ... -o FILE`, which has no limit"
                )
            table = found.table.rename_columns(distinct(found.table.column_names))
            return encoded_table(table, style), f"query.{style}"
        if kind == "models" and style in ("csv", "parquet"):
            table, _ = self._models.rows(Selection.of(request.get("selection", {})), limit=_WRITTEN)
            return encoded_table(table, style), f"models.{style}"
        by, metric, options = self._grouping(request)
        narrowed = {name: options[name] for name in ("where", "kernel", "all_layers")}
        if style in ("csv", "parquet") and kind in ("shift", "quality"):
            if kind == "shift":
                frame = self._db.kl_shift(by, metric=metric, **options)
                frame = frame.rename_axis(columns=None).rename(columns=str)
            else:
                frame = self._db.quality(by, **narrowed)
            frame.insert(0, by if by not in frame.columns else "group", frame.index)
            return encoded_table(pa.Table.from_pandas(frame, preserve_index=False), style), f"{kind}.{style}"
        if style in ("pdf", "png", "svg") and kind in ("shift", "ridge", "quality"):
            from cnnfilterdb.plots.figures import Figures

            plot = Figures(self._db)
            if kind == "shift":
                figure = plot.kl_shift(by, metric=metric, **options)
            elif kind == "ridge":
                figure = plot.ridge(by, **options)
            else:
                figure = plot.quality(by, **narrowed)
            target = BytesIO()
            figure.savefig(target, format=style, dpi=150)
            return target.getvalue(), f"{kind}.{style}"
        raise SelectionError(f"no file {kind!r} in format {style!r}")

    # ------------------------------------------------------------------------------------------------- requests

    def _grouping(self, request: Request) -> tuple[str, str, dict[str, Any]]:
        """The grouping of a request: ``by``, the metric, and the options of :meth:`Reader.groups`."""
        options = {
            "where": Selection.of(request.get("selection", {})).condition(),
            "kernel": _text(request, "kernel", "3x3"),
            "recipe": _text(request, "recipe", "cvpr2022"),
            "balance": _text(request, "balance", "filters"),
            "min_models": _whole(request, "min_models", 1, 10**9) or 1,
            "min_filters": _whole(request, "min_filters", 1, 10**12) or 1,
            "all_layers": request.get("all_layers") is True,
        }
        return _text(request, "by", "domain"), _text(request, "metric", "kl"), options

    def _key(self, request: Request) -> str:
        key, there = _text(request, "model", ""), self._models.keys()
        if key not in there:
            raise unknown_model(key, there, self._db.location)
        return key


def _text(request: Request, name: str, default: str) -> str:
    value = request.get(name, default)
    if not isinstance(value, str):
        raise SelectionError(f"{name}: {value!r} given; expected a text")
    return value


def _whole(request: Request, name: str, default: int, largest: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise SelectionError(f"{name}: {value!r} given; expected a whole number from 0 to {largest:,}")
    return value
