"""The verbs that draw."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from cnnfilterdb.cli.options import (
    FileToWrite,
    by_option,
    db_option,
    group_arguments,
    group_options,
    metric_option,
    named,
    open_reader,
)
from cnnfilterdb.cli.output import print_basis, say
from cnnfilterdb.core.durable import replacing

__all__ = ["plot", "report"]

#: The options that each kind of plot has besides --by, --where, --kernel, --title, --style, --dpi and --output.
_USED = {
    "shift": {"metric", "recipe", "balance", "basis", "bins", "limits", "min_models", "min_filters", "all_layers"},
    "ridge": {"recipe", "balance", "basis", "bins", "limits", "min_models", "min_filters", "all_layers"},
    "eigenfilters": {"min_models", "min_filters", "all_layers"},
    "quality": {"min_models", "min_filters", "all_layers"},
    "variance": {"min_models", "min_filters", "all_layers"},
    "means": {"min_models", "min_filters", "all_layers"},
    "map": {"metric", "recipe", "balance", "basis", "bins", "limits", "min_models", "min_filters", "all_layers"},
    "spread": {"metric", "recipe", "balance", "basis", "bins", "limits", "min_models", "min_filters", "all_layers"},
    "phenotypes": {"recipe", "min_models", "min_filters", "all_layers"},
    "filters": {"model", "layer"},
    "lineage": set(),
    "null": {"metric", "recipe", "balance", "basis", "bins", "limits", "min_models", "min_filters", "all_layers"},
}

#: Kinds that show models or their layers, not groups.
_OF_MODELS = ("filters", "lineage")

#: Formats of pictures, by suffix.
_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".eps", ".ps")


@click.command(short_help="Draw a figure.")
@click.argument("kind", metavar="KIND", type=click.Choice(list(_USED)))
@by_option
@click.option("--model", metavar="KEY", help="For `filters`: the model.")
@click.option("--layer", type=click.IntRange(min=0), default=0, show_default=True, help="For `filters`: the layer.")
@metric_option
@group_options
@click.option("--title", help="Title of the figure.")
@click.option("--style", type=click.Choice(["screen", "paper"]), default="screen", show_default=True,
              help="Sizes: for a screen, or the column and text width of a paper.")  # fmt: skip
@click.option("--output", "-o", type=FileToWrite(), metavar="FILE",
              help="Picture file, such as .png, .pdf or .svg; by default KIND.png.")  # fmt: skip
@click.option("--dpi", type=click.IntRange(min=30, max=1200), default=150, show_default=True,
              help="Pixels per inch.")  # fmt: skip
@db_option
def plot(
    kind: str, by: str, model: str | None, layer: int, title: str | None, style: Literal["screen", "paper"],
    output: Path | None, dpi: int, path: Path, **options: Any,
) -> None:  # fmt: skip
    """Draw a figure.

    \b
    shift         the matrix of shifts as a heat map
    ridge         the distributions of the coefficients
    phenotypes    the joint density of two coefficients
    eigenfilters  the components of a basis of each group
    quality       sparsity, entropy and orthogonality of the layers
    variance      where in a kernel the weights vary
    means         the mean kernel of each group
    map           the models as points, near each other where their shift is small
    spread        the shifts within each group, beside those to all other models
    filters       the kernels of a layer (--model, --layer)
    lineage       the trees of models that were trained from one another
    null          the shifts that occur by chance, beside the observed ones
    """
    ctx = click.get_current_context()
    target = output or Path(f"{kind}.png")
    if target.suffix.lower() not in _PICTURES:
        raise click.UsageError(
            f"{target}: the suffix {target.suffix or '(none)'!r} is not a picture format; "
            f"expected one of {', '.join(_PICTURES)}"
        )
    _refuse_unused(ctx, kind)
    by, name = named(by)
    db = open_reader(path)
    draw = db.plot
    chosen: dict[str, Any] = {}
    if kind == "filters":
        if model is None:
            raise click.UsageError("plot filters requires --model KEY; `cnnfilterdb models` lists the keys")
        figure = draw.filters(model, layer=layer, title=title, style=style)
    elif kind == "lineage":
        figure = draw.lineage(title=title, style=style)
    else:
        metric = options.pop("metric")
        arguments = group_arguments(options)
        chosen = {key: value for key, value in arguments.items() if key in _USED[kind] or key in ("where", "kernel")}
        if "limits" in _USED[kind]:
            chosen["range"] = arguments["range"]
        if "metric" in _USED[kind]:
            chosen["metric"] = metric
        if kind in ("map", "spread", "null") and ctx.get_parameter_source("balance") is ParameterSource.DEFAULT:
            chosen["balance"] = "models"  # models are compared one by one
        if kind in ("variance", "means") and ctx.get_parameter_source("kernel") is ParameterSource.DEFAULT:
            chosen["kernel"] = None  # large kernels are of most interest: all sizes, unless one is given
        method: dict[str, Callable[..., Any]] = {
            "shift": draw.kl_shift,
            "ridge": draw.ridge,
            "eigenfilters": draw.eigenfilters,
            "quality": draw.quality,
            "variance": draw.variance,
            "means": draw.means,
            "map": draw.map,
            "spread": draw.spread,
            "null": draw.null,
            "phenotypes": draw.phenotypes,
        }
        figure = method[kind](by=by, title=title or (name if name != by else None), style=style, **chosen)
    with replacing(target) as part:
        figure.savefig(part, dpi=dpi, format=target.suffix[1:].lower())
    say(str(target))
    if kind not in ("filters", "lineage", "variance", "means"):
        drawn: Any = {"basis": "selection"} | chosen  # without a stored basis, where the figure shows none
        print_basis({"coverage": db._coverage(by, drawn)})


def _refuse_unused(ctx: click.Context, kind: str) -> None:
    """Refuse options that this kind of plot would ignore."""
    special = set().union(*_USED.values()) | {"trained"}
    if kind in _OF_MODELS:
        special |= {"by", "where", "kernel"}
    used = _USED[kind] | ({"trained"} if kind not in _OF_MODELS else set())
    for name in sorted(special - used):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = next(parameter.opts[0] for parameter in ctx.command.params if parameter.name == name)
            kinds = ", ".join(
                other for other in _USED if name in _USED[other] or (name == "by" and other not in _OF_MODELS)
            )
            raise click.UsageError(f"{option} does not apply to `plot {kind}`" + (f"; to: {kinds}" if kinds else ""))


@click.command(short_help="Write a report as one HTML page.")
@by_option
@metric_option
@group_options
@click.option("--title", help="Heading of the page; by default the name of the database.")
@click.option("--output", "-o", type=FileToWrite(), metavar="FILE",
              default="report.html", show_default=True, help="The page.")  # fmt: skip
@db_option
def report(by: str, metric: str, title: str | None, output: Path, path: Path, **options: Any) -> None:
    """Write one self-contained HTML page about the database."""
    by, _ = named(by)
    db = open_reader(path)
    command = shlex.join(["cnnfilterdb", *sys.argv[1:], *_from_environment(path)])
    say(str(db.report(output, by=by, metric=metric, title=title, command=command, **group_arguments(options))))


def _from_environment(path: Path) -> tuple[str, ...]:
    """The option that names the database, where only the environment did."""
    source = click.get_current_context().get_parameter_source("path")
    return ("--db", str(path)) if source is ParameterSource.ENVIRONMENT else ()
