"""What large corpora would take, from the rates that `full_scale` measured.

    python -m benchmarks.full_scale --fraction 0.1 --output figures.jsonl
    python -m benchmarks.projection figures.jsonl [--cores 16] [--network 1] [--price 0.04]

An import takes the longer of downloading and processing; both are divided among the nodes, because models are
independent of each other. A kernel costs the processor time that it cost in the largest run. Sizes of timm are those of
its catalog; a model of the Hub is assumed to be like one of timm.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is to be imported: models, kernels of 3x3, and bytes of weight files."""

    name: str
    models: int
    kernels: float
    download: float


TIMM = Corpus("timm", 1_117, 1.3e9, 263e9)
CORPORA = (
    TIMM,
    Corpus("100,000 models like those of timm", 100_000, 1e5 / TIMM.models * TIMM.kernels, 1e5 / TIMM.models * 263e9),
)
NODES = (1, 8, 64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what full_scale --output wrote")
    parser.add_argument("--cores", type=int, default=16, help="processors of a node (default: %(default)s)")
    parser.add_argument(
        "--network", type=float, default=1.0, help="gigabits per second of a node (default: %(default)s)"
    )
    parser.add_argument("--price", type=float, default=0.04, help="of a processor for an hour (default: %(default)s)")
    arguments = parser.parse_args()
    runs = [json.loads(line) for line in arguments.figures.read_text(encoding="utf-8").splitlines()]
    largest: dict[str, Any] = max(runs, key=lambda run: run["kernels"])
    per_kernel = {name: row["cpu"] / largest["kernels"] for name, row in largest["work"].items()}
    stored = largest["bytes"] / largest["kernels"]
    print("| corpus | nodes | download, min | import, min | index, min | database, TB | peak memory, GB | cost |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    peak = max(largest["work"][name]["peak_gb"] for name in ("ingest", "index"))
    for corpus in CORPORA:
        for nodes in NODES:
            download = corpus.download * 8 / (arguments.network * 1e9 * nodes) / 3600
            work = per_kernel["ingest"] * corpus.kernels / 3600
            index = per_kernel["index"] * corpus.kernels / 3600
            hours = max(download, work / (nodes * arguments.cores)) + index / (nodes * arguments.cores)
            cost = hours * nodes * arguments.cores * arguments.price
            print(
                f"| {corpus.name} | {nodes} | {60 * download:,.1f} | {60 * work / (nodes * arguments.cores):,.1f} "
                f"| {60 * index / (nodes * arguments.cores):,.1f} | {stored * corpus.kernels / 1e12:.2f} | {peak:.1f} "
                f"| {cost:,.2f} |"
            )


if __name__ == "__main__":
    main()
