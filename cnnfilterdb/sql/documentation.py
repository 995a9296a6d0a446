"""What each view and macro is for, from the comments in the ``.sql`` files: for ``COMMENT ON`` and for the manual.

The comment before a statement describes it; the lines ``Source:`` and ``Example:`` in it give the source of its formula
and a query to try. Columns of the tables are described in :mod:`cnnfilterdb.core.schema`, all others, and the
arguments, in ``words.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import pyarrow as pa

from cnnfilterdb.core.schema import BASES, FINGERPRINTS, HISTOGRAMS, LAYERS, MODELS, UNITS, describe, filter_schema

__all__ = ["Documentation", "column_meaning", "comments", "documentation"]

#: The table behind each view that shows one.
_TABLES: Mapping[str, tuple[pa.Schema, ...]] = {
    "models_stored": (MODELS,),
    "models": (MODELS,),
    "layers": (LAYERS,),
    "facts": (MODELS, LAYERS),
    "bases": (BASES,),
    "current_bases": (BASES,),
    "histograms": (HISTOGRAMS,),
    "fingerprints": (FINGERPRINTS,),
    "spectra": (LAYERS, FINGERPRINTS),
}
#: Columns of the views without a table of their own.
_OTHERS = ("annotations", "shared_models", "shared_layers", "layer_sketches", "related_models")
#: Columns of the tables that are not in the view of two of them.
_NOT_IN_FACTS = {"files"}
#: Columns of the view of layers and fingerprints.
_SPECTRA = (
    "model_id", "layer", "layer_name", "kernel", "filters", "alpha", "alpha_ks", "alpha_hat", "lambda_max",
    "spectral_norm", "stable_rank", "kurtosis", "peak_ratio",
)  # fmt: skip

_HEAD = re.compile(r"^CREATE OR REPLACE (VIEW|MACRO) \"?(\w+)\"?(?:\((.*?)\))? AS( TABLE)?\b", re.MULTILINE | re.DOTALL)
_ARGUMENT = re.compile(r"\"?(\w+)\"?(?:\s*:=\s*('[^']*'|[^,]+))?\s*(?:,|$)")


@dataclass(frozen=True)
class Documentation:
    """What is known about a view or macro.

    Attributes:
        name: Its name.
        kind: ``view``, ``macro`` or ``table macro``.
        description: What it computes.
        source: The publication that its formula is from, or nothing.
        example: A query.
        arguments: Its arguments with their defaults; None for a required one.
    """

    name: str
    kind: str
    description: str
    source: str
    example: str
    arguments: Mapping[str, str | None]

    @property
    def signature(self) -> str:
        """How it is called."""
        if self.kind == "view":
            return self.name
        given = (name if default is None else f"{name} := {default}" for name, default in self.arguments.items())
        return f"{self.name}({', '.join(given)})"

    def argument_meaning(self, argument: str) -> str:
        """What an argument means."""
        words = _words()
        return words.get(self.name, {}).get(argument) or words["arguments"][argument]


def documentation(text: str) -> Documentation:
    """Read the comment and the head of a statement.

    Args:
        text: The statement with the comment before it (:class:`cnnfilterdb.sql.Definition`).

    >>> lines = ["-- Half.", "-- Example: SELECT half(4)", "CREATE OR REPLACE MACRO half(x, by := 2) AS x / by;"]
    >>> found = documentation(chr(10).join(lines))
    >>> found.signature, found.description, found.example
    ('half(x, by := 2)', 'Half.', 'SELECT half(4)')
    """
    head = _HEAD.search(text)
    if head is None:
        raise ValueError(f"not a view or macro: {text[:80]!r}")
    # The comment of a section ends with an empty line before that of the statement.
    comment = text[: head.start()].rstrip("\n").rpartition("\n\n")[2]
    lines = [line.removeprefix("--").strip() for line in comment.splitlines()]
    tagged = {tag: line.removeprefix(f"{tag}: ") for line in lines for tag in ("Source", "Example") if _is(line, tag)}
    prose = [line for line in lines if line and line.strip("- ") and not any(_is(line, tag) for tag in tagged)]
    kind = "view" if head[1] == "VIEW" else "table macro" if head[4] else "macro"
    return Documentation(
        name=head[2],
        kind=kind,
        description=" ".join(line for line in prose if not line.startswith("---")),
        source=tagged.get("Source", ""),
        example=tagged.get("Example", ""),
        arguments={name: default.strip() or None for name, default in _ARGUMENT.findall(head[3] or "")},
    )


def _is(line: str, tag: str) -> bool:
    return line.startswith(f"{tag}: ")


@cache
def _words() -> dict[str, dict[str, str]]:
    return tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))


def column_meaning(name: str, column: str) -> tuple[str, str]:
    """What a column of a view or table macro means, and its unit, or nothing where it has none.

    Args:
        name: The view or macro.
        column: The column.

    Raises:
        KeyError: It is not described.

    >>> column_meaning("kl_shift", "directed")
    ('directed KL divergence, from group_a to group_b', 'nats')
    >>> column_meaning("layers", "stride_h")
    ('vertical stride', 'pixels')
    """
    schemas = _TABLES.get(name, ())
    if name.startswith("filters_"):
        schemas = (filter_schema("1x1"),)
        column = re.sub(r"^w\d+$", "w0", column)
    for schema in schemas:
        if column in schema.names:
            return describe(schema)[column], UNITS.get(column, "")
    if name.startswith("coefficients_") and re.fullmatch(r"c\d+", column):
        return f"coefficient of component {column[1:]}", "scaled weights"
    words = _words()
    text = words.get(name, {}).get(column) or words["columns"][column]
    meaning, _, unit = text.partition(" [")
    return meaning, unit.removesuffix("]")


def comments(text: str) -> str:
    """The ``COMMENT ON`` statements for a view or macro, with those for the columns of a view of tables.

    The columns of the views of one kernel size, thousands in a large database, are described by the view's comment.

    Args:
        text: The statement that creates it, with the comment before it.

    >>> lines = ["-- Half of x.", "CREATE OR REPLACE MACRO half(x) AS x / 2;"]
    >>> print(comments(chr(10).join(lines)), end="")
    COMMENT ON MACRO "half" IS 'Half of x.';
    """
    found = documentation(text)
    what = {"view": "VIEW", "macro": "MACRO", "table macro": "MACRO TABLE"}[found.kind]
    statements = [f'COMMENT ON {what} "{found.name}" IS {_literal(found.description)};\n']
    for column in _columns(found.name):
        meaning, unit = column_meaning(found.name, column)
        described = f"{meaning} [{unit}]" if unit else meaning
        statements.append(f'COMMENT ON COLUMN "{found.name}"."{column}" IS {_literal(described)};\n')
    return "".join(statements)


def _columns(name: str) -> list[str]:
    """The columns of a view that has the same ones in every database."""
    if name in _OTHERS:
        return list(_words()[name])
    if name == "spectra":
        return list(_SPECTRA)
    names = [column for schema in _TABLES.get(name, ()) for column in schema.names]
    if name == "facts":
        names = [*(column for column in names if column not in _NOT_IN_FACTS), "papers_layer"]
    return list(dict.fromkeys(names))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
