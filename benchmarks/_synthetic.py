"""Databases of synthetic kernels, written through the package's own import, and what a process used.

The kernels of a model are normal numbers, mixed by a matrix of its domain, so that domains differ and nothing
compresses better than the weights of a network. A layer is generated when it is written: memory does not grow with the
model.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Layers and models of the papers' dataset, release v1.0.0.
LAYER_COUNT, MODEL_COUNT = 21_436, 647
#: Models per domain of the papers' dataset, release v1.0.0.
DOMAINS = {
    "natural": 557, "handwriting": 36, "faces": 16, "medical xray": 9, "art": 5, "medical ct": 4, "seismic": 4,
    "medical mri": 3, "astronomy": 2, "depth": 2, "fractals": 2, "map": 2, "textures": 2, "cars": 1, "plants": 1,
    "thermal": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """A model to generate: its name, its domain, and the (output, input) channels of each of its layers."""

    name: str
    domain: str
    layers: tuple[tuple[int, int], ...]

    @property
    def filters(self) -> int:
        """Number of kernels."""
        return sum(outputs * inputs for outputs, inputs in self.layers)


def kernels(model: SyntheticModel, layer: int) -> npt.NDArray[np.float32]:
    """The weight of one layer, (outputs, inputs, 3, 3): the same numbers whenever it is asked for."""
    outputs, inputs = model.layers[layer]
    domain = list(model.domain.encode())
    mixing = np.eye(9) + 0.3 * np.random.default_rng(domain).normal(size=(9, 9))
    rng = np.random.default_rng([*model.name.encode(), layer])
    weight = rng.standard_normal((outputs * inputs, 9), np.float32) @ mixing.astype(np.float32)
    return weight.reshape(outputs, inputs, 3, 3)


def build(path: Path, models: Iterable[SyntheticModel]) -> tuple[float, float]:
    """Import the models into a new database; histograms are left to `index`, as with any first import.

    Returns:
        Seconds of the import, without those for generating the kernels, and these.
    """
    import cnnfilterdb
    from cnnfilterdb.core.schema import ModelFacts
    from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
    from cnnfilterdb.ingest.pipeline import take_in
    from cnnfilterdb.store.index import Projection

    generating = 0.0

    def read(model: SyntheticModel, layer: int) -> npt.NDArray[np.float32]:
        nonlocal generating
        start = time.perf_counter()
        weight = kernels(model, layer)
        generating += time.perf_counter() - start
        return weight

    db = cnnfilterdb.create(path)
    start = time.perf_counter()
    for model in models:
        layers = tuple(
            ConvLayer(f"layer{number}", (*channels, 3, 3), partial(read, model, number))
            for number, channels in enumerate(model.layers)
        )
        facts = ModelFacts(domain=model.domain, license="CC0-1.0")
        projector = Projection(db._index)
        take_in(db._store, Weights("synthetic", None, layers), source="synthetic", name=model.name, facts=facts,
                projector=projector)  # fmt: skip
    return time.perf_counter() - start - generating, generating


def peak_gb() -> float:
    """The largest resident memory of this process so far, in gigabytes.

    Linux counts what a process used before it became this program in its ``ru_maxrss``, but not in ``VmHWM``.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def measured(benchmark: str, *arguments: object) -> dict[str, Any]:
    """What one side of a benchmark prints as JSON in its last line, from a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def uniform(filters: int, channels: tuple[int, int], domains: int) -> Iterator[SyntheticModel]:
    """Models of equal layers, at most forty to a model, as many as make up this number of kernels."""
    layers = filters // (channels[0] * channels[1])
    per_model = min(40, max(1, layers // domains))
    for number in range(-(-layers // per_model)):
        count = min(per_model, layers - per_model * number)
        yield SyntheticModel(f"m{number}", f"domain {number % domains}", (channels,) * count)
