"""The command line: each verb is a thin call of a FilterDB method."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from cnnfilterdb.errors import CnnFilterDbError, SelectionError

if TYPE_CHECKING:
    import pandas as pd

    from cnnfilterdb.database import FilterDB
    from cnnfilterdb.ingest.pipeline import IngestReport, Observer

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DB = "filters.db"


# ------------------------------------------------------------------------------------------------ shared options

db_option = click.option(
    "--db", "path", type=click.Path(path_type=Path), default=DEFAULT_DB, envvar="CNNFILTERDB", show_default=True,
    show_envvar=True, metavar="DIR", help="Folder of the database.",
)  # fmt: skip
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar and no remarks.")
where_option = click.option("--where", metavar="SQL", help="Condition over the columns of models and layers.")
kernel_option = click.option("--kernel", default="3x3", show_default=True, metavar="SIZE", help="Kernel size.")
all_layers_option = click.option(
    "--all-layers", is_flag=True, help="Take in transposed and dead layers, which the papers leave out."
)


def rows_options(command: F) -> F:
    """Options of every verb that prints rows."""
    command = click.option(
        "--format", "style", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True,
        help="How rows are printed.",
    )(command)  # fmt: skip
    return click.option(
        "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Write the rows to a file instead.",
    )(command)  # fmt: skip


def shift_options(command: F) -> F:
    """Options of every verb that compares groups."""
    options = [
        all_layers_option,
        kernel_option,
        click.option("--range", "limits", type=float, nargs=2, metavar="LOW HIGH", help="In place of the recipe's."),
        click.option("--bins", type=click.IntRange(min=1), help="In place of 70 bins."),
        click.option(
            "--basis", metavar="ID", help="Key of a stored basis, `selection` to fit on what is selected, or a file.",
        ),
        click.option("--min-models", type=click.IntRange(min=1), default=1, help="Leave out groups of fewer models."),
        click.option("--min-filters", type=click.IntRange(min=1), default=1, help="Leave out groups of fewer filters."),
        click.option(
            "--metric", default="kl", show_default=True, help="How far two distributions are apart.",
            type=click.Choice(["kl", "directed", "jensen_shannon", "total_variation", "wasserstein"]),
        ),
        click.option(
            "--balance", type=click.Choice(["filters", "layers", "models", "families"]), default="filters",
            show_default=True, help="What counts the same within a group.",
        ),
        click.option(
            "--recipe", type=click.Choice(["cvpr2022", "medneurips2022"]), default="cvpr2022", show_default=True,
            help="Range and weights, as one of the papers sets them.",
        ),
        where_option,
    ]  # fmt: skip
    for option in options:
        command = option(command)
    return command


# ---------------------------------------------------------------------------------------------------------- verbs


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cnnfilterdb")
def cli() -> None:
    """A database of the kernels of trained convolutional networks.

    `cnnfilterdb demo` builds one from real models and shows what it can tell.
    """


@cli.command()
@db_option
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), default="report", show_default=True,
              metavar="DIR", help="Folder for the pictures and the page.")  # fmt: skip
@quiet_option
def demo(path: Path, report: Path, quiet: bool) -> None:
    """Bring the models of the collection `demo`, compare their domains, draw the pictures."""
    db = _open(path, create=True)
    outcome = _ingest_collection(db, "demo", quiet=quiet)
    _index(db, quiet=quiet)
    click.echo(f"\nShift between image domains (symmetric KL, nats): db.kl_shift(by='domain') in {path}\n")
    matrix = db.kl_shift(by="domain")
    _print_shift(matrix)
    report.mkdir(parents=True, exist_ok=True)
    with _status("drawing", quiet):
        for name, figure in {
            "kl_shift.png": db.plot.kl_shift(by="domain"),
            "ridge.png": db.plot.ridge(by="domain"),
            "eigenfilters.png": db.plot.eigenfilters(by="domain"),
        }.items():
            figure.savefig(report / name, dpi=150)
        page = db.report(report / "report.html", by="domain")
    click.echo(f"\nPictures and a page to look at: {page}")
    click.echo(f'Next: cnnfilterdb sql --db {path} "FROM kl_shift(task)"')
    _summary(outcome, quiet=False)


@cli.command()
@click.argument("source", required=False)
@click.argument("names", nargs=-1)
@click.option(
    "--collection", metavar="NAME", help="A named list of the catalog, such as demo, instead of SOURCE and NAMES."
)
@click.option("--overwrite", is_flag=True, help="Bring models again that are there already.")
@click.option("--fold-bn", is_flag=True, help="Fold batch normalisations into the kernels; the names get `+bn`.")
@click.option("--allow-untrained", is_flag=True, help="Take in weights that look like random initialisation.")
@click.option("--from", "folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Look for the files in this folder before anything is downloaded.")  # fmt: skip
@click.option("--offline", is_flag=True, default=None, help="Ask nothing of the network.")
@click.option("--partial", is_flag=True, default=None, help="Download the convolutions of a file only.")
@db_option
@quiet_option
def ingest(
    source: str | None, names: tuple[str, ...], collection: str | None, path: Path, quiet: bool, **options: Any
) -> None:
    """Bring models from SOURCE by NAMES (wildcards are fine; all of them without NAMES).

    What is in the database already is skipped, so an interrupted run is finished by the same line.

    \b
      cnnfilterdb ingest pypi 'deepcr/*'
      cnnfilterdb ingest files checkpoints/
      cnnfilterdb ingest --collection demo
      cnnfilterdb ingest pypi 'deepcr/*' --fold-bn
    """
    if (source is None) == (collection is None):
        raise click.UsageError("give a SOURCE (pypi, files, ...) or --collection NAME")
    db = _open(path, create=True)
    if collection is not None:
        outcome = _ingest_collection(db, collection, quiet=quiet, **options)
    else:
        assert source is not None
        with _observer(quiet) as observer:
            outcome = db.ingest(source, names, observer=observer, **options)
    _summary(outcome, quiet=quiet)


def _fact_options(command: F) -> F:
    from cnnfilterdb.schema import ModelFacts

    for fact in reversed(fields(ModelFacts)):
        if fact.name not in ("metrics", "original", "weights_sha256", "file_format"):
            command = click.option(f"--{fact.name.replace('_', '-')}", fact.name, metavar="TEXT")(command)
    return command


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the model.")
@_fact_options
@click.option("--overwrite", is_flag=True, help="Replace a model of that name.")
@click.option("--fold-bn", is_flag=True, help="Fold batch normalisations into the kernels; the name gets `+bn`.")
@db_option
def add(file: Path, name: str, overwrite: bool, fold_bn: bool, path: Path, **facts: str | None) -> None:
    """Add a weight FILE of your own; every other option is a fact about it."""
    db = _open(path, create=True)
    known = {key: value for key, value in facts.items() if value is not None}
    model_id = db.add(file, name, overwrite=overwrite, fold_bn=fold_bn, **known)
    row = db.models(f"model_id = {_literal(model_id)}").iloc[0]
    click.echo(f"{model_id}: {row.conv_layers} convolution layers, {row.filters:,} filters")


@cli.command()
@click.argument("models", nargs=-1)
@where_option
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="CSV or TOML file with facts of models.")
@_fact_options
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
    annotated = _open(path).annotate(*models, where=where, file=file, reset=reset, **known)
    click.echo(f"annotated {len(annotated)}")


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Let pandas unpickle the table of FILE, which can run code of it.")
@click.option("--overwrite", is_flag=True, help="Bring models again that are there already.")
@db_option
@quiet_option
def import_(file: Path, trust: bool, overwrite: bool, path: Path, quiet: bool) -> None:
    """Bring the models of FILE, the dataset.h5 that the papers have released.

    What is in the database already is skipped, so an interrupted run is finished by the same line.

    \b
      cnnfilterdb import dataset.h5
    """
    db = _open(path, create=True)
    with _observer(quiet) as observer:
        outcome = db.import_released(file, trust=trust, overwrite=overwrite, observer=observer)
    _summary(outcome, quiet=quiet)


@cli.command()
@click.option("--refit", is_flag=True, help="Fit new bases on all models that are there now; older bases stay.")
@db_option
@quiet_option
def index(refit: bool, path: Path, quiet: bool) -> None:
    """Fit the SVD bases and count the histograms that shifts are made from."""
    db = _open(path)
    _index(db, refit=refit, quiet=quiet)
    for fitted in db.bases():
        ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.basis.explained_variance_ratio[:9])
        click.echo(f"{fitted.basis_id}: {len(fitted.models)} models, {fitted.layers:,} layers, "
                   f"{fitted.basis.filters:,} filters; explained variance ratio {ratios}")  # fmt: skip


@cli.command()
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
        frame = _open(path).models(where)
    if licenses:
        frame = frame[["model_id", "license", "paper", "url"]]
    elif style == "table" and output is None:
        columns = ["model_id", "architecture", "task", "domain", "conv_layers", "filters", "license"]
        frame = frame[[column for column in columns if column in frame]]
    _emit(frame.fillna({"license": "unknown"}), style, output)


@cli.command()
@where_option
@rows_options
@db_option
def layers(where: str | None, style: str, output: Path | None, path: Path) -> None:
    """List convolution layers with their statistics."""
    frame = _open(path).layers(where)
    if style == "table" and output is None:
        frame = frame[
            ["model_id", "layer", "name", "kind", "kernel", "in_channels", "out_channels", "filters", "sparsity",
             "variance_entropy", "orthogonality"]
        ]  # fmt: skip
    _emit(frame, style, output)


@cli.command()
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
    _emit(_open(path).sql(text).df(), style, output)


@cli.command()
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
    db, where = _open(path), options.pop("where")
    if options["basis"] and options["basis"].endswith((".json", ".npz")):
        from cnnfilterdb.artefact import load_basis

        options["basis"] = load_basis(options["basis"])
    if sum((components, bootstrap is not None, nearest is not None)) > 1:
        raise click.UsageError("give one of --components, --bootstrap and --nearest")
    if components:
        _emit(db.kl_shift_components(by, where, range=limits or None, **options), style, output)
    elif bootstrap is not None:
        frame = db.kl_shift_intervals(by, where, samples=bootstrap, range=limits or None, **options)
        _emit(frame, style, output)
    elif nearest is not None:
        _emit(db.nearest_groups(nearest, by, where, range=limits or None, **options).reset_index(), style, output)
    elif style == "table" and output is None:
        _print_shift(db.kl_shift(by, where, range=limits or None, **options))
    else:
        matrix = db.kl_shift(by, where, range=limits or None, **options)
        _emit(matrix.rename_axis(columns=None).rename(columns=str).reset_index(), style, output)


@cli.command()
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
    from cnnfilterdb.artefact import save_basis

    fitted = _open(path).basis(where, kernel=kernel, variant=variant)
    save_basis(fitted, file)
    ratios = " ".join(f"{ratio:.3f}" for ratio in fitted.explained_variance_ratio[:9])
    click.echo(f"{file}: {fitted.filters:,} filters; explained variance ratio {ratios}")


@cli.command()
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
    frame = _open(path).quality(by, where, kernel=kernel, all_layers=all_layers, **thresholds)
    _emit(frame.reset_index(), style, output)


@cli.command()
@click.argument("kernel")
@click.option("--limit", "-n", type=click.IntRange(min=1), default=10, show_default=True, help="How many to list.")
@click.option("--sign", is_flag=True, help="Negative multiples are similar too.")
@click.option("--offset", is_flag=True, help="A constant added to all weights does not matter.")
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
    _emit(_open(path).nearest(rows, **options), style, output)


@cli.command()
@rows_options
@db_option
def shared(style: str, output: Path | None, path: Path) -> None:
    """List pairs of models that hold the same layers, bit for bit: shared ancestry."""
    _emit(_open(path).shared_models(), style, output)


@cli.command()
@click.argument("kind", type=click.Choice(["shift", "ridge", "eigenfilters", "quality", "variance", "filters"]))
@click.option("--by", default="domain", show_default=True, help="Grouping expression.")
@click.option("--model", help="For `filters`: key of the model.")
@click.option("--layer", type=int, default=0, show_default=True, help="For `filters`: layer of the model.")
@where_option
@kernel_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Picture file; by default KIND.png."
)
@click.option("--dpi", type=click.IntRange(min=30, max=1200), default=150, show_default=True)
@db_option
def plot(
    kind: str, by: str, model: str | None, layer: int, where: str | None, kernel: str, output: Path | None, dpi: int,
    path: Path,
) -> None:  # fmt: skip
    """Draw a figure: the shift matrix, ridges, eigenfilters, quality, where weights vary, or the filters of a layer."""
    draw = _open(path).plot
    if kind == "filters":
        if model is None:
            raise click.UsageError("plot filters needs --model")
        figure = draw.filters(model, layer=layer)
    elif kind == "variance":
        # Large kernels are what it is about: all sizes, unless one is asked for.
        asked = click.get_current_context().get_parameter_source("kernel") is not ParameterSource.DEFAULT
        figure = draw.variance(by=by, where=where, kernel=kernel if asked else None)
    else:
        method = {
            "shift": draw.kl_shift,
            "ridge": draw.ridge,
            "eigenfilters": draw.eigenfilters,
            "quality": draw.quality,
        }
        figure = method[kind](by=by, where=where, kernel=kernel)
    target = output or Path(f"{kind}.png")
    with _writing(target):
        figure.savefig(target, dpi=dpi)
    click.echo(str(target))


@cli.command()
@click.option("--by", default="domain", show_default=True, help="Grouping expression.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True
)
@db_option
def report(by: str, output: Path, path: Path) -> None:
    """Write one self-contained page about the database."""
    with _writing(output):
        click.echo(str(_open(path).report(output, by=by)))


@cli.command()
@db_option
@quiet_option
def verify(path: Path, quiet: bool) -> None:
    """Check every count and every hash."""
    db = _open(path)
    with _progress(quiet) as progress:
        problems = db.verify(progress=progress)
    for problem in problems:
        click.echo(f"{problem.model_id or '-'}: {problem.path}: {problem.message}")
    if problems:
        raise SelectionError(f"{len(problems)} problems in {path}; remove the models named above and ingest them again")
    click.echo(f"{path}: {len(db.models())} models, all counts and hashes are right")


@cli.command()
@click.argument("model_ids", nargs=-1, required=True)
@db_option
def remove(model_ids: tuple[str, ...], path: Path) -> None:
    """Remove models by their keys."""
    db = _open(path)
    db.remove(*model_ids)
    click.echo(f"removed {len(model_ids)}; {len(db.models())} models are left")


def main() -> None:
    """Run the command line: status 0, 1 for a failure told in one line, 2 for wrong usage."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what is done is kept, the same line finishes the rest", err=True)
        sys.exit(130)
    except CnnFilterDbError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone, as `| head` does
        sys.exit(0)


# -------------------------------------------------------------------------------------------------------- helpers


def _open(path: Path, *, create: bool = False) -> FilterDB:
    from cnnfilterdb.database import FilterDB

    return FilterDB(path, create=create)


def _literal(text: str) -> str:
    from cnnfilterdb.sql import literal

    return literal(text)


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


def _ingest_collection(db: FilterDB, name: str, *, quiet: bool, **options: Any) -> IngestReport:
    from cnnfilterdb import catalog
    from cnnfilterdb.ingest.pipeline import IngestReport

    by_source: dict[str, list[str]] = {}
    for source, model in catalog.expand(name):
        by_source.setdefault(source, []).append(model)
    outcome = IngestReport()
    for source, models in by_source.items():
        with _observer(quiet) as observer:
            part = db.ingest(source, models, observer=observer, **options)
        outcome.done |= part.done
        outcome.skipped += part.skipped
        outcome.failed += part.failed
    return outcome


def _index(db: FilterDB, *, refit: bool = False, quiet: bool) -> None:
    with _progress(quiet) as progress:
        db.index(refit=refit, progress=progress)


def _summary(outcome: IngestReport, *, quiet: bool) -> None:
    for failure in outcome.failed:
        click.echo(f"failed: {failure.model_id}: {failure.reason}", err=True)
    if not quiet or outcome.failed:
        click.echo(str(outcome), err=bool(outcome.failed))
    if outcome.failed:
        sys.exit(1)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SelectionError(f"{path}: cannot be written: {error.strerror or error}") from error


def _bars(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console, disable=quiet or not console.is_terminal, transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per kind of work, fed with (what, done, total)."""
    with _bars(quiet) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, note="")
            bars.update(tasks[what], completed=done, total=total)

        yield update


@contextlib.contextmanager
def _status(what: str, quiet: bool) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(what):
            yield


@contextlib.contextmanager
def _observer(quiet: bool) -> Iterator[Observer]:
    from cnnfilterdb.ingest.pipeline import Observer

    with _bars(quiet) as bars:
        task = bars.add_task("models", total=None, note="")

        class Bar(Observer):
            def started(self, total: int) -> None:
                bars.update(task, total=total)

            def downloading(self, model_id: str, done: int, total: int | None) -> None:
                share = f" {done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f" {done / 1e6:.1f} MB"
                bars.update(task, note=model_id + share)

            def finished(self, model_id: str, outcome: str) -> None:
                bars.update(task, advance=1, note=f"{model_id} {outcome}")

        yield Bar()


def _emit(frame: pd.DataFrame, style: str, output: Path | None) -> None:
    """Print rows, or write them to a file."""
    if style == "parquet":
        if output is None and sys.stdout.isatty():
            raise click.UsageError("Parquet is binary: add --output FILE or redirect it")
        data: str | bytes = frame.to_parquet(index=False)
    elif style == "csv":
        data = frame.to_csv(index=False)
    elif style == "json":
        data = frame.to_json(orient="records", indent=1, date_format="iso", default_handler=str) + "\n"
    else:
        data = _table(frame)
    if output is None:
        click.echo(data, nl=False)
        return
    with _writing(output):
        if isinstance(data, bytes):
            output.write_bytes(data)
        else:
            output.write_text(data, encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if value and abs(value) < 0.1 else f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(frame: pd.DataFrame) -> str:
    """Plain aligned text: numbers right, everything else left; it can be piped and pasted."""
    import pandas as pd

    cells = [[_cell(value) for value in column] for column in (frame[name].tolist() for name in frame)]
    right = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    names = [str(name) for name in frame]
    widths = [max([len(name), *map(len, column)]) for name, column in zip(names, cells, strict=True)]

    def line(values: list[str]) -> str:
        return "  ".join(
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(values, widths, right, strict=True)
        ).rstrip()

    body = [line(list(row)) for row in zip(*cells, strict=True)]
    return "\n".join([line(names), line(["-" * width for width in widths]), *body]) + "\n"


def _print_shift(matrix: pd.DataFrame) -> None:
    """The matrix with the sizes of its groups, and under it how it was made."""
    sizes = matrix.attrs["groups"]
    frame = matrix.map(lambda value: f"{value:.3f}").astype(str)
    frame.columns = [str(label) for label in frame.columns]
    frame.insert(0, matrix.index.name, [str(label) for label in matrix.index])
    frame.insert(1, "models", [int(sizes[label]["models"]) for label in matrix.index])
    frame.insert(2, "filters", [int(sizes[label]["filters"]) for label in matrix.index])
    click.echo(_table(frame.reset_index(drop=True)), nl=False)
    attrs = matrix.attrs
    low, high = attrs["range"]
    outside = max(size["outside"] for size in sizes.values())
    click.echo(
        f"\nmetric {attrs['metric']}, basis {attrs['basis']}, recipe {attrs['recipe']}, {attrs['bins']} bins "
        f"from {low:.3f} to {high:.3f}, balance {attrs['balance']}; "
        f"at most {outside:.2%} of a group's coefficients fall outside"
    )
