"""The parts of the manual that are generated from the package, as Markdown; nothing of it is committed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

import click
import pyarrow as pa

import cnnfilterdb
from cnnfilterdb import catalog, sql
from cnnfilterdb.catalog.words import VOCABULARIES
from cnnfilterdb.cli import cli
from cnnfilterdb.cli.tables import columns_of, table_text
from cnnfilterdb.core import schema
from cnnfilterdb.sql.documentation import Documentation, column_meaning, documentation

#: Sections of the SQL reference, and the file of which each contains the definitions.
SECTIONS = {
    "Tables": "views.sql",
    "Comparing groups": "macros.sql",
    "Quality": "quality.sql",
    "Filters of one size": "kernel.sql",
    "Coefficients": "coefficients.sql",
    "Nearest filters": "nearest.sql",
    "Shared layers": "search.sql",
    "Descriptors of kernels": "descriptors.sql",
    "Structure of kernels": "structure.sql",
    "Lineage and spectra": "lineage.sql",
    "Files": "database_files.sql",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n\n"


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables() -> str:
    """Every column of every table."""
    found = {
        "models": (schema.MODELS, "One row per model; a model exists when this row does."),
        "layers": (schema.LAYERS, "One row per two-dimensional convolution layer, with its statistics."),
        "filters": (
            schema.filter_schema("3x3"),
            "One row per kernel; one table per kernel size, here `filters_3x3`.",
        ),
        "bases": (schema.BASES, "One row per fitted basis."),
        "histograms": (schema.HISTOGRAMS, "One row per basis, recipe and layer."),
        "fingerprints": (schema.FINGERPRINTS, "One row per stored layer, computed by `cnnfilterdb index`."),
    }
    parts = []
    for name, (columns, about) in found.items():
        meanings = schema.describe(columns)
        rows = [
            (f"`{field.name}`", meanings[field.name], schema.UNITS.get(field.name, ""), _type(field.type))
            for field in columns
            if not re.fullmatch(r"w[1-9]", field.name)
        ]
        if name == "filters":
            rows[-1] = ("`w0` ... `w8`", meanings["w0"], schema.UNITS["w0"], "float")
        parts.append(f"## {name}\n\n{about}\n\n" + table(["Column", "Meaning", "Unit", "Type"], rows))
    return "".join(parts)


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_map(kind):
        return f"map from {_type(kind.key_type)} to {_type(kind.item_type)}"
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return {"string": "text", "bool": "boolean"}.get(str(kind), str(kind))


# ---------------------------------------------------------------------------------------------------------------------
# SQL


@cache
def _example() -> cnnfilterdb.FilterDB:
    return cnnfilterdb.example()


def definitions() -> str:
    """Every view and macro, with an example and its output."""
    db = _example()
    known = sql.definitions(["3x3"], annotated=True)
    texts = {section: _source(file) for section, file in SECTIONS.items()}
    parts = []
    for section, text in texts.items():
        names = [name for name in known if _pattern(name) in text]
        parts.append(f"## {section}\n\n")
        parts += [_definition(db, documentation(known[name].text)) for name in names]
    return "".join(parts)


def _source(file: str) -> str:
    from importlib.resources import files

    return files("cnnfilterdb.sql").joinpath(file).read_text(encoding="utf-8")


def _pattern(name: str) -> str:
    """How the head of a definition begins in its template."""
    name = name.replace("3x3", "$kernel")
    text = "".join(_source(file) for file in SECTIONS.values())
    for kind in ("VIEW", "MACRO"):
        for end in (" ", "("):
            if (head := f"CREATE OR REPLACE {kind} {name}{end}") in text:
                return head
    raise LookupError(f"{name}: not in a file of SECTIONS")


def _definition(db: cnnfilterdb.FilterDB, one: Documentation) -> str:
    parts = [f"### {one.name}\n\n"]
    parts.append(_code(one.signature if one.kind != "view" else f"FROM {one.name}", "sql"))
    parts.append(f"{one.description}\n\n")
    facts = [f"{one.kind.capitalize()}. {_cost(one.name)}."]
    if one.source:
        facts.append(f"Source: {one.source}")
    parts.append(" ".join(facts) + "\n\n")
    if one.arguments:
        rows = [
            (f"`{name}`", "required" if default is None else f"`{default}`", one.argument_meaning(name))
            for name, default in one.arguments.items()
        ]
        parts.append(table(["Argument", "Default", "Meaning"], rows))
    if one.kind != "macro":
        parts.append(_columns(db, one))
    if one.example:
        parts.append(_code(f"{_lines(one.example)};", "sql"))
        parts.append(_code(rows_of(db, one.example)))
    return "".join(parts)


def _lines(query: str, width: int = 88) -> str:
    """A query with a line per clause; a list that is too long for a line continues on the next."""
    parts, depth, start = [], 0, 0
    breaks = (" FROM ", " WHERE ", " GROUP BY ", " ORDER BY ", " LIMIT ")
    quoted = False
    for place, letter in enumerate(query):
        quoted ^= letter == "'"
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        at_comma = letter == "," and place - start > width - 24
        if depth == 0 and not quoted and (at_comma or query.startswith(breaks, place)) and len(query) > width:
            parts.append(query[start : place + at_comma])
            start = place + 1 + at_comma
    lines = [*parts, query[start:]]
    keywords = ("SELECT", *(word.strip() for word in breaks))
    return "\n".join(line if line.startswith(keywords) else f"       {line}" for line in lines)


def _columns(db: cnnfilterdb.FilterDB, one: Documentation) -> str:
    """The columns of a view or table macro, or where they are described."""
    shown = {"models": "models", "models_stored": "models", "layers": "layers", "bases": "bases"}
    shown |= {"current_bases": "bases", "histograms": "histograms"}
    if one.name in shown:
        return f"Its columns are those of the table [{shown[one.name]}](tables.md#{shown[one.name]}).\n\n"
    if one.name == "facts":
        return (
            "Its columns are those of the tables [models](tables.md#models), except `files`, and "
            "[layers](tables.md#layers), and `papers_layer`.\n\n"
        )
    call = one.name
    if one.kind == "table macro":
        given = {"by": "domain", "group": "'natural'", "pattern": "range(9)"}
        call += f"({', '.join(given[name] for name, default in one.arguments.items() if default is None)})"
    rows = []
    for name, kind in zip(*_head(db, call), strict=True):
        meaning, unit = column_meaning(one.name, name)
        rows.append((f"`{name}`", meaning, unit, kind.lower()))
    return table(["Column", "Meaning", "Unit", "Type"], rows)


def _head(db: cnnfilterdb.FilterDB, call: str) -> tuple[list[str], list[str]]:
    found = db.sql(f"DESCRIBE FROM {call}").fetchall()
    return [row[0] for row in found], [row[1] for row in found]


def _cost(name: str) -> str:
    """What a query reads, which decides what it costs."""
    names = {one.name for one in sql.needed(name, sql.definitions(["3x3"]))}
    if name == "annotations":
        return "Reads the file of annotations"
    if {"facts", "layers"} & names:
        read = "the tables of models and layers"
    elif "models_stored" in names:
        read = "the table of models"
    else:
        read = ""
    if any(one.startswith("filters_") for one in names):
        return "Reads every kernel of the size: its cost grows with the number of filters"
    if {"histogram_files", "histograms"} & names and name not in ("histogram_files",):
        return "Reads stored histograms: its cost grows with the number of layers, not of filters"
    if {"bases"} & names:
        return "Reads the table of bases"
    return f"Reads {read}" if read else "Computes from its arguments; nothing is read"


def rows_of(db: cnnfilterdb.FilterDB, query: str) -> str:
    """The result of a query, as a terminal shows it."""
    found = db.sql(query).to_arrow_table()
    return table_text(columns_of(found, short=False))[0] if found.num_rows else "(no rows)"


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def commands() -> str:
    """Every verb with its arguments and options."""
    parts = []
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=f"cnnfilterdb {name}")
        usage = f"cnnfilterdb {name} {' '.join(command.collect_usage_pieces(context))}"
        parts.append(f"## {name}\n\n{_code(usage, 'console')}{_help(command.help or '')}\n\n")
        rows = []
        for option in command.get_params(context):
            record = option.get_help_record(context)
            if record is None or "--help" in option.opts:
                continue
            meaning = record[1] or schema.describe(schema.MODELS).get(option.name or "", "")
            if not isinstance(option, click.Argument):
                rows.append((f"`{record[0]}`", _help(meaning)))
        if rows:
            parts.append(table(["Option", "Meaning"], rows))
    return "".join(parts)


def _help(text: str) -> str:
    """The text of click as Markdown: a paragraph that begins with a backspace keeps its lines."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        if "\b" in paragraph:
            paragraphs.append(_code(dedent(paragraph.partition("\b")[2].strip("\n")), "console"))
        else:
            paragraphs.append(re.sub(r"(?<!`)(<[^>]+>|\*)(?!`)", r"\\\1", " ".join(paragraph.split())))
    return "\n\n".join(paragraphs)


# ---------------------------------------------------------------------------------------------------------------------
# Vocabularies


def vocabularies() -> str:
    """Every word of every vocabulary."""
    titles = {"domains": "Image domains", "licenses": "Licences", "datasets": "Data sets"}
    parts = []
    for name in VOCABULARIES:
        words = catalog.vocabulary(name)
        described = any(word.description for word in words)
        head = ["Word", "Models", "Meaning"] if described else ["Word", "Models"]
        rows = [(word.name, f"{word.models:,}", *([_link(word.description)] if described else [])) for word in words]
        title = titles.get(name, name.capitalize())
        parts.append(f"## {title}\n\n`cnnfilterdb vocabulary {name}`\n\n" + table(head, rows))
    return "".join(parts)


def _link(text: str) -> str:
    return re.sub(r"https?://\S+[^\s.,;)]", r"<\g<0>>", text)


# ---------------------------------------------------------------------------------------------------------------------
# The Python interface


#: Functions of the package, in the order in which a user meets them.
_FUNCTIONS = ("open", "create", "example", "inspect", "pull", "releases", "load_basis", "save_basis", "doctor")


def python() -> str:
    """Every public name, by theme."""
    themes: dict[str, list[tuple[str, str]]] = {
        "Opening and creating": [
            ("autofunction", f"cnnfilterdb.{name}")
            for name in (
                "open",
                "create",
                "example",
                "inspect",
                "pull",
                "releases",
                "load_basis",
                "save_basis",
                "doctor",
            )
        ],
        "Reading a database": [("autoclass", "cnnfilterdb.Reader")],
        "Writing to a database": [("autoclass", "cnnfilterdb.FilterDB")],
        "Figures": [("autoclass", "cnnfilterdb.plots.figures.Figures")],
        "Results": [],
        "Errors": [],
        "Statistics of arrays": [],
        "Test suites for sources and formats": [
            ("autoclass", "cnnfilterdb.testing.SourceTests"),
            ("autoclass", "cnnfilterdb.testing.FormatTests"),
        ],
    }
    placed = {name for entries in themes.values() for _, name in entries}
    for name in cnnfilterdb.__all__:
        found: Any = getattr(cnnfilterdb, name)
        full = f"cnnfilterdb.{name}"
        if full in placed or not isinstance(found, type):
            continue
        theme = "Errors" if issubclass(found, BaseException) else "Results"
        themes[theme].append(("autoclass", full))
    for name in cnnfilterdb.stats.__all__:
        found = getattr(cnnfilterdb.stats, name)
        if name not in cnnfilterdb.__all__ and callable(found):
            themes["Statistics of arrays"].append(
                ("autoclass" if isinstance(found, type) else "autofunction", f"cnnfilterdb.stats.{name}")
            )
    return "".join(f"## {title}\n\n" + _directives(entries) for title, entries in themes.items())


def _directives(entries: Sequence[tuple[str, str]]) -> str:
    lines = []
    for directive, name in entries:
        lines.append(f".. {directive}:: {name}")
        if directive == "autoclass":
            lines.append("   :members:")
            if name.endswith("Reader"):
                lines.append("   :inherited-members:")
            elif name.endswith("FilterDB"):
                read = ", ".join(cls.__name__ for cls in cnnfilterdb.Reader.__mro__[:-1])  # described with Reader
                lines += ["   :show-inheritance:", f"   :inherited-members: {read}"]
            else:
                lines.append("   :show-inheritance:")
        lines.append("")
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```\n\n"


def _repository(name: str) -> Callable[[], str]:
    """A page that is also a file of the repository."""

    def page() -> str:
        text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
        return text.replace("](SECURITY.md)", "](security.md)")

    return page


PAGES: dict[str, Callable[[], str]] = {
    "tables": tables,
    "definitions": definitions,
    "commands": commands,
    "vocabularies": vocabularies,
    "python": python,
    "changelog": _repository("CHANGELOG.md"),
    "security": _repository("SECURITY.md"),
}
