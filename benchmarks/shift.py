"""Shifts over a database of the size of the released dataset: 21,436 layers of 647 models.

Its layers and histograms are generated, without filters: a shift in a stored basis needs no more. Layers have between a
few hundred and a few million filters; the models fall into the sixteen domains in the released numbers. Each question
is answered in Python and in SQL from the same open database, the median of three times counts, and both must agree.

    python -m benchmarks.shift [--folder DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

import cnnfilterdb
from benchmarks._synthetic import DOMAINS, LAYER_COUNT, MODEL_COUNT
from cnnfilterdb.analysis.bases import FittedBasis, basis_table, histogram_table, ranges
from cnnfilterdb.core import paths
from cnnfilterdb.core.schema import FINGERPRINTS, LAYERS, MODELS, filter_schema
from cnnfilterdb.stats import BINS, SKETCH_LEVELS, SKETCH_NUMBERS, Basis, Histogram, Moments
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.seals import write_sealed
from cnnfilterdb.store.writer import histogram_settings

FAMILIES = 40
BASIS = "3x3-made"

#: Name, metric, expression and options of each question.
QUESTIONS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("domains", "kl", "domain", {}),
    ("domains, models balanced", "kl", "domain", {"balance": "models"}),
    ("domains, recipe medneurips2022", "kl", "domain", {"recipe": "medneurips2022"}),
    ("domains, Wasserstein", "wasserstein", "domain", {}),
    ("depth in tenths", "kl", "floor(10 * conv_depth_norm)", {}),
    ("models", "kl", "model_id", {}),
    ("models, directed", "directed", "model_id", {}),
    ("models, Jensen-Shannon", "jensen_shannon", "model_id", {}),
]


def build(path: Path, families: int = FAMILIES) -> None:
    """Make the database.

    Args:
        path: Its folder.
        families: Number of families; models of one have layers of the same shapes, and every third model is related
            to the one before.
    """
    rng = np.random.default_rng(0)
    Store.create(path)
    samples = np.random.default_rng(1).normal(size=(10_000, 9)).astype(np.float32)
    basis = Basis.fit(Moments.of(samples), "3x3").with_range(-2.5, 2.5)
    now = datetime.now(UTC)
    ids = [f"made/m{number}" for number in range(MODEL_COUNT)]
    fitted = FittedBasis(BASIS, basis, now, tuple(ids), LAYER_COUNT)
    _write(basis_table(fitted), path / paths.basis_path(BASIS))

    domains = [domain for domain, count in DOMAINS.items() for _ in range(count)]
    character = {domain: rng.normal(0, 0.1, (2, 9)) for domain in DOMAINS}
    layer_counts = np.full(MODEL_COUNT, LAYER_COUNT // MODEL_COUNT)
    layer_counts[: LAYER_COUNT % MODEL_COUNT] += 1
    most = int(layer_counts.max())
    sizes = np.minimum(rng.lognormal(9.5, 1.8, (families, most)).astype(np.int64) + 64, 6_000_000)
    before: npt.NDArray[np.float64] = np.zeros((most, SKETCH_NUMBERS))
    for number, (model_id, domain) in enumerate(zip(ids, domains, strict=True)):
        shape = character[domain] + rng.normal(0, 0.05, (2, 9))
        filters = sizes[number // 3 % families, : layer_counts[number]]
        row = {"model_id": model_id, "source": "made", "name": f"m{number}", "domain": domain, "ingested_at": now,
               "family": f"family {number // 3 % families}",
               "conv_layers": len(filters), "stored_filters": int(filters.sum())}  # fmt: skip
        _write(pa.Table.from_pylist([row], MODELS), path / paths.models_path(paths.slug(model_id)))
        rows: list[dict[str, Any]] = []
        parts: list[tuple[int, list[Histogram]]] = []
        for layer, count in enumerate(filters.tolist()):
            # These moments are invented; only their size matters.
            scatter = np.diag(rng.uniform(0.1, 0.3, 9)) * count
            moments = Moments(count, rng.normal(0, 0.05, 9), scatter)
            rows.append({"model_id": model_id, "layer": layer, "layer_name": f"l{layer}", "kind": "conv",
                         "kernel": "3x3", "kernel_h": 3, "kernel_w": 3, "dtype": "float32", "stored": True,
                         "filters": count, "conv_depth_norm": layer / max(len(filters) - 1, 1),
                         "tensor_sha256": f"{number}-{layer}",
                         "scaled_mean": moments.mean, "scaled_scatter": moments.packed()})  # fmt: skip
            parts.append((layer, [_histogram(rng, shape, count, *limits) for limits in ranges(basis)]))
        slug = paths.slug(model_id)
        _write(pa.Table.from_pylist(rows, LAYERS), path / paths.layers_path(slug))
        # An empty file: the index looks for a model if it has filters.
        _write(filter_schema("3x3").empty_table(), path / paths.filters_path("3x3", "made", slug))
        table = histogram_table(BASIS, model_id, basis, parts, {row["layer"]: row["tensor_sha256"] for row in rows})
        _write(table, path / paths.histograms_path(BASIS, slug), **histogram_settings(table))
        sketches = rng.normal(size=(most, SKETCH_NUMBERS))
        before = sketches = sketches + 2 * before if number % 3 == 2 else sketches
        fingerprints = pa.Table.from_pylist(
            [_fingerprint(model_id, row, sketches[row["layer"]]) for row in rows], FINGERPRINTS
        )
        _write(fingerprints, path / paths.fingerprints_path(slug))


def _fingerprint(model_id: str, row: dict[str, Any], sketch: npt.NDArray[np.float64]) -> dict[str, Any]:
    numbers = dict.fromkeys(("alpha", "alpha_ks", "lambda_max", "stable_rank", "kurtosis", "peak_ratio"), 1.0)
    rounded = np.rint(sketch * (SKETCH_LEVELS / np.abs(sketch).max())).astype(np.int16)
    key = {"model_id": model_id, "layer": row["layer"], "tensor_sha256": row["tensor_sha256"]}
    return key | numbers | {"centred_norm": float(np.sqrt(row["filters"])), "sketch": rounded}


def _histogram(rng: np.random.Generator, shape: np.ndarray, count: int, low: float, high: float) -> Histogram:
    """Counts of normal coefficients, each component with its own centre and width."""
    centres = np.linspace(low, high, BINS, endpoint=False) + (high - low) / (2 * BINS)
    place = (centres - shape[0][:, None]) / (np.linspace(0.9, 0.3, 9)[:, None] * np.exp(shape[1])[:, None])
    density = np.exp(-(place**2) / 2)
    counts = rng.multinomial(count, density / density.sum(axis=1, keepdims=True))
    nothing = np.zeros(9, np.int64)
    return Histogram(low, high, counts, nothing, nothing, count)


def _write(table: pa.Table, path: Path, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(table, path, **settings)


def median(action: Callable[[], pd.DataFrame]) -> tuple[float, pd.DataFrame]:
    """Median wall time of three runs, after one that is not timed, and their answer."""
    found, times = action(), []
    for _ in range(3):
        start = time.perf_counter()
        found = action()
        times.append(time.perf_counter() - start)
    return sorted(times)[1], found


def main() -> None:
    """Ask each question in Python and in SQL and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the database here, or use the existing one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.folder or Path(temporary) / "made.db"
        if not path.exists():
            build(path)
        print("| question | groups | Python, s | SQL, s | largest difference |")
        print("|---|---:|---:|---:|---:|")
        with cnnfilterdb.open(path) as db:
            for question, metric, by, options in QUESTIONS:
                in_python, frame = median(partial(db.kl_shift, by, metric=metric, **options))
                column = "directed" if metric == "directed" else "shift"
                macro, column = ("kl_shift", column) if metric in ("kl", "directed") else ("shift_metrics", metric)
                given = "".join(f", {name} := '{value}'" for name, value in options.items())
                query = f"SELECT group_a, group_b, {column} FROM {macro}({by}{given})"
                in_sql, rows = median(lambda query=query: db.sql(query).df())  # type: ignore[misc]
                square = rows.pivot(index="group_a", columns="group_b", values=column)
                difference = np.abs(square.to_numpy() - frame.to_numpy()).max()
                assert difference < 1e-9, f"{question}: Python and SQL differ by {difference}"
                print(f"| {question} | {len(frame)} | {in_python:.2f} | {in_sql:.2f} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
