"""The options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cnnfilterdb.database import FilterDB
    from cnnfilterdb.reader import Reader

__all__ = [
    "all_layers_option",
    "db_option",
    "fact_options",
    "kernel_option",
    "open_database",
    "open_reader",
    "quiet_option",
    "rows_options",
    "shift_options",
    "where_option",
]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DB = "filters.db"


class _Location(click.ParamType[Any]):
    """A folder, or an address, which a path would spell otherwise."""

    name = "location"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return value if "://" in str(value) else Path(value)


db_option = click.option(
    "--db", "path", type=_Location(), default=DEFAULT_DB, envvar="CNNFILTERDB", show_default=True,
    show_envvar=True, metavar="DIR", help="Folder of the database, or address of a release, which can be read only.",
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


def fact_options(command: F) -> F:
    """An option for each fact that a person can tell of a model."""
    from cnnfilterdb.schema import ModelFacts

    for fact in reversed(fields(ModelFacts)):
        if fact.name not in ("metrics", "original", "weights_sha256", "file_format"):
            command = click.option(f"--{fact.name.replace('_', '-')}", fact.name, metavar="TEXT")(command)
    return command


def open_reader(path: Path | str) -> Reader:
    """The database of `--db`, a folder or a release, to be read."""
    import cnnfilterdb

    return cnnfilterdb.open(path)


def open_database(path: Path | str, *, create: bool = False) -> FilterDB:
    """The database of `--db`, to be written to; with `create`, its folder is made where there is none."""
    import cnnfilterdb

    return cnnfilterdb.create(path) if create else cnnfilterdb.open(path, read_only=False)
