"""Tests and explained variation over a database of the size of the released dataset (647 models, 21,436 layers).

Each function is compared with a plain implementation in NumPy, which loops over permutations and pairs. That one runs
fewer permutations, and the time per permutation is compared. Each question is asked in a process of its own, so that
its peak memory is not that of another.

    python -m benchmarks.conclusions [--folder DIR]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import cnnfilterdb
from benchmarks._synthetic import MODEL_COUNT
from benchmarks.shift import build

PERMUTATIONS = 999
FEW = 5
#: Models among which the plain search for related models runs, and the least cosine.
SOME, RELATED = 40, 0.15
FACTORS = ["family", "domain", "length(model_id)", "left(model_id, 7)"]


def plain_test(counts: npt.NDArray[np.float64], labels: list[str], weights: npt.NDArray[np.float64], low: float,
               high: float, permutations: int) -> None:  # fmt: skip
    """For each pair and permutation: shuffle, sum, turn into probabilities, sum the divergences."""
    rng = np.random.default_rng(0)
    names = sorted(set(labels))
    width = (high - low) / counts.shape[2]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            pair = [place for place, label in enumerate(labels) if label in (first, second)]
            size = sum(labels[place] == first for place in pair)
            for _ in range(permutations + 1):
                order = rng.permutation(pair)
                p, q = counts[order[:size]].sum(axis=0), counts[order[size:]].sum(axis=0)
                total = 0.0
                for k, weight in enumerate(weights):
                    a, b = p[k] / p[k].sum() / width, q[k] / q[k].sum() / width
                    a[a == 0] = b[b == 0] = np.finfo(np.float32).eps
                    a, b = a / a.sum(), b / b.sum()
                    total += weight * float(((a - b) * np.log(a / b)).sum())


def plain_partition(shifts: npt.NDArray[np.float64], factors: list[list[str]], permutations: int) -> None:
    """For each permutation and factor: the hat matrix of the factors so far times the permuted centred matrix."""
    rng = np.random.default_rng(0)
    count = len(shifts)
    centring = np.eye(count) - 1 / count
    for _ in range(permutations + 1):
        order = rng.permutation(count)
        centred = -centring @ shifts[np.ix_(order, order)] @ centring / 2
        for number in range(len(factors)):
            columns = [np.ones(count)]
            for labels in factors[: number + 1]:
                columns += [np.array([label == name for label in labels], float) for name in sorted(set(labels))]
            design = np.stack(columns, axis=1)
            np.trace(design @ np.linalg.pinv(design) @ centred)


def plain_related(rows: pd.DataFrame, models: int) -> int:
    """For each pair of some models, each layer of one: the layer of its shape in the other, and their cosine."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for record in rows.to_dict("records"):
        by_model.setdefault(record["model_id"], []).append({str(key): value for key, value in record.items()})
    keys, found = list(by_model)[:models], 0
    for number, first in enumerate(keys):
        for second in keys[number + 1 :]:
            inner = squares_a = squares_b = 0.0
            there = {(row["filters"], row["place"]): row for row in by_model[second]}
            for row in by_model[first]:
                other = there.get((row["filters"], row["place"]))
                if other is not None:
                    a, b = np.asarray(row["sketch"], float), np.asarray(other["sketch"], float)
                    inner += row["norm"] * other["norm"] * float(a @ b / np.sqrt((a @ a) * (b @ b)))
                    squares_a, squares_b = squares_a + row["norm"] ** 2, squares_b + other["norm"] ** 2
            found += squares_a > 0 and inner / np.sqrt(squares_a * squares_b) > RELATED
    return found


def related(path: Path, families: int) -> tuple[float, float, int, float]:
    """Seconds of :meth:`Reader.related_models` and of the plain loop for all pairs, number of pairs found, memory."""
    if not path.exists():
        build(path, families)
    with cnnfilterdb.open(path) as db:
        db.sql("FROM fingerprints LIMIT 1").fetchall()
        start = time.perf_counter()
        found = len(db.related_models())
        ours = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows = db.sql("FROM layer_sketches ORDER BY model_id, layer").df()
        start = time.perf_counter()
        plain_related(rows, SOME)
        plain = (time.perf_counter() - start) * (MODEL_COUNT * (MODEL_COUNT - 1)) / (SOME * (SOME - 1))
    return ours, plain, found, memory


def asked(path: Path, name: str) -> tuple[float, float]:
    """Seconds of a question, and the peak memory of its process in GB."""
    with cnnfilterdb.open(path) as db:
        start = time.perf_counter()
        if name == "shift_test":
            db.shift_test("domain", permutations=PERMUTATIONS)
        else:
            db.variance_explained(FACTORS, permutations=PERMUTATIONS)
        return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """The answer of a function that runs in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Time each question and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the database here, or use the existing one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        searches = {name: alone(related, Path(temporary) / f"{families}.db", families)
                    for name, families in (("40 families", 40), ("all of one architecture", 1))}  # fmt: skip
        path = arguments.folder or Path(temporary) / "40.db"
        if not path.exists():
            build(path)
        ours = {name: alone(asked, path, name) for name in ("shift_test", "variance_explained")}
        with cnnfilterdb.open(path) as db:
            groups = db.groups("model_id", balance="models")
            facts = db.models().set_index("model_id").loc[groups.labels]
            labels = facts["domain"].tolist()
            shifts = db.kl_shift("model_id", balance="models").to_numpy()
    columns = [facts["family"].tolist(), labels, [str(len(m)) for m in groups.labels], [m[:7] for m in groups.labels]]
    theirs = {}
    start = time.perf_counter()
    plain_test(groups.counts, labels, groups.weights, groups.low, groups.high, FEW)
    theirs["shift_test"] = time.perf_counter() - start
    start = time.perf_counter()
    plain_partition(shifts, columns, FEW)
    theirs["variance_explained"] = time.perf_counter() - start
    print(f"{PERMUTATIONS} permutations; the plain implementation runs {FEW}.\n")
    print("| question | s | peak memory, GB | s per permutation | plain NumPy, s per permutation | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, of in (("shift_test", "16 domains"), ("variance_explained", "4 factors")):
        seconds, memory = ours[name]
        one, other = seconds / (PERMUTATIONS + 1), theirs[name] / (FEW + 1)
        print(f"| {name}, {of} | {seconds:.1f} | {memory:.2f} | {one:.4f} | {other:.3f} | {other / one:.0f}x |")
    print(f"\n| related_models, {MODEL_COUNT} models | pairs | s | plain NumPy, s | ratio | peak memory, GB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (seconds, plain, pairs, most) in searches.items():
        print(f"| {name} | {pairs:,} | {seconds:.1f} | {plain:.0f} | {plain / seconds:.0f}x | {most:.2f} |")


if __name__ == "__main__":
    main()
