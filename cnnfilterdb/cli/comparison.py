"""The verbs that compare groups of filters: by the shift between them, the basis it is made in, their quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnfilterdb.cli.options import (
    all_layers_option,
    db_option,
    kernel_option,
    open_reader,
    rows_options,
    shift_options,
    where_option,
)
from cnnfilterdb.cli.output import emit, print_shift

__all__ = ["basis", "quality", "shift"]


@click.command()
@click.argument("by")
@click.option("--components", is_flag=True, help="One row per pair and component.")
@click.option("--bootstrap", type=click.IntRange(min=2), metavar="N",
              help="One row per pair, with a 95 % interval over N resamples of the models.")  # fmt: skip
@click.option("--nearest", metavar="GROUP", help="The groups nearest to this one.")
@shift_options
@rows_options
@db_option
def shift(
    by: str, components: bool, bootstrap: int | None, nearest: str | None, limits: tuple[float, float] | None,
    style: str, output: Path | None, path: Path, **options: Any,
) -> None:  # fmt: skip
    """Compare groups of filters: symmetric KL divergence of their SVD coefficients, in nats.

    BY is any SQL expression over the columns of models and layers.

    \b
      cnnfilterdb shift domain
      cnnfilterdb shift "floor(10 * conv_depth_norm)" --where "task = 'Segmentation'"
    """
    db, where = open_reader(path), options.pop("where")
    if options["basis"] and options["basis"].endswith((".json", ".npz")):
        from cnnfilterdb.exchange.basis_files import load_basis

        options["basis"] = load_basis(options["basis"])
    if sum((components, bootstrap is not None, nearest is not None)) > 1:
        raise click.UsageError("give one of --components, --bootstrap and --nearest")
    if components:
        emit(db.kl_shift_components(by, where=where, range=limits or None, **options), style, output)
    elif bootstrap is not None:
        frame = db.kl_shift_intervals(by, where=where, samples=bootstrap, range=limits or None, **options)
        emit(frame, style, output)
    elif nearest is not None:
        emit(db.nearest_groups(by, nearest, where=where, range=limits or None, **options).reset_index(), style, output)
    elif style == "table" and output is None:
        print_shift(db.kl_shift(by, where=where, range=limits or None, **options))
    else:
        matrix = db.kl_shift(by, where=where, range=limits or None, **options)
        emit(matrix.rename_axis(columns=None).rename(columns=str).reset_index(), style, output)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@where_option
@kernel_option
@click.option("--variant", type=click.Choice(["all", "nonsparse"]), default="all", show_default=True,
              help="Which filters it is fitted on.")  # fmt: skip
@db_option
def basis(file: Path, where: str | None, kernel: str, variant: str, path: Path) -> None:
    """Save an SVD basis to FILE, .json or .npz: that of the index, or one fitted on what --where selects.

    \b
      cnnfilterdb basis natural.json --where "domain = 'natural'"
      cnnfilterdb shift domain --basis natural.json
    """
    from cnnfilterdb.exchange.basis_files import save_basis

    fitted = open_reader(path).basis(where=where, kernel=kernel, variant=variant)
    save_basis(fitted, file)
    ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.explained_variance_ratio[:9])
    click.echo(f"{file}: {fitted.filters:,} filters; explained variance ratio {ratios}")


@click.command()
@click.argument("by")
@where_option
@kernel_option
@all_layers_option
@click.option("--margin", type=float, default=0.02, show_default=True,
              help="How far below that of random kernels an entropy counts as random.")  # fmt: skip
@click.option("--low-entropy", type=float, default=0.5, show_default=True,
              help="Entropy below which a layer is repetitive.")  # fmt: skip
@click.option("--high-sparsity", type=float, default=0.14, show_default=True,
              help="Sparsity from which a layer is sparse.")  # fmt: skip
@rows_options
@db_option
def quality(
    by: str, where: str | None, kernel: str, all_layers: bool, style: str, output: Path | None, path: Path,
    **thresholds: float,
) -> None:  # fmt: skip
    """Sparsity, variance entropy, orthogonality and degenerated layers of the groups BY."""
    frame = open_reader(path).quality(by, where=where, kernel=kernel, all_layers=all_layers, **thresholds)
    emit(frame.reset_index(), style, output)
