"""The verbs that maintain a database: annotate, index, verify, remove, and the cache of downloads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cnnfilterdb.cli.options import (
    Several,
    db_option,
    fact_options,
    open_database,
    open_reader,
    quiet_option,
    rows_options,
    shard_option,
    where_option,
    written_db_option,
)
from cnnfilterdb.cli.output import Output, emit, remark, say
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.reports import counted

__all__ = ["annotate", "cache", "index", "remove", "verify"]


@click.command(short_help="Correct or add facts about models.")
@click.argument("models", nargs=-1)
@where_option
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="CSV or TOML file with facts about models."
)
@fact_options
@click.option("--reset", multiple=True, metavar="FACT", help="Restore the stored value. Can be repeated.")
@written_db_option
def annotate(
    models: tuple[str, ...], where: str | None, file: Path | None, reset: tuple[str, ...], new_word: bool, path: Path,
    **facts: str | None,
) -> None:  # fmt: skip
    """Correct or add facts about MODELS, keys or wildcards; an empty TEXT marks a fact as unknown.

    No stored data is rewritten: the facts are kept in annotations.csv of the database and joined by every query.

    \b
      cnnfilterdb annotate 'pypi/deepcr/*' --domain astronomy
      cnnfilterdb annotate --where "family = 'U-Net'" --task Segmentation
      cnnfilterdb annotate --file overlay.toml
    """
    known = {key: value for key, value in facts.items() if value is not None}
    db = open_database(path)
    annotated = db.annotate(*models, where=where, file=file, reset=reset, new_words=new_word, **known)
    remark(f"annotated {counted(len(annotated), 'model')}")


@click.command(short_help="Update bases, histograms and fingerprints.")
@click.option("--refit", is_flag=True, help="Fit new bases on all models present; older bases are kept.")
@click.option("--prune", is_flag=True, help="Remove the bases that are no longer in use.")
@shard_option
@written_db_option
@quiet_option
def index(refit: bool, prune: bool, shard: str | None, path: Path, quiet: bool) -> None:
    """Fit the SVD bases, count the histograms of shifts, and compute the spectra and sketches of layers.

    With --shard, spectra and sketches are computed, and histograms in bases that exist; without it, the rest is.
    """
    if shard and (refit or prune):
        raise click.UsageError("--shard fits and removes no bases; leave --refit and --prune out")
    db = open_database(path)
    with progress_bars(quiet) as progress:
        db.index(refit=refit, prune=prune, shard=shard, progress=progress)
    for fitted in db.bases():
        ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.basis.explained_variance_ratio[:9])
        remark(f"{fitted.basis_id}: {counted(len(fitted.models), 'model')}, {counted(fitted.layers, 'layer')}, "
                   f"{counted(fitted.basis.filters, 'filter')}; explained variance ratio {ratios}")  # fmt: skip


@click.command(short_help="Check all counts and hashes.")
@click.argument("models", nargs=-1)
@click.option("--repair", is_flag=True,
              help="Rebuild what is derived and set aside what is damaged; nothing is deleted.")  # fmt: skip
@shard_option
@db_option
@quiet_option
def verify(models: tuple[str, ...], repair: bool, shard: str | None, path: Path | str | Several, quiet: bool) -> None:
    """Check every count and every hash of the database, or of MODELS, keys or wildcards.

    \b
      cnnfilterdb verify
      cnnfilterdb verify 'pypi/deepcr/*'
    """
    from cnnfilterdb.core.sharding import Share
    from cnnfilterdb.store.annotations import matching

    if (models or shard) and repair:
        raise click.UsageError("--repair checks the whole database; leave MODELS and --shard out")
    db = open_reader(path)
    with progress_bars(quiet) as progress:
        if not (models or shard or repair):
            problems = db.verify(progress=progress)
        elif isinstance(path, Several):
            raise click.UsageError("MODELS, --shard and --repair are for one database; give one --db")
        elif repair:
            problems = open_database(path).repair(progress=progress)
        else:
            problems = open_database(path).verify(*models, shard=shard, progress=progress)
    for problem in problems:
        say(f"{problem.model_id or '-'}: {problem.path}: {problem.message}")
    if problems:
        remedy = "ingest the models named above again" if repair else "`cnnfilterdb verify --repair` sets them aside"
        raise CorruptError(f"{len(problems)} problems in {path}; {remedy}")
    share, present = Share.of(shard), db.storage.model_ids()
    chosen = matching(models, present) if models else present
    count = len(chosen if share is None else share.among(chosen))
    say(f"{path}: {counted(count, 'model')}, all counts and hashes are correct")


@click.command(short_help="Remove models.")
@click.argument("models", nargs=-1, required=True)
@written_db_option
def remove(models: tuple[str, ...], path: Path) -> None:
    """Remove MODELS, keys or wildcards.

    \b
      cnnfilterdb remove 'pypi/deepcr/*' custom/mine
    """
    db = open_database(path)
    gone = db.remove(*models)
    remark(f"removed {counted(len(gone), 'model')}; {len(db.storage.model_ids()):,} left")


@click.command(short_help="List or clear the cache.")
@click.argument("action", type=click.Choice(["list", "clear"]), default="list")
@rows_options
def cache(action: str, rows: Output) -> None:
    """List the files in the cache, largest first, or clear it.

    They are downloads, and histograms of databases that were opened together. Databases do not depend on the cache:
    what is needed again is downloaded and computed again.

    \b
      cnnfilterdb cache
      cnnfilterdb cache clear
    """
    import pyarrow as pa

    from cnnfilterdb.core.caching import cache_folder
    from cnnfilterdb.ingest.fetch.cache import Cache

    files = Cache(cache_folder())
    if action == "clear":
        remark(f"{files.folder}: {files.clear() / 1e6:,.1f} MB freed")
        return
    entries = files.entries()
    table = pa.table(
        {
            "file": [entry.path.relative_to(files.folder).as_posix() for entry in entries],
            "kind": [entry.kind for entry in entries],
            "bytes": pa.array([entry.bytes for entry in entries], pa.int64()),
            "used": pa.array([datetime.fromtimestamp(entry.used, UTC) for entry in entries], pa.timestamp("s", "UTC")),
        }
    )
    emit(table, rows)
    if rows.for_people():
        total = sum(entry.bytes for entry in entries)
        remark(
            f"{files.folder}: {counted(len(entries), 'file')}, {total / 1e6:,.1f} MB; "
            "`cnnfilterdb cache clear` deletes them"
        )
