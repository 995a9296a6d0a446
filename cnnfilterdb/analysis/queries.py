"""SQL that contains text from the user: expressions are checked separately, and errors become one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    CorruptError,
    DamagedIndexError,
    DatabaseError,
    QueryError,
    RemoteError,
    SelectionError,
)
from cnnfilterdb.core.reports import printable
from cnnfilterdb.core.sqltext import expression
from cnnfilterdb.scan.steady import Snapshot, steady, watched

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CHECK",
    "FAILURES",
    "QueryResult",
    "batches",
    "condition",
    "expression",
    "one_line",
    "only_reads",
    "run",
    "translated",
    "unreachable",
]

T = TypeVar("T")

_PREFIXES = (
    "Binder Error: ",
    "Catalog Error: ",
    "Conversion Error: ",
    "Invalid Input Error: ",
    "Out of Range Error: ",
    "Parser Error: ",
)


#: A file of the index of a folder in a message of DuckDB.
_INDEX_FILE = re.compile(
    rf"/{paths.INDEX}/[^/'\"]+/({re.escape(paths.BASIS)}|{paths.HISTOGRAMS}/[^/'\"]+\.parquet)"
    rf"|/{re.escape(paths.GATHERED)}/|/{paths.INDEX}/{paths.FINGERPRINTS}/[^/'\"]+\.parquet"
    r"| is not in the index |Referenced column (bases|histograms|inner_h|h)\.| from source column sketch"
)

#: Another table of a database in a message of DuckDB.
_TABLE_FILE = re.compile(rf"/(({paths.MODELS}|{paths.LAYERS})/|filters[/_])[^'\"]*\.parquet")

#: What DuckDB says of a damaged file without its name, and of a sound one that cannot be opened.
_NAMELESS, _SOUND = "TProtocolException", re.compile("Cannot open|No such file|No files found|Permission|Too many open")

#: What to do about a damaged table.
CHECK = "`cnnfilterdb verify` lists all problems"

#: Classes of DuckDB's errors by how their texts begin.
_KINDS: dict[str, type[duckdb.Error]] = {
    "HTTP Error:": duckdb.HTTPException,
    "INTERNAL Error:": duckdb.InternalError,
    "IO Error:": duckdb.IOException,
    "Out of Memory Error:": duckdb.OutOfMemoryException,
}

#: What a query raises: DuckDB's own error, or one of decoding DuckDB's message, which quotes bytes of a damaged file.
FAILURES = (duckdb.Error, UnicodeDecodeError)


def condition(where: str | None) -> str:
    """The condition of an argument ``where`` in brackets; ``true`` for None and for an empty text.

    Raises:
        SelectionError: It is not a SQL expression.

    >>> condition("task = 'Segmentation'")
    "(task = 'Segmentation')"
    >>> condition(None)
    'true'
    """
    if where is None or (isinstance(where, str) and not where.strip()):
        return "true"
    return expression(where, "where")


def run(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Run a query that contains a user's expression.

    Raises:
        SelectionError: DuckDB refuses the expression.
        DatabaseError: A file cannot be read.
        RemoteError: The database cannot be reached.
    """
    try:
        return connection.sql(query).to_arrow_table()
    except FAILURES as error:
        raise translated(error, SelectionError) from error


def batches(connection: duckdb.DuckDBPyConnection, query: str, rows: int) -> Iterator[pa.RecordBatch]:
    """The same, batch by batch, of at most so many rows, while the query runs.

    Raises:
        CnnFilterDbError: As :func:`run`, while the batches are read, too.
    """
    try:
        yield from connection.sql(query).to_arrow_reader(rows)
    except FAILURES as error:
        raise translated(error, SelectionError) from error
    except (OSError, pa.ArrowException) as error:  # DuckDB's, while batches are read: Arrow hands over only its text
        kind = next((kind for name, kind in _KINDS.items() if str(error).startswith(name)), duckdb.Error)
        raise translated(kind(str(error)), SelectionError) from error


def translated(error: duckdb.Error | UnicodeDecodeError, kind: type[CnnFilterDbError]) -> CnnFilterDbError:
    """The error of this package for one of DuckDB.

    Args:
        error: What a query raised, one of :data:`FAILURES`.
        kind: The class of an error in the query itself.
    """
    if remote := unreachable(error):
        return remote
    if _INDEX_FILE.search(str(error)):
        return damaged_index(f"{one_line(error):.300}")
    if isinstance(error, duckdb.HTTPException):
        return RemoteError(one_line(error))
    if isinstance(error, duckdb.OutOfMemoryException):
        reason = str(error).partition("\n")[0].removeprefix("Out of Memory Error: ")
        return DatabaseError(f"the query needs more memory ({reason}); give more with memory=, or fewer threads=")
    if isinstance(error, UnicodeDecodeError):
        return CorruptError(f"a file is damaged: DuckDB quotes text of it that is not UTF-8; {CHECK}")
    if _NAMELESS in str(error) or (_TABLE_FILE.search(str(error)) and not _SOUND.search(str(error))):
        return CorruptError(f"a file is damaged ({one_line(error):.300}); {CHECK}")
    if isinstance(error, duckdb.IOException | duckdb.InternalError):
        return DatabaseError(one_line(error))
    return kind(one_line(error))


def damaged_index(what: str) -> DamagedIndexError:
    """The error for rows of the index that cannot be used."""
    return DamagedIndexError(f"the index is damaged ({what}); `cnnfilterdb index` rebuilds it, from the filters")


def unreachable(error: Exception) -> RemoteError | None:
    """The RemoteError that a Python file system raised inside DuckDB, recovered from DuckDB's message, or None."""
    traceback, found, message = str(error).rpartition(f"{RemoteError.__name__}: ")
    return RemoteError(message.partition("\n")[0]) if found and "Traceback" in traceback else None


def one_line(error: Exception) -> str:
    """DuckDB's message in one line, without its excerpt of the query."""
    text = str(error).split("\nLINE ")[0]
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return printable(text)


def only_reads(query: str) -> bool:
    """Whether a text is one query that can be repeated, and neither changes anything nor reads settings.

    >>> only_reads("FROM models"), only_reads("CREATE TABLE a (b INT)"), only_reads("nonsense")
    (True, False, False)
    """
    try:
        return [one.type for one in duckdb.extract_statements(query)] == [duckdb.StatementType.SELECT]
    except duckdb.Error:
        return False


#: Methods that return all rows, and can be called again after files were replaced.
_COMPLETE = frozenset(
    {"df", "to_df", "fetchdf", "fetchall", "fetchnumpy", "pl", "tf", "torch", "arrow", "to_arrow_table", "to_dicts"}
    | {"fetch_arrow_table", "shape", "show", "preview", "__str__"}
)


class QueryResult:
    """The rows of a query, read on demand.

    It is used like a DuckDB relation and has all of its methods (``filter``, ``aggregate``, ``limit``, ...), but an
    error that occurs while rows are read is a :class:`~cnnfilterdb.QueryError`.

    Args:
        relation: The relation.
        again: Makes it again, of the files that are present then; None for what cannot be repeated.
        snapshot: Returns the state of the database, by which it is decided whether to repeat.
        explained: Returns the error to raise for one of this package.
        since: The state of the database when the relation was made.
    """

    def __init__(
        self,
        relation: duckdb.DuckDBPyRelation,
        again: Callable[[], duckdb.DuckDBPyRelation] | None = None,
        snapshot: Callable[[], Snapshot] = dict,
        explained: Callable[[CnnFilterDbError], CnnFilterDbError] = lambda error: error,
        since: Snapshot | None = None,
    ) -> None:
        self._relation = relation
        self._again = again
        self._snapshot = snapshot
        self._explained = explained
        self._since = since

    def df(self) -> pd.DataFrame:
        """All rows as a pandas DataFrame."""
        frame: pd.DataFrame = self._call("df")
        return frame

    def to_arrow_table(self) -> pa.Table:
        """All rows as an Arrow table."""
        return self._call("to_arrow_table")

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples."""
        rows: list[tuple[Any, ...]] = self._call("fetchall")
        return rows

    def show(self, **options: Any) -> None:
        """Print the first rows.

        Args:
            **options: Those of DuckDB's ``show``, such as ``max_rows``.
        """
        self._call("show", **options)

    def __repr__(self) -> str:
        return str(self._call("__str__"))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._relation)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling look up such names before there is a relation
            raise AttributeError(name)
        value = getattr(self._relation, name)
        if not callable(value):
            return value

        @wraps(value)
        def method(*arguments: Any, **options: Any) -> Any:
            return self._call(name, *arguments, **options)

        return method

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        present, again = [self._relation], self._again

        def ask() -> Any:
            relation = present.pop() if present or again is None else again()
            return getattr(relation, name)(*arguments, **options)

        whole = again is not None and name in _COMPLETE
        before: Snapshot = {} if whole and name != "arrow" else self._snapshot()  # of what may be a stream
        try:
            value = steady(self._snapshot, ask, since=self._since) if whole else ask()
        except FAILURES as error:
            raise self._explained(translated(error, QueryError)) from error
        if isinstance(value, pa.RecordBatchReader):
            return pa.RecordBatchReader.from_batches(value.schema, self._streamed(value, before))
        if isinstance(value, Iterator):
            return self._streamed(value, before)
        if not isinstance(value, duckdb.DuckDBPyRelation):
            return value
        renewed = None if again is None else lambda: getattr(again(), name)(*arguments, **options)
        return QueryResult(value, renewed, self._snapshot, self._explained, self._since)

    def _streamed(self, rows: Iterator[T], before: Snapshot) -> Iterator[T]:
        """A stream of rows, which ends in an error of this package."""
        try:
            yield from watched(self._snapshot, before, rows)
        except FAILURES as error:
            raise self._explained(translated(error, QueryError)) from error
        except (pa.ArrowException, OSError) as error:
            raise QueryError(one_line(error)) from error
