"""Databases of synthetic kernels, written through the package's own import, and what a process used.

The kernels of a model are normal numbers, mixed by a matrix of its domain, so that domains differ and nothing
compresses better than the weights of a network. They are generated layer by layer: memory does not grow with the model.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest.fetch.cache import sha256_of
from cnnfilterdb.ingest.sources import Source, register

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


#: Kernels that are made at a time, so that making them takes less memory than importing them, and bytes of the files
#: that are imported at a time.
_PIECE, _BATCH = 1 << 18, 4_000_000_000


def kernels(model: SyntheticModel, layer: int) -> npt.NDArray[np.float32]:
    """The weight of one layer, (outputs, inputs, 3, 3): the same numbers whenever it is asked for."""
    return np.concatenate(list(_pieces(model, layer))).reshape(*model.layers[layer], 3, 3)


def _pieces(model: SyntheticModel, layer: int) -> Iterator[npt.NDArray[np.float32]]:
    """The kernels of a layer, some rows at a time."""
    outputs, inputs = model.layers[layer]
    domain = list(model.domain.encode())
    mixing = np.eye(9) + 0.3 * np.random.default_rng(domain).normal(size=(9, 9))
    rng = np.random.default_rng([*model.name.encode(), layer])
    for start in range(0, outputs * inputs, _PIECE):
        count = min(_PIECE, outputs * inputs - start)
        yield rng.standard_normal((count, 9), np.float32) @ mixing.astype(np.float32)


@register
class SyntheticSource(Source):
    """The models as safetensors files in a folder, as :func:`write_files` leaves them."""

    name = "synthetic"

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._domains: dict[str, str] = json.loads((folder / "domains.json").read_text())

    def list(self, patterns: Sequence[str] = ()) -> Sequence[str]:
        """All of them."""
        return [*self._domains]

    def describe(self, name: str) -> ModelFacts:
        """What is known of one."""
        digest = sha256_of(self.resolve(name))
        return ModelFacts(domain=self._domains[name], license="CC0-1.0", weights_sha256=digest)

    def resolve(self, name: str, progress: object = None) -> Path:
        """Its file."""
        return self._folder / f"{name}.safetensors"


def write_files(folder: Path, models: Sequence[SyntheticModel]) -> None:
    """Write models as safetensors files, a piece at a time; the library for that needs each as a whole in memory."""
    (folder / "domains.json").write_text(json.dumps({model.name: model.domain for model in models}))
    for model in models:
        header, end = {}, 0
        for number, channels in enumerate(model.layers):
            start, end = end, end + 36 * math.prod(channels)
            header[f"layer{number}.weight"] = {"dtype": "F32", "shape": [*channels, 3, 3], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (folder / f"{model.name}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for number in range(len(model.layers)):
                for piece in _pieces(model, number):
                    piece.tofile(file)
            file.flush()
            os.fsync(file.fileno())  # or the import would wait for it


def _batches(models: Iterable[SyntheticModel]) -> Iterator[list[SyntheticModel]]:
    """Models whose files are there at the same time."""
    batch: list[SyntheticModel] = []
    for model in models:
        batch.append(model)
        if sum(36 * one.filters for one in batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def build(path: Path, models: Iterable[SyntheticModel]) -> dict[str, float]:
    """Import the models into a new database; histograms are left to `index`, as with any first import.

    Their safetensors files are written before, some gigabytes at a time. That is not part of the import.

    Returns:
        ``seconds`` of the imports, and those of the processors, ``cpu``, with the child processes that read the files.
    """
    import cnnfilterdb

    db = cnnfilterdb.create(path)
    spent = {"seconds": 0.0, "cpu": 0.0}
    for batch in _batches(models):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            write_files(Path(folder), batch)
            start, used = time.perf_counter(), _processor_seconds()
            report = db.ingest("synthetic", folder=Path(folder), allow_untrained=True)
            spent["seconds"] += time.perf_counter() - start
            spent["cpu"] += _processor_seconds() - used
            assert len(report.done) == len(batch), str(report)
    return spent


def _processor_seconds() -> float:
    """Those of this process and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


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
