"""The SQL, the command line and the Python that give the numbers of a view."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from cnnfilterdb.core.sqltext import expression, literal

__all__ = ["DEFAULTS", "call", "command", "python"]

#: What the options are when they are left out, in SQL, Python and on the command line alike.
DEFAULTS: Mapping[str, Any] = {
    "where": None,
    "kernel": "3x3",
    "recipe": "cvpr2022",
    "balance": "filters",
    "metric": "kl",
    "min_models": 1,
    "min_filters": 1,
    "all_layers": False,
}


def given(options: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> dict[str, Any]:
    """The options that are not at their defaults.

    >>> given({"kernel": "3x3", "balance": "models", "where": None})
    {'balance': 'models'}
    """
    return {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}


def call(macro: str, *arguments: str, **options: Any) -> str:
    """A call of a table macro.

    Args:
        macro: Its name.
        *arguments: SQL expressions.
        **options: Named arguments; a ``where`` is SQL, every other text is quoted.

    >>> call("kl_shift", "domain", where="task = 'Denoising'", balance="models", kernel="3x3")
    'FROM kl_shift(domain, "where" := task = \\'Denoising\\', balance := \\'models\\')'
    """
    parts = [text if re.fullmatch(r"\w+", text) else expression(text, "by") for text in arguments]
    for name, value in given(options).items():
        if name == "where":
            parts.append(f'"where" := {value}')
        elif isinstance(value, str):
            parts.append(f"{name} := {literal(value)}")
        else:
            parts.append(f"{name} := {str(value).lower() if isinstance(value, bool) else value}")
    return f"FROM {macro}({', '.join(parts)})"


def command(
    verb: str, *arguments: str, db: str | tuple[str, ...], defaults: Mapping[str, Any] = DEFAULTS, **options: Any
) -> str:
    """A command line, quoted for a POSIX shell.

    Args:
        verb: The verb.
        *arguments: Its arguments.
        db: The location of the database, or the options that name several.
        defaults: Values of options that are left out.
        **options: The options.

    >>> command("shift", "domain", db="my db", min_models=2, all_layers=True)
    "cnnfilterdb shift domain --db 'my db' --min-models 2 --all-layers"
    >>> command("nearest", "-1 0 1", db="my.db", top=3)
    "cnnfilterdb nearest --db my.db --top 3 -- '-1 0 1'"
    """
    last = ["--", *arguments] if any(text.startswith("-") for text in arguments) else []
    words = ["cnnfilterdb", *verb.split(), *([] if last else arguments)]
    words += ["--db", db] if isinstance(db, str) else db
    for name, value in given(options, defaults).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not False and value is not None:
            words += [option, str(value)]
    return shlex.join(words + last)


def python(method: str, *arguments: Any, defaults: Mapping[str, Any] = DEFAULTS, **options: Any) -> str:
    """A call of a method of the database, which the examples name ``db``.

    >>> python("embed", by="domain", balance="models")
    "db.embed(by='domain', balance='models')"
    """
    parts = [repr(value) for value in arguments]
    parts += [f"{name}={value!r}" for name, value in given(options, defaults).items()]
    return f"db.{method}({', '.join(parts)})"
