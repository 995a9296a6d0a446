"""The verbs that look after a database: facts of its models, its index, its hashes, what is to go."""

from __future__ import annotations

from pathlib import Path

import click

from cnnfilterdb.cli.options import db_option, fact_options, open_database, open_reader, quiet_option, where_option
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.errors import SelectionError

__all__ = ["annotate", "index", "remove", "verify"]


@click.command()
@click.argument("models", nargs=-1)
@where_option
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="CSV or TOML file with facts of models.")
@fact_options
@click.option("--reset", multiple=True, metavar="FACT", help="Show the stored value again. Can be given several times.")
@db_option
def annotate(
    models: tuple[str, ...], where: str | None, file: Path | None, reset: tuple[str, ...], path: Path,
    **facts: str | None,
) -> None:  # fmt: skip
    """Correct or add facts about MODELS, keys or wildcards; an empty TEXT says that a fact is unknown.

    Stored data are not rewritten: the facts are kept in annotations.csv of the database and joined by every query.

    \b
      cnnfilterdb annotate 'pypi/deepcr/*' --domain astronomy
      cnnfilterdb annotate --where "family = 'U-Net'" --task Segmentation
      cnnfilterdb annotate --file overlay.toml
    """
    known = {key: value or None for key, value in facts.items() if value is not None}
    annotated = open_database(path).annotate(*models, where=where, file=file, reset=reset, **known)
    click.echo(f"annotated {len(annotated)}")


@click.command()
@click.option("--refit", is_flag=True, help="Fit new bases on all models that are there now; older bases stay.")
@db_option
@quiet_option
def index(refit: bool, path: Path, quiet: bool) -> None:
    """Fit the SVD bases and count the histograms that shifts are made from."""
    db = open_database(path)
    with progress_bars(quiet) as progress:
        db.index(refit=refit, progress=progress)
    for fitted in db.bases():
        ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.basis.explained_variance_ratio[:9])
        click.echo(f"{fitted.basis_id}: {len(fitted.models)} models, {fitted.layers:,} layers, "
                   f"{fitted.basis.filters:,} filters; explained variance ratio {ratios}")  # fmt: skip


@click.command()
@db_option
@quiet_option
def verify(path: Path, quiet: bool) -> None:
    """Check every count and every hash."""
    db = open_reader(path)
    with progress_bars(quiet) as progress:
        problems = db.verify(progress=progress)
    for problem in problems:
        click.echo(f"{problem.model_id or '-'}: {problem.path}: {problem.message}")
    if problems:
        raise SelectionError(f"{len(problems)} problems in {path}; remove the models named above and ingest them again")
    click.echo(f"{path}: {len(db.models())} models, all counts and hashes are right")


@click.command()
@click.argument("model_ids", nargs=-1, required=True)
@db_option
def remove(model_ids: tuple[str, ...], path: Path) -> None:
    """Remove models by their keys."""
    db = open_database(path)
    db.remove(*model_ids)
    click.echo(f"removed {len(model_ids)}; {len(db.models())} models are left")
