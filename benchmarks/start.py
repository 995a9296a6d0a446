"""Processor time of commands as a user starts them, on databases of 24, 247 and 2,000 models.

The models are synthetic, and written by the package itself: as many layers per model, and as many models of each
kernel size, as in the collection `pypi`, with small kernels. Each command is a process of its own, which is measured
as a whole (user and system time, with compiled bytecode as pip leaves it); a ratio is to a process that imports duckdb,
pyarrow and pandas and does nothing.

    python -m benchmarks.start [--models 24 247 2000] [--repeat 5] [--folder DIR] [--db DIR]

With --db the commands run on that database instead.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Kernel sizes beside 1x1, and every how many models there is one with layers of that size.
SIZES = {(3, 3): 1, (2, 2): 6, (5, 5): 7, (7, 7): 12, (1, 3): 12, (1, 5): 15, (4, 4): 20, (1, 256): 40, (1, 7): 80,
         (3, 1): 120, (1, 128): 120, (1, 192): 120, (1, 96): 120, (1, 32): 120, (1, 64): 120, (9, 9): 120,
         (7, 1): 120, (16, 1): 240, (10, 10): 240, (11, 11): 240, (5, 4): 240, (6, 6): 240, (8, 8): 240}  # fmt: skip
#: Layers per model: 3x3, and 1x1, whose kernels are only counted.
LAYERS, POINTWISE = 18, 12
#: Verbs, with their arguments; REPORT is a file.
COMMANDS: Sequence[Sequence[str]] = (
    ("--help",),
    ("models",),
    ("layers", "--where", "layer = 0"),
    ("shift", "domain"),
    ("quality", "domain"),
    ("sql", "SELECT count(*) FROM models"),
    ("sql", "FROM kl_shift(domain)"),
    ("report", "-o", "REPORT"),
)
IMPORTS = "import duckdb, pyarrow, pandas"
#: A checkout need not have bytecode beside its files.
BYTECODE = Path(tempfile.gettempdir(), f"cnnfilterdb-bytecode-{os.getuid()}")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(BYTECODE)
DOMAINS = ("natural", "medical ct", "medical mri", "faces", "thermal", "satellite", "art", "depth", "fractals")
FAMILIES = ("ResNet", "U-Net", "VGG", "MobileNet", "DenseNet", "DnCNN")


def build(path: Path, models: int) -> None:
    """Make a database of so many synthetic models, with its index."""
    import cnnfilterdb
    from cnnfilterdb.core.schema import ModelFacts
    from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
    from cnnfilterdb.ingest.pipeline import take_in
    from cnnfilterdb.store.index import Projection

    db = cnnfilterdb.create(path)
    for number in range(models):
        if number == min(24, models - 1):  # the models that follow are projected on the bases of the first
            db.index()
        rng = np.random.default_rng(number)
        shapes = [(8, 4, *size) for size, every in SIZES.items() if number % every == 0]
        shapes += [(8, 8, 3, 3)] * (LAYERS - 1) + [(8, 8, 1, 1)] * POINTWISE
        facts: dict[str, Any] = {
            "domain": DOMAINS[number % len(DOMAINS)], "family": FAMILIES[number % len(FAMILIES)],
            "task": "Classification" if number % 3 else "Segmentation", "license": "MIT",
        }  # fmt: skip

        layers = tuple(
            ConvLayer(f"block{place}.conv", shape, partial(weight, rng, shape), "float32")
            for place, shape in enumerate(shapes)
        )
        take_in(
            db._store, Weights("synthetic", None, layers), source="synthetic", name=f"model-{number:05}",
            facts=partial(ModelFacts, **facts), projector=Projection(db._index),
        )  # fmt: skip
    db.index()
    db.close()


def weight(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Random kernels of a shape."""
    return rng.standard_normal(shape, np.float32)


def seconds(arguments: Sequence[str], repeat: int) -> float:
    """Median processor time of a process, in seconds; it runs once beforehand, so that files are in memory."""
    found = []
    for _ in range(repeat + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
        if done.returncode:
            sys.exit(f"{' '.join(arguments)}: {done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(found[1:])


def measure(databases: dict[str, Path], repeat: int) -> None:
    """Print the processor time of each command on each database."""
    BYTECODE.mkdir(exist_ok=True)
    base = seconds(["-c", IMPORTS], repeat)
    print(f"`python -c {IMPORTS!r}`: {base:.2f} s of processor time\n")
    print(f"| command | {' | '.join(f'{name}, s | ratio' for name in databases)} |")
    print(f"|---|{'---:|' * 2 * len(databases)}")
    for command in COMMANDS:
        cells = []
        for path in databases.values():
            place = [] if command == ("--help",) else ["--db", str(path)]
            line = [str(BYTECODE / "report.html") if word == "REPORT" else word for word in command]
            found = seconds(["-m", "cnnfilterdb", *line, *place], repeat)
            cells.append(f"{found:.2f} | {found / base:.2f}")
        print(f"| `{' '.join(command)}` | {' | '.join(cells)} |", flush=True)
    cells = [f"{found:.2f} | {found / base:.2f}" for found in (init(path, repeat) for path in databases.values())]
    print(f"| `init.sql` in DuckDB | {' | '.join(cells)} |")


def init(path: Path, repeat: int) -> float:
    """Processor time of `init.sql` in a DuckDB client, without that of the client."""
    client = "import duckdb; connection = duckdb.connect()"
    run = f"{client}; connection.execute(open({str(path / 'init.sql')!r}).read())"
    return max(0.0, seconds(["-c", run], repeat) - seconds(["-c", client], repeat))


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Processor time of commands.")
    parser.add_argument("--models", type=int, nargs="+", default=[24, 247, 2000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the databases")
    parser.add_argument("--db", type=Path, help="a database to measure instead")
    options = parser.parse_args()
    if options.db:
        measure({options.db.name: options.db}, options.repeat)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        databases = {}
        for models in options.models:
            path = folder / f"synthetic-{models}.db"
            if not path.exists():
                build(path, models)
            databases[f"{models:,} models"] = path
        measure(databases, options.repeat)


if __name__ == "__main__":
    main()
