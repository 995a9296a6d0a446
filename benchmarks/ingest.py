"""Ingest of a checkpoint against writing its kernels to Parquet, side by side in one run, with peak memory.

    python -m benchmarks.ingest [--kernels 8000000] [--folder DIR]

The checkpoint is a safetensors file with the layers of wide residual networks. One side ingests it: reads, checks and
hashes each tensor, computes all statistics of its layer, and commits a model. The other has the kernels in memory as
columns and only writes them: as the database encodes them, and with pyarrow's defaults. Each side runs in its own
process; the fastest of several runs counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from benchmarks._synthetic import measured, peak_gb
from cnnfilterdb.core.schema import weight_columns
from cnnfilterdb.store.writer import filter_settings, row_group_rows

CHANNELS = (512, 512)


def build(path: Path, kernels: int) -> None:
    """Write the checkpoint."""
    rng = np.random.default_rng(0)
    mixing = (np.eye(9) + 0.3 * rng.normal(size=(9, 9))).astype(np.float32)
    count = -(-kernels // (CHANNELS[0] * CHANNELS[1]))
    tensors = {}
    for number in range(count):
        weight = rng.standard_normal((CHANNELS[0] * CHANNELS[1], 9), np.float32) @ mixing
        tensors[f"layers.{number}.weight"] = weight.reshape(*CHANNELS, 3, 3)
    save_file(tensors, path)


def ingest(path: Path) -> float:
    """Seconds of an ingest, after a small one that loads the compiled functions."""
    import cnnfilterdb

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        db = cnnfilterdb.create(Path(folder) / "a.db")
        db.add({"a.weight": np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)}, "first")
        start = time.perf_counter()
        db.ingest("files", [str(path)], allow_untrained=True)
        return time.perf_counter() - start


def _table(path: Path) -> pa.Table:
    columns: dict[str, list[np.ndarray]] = {}
    for number, weight in enumerate(load_file(path).values()):
        outs, ins = weight.shape[:2]
        out_channel, in_channel = np.divmod(np.arange(outs * ins, dtype=np.int32), np.int32(ins))
        columns.setdefault("layer", []).append(np.full(outs * ins, number, np.int32))
        columns.setdefault("out_channel", []).append(out_channel)
        columns.setdefault("in_channel", []).append(in_channel)
        for name, column in zip(weight_columns("3x3"), weight.reshape(-1, 9).T, strict=True):
            columns.setdefault(name, []).append(column)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    rows = len(arrays["layer"])
    model = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), ["files/checkpoint"]).cast(pa.string())
    return pa.table({"model_id": model, **arrays})


def write(path: Path, *, own: bool) -> float:
    """Seconds of writing the kernels, which are in memory already."""
    table = _table(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        options = {} if own else {**filter_settings("3x3"), "row_group_size": row_group_rows("3x3")}
        start = time.perf_counter()
        pq.write_table(table, Path(folder) / "a.parquet", **options)
        return time.perf_counter() - start


SIDES: dict[str, Callable[[Path], float]] = {
    "ingest": ingest,
    "encoded": lambda path: write(path, own=False),
    "own": lambda path: write(path, own=True),
}
LABELS = {
    "ingest": "`cnnfilterdb ingest files`",
    "encoded": "`pyarrow.parquet.write_table`, encoded as the database does",
    "own": "`pyarrow.parquet.write_table`, its own settings",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=8_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = (arguments.folder or Path(scratch)) / "checkpoint.safetensors"
        if arguments.side:
            seconds = SIDES[arguments.side](path)
            print(json.dumps({"seconds": seconds, "peak_gb": peak_gb()}))
            return
        if not path.exists():
            build(path, arguments.kernels)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.repeat):
            for side in SIDES:
                found[side].append(measured("ingest", "--side", side, "--folder", path.parent))
        kernels = -(-arguments.kernels // (CHANNELS[0] * CHANNELS[1])) * CHANNELS[0] * CHANNELS[1]
    best = {side: min(run["seconds"] for run in runs) for side, runs in found.items()}
    tensor = 36 * CHANNELS[0] * CHANNELS[1] / 1e6
    print(f"{kernels:,} 3x3 kernels in one safetensors file, largest tensor {tensor:.0f} MB\n")
    print("| work | s | million kernels / s | rate of the ingest, of this | peak memory, GB |")
    print("|---|--:|--:|--:|--:|")
    for side, label in LABELS.items():
        peak = max(run["peak_gb"] for run in found[side])
        share = best[side] / best["ingest"]
        print(f"| {label} | {best[side]:.2f} | {kernels / best[side] / 1e6:.2f} | {share:.0%} | {peak:.2f} |")


if __name__ == "__main__":
    main()
