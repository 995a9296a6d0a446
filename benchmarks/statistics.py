"""Statistics against the papers' method, side by side in one run, with peak memory.

The method of the papers' notebook: all filters in memory, NumPy scaling, scikit-learn PCA, np.histogram, and a double
loop over groups. Each side runs in its own process, which reports its seconds and its peak resident memory.

    python -m benchmarks.statistics [--filters 8000000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._synthetic import build, measured, peak_gb, uniform

LAYER = (200, 100)  # channels of a synthetic layer: 20,000 filters


def notebook(path: Path, filters: int) -> dict[str, float]:
    """The papers' method."""
    import pyarrow.dataset as ds
    from scipy.stats import entropy
    from sklearn.decomposition import PCA

    table = ds.dataset(path / "filters/kernel=3x3", format="parquet").to_table(
        columns=["model_id", *(f"w{i}" for i in range(9))]
    )
    model = table["model_id"].combine_chunks().dictionary_encode()
    numbers = np.array([int(name.rsplit("m", 1)[1]) % 10 for name in model.dictionary.to_pylist()])
    labels = numbers[model.indices.to_numpy()]
    data = np.column_stack([table[f"w{i}"].to_numpy() for i in range(9)])
    del table, model

    times = {}
    start = time.perf_counter()
    peak = np.abs(data).max(axis=1)
    peak[peak == 0] = 1
    scaled = data / peak[:, None]
    pca = PCA(n_components=9)
    coefficients = pca.fit_transform(scaled)
    times["basis"] = time.perf_counter() - start
    limits = (coefficients.min(), coefficients.max())
    probabilities = {}
    for label in range(10):
        for i in range(9):
            density = np.histogram(coefficients[labels == label, i], bins=70, range=limits, density=True)[0]
            density[density == 0] = np.finfo(np.float32).eps
            probabilities[label, i] = density / density.sum()
    times["basis and histograms"] = time.perf_counter() - start
    matrix = np.zeros((10, 10))
    for a in range(10):
        for b in range(10):
            for i in range(9):
                p, q = probabilities[a, i], probabilities[b, i]
                matrix[a, b] += pca.explained_variance_ratio_[i] * (entropy(p, q) + entropy(q, p))
    times["shift matrix"] = time.perf_counter() - start
    return times | {"shift": float(matrix.mean())}


def ours(path: Path, filters: int) -> dict[str, float]:
    """The same with the package; compiled functions are loaded first, as in any second run."""
    import cnnfilterdb

    db = cnnfilterdb.open(path, read_only=False)
    few = "name = 'm0' AND layer = 0"
    db.kl_shift("domain", where=few, basis="selection")
    times = {}
    start = time.perf_counter()
    db.basis(where="domain <> ''")
    times["basis"] = time.perf_counter() - start
    start = time.perf_counter()
    fresh = db.kl_shift("domain", basis="selection")
    times["basis and histograms"] = time.perf_counter() - start
    memory = peak_gb()
    db.index()
    start = time.perf_counter()
    stored = db.kl_shift("domain")
    times["shift matrix"] = time.perf_counter() - start
    start = time.perf_counter()
    db.sql("FROM kl_shift(domain)").fetchall()
    times["shift matrix in SQL"] = time.perf_counter() - start
    assert np.allclose(fresh, stored, atol=1e-9)
    return times | {"shift": float(stored.to_numpy().mean()), "peak_gb": memory}


def read_only(path: Path, filters: int) -> dict[str, float]:
    """Only reading the nine columns with pyarrow, row group by row group, in as many threads."""
    from cnnfilterdb.scan.scan import scan
    from cnnfilterdb.store.folder import Store

    files = Store.open(path).filter_files("3x3")
    start = time.perf_counter()
    total = sum(scan(files, "3x3", lambda runs: sum(run.filters for run in runs)))
    assert total == filters
    return {"read": time.perf_counter() - start}


def _measure(side: str, path: Path, filters: int) -> dict[str, float]:
    found = [measured("statistics", "--side", side, "--filters", filters, "--folder", path) for _ in range(3)]
    return {key: sorted(run[key] for run in found)[1] for key in found[0]}


def main() -> None:
    """Build the database, run both sides three times, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filters", type=int, default=8_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=["notebook", "ours", "read_only"])
    arguments = parser.parse_args()
    if arguments.side:
        found = globals()[arguments.side](arguments.folder, arguments.filters)
        print(json.dumps({"peak_gb": peak_gb()} | found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        small, large = folder / "small.db", folder / "large.db"
        for path, filters in ((small, arguments.filters), (large, 4 * arguments.filters)):
            if not path.exists():
                build(path, uniform(filters, LAYER, domains=10))
        theirs = _measure("notebook", small, arguments.filters)
        mine = _measure("ours", small, arguments.filters)
        reading = _measure("read_only", small, arguments.filters)
        four = _measure("ours", large, 4 * arguments.filters)
    assert abs(theirs["shift"] - mine["shift"]) < 1e-6, (theirs, mine)
    print(f"{arguments.filters:,} filters in {arguments.filters // 20_000} layers, 10 groups; medians of three runs\n")
    print("| work | papers' method, s | cnnfilterdb, s | ratio |")
    print("|---|---:|---:|---:|")
    for work in ("basis", "basis and histograms", "shift matrix"):
        label = {"basis": "basis of a selection (from stored moments)",
                 "basis and histograms": "basis, histograms and shift of a selection, from Parquet",
                 "shift matrix": "shift matrix of 10 groups, stored basis"}[work]  # fmt: skip
        print(f"| {label} | {theirs[work]:.2f} | {mine[work]:.3f} | {theirs[work] / mine[work]:.0f}x |")
    print(f"| the same in SQL | {theirs['shift matrix']:.2f} | {mine['shift matrix in SQL']:.3f} | "
          f"{theirs['shift matrix'] / mine['shift matrix in SQL']:.0f}x |")  # fmt: skip
    ratio = mine["basis and histograms"] / reading["read"]
    print(f"\nReading the nine columns alone takes {reading['read']:.2f} s: the second row is {ratio:.1f} times that.")
    print(f"Peak resident memory: papers' method {theirs['peak_gb']:.2f} GB; cnnfilterdb {mine['peak_gb']:.2f} GB, "
          f"and {four['peak_gb']:.2f} GB with four times the filters.")  # fmt: skip


if __name__ == "__main__":
    main()
