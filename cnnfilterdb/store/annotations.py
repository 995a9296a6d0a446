"""Corrections and additional facts about models, in one small file beside the data, which users may edit.

The file ``annotations.csv`` in the folder of a database has the columns ``model_id``, ``column`` and ``value``. The
view ``models`` shows its values instead of the stored ones, and so does everything that groups or selects; the view
``models_stored`` shows what was stored, and ``annotations`` the file. Layers, filters and models files are never
rewritten. An empty value says that the fact is unknown.

The file may be edited by hand, kept under version control, and copied from one database to another.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from cnnfilterdb.core import paths
from cnnfilterdb.core.durable import sha256, write_text
from cnnfilterdb.core.errors import CorruptError, DatabaseError, SelectionError, UnknownModelError, unknown_model
from cnnfilterdb.core.reports import Problem
from cnnfilterdb.core.schema import ANNOTATED
from cnnfilterdb.store.regular import read_small

__all__ = [
    "Facts",
    "accept",
    "annotation_problems",
    "change",
    "check_fact_names",
    "forget",
    "load_facts",
    "matches",
    "matching",
    "stored_facts",
]

_HEADER = ("model_id", "column", "value")
_SUMS = re.compile(rf"([0-9a-f]{{64}}  {re.escape(paths.ANNOTATIONS)}\n){{1,2}}")

#: Annotated facts by model and column; None says that a fact is unknown.
Facts = dict[str, dict[str, str | None]]


class AnnotatedFolder(Protocol):
    """The parts of a database folder that annotations need."""

    path: Path

    def has(self, model_id: str) -> bool:
        """Whether it has a model."""

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A temporary folder inside it, used by one process at a time."""


def check_fact_names(names: Iterable[str], known: Sequence[str] = ANNOTATED, *, options: Sequence[str] = ()) -> None:
    """Refuse names that are not facts.

    Args:
        names: The names.
        known: The facts.
        options: Other names that may have been meant.

    Raises:
        SelectionError: One of them is not known; the message gives the nearest name.

    >>> check_fact_names(["domain"])
    >>> check_fact_names(["overwite"], options=["overwrite"])
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: unknown fact 'overwite'; did you mean overwrite?
    """
    for name in names:
        if name not in known:
            near = get_close_matches(name, [*known, *options], 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise SelectionError(f"unknown fact {name!r}{hint}")


def stored_facts(root: Path) -> Facts:
    """The annotations of a database.

    Args:
        root: Its folder.

    Raises:
        CorruptError: The file does not have the form that the views can read; the message states the line.
    """
    path = root / paths.ANNOTATIONS
    if not os.path.lexists(path):
        return {}
    facts: Facts = {}
    for _, message, row in _rows(root):
        if message:
            raise CorruptError(f"{path}: {message}")
        model_id, column, value = row
        facts.setdefault(model_id, {})[column] = value or None
    return facts


def annotation_problems(store: AnnotatedFolder) -> list[Problem]:
    """Problems of the annotations of a database; none if there are none."""
    try:
        return list(_problems(store))
    except CorruptError as error:
        path = store.path / paths.ANNOTATIONS
        return [Problem(None, path, str(error).removeprefix(f"{path}: "))]


def _problems(store: AnnotatedFolder) -> Iterator[Problem]:
    path, sums = store.path / paths.ANNOTATIONS, store.path / paths.ANNOTATIONS_SUM
    try:
        recorded = read_small(store.path, paths.ANNOTATIONS_SUM) if os.path.lexists(sums) else b""
    except (OSError, DatabaseError) as error:
        yield Problem(None, sums, f"cannot be read: {error}")
        return
    text = recorded.decode("ascii", "replace")
    if not os.path.lexists(path):
        if recorded and not (_SUMS.fullmatch(text) and _digest(path) in text):
            yield Problem(None, path, "is missing; restore it, or drop the annotations with --repair")
        return
    sound = True
    for line, message, row in _rows(store.path):
        if not message and not store.has(row[0]):
            message = f"line {line}: no model {row[0]!r}; correct its key or remove the line"
        if message:
            sound = False
            yield Problem(row[0] if row and store.has(row[0]) else None, path, message)
    if sound and not (_SUMS.fullmatch(text) and _digest(path) in text):
        message = "its checksum is not the recorded one; if you edited it, `cnnfilterdb verify --repair` accepts it"
        yield Problem(None, path, message)


def change(store: AnnotatedFolder, apply: Callable[[Facts], object]) -> None:
    """Change the annotations of a database: read, apply, write, by one process at a time.

    Args:
        store: The database.
        apply: Changes the facts in place.

    Raises:
        CorruptError: The existing file cannot be read.
        DatabaseError: It cannot be written.
        LockedError: Another process is changing it.
    """
    with store.staging(paths.ANNOTATIONS) as folder:
        facts = stored_facts(store.path)
        apply(facts)
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(_HEADER)
        lines.writerows(
            (model_id, column, value or "")
            for model_id, known in sorted(facts.items())
            for column, value in sorted(known.items())
        )
        path, sums = store.path / paths.ANNOTATIONS, store.path / paths.ANNOTATIONS_SUM
        new = hashlib.sha256(text.getvalue().encode()).hexdigest()
        # Both are valid until the file is replaced, even if this process is killed.
        write_text(sums, _sums(_digest(path), new), folder)
        write_text(path, text.getvalue(), folder)
        write_text(sums, _sums(new), folder)


def accept(store: AnnotatedFolder) -> None:
    """Record the checksum of the present file, after it was edited by hand.

    Raises:
        CorruptError: It cannot be read.
    """
    stored_facts(store.path)
    path, sums = store.path / paths.ANNOTATIONS, store.path / paths.ANNOTATIONS_SUM
    with store.staging(paths.ANNOTATIONS) as folder:
        write_text(sums, _sums(_digest(path)), folder)


def _digest(path: Path) -> str:
    """SHA-256 of the annotations; without a file, that of an empty one.

    Raises:
        CorruptError: They cannot be read.
    """
    try:
        return sha256(path) if path.exists() else hashlib.sha256().hexdigest()
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read: {error.strerror or error}") from error


def _sums(*digests: str) -> str:
    """The checksum in the format of ``sha256sum``, whose option ``-c`` checks it."""
    return "".join(f"{digest}  {paths.ANNOTATIONS}\n" for digest in dict.fromkeys(digests))


def forget(store: AnnotatedFolder, model_ids: Iterable[str]) -> None:
    """Drop all annotations of models."""
    gone = set(model_ids)
    if stored_facts(store.path).keys() & gone:
        change(store, lambda facts: [facts.pop(model_id, None) for model_id in gone])


def load_facts(path: Path, model_ids: Sequence[str], check: Callable[[Mapping[str, str | None]], None]) -> Facts:
    """Read facts from a user's file.

    A ``.toml`` file has one table per model, such as ``["pypi/deepcr/mask-decam"]``, with its facts. A CSV file has
    either the columns ``model_id``, ``column`` and ``value``, in which an empty value means unknown, or ``model_id``
    and one column per fact, in which an empty cell changes nothing. A shell-style pattern means all models that it
    matches; the later of two entries takes effect.

    Args:
        path: The file.
        model_ids: Models of the database.
        check: Raises SelectionError for facts that use unknown words.

    Raises:
        SelectionError: The file cannot be read, has another form, or names an unknown fact or word.
        UnknownModelError: It names a model that is not in the database.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = list(_from_toml(text) if path.suffix.lower() == ".toml" else _from_csv(text))
    except OSError as error:
        raise SelectionError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: not a TOML or CSV file in UTF-8: {error}") from error
    except SelectionError as error:
        raise SelectionError(f"{path}: {error}") from error
    facts: Facts = {}
    for name, known in entries:
        try:
            check_fact_names(known)
            check(known)
            for model_id in matching([name], model_ids):
                facts.setdefault(model_id, {}).update(known)
        except (SelectionError, UnknownModelError) as error:
            raise type(error)(f"{path}: [{name}] {error}") from error
    return facts


def matching(patterns: Iterable[str], model_ids: Sequence[str]) -> list[str]:
    """Models that match patterns: keys, or shell-style wildcards.

    Raises:
        UnknownModelError: A pattern matches no model; the message gives the nearest keys.

    >>> matching(["pypi/*"], ["pypi/a", "custom/b"])
    ['pypi/a']
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        chosen = matches(pattern, model_ids)
        if not chosen:
            raise unknown_model(pattern, model_ids, "the database")
        found |= dict.fromkeys(chosen)
    return list(found)


def matches(pattern: str, model_ids: Collection[str]) -> list[str]:
    """Models that match one pattern: the one of that key, or else those that a shell-style wildcard matches.

    >>> matches("a*", ["ab", "a*"]), matches("a?", ["ab", "a*"]), matches("b", ["ab"])
    (['a*'], ['ab', 'a*'], [])
    """
    return [pattern] if pattern in model_ids else [name for name in model_ids if fnmatchcase(name, pattern)]


def _rows(root: Path) -> Iterator[tuple[int, str | None, list[str]]]:
    """Line number, what is wrong with it, and cells of each row of the annotations in a folder."""
    try:
        text = read_small(root, paths.ANNOTATIONS).decode("utf-8")
    except (OSError, UnicodeDecodeError, DatabaseError) as error:
        yield 1, f"cannot be read as UTF-8: {error}", []
        return
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: dict[tuple[str, str], int] = {}
    try:
        if tuple(next(lines, ())) != _HEADER:
            yield 1, f"line 1: expected the header {','.join(_HEADER)}", []
            return
        for row in lines:
            line, message = lines.line_num, None
            if len(row) != len(_HEADER):
                message = f"line {line}: {len(_HEADER)} cells expected, {len(row)} found; quote a cell with a comma"
            elif row[1] not in ANNOTATED:
                message = f"line {line}: {row[1]!r} cannot be annotated; choose one of {', '.join(ANNOTATED)}"
            elif (first := seen.setdefault((row[0], row[1]), line)) != line:
                message = f"line {line}: {row[1]} of {row[0]} is already set in line {first}; keep one of the two"
            yield line, message, row
    except csv.Error as error:
        yield lines.line_num, f"line {lines.line_num}: is not a CSV row: {error}", []


def _from_toml(text: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    for name, table in tomllib.loads(text).items():
        if not isinstance(table, Mapping):
            raise SelectionError(f"{name}: expected a table of facts, such as ['custom/mine'] and domain = 'thermal'")
        yield name, {column: _text(name, column, value) for column, value in table.items()}


def _text(name: str, column: str, value: Any) -> str | None:
    if not isinstance(value, str):
        raise SelectionError(f"[{name}] {column}: expected text, found {value!r}; put it in quotes")
    return value or None


def _from_csv(text: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = tuple(lines.fieldnames or ())
    if "model_id" not in header:
        raise SelectionError(f"expected the columns {', '.join(_HEADER)}, or model_id and facts; found {header}")
    for row in lines:
        if None in row or None in row.values():
            raise SelectionError(f"line {lines.line_num}: {len(header)} cells expected; quote a cell with a comma")
        name = row.pop("model_id")
        if header == _HEADER or set(header) == set(_HEADER):
            yield name, {row["column"]: row["value"] or None}
        else:
            check_fact_names(row)
            yield name, {column: value for column, value in row.items() if value}
