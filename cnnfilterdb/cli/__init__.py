"""The command line: each verb is a thin call of a FilterDB method."""

from __future__ import annotations

import sys

import click

from cnnfilterdb.cli import comparison, exchange, figures, ingesting, listings, maintenance
from cnnfilterdb.errors import CnnFilterDbError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cnnfilterdb")
def cli() -> None:
    """A database of the kernels of trained convolutional networks.

    `cnnfilterdb demo` builds one from real models and shows what it can tell.
    """


# The verbs lie by theme in modules that are never named like a verb, so that `cnnfilterdb.cli.x` is always a module.
for _verb in (
    ingesting.demo,
    ingesting.ingest,
    ingesting.add,
    maintenance.annotate,
    ingesting.import_,
    maintenance.index,
    listings.models,
    listings.layers,
    listings.sql,
    comparison.shift,
    comparison.basis,
    comparison.quality,
    listings.nearest,
    listings.shared,
    figures.plot,
    figures.report,
    exchange.publish,
    exchange.pull,
    exchange.releases,
    exchange.merge,
    exchange.export,
    maintenance.verify,
    maintenance.remove,
):
    cli.add_command(_verb)


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
