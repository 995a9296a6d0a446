"""The explorer on 600 models and 21,000 layers: first view, a new grouping, a layer of 512 x 512 channels, memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

MODELS = 600
LAYERS = 35  # per model
LARGE = 512  # channels of the one large layer
WORDS = {
    "domain": ["natural", "medical ct", "medical mri", "faces", "thermal", "satellite", "art", "depth", "fractals"],
    "task": ["Classification", "Segmentation", "Denoising", "Object Detection"],
    "family": ["ResNet", "U-Net", "VGG", "MobileNet", "DenseNet", "DnCNN"],
    "license": ["MIT", "Apache-2.0", "BSD-3-Clause", None],
}


def build(path: Path, models: int = MODELS, layers: int = LAYERS) -> None:
    """Make a database of synthetic models; the kernels of each domain are mixed differently."""
    import cnnfilterdb
    from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
    from cnnfilterdb.ingest.pipeline import take_in
    from cnnfilterdb.schema import ModelFacts
    from cnnfilterdb.store.index import Projection

    db = cnnfilterdb.create(path)
    for number in range(models):
        rng = np.random.default_rng(number)
        words: dict[str, Any] = {name: rng.choice(np.array(values, object)) for name, values in WORDS.items()}
        mixed = np.random.default_rng(WORDS["domain"].index(words["domain"]))
        mixing = np.eye(9) + 0.4 * mixed.normal(size=(9, 9)) + 0.1 * rng.normal(size=(9, 9))
        shapes = [(16, 8)] * layers if number else [(LARGE, LARGE), *[(16, 8)] * (layers - 1)]

        def read(shape: tuple[int, int], rng: np.random.Generator = rng, mixing: np.ndarray = mixing) -> np.ndarray:
            weight = rng.standard_normal((shape[0] * shape[1], 9), np.float32) @ mixing.astype(np.float32)
            return weight.reshape(*shape, 3, 3) * np.float32(rng.uniform(0.01, 1))

        made = tuple(
            ConvLayer(f"block{i}.conv", (*shape, 3, 3), lambda shape=shape: read(shape), "float32")
            for i, shape in enumerate(shapes)
        )
        take_in(
            db._store, Weights("synthetic", None, made), source="synthetic", name=f"model-{number:03}",
            facts=ModelFacts(**words), projector=Projection(db._index),
        )  # fmt: skip
    db.index()


if __name__ == "__main__":
    build(Path(sys.argv[1]))
