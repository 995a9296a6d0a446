"""Small models for the tests of the store, an object store on loopback, and command lines in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cnnfilterdb.analysis.bases import FittedBasis, basis_table
from cnnfilterdb.cli import main
from cnnfilterdb.core.paths import basis_path
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.schema import HISTOGRAMS
from cnnfilterdb.stats import Basis, Moments, scaled_norm_max
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.seals import write_sealed

SHAPES = [(8, 3, 3, 3), (4, 8, 5, 5), (6, 4, 3, 3), (5, 6, 1, 1), (7, 1, 1, 7)]
BASIS, BINS = "3x3-test", 4


def weight_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def histogram_rows(model_id: str, filters: dict[int, int], hashes: dict[int, str]) -> pa.Table:
    """Histograms whose counts are made up but add up."""
    rows = [
        {
            "basis_id": BASIS,
            "model_id": model_id,
            "layer": layer,
            "tensor_sha256": hashes[layer],
            "recipe": recipe,
            "low": -1.0,
            "high": 1.0,
            "filters": count,
            "counts": [count - 3, 1, 0, 0] * 9,
            "below": [0] * 9,
            "above": [2] * 9,
        }
        for layer, count in filters.items()
        for recipe in RECIPES
    ]
    return pa.Table.from_pylist(rows, HISTOGRAMS)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a line; returns (exit status, standard output, standard error)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cnnfilterdb", *map(str, args)])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty database with a basis for 3x3 kernels."""
    store = Store.create(tmp_path / "db")
    filters = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
    basis = replace(Basis.fit(Moments.of(filters), "3x3"), bins=BINS, low=-1.0, high=1.0)
    fitted = FittedBasis(BASIS, basis, datetime.now(UTC), (), 1, 1)
    write_sealed(basis_table(fitted), store.path / basis_path(BASIS))
    return store


@pytest.fixture
def write_model() -> Callable[..., list[np.ndarray]]:
    """Writes a model of five layers, one of them 1x1, and returns its weights."""

    def write(
        store: Store,
        model_id: str,
        seed: int = 0,
        shapes: Sequence[tuple[int, int, int, int]] = SHAPES,
        overwrite: bool = False,
    ) -> list[np.ndarray]:
        weights = [weight_of(shape, 100 * seed + number) for number, shape in enumerate(shapes)]
        counted = {}
        with store.writer(model_id, overwrite=overwrite) as writer:
            for number, weight in enumerate(weights):
                out_channels, in_channels, height, width = weight.shape
                row = {"layer_name": f"conv{number}", "dtype": "float32", "filters": out_channels * in_channels}
                if height * width == 1:
                    row |= {"kernel": "1x1", "kernel_h": 1, "kernel_w": 1, "out_channels": out_channels}
                    writer.add_layer(row, None)
                    continue
                filters = weight.reshape(-1, height * width)
                moments = Moments.of(filters)
                row |= {"scaled_mean": moments.mean, "scaled_scatter": moments.packed()}
                row["scaled_norm_max"] = scaled_norm_max(filters)
                writer.add_layer(row, weight)
                if (height, width) == (3, 3):
                    counted[number] = out_channels * in_channels
            if counted:
                writer.add_index(BASIS, histogram_rows(model_id, counted, writer.hashes))
            writer.commit({"domain": f"seed {seed}", "metrics": {"top1": 0.5}, "skipped": ["fc: no convolution"]})
        return weights

    return write
