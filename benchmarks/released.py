"""Import of the papers' released dataset against copying its kernels into Parquet, with peak memory.

Copying reads ``/filters`` in blocks, rounds it to single precision and writes nine columns by pyarrow: once with
pyarrow's own settings, and once with those that the database uses. It reads no table, computes nothing and writes no
keys. Each side runs in its own process, which reports its seconds and its peak resident memory; the sides take
turns.

    python -m benchmarks.released [--gigabytes 2] [--repeat 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import cnnfilterdb
import cnnfilterdb.ingest.papers_dataset
from cnnfilterdb.core.schema import weight_columns
from cnnfilterdb.stats import layer_statistics
from cnnfilterdb.store.writer import filter_settings

#: Output and input channels of the layers of each model: those of a ResNet-18, with one layer of each size.
LAYERS = [(64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]
ROWS = 131_072  # kernels in a row group


def build(path: Path, filters: int) -> None:
    """Make a file in the layout of v1.0.0: float64 (N, 3, 3), and a pandas frame with an index of three levels."""
    rng = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    start = model = 0
    while start < filters:
        for depth, (out_channels, in_channels) in enumerate(LAYERS):
            stop = min(filters, start + out_channels * in_channels)
            if stop > start:
                category = ("natural", "medical ct", "seismic")[model % 3]
                rows.append((model, depth, depth / (len(LAYERS) - 1), f"{start}:{stop - 1}", f"model{model}", category))
            start = stop
        model += 1
    names = ["model_id", "conv_depth", "conv_depth_norm", "filter_ids", "model", "Visual Category"]
    table = pd.DataFrame(rows, columns=names).assign(Task="Classification", producer="pytorch 1.7", op_set=11)
    with h5py.File(path, "w") as file:
        kernels = file.create_dataset("filters", (filters, 3, 3), np.float64)
        for first in range(0, filters, ROWS):
            kernels[first : first + ROWS] = 0.05 * rng.standard_normal((min(ROWS, filters - first), 3, 3), np.float32)
    table.set_index(names[:3]).to_hdf(path, key="meta")


def _copy(source: Path, target: Path, **settings: Any) -> None:
    schema = pa.schema([(column, pa.float32()) for column in weight_columns("3x3")])
    with h5py.File(source) as file, pq.ParquetWriter(target, schema, **settings) as writer:
        kernels = file["filters"]
        for first in range(0, len(kernels), ROWS):
            block = kernels[first : first + ROWS].reshape(-1, 9).astype(np.float32)
            columns = [pa.array(column) for column in np.ascontiguousarray(block.T)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROWS)


def copy_default(source: Path, folder: Path) -> float:
    """Copy with pyarrow's own settings."""
    start = time.perf_counter()
    _copy(source, folder / "copy.parquet")
    return time.perf_counter() - start


def copy_tuned(source: Path, folder: Path) -> float:
    """Copy with the encoding and the compression of the database."""
    settings = filter_settings("3x3")
    start = time.perf_counter()
    _copy(
        source,
        folder / "copy.parquet",
        compression=settings["compression"],
        column_encoding=settings["column_encoding"],
        use_dictionary=False,
    )
    return time.perf_counter() - start


def ours(source: Path, folder: Path) -> float:
    """Import; compiled functions are loaded first, as in any second run."""
    layer_statistics(np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3))
    db = cnnfilterdb.create(folder / "import.db")
    start = time.perf_counter()
    report = db.import_released(source)
    seconds = time.perf_counter() - start
    assert report.done, report
    assert not report.failed, report.failed[0].reason
    return seconds


def _measure(side: str, source: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        command = [sys.executable, "-m", "benchmarks.released", "--side", side, "--source", str(source)]
        run = subprocess.run([*command, "--folder", folder], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Make the file, let the sides take turns, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["copy_default", "copy_tuned", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        seconds = globals()[arguments.side](arguments.source, arguments.folder)
        print(json.dumps({"s": seconds, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        source = folder / "dataset.h5"
        filters = int(arguments.gigabytes * 1e9 / 72)
        build(source, filters)
        sides = {"ours": "`cnnfilterdb import`", "copy_tuned": "copy, encoded as the database does"}
        sides["copy_default"] = "copy, pyarrow's own settings"
        runs = [{side: _measure(side, source) for side in sides} for _ in range(arguments.repeat)]
    finally:
        shutil.rmtree(folder)
    median = {side: sorted(run[side]["s"] for run in runs)[len(runs) // 2] for side in sides}
    print(f"{arguments.gigabytes:g} GB, {filters:,} kernels; medians of {arguments.repeat} runs\n")
    print("| work | s | million kernels / s | rate of the import, of this | peak memory, GB |")
    print("|---|--:|--:|--:|--:|")
    for side, label in sides.items():
        peak = max(run[side]["gb"] for run in runs)
        rate, share = filters / median[side] / 1e6, median[side] / median["ours"]
        print(f"| {label} | {median[side]:.2f} | {rate:.2f} | {share:.0%} | {peak:.2f} |")


if __name__ == "__main__":
    main()
