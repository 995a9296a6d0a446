"""Compare two databases value by value: models, layers, filters, histograms, shifts and quality.

    python scripts/compare_databases.py before.db after.db

For changes that must not affect results: it reads the Parquet files with DuckDB alone, and computes shifts and quality
with each database's own init.sql. Columns that were renamed are compared under their new names. Prints one
line per table and ends with status 1 when anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

#: Columns of older databases by table: old name -> new name.
RENAMED = {"layers": {"name": "layer_name"}, "models": {"filters": "stored_filters"}}
#: What may differ between two runs: when a row was written, by which version, and the bytes of files.
VOLATILE = {"ingested_at", "created_at", "cnnfilterdb_version", "files"}

QUESTIONS = {
    "kl_shift(domain)": "FROM kl_shift(domain)",
    "kl_shift(family)": "FROM kl_shift(family)",
    "kl_shift(domain), 5x5": "FROM kl_shift(domain, kernel := '5x5')",
    "kl_shift(task), medneurips2022": "FROM kl_shift(task, recipe := 'medneurips2022', balance := 'models')",
    "shift_metrics(domain)": "FROM shift_metrics(domain)",
    "filter_quality(domain)": "FROM filter_quality(domain)",
    "filter_quality(model_id)": "FROM filter_quality(model_id)",
}


def pattern(folder: Path, table: str) -> str:
    """The files of a table."""
    places = {"histograms": "index/*/histograms/*.parquet", "bases": "index/*/basis.parquet"}
    return str(folder / places.get(table, f"{table}/**/*.parquet"))


def columns(connection: duckdb.DuckDBPyConnection, files: str) -> list[str]:
    """Columns of some Parquet files."""
    found = connection.execute(f"DESCRIBE FROM read_parquet('{files}', hive_partitioning = false)").fetchall()
    return [name for name, *_ in found]


def compare_table(connection: duckdb.DuckDBPyConnection, before: Path, after: Path, table: str) -> int:
    """Number of rows that are in one database only."""
    old, new = columns(connection, pattern(before, table)), columns(connection, pattern(after, table))
    renamed = RENAMED.get(table, {})
    known = {renamed.get(name, name) if renamed.get(name) in new else name: name for name in old}
    common = [name for name in new if name in known and name not in VOLATILE]
    sides = []
    for files, names in ((pattern(before, table), known), (pattern(after, table), {name: name for name in new})):
        chosen = ", ".join(f'"{names[name]}" AS "{name}"' for name in common)
        sides.append(f"SELECT {chosen} FROM read_parquet('{files}', hive_partitioning = false)")
    # Equal tables have equal sums of the hashes of their rows; only where these differ are the rows compared.
    digest = "SELECT count(*), sum(CAST(hash(side) AS HUGEINT)) FROM ({}) AS side"
    first, second = (connection.execute(digest.format(side)).fetchone() for side in sides)
    rows, different = (second or (0,))[0], 0
    if first != second:
        query = (
            f"SELECT count(*) FROM (({sides[0]} EXCEPT ALL {sides[1]}) UNION ALL ({sides[1]} EXCEPT ALL {sides[0]}))"
        )
        (different,) = connection.execute(query).fetchone() or (0,)
    missing = sorted(set(known) - set(new) - VOLATILE)
    added = sorted(set(new) - set(known) - VOLATILE)
    remarks = [f"without {', '.join(missing)}"] * bool(missing) + [f"new: {', '.join(added)}"] * bool(added)
    print(f"{table}: {rows:,} rows, {different:,} differ {' '.join(remarks)}".rstrip())
    return int(different)


def answers(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of every query, in a DuckDB session that ran the init.sql of the database."""
    connection = duckdb.connect()
    connection.execute("SET threads = 1")  # sums of floating-point numbers depend on their order
    connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(folder.resolve())})
    connection.execute((folder / "init.sql").read_text(encoding="utf-8"))
    return {name: connection.execute(query).fetchall() for name, query in QUESTIONS.items()}


def main(before: Path, after: Path) -> int:
    """Compare, and return the number of differences."""
    connection = duckdb.connect()
    kernels = {path.name for path in (before / "filters").iterdir()} | {
        path.name for path in (after / "filters").iterdir()
    }
    tables = ["models", "layers", *(f"filters/{kernel}" for kernel in sorted(kernels)), "bases", "histograms"]
    different = sum(compare_table(connection, before, after, table) for table in tables)
    old, new = answers(before), answers(after)
    for name in QUESTIONS:
        wrong = sum(a != b for a, b in zip(old[name], new[name], strict=False)) + abs(len(old[name]) - len(new[name]))
        print(f"{name}: {len(new[name]):,} rows, {wrong:,} differ")
        different += wrong
    return different


if __name__ == "__main__":
    sys.exit(1 if main(*map(Path, sys.argv[1:3])) else 0)
