"""The verbs that import models into a database."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnfilterdb.cli.options import (
    fact_options,
    network_options,
    open_database,
    quiet_option,
    shard_option,
    written_db_option,
)
from cnnfilterdb.cli.output import print_shift, print_summary, remark, say, warn
from cnnfilterdb.cli.progress import progress_bars, progress_observer, status
from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.core.reports import counted, read_of

if TYPE_CHECKING:
    from cnnfilterdb import FilterDB
    from cnnfilterdb.core.reports import IngestReport
    from cnnfilterdb.ingest.pipeline import Forecast

__all__ = ["add", "demo", "import_", "ingest"]

# Entries that are listed of what was left out
_LISTED = 10

# Bytes of a download before which a user on a terminal is asked.
_LARGE = 2_000_000_000

_CACHE = "CNNFILTERDB_CACHE"


@click.command(short_help="Import real models, compare and draw them.")
@written_db_option
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), default="report", show_default=True,
              metavar="DIR", help="Folder for the figures and the report.")  # fmt: skip
@quiet_option
def demo(path: Path, report: Path, quiet: bool) -> None:
    """Import the models of the collection `demo`, compare their domains, and draw figures and a report."""
    db = open_database(path, create=True)
    outcome = _ingest_all(db, _collected("demo"), quiet=quiet)
    with progress_bars(quiet) as progress:
        db.index(progress=progress)
    click.echo("\nShift between image domains (symmetric KL, nats), as `cnnfilterdb shift domain` prints it:\n")
    print_shift(db.shift_matrix("domain"), "domain")
    report.mkdir(parents=True, exist_ok=True)
    with status("drawing", quiet):
        for name, figure in {
            "kl_shift.png": db.plot.kl_shift(by="domain"),
            "ridge.png": db.plot.ridge(by="domain"),
            "eigenfilters.png": db.plot.eigenfilters(by="domain"),
        }.items():
            figure.savefig(report / name, dpi=150)
        page = db.report(report / "report.html", by="domain")
    remark("")
    remark(f"Figures and a report: {page}")
    print_summary(outcome, quiet=quiet)
    remark(f'Next: cnnfilterdb sql --db {path} "FROM kl_shift(task)"')


@click.command(short_help="Import models from a source.")
@click.argument("source", required=False)
@click.argument("names", nargs=-1)
@click.option(
    "--collection",
    metavar="NAME",
    help="A named list of models in the catalog, such as demo, instead of SOURCE and NAMES.",
)
@click.option("--overwrite", is_flag=True, help="Import models again that are already present.")
@click.option("--fold-bn", is_flag=True, help="Fold batch normalisations into the kernels; the names get `+bn`.")
@click.option("--allow-untrained", is_flag=True, help="Accept weights that look like random initialisation.")
@click.option("--from", "folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Look for weight files in DIR before downloading.")  # fmt: skip
@click.option("--offline", is_flag=True, default=None, help="Do not access the network.")
@click.option("--partial", is_flag=True, default=None, help="Download only the convolutions of a file.")
@shard_option
@click.option("--no-cache", is_flag=True, help="Delete the downloads at the end instead of keeping them in the cache.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a download of more than 2 GB.")
@written_db_option
@quiet_option
def ingest(
    source: str | None, names: tuple[str, ...], collection: str | None, path: Path, no_cache: bool, yes: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Import models from SOURCE by NAMES, which may have wildcards; without NAMES, all of them.

    Models already present are skipped; repeat the command to resume an interrupted run. Before it starts, it states how
    much it will download and store; on a terminal it asks first if the download exceeds 2 GB.

    \b
      cnnfilterdb ingest pypi 'deepcr/*'
      cnnfilterdb ingest files checkpoints/
      cnnfilterdb ingest --collection demo
      cnnfilterdb ingest pypi 'deepcr/*' --fold-bn
    """
    if (source is None) == (collection is None):
        raise click.UsageError("give a SOURCE (pypi, files, ...) or --collection NAME")
    wanted = {source: list(names)} if source is not None else _collected(str(collection))
    with _downloads(keep=not no_cache):
        expected = _forecast(path, wanted, **options)
        if not options["offline"]:
            _announce(expected, keep=not no_cache, ask=not yes, quiet=quiet)
        db = open_database(path, create=True)
        outcome = _ingest_all(db, wanted, quiet=quiet, **options)
    if outcome.done and not quiet:
        say(f"imported: {_coverage(db, list(outcome.done))}")
        _say_left_out(db, list(outcome.done))
    print_summary(outcome, quiet=quiet)


@click.command(short_help="Add a weight file of your own.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the model.")
@fact_options
@click.option("--overwrite", is_flag=True, help="Replace a model of the same name.")
@click.option("--fold-bn", is_flag=True, help="Fold batch normalisations into the kernels; the name gets `+bn`.")
@network_options
@written_db_option
def add(
    file: Path, name: str, overwrite: bool, fold_bn: bool, network: str | None, merge_adapters: bool, new_word: bool,
    path: Path, **facts: str | None,
) -> None:  # fmt: skip
    """Add a weight FILE of your own, and list what was left out of it.

    Options that take TEXT record facts about the model.
    """
    from cnnfilterdb import catalog

    known: dict[str, Any] = {key: value for key, value in facts.items() if value is not None}
    catalog.check_facts(known, new_words=new_word)  # before a folder is created
    if not file.exists():
        raise WeightFileError(f"{file}: does not exist; expected a weight file")
    db = open_database(path, create=True)
    chosen: dict[str, Any] = {"fold_bn": fold_bn, "network": network, "merge_adapters": merge_adapters}
    model_id = db.add(file, name, overwrite=overwrite, new_words=new_word, **chosen, **known)
    remark(f"{model_id}: {_coverage(db, [model_id])}")
    _say_left_out(db, [model_id])


@click.command("import", short_help="Import the papers' dataset.h5.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Let pandas unpickle the table of FILE, which can run code in it.")
@click.option("--overwrite", is_flag=True, help="Import models again that are already present.")
@written_db_option
@quiet_option
def import_(file: Path, trust: bool, overwrite: bool, path: Path, quiet: bool) -> None:
    """Import the models of FILE, the dataset.h5 released with the papers.

    Models already present are skipped; repeat the command to resume an interrupted run.

    \b
      cnnfilterdb import dataset.h5
    """
    if not file.is_file():
        raise WeightFileError(f"{file}: not a file; expected the papers' dataset.h5")
    db = open_database(path, create=True)
    with progress_observer(quiet) as observer:
        outcome = db.import_released(file, trust=trust, overwrite=overwrite, observer=observer)
    print_summary(outcome, quiet=quiet)


def _coverage(db: FilterDB, model_ids: list[str]) -> str:
    """How much of the files of models is in the database."""
    from cnnfilterdb.ingest.network.contents import CONTENTS, added, contents_line, from_text

    (layers,) = db.sql("SELECT count(*) FROM layers WHERE list_contains($1, model_id)", [model_ids]).fetchall()[0]
    filters, left_out, contents = db.sql(
        "SELECT sum(stored_filters), sum(coalesce(len(skipped), 0)), list(original[$2]) FROM models "
        "WHERE list_contains($1, model_id)",
        [model_ids, CONTENTS],
    ).fetchall()[0]
    text = f"{read_of(layers, left_out)}, {counted(filters, 'filter')}"
    whole = [from_text(one) for one in contents]
    return f"{text}; {contents_line(reduce(added, whole))}" if all(whole) else text


def _say_left_out(db: FilterDB, model_ids: list[str]) -> None:
    """List what the files of models hold and the database does not, with the reasons."""
    left_out = db.sql(
        "SELECT model_id, entry FROM (SELECT model_id, unnest(skipped) AS entry FROM models "
        "WHERE list_contains($1, model_id))",
        [model_ids],
    ).fetchall()
    for model_id, entry in left_out[:_LISTED]:
        remark(f"left out: {entry}" if len(model_ids) == 1 else f"left out: {model_id}: {entry}")
    if len(left_out) > _LISTED:
        remark(
            f"left out: {len(left_out) - _LISTED:,} more; "
            'list all with cnnfilterdb sql "SELECT model_id, unnest(skipped) FROM models"'
        )


def _collected(name: str) -> dict[str, list[str]]:
    """The models of a collection by source."""
    from cnnfilterdb import catalog

    by_source: dict[str, list[str]] = {}
    for source, model in catalog.expand(name):
        by_source.setdefault(source, []).append(model)
    return by_source


def _forecast(path: Path | str, wanted: dict[str, list[str]], *, overwrite: bool, fold_bn: bool,
              folder: Path | None, offline: bool | None, partial: bool | None, shard: str | None = None,
              **_: Any) -> Forecast:  # fmt: skip
    """What an import needs; a source, an option or a name that is not known is refused before a folder is created."""
    from cnnfilterdb.ingest import sources
    from cnnfilterdb.ingest.pipeline import Forecast, forecast, in_share
    from cnnfilterdb.store.folder import Store

    total = Forecast(0, 0, 0, 0, 0)
    there = isinstance(path, Path) and (path / MARKER).exists()
    store = Store.open(path.resolve()) if isinstance(path, Path) and there else None
    for source, names in wanted.items():
        origin = sources.get(source, folder=folder, offline=offline, partial=partial)
        chosen = in_share(origin.name, list(origin.list(names)), shard, fold_bn=fold_bn)
        total += forecast(store, origin, chosen, overwrite=overwrite, fold_bn=fold_bn)
    return total


def _announce(expected: Forecast, *, keep: bool, ask: bool, quiet: bool) -> None:
    """State what an import needs, and ask on a terminal before a large download; a refusal ends the command."""
    if not expected.models or not (expected.download or expected.unknown):
        return
    asking = ask and expected.download > _LARGE and _interactive()
    if asking or not quiet:
        fate = "keep in the cache" if keep else "delete at the end"
        warn(str(expected).replace("to download", f"to download and {fate}"))
    if asking and not click.confirm("Continue?", err=True, default=True):
        warn("nothing was imported")
        sys.exit(1)


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def _downloads(*, keep: bool) -> Iterator[None]:
    """Keep downloads in the cache, or only until the end of the block."""
    if keep:
        yield
        return
    former = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="cnnfilterdb-downloads-") as folder:
        os.environ[_CACHE] = folder  # child processes have it, too
        try:
            yield
        finally:
            if former is None:
                del os.environ[_CACHE]
            else:
                os.environ[_CACHE] = former


def _ingest_all(db: FilterDB, wanted: dict[str, list[str]], *, quiet: bool, **options: Any) -> IngestReport:
    """Import models of several sources; a full disk ends the run."""
    from cnnfilterdb.core.reports import IngestReport

    outcome = IngestReport()
    for source, models in wanted.items():
        with progress_observer(quiet) as observer:
            part = db.ingest(source, models, observer=observer, **options)
        outcome.done |= part.done
        outcome.skipped += part.skipped
        outcome.failed += part.failed
        outcome.stopped = part.stopped
        if part.stopped:
            break
    return outcome
