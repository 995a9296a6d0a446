"""Hostile SQL: what writes, reads other files, changes settings or never ends is refused, and leaves nothing behind."""

import hashlib
from pathlib import Path

import pytest

import cnnfilterdb
from cnnfilterdb.explore.jobs import Job, current
from cnnfilterdb.explore.statements import answer
from cnnfilterdb.explore.watched import WatchedReader

#: Each with a part of the answer. {db} is the folder of the database, {out} one outside of it.
HOSTILE = {
    # Writing, inside the folder too, which the allowed directories alone would let through.
    "COPY models TO '{db}/x.csv'": "COPY",
    "COPY (SELECT 1) TO '{out}/x.csv'": "COPY",
    "WITH a AS (COPY (SELECT 1) TO '{db}/x.csv') SELECT 1": "COPY",
    "EXPORT DATABASE '{out}'": "EXPORT",
    "CREATE TABLE x AS SELECT 1": "CREATE",
    "CREATE OR REPLACE VIEW models AS SELECT 1": "CREATE",
    "CREATE MACRO f(x) AS x": "CREATE",
    "CREATE SECRET s (TYPE s3)": "",
    "DROP VIEW models": "DROP",
    "INSERT INTO models VALUES (1)": "INSERT",
    "WITH a AS (INSERT INTO explorer.layers SELECT * FROM explorer.layers RETURNING 1) SELECT * FROM a": "read-only",
    "WITH a AS (DELETE FROM explorer.layers RETURNING 1) SELECT * FROM a": "read-only",
    "WITH a AS (UPDATE explorer.layers SET layer = 0 RETURNING 1) SELECT * FROM a": "read-only",
    "DELETE FROM models": "DELETE",
    "UPDATE models SET name = 'x'": "UPDATE",
    "TRUNCATE models": "DELETE",
    "ALTER VIEW models RENAME TO m": "ALTER",
    "COMMENT ON VIEW models IS 'x'": "ALTER",
    # Other files and other databases.
    "ATTACH '{out}/x.db'": "ATTACH",
    "FROM read_text('/etc/hostname')": "Permission",
    "FROM read_csv('/etc/passwd')": "Permission",
    "FROM '{out}/secret.csv'": "Permission",
    "FROM read_blob('{db}/../secret.csv')": "Permission",
    "FROM glob('/*')": "Permission",
    "FROM sniff_csv('/etc/passwd')": "Permission",
    "FROM read_parquet('https://example.org/x.parquet')": "",
    "FROM query('COPY models TO ''{db}/x.csv''')": "",
    "FROM parquet_metadata('/etc/passwd')": "Permission",
    "SELECT getenv('HOME')": "getenv",
    "FROM duckdb_secrets()": "",
    # Extensions and settings.
    "INSTALL httpfs": "LOAD",
    "LOAD '{out}/x.duckdb_extension'": "LOAD",
    "SET memory_limit = '100GB'": "SET",
    "RESET lock_configuration": "SET",
    "PRAGMA enable_profiling": "PRAGMA",
    "CALL pragma_version()": "CALL",
    "SELECT * FROM enable_logging()": "configuration",
    "SET VARIABLE cnnfilterdb_path = '/'": "SET",
    "USE system": "SET",
    "CHECKPOINT": "CALL",
    "VACUUM": "VACUUM",
    "BEGIN TRANSACTION": "TRANSACTION",
    "PREPARE p AS SELECT 1": "PREPARE",
    "EXECUTE p": "EXECUTE",
    # More than one statement, or none.
    "SELECT 1; DROP VIEW models": "2 statements",
    "SELECT 1;; COPY models TO 'x'": "2 statements",
    "": "empty",
    "-- SELECT 1": "empty",
    "SELECT '": "unterminated",
    "EXPLAIN ANALYZE SELECT 1": "EXPLAIN",
    # Never-ending, or too large.
    "SELECT count(*) FROM range(100000000000) a, range(1000) b WHERE hash(a.range + b.range) = 1": "stopped after",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t": "stopped after",
    "SELECT list(range) FROM range(1000000000)": "",
    "SELECT repeat('x', 400000) FROM range(10000)": "larger than",
    "SELECT list(range ORDER BY hash(range)) FROM range(100000000)": "emory",
}  # fmt: skip


def contents(path: Path) -> dict[str, str]:
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


def limited(watched: WatchedReader, query: str, seconds: float) -> None:
    """Run a query as the server does."""
    with Job(seconds) as job:
        current.set(job)
        try:
            answer(watched, query, 1000)
        except cnnfilterdb.CnnFilterDbError:
            job.check()
            raise
        finally:
            current.set(None)


@pytest.fixture(scope="module")
def watched(explored_path: Path):
    with cnnfilterdb.open(explored_path, read_only=True) as db, WatchedReader(db, memory="128MB") as reader:
        reader.groups("domain")  # which keeps its tables
        yield reader


@pytest.fixture(scope="module")
def before(explored_path: Path):
    return contents(explored_path)


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: query[:50])
def test_hostile_sql_is_refused(watched, before, explored_path, tmp_path, query):
    (tmp_path / "secret.csv").write_text("a\nsecret\n")
    text = query.format(db=explored_path, out=tmp_path)
    with pytest.raises(cnnfilterdb.CnnFilterDbError) as error:
        limited(watched, text, 0.7 if HOSTILE[query].startswith("stopped") else 600)
    assert HOSTILE[query] in str(error.value)
    assert "secret" not in str(error.value).replace("secret.csv", "").replace("stored_secrets", "")
    assert contents(explored_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    # The views are as they were.
    assert answer(watched, "SELECT count(*) FROM models", 1).table["count_star()"].to_pylist() == [6]


@pytest.mark.parametrize(
    "query",
    [
        "FROM models",
        "SELECT 'COPY x TO y; DROP' AS text",
        "DESCRIBE facts",
        "SUMMARIZE layers",
        "SHOW TABLES",
        "VALUES (1), (2)",
        "WITH a AS (SELECT 1) FROM a",
        "TABLE models",
        "FROM (PIVOT layers ON kernel IN ('3x3', '5x5') USING count(*) GROUP BY model_id)",
        "FROM kl_shift(domain)",
        "FROM models;",
    ],
)
def test_what_reads_is_answered(watched, query):
    assert answer(watched, query, 5).table.num_columns


def test_there_are_as_many_rows_as_asked_for(watched):
    found = answer(watched, "FROM range(10)", 10)
    assert (found.table.num_rows, found.more) == (10, False)
    found = answer(watched, "FROM range(10)", 9)
    assert (found.table.num_rows, found.more) == (9, True)
