"""The verb that looks at a weight file without a database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfilterdb.cli.options import compared_db_option, network_options, open_reader, quiet_option, rows_options
from cnnfilterdb.cli.output import Output, emit, remark, warn
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.core.errors import SelectionError

if TYPE_CHECKING:
    from cnnfilterdb.ingest.inspection import Comparison

__all__ = ["inspect"]


@click.command(short_help="Describe a weight file and its layers.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--fold-bn", is_flag=True, help="Fold batch normalisations into the kernels first.")
@network_options
@compared_db_option
@click.option("--contents", is_flag=True, help="Print what became of each tensor of the file, as a table.")
@click.option("--no-compare", is_flag=True, help="Compare with no database.")
@click.option("--family", help="Compare with the layers of this family only.")
@click.option("--kernel", metavar="SIZE", help="Kernel size of the nearest models.")
@click.option("--nearest", "nearest_only", is_flag=True, help="Print the nearest models only.")
@click.option("--top", "-n", type=click.IntRange(min=1), default=5, show_default=True,
              help="How many of the nearest models to list.")  # fmt: skip
@rows_options
@quiet_option
def inspect(
    file: Path, fold_bn: bool, network: str | None, merge_adapters: bool, path: Path | str | None, contents: bool,
    no_compare: bool,
    family: str | None, kernel: str | None, nearest_only: bool, top: int, rows: Output, quiet: bool,
) -> None:  # fmt: skip
    """Print what FILE is, what deserves attention, how much of it was read, and its convolution layers.

    Each layer is compared with the layers of the same kernel size in a database (percentiles from 0 to 100), and the
    models with the most similar kernels are listed. The database is the reference corpus, unless --db names another.

    \b
      cnnfilterdb inspect net.safetensors
      cnnfilterdb inspect net.onnx --format json
      cnnfilterdb inspect net.onnx --contents
      cnnfilterdb inspect net.pt --db filters.db --family ResNet
    """
    from cnnfilterdb.ingest.inspection import SHOWN, contents_table
    from cnnfilterdb.ingest.inspection import inspect as look_at

    chosen = path is not None or family or kernel or nearest_only
    if contents and chosen:
        raise click.UsageError("--contents excludes --db, --family, --kernel and --nearest")
    if no_compare and chosen:
        raise click.UsageError("--no-compare excludes --db, --family, --kernel and --nearest")
    db = None if no_compare or contents else open_reader("reference" if path is None else path)
    with progress_bars(quiet) as progress:
        found = look_at(file, fold_bn=fold_bn, network=network, merge_adapters=merge_adapters, progress=progress)
    comparison, why = None, ""
    if db is not None:
        if path is None and kernel is None and ((found.layers["kernel"] == "3x3") & found.layers["stored"]).any():
            kernel = "3x3"  # the size of which the reference corpus has the distributions
        try:
            comparison = found.compare(db, family=family, kernel=kernel, top=top)
        except SelectionError as error:
            if chosen:
                raise
            why = str(error)
    if nearest_only and comparison is not None and comparison.models.empty:
        raise SelectionError(comparison.reference[-1])
    layers = found.layers
    people = rows.for_people()
    if people:
        remark(found.title)
        if found.metadata:
            remark(found.statement)
    for warning in found.warnings:
        warn(f"warning: {warning}")
    for line in found.coverage:
        if people:
            remark(line)
        elif line.startswith("excluded "):
            warn(line)
    if people:
        # A channel of nine weights has nine levels, whatever they are.
        weights = layers["filters"] * layers["kernel_h"] * layers["kernel_w"] / layers["out_channels"]
        layers = layers.assign(levels=layers["levels"].where(layers["levels"] < weights))
        layers = layers[[column for column in SHOWN if layers[column].notna().any()]]
        remark("")
    if contents:
        emit(contents_table(found.contents), rows)
        return
    if comparison is None:
        emit(layers, rows)
        if why and people:
            remark("")
            remark(f"not compared with other models: {why}")
        return
    if not nearest_only:
        percentiles = comparison.layers.drop(columns=["layer_name", "kernel"]).set_index("layer")
        emit(layers.join(percentiles.round(1) if people else percentiles), rows)
    if people:
        _print_reference(comparison, nearest_only)
    if nearest_only or (people and not comparison.models.empty):
        emit(comparison.models, replace(rows, limit=0))  # --top says how many


def _print_reference(comparison: Comparison, nearest_only: bool) -> None:
    """What the percentiles and the nearest models refer to, above the list of the latter."""
    percentiles, nearest = comparison.reference
    if not nearest_only:
        remark("")
        remark(percentiles)
    remark(nearest)
    if not comparison.models.empty:
        remark("")
