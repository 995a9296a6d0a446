"""What a release says of itself: its files with their hashes, and what was left out. Nothing here touches the disk.

A release is a database in the form in which it is published: a few large files per table, sorted by model, instead of a
few small ones per model::

    cnnfilterdb.json                  the manifest
    models/00000.parquet              one table, one folder: models, layers, filters_3x3, ..., histograms, bases
    filters_3x3/00000.parquet
    init.sql                          the views and macros, for any DuckDB client
    README.md, MODELS.md, CITATION.cff

The manifest is the same file that marks a database folder, so that one look tells what lies there.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from cnnfilterdb.errors import DatabaseError
from cnnfilterdb.schema import FORMAT_VERSION, check_format

__all__ = ["LeftOut", "Manifest", "ReleaseFile", "shard_path", "version_of"]

_LAYOUT = "release"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


def shard_path(table: str, number: int) -> str:
    """Path of a shard of a table.

    >>> shard_path("filters_3x3", 7)
    'filters_3x3/00007.parquet'
    """
    return f"{table}/{number:05}.parquet"


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A Parquet file of a release.

    Attributes:
        path: Relative to the release, with ``/``.
        table: The table whose rows it holds: models, layers, filters_3x3, ..., histograms, bases.
        rows: Number of rows.
        bytes: Its size.
        sha256: SHA-256 of its content, hexadecimal digits.
        first_model: Key of the first model in it; None in a file that is not of models, or without rows.
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
    """What a release says of itself.

    Attributes:
        version: Its version, ``X.Y.Z``.
        models: Number of models.
        filters: Number of stored filters, of all kernel sizes.
        files: Its Parquet files, by table and path.
        left_out: The models of the database that are not in it.
        created_by: Package and version that made it.
    """

    version: str
    models: int
    filters: int
    files: tuple[ReleaseFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    created_by: str = ""

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
        return json.dumps(known, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read the text of ``cnnfilterdb.json``.

        Args:
            text: The text.
            where: Where it is from, for messages.

        Raises:
            DatabaseError: It is not the manifest of a release, or that of a newer version of the package.

        >>> Manifest.from_json(Manifest("1.0.0", 0, 0, ()).to_json(), "here").version
        '1.0.0'
        """
        try:
            known = json.loads(text)
            if known.get("layout") != _LAYOUT:
                raise DatabaseError(f"{where}: the marker of a database folder, not of a release")
            check_format(known["format_version"], where, "publish it again, or read it with an older cnnfilterdb")
            return cls(
                version=known["version"],
                models=int(known["models"]),
                filters=int(known["filters"]),
                files=tuple(ReleaseFile(**file) for file in known["files"]),
                left_out=tuple(LeftOut(**entry) for entry in known["left_out"]),
                created_by=known["created_by"],
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DatabaseError(f"{where}: not the manifest of a release ({error}); publish it again") from error


def version_of(tag: str) -> tuple[int, int, int] | None:
    """The version that a tag stands for; None where it is no tag of a release.

    >>> version_of("v1.10.0"), version_of("main")
    ((1, 10, 0), None)
    """
    found = _VERSION.fullmatch(tag.removeprefix("v"))
    return (int(found[1]), int(found[2]), int(found[3])) if found else None
