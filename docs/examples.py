"""The examples in the pages of the manual and in the README: run and compared by the suite.

    python docs/examples.py docs/guides/*.md     # writes what they print today into the pages

Blocks of a page run in order, in an empty folder:

- ``python`` with prompts: like a doctest. `db` is the example database, which is also in the folder ``my.db``.
- ``python`` without prompts: run only.
- ``console``: lines that begin with ``$ cnnfilterdb`` are run and compared with what follows; others are not run.
- ``sql``: statements are run on `db`.

``...`` in an expected output stands for any text, and all white space is alike.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cnnfilterdb

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

_FENCE = re.compile(r"^```(python|console|sql)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What is not run: what needs the Hugging Face Hub, and the demo. Other tests do.
_REMOTE = re.compile(r"hf://|\.publish\(\"|\bpull\b|cnnfilterdb demo$")


@dataclass
class Example:
    """A command, or a piece of Python or SQL, and what it prints.

    Attributes:
        place: Page and line.
        prompt: It as the page shows it.
        expected: What the page says that it prints; None where the page does not say.
        found: What it prints.
    """

    place: str
    prompt: str
    expected: str | None
    found: str

    @property
    def true(self) -> bool:
        """Whether it prints what the page says."""
        if self.expected is None:
            return not self.found.startswith("Traceback")
        return doctest.OutputChecker().check_output(self.expected, self.found, FLAGS)


def run(page: Path, database: Path, *, names: dict[str, Any] | None = None, write: bool = False) -> list[Example]:
    """Run the examples of a page in the current folder.

    Args:
        page: A Markdown file.
        database: The database that is `db`.
        names: Where the names of the page go.
        write: Write the outputs into the page.
    """
    text = page.read_text(encoding="utf-8")
    os.environ.pop("CNNFILTERDB", None)
    found: list[Example] = []
    pieces, last = [], 0
    with cnnfilterdb.open(database) as db:
        names = {} if names is None else names
        names.update(cnnfilterdb=cnnfilterdb, db=db)
        for match in _FENCE.finditer(text):
            place = f"{page.name}:{text.count(chr(10), 0, match.start(2)) + 1}"
            if match[1] == "console":
                examples = list(_console(match[2], place))
            elif match[1] == "sql":
                examples = list(_sql(match[2], place, db))
            else:
                examples = list(_python(match[2], place, names))
            found += examples
            pieces.append(text[last : match.start(2)])
            last = match.end(2)
            shown = any(one.expected is not None for one in examples)
            # An output that is right stays as the page shows it, with its dots
            outputs = [one.expected if one.true else one.found for one in examples]
            new = "".join(one.prompt + (output or "") for one, output in zip(examples, outputs, strict=True))
            pieces.append(new if shown else match[2])
    if write:
        page.write_text("".join([*pieces, text[last:]]), encoding="utf-8")
    return found


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield out


def _python(block: str, place: str, names: dict[str, Any]) -> Iterator[Example]:
    if ">>>" not in block:
        yield Example(place, block, None, "" if _REMOTE.search(block) else _executed(block, "exec", names))
        return
    for part in doctest.DocTestParser().parse(block):
        if isinstance(part, doctest.Example):
            lines = part.source.splitlines()
            prompt = "".join(
                f"{'...' if number else '>>>'} {line}".rstrip() + "\n" for number, line in enumerate(lines)
            )
            yield Example(place, prompt, part.want, _executed(part.source, "single", names))
        elif part.strip():
            yield Example(place, part, None, "")
        else:
            yield Example(place, part, None, "")


def _executed(source: str, mode: str, names: dict[str, Any]) -> str:
    with _captured() as out:
        try:
            exec(compile(source, "<example>", mode, dont_inherit=True), names)
        except Exception as error:
            kind = type(error)
            full = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            return f"Traceback (most recent call last):\n    ...\n{full}: {error}\n"
    return _stripped(out.getvalue())


def _stripped(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def _console(block: str, place: str) -> Iterator[Example]:
    commands = re.split(r"^(?=\$ )", block, flags=re.MULTILINE)
    for command in filter(None, commands):
        lines = re.match(r"(?:.*\\\n)*.*\n", command)
        assert lines is not None
        prompt, expected = lines[0], command[lines.end() :]
        words = shlex.split(prompt.removeprefix("$ ").replace("\\\n", " "))
        if words[:1] != ["cnnfilterdb"] or _REMOTE.search(prompt.strip()):
            yield Example(place, prompt, expected, expected)
        else:
            yield Example(place, prompt, expected, _command(words))


def _command(words: list[str]) -> str:
    from cnnfilterdb.cli import main

    with _captured() as out, mock.patch.object(sys, "argv", words):
        try:
            main()
        except SystemExit:
            pass
        except Exception:
            return traceback.format_exc()
    return _stripped(out.getvalue())


def _sql(block: str, place: str, db: cnnfilterdb.Reader) -> Iterator[Example]:
    for statement in re.split(r"(?<=;)[^\n]*\n", block):
        query = statement.strip().removesuffix(";")
        if not query or "%" in query:
            continue
        try:
            db.sql(query).fetchall()
            found = ""
        except cnnfilterdb.CnnFilterDbError as error:
            found = f"Traceback: {error}"
        yield Example(place, f"{query}\n", None, found)


def figures(page: Path) -> list[Path]:
    """The figures that a page shows, each drawn by an example into a file of that name."""
    names = re.findall(r"\]\((figures/[\w.-]+)\)", page.read_text(encoding="utf-8"))
    return [page.parent / name for name in names]


def main(pages: list[str]) -> None:
    """Write the outputs of the examples into pages, and the figures beside them."""
    for page in map(Path, pages):
        path = page.resolve()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            cnnfilterdb.example("my.db").close()
            run(path, Path("my.db"), write=True)
            for figure in figures(path):
                shutil.copy(figure.name, figure)


if __name__ == "__main__":
    main(sys.argv[1:])
