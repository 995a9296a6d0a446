"""The verbs that list rows: models, layers, filters, the rows of a query, the words of the catalog."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnfilterdb.cli.options import db_option, open_reader, rows_options, where_option
from cnnfilterdb.cli.output import Output, emit, warn

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnfilterdb.core.schema import ModelFacts

__all__ = ["layers", "models", "nearest", "related", "shared", "sql", "vocabulary"]


#: Columns of models that a table for people has, the last one only if it says something, and those about licences.
_SHOWN = (
    "model_id", "architecture", "task", "domain", "conv_layers", "stored_filters", "license", "untrained",
)  # fmt: skip
_LICENSES = ("model_id", "license", "paper", "url")

#: Columns of the models that can be imported: the key, and facts.
_AVAILABLE = ("model_id", "architecture", "task", "domain", "training_dataset", "license", "paper", "url")

#: Rows of an answer that are read even if fewer are shown; of a larger one the rest is only counted.
_WHOLE = 10_000

#: Rows of a query that are in memory at a time while it is written to a file or pipe.
_BATCH = 16_384


@click.command(short_help="List models, in the database or available.")
@click.option("--available", is_flag=True, help="List the models of the catalog instead of those in the database.")
@click.option("--source", help="With --available: the models of this source only.")
@click.option("--license", "licenses", is_flag=True, help="The licence of each model, its origin, and what to cite.")
@where_option
@rows_options
@db_option
def models(available: bool, source: str | None, licenses: bool, where: str | None, rows: Output, path: Path) -> None:
    """List models."""
    if source and not available:
        raise click.UsageError(f"--source requires --available; for a database use --where \"source = '{source}'\"")
    columns: tuple[str, ...] | None = _LICENSES if licenses else _SHOWN if rows.for_people() else None
    if available:
        table = _available(source, where)
        table = table.select([name for name in columns or table.column_names if name in table.column_names])
    else:
        db = open_reader(path)
        if columns is _SHOWN and db.storage.composed:
            columns = ("part", *_SHOWN)
        table = db.models_table(where=where, columns=columns)
    if columns and columns[-1] == _SHOWN[-1] and not available and not any(table["untrained"].to_pylist()):
        table = table.select(table.column_names[:-1])
    emit(table, rows, missing={"license": "unknown"})


@click.command(short_help="List convolution layers with their statistics.")
@click.option("--spectra", metavar="SIZE", help="Instead, the spectra of layers with kernels of SIZE, such as 3x3.")
@where_option
@rows_options
@db_option
def layers(spectra: str | None, where: str | None, rows: Output, path: Path) -> None:
    """List convolution layers with their statistics.

    With --spectra, the filters are read: power-law tail (alpha), largest eigenvalue and stable rank of the matrices of
    layers as WeightWatcher computes them, and kurtosis and peak ratio of their weights.
    """
    from cnnfilterdb.analysis.queries import condition

    if spectra is not None:
        emit(open_reader(path).spectra(where=where, kernel=spectra), rows)
        return
    table = (
        open_reader(path)
        .sql(
            f"SELECT layers.* FROM layers SEMI JOIN (SELECT model_id, layer FROM facts WHERE {condition(where)}) "
            "USING (model_id, layer) ORDER BY model_id, layer"
        )
        .to_arrow_table()
    )
    if rows.for_people():
        columns = ["model_id", "layer", "layer_name", "kind", "kernel", "in_channels", "out_channels", "filters",
                   "sparsity", "variance_entropy", "orthogonality"]  # fmt: skip
        table = table.select(columns)
    emit(table, rows)


@click.command(short_help="Run SQL over the views and macros.")
@click.argument("query")
@rows_options
@db_option
def sql(query: str, rows: Output, path: Path) -> None:
    """Run QUERY over the views and macros; `-` reads it from standard input.

    \b
      cnnfilterdb sql "FROM kl_shift(domain)"
      cnnfilterdb sql "SELECT domain, count(*) FROM models GROUP BY ALL"
    """
    text = sys.stdin.read() if query == "-" else query
    found, most = open_reader(path).sql(text), rows.most()
    if not most:
        emit(found.to_arrow_reader(_BATCH), rows)
        return
    # There are tens of millions of filters, of which a table shows some.
    table = found.limit(max(most, _WHOLE) + 1).to_arrow_table()
    whole = table.num_rows <= max(most, _WHOLE)
    emit(table, rows, total=None if whole else found.aggregate("count(*)").fetchall()[0][0])


@click.command(short_help="Find the filters most similar to a pattern.")
@click.argument("pattern")
@click.option("--top", "-n", type=click.IntRange(min=1), default=10, show_default=True, help="How many to list.")
@click.option("--sign", is_flag=True, help="Negative multiples count as similar, too.")
@click.option("--centred", is_flag=True, help="Ignore an added constant: subtract the means.")
@click.option("--rotation", is_flag=True, help="Rotations by right angles and reflections count as similar, too.")
@where_option
@rows_options
@db_option
def nearest(pattern: str, rows: Output, path: Path, **options: Any) -> None:
    """List the filters most similar to PATTERN, regardless of scale; its rows are separated by `;` or `/`.

    \b
      cnnfilterdb nearest "1 0 -1; 2 0 -2; 1 0 -1" --rotation
    """
    try:
        kernel = [[float(number) for number in row.replace(",", " ").split()] for row in re.split("[;/]", pattern)]
    except ValueError as error:
        raise click.UsageError(f"PATTERN: {error}; expected numbers, with rows separated by `;`") from error
    if len({len(row) for row in kernel}) != 1:
        raise click.UsageError("PATTERN: its rows differ in length")
    emit(open_reader(path).nearest(kernel, **options), rows)


@click.command(short_help="List pairs of models that share layers.")
@rows_options
@db_option
def shared(rows: Output, path: Path) -> None:
    """List pairs of models that have the same layers, bit for bit: shared ancestry."""
    emit(open_reader(path).shared_models(), rows)


@click.command(short_help="List pairs of models that were trained from one another.")
@rows_options
@db_option
def related(rows: Output, path: Path) -> None:
    """List pairs of models whose weights point in nearly the same direction: fine-tuned, or from a common ancestor.

    `cosine` is estimated from sketches of the layers; `cnnfilterdb diff` compares the weights of a pair themselves.
    """
    emit(open_reader(path).related_models(), rows)


@click.command(short_help="List the words of the catalog's vocabularies.")
@click.argument("name", required=False)
@rows_options
def vocabulary(name: str | None, rows: Output) -> None:
    """List the words of the vocabulary NAME: domains, tasks, families, frameworks, datasets or licenses.

    Without NAME, list the vocabularies.
    """
    import pandas as pd

    from cnnfilterdb import catalog
    from cnnfilterdb.catalog.words import VOCABULARIES

    if name is None:
        emit(pd.DataFrame([{"vocabulary": one, "words": len(catalog.vocabulary(one))} for one in VOCABULARIES]), rows)
    else:
        emit(pd.DataFrame([asdict(word) for word in catalog.vocabulary(name)]), rows)


def _available(source: str | None, where: str | None) -> pa.Table:
    """The models that can be imported by name; ``where`` is a condition over these columns."""
    import duckdb
    import pyarrow as pa

    from cnnfilterdb.analysis.queries import condition, run

    rows = [
        {"model_id": model_id} | {name: getattr(facts, name) for name in _AVAILABLE[1:]}
        for model_id, facts in _offered(source)
    ]
    with duckdb.connect() as connection:
        texts = pa.schema([(name, pa.string()) for name in _AVAILABLE])
        connection.register("available", pa.Table.from_pylist(rows, schema=texts))
        return run(connection, f"SELECT * FROM available WHERE {condition(where)} ORDER BY model_id")


def _offered(source: str | None) -> Iterator[tuple[str, ModelFacts]]:
    """The models of the catalog and of the sources of other packages, or of one source, with their facts.

    A source of another package that fails is named in a warning; alone, it is an error.
    """
    from cnnfilterdb import catalog
    from cnnfilterdb.core.errors import CnnFilterDbError, SelectionError
    from cnnfilterdb.ingest import sources

    known = catalog.models()
    others = sources.plugins()
    if source is not None:
        known = tuple(model for model in known if model.source == source)
        if not known and source not in others:
            if source in sources.registered():
                raise SelectionError(
                    f"source {source} has no list of its models; name some to `cnnfilterdb ingest {source}`"
                )
            sources.get(source)  # raises
        others = [source] if source in others else []
    for model in known:
        yield f"{model.source}/{model.name}", model.facts
    for other in others:
        try:
            found = sources.available(other)
        except CnnFilterDbError as error:
            if source is not None:
                raise
            warn(f"warning: {error}")
        else:
            for name, facts in found:
                yield f"{other}/{name}", facts
