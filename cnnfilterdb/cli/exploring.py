"""The verb that opens the explorer."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cnnfilterdb.cli.options import Several, db_option, naming, open_reader
from cnnfilterdb.cli.output import remark, say
from cnnfilterdb.cli.signals import Interrupted

__all__ = ["explore"]


@click.command(short_help="Explore the database in the browser.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; by default 8737, or a free one if it is in use.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Address to listen on. Others than loopback let other machines connect, by plain HTTP.")  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Print the URL, and do not open the browser.")
@click.option("--seconds", type=click.FloatRange(min=1), default=60, show_default=True,
              help="Time limit of a query, in seconds.")  # fmt: skip
@click.option("--memory", default="512MB", show_default=True, metavar="SIZE", help="Memory limit of DuckDB.")
@db_option
def explore(
    path: Path | str | Several, port: int | None, host: str, no_browser: bool, seconds: float, memory: str
) -> None:
    """Explore the database in the browser: models, groups, a map, layers, kernels, SQL.

    The printed URL contains a token, without which nothing is answered. Nothing is written to the database.
    """
    from cnnfilterdb import ExplorerServer

    with open_reader(path) as db:
        db._ensure_index()  # a folder that can be written to may lack it; the server only reads
        server = ExplorerServer(db, shown=naming(path), host=host, port=port, seconds=seconds, memory=memory)
        say(f"{server.shown} in the browser: {server.url}")
        remark("Ctrl-C ends it.")
        if not no_browser:
            server.show()
        try:
            server.run()
        except Interrupted as interrupted:  # the usual end, after which there is nothing to resume
            remark("The explorer has ended.")
            sys.exit(128 + interrupted.number)
