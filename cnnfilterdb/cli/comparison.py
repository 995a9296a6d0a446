"""The verbs that compare groups of filters: shift, basis, quality and structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnfilterdb.cli.options import (
    FileToWrite,
    all_layers_option,
    db_option,
    group_arguments,
    group_options,
    kernel_option,
    metric_option,
    named,
    open_reader,
    rows_options,
    trained_only,
    trained_option,
    weights_option,
    where_option,
)
from cnnfilterdb.cli.output import Output, emit, print_basis, print_shift, remark

__all__ = ["basis", "diff", "lineage", "quality", "shift", "structure"]


@click.command(short_help="Compare groups of filters by their KL shift.")
@click.argument("by")
@click.option("--components", is_flag=True, help="One row per pair and component.")
@click.option("--bootstrap", type=click.IntRange(min=2), metavar="N",
              help="One row per pair, with a 95 % interval over N resamples of the models.")  # fmt: skip
@click.option("--nearest", metavar="GROUP", help="The groups nearest to GROUP.")
@metric_option
@weights_option
@group_options
@rows_options
@db_option
def shift(
    by: str, components: bool, bootstrap: int | None, nearest: str | None, rows: Output, path: Path, **options: Any
) -> None:
    """Compare groups of filters: symmetric KL divergence of their SVD coefficients, in nats.

    BY is a SQL expression over the columns of models and layers; `EXPRESSION AS name` names it.

    \b
      cnnfilterdb shift domain
      cnnfilterdb shift "floor(10 * conv_depth_norm) AS tenth" --where "task = 'Segmentation'"
    """
    if sum((components, bootstrap is not None, nearest is not None)) > 1:
        raise click.UsageError("give one of --components, --bootstrap and --nearest")
    if components and options["weights"]:
        raise click.UsageError("--weights does not apply to --components, which are not weighted")
    by, name = named(by)
    db, arguments = open_reader(path), group_arguments(options)
    if components:
        del arguments["weights"]
        frame = db.kl_shift_components(by, **arguments)
    elif bootstrap is not None:
        frame = db.kl_shift_intervals(by, samples=bootstrap, **arguments)
    elif nearest is not None:
        frame = db.nearest_groups(by, nearest, **arguments).rename_axis(index=name).reset_index()
    elif rows.for_people():
        print_shift(db.shift_matrix(by, **arguments), name, limit=rows.limit)
        return
    else:
        frame = db.kl_shift(by, **arguments).rename_axis(index=name, columns=name)
        attrs = frame.attrs
        frame = frame.rename_axis(columns=None).rename(columns=str)
        # A group may be named like the expression.
        frame.insert(0, name if name not in frame.columns else "group", frame.index)
        frame.attrs = attrs
    emit(frame, rows)
    if rows.for_people():
        print_basis(frame.attrs)


@click.command(short_help="Save an SVD basis to a file.")
@click.argument("file", type=FileToWrite())
@where_option
@kernel_option
@click.option("--variant", type=click.Choice(["all", "nonsparse"]), default="all", show_default=True,
              help="Filters that the basis is fitted on.")  # fmt: skip
@db_option
def basis(file: Path, where: str | None, kernel: str, variant: str, path: Path) -> None:
    """Save an SVD basis to FILE, .json or .npz: the one in the index, or one fitted on what --where selects.

    \b
      cnnfilterdb basis natural.json --where "domain = 'natural'"
      cnnfilterdb shift domain --basis natural.json
    """
    from cnnfilterdb import save_basis

    fitted = open_reader(path).basis(where=where, kernel=kernel, variant=variant)
    save_basis(fitted, file)
    ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.explained_variance_ratio[:9])
    remark(f"{file}: {fitted.filters:,} filters; explained variance ratio {ratios}")


@click.command(short_help="Compare the weights of two models.")
@click.argument("model_a")
@click.argument("model_b")
@rows_options
@db_option
def diff(model_a: str, model_b: str, rows: Output, path: Path) -> None:
    """Compare the weights of two models, layer by layer: were they trained from one another?

    Layers are paired by name, and otherwise by order and shape. The last row, `total`, is of all pairs together.
    `relation` is identical, scaled (as folding a batch normalisation does), related or unrelated.

    \b
      cnnfilterdb diff pypi/yeastvision/matseg pypi/yeastvision/proseg
    """
    import pandas as pd

    frame = open_reader(path).diff(model_a, model_b)
    total = pd.DataFrame([{"name_a": "total"} | frame.attrs["total"]]).reindex(columns=frame.columns)
    emit(pd.concat([frame, total.astype({"layer_a": "Int64", "layer_b": "Int64"})], ignore_index=True), rows)
    if rows.for_people():
        for key, model_id in (("unpaired_a", model_a), ("unpaired_b", model_b)):
            if names := frame.attrs[key]:
                remark(f"{model_id}: {len(names)} layers without a counterpart: {', '.join(names[:5])}"
                       + (", ..." if len(names) > 5 else ""))  # fmt: skip


@click.command(short_help="Show which models descend from which.")
@click.option("--kurtosis", type=click.Choice(["rises", "falls"]),
              help="How the kurtosis of weights moves from parents to children: a hint of directions.")  # fmt: skip
@rows_options
@db_option
def lineage(kurtosis: str | None, rows: Output, path: Path) -> None:
    """The trees of models that were trained from one another, parents before children.

    `direction` is known where it is documented what a model was pretrained on, or where one is untrained; likely where
    only the kurtosis of the weights speaks for it; otherwise unknown.

    \b
      cnnfilterdb lineage --rows 50
      cnnfilterdb plot lineage
    """
    emit(open_reader(path).lineage(kurtosis=kurtosis), rows)


@click.command(short_help="Show the quality of layers, by group.")
@click.argument("by")
@where_option
@kernel_option
@all_layers_option
@trained_option
@click.option("--margin", type=float, default=0.02, show_default=True,
              help="How far below the entropy of random kernels an entropy still counts as random.")  # fmt: skip
@click.option("--low-entropy", type=float, default=0.5, show_default=True,
              help="Entropy below which a layer is repetitive.")  # fmt: skip
@click.option("--high-sparsity", type=float, default=0.14, show_default=True,
              help="Sparsity from which a layer is sparse.")  # fmt: skip
@rows_options
@db_option
def quality(
    by: str, where: str | None, kernel: str, all_layers: bool, trained: bool, rows: Output, path: Path,
    **thresholds: float,
) -> None:  # fmt: skip
    """Sparsity, variance entropy, orthogonality and degenerated layers of each group.

    BY is a SQL expression over the columns of models and layers; `EXPRESSION AS name` names it.
    """
    by, name = named(by)
    frame = open_reader(path).quality(
        by, where=trained_only(where, trained), kernel=kernel, all_layers=all_layers, **thresholds
    )
    attrs = frame.attrs
    emit(frame.rename_axis(index=name).reset_index(), rows)
    if rows.for_people():
        print_basis(attrs)


@click.command(short_help="Show symmetry and position of kernels, by group.")
@click.argument("by")
@click.option("--positions", is_flag=True, help="How the energy of kernels is distributed over positions.")
@click.option("--correlation", is_flag=True, help="Correlation of weights by their distance.")
@click.option("--overlap", type=click.IntRange(min=1), metavar="K",
              help="How well the first K components of one group serve another one.")  # fmt: skip
@click.option("--shapes", is_flag=True, help="Shares of depthwise kernels like a blob, an edge, a bar or a cross.")
@where_option
@kernel_option
@all_layers_option
@trained_option
@rows_options
@db_option
def structure(
    by: str, positions: bool, correlation: bool, overlap: int | None, shapes: bool, where: str | None, kernel: str,
    all_layers: bool, trained: bool, rows: Output, path: Path,
) -> None:  # fmt: skip
    """Structure of the kernels of each group: by default, how symmetric the mean kernels of layers are.

    BY is a SQL expression over the columns of models and layers; `EXPRESSION AS name` names it.

    \b
      cnnfilterdb structure "stride_h AS stride"
      cnnfilterdb structure family --positions
      cnnfilterdb structure family --shapes
    """
    if sum((positions, correlation, shapes, overlap is not None)) > 1:
        raise click.UsageError("give one of --positions, --correlation, --overlap and --shapes")
    by, name = named(by)
    db = open_reader(path)
    chosen: Any = {"where": trained_only(where, trained), "kernel": kernel, "all_layers": all_layers}
    if positions or correlation:
        frame = (db.position_profile if positions else db.spatial_correlation)(by, **chosen)
        frame = frame.rename(columns={"group": name})
    elif overlap is not None:
        frame = db.subspace_overlap(by, dimensions=overlap, **chosen).rename(columns=str).rename_axis(columns=None)
        frame.insert(0, name if name not in frame.columns else "group", frame.index)
    elif shapes:
        frame = db.shapes(by, where=chosen["where"], kernel=kernel)
        chance = frame.attrs["by_chance"]
        frame = frame.rename_axis(index=name).reset_index()
    else:
        frame = db.mean_symmetries(by, **chosen).rename_axis(index=name).reset_index()
    emit(frame, rows)
    if shapes and rows.for_people():
        remark(f"{100 * (1 - chance['other']):.1f} % of random {kernel} kernels have one of these shapes by chance")
