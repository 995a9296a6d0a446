"""Which Parquet encoding, compression and row-group size suit convolution kernels best.

    python benchmarks/encoding.py                  # generated kernels: random, structured, sparse, half precision
    python benchmarks/encoding.py --db filters.db  # the 3x3 kernels of a database
    python benchmarks/encoding.py --half           # either of them rounded as in a half-precision checkpoint

Each variant writes the same table and reads it back by pyarrow and by DuckDB. The fastest of several runs counts,
because other work on the machine can only slow it down. One Markdown table is printed to standard output.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cnnfilterdb.core.schema import filter_schema, weight_columns

KERNEL = "3x3"
WEIGHTS = weight_columns(KERNEL)
KEYS = ["layer", "out_channel", "in_channel"]


@dataclass(frozen=True)
class Variant:
    """One way of writing a table of filters."""

    split: bool = True
    codec: str = "lz4"
    level: int | None = None
    rows: int = 128 * 1024
    keys: str = "dictionary"  # or "delta", for layer and both channels; "plain" for all four keys
    options: tuple[tuple[str, Any], ...] = ()
    label: str = ""

    def __str__(self) -> str:
        encoding = "BYTE_STREAM_SPLIT" if self.split else "PLAIN"
        codec = self.codec if self.level is None else f"{self.codec}({self.level})"
        return f"{encoding}, {codec}, {self.rows // 1024}k" + (f", {self.label}" if self.label else "")

    def write(self, table: pa.Table, path: Path) -> None:
        """Write the table to a file."""
        encodings = dict.fromkeys(WEIGHTS, "BYTE_STREAM_SPLIT" if self.split else "PLAIN")
        dictionary = ["model_id", *KEYS]
        if self.keys == "delta":
            encodings |= dict.fromkeys(KEYS, "DELTA_BINARY_PACKED")
            dictionary = ["model_id"]
        elif self.keys == "plain":
            dictionary = []
        with pq.ParquetWriter(
            path,
            table.schema,
            compression=self.codec,
            compression_level=self.level,
            use_dictionary=dictionary,
            column_encoding=encodings,
            **dict(self.options),
        ) as writer:
            writer.write_table(table, row_group_size=self.rows)


def variants() -> Iterator[Variant]:
    """Encoding by codec at one row-group size, then row-group sizes, then the finer settings."""
    codecs = [("none", None), ("snappy", None), ("lz4", None), ("zstd", 1), ("zstd", 3), ("zstd", 9)]
    for split in (False, True):
        for codec, level in codecs:
            yield Variant(split, codec, level)
    for rows in (32, 64, 512, 1024):
        yield Variant(rows=rows * 1024)
    base = Variant()
    sorting = tuple(pq.SortingColumn(filter_schema(KERNEL).get_field_index(name)) for name in KEYS)
    yield replace(base, keys="plain", label="keys plain")
    yield replace(base, keys="delta", label="keys delta")
    yield replace(base, options=(("data_page_version", "2.0"),), label="data page v2")
    yield replace(base, options=(("sorting_columns", sorting),), label="sorting columns")
    yield replace(base, options=(("write_page_index", True),), label="page index")
    yield replace(base, options=(("write_statistics", ["model_id", *KEYS]),), label="statistics of keys only")


def made(rows: int, seed: int = 0) -> pa.Table:
    """Kernels of one model, like those of trained networks: half near initialisation, the rest shaped by training.

    Args:
        rows: Number of kernels.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    waves = np.array([[np.cos(np.pi * u * (x + 0.5) / 3) for x in range(3)] for u in range(3)])
    basis = np.array([np.outer(a, b).ravel() / np.linalg.norm(np.outer(a, b)) for a in waves for b in waves])
    # Smooth shapes carry most of the variance of trained kernels, with heavy tails.
    spread = np.array([1.0, 0.6, 0.3, 0.6, 0.35, 0.15, 0.3, 0.15, 0.07])
    parts: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    width, done, layer = 16, 0, 0
    while done < rows:
        count = width * width
        scale = np.sqrt(2.0 / (9 * width))
        if layer % 4 == 0:
            kernels = (rng.standard_t(4, (count, 9)) * spread) @ basis * scale
        elif layer % 8 == 1:
            kernels = rng.normal(0, scale, (count, 9)) * rng.choice([1e-5, 1.0], (count, 1), p=[0.8, 0.2])
        elif layer % 8 == 3:
            kernels = ((rng.standard_t(4, (count, 9)) * spread) @ basis * scale).astype(np.float16)
        else:
            kernels = rng.normal(0, scale, (count, 9))
        parts.append(kernels.astype(np.float32))
        index = np.arange(count)
        keys.append(np.stack([np.full(count, layer), index // width, index % width], axis=1).astype(np.int32))
        width, done, layer = min(width * 2, 512) if layer % 4 == 3 else width, done + count, layer + 1
    weights, key = np.concatenate(parts)[:rows], np.concatenate(keys)[:rows]
    columns = [pa.array(["made/model"] * rows)]
    columns += [pa.array(column) for column in np.ascontiguousarray(key.T)]
    columns += [pa.array(column) for column in np.ascontiguousarray(weights.T)]
    return pa.Table.from_arrays(columns, schema=filter_schema(KERNEL))


def stored(database: Path, rows: int) -> pa.Table:
    """The first 3x3 kernels of a database."""
    folder = database / "filters" / f"kernel={KERNEL}"
    return ds.dataset(folder, schema=filter_schema(KERNEL)).head(rows).combine_chunks()


def halved(table: pa.Table) -> pa.Table:
    """The same kernels rounded to half precision, still stored as float32."""
    for number, name in enumerate(table.column_names):
        if name in WEIGHTS:
            rounded = table[name].to_numpy().astype(np.float16).astype(np.float32)
            table = table.set_column(number, table.schema.field(name), pa.array(rounded))
    return table


def seconds(action: Callable[[], object], repeat: int) -> float:
    """Shortest wall time of several runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(variant: Variant, table: pa.Table, path: Path, repeat: int) -> list[str]:
    """One row of the result: settings, size, write rate, two scans, two reads of one layer."""
    connection = duckdb.connect()
    sums = ", ".join(f"sum({name})" for name in WEIGHTS)
    layers = table["layer"].value_counts().to_pylist()
    middle = sorted(layers, key=lambda pair: pair["counts"])[len(layers) // 2]["values"]
    one = f"layer = {middle}"

    write = seconds(lambda: variant.write(table, path), repeat)
    size = path.stat().st_size
    scan_arrow = seconds(lambda: pq.read_table(path, columns=WEIGHTS), repeat)
    scan_duckdb = seconds(lambda: connection.execute(f"SELECT {sums} FROM '{path}'").fetchall(), repeat)
    layer_arrow = seconds(lambda: pq.read_table(path, columns=WEIGHTS, filters=[("layer", "=", middle)]), repeat)
    layer_duckdb = seconds(lambda: connection.execute(f"SELECT {sums} FROM '{path}' WHERE {one}").fetchall(), repeat)
    path.unlink()
    million = len(table) / 1e6
    return [
        str(variant),
        f"{size / 1e6 / million:.1f}",
        f"{million / write:.1f}",
        f"{scan_arrow / million * 1e3:.0f}",
        f"{scan_duckdb / million * 1e3:.0f}",
        f"{layer_arrow * 1e3:.0f}",
        f"{layer_duckdb * 1e3:.0f}",
    ]


def main() -> None:
    """Measure every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", type=Path, help="use the 3x3 kernels of this database instead of generated ones")
    parser.add_argument("--half", action="store_true", help="round the weights to half precision first")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of kernels (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each measurement (default: %(default)s)")
    arguments = parser.parse_args()
    table = stored(arguments.db, arguments.rows) if arguments.db else made(arguments.rows)
    table = halved(table) if arguments.half else table
    head = ["settings", "MB / 1M", "write, 1M / s", "scan pyarrow, ms / 1M", "scan DuckDB, ms / 1M"]
    head += ["one layer pyarrow, ms", "one layer DuckDB, ms"]
    print("| " + " | ".join(head) + " |")
    print("|---" + "|--:" * (len(head) - 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants():
            print("| " + " | ".join(measure(variant, table, Path(folder) / "x.parquet", arguments.repeat)) + " |")


if __name__ == "__main__":
    main()
