"""The manifest of a release: its files with their hashes, and the models that were left out. No I/O.

A hash shows that a file is the one that the manifest describes, but not who wrote the manifest: it proves
integrity, not origin.

A release is a database in the form in which it is published: a few large files per table, sorted by model, instead of a
few small ones per model::

    cnnfilterdb.json                  the manifest
    models/00000.parquet              one table, one folder: models, layers, filters_3x3, ..., histograms, bases,
                                      fingerprints
    filters_3x3/00000.parquet
    init.sql                          the views and macros, for any DuckDB client
    README.md, MODELS.md, CITATION.cff

A database folder has a marker file of the same name, so this one file shows which of the two a folder is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.reports import printable
from cnnfilterdb.core.schema import FORMAT_VERSION, is_sha256, marker_text, storable

__all__ = [
    "MANIFEST_BYTES",
    "OPTIONAL_TABLES",
    "TABLES",
    "LeftOut",
    "Manifest",
    "ReleaseFile",
    "shown",
    "version_of",
]

#: Largest manifest that is read, in bytes; one of 647 models has 0.3 MB.
MANIFEST_BYTES = 32 << 20

#: The tables that every release has; those of filters depend on its kernel sizes.
TABLES = ("models", "layers", "histograms", "bases")

#: Those that releases of earlier versions lack.
OPTIONAL_TABLES = ("fingerprints",)

_LAYOUT = "release"
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
_PAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}\.(sql|md|cff|png)")
_MOST = 1 << 50  # of rows, bytes, models, filters
_MOST_FILES = 100_000
_LONGEST = 1 << 20  # characters of a text, which may be that of a licence


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A Parquet file of a release.

    Attributes:
        path: Relative to the release, with ``/``.
        table: The table whose rows it contains: models, layers, filters_3x3, ..., histograms, bases,
            fingerprints.
        rows: Number of rows.
        bytes: Its size.
        sha256: SHA-256 of its content, hexadecimal digits.
        first_model: Key of the first model in it; None in a file that is not sorted by model, or without rows.
        last_model: Key of the last one; the models in between are sorted.
    """

    path: str
    table: str
    rows: int
    bytes: int
    sha256: str
    first_model: str | None = None
    last_model: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that is not in a release.

    Attributes:
        model_id: Its key.
        license: Its licence; None where none is stated.
        reason: Why, in one sentence.
    """

    model_id: str
    license: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a release.

    Attributes:
        version: Version of the release, ``X.Y.Z``.
        models: Number of models.
        filters: Number of stored filters, of all kernel sizes.
        files: Its Parquet files, by table and path.
        left_out: The models of the database that are not in it.
        created_by: Package and version that wrote it.
        statistics_only: It has no tables of filters. ``stored`` of a layer says that the database that it was made of
            has its filters; moments, bases and histograms are there of some kernel sizes.
        pages: SHA-256 of its other files, by path: card, macros, figure.
    """

    version: str
    models: int
    filters: int
    files: tuple[ReleaseFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    created_by: str = ""
    statistics_only: bool = False
    pages: Mapping[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Name of the tag under which it is published.

        >>> Manifest("1.2.0", 0, 0, ()).tag
        'v1.2.0'
        """
        return f"v{self.version}"

    def tables(self) -> list[str]:
        """Names of its tables, in the order of its files."""
        return list(dict.fromkeys(file.table for file in self.files))

    def of(self, table: str) -> list[ReleaseFile]:
        """The files of a table; none for a table that it does not have."""
        return [file for file in self.files if file.table == table]

    def to_json(self) -> str:
        """The text of ``cnnfilterdb.json``."""
        known = {"format_version": FORMAT_VERSION, "layout": _LAYOUT, **asdict(self)}
        return marker_text(known)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read the text of ``cnnfilterdb.json``, which is untrusted.

        Args:
            text: The text.
            where: Its address, for messages.

        Raises:
            DatabaseError: It is not the manifest of a release, or that of another format.

        >>> Manifest.from_json(Manifest("1.0.0", 0, 0, ()).to_json(), "here").version
        '1.0.0'
        """
        try:
            known = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Fault(f"it is not JSON ({printable(error)[:100]})").at(where) from error
        try:
            return cls._read(_mapping(known, "the manifest"))
        except _Fault as fault:
            raise fault.at(where) from None

    @classmethod
    def _read(cls, known: Mapping[str, Any]) -> Manifest:
        _check_format(known)
        manifest = cls(
            version=_text(known, "version"),
            models=_count(known, "models"),
            filters=_count(known, "filters"),
            files=tuple(_file(entry) for entry in _list(known, "files")),
            left_out=tuple(_left_out(entry) for entry in _list(known, "left_out")),
            created_by=_text(known, "created_by"),
            statistics_only=known.get("statistics_only") is True,
            pages=_pages(known.get("pages", {})),
        )
        if version_of(manifest.version) is None:
            raise _Fault(f"version {shown(manifest.version)}; expected three numbers, such as 1.0.0")
        if len({file.path for file in manifest.files}) < len(manifest.files):
            raise _Fault("a file is listed twice")
        return manifest

    def require_tables(self, where: str) -> None:
        """Check that it has every table of a database.

        Raises:
            DatabaseError: One is missing.
        """
        if missing := [table for table in TABLES if not self.of(table)]:
            raise _Fault(f"it lists no file of {', '.join(missing)}").at(where)


class _Fault(Exception):
    """What is wrong in a manifest."""

    def at(self, where: str) -> DatabaseError:
        if self.args[1:]:  # another format: the remedy is known
            return DatabaseError(f"{where}: {self.args[0]}; {self.args[1]}")
        return DatabaseError(f"{where}: not the manifest of a release: {self.args[0]}; ask its publisher to rebuild it")


def shown(value: object) -> str:
    r"""Any value in a message: quoted, on one line, and short.

    >>> shown("a\x1b[2J" + "b" * 100) == repr("a [2J" + "b" * 52 + "...")
    True
    """
    text = printable(value) if isinstance(value, str | int | float) else type(value).__name__
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _check_format(known: Mapping[str, Any]) -> None:
    found = known.get("format_version")
    if type(found) is not int:
        raise _Fault(f"format_version {shown(found)}")
    if found != FORMAT_VERSION:
        raise _Fault(
            f"written in format {min(max(found, 0), _MOST)}, this version reads format {FORMAT_VERSION}",
            "upgrade cnnfilterdb" if found > FORMAT_VERSION else "publish it again with this version of cnnfilterdb",
        )
    if known.get("layout") != _LAYOUT:
        raise _Fault("the marker of a database folder, not of a release", "open the folder as a database")


def _file(entry: Any) -> ReleaseFile:
    known = _mapping(entry, "a file")
    path, table = _text(known, "path"), _text(known, "table")
    if paths.shard_table(path) != table:
        raise _Fault(f"{shown(path)} is not the path of a file of {shown(table)}")
    if table not in TABLES + OPTIONAL_TABLES and not (
        table.startswith("filters_") and storable(table.removeprefix("filters_"))
    ):
        raise _Fault(f"{shown(table)} is not a table of a release")
    sha256 = _text(known, "sha256")
    if not is_sha256(sha256):
        raise _Fault(f"{path}: {shown(sha256)} is not a SHA-256")
    first, last = (None if known.get(name) is None else _text(known, name) for name in ("first_model", "last_model"))
    return ReleaseFile(path, table, _count(known, "rows"), _count(known, "bytes"), sha256, first, last)


def _left_out(entry: Any) -> LeftOut:
    known = _mapping(entry, "a model that was left out")
    license_ = None if known.get("license") is None else _text(known, "license")
    return LeftOut(_text(known, "model_id"), license_, _text(known, "reason"))


def _pages(value: Any) -> Mapping[str, str]:
    pages = _mapping(value, "pages")
    for path, digest in pages.items():
        if _PAGE.fullmatch(path) is None:
            raise _Fault(f"{shown(path)} is not the name of a file of a release")
        if not is_sha256(digest):
            raise _Fault(f"{path}: {shown(digest)} is not a SHA-256")
    return pages


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f"{what} is {shown(value)}, not an object")
    return value


def _list(known: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = known.get(name)
    if not isinstance(value, list) or len(value) > _MOST_FILES:
        raise _Fault(f"{name} is not a list of at most {_MOST_FILES:,} entries")
    return value


def _text(known: Mapping[str, Any], name: str) -> str:
    value = known.get(name)
    if not isinstance(value, str) or len(value) > _LONGEST or (not value.isascii() and not _encodable(value)):
        raise _Fault(f"{name} is {shown(value)}, not a text")
    return value


def _encodable(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can express but nothing can store."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _count(known: Mapping[str, Any], name: str) -> int:
    value = known.get(name)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise _Fault(f"{name} is {shown(value)}, not a count")
    return value


def version_of(tag: str) -> tuple[int, int, int] | None:
    """The version that a tag names; None if it is not the tag of a release.

    >>> version_of("v1.10.0"), version_of("main")
    ((1, 10, 0), None)
    """
    found = _VERSION.fullmatch(tag.removeprefix("v"))
    return (int(found[1]), int(found[2]), int(found[3])) if found else None
