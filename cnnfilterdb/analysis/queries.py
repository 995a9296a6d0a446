"""SQL that contains text from the user: expressions are checked separately, and errors become one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from cnnfilterdb.errors import (
    CnnFilterDbError,
    DamagedIndexError,
    DatabaseError,
    QueryError,
    RemoteError,
    SelectionError,
)
from cnnfilterdb.sql import expression

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QueryResult", "condition", "expression", "one_line", "run", "translated", "unreachable"]

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
    r"/index/[^/'\"]+/(basis|histograms/[^/'\"]+)\.parquet|Referenced column (bases|histograms|inner_h|h)\."
)


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
    except duckdb.Error as error:
        raise translated(error, SelectionError) from error


def translated(error: duckdb.Error, kind: type[CnnFilterDbError]) -> CnnFilterDbError:
    """The error of this package for one of DuckDB.

    Args:
        error: DuckDB's.
        kind: The class of an error in the query itself.
    """
    if remote := unreachable(error):
        return remote
    if _INDEX_FILE.search(str(error)):
        return DamagedIndexError(
            f"the index is damaged ({one_line(error):.300}); `cnnfilterdb index` rebuilds it, from the filters"
        )
    if isinstance(error, duckdb.HTTPException):
        return RemoteError(one_line(error))
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.InternalError):
        return DatabaseError(one_line(error))
    return kind(one_line(error))


def unreachable(error: duckdb.Error) -> RemoteError | None:
    """The RemoteError that a Python file system raised inside DuckDB, recovered from DuckDB's message, or None."""
    traceback, found, message = str(error).rpartition(f"{RemoteError.__name__}: ")
    return RemoteError(message.partition("\n")[0]) if found and "Traceback" in traceback else None


def one_line(error: Exception) -> str:
    """DuckDB's message in one line, without its excerpt of the query."""
    text = str(error).split("\nLINE ")[0]
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return " ".join(text.split())


class QueryResult:
    """The rows of a query, read on demand.

    It is used like a DuckDB relation and has all of its methods (``filter``, ``aggregate``, ``limit``, ...), but an
    error that occurs while rows are read is a :class:`~cnnfilterdb.errors.QueryError`.

    Args:
        relation: The relation.
    """

    def __init__(self, relation: duckdb.DuckDBPyRelation) -> None:
        self._relation = relation

    def df(self) -> pd.DataFrame:
        """All rows as a pandas DataFrame."""
        frame: pd.DataFrame = self._call(self._relation.df)
        return frame

    def to_arrow_table(self) -> pa.Table:
        """All rows as an Arrow table."""
        return self._call(self._relation.to_arrow_table)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows as tuples."""
        rows: list[tuple[Any, ...]] = self._call(self._relation.fetchall)
        return rows

    def show(self, **options: Any) -> None:
        """Print the first rows.

        Args:
            **options: Those of DuckDB's ``show``, such as ``max_rows``.
        """
        self._call(self._relation.show, **options)

    def __repr__(self) -> str:
        return str(self._call(lambda: str(self._relation)))

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
            return self._call(value, *arguments, **options)

        return method

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            value = function(*arguments, **options)
        except duckdb.Error as error:
            raise translated(error, QueryError) from error
        return QueryResult(value) if isinstance(value, duckdb.DuckDBPyRelation) else value
