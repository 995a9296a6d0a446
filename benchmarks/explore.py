"""The explorer on 600 models and 21,000 layers: first view, a new grouping, a layer of 512 x 512 channels, memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MODELS = 600
LAYERS = 35  # per model
LARGE = 512  # channels of the one large layer
WORDS: dict[str, list[Any]] = {
    "domain": ["natural", "medical ct", "medical mri", "faces", "thermal", "satellite", "art", "depth", "fractals"],
    "task": ["Classification", "Segmentation", "Denoising", "Object Detection"],
    "family": ["ResNet", "U-Net", "VGG", "MobileNet", "DenseNet", "DnCNN"],
    "license": ["MIT", "Apache-2.0", "BSD-3-Clause", None],
}


def build(path: Path, models: int = MODELS, layers: int = LAYERS) -> None:
    """Make a database of synthetic models; the kernels of each domain are mixed differently."""
    import cnnfilterdb
    from cnnfilterdb.core.schema import ModelFacts
    from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
    from cnnfilterdb.ingest.pipeline import take_in
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
            ConvLayer(f"block{i}.conv", (*shape, 3, 3), partial(read, shape), "float32")
            for i, shape in enumerate(shapes)
        )
        take_in(
            db._store, Weights("synthetic", None, made), source="synthetic", name=f"model-{number:03}",
            facts=partial(ModelFacts, **words), projector=Projection(db._index),
        )  # fmt: skip
    db.index()


def measure(path: Path) -> None:
    """Print seconds of wall-clock and processor time of each view, and the peak of memory."""
    import cnnfilterdb
    from cnnfilterdb.explore.views import Explorer
    from cnnfilterdb.explore.watched import WatchedReader

    with cnnfilterdb.open(path, read_only=True) as db, WatchedReader(db, memory="512MB") as watched:
        explorer = Explorer(watched, str(path))
        explorer.prepare()
        for view, request in (
            ("start", {}),
            ("models", {}),
            ("groups", {"by": "domain || task"}),
            ("groups", {"by": "model_id"}),
            ("pair", {"by": "domain", "a": "art", "b": "faces"}),
            ("quality", {"by": "family"}),
            ("map", {"balance": "models"}),
            ("model", {"model": "synthetic/model-000"}),
            ("layer", {"model": "synthetic/model-000", "layer": 0}),
            ("kernel", {"model": "synthetic/model-000", "layer": 0}),
            ("nearest", {"model": "synthetic/model-000", "layer": 0}),
        ):
            wall, processor = time.perf_counter(), time.process_time()
            explorer.views[view](request)
            seconds = time.perf_counter() - wall, time.process_time() - processor
            print(f"{view:8} {seconds[0]:6.2f} s, {seconds[1]:6.2f} s of processor time  {request}")
    print(f"peak of memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "synthetic.db")
        if not place.exists():
            build(place)
        measure(place)
