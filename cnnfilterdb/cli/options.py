"""The options that several verbs share, and how a verb opens its database."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cnnfilterdb.cli.output import FORMATS, QUIET, Output, log_as
from cnnfilterdb.core.errors import NotADatabaseError, SelectionError

if TYPE_CHECKING:
    from cnnfilterdb import FilterDB, Reader

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # a generic class since click 8.4

__all__ = [
    "FACTS",
    "FileToWrite",
    "ParamType",
    "Several",
    "all_layers_option",
    "by_option",
    "chosen_duplicates",
    "common_options",
    "compared_db_option",
    "db_option",
    "everywhere",
    "fact_options",
    "group_arguments",
    "group_options",
    "kernel_option",
    "metric_option",
    "models_condition",
    "named",
    "naming",
    "network_options",
    "open_database",
    "open_reader",
    "permutations_option",
    "quiet_option",
    "resources",
    "rows_options",
    "seed_option",
    "shard_option",
    "trained_only",
    "trained_option",
    "weights_option",
    "where_option",
    "within_option",
    "written_db_option",
]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DB = "filters.db"

#: Where the context of a command keeps what a database may use.
_RESOURCES = "cnnfilterdb.resources"

#: ANNOTATED of cnnfilterdb.core.schema, which imports pyarrow: `--help` should not wait for it.
FACTS = (
    "architecture",
    "family",
    "task",
    "domain",
    "training_dataset",
    "pretraining_dataset",
    "framework",
    "revision",
    "url",
    "license",
    "paper",
)


class FileToWrite(click.Path):
    """A file whose folder exists, which is checked before any work is done."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error if its folder does not exist."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path}: its folder does not exist; create it, or choose another", param, ctx)
        return path


class _Location(ParamType):
    """A folder, an address, whose slashes a path would change, or the name of the corpus in the package."""

    name = "location"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """One location, which may contain spaces."""
        return [rv]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return value if "://" in str(value) or value == "reference" else Path(value)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Store --quiet where :func:`cnnfilterdb.cli.output.remark` reads it."""
    ctx.meta[QUIET] = value
    return value


class Several(tuple[Path | str, ...]):
    """The locations of several databases, which are opened as one."""

    def __str__(self) -> str:
        return " and ".join(map(str, self))


def _one_or_several(
    ctx: click.Context, param: click.Parameter, value: tuple[Path | str, ...]
) -> Path | str | Several | None:
    return Several(value) if len(value) > 1 else value[0] if value else None


def _remember_duplicates(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Store --duplicates where :func:`open_reader` reads it."""
    ctx.meta[_DUPLICATES] = value


_DUPLICATES = "cnnfilterdb.duplicates"

_duplicates_option = click.option(
    "--duplicates", type=click.Choice(["error", "first"]), callback=_remember_duplicates, expose_value=False,
    help="Of several databases: refuse models of the same key, or take that of the first; by default error.",
)  # fmt: skip


def db_option(command: F) -> F:
    """The database that is read, or several that are read as one."""
    return click.option(
        "--db", "path", type=_Location(), multiple=True, callback=_one_or_several, default=[DEFAULT_DB],
        envvar="CNNFILTERDB", show_default=True, show_envvar=True, metavar="DIR",
        help="Folder of the database, address of a release, `reference`, the corpus in the package, or a file "
             "*.parts.toml. Repeat it to read several databases as one.",
    )(_duplicates_option(command))  # fmt: skip


def compared_db_option(command: F) -> F:
    """The database, or several, that a file is compared with."""
    return click.option(
        "--db", "path", type=_Location(), multiple=True, callback=_one_or_several, metavar="DIR",
        help="Compare with this database, a folder or a release; by default with the reference corpus in the package. "
             "Repeat it to compare with several.",
    )(_duplicates_option(command))  # fmt: skip


written_db_option = click.option(
    "--db", "path", type=_Location(), default=DEFAULT_DB, envvar="CNNFILTERDB", show_default=True,
    show_envvar=True, metavar="DIR", help="Folder of the database.",
)  # fmt: skip
_QUIET = "Print results, warnings and errors only: no progress, no remarks."
quiet_option = click.option("--quiet", "-q", is_flag=True, callback=_remember, is_eager=True, help=_QUIET)
where_option = click.option("--where", metavar="SQL", help="Condition over the columns of models and layers.")
kernel_option = click.option("--kernel", default="3x3", show_default=True, metavar="SIZE", help="Kernel size.")
all_layers_option = click.option(
    "--all-layers", is_flag=True, help="Include transposed and dead layers, which the papers leave out."
)
trained_option = click.option(
    "--trained-only", "trained", is_flag=True, help="Leave out models that are flagged untrained."
)
by_option = click.option(
    "--by", default="domain", show_default=True, metavar="SQL",
    help="Grouping expression; `EXPRESSION AS name` names it.",
)  # fmt: skip


def _remember_resource(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store what a database may use where :func:`resources` reads it; an option after the verb prevails."""
    if value is None:
        return
    if param.name == "memory":
        from cnnfilterdb.core.resources import Resources

        try:
            Resources.of(memory=value)
        except SelectionError as error:
            raise click.BadParameter(str(error).partition(": ")[2]) from error
        # Before pyarrow is imported: its usual allocator does not return what was freed.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    ctx.meta.setdefault(_RESOURCES, {})[param.name] = value


def _remember_format(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        log_as(value)


def _common(*, hidden: bool) -> list[click.Option]:
    """Options of every verb, which can be before it or after it."""
    return [
        click.Option(
            ["--threads"], type=click.IntRange(min=1), metavar="N", expose_value=False, hidden=hidden,
            envvar=None if hidden else "CNNFILTERDB_THREADS", callback=_remember_resource,
            help="Threads or processes; by default one for each processor.",
        ),
        click.Option(
            ["--memory"], metavar="SIZE", expose_value=False, hidden=hidden, callback=_remember_resource,
            envvar=None if hidden else "CNNFILTERDB_MEMORY",
            help="Memory to keep to, such as 400MB or 2GiB; by default it is not limited.",
        ),
        click.Option(
            ["--runner"], metavar="NAME", expose_value=False, hidden=hidden, callback=_remember_resource,
            envvar=None if hidden else "CNNFILTERDB_RUNNER",
            help="Where imports, the index, scans and verification run: threads, serial, processes, ray or "
            "ray://HOST:PORT.",
        ),
        click.Option(
            ["--log-format"], type=click.Choice(["text", "json"]), expose_value=False, hidden=hidden, is_eager=True,
            envvar=None if hidden else "CNNFILTERDB_LOG_FORMAT", callback=_remember_format,
            help="Progress and messages on standard error as text, or as JSON, one object per line.",
        ),
    ]  # fmt: skip


def common_options(command: click.Group) -> click.Group:
    """Give the command line the options of every verb."""
    command.params[:0] = _common(hidden=False)
    return command


def resources() -> dict[str, Any]:
    """The options ``threads``, ``memory`` and ``runner`` of the command, for :func:`cnnfilterdb.open`."""
    context = click.get_current_context(silent=True)
    return dict(context.meta.get(_RESOURCES, {})) if context is not None else {}


def everywhere(verb: click.Command) -> click.Command:
    """Give a verb the options that every verb has."""
    own = {flag for parameter in verb.params for flag in parameter.opts}
    verb.params += [option for option in _common(hidden=True) if not own.intersection(option.opts)]
    if all(parameter.name != "quiet" for parameter in verb.params):
        verb.params.append(
            click.Option(
                ["--quiet", "-q"], is_flag=True, callback=_remember, is_eager=True, expose_value=False, help=_QUIET
            )
        )
    return verb


def rows_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every verb that prints rows; the verb receives them as one argument ``rows``."""

    @wraps(command)
    def run(*args: Any, style: str | None, output: Path | None, limit: int | None, **options: Any) -> Any:
        rows = Output(style, output, limit)
        rows.chosen()  # an unknown suffix is an error before any work is done
        return command(*args, rows=rows, **options)

    decorated = click.option(
        "--rows", "limit", type=click.IntRange(min=0), metavar="N",
        help="Print N rows of a table, 0 for all; by default 40 on a terminal, all in a pipe or file.",
    )(run)  # fmt: skip
    decorated = click.option(
        "--format", "style", type=click.Choice(list(FORMATS)),
        help="Format; by default the one of the suffix of FILE, or a table. All but tables are lossless.",
    )(decorated)  # fmt: skip
    return click.option(
        "--output", "-o", type=FileToWrite(), metavar="FILE",
        help=f"Write the rows to FILE: {', '.join(suffix[0] for suffix in FORMATS.values())}.",
    )(decorated)  # fmt: skip


def group_options(command: F) -> F:
    """Options of every verb that forms groups of filters: which are counted, and how."""
    options = [
        trained_option,
        all_layers_option,
        kernel_option,
        click.option("--range", "limits", type=float, nargs=2, metavar="LOW HIGH",
                     help="Range of the histograms; by default the recipe's."),
        click.option("--bins", type=click.IntRange(min=1), help="Number of bins; by default 70."),
        click.option(
            "--basis", metavar="ID", help="Key of a stored basis, `selection` to fit one on the selection, or a file.",
        ),
        click.option("--min-models", type=click.IntRange(min=1), default=1, help="Leave out groups of fewer models."),
        click.option("--min-filters", type=click.IntRange(min=1), default=1, help="Leave out groups of fewer filters."),
        click.option(
            "--balance", type=click.Choice(["filters", "layers", "models", "families"]), default="filters",
            show_default=True, help="What has the same weight within a group.",
        ),
        click.option(
            "--recipe", type=click.Choice(["cvpr2022", "medneurips2022"]), default="cvpr2022", show_default=True,
            help="Range and weights as in one of the papers.",
        ),
        where_option,
    ]  # fmt: skip
    for option in options:
        command = option(command)
    return command


def metric_option(command: F) -> F:
    """How two groups are compared."""
    return click.option(
        "--metric", default="kl", show_default=True, help="Distance between two distributions.",
        type=click.Choice(["kl", "directed", "jensen_shannon", "total_variation", "wasserstein"]),
    )(command)  # fmt: skip


permutations_option = click.option(
    "--permutations", type=click.IntRange(min=1), default=999, show_default=True, help="Number of random permutations.",
)  # fmt: skip
within_option = click.option(
    "--within", metavar="SQL", help="Permute within strata only, such as `family`, which holds them fixed."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
weights_option = click.option(
    "--weights", type=click.Choice(["uniform", "explained_variance"]),
    help="Weights of the components in a shift; by default those of the recipe.",
)  # fmt: skip


def group_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The options of :func:`group_options` as arguments of the methods of a Reader.

    Args:
        options: As click parsed them.

    Returns:
        The same, with the file of a basis read, and conditions combined.
    """
    arguments = dict(options)
    arguments["range"] = arguments.pop("limits") or None
    arguments["where"] = trained_only(arguments.pop("where"), arguments.pop("trained"))
    basis = arguments["basis"]
    if basis and basis.endswith((".json", ".npz")):
        from cnnfilterdb import load_basis

        arguments["basis"] = load_basis(basis)
    return arguments


def trained_only(where: str | None, trained: bool) -> str | None:
    """A condition that, on request, also leaves out models flagged untrained."""
    if not trained:
        return where
    from cnnfilterdb.analysis.queries import condition

    return f"{condition(where)} AND untrained IS NOT TRUE"


def named(by: str) -> tuple[str, str]:
    """Split a grouping such as ``floor(layer / 10) AS tens`` into the expression and its name.

    >>> named("floor(layer / 10) AS tens")
    ('floor(layer / 10)', 'tens')
    >>> named("domain")
    ('domain', 'domain')
    """
    match = re.fullmatch(r"(.*\S)\s+AS\s+(\w+|\"[^\"]+\")\s*", by, re.IGNORECASE | re.DOTALL)
    return (match[1], match[2].strip('"')) if match else (by, by)


def fact_options(command: F) -> F:
    """An option for each fact that a user can state about a model."""
    command = click.option(
        "--new-word", "new_word", is_flag=True,
        help="Accept a domain, task, framework or family that the catalog does not know.",
    )(command)  # fmt: skip
    for fact in reversed(FACTS):
        command = click.option(f"--{fact.replace('_', '-')}", fact, metavar="TEXT")(command)
    return command


def open_reader(path: Path | str | Several) -> Reader:
    """The database of `--db`, a folder or a release, to be read; or several as one."""
    import cnnfilterdb
    from cnnfilterdb.cli.progress import index_progress

    with _remedy(path):
        db: Reader = cnnfilterdb.open(path, duplicates=chosen_duplicates(), **resources())
    db.progress = index_progress()
    return db


def chosen_duplicates() -> str | None:
    """What ``--duplicates`` says; None where it is not given."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_DUPLICATES)


def naming(path: Path | str | Several) -> str | tuple[str, ...]:
    """How command lines name a database: its location, or the options that name several."""
    if not isinstance(path, Several):
        return str(path)
    duplicates = chosen_duplicates()
    words = [word for one in path for word in ("--db", str(one))]
    return (*words, "--duplicates", duplicates) if duplicates else tuple(words)


def open_database(path: Path | str, *, create: bool = False) -> FilterDB:
    """The database of `--db`, to be written to; with `create`, its folder is created if it does not exist."""
    import cnnfilterdb

    with _remedy(path):
        used = resources()
        return cnnfilterdb.create(path, **used) if create else cnnfilterdb.open(path, read_only=False, **used)


@contextlib.contextmanager
def _remedy(path: Path | str | Several) -> Iterator[None]:
    """Replace the error for a path that is not a database by one with a remedy for the command line."""
    try:
        yield
    except NotADatabaseError as error:
        if isinstance(path, Path) and not path.exists():
            raise NotADatabaseError(
                f"{path}: no such database; give one with --db, or create it with `cnnfilterdb demo`, `ingest` or `add`"
            ) from error
        raise


def models_condition(db: Reader, patterns: Sequence[str], where: str | None = None) -> str:
    """A condition that selects the models that match keys or wildcards and also satisfy ``where``.

    Without patterns it is ``where`` itself.

    Raises:
        UnknownModelError: A key or wildcard that matches no model.
    """
    from cnnfilterdb.analysis.queries import condition
    from cnnfilterdb.core.sqltext import literal
    from cnnfilterdb.store.annotations import matching

    if not patterns:
        return condition(where)
    chosen = matching(patterns, db.storage.model_ids())
    return f"model_id IN ({', '.join(map(literal, chosen))}) AND {condition(where)}"


#: Which share of the models a verb works on.
shard_option = click.option(
    "--shard", metavar="I/N", help="Only the I-th of N shares of the models, for a task of a batch system."
)


def network_options(command: F) -> F:
    """The options that say what of a weight file is read: ``--network`` and ``--merge-adapters``."""
    command = click.option(
        "--merge-adapters", is_flag=True, 
        help="Merge LoRA adapters into their layers; the file or adapter_config.json beside it has their scale.",
    )(command)  # fmt: skip
    return click.option(
        "--network", metavar="NAME", help="Which network of a file with several, by its name, such as ema or netD.",
    )(command)  # fmt: skip
