"""The command line: each verb is a thin call of a FilterDB method."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from cnnfilterdb.cli import (
    comparison,
    conclusions,
    diagnosing,
    exchange,
    exploring,
    figures,
    ingesting,
    inspecting,
    listings,
    maintenance,
)
from cnnfilterdb.cli.options import common_options, everywhere
from cnnfilterdb.cli.output import event, log_as, warn
from cnnfilterdb.cli.signals import Interrupted, ending_soon
from cnnfilterdb.core.errors import CnnFilterDbError, QueryError, SelectionError
from cnnfilterdb.core.reports import escaped

__all__ = ["cli", "main"]


#: The verbs by theme, as the help lists them. Their modules never have the name of a verb, so ``cnnfilterdb.cli.x`` is
#: a module.
_THEMES: dict[str, tuple[click.Command, ...]] = {
    "Import models": (
        ingesting.demo,
        ingesting.ingest,
        ingesting.add,
        ingesting.import_,
        exchange.pull,
        exchange.merge,
    ),
    "Look up": (
        listings.models,
        listings.layers,
        listings.sql,
        listings.nearest,
        listings.shared,
        listings.related,
        listings.vocabulary,
        inspecting.inspect,
    ),
    "Compare": (
        comparison.shift,
        conclusions.test,
        conclusions.explain,
        comparison.quality,
        comparison.structure,
        comparison.diff,
        comparison.lineage,
        comparison.basis,
    ),
    "Show": (exploring.explore, figures.plot, figures.report, conclusions.study),
    "Share": (exchange.publish, exchange.push, exchange.releases, exchange.export),
    "Maintain": (
        maintenance.index,
        maintenance.annotate,
        maintenance.remove,
        maintenance.verify,
        diagnosing.doctor,
        maintenance.cache,
    ),
}


class _Themed(click.Group):
    """A group whose help lists its verbs under the headings of their themes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, self.commands))
        width = formatter.width - 6 - longest
        for theme, verbs in _THEMES.items():
            with formatter.section(theme):
                formatter.write_dl([(f"{verb.name:<{longest}}", verb.get_short_help_str(width)) for verb in verbs])


@click.group(cls=_Themed, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cnnfilterdb")
def cli() -> None:
    """A database of the kernels of trained convolutional networks.

    `cnnfilterdb demo` builds one from real models and shows what it offers.

    The options below can be given before a verb or after it.
    """


common_options(cli)


def _interrupted(arguments: Sequence[str]) -> str:
    """What an interrupted command says; only one that works model by model can be resumed.

    >>> _interrupted(["--threads", "2", "ingest", "pypi"])
    'Interrupted. Finished models were kept; repeat the command to resume.'
    >>> _interrupted(["sql", "FROM models"])
    'Interrupted.'
    """
    verb = next((word for word in arguments if word in cli.commands), "")
    lasting = {one.name for theme in ("Import models", "Share", "Maintain") for one in _THEMES[theme]}
    return (
        "Interrupted. Finished models were kept; repeat the command to resume." if verb in lasting else "Interrupted."
    )


for _verbs in _THEMES.values():
    for _verb in _verbs:
        cli.add_command(everywhere(_verb))


def main() -> None:
    """Run the command line.

    The exit status is 0, 1 for a failure reported in one line, 2 for wrong usage, 130 after Ctrl-C and 143 after
    SIGTERM.
    """
    warnings.showwarning = _show_warning  # for this process, which is the command line
    log_as("text")
    message = _interrupted(sys.argv[1:])
    try:
        with ending_soon(message):
            cli.main(standalone_mode=False, prog_name="cnnfilterdb")
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        if not event("error", error.format_message()):
            error.show()
        sys.exit(error.exit_code)
    except Interrupted as interrupted:
        warn(message)
        sys.exit(128 + interrupted.number)
    except (click.Abort, KeyboardInterrupt):
        warn(message)
        sys.exit(130)
    except CnnFilterDbError as error:
        warn(f"error: {_for_the_command_line(str(error))}")
        if isinstance(error, QueryError | SelectionError):
            for line in _pointer(str(error), sys.argv[2:]):
                warn(line)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the pipe has exited, as `| head` does
        sys.exit(0)
    except (OSError, MemoryError, RecursionError) as error:
        warn(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        sys.exit(1)


#: Names that messages of DuckDB quote.
_QUOTED = re.compile(r'(?:at or near|column|function|Function with name|Table with name) "?([^"\s!]+)"?')

#: Characters of the user's text that are shown on each side of a name.
_AROUND = 60


def _pointer(message: str, arguments: Sequence[str]) -> list[str]:
    """The user's own text with carets below the name that a message quotes; nothing if it is there more than once.

    >>> _pointer('Referenced column "domian" not found in FROM clause!', ["SELECT domian FROM models"])
    ['  SELECT domian FROM models', '         ^^^^^^']
    >>> _pointer('syntax error at or near "+"', ["SELECT 1 + 2 +"])
    []
    """
    quoted = _QUOTED.search(message)
    if quoted is None:
        return []
    name = quoted[1]
    sought = re.compile(rf"\b{re.escape(name)}\b" if name.isidentifier() else re.escape(name))
    places = [(text, match) for text in arguments for match in sought.finditer(text) if text != name]
    if len(places) != 1:
        return []
    text, match = places[0]
    start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
    start, end = max(start, match.start() - _AROUND), min(end if end >= 0 else len(text), match.end() + _AROUND)
    before = escaped(text[start : match.start()])
    return [f"  {before}{escaped(text[match.start() : end])}", f"  {' ' * len(before)}{'^' * len(name)}"]


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning like every other remark: one line, without the location in the code."""
    warn(f"warning: {_for_the_command_line(str(message))}")


#: Remedies that messages give as Python calls, and their equivalents on the command line.
_REMEDIES = {
    r"db\.layers\(\) lists": "`cnnfilterdb layers` lists",
    r"db\.models\(\) lists": "`cnnfilterdb models` lists",
    r"cnnfilterdb\.create\(path\)": "`cnnfilterdb ingest` or `cnnfilterdb add`",
    r'\bopen them with duplicates="first"': "give --duplicates first",
    r"\bwith (kernel|where|basis|recipe|top)=": r"with --\1 ",
    r"\bgive (kernel|where|basis|recipe|top)=": r"give --\1 ",
}


def _for_the_command_line(message: str) -> str:
    """A message as one line, with command-line options instead of Python arguments."""
    text = " ".join(message.split())
    for python, remedy in _REMEDIES.items():
        text = re.sub(python, remedy, text)
    return text
