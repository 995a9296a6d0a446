"""The errors of cnnfilterdb: one root, so that one ``except`` catches them all.

::

    CnnFilterDbError
    ├── DatabaseError             the folder on disk is not what it should be
    │   ├── NotADatabaseError     no database at this path (also FileNotFoundError)
    │   ├── LockedError           another process writes this model
    │   ├── CorruptError          a count or a hash does not match
    │   │   └── DamagedIndexError of a file of the index, which can be rebuilt
    │   └── UnsafePathError       a path that leaves its folder, or that is not a regular file
    ├── SelectionError            a `by`, `where` or argument that cannot be answered (also ValueError)
    ├── QueryError                a SQL query that is wrong, or that fails while it runs (also ValueError)
    ├── UnknownModelError         no model of that name, with the nearest names (also KeyError)
    ├── IngestError               a model that could not be imported
    │   ├── WeightFileError       a file that is not a readable weight file
    │   │   └── UnsafeFileError   a file that asks for code to be executed
    │   ├── NoConvolutionError    a readable file without a two-dimensional convolution
    │   ├── BadWeightsError       weights that are NaN, infinite or otherwise unusable
    │   ├── HashMismatchError     a download whose hash is not the expected one
    │   └── DownloadError         a file that could not be downloaded
    ├── RemoteError               a remote database that could not be reached or read
    ├── WorkerLostError           a worker or node that ended again and again while it did a unit of work
    ├── PublishError              a release that could not be published
    ├── CatalogError              a catalog file that breaks its schema
    └── MissingExtraError         an optional dependency that is not installed (also ImportError)

Every message is one line that says what was expected, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

__all__ = [
    "BadWeightsError",
    "CatalogError",
    "CnnFilterDbError",
    "CorruptError",
    "DamagedIndexError",
    "DatabaseError",
    "DownloadError",
    "HashMismatchError",
    "IngestError",
    "LockedError",
    "MissingExtraError",
    "NoConvolutionError",
    "NotADatabaseError",
    "PublishError",
    "QueryError",
    "RemoteError",
    "SelectionError",
    "UnknownModelError",
    "UnsafeFileError",
    "UnsafePathError",
    "WeightFileError",
    "WorkerLostError",
    "unknown_model",
]


class CnnFilterDbError(Exception):
    """Root of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError quotes its argument; plain text is easier to read.
        return " ".join(str(arg) for arg in self.args)


class DatabaseError(CnnFilterDbError):
    """The database folder is not what it should be."""


class NotADatabaseError(DatabaseError, FileNotFoundError):
    """No database exists at the given path."""


class LockedError(DatabaseError):
    """Another process is writing the same model."""


class CorruptError(DatabaseError):
    """A count or a hash of stored data does not match."""


class DamagedIndexError(CorruptError):
    """A file of the index is damaged or of another version; `cnnfilterdb index` rebuilds it from the filters."""


class UnsafePathError(DatabaseError):
    """A path from elsewhere leaves its folder, or does not name a regular file."""


class SelectionError(CnnFilterDbError, ValueError):
    """A grouping, a condition or an argument that cannot be answered."""


class QueryError(CnnFilterDbError, ValueError):
    """A SQL query that DuckDB refuses, or that fails while its rows are computed."""


class UnknownModelError(CnnFilterDbError, KeyError):
    """A name that no model has; the message gives the nearest names."""


class IngestError(CnnFilterDbError):
    """A model could not be imported."""


class WeightFileError(IngestError):
    """A file is not a weight file that can be read."""


class UnsafeFileError(WeightFileError):
    """A file asks for code to be executed; the code was not run."""


class NoConvolutionError(IngestError):
    """A readable file contains no two-dimensional convolution."""


class BadWeightsError(IngestError):
    """Weights are NaN, infinite or otherwise unusable."""


class HashMismatchError(IngestError):
    """The bytes of a file are not the expected ones."""


class DownloadError(IngestError):
    """A file could not be downloaded."""


class RemoteError(CnnFilterDbError):
    """A remote database could not be reached or read."""


class WorkerLostError(CnnFilterDbError):
    """A worker process or a node ended while it did a unit of work, again and again."""


class PublishError(CnnFilterDbError):
    """A release could not be published."""


class CatalogError(CnnFilterDbError):
    """A catalog file breaks its schema."""


class MissingExtraError(CnnFilterDbError, ImportError):
    """An optional dependency is not installed; the message contains the command that installs it."""


# Users import the errors from the package, so this is where tracebacks say they are from.
for _error in (value for value in list(globals().values()) if isinstance(value, type)):
    if issubclass(_error, CnnFilterDbError):
        _error.__module__ = "cnnfilterdb"


def unknown_model(model_id: str, there: Sequence[str], where: Path | str) -> UnknownModelError:
    """The error for a key that no model has, with keys that contain it, or else the nearest ones."""
    sought = str(model_id).lower()
    near = [name for name in there if sought and sought in name.lower()][:3] or get_close_matches(model_id, there, 3)
    return UnknownModelError(
        f"no model {model_id!r} in {where}; " + (f"near: {', '.join(near)}" if near else "no name is near it")
    )
