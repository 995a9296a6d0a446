"""The verbs between a database and others: releases on the Hub, other folders, files for other tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnnfilterdb.cli.options import db_option, kernel_option, open_database, open_reader, quiet_option, rows_options
from cnnfilterdb.cli.output import emit
from cnnfilterdb.cli.progress import progress_bars
from cnnfilterdb.errors import DatabaseError

if TYPE_CHECKING:
    from cnnfilterdb.release.manifest import LeftOut, Manifest
    from cnnfilterdb.reports import TransferReport

__all__ = ["export", "merge", "publish", "pull", "releases"]

_models_option = click.option("--where", metavar="SQL", help="Condition over the columns of models: these only.")
_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace models of the same key with other weights.")


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--version", metavar="X.Y.Z", help="Version; by default the next minor one.")
@click.option("--include-license", multiple=True, metavar="ID",
              help="Publish models of this licence too; `unknown` for none. Can be given several times.")  # fmt: skip
@click.option("--private", is_flag=True, help="Make a new data set private.")
@click.option("--dry-run", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write the release to this folder and upload nothing.")  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not check every count and hash first.")
@db_option
@quiet_option
def publish(
    repo: str, version: str | None, include_license: tuple[str, ...], private: bool, folder: Path | None,
    no_verify: bool, path: Path, quiet: bool,
) -> None:  # fmt: skip
    """Publish a release as the data set OWNER/NAME on the Hugging Face Hub.

    Readers see it whole or not at all; a run that was cut is finished by the same line. Models whose licence does not
    permit it, or that state none, are left out and listed. The token is that of `hf auth login` or HF_TOKEN.

    \b
      cnnfilterdb publish me/filters --dry-run release
      cnnfilterdb publish me/filters
    """
    from cnnfilterdb.release.manifest import Manifest

    db = open_database(path)
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
        click.echo(f"{folder}: release {manifest.version} of {manifest.models:,} models; nothing was uploaded")
        return
    click.echo(
        f"published {done.tag}: {done.url} ({done.new_files} new files, at most {done.uploaded_bytes / 1e6:,.1f} MB "
        f"sent; {done.unchanged_files} as before)"
    )


def _print_files(manifest: Manifest) -> None:
    for table in manifest.tables():
        files = manifest.of(table)
        size = sum(file.bytes for file in files)
        click.echo(f"{table:<16} {sum(file.rows for file in files):>14,} rows {len(files):>5} files {size:>16,} bytes")


def _print_left_out(left_out: tuple[LeftOut, ...]) -> None:
    if not left_out:
        return
    click.echo(f"\n{len(left_out)} models are left out:")
    reasons = Counter((left.license or "no licence", left.reason) for left in left_out)
    for (license_, reason), count in reasons.most_common():
        click.echo(f"  {count:>5}  {license_}: {reason}")
    click.echo("MODELS.md lists them; `--include-license ID` names exceptions.\n")


@click.command()
@click.argument("location", metavar="RELEASE")
@_models_option
@_overwrite_option
@db_option
@quiet_option
def pull(location: str, where: str | None, overwrite: bool, path: Path, quiet: bool) -> None:
    """Bring RELEASE, or part of it, into a database folder; a run that was cut is finished by the same line.

    RELEASE is OWNER/NAME or OWNER/NAME@v1.0.0 on the Hugging Face Hub, or any address or folder of a release.

    \b
      cnnfilterdb pull me/filters@v1.0.0 --where "domain LIKE 'medical%'"
      cnnfilterdb pull s3://bucket/release --db mine.db
    """
    from cnnfilterdb.database import pull

    with progress_bars(quiet) as progress:
        outcome = pull(location, path, where=where, overwrite=overwrite, progress=_models(progress))
    _summary(outcome, quiet)


@click.command()
@click.argument("other", metavar="DATABASE")
@_models_option
@_overwrite_option
@click.option("--keep-duplicates", is_flag=True, help="Take over models whose weights another one has too.")
@db_option
@quiet_option
def merge(other: str, where: str | None, overwrite: bool, keep_duplicates: bool, path: Path, quiet: bool) -> None:
    """Take over the models of another DATABASE, a folder or a release; models with equal weights are dropped."""
    db = open_database(path, create=True)
    with progress_bars(quiet) as progress:
        outcome = db.merge(
            other, where=where, overwrite=overwrite, keep_duplicates=keep_duplicates, progress=_models(progress)
        )
    _summary(outcome, quiet)


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@rows_options
def releases(repo: str, style: str, output: Path | None) -> None:
    """List the releases of the data set OWNER/NAME, newest first."""
    import pandas as pd

    from cnnfilterdb.publish.hub import releases

    found = releases(repo)
    emit(pd.DataFrame({"tag": [one.tag for one in found], "commit": [one.commit for one in found]}), style, output)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", "format_", type=click.Choice(["parquet", "arrow", "csv", "npz", "h5"]),
              help="Format; by default told by the ending of FILE.")  # fmt: skip
@click.option("--where", metavar="SQL", help="Condition over the columns of models and layers.")
@kernel_option
@db_option
@quiet_option
def export(file: Path, format_: str | None, where: str | None, kernel: str, path: Path, quiet: bool) -> None:
    """Write filters to FILE for other tools: .parquet, .arrow, .csv, .csv.gz, .npz, or .h5.

    An .h5 file has the layout of the CNN Filter DB that the papers released, so that notebooks for it keep working.

    \b
      cnnfilterdb export faces.npz --where "domain = 'faces'"
      cnnfilterdb export dataset.h5
    """
    with progress_bars(quiet) as progress:
        done = open_reader(path).export(file, to=format_, where=where, kernel=kernel, progress=progress)
    click.echo(f"{done.path}: {done.filters:,} filters of {done.models:,} models, {done.bytes:,} bytes")


def _models(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """One bar for all models."""
    return lambda model_id, done, total: progress("models", done, total)


def _summary(outcome: TransferReport, quiet: bool) -> None:
    for model_id, twin in outcome.duplicates.items():
        if not quiet:
            click.echo(f"dropped: {model_id}: has the weights of {twin}")
    for model_id in outcome.conflicts:
        click.echo(f"kept: {model_id}: is there with other weights; --overwrite replaces it", err=True)
    for model_id, error in outcome.failed.items():
        click.echo(f"failed: {model_id}: {error}", err=True)
    if not quiet:
        click.echo(str(outcome))
    if outcome.failed:
        raise DatabaseError(f"{len(outcome.failed)} models could not be taken over; the same line tries them again")
