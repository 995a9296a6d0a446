"""The verbs that draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cnnfilterdb.cli.options import db_option, kernel_option, open_reader, where_option
from cnnfilterdb.cli.output import writing

__all__ = ["plot", "report"]


@click.command()
@click.argument("kind", type=click.Choice(["shift", "ridge", "eigenfilters", "quality", "variance", "filters"]))
@click.option("--by", default="domain", show_default=True, help="Grouping expression.")
@click.option("--model", help="For `filters`: key of the model.")
@click.option("--layer", type=int, default=0, show_default=True, help="For `filters`: layer of the model.")
@where_option
@kernel_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Picture file; by default KIND.png."
)
@click.option("--dpi", type=click.IntRange(min=30, max=1200), default=150, show_default=True)
@db_option
def plot(
    kind: str, by: str, model: str | None, layer: int, where: str | None, kernel: str, output: Path | None, dpi: int,
    path: Path,
) -> None:  # fmt: skip
    """Draw a figure: the shift matrix, ridges, eigenfilters, quality, where weights vary, or the filters of a layer."""
    draw = open_reader(path).plot
    if kind == "filters":
        if model is None:
            raise click.UsageError("plot filters needs --model")
        figure = draw.filters(model, layer=layer)
    elif kind == "variance":
        # Large kernels are what it is about: all sizes, unless one is asked for.
        asked = click.get_current_context().get_parameter_source("kernel") is not ParameterSource.DEFAULT
        figure = draw.variance(by=by, where=where, kernel=kernel if asked else None)
    else:
        method: dict[str, Callable[..., Any]] = {
            "shift": draw.kl_shift,
            "ridge": draw.ridge,
            "eigenfilters": draw.eigenfilters,
            "quality": draw.quality,
        }
        figure = method[kind](by=by, where=where, kernel=kernel)
    target = output or Path(f"{kind}.png")
    with writing(target):
        figure.savefig(target, dpi=dpi)
    click.echo(str(target))


@click.command()
@click.option("--by", default="domain", show_default=True, help="Grouping expression.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True
)
@db_option
def report(by: str, output: Path, path: Path) -> None:
    """Write one self-contained page about the database."""
    with writing(output):
        click.echo(str(open_reader(path).report(output, by=by)))
