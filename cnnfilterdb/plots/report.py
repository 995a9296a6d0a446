"""A database as one HTML page: what is in it, how its groups differ, and how the numbers were made."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure as MatplotlibFigure

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.plots.heatmap import METRIC_LABELS, heatmap, ordered_groups
from cnnfilterdb.plots.kernels import BasisLike, eigenfilters
from cnnfilterdb.plots.quality import quality
from cnnfilterdb.plots.ridge import ridge
from cnnfilterdb.plots.style import is_unknown, label_text, to_png
from cnnfilterdb.schema import kernel_shape

__all__ = ["Coefficients", "Method", "ReportData", "report"]

#: Number of pairs in the tables of the closest and the most distant groups.
_PAIRS = 8

#: Largest number of groups in a figure of the report; the tables show all.
_PICTURED = 40

#: Pixels of the page per inch of a figure, so that the smallest text of a figure is about 10 pixels high.
_PIXELS = 120

#: Columns of the table of models, with their headings. Those that the frame lacks are left out.
_MODEL_COLUMNS = {
    "architecture": "Architecture",
    "domain": "Domain",
    "task": "Task",
    "training_dataset": "Training data",
    "conv_layers": "Layers",
    "stored_filters": "Filters",
    "sparsity": "Sparsity",
    "license": "Licence",
}

_CITATIONS = (
    (
        "P. Gavrikov and J. Keuper. CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters. "
        "CVPR 2022, pp. 19066–19076.",
        "https://arxiv.org/abs/2203.15331",
        "arXiv:2203.15331",
    ),
    (
        "P. Gavrikov and J. Keuper. Does Medical Imaging learn different Convolution Filters? "
        "Medical Imaging meets NeurIPS, 2022.",
        "https://arxiv.org/abs/2210.13799",
        "arXiv:2210.13799",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How the shifts and the coefficients of a report were computed.

    Attributes:
        recipe: Name of the recipe.
        basis_id: Key of the basis; empty for one that was fitted for this report.
        basis_models: Models that the basis was fitted on; 0 if unknown.
        basis_filters: Filters that it was fitted on.
        bins: Bins of each histogram.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        weights: How components are weighted in the sum, in words: ``explained variance ratio``, ``1/9 each``.
        filters: Filters that were counted in the histograms.
        outside: Coefficient values that fell outside of the range and were not counted.
        balance: What has the same weight within a group, in words: ``filters``, ``models``.
        metric: How two groups were compared; a key of :data:`~cnnfilterdb.plots.METRIC_LABELS`.
        versions: Versions of the packages, by name.
    """

    recipe: str
    basis_id: str
    basis_models: int
    basis_filters: int
    bins: int
    low: float
    high: float
    weights: str
    filters: int
    outside: int
    balance: str = "filters"
    metric: str = "kl"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Histograms of coefficients by group, as :func:`~cnnfilterdb.plots.ridge` takes them.

    Attributes:
        counts: Shape (groups, components, bins).
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        labels: Names of the groups.
        filters: Filters per group; None for the number that was counted.
        explained_variance_ratio: Share of the variance per component of the basis; None if unknown.
    """

    counts: npt.NDArray[Any]
    low: float
    high: float
    labels: Sequence[object]
    filters: Sequence[float] | npt.NDArray[Any] | None = None
    explained_variance_ratio: Sequence[float] | npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What a report shows. Parts that are None or empty are left out.

    Attributes:
        title: Heading of the page.
        models: One row per model, columns as in the models table: ``name`` or ``model_id``, and any of architecture,
            domain, task, training_dataset, conv_layers, filters, sparsity, license, untrained.
        by: Column of ``models``, or expression, by which the models are grouped.
        description: A paragraph that says what this database is.
        kernel: Kernel size of the shifts, coefficients and bases.
        groups: One row per group, the group as index: any of the columns models, layers and filters (of all kernel
            sizes), used_models, used_layers and used_filters (those compared), licenses; by default counted from
            ``models`` where these have a column ``by``.
        compared: Models and filters of each group that was compared; by default those of ``groups``.
        shift: Symmetric matrix of shifts, groups x groups.
        coefficients: Histograms of the coefficients by group.
        bases: A basis by group.
        layers: One row per layer with the column ``by`` and the measures that :func:`~cnnfilterdb.plots.quality` needs.
        coverage: What was selected, what was compared, and why the rest was not: the attributes of
            :class:`~cnnfilterdb.analysis.coverage.Coverage`.
        method: How the numbers were computed.
        created_at: Time of creation; without it the page has no date.
    """

    title: str
    models: pd.DataFrame
    by: str = "domain"
    description: str | None = None
    kernel: str = "3x3"
    groups: pd.DataFrame | None = None
    compared: pd.DataFrame | None = None
    shift: pd.DataFrame | None = None
    coefficients: Coefficients | None = None
    bases: Mapping[Any, BasisLike] = field(default_factory=dict)
    layers: pd.DataFrame | None = None
    coverage: Mapping[str, Any] | None = None
    method: Method | None = None
    created_at: datetime | None = None


def report(data: ReportData) -> str:
    """Write a database as one self-contained HTML page.

    Pictures are embedded, styles are inline, there is no script, and nothing is loaded from anywhere. The same data
    gives the same page.

    Args:
        data: What to show.

    Returns:
        The page.

    Raises:
        SelectionError: There are no models, or the data cannot be drawn.
    """
    if data.models.empty:
        raise SelectionError("models: expected at least one model to report on, found none; ingest or add one first")
    groups = _groups(data)
    sections = [
        _section("groups", f"Models by {data.by}", _group_table(groups, data) if groups is not None else ""),
        _section("shift", "How far the groups are apart", _shift(data, groups)),
        _section("coefficients", "Distributions of coefficients", _coefficients(data)),
        _section("bases", "Eigenfilters", _bases(data)),
        _section("quality", "Quality of the layers", _quality(data)),
        _section("models", "Models", _models(data.models)),
        _section("method", "How these numbers were computed", _method(data)),
        _section("cite", "How to cite, and licences", _cite(data.models)),
    ]
    shown = [section for section in sections if section is not None]
    template = Template(files("cnnfilterdb.plots").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_escape(data.title),
        introduction=_introduction(data),
        tiles=_tiles(data, groups),
        navigation="\n".join(f'<a href="#{key}">{_escape(heading)}</a>' for key, heading, _ in shown),
        sections="\n".join(
            f'<section id="{key}">\n<h2>{_escape(heading)}</h2>\n{body}\n</section>' for key, heading, body in shown
        ),
        footer=_footer(data),
    )


def _escape(value: object) -> str:
    """Text as HTML; control characters, which HTML forbids, become spaces."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return html.escape(text, quote=True)


def _section(key: str, heading: str, body: str) -> tuple[str, str, str] | None:
    return (key, heading, body) if body else None


def _plural(count: float, noun: str) -> str:
    return f"{int(count):,} {noun}" if count == 1 else f"{int(count):,} {noun}s"


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = (), label: str = ""
) -> str:
    """A table whose first column names its rows. Cells that are already HTML are given as ``_Html``."""

    def cell(position: int, value: object) -> str:
        kind = ' class="number"' if position in numbers else ""
        if position == 0:
            return f'<th scope="row">{_cell(value)}</th>'
        if is_unknown(value):
            kind = ' class="number none"' if position in numbers else ' class="none"'
        return f"<td{kind}>{_cell(value)}</td>"

    head = "".join(
        f'<th scope="col" class="{"number" if position in numbers else "text"}">{_escape(heading)}</th>'
        for position, heading in enumerate(headings)
    )
    body = "\n".join(
        "<tr>" + "".join(cell(position, value) for position, value in enumerate(row)) + "</tr>" for row in rows
    )
    caption = f"<caption>{_escape(label)}</caption>" if label else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


class _Html(str):
    """Text that is HTML already."""


def _cell(value: object) -> str:
    if isinstance(value, _Html):
        return value
    if is_unknown(value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return f"{int(number):,}" if number.is_integer() else f"{number:.4g}"
    return _escape(value)


def _picture(figure: MatplotlibFigure, alternative: str, caption: str) -> str:
    """A figure as an embedded picture, at its natural size where there is room and scrolling where there is not."""
    width, height = (round(_PIXELS * float(inches)) for inches in figure.get_size_inches())
    data = base64.b64encode(to_png(figure)).decode("ascii")
    # A picture much wider than the page would become illegible if it were scaled to fit.
    fits = ' class="fits"' if width <= 1250 else ""
    return (
        f'<figure><div class="scroll" tabindex="0"><img{fits} width="{width}" height="{height}" '
        f'alt="{_escape(alternative)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _groups(data: ReportData) -> pd.DataFrame | None:
    """Numbers by group: models, layers, filters, licenses."""
    if data.groups is not None:
        return data.groups if len(data.groups) else None
    if data.by not in data.models.columns:
        return None
    grouped = data.models.groupby(data.by, dropna=False, sort=True)
    columns: dict[str, Any] = {"models": grouped.size()}
    for column, heading in (("conv_layers", "layers"), ("stored_filters", "filters")):
        if column in data.models.columns:
            columns[heading] = grouped[column].sum()
    if "license" in data.models.columns:
        columns["licenses"] = grouped["license"].agg(list)
    return pd.DataFrame(columns)


def _licences(value: object) -> str:
    """Distinct licences of a group, sorted; None among them becomes ``not recorded``."""
    if isinstance(value, str) or is_unknown(value):
        values: list[object] = [value]
    else:
        values = list(value) if isinstance(value, Iterable) else [value]
    known = sorted({str(one) for one in values if not is_unknown(one)})
    if any(is_unknown(one) for one in values):
        known.append("not recorded")
    return ", ".join(known)


def _introduction(data: ReportData) -> str:
    text = data.description or (
        "Kernels of trained convolutional networks, and how they differ. Every number on this page was computed from "
        "the weights of the models listed below."
    )
    parts = [f'<p class="lead">{_escape(text)}</p>']
    if data.created_at:
        parts.append(f'<p class="note">Computed {_date(data.created_at)}.</p>')
    return "\n".join(parts)


def _coverage(data: ReportData) -> str:
    """What was compared and what was not, with the warnings."""
    if data.coverage is None:
        return ""
    lines = [f"<p>The comparisons below are of {_escape(data.kernel)} kernels: {_escape(data.coverage['text'])}.</p>"]
    lines += [f'<p class="warning">{_escape(warning)}</p>' for warning in data.coverage["warnings"]]
    return "\n".join(lines)


def _tiles(data: ReportData, groups: pd.DataFrame | None) -> str:
    tiles = [("models", len(data.models))]
    for column, heading, key in (
        ("conv_layers", "convolution layers", "layers"),
        ("stored_filters", "filters", "filters"),
    ):
        if data.coverage is not None:
            tiles.append((heading, int(data.coverage[key])))
        elif column in data.models.columns:
            tiles.append((heading, int(data.models[column].fillna(0).sum())))
    if groups is not None:
        known = sum(not is_unknown(key) for key in groups.index)
        tiles.append((f"{data.by}s" if data.by.isidentifier() else "groups", known))
    items = "".join(f"<li><b>{count:,}</b><span>{_escape(heading)}</span></li>" for heading, count in tiles)
    return f'<ul class="tiles">{items}</ul>'


def _group_table(groups: pd.DataFrame, data: ReportData) -> str:
    by = data.by
    headed = {
        "models": "Models",
        "layers": "Layers",
        "filters": "Filters",
        "used_models": "Models compared",
        "used_filters": f"{data.kernel} filters compared",
        "licenses": "Licences",
    }
    columns = [column for column in headed if column in groups.columns]
    rows = [
        [label_text(key), *(_licences(row[column]) if column == "licenses" else row[column] for column in columns)]
        for key, row in zip(groups.index, groups.to_dict("records"), strict=True)
    ]
    headings = [by[:1].upper() + by[1:], *(headed[column] for column in columns)]
    numbers = [position for position, column in enumerate(["", *columns]) if column not in ("", "licenses")]
    return _coverage(data) + _table(headings, rows, numbers=numbers)


def _shift(data: ReportData, groups: pd.DataFrame | None) -> str:
    if data.shift is None or len(data.shift) < 2:
        return ""
    order = ordered_groups(data.shift)
    drawn = data.shift.iloc[order[:_PICTURED], order[:_PICTURED]]
    counts = None
    sizes = groups if data.compared is None else data.compared
    if sizes is not None and {"models", "filters"} <= set(sizes.columns) and sizes.index.is_unique:
        counts = sizes if all(key in sizes.index for key in drawn.index) else None
    left_out = len(order) - len(drawn)
    metric = data.method.metric if data.method else "kl"
    label = METRIC_LABELS[metric]
    measured = "Symmetric Kullback–Leibler divergence D, in nats," if metric == "kl" else label[:1].upper() + label[1:]
    caption = (
        f"{measured} between the distributions of coefficients of {_escape(data.kernel)} filters; 0 means the same "
        "distributions. Groups are sorted by their mean distance from all. If a few groups are far from all others, "
        "the colours end at the largest value of the others."
        + (f" The {_PICTURED} groups nearest to the others are drawn, {left_out:,} are not." if left_out else "")
    )
    picture = _picture(
        heatmap(drawn, counts=counts, label=label),
        f"Heat map of the shift between {len(drawn)} groups; the tables below it list the extreme pairs.",
        caption,
    )
    values = data.shift.to_numpy(dtype=np.float64, na_value=np.nan)
    upper = [
        (values[i, j], label_text(data.shift.index[i]), label_text(data.shift.index[j]))
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if np.isfinite(values[i, j])
    ]
    upper.sort()
    if len(upper) <= _PAIRS:
        tables = _table(["Pair", label], map(_pair, upper), numbers=[1], label="All pairs, the closest first")
    else:
        count = min(_PAIRS, len(upper) // 2)
        tables = _table(["Pair", label], map(_pair, upper[:count]), numbers=[1], label="Closest pairs") + _table(
            ["Pair", label], map(_pair, upper[: -count - 1 : -1]), numbers=[1], label="Most distant pairs"
        )
    return f'{picture}\n<div class="pairs">{tables}</div>'


def _pair(pair: tuple[float, str, str]) -> tuple[_Html, str]:
    value, first, second = pair
    return _Html(f"{_escape(first)} – {_escape(second)}"), f"{value:.3f}"


def _coefficients(data: ReportData) -> str:
    if data.coefficients is None or not len(data.coefficients.labels):
        return ""
    given = data.coefficients
    sizes = given.counts.sum(axis=2).max(axis=1) if given.filters is None else np.asarray(given.filters)
    # The largest groups, in the order in which they were given.
    drawn = sorted(np.argsort(-sizes, kind="stable")[:_PICTURED].tolist())
    figure = ridge(
        given.counts[drawn],
        given.low,
        given.high,
        [given.labels[position] for position in drawn],
        filters=sizes[drawn],
        explained_variance_ratio=given.explained_variance_ratio,
    )
    left_out = len(sizes) - len(drawn)
    return _picture(
        figure,
        f"Densities of the coefficients of {len(drawn)} groups, one row per group and one column per component.",
        f"Each {_escape(data.kernel)} filter, divided by its largest absolute weight, is a sum of the components of "
        "one basis; the curves show how the coefficients of a group are distributed, each drawn to the same height. "
        "The percentage is the share of the variance that a component explains."
        + (f" The {_PICTURED} largest groups are drawn, {left_out:,} are not." if left_out else ""),
    )


def _bases(data: ReportData) -> str:
    if not data.bases:
        return ""
    drawn = dict(list(data.bases.items())[:_PICTURED])
    left_out = len(data.bases) - len(drawn)
    return _picture(
        eigenfilters(drawn),
        f"Components of the bases of {len(drawn)} groups as small images, one row per group.",
        "Components of a basis fitted on each group alone, in decreasing order of explained variance, shown below. "
        "The sign of a component has no meaning."
        + (f" The first {_PICTURED} groups are drawn, {left_out:,} are not." if left_out else ""),
    )


def _quality(data: ReportData) -> str:
    if data.layers is None or data.layers.empty:
        return ""
    drawn, left_out = data.layers, 0
    # Depths are drawn by tenths, so there are never too many of them.
    if data.by in drawn.columns and data.by != "conv_depth_norm":
        sizes = drawn.groupby(data.by, dropna=False).size().sort_values(ascending=False, kind="stable")
        drawn = drawn[drawn[data.by].isin(sizes.index[:_PICTURED])]
        left_out = max(len(sizes) - _PICTURED, 0)
    return _picture(
        quality(drawn, by=data.by),
        f"Sparsity, normalised variance entropy and orthogonality of {len(drawn)} layers by group.",
        "Sparsity is the share of kernels whose weights are all below 1 % of the layer's largest. Entropy of the "
        "explained variance is divided by that of as many random kernels: near 1 is diverse or random, low is "
        "redundant. Orthogonality is 1 where all output filters are orthogonal and 0 where all are parallel. "
        "Each dot is a layer; the layers are those that were compared."
        + (f" The {_PICTURED} groups with the most layers are drawn, {left_out:,} are not." if left_out else ""),
    )


def _models(models: pd.DataFrame) -> str:
    columns = [column for column in _MODEL_COLUMNS if column in models.columns]
    key = "name" if "name" in models.columns else "model_id"
    if key not in models.columns:
        raise SelectionError("models: expected a column name or model_id, found neither")
    rows = []
    for row in models.to_dict("records"):
        name = _linked(_escape(label_text(row[key])), row.get("url"))
        paper = _address(row.get("paper"))
        if paper:
            name += f' <a class="flag" href="{_escape(paper)}">paper</a>'
        # NULL is not True: pandas.NA has no truth value.
        if not is_unknown(row.get("untrained")) and bool(row.get("untrained")):
            name += ' <span class="flag">untrained</span>'
        rows.append(
            [_Html(name), *(_share(row[column]) if column == "sparsity" else row[column] for column in columns)]
        )
    headings = ["Name", *(_MODEL_COLUMNS[column] for column in columns)]
    numbers = [position for position, heading in enumerate(headings) if heading in ("Layers", "Filters", "Sparsity")]
    return _table(headings, rows, numbers=numbers)


def _linked(content: str, url: object) -> str:
    address = _address(url)
    return f'<a href="{_escape(address)}">{content}</a>' if address else content


def _address(value: object) -> str | None:
    """A web address for a URL, a DOI or an arXiv number; None for anything else.

    >>> _address("arXiv:2203.15331"), _address("javascript:alert(1)")
    ('https://arxiv.org/abs/2203.15331', None)
    """
    if not isinstance(value, str):
        return None
    if re.match(r"https?://[^\s\"'<>]+$", value):
        return value
    if arxiv := re.fullmatch(r"(?:arxiv:\s*)?(\d{4}\.\d{4,5})(?:v\d+)?", value, re.IGNORECASE):
        return f"https://arxiv.org/abs/{arxiv[1]}"
    doi = re.fullmatch(r"(?:doi:\s*)?(10\.\d{4,9}/[^\s\"'<>]+)", value, re.IGNORECASE)
    return f"https://doi.org/{doi[1]}" if doi else None


def _share(value: object) -> object:
    return f"{100 * value:.2f} %" if isinstance(value, float) and not is_unknown(value) else None


def _method(data: ReportData) -> str:
    method = data.method
    if method is None:
        return ""
    height, width = kernel_shape(data.kernel)
    values = method.filters * height * width
    outside = f"{method.outside:,} of {values:,} coefficient values"
    if values:
        outside += f" ({100 * method.outside / values:.3g} %)"
    fitted = [_plural(method.basis_models, "model")] if method.basis_models else []
    fitted.append(_plural(method.basis_filters, "filter"))
    facts = [
        ("Recipe", f"<code>{_escape(method.recipe)}</code>"),
        ("Basis", f"<code>{_escape(method.basis_id)}</code>" if method.basis_id else "fitted for this report"),
        ("Fitted on", ", ".join(fitted)),
        ("Counted", _plural(method.filters, "filter")),
        ("Outside of the range", outside),
        *(
            [("Versions", ", ".join(f"{_escape(name)} {_escape(value)}" for name, value in method.versions.items()))]
            if method.versions
            else []
        ),
        *([("Computed", _date(data.created_at))] if data.created_at else []),
    ]
    formula = (
        "The shift D of two groups is the sum over the components of KL(P‖Q) + KL(Q‖P)"
        if method.metric == "kl"
        else f"The shift of two groups is the sum over the components of their {METRIC_LABELS[method.metric]}"
    )
    steps = (
        f"Each {_escape(data.kernel)} kernel is one filter. It is divided by its largest absolute weight, centred by "
        "the mean of the filters that the basis was fitted on, and projected on their principal components. Per group "
        f"and component the coefficients are counted in {method.bins:,} bins from {_signed(method.low)} to "
        f"{_signed(method.high)}; within a group all {_escape(method.balance)} have the same weight. Empty bins get a "
        "density of 1.19·10⁻⁷. "
        f"{_escape(formula)}, weighted by {_escape(method.weights)}. Groups of few filters appear farther apart than "
        "they are, because their histograms are noisy."
    )
    items = "".join(f"<dt>{_escape(name)}</dt><dd>{value}</dd>" for name, value in facts)
    return f"<p>{steps}</p>\n<dl>{items}</dl>"


def _signed(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _cite(models: pd.DataFrame) -> str:
    items = "".join(f'<li>{_escape(text)} <a href="{url}">{name}</a></li>' for text, url, name in _CITATIONS)
    unknown = int(models["license"].isna().sum()) if "license" in models.columns else len(models)
    licences = (
        "The weights belong to their authors; the table of models states the licence of each. "
        + (
            f"For {_plural(unknown, 'model')} no licence is recorded: ask the authors before sharing the weights. "
            if unknown
            else ""
        )
        + "If you use a model, cite its own paper too."
    )
    lead = "The measures on this page come from these two papers:"
    return f'<p>{lead}</p>\n<ol class="cite">{items}</ol>\n<p>{licences}</p>'


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _footer(data: ReportData) -> str:
    version = data.method.versions.get("cnnfilterdb") if data.method else None
    made = "Made with cnnfilterdb" + (f" {_escape(version)}" if version else "")
    return f"<p>{made}{f', {_date(data.created_at)}' if data.created_at else ''}.</p>"
