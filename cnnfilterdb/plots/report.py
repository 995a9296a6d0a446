"""A database as one HTML page: what is in it, how its groups differ, and how the numbers were made.

This module turns the data of a report into what the page shows; ``report.html`` is the page, as a jinja2 template with
automatic escaping.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.reports import counted
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.plots.heatmap import METRIC_LABELS, ordered_groups
from cnnfilterdb.plots.kernels import eigenfilters
from cnnfilterdb.plots.page import to_png
from cnnfilterdb.plots.quality import quality
from cnnfilterdb.plots.report_data import GroupingData, Method, ReportData
from cnnfilterdb.plots.report_map import HeatMap, heat_map
from cnnfilterdb.plots.ridge import ridge
from cnnfilterdb.plots.style import is_unknown, label_text

__all__ = ["report"]

#: Number of pairs in the tables of the closest and the most distant groups.
_PAIRS = 8

#: Largest number of groups in a figure of the report; the tables show all.
_PICTURED = 40

#: Rows of the table of models and of groups that the page shows before the reader asks for all.
_FOLD = 25

#: A group with fewer filters than this per bin has no reliable histogram. It is drawn apart from the others.
_FEWEST_PER_BIN = 30

#: Pixels of the page per inch of a figure, so that the smallest text of a figure is about 10 pixels high.
_PIXELS = 120

#: Pixels of a picture per pixel of the page.
_SHARPNESS = 1.5

#: Colours of a picture.
_COLOURS = 128

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
_MODEL_NUMBERS = {"conv_layers", "stored_filters", "sparsity"}

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


# ------------------------------------------------------------------------------------------ what the template draws


@dataclass(frozen=True, slots=True)
class _Link:
    text: str
    href: str | None = None


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a table: its text, the number it is sorted by, its address, and marks behind it."""

    text: str
    number: float | None = None
    href: str | None = None
    flags: tuple[_Link, ...] = ()


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    label: str
    columns: Sequence[_Column]
    rows: Sequence[Sequence[_Cell]]
    caption: str = ""
    noun: str = ""
    fold: int = 0

    @property
    def searchable(self) -> bool:
        return bool(self.noun) and len(self.rows) > 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    data: str
    width: int
    height: int
    alt: str
    caption: str
    label: str

    @property
    def fits(self) -> bool:
        """Whether it may be scaled to the page; a picture much wider than the page would become illegible."""
        return self.width <= 1250


def report(data: ReportData) -> str:
    """Write a database as one self-contained HTML page.

    Pictures, styles and a small script are inside the page, nothing is loaded from anywhere, and the page is complete
    without its script. The same data gives the same page.

    Args:
        data: What to show.

    Returns:
        The page.

    Raises:
        SelectionError: There are no models, or the data cannot be drawn.
    """
    if data.models.empty:
        raise SelectionError("models: expected at least one model to report on, found none; ingest or add one first")
    folder = files("cnnfilterdb.plots")
    style, script = (folder.joinpath(f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    template = _environment().from_string(folder.joinpath("report.html").read_text(encoding="utf-8"))
    groupings = [shown for grouping in data.groupings if (shown := _grouping(data, grouping))]
    versions = next((grouping.method.versions for grouping in data.groupings if grouping.method), {})
    sections = [_Section("groups", "Groups")] * bool(groupings)
    return template.render(
        title=data.title,
        description=data.description
        or "Kernels of trained convolutional networks, and how they differ. Every number on this page was computed "
        "from the weights of the models listed below.",
        created=_date(data.created_at) if data.created_at else None,
        command=data.command,
        tiles=_tiles(data),
        sections=[*sections, _Section("models", "Models"), _Section("cite", "How to cite, and licences")],
        groupings=groupings,
        models=_models(data.models),
        citations=_CITATIONS,
        licences=_licence_note(data.models),
        footer=" ".join(["Made with cnnfilterdb", versions.get("cnnfilterdb", "")]).strip() + ".",
        style=Markup(style),
        script=Markup(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
    )


@dataclass(frozen=True, slots=True)
class _Section:
    key: str
    heading: str


def _environment() -> Environment:
    """Templates whose values are always escaped; control characters, which HTML forbids, become spaces."""

    def printable(value: Any) -> Any:
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return "".join(char if char.isprintable() or char == "\n" else " " for char in value)

    def breakable(value: str) -> Markup:
        """A text whose long words may continue on the next line after their separators."""
        return Markup("<wbr>").join(re.split(r"(?<=[/_])(?=\w)", printable(value)))

    environment = Environment(autoescape=True, finalize=printable, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["breakable"] = breakable
    return environment


def _source_hash(text: str) -> str:
    """The hash by which a content security policy allows an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _grouping(data: ReportData, grouping: GroupingData) -> dict[str, Any] | None:
    """What the template shows of one grouping; None if there is nothing to show."""
    groups = _groups(data, grouping)
    name = grouping.name or grouping.by
    coverage = grouping.coverage
    pictures = [
        ("Distributions of coefficients", _coefficients(data, grouping)),
        ("Eigenfilters", _bases(grouping)),
        ("Quality of the layers", _quality(grouping)),
    ]
    shown = {
        "name": name,
        "coverage": f"The comparisons are of {data.kernel} kernels: {coverage['text']}." if coverage else None,
        "warnings": coverage["warnings"] if coverage else (),
        "groups": None if groups is None else _group_table(groups, name, data.kernel),
        "map": _map(data, grouping, groups),
        "pairs": _pairs(grouping),
        "pictures": [(heading, item) for heading, item in pictures if item is not None],
        "method": _method(data, grouping.method),
    }
    return shown if any(shown[part] for part in ("groups", "map", "pairs", "pictures", "method")) else None


# ------------------------------------------------------------------------------------------------------------ tables


def _cell(value: object, *, flags: tuple[_Link, ...] = (), href: str | None = None) -> _Cell:
    if is_unknown(value):
        return _Cell("–", None, href, flags)
    if isinstance(value, (bool, np.bool_)):
        return _Cell("yes" if value else "no", None, href, flags)
    if isinstance(value, (int, np.integer)):
        return _Cell(f"{value:,}", float(value), href, flags)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return _Cell(f"{int(number):,}" if number.is_integer() else f"{number:.4g}", number, href, flags)
    return _Cell(str(value), None, href, flags)


def _groups(data: ReportData, grouping: GroupingData) -> pd.DataFrame | None:
    """Numbers by group: models, layers, filters, licenses."""
    if grouping.groups is not None:
        return grouping.groups if len(grouping.groups) else None
    if grouping.by not in data.models.columns:
        return None
    grouped = data.models.groupby(grouping.by, dropna=False, sort=True)
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


def _group_table(groups: pd.DataFrame, name: str, kernel: str) -> _Table:
    headed = {
        "models": "Models",
        "layers": "Layers",
        "filters": "Filters",
        "used_models": "Models compared",
        "used_filters": f"{kernel} filters compared",
        "licenses": "Licences",
    }
    columns = [column for column in headed if column in groups.columns]
    rows = [
        [
            _Cell(label_text(key)),
            *(_cell(_licences(row[column]) if column == "licenses" else row[column]) for column in columns),
        ]
        for key, row in zip(groups.index, groups.to_dict("records"), strict=True)
    ]
    return _Table(
        label=f"Groups by {name}",
        columns=[
            _Column(name[:1].upper() + name[1:]),
            *(_Column(headed[column], column != "licenses") for column in columns),
        ],
        rows=rows,
        noun="groups",
        fold=_FOLD,
    )


def _pairs(grouping: GroupingData) -> list[_Table]:
    """The closest and the most distant pairs of groups."""
    if grouping.shift is None or len(grouping.shift) < 2:
        return []
    values = grouping.shift.to_numpy(dtype=np.float64, na_value=np.nan)
    names = [label_text(key) for key in grouping.shift.index]
    pairs = sorted(
        (values[i, j], names[i], names[j])
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if np.isfinite(values[i, j])
    )
    label = METRIC_LABELS[grouping.method.metric if grouping.method else "kl"]

    def table(caption: str, chosen: Sequence[tuple[float, str, str]]) -> _Table:
        return _Table(
            label=caption,
            caption=caption,
            columns=[_Column("Pair"), _Column(label[:1].upper() + label[1:], number=True)],
            rows=[[_Cell(f"{first} – {second}"), _Cell(f"{value:.3f}", value)] for value, first, second in chosen],
        )

    if len(pairs) <= _PAIRS:
        return [table("All pairs, the closest first", pairs)] if pairs else []
    count = min(_PAIRS, len(pairs) // 2)
    return [table("Closest pairs", pairs[:count]), table("Most distant pairs", pairs[: -count - 1 : -1])]


def _models(models: pd.DataFrame) -> _Table:
    columns = [column for column in _MODEL_COLUMNS if column in models.columns]
    key = "name" if "name" in models.columns else "model_id"
    if key not in models.columns:
        raise SelectionError("models: expected a column name or model_id, found neither")
    rows = []
    for row in models.to_dict("records"):
        flags = []
        if package := _package(row.get("url")):
            flags.append(_Link(package))
        if paper := _address(row.get("paper")):
            flags.append(_Link("paper", paper))
        # NULL is not True: pandas.NA has no truth value.
        if not is_unknown(row.get("untrained")) and bool(row.get("untrained")):
            flags.append(_Link("untrained"))
        name = _Cell(label_text(row[key]), None, _address(row.get("url")), tuple(flags))
        rows.append([name, *(_model_cell(column, row[column]) for column in columns)])
    headings = [_Column(_MODEL_COLUMNS[column], column in _MODEL_NUMBERS) for column in columns]
    return _Table(label="Models", columns=[_Column("Name"), *headings], rows=rows, noun="models", fold=_FOLD)


def _model_cell(column: str, value: object) -> _Cell:
    if column == "sparsity":
        known = isinstance(value, float) and not is_unknown(value)
        return _Cell(f"{100 * float(value):.2f} %", float(value)) if known else _Cell("–")  # type: ignore[arg-type]
    if (
        column == "license"
        and isinstance(value, str)
        and re.fullmatch(r"[A-Za-z0-9.+-]+-[A-Za-z0-9.+-]+|MIT|ISC", value)
    ):
        return _Cell(value, None, f"https://spdx.org/licenses/{value}.html")
    return _cell(value)


def _package(url: object) -> str | None:
    """Name and version of a package, of a package URL.

    >>> _package("pkg:pypi/deepcr@0.2.0?file_name=deepcr-0.2.0.tar.gz")
    'deepcr 0.2.0'
    """
    found = re.match(r"pkg:pypi/([\w.-]+)(?:@([\w.+-]+))?", url) if isinstance(url, str) else None
    return " ".join(part for part in found.groups() if part) if found else None


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


# ---------------------------------------------------------------------------------------------------------- pictures


def _map(data: ReportData, grouping: GroupingData, groups: pd.DataFrame | None) -> HeatMap | None:
    """The heat map of the shifts. Groups of too few filters for a histogram are set apart."""
    shift = grouping.shift
    if shift is None or len(shift) < 2:
        return None
    sizes = groups if grouping.compared is None else grouping.compared
    if sizes is not None and not (
        {"models", "filters"} <= set(sizes.columns) and sizes.index.is_unique and set(shift.index) <= set(sizes.index)
    ):
        sizes = None
    bins = grouping.method.bins if grouping.method else 0
    small = (
        [key for key in shift.index if sizes.loc[key, "filters"] < _FEWEST_PER_BIN * bins] if sizes is not None else []
    )
    if len(small) == len(shift):
        small = []
    order = [shift.index[position] for position in ordered_groups(shift)]
    order = [key for key in order if key not in small] + [key for key in order if key in small]
    drawn = order[:_PICTURED]
    metric = grouping.method.metric if grouping.method else "kl"
    label = METRIC_LABELS[metric]
    measured = "Symmetric Kullback–Leibler divergence D, in nats," if metric == "kl" else label[:1].upper() + label[1:]
    caption = [
        f"{measured} between the distributions of coefficients of {data.kernel} filters; 0 means the same "
        "distributions. Groups are sorted by their mean distance from all. If a few groups are far from all others, "
        "the colours end at the largest value of the others."
    ]
    apart = [key for key in drawn if key in small]
    if apart:
        caption.append(
            f"{counted(len(apart), 'group')} of fewer than {_FEWEST_PER_BIN * bins:,} filters, too few for reliable "
            f"histograms, {'is' if len(apart) == 1 else 'are'} set apart and {'does' if len(apart) == 1 else 'do'} not "
            "influence the colours."
        )
    if len(order) > len(drawn):
        caption.append(f"{len(drawn)} groups are drawn, {len(order) - len(drawn):,} are not.")
    return heat_map(
        shift.loc[drawn, drawn],
        apart=len(apart),
        sizes=None if sizes is None else sizes.loc[drawn],
        label=label,
        caption=" ".join(caption),
    )


def _picture(figure: MatplotlibFigure, label: str, alternative: str, caption: str) -> _Picture:
    """A figure as an embedded picture, at its natural size where there is room and scrolling where there is not."""
    width, height = (round(_PIXELS * float(inches)) for inches in figure.get_size_inches())
    target = io.BytesIO()
    with Image.open(io.BytesIO(to_png(figure, dpi=_PIXELS * _SHARPNESS))) as image:
        # A palette makes the page half as large; figures have few colours.
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    data = base64.b64encode(target.getvalue()).decode("ascii")
    return _Picture(data=data, width=width, height=height, alt=alternative, caption=caption, label=label)


def _coefficients(data: ReportData, grouping: GroupingData) -> _Picture | None:
    given = grouping.coefficients
    if given is None or not len(given.labels):
        return None
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
        "Distributions of coefficients",
        f"Densities of the coefficients of {len(drawn)} groups, one row per group and one column per component.",
        f"Each {data.kernel} filter, divided by its largest absolute weight, is a sum of the components of "
        "one basis; the curves show how the coefficients of a group are distributed, each drawn to the same height. "
        "The percentage is the share of the variance that a component explains."
        + (f" The {_PICTURED} largest groups are drawn, {left_out:,} are not." if left_out else ""),
    )


def _bases(grouping: GroupingData) -> _Picture | None:
    if not grouping.bases:
        return None
    drawn = dict(list(grouping.bases.items())[:_PICTURED])
    left_out = len(grouping.bases) - len(drawn)
    return _picture(
        eigenfilters(drawn),
        "Eigenfilters",
        f"Components of the bases of {len(drawn)} groups as small images, one row per group.",
        "Components of a basis fitted on each group alone, in decreasing order of explained variance, shown below. "
        "The sign of a component has no meaning."
        + (f" The first {_PICTURED} groups are drawn, {left_out:,} are not." if left_out else ""),
    )


def _quality(grouping: GroupingData) -> _Picture | None:
    if grouping.layers is None or grouping.layers.empty:
        return None
    drawn, left_out = grouping.layers, 0
    # Depths are drawn by tenths, so there are never too many of them.
    if grouping.by in drawn.columns and grouping.by != "conv_depth_norm":
        sizes = drawn.groupby(grouping.by, dropna=False).size().sort_values(ascending=False, kind="stable")
        drawn = drawn[drawn[grouping.by].isin(sizes.index[:_PICTURED])]
        left_out = max(len(sizes) - _PICTURED, 0)
    return _picture(
        quality(drawn, by=grouping.by),
        "Quality of the layers",
        f"Sparsity, normalised variance entropy and orthogonality of {len(drawn)} layers by group.",
        "Sparsity is the share of kernels whose weights are all below 1 % of the layer's largest. Entropy of the "
        "explained variance is divided by that of as many random kernels: near 1 is diverse or random, low is "
        "redundant. Orthogonality is 1 where all output filters are orthogonal and 0 where all are parallel. "
        "Each dot is a layer; the layers are those that were compared."
        + (f" The {_PICTURED} groups with the most layers are drawn, {left_out:,} are not." if left_out else ""),
    )


# -------------------------------------------------------------------------------------------------------------- text


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    first = data.groupings[0] if data.groupings else None
    coverage = first.coverage if first else None
    tiles = [("models", len(data.models))]
    for column, heading, key in (
        ("conv_layers", "convolution layers", "layers"),
        ("stored_filters", "filters", "filters"),
    ):
        if coverage is not None:
            tiles.append((heading, int(coverage[key])))
        elif column in data.models.columns:
            tiles.append((heading, int(data.models[column].fillna(0).sum())))
    if first is not None and (groups := _groups(data, first)) is not None:
        name = first.name or first.by
        known = sum(not is_unknown(key) for key in groups.index)
        tiles.append((_several(name) if name.isidentifier() else "groups", known))
    return [(f"{count:,}", heading) for heading, count in tiles]


def _several(noun: str) -> str:
    """The plural of a column's name: families, domains, depths."""
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _method(data: ReportData, method: Method | None) -> dict[str, Any] | None:
    if method is None:
        return None
    height, width = kernel_shape(data.kernel)
    values = method.filters * height * width
    outside = f"{method.outside:,} of {values:,} coefficient values"
    if values:
        outside += f" ({100 * method.outside / values:.3g} %)"
    fitted = [counted(method.basis_models, "model")] if method.basis_models else []
    fitted.append(counted(method.basis_filters, "filter"))
    facts = [
        ("Recipe", method.recipe),
        ("Basis", method.basis_id or "fitted for this report"),
        ("Fitted on", ", ".join(fitted)),
        ("Counted", counted(method.filters, "filter")),
        ("Outside of the range", outside),
    ]
    if method.versions:
        facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in method.versions.items())))
    formula = (
        "The shift D of two groups is the sum over the components of KL(P‖Q) + KL(Q‖P)"
        if method.metric == "kl"
        else f"The shift of two groups is the sum over the components of their {METRIC_LABELS[method.metric]}"
    )
    steps = (
        f"Each {data.kernel} kernel is one filter. It is divided by its largest absolute weight, centred by "
        "the mean of the filters that the basis was fitted on, and projected on their principal components. Per group "
        f"and component the coefficients are counted in {method.bins:,} bins from {_signed(method.low)} to "
        f"{_signed(method.high)}; within a group all {method.balance} have the same weight. Empty bins get a "
        "density of 1.19·10⁻⁷. "
        f"{formula}, weighted by {method.weights}. Groups of few filters appear farther apart than "
        "they are, because their histograms are noisy."
    )
    return {"steps": steps, "facts": facts}


def _signed(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _licence_note(models: pd.DataFrame) -> str:
    unknown = int(models["license"].isna().sum()) if "license" in models.columns else len(models)
    note = "The weights belong to their authors; the table of models states the licence of each. "
    if unknown:
        note += f"For {counted(unknown, 'model')} no licence is recorded: ask the authors before sharing the weights. "
    return f"{note}If you use a model, cite its own paper too."


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()
