"""The verbs that draw."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from cnnfilterdb.cli.options import (
    FileToWrite,
    ParamType,
    by_option,
    db_option,
    group_arguments,
    group_options,
    metric_option,
    named,
    open_reader,
    permutations_option,
    seed_option,
    weights_option,
    within_option,
)
from cnnfilterdb.cli.output import print_basis, say
from cnnfilterdb.core.durable import replacing

__all__ = ["ARGUMENTS", "METHODS", "USED", "plot", "report"]

_GROUPS = {"by", "where", "kernel", "all_layers", "min_models", "min_filters"}
_COUNTED = _GROUPS | {"recipe", "balance", "basis", "bins", "limits"}
_COMPARED = _COUNTED | {"metric"}

#: The options that each kind of plot has besides --title, --style, --dpi and --output: the arguments of its method.
USED: dict[str, set[str]] = {
    "shift": _COMPARED | {"weights", "order"},
    "ridge": _COUNTED | {"xlim"},
    "phenotypes": _GROUPS | {"recipe", "components"},
    "eigenfilters": _GROUPS,
    "quality": _GROUPS,
    "variance": _GROUPS,
    "means": _GROUPS,
    "map": _COMPARED,
    "spread": _COMPARED,
    "filters": {"model", "layer", "top", "scale", "columns"},
    "lineage": {"kurtosis"},
    "null": _COMPARED | {"within", "top", "permutations", "seed"},
}

#: Arguments of methods that have another name than their option.
ARGUMENTS = {"limits": "range", "model": "model_id"}

#: Methods of ``db.plot`` that have another name than their kind.
METHODS = {"shift": "kl_shift"}

#: Kinds that draw several kernel sizes at once.
_BY_SIZE = ("variance", "means")

#: Formats of pictures, by suffix.
_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".eps", ".ps")


class _Span(ParamType):
    """The range of an axis: a word, or LOW,HIGH."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("auto", "full"):
            return value
        try:
            low, high = (float(end) for end in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected auto, full, or two numbers such as -2,2", param, ctx)
        return low, high


@click.command(short_help="Draw a figure.")
@click.argument("kind", metavar="KIND", type=click.Choice(list(USED)))
@by_option
@click.option("--model", metavar="KEY", help="For `filters`: the model.")
@click.option("--layer", type=click.IntRange(min=0), default=0, show_default=True, help="For `filters`: the layer.")
@click.option("--scale", type=click.Choice(["filter", "layer"]), default="filter", show_default=True,
              help="For `filters`: the range of colours is that of each kernel, or that of the layer.")  # fmt: skip
@click.option("--columns", type=click.IntRange(min=1), help="For `filters`: kernels per row.")
@click.option("--top", type=click.IntRange(min=1),
              help="For `filters`: how many kernels, by default 256; for `null`: pairs, by default 12.")  # fmt: skip
@click.option("--order", type=click.Choice(["mean", "cluster", "none"]), default="mean", show_default=True,
              help="For `shift`: by mean shift, similar groups side by side, or as they come.")  # fmt: skip
@click.option("--xlim", type=_Span(), default="auto", show_default=True, metavar="LOW,HIGH",
              help="For `ridge`: range of coefficients; `auto` leaves out thin tails, `full` does not.")  # fmt: skip
@click.option("--components", type=click.IntRange(min=0), nargs=2, default=(0, 1), show_default=True, metavar="X Y",
              help="For `phenotypes`: numbers of the two components.")  # fmt: skip
@click.option("--kurtosis", type=click.Choice(["rises", "falls"]),
              help="For `lineage`: how the kurtosis of weights moves from parents to children.")  # fmt: skip
@within_option
@permutations_option
@seed_option
@weights_option
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
    kind: str, title: str | None, style: Literal["screen", "paper"], output: Path | None, dpi: int, path: Path,
    **options: Any,
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

    `variance` and `means` draw all kernel sizes of at least 3x3, or those of a list such as --kernel 3x3,7x7.
    `map`, `spread` and `null` compare models one by one: --balance is models unless given.
    """
    ctx = click.get_current_context()
    target = output or Path(f"{kind}.png")
    if target.suffix.lower() not in _PICTURES:
        raise click.UsageError(
            f"{target}: the suffix {target.suffix or '(none)'!r} is not a picture format; "
            f"expected one of {', '.join(_PICTURES)}"
        )
    _refuse_unused(ctx, kind)
    by, name = named(options.pop("by"))
    if kind == "filters" and options["model"] is None:
        raise click.UsageError("plot filters requires --model KEY; `cnnfilterdb models` lists the keys")
    db = open_reader(path)
    # What is not given is left to the method, whose defaults may differ from kind to kind.
    given = {option for option in options if ctx.get_parameter_source(option) is not ParameterSource.DEFAULT}
    arguments = group_arguments(options)
    chosen: dict[str, Any] = {
        ARGUMENTS.get(option, option): arguments["range" if option == "limits" else option]
        for option in USED[kind] & given
    }
    if "by" in USED[kind]:
        chosen |= {"by": by, "where": arguments["where"]}
        title = title or (name if name != by else None)
    if "kernel" in chosen and kind in _BY_SIZE:
        chosen["kernel"] = chosen["kernel"].split(",")
    if chosen.get("order") == "none":
        chosen["order"] = None
    figure = getattr(db.plot, METHODS.get(kind, kind))(**chosen, title=title, style=style)
    with replacing(target) as part:
        figure.savefig(part, dpi=dpi, format=target.suffix[1:].lower())
    say(str(target))
    if "by" in USED[kind] and kind not in _BY_SIZE:
        # Without a stored basis, where the figure shows none.
        drawn: Any = arguments if "basis" in USED[kind] else arguments | {"basis": "selection"}
        print_basis({"coverage": db._coverage(by, drawn)})


def _refuse_unused(ctx: click.Context, kind: str) -> None:
    """Refuse options that this kind of plot would ignore."""
    for option in sorted(set().union(*USED.values(), {"trained"})):
        # --trained-only is a condition, as --where is.
        needed = "where" if option == "trained" else option
        if needed in USED[kind] or ctx.get_parameter_source(option) is ParameterSource.DEFAULT:
            continue
        flag = next(parameter.opts[0] for parameter in ctx.command.params if parameter.name == option)
        kinds = ", ".join(other for other in USED if needed in USED[other])
        raise click.UsageError(f"{flag} does not apply to `plot {kind}`; to: {kinds}")


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
    if output.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"{output}: the suffix {output.suffix!r} is not that of a page; expected .html or .htm")
    by, _ = named(by)
    db = open_reader(path)
    command = shlex.join(["cnnfilterdb", *sys.argv[1:], *_from_environment(path)])
    say(str(db.report(output, by=by, metric=metric, title=title, command=command, **group_arguments(options))))


def _from_environment(path: Path) -> tuple[str, ...]:
    """The option that names the database, where only the environment did."""
    source = click.get_current_context().get_parameter_source("path")
    return ("--db", str(path)) if source is ParameterSource.ENVIRONMENT else ()
