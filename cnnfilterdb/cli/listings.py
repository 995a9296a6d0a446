"""The verbs that list rows of a database: models, layers, filters, what a query selects."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnfilterdb.cli.options import db_option, open_reader, rows_options, where_option
from cnnfilterdb.cli.output import emit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["layers", "models", "nearest", "shared", "sql"]


@click.command()
@click.option("--available", is_flag=True, help="What the catalog offers, instead of what the database holds.")
@click.option("--source", help="With --available: the models of one source only.")
@click.option("--license", "licenses", is_flag=True, help="The licence of each, where it comes from, what to cite.")
@where_option
@rows_options
@db_option
def models(
    available: bool,
    source: str | None,
    licenses: bool,
    where: str | None,
    style: str,
    output: Path | None,
    path: Path,
) -> None:
    """List models."""
    if source and not available:
        raise click.UsageError(f"--source goes with --available; of a database ask --where \"source = '{source}'\"")
    if available:
        frame = _available(source)
        if where:
            raise click.UsageError("--where reads the database; it does not go with --available")
    else:
        frame = open_reader(path).models(where=where)
    if licenses:
        frame = frame[["model_id", "license", "paper", "url"]]
    elif style == "table" and output is None:
        columns = ["model_id", "architecture", "task", "domain", "conv_layers", "stored_filters", "license"]
        frame = frame[[column for column in columns if column in frame]]
    emit(frame.fillna({"license": "unknown"}), style, output)


@click.command()
@where_option
@rows_options
@db_option
def layers(where: str | None, style: str, output: Path | None, path: Path) -> None:
    """List convolution layers with their statistics."""
    frame = open_reader(path).layers(where=where)
    if style == "table" and output is None:
        frame = frame[
            ["model_id", "layer", "layer_name", "kind", "kernel", "in_channels", "out_channels", "filters", "sparsity",
             "variance_entropy", "orthogonality"]
        ]  # fmt: skip
    emit(frame, style, output)


@click.command()
@click.argument("query")
@rows_options
@db_option
def sql(query: str, style: str, output: Path | None, path: Path) -> None:
    """Run QUERY over the views and macros; `-` reads it from standard input.

    \b
      cnnfilterdb sql "FROM kl_shift(domain)"
      cnnfilterdb sql "SELECT domain, count(*) FROM models GROUP BY ALL"
    """
    text = sys.stdin.read() if query == "-" else query
    emit(open_reader(path).sql(text).df(), style, output)


@click.command()
@click.argument("kernel")
@click.option("--top", "-n", type=click.IntRange(min=1), default=10, show_default=True, help="How many to list.")
@click.option("--sign", is_flag=True, help="Negative multiples are similar too.")
@click.option("--centred", is_flag=True, help="An added constant does not matter: means are subtracted.")
@click.option("--rotation", is_flag=True, help="Rotations by right angles and reflections are similar too.")
@where_option
@rows_options
@db_option
def nearest(kernel: str, style: str, output: Path | None, path: Path, **options: Any) -> None:
    """List the filters most similar to KERNEL, whatever their scale; its rows are separated by `;` or `/`.

    \b
      cnnfilterdb nearest "1 0 -1; 2 0 -2; 1 0 -1" --rotation
    """
    try:
        rows = [[float(number) for number in row.replace(",", " ").split()] for row in re.split("[;/]", kernel)]
    except ValueError as error:
        raise click.UsageError(f"KERNEL should hold numbers, its rows separated by `;`: {error}") from error
    if len({len(row) for row in rows}) != 1:
        raise click.UsageError("the rows of KERNEL differ in length")
    emit(open_reader(path).nearest(rows, **options), style, output)


@click.command()
@rows_options
@db_option
def shared(style: str, output: Path | None, path: Path) -> None:
    """List pairs of models that hold the same layers, bit for bit: shared ancestry."""
    emit(open_reader(path).shared_models(), style, output)


def _available(source: str | None = None) -> pd.DataFrame:
    import pandas as pd

    from cnnfilterdb import catalog

    return pd.DataFrame(
        {
            "model_id": f"{model.source}/{model.name}",
            "architecture": model.facts.architecture,
            "task": model.facts.task,
            "domain": model.facts.domain,
            "training_dataset": model.facts.training_dataset,
            "license": model.facts.license,
            "paper": model.facts.paper,
            "url": model.facts.url,
        }
        for model in catalog.models(source)
    )
