"""SQL of the page: one statement that reads, within limits of rows and size."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from cnnfilterdb.analysis.queries import one_line, translated
from cnnfilterdb.core.errors import QueryError
from cnnfilterdb.explore.watched import WatchedReader
from cnnfilterdb.sql import needs_fingerprints, needs_index

__all__ = ["MAX_BYTES", "Fetched", "answer", "reading_statement"]

#: Largest size of a result, in bytes.
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Fetched:
    """Rows of a query.

    Attributes:
        table: The rows.
        more: Whether the query has more rows than were asked for.
    """

    table: pa.Table
    more: bool


def reading_statement(query: str) -> str:
    """The text of the one statement of a query, if it only reads.

    DuckDB's parser decides: SELECT covers FROM, VALUES, WITH, DESCRIBE, SUMMARIZE and SHOW, and nothing else. Whether
    a WITH contains a statement that changes something is left to :func:`answer`, which runs it in a transaction that
    can only read.

    Raises:
        QueryError: It cannot be parsed, is not one statement, or is of another kind.

    >>> reading_statement("FROM models;")
    'FROM models;'
    >>> reading_statement("COPY models TO 'x.csv'")
    Traceback (most recent call last):
    cnnfilterdb.QueryError: COPY: only SELECT, DESCRIBE and SUMMARIZE can be run here
    >>> reading_statement("SELECT 1; SELECT 2")
    Traceback (most recent call last):
    cnnfilterdb.QueryError: 2 statements given; give one
    """
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise translated(error, QueryError) from error
    if not statements:
        raise QueryError("the query is empty; give one SQL statement, such as FROM models")
    if len(statements) > 1:
        raise QueryError(f"{len(statements)} statements given; give one")
    kind = statements[0].type
    if kind == duckdb.StatementType.MULTI:
        raise QueryError("PIVOT without its values; list them: FROM (PIVOT layers ON kind IN ('conv') USING count(*))")
    if kind != duckdb.StatementType.SELECT:
        raise QueryError(f"{kind.name}: only SELECT, DESCRIBE and SUMMARIZE can be run here")
    return str(statements[0].query)


def answer(db: WatchedReader, query: str, rows: int) -> Fetched:
    """The first rows of a query.

    Args:
        db: The database.
        query: One statement that reads.
        rows: Largest number of rows.

    Raises:
        QueryError: It is not such a statement, DuckDB refuses it, or its result is larger than :data:`MAX_BYTES`.
        CancelledError: Its job was stopped.
    """
    text = reading_statement(query)
    if needs_index(text):
        db._ensure_index(fingerprints=needs_fingerprints(text))
    cursor = db.watched(text)
    try:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        relation = cursor.sql(text)
        if relation is None:
            raise QueryError("the statement has no rows; give one that reads, such as FROM models")
        reader = relation.limit(rows + 1).to_arrow_reader(2048)
        batches, size = [], 0
        for batch in reader:
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_BYTES:
                raise QueryError(f"the result is larger than {MAX_BYTES // 2**20} MB; select fewer columns or rows")
        table = pa.Table.from_batches(batches, reader.schema)
    except duckdb.Error as error:
        raise translated(error, QueryError) from error
    except OSError as error:  # how pyarrow reports what DuckDB says while rows are read
        raise QueryError(one_line(error)) from error
    finally:
        cursor.close()
    return Fetched(table.slice(0, rows), table.num_rows > rows)
