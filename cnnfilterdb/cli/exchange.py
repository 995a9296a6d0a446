"""The verbs that exchange models: releases on the Hub, other databases, files for other tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfilterdb.cli.options import (
    FileToWrite,
    db_option,
    kernel_option,
    models_condition,
    open_database,
    open_reader,
    quiet_option,
    rows_options,
    shard_option,
    where_option,
    written_db_option,
)
from cnnfilterdb.cli.output import Output, emit, remark, say, warn
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.reports import counted

if TYPE_CHECKING:
    from cnnfilterdb import LeftOut, Manifest
    from cnnfilterdb.core.reports import TransferReport

__all__ = ["export", "merge", "publish", "pull", "push", "releases"]

_models_option = click.option(
    "--where", metavar="SQL", help="Condition over the columns of models and layers: only these models."
)
_overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace models that have the same key and other weights."
)


@click.command(short_help="Publish a release on the Hugging Face Hub.")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--version", metavar="X.Y.Z", help="Version; by default the next minor version.")
@click.option("--include-license", multiple=True, metavar="ID",
              help="Also publish models of this licence; `unknown` for those without. Can be repeated.")  # fmt: skip
@click.option("--private", is_flag=True, help="Create the data set as private.")
@click.option("--dry-run", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write the release to DIR and upload nothing.")  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Skip the check of all counts and hashes.")
@db_option
@quiet_option
def publish(
    repo: str, version: str | None, include_license: tuple[str, ...], private: bool, folder: Path | None,
    no_verify: bool, path: Path, quiet: bool,
) -> None:  # fmt: skip
    """Publish a release as the data set OWNER/NAME on the Hugging Face Hub.

    Readers see the release whole or not at all; repeat the command to resume an interrupted upload. Models whose
    licence does not permit redistribution, or that have none, are left out and listed. The token is the one of
    `hf auth login` or HF_TOKEN.

    \b
      cnnfilterdb publish me/filters --dry-run release
      cnnfilterdb publish me/filters --db mine.db --db hf://datasets/me/filters@v1.0.0
      cnnfilterdb publish me/filters
    """
    from cnnfilterdb import Manifest

    db = open_reader(path)
    with progress_bars(quiet) as progress:
        done = db.publish(
            repo, version=version, include_license=include_license, private=private, folder=folder,
            verify=not no_verify, progress=progress,
        )  # fmt: skip
    manifest = done if isinstance(done, Manifest) else done.manifest
    if not quiet:
        _print_files(manifest)
        _print_left_out(manifest.left_out)
    if isinstance(done, Manifest):
        remark(f"{folder}: release {manifest.version} of {counted(manifest.models, 'model')}; nothing was uploaded")
        return
    remark(
        f"published {done.tag}: {done.url} ({done.new_files} new files, at most {done.uploaded_bytes / 1e6:,.1f} MB "
        f"uploaded; {done.unchanged_files} unchanged)"
    )


def _print_files(manifest: Manifest) -> None:
    for table in manifest.tables():
        files = manifest.of(table)
        size = sum(file.bytes for file in files)
        rows = sum(file.rows for file in files)
        click.echo(f"{table:<16} {rows:>14,} rows {counted(len(files), 'file'):>11} {size:>16,} bytes")


def _print_left_out(left_out: tuple[LeftOut, ...]) -> None:
    if not left_out:
        return
    click.echo(f"\nleft out: {counted(len(left_out), 'model')}")
    reasons = Counter((left.license or "no licence", left.reason) for left in left_out)
    for (license_, reason), count in reasons.most_common():
        say(f"  {count:>5}  {license_}: {reason}")
    click.echo("MODELS.md lists them; --include-license ID makes exceptions.\n")


@click.command(short_help="Write the database to object storage, as a part.")
@click.argument("address", metavar="ADDRESS")
@click.option("--no-verify", is_flag=True, help="Skip the check of all counts and hashes.")
@db_option
@quiet_option
def push(address: str, no_verify: bool, path: Path, quiet: bool) -> None:
    """Write the database to ADDRESS in object storage, where others open it as a part or pull it.

    Readers see the part whole or not at all, and nothing that is there is replaced; repeat the command to finish an
    interrupted one. All models are written, whatever their licences.

    \b
      cnnfilterdb push s3://bucket/part-1 --db part-1.db
      cnnfilterdb shift domain --db s3://bucket/part-1 --db s3://bucket/part-2
    """
    db = open_reader(path)
    with progress_bars(quiet) as progress:
        manifest = db.push(address, verify=not no_verify, progress=progress)
    remark(f"{address}: a part of {counted(manifest.models, 'model')} and {counted(manifest.filters, 'filter')}")


@click.command(short_help="Import a release, or part of it.")
@click.argument("location", metavar="RELEASE")
@_models_option
@_overwrite_option
@shard_option
@written_db_option
@quiet_option
def pull(location: str, where: str | None, overwrite: bool, shard: str | None, path: Path, quiet: bool) -> None:
    """Import RELEASE, or part of it, into a database folder; repeat the command to resume an interrupted run.

    RELEASE is OWNER/NAME or OWNER/NAME@v1.0.0 on the Hugging Face Hub, or the address or folder of a release.

    \b
      cnnfilterdb pull me/filters@v1.0.0 --where "domain LIKE 'medical%'"
      cnnfilterdb pull s3://bucket/release --db mine.db
    """
    from cnnfilterdb import pull

    with progress_bars(quiet) as progress:
        outcome = pull(location, path, where=where, shard=shard, overwrite=overwrite, progress=_models(progress))
    _summary(outcome, quiet)


@click.command(short_help="Import the models of other databases.")
@click.argument("others", metavar="DATABASE...", nargs=-1, required=True)
@_models_option
@_overwrite_option
@click.option("--keep-duplicates", is_flag=True, help="Import models whose weights another model has, too.")
@written_db_option
@quiet_option
def merge(
    others: tuple[str, ...], where: str | None, overwrite: bool, keep_duplicates: bool, path: Path, quiet: bool
) -> None:
    """Import the models of every DATABASE, a folder or a release; models with equal weights are dropped."""
    db = open_database(path, create=True)
    with progress_bars(quiet) as progress:
        outcome = db.merge(
            *others, where=where, overwrite=overwrite, keep_duplicates=keep_duplicates, progress=_models(progress)
        )
    _summary(outcome, quiet)


@click.command(short_help="List the releases of a data set.")
@click.argument("repo", metavar="OWNER/NAME")
@rows_options
def releases(repo: str, rows: Output) -> None:
    """List the releases of the data set OWNER/NAME, newest first."""
    import pandas as pd

    from cnnfilterdb import releases

    found = releases(repo)
    emit(pd.DataFrame({"tag": [one.tag for one in found], "commit": [one.commit for one in found]}), rows)


@click.command(short_help="Write filters to a file for other tools.")
@click.argument("file", type=FileToWrite())
@click.argument("models", nargs=-1)
@click.option("--to", "format_", type=click.Choice(["parquet", "arrow", "csv", "npz", "h5"]),
              help="Format; by default the one of the suffix of FILE.")  # fmt: skip
@where_option
@kernel_option
@db_option
@quiet_option
def export(
    file: Path, models: tuple[str, ...], format_: str | None, where: str | None, kernel: str, path: Path, quiet: bool
) -> None:
    """Write filters to FILE for other tools: .parquet, .arrow, .csv, .csv.gz, .npz, or .h5.

    MODELS are keys or wildcards; without them, all models.

    An .h5 file has the layout of the CNN Filter DB that was released with the papers, so its notebooks keep working.

    \b
      cnnfilterdb export faces.npz --where "domain = 'faces'"
      cnnfilterdb export deepcr.parquet 'pypi/deepcr/*'
      cnnfilterdb export dataset.h5
    """
    db = open_reader(path)
    where = models_condition(db, models, where)
    with progress_bars(quiet) as progress:
        done = db.export(file, to=format_, where=where, kernel=kernel, progress=progress)
    remark(f"{done.path}: {counted(done.filters, 'filter')} of {counted(done.models, 'model')}, {done.bytes:,} bytes")


def _models(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """One bar for all models."""
    return lambda model_id, done, total: progress("models", done, total)


def _summary(outcome: TransferReport, quiet: bool) -> None:
    for model_id, twin in outcome.duplicates.items():
        if not quiet:
            say(f"dropped: {model_id}: has the same weights as {twin}")
    for model_id in outcome.conflicts:
        warn(f"kept: {model_id}: already present with other weights; --overwrite replaces it")
    for model_id, error in outcome.failed.items():
        warn(f"failed: {model_id}: {error}")
    if not quiet:
        say(str(outcome))
    if outcome.stopped:
        raise DatabaseError(f"stopped: {outcome.stopped}")
    if outcome.failed:
        raise DatabaseError(
            f"{counted(len(outcome.failed), 'model')} could not be imported; repeat the command to try again"
        )
