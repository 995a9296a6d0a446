"""Coverage-guided fuzzing of the readers of weight files, of manifests, and of the files of a folder, by atheris.

``python guided.py SECONDS [TARGET...]`` fuzzes each target for some seconds in a child process of its own, and prints
what was found; ``make fuzz`` does so. Inputs that fail are kept in ``.fuzz/TARGET/``; a file that is moved to
``tests/fuzz/found/TARGET/`` is tried by the test suite from then on.

A target is one file of a model, a database or a release that is replaced by the input. Anything but an error of this
package in one printable line fails, and so do more than 20 seconds or 1.5 GB.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
#: Inputs that failed once.
FOUND = HERE / "found"
SECONDS, MEGABYTES = 20, 1500


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        name: Its name.
        opened: What is opened.
        replaced: The file that the input replaces.
        attempt: Opens and reads it.
    """

    name: str
    opened: Path
    replaced: Path
    attempt: Callable[[Path], object]

    def tried(self, data: bytes) -> None:
        """Try one input.

        Raises:
            AssertionError: A message that cannot be printed in one line.
            Exception: Any other error than one of this package.
        """
        from cnnfilterdb.core.errors import CnnFilterDbError

        self.replaced.write_bytes(data)
        try:
            self.attempt(self.opened)
        except CnnFilterDbError as error:
            if not str(error).isprintable():
                raise AssertionError(f"a message of several lines: {str(error)!a}") from error


def read_weights(path: Path) -> None:
    """Read a weight file and its layers."""
    from cnnfilterdb.ingest import formats

    for layer in formats.read(path).layers:
        str(layer.name).encode()
        layer.read()


def read_database(path: Path) -> None:
    """Open a folder or a release and ask for everything."""
    import cnnfilterdb

    with cnnfilterdb.open(path) as db:
        db.verify()
        db.models()
        db.layers()
        db.kl_shift("domain")


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(f"fuzzed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets(folder: Path) -> Iterator[Target]:
    """All targets, made in a folder that does not exist."""
    import cnnfilterdb

    hostile = _module(HERE.parent / "ingest" / "formats" / "hostile_files.py")
    for number, (name, model, damaged) in enumerate(hostile.intact(folder / "intact")):
        home = folder / f"model{number}"
        copy = hostile.copied(model, damaged, home, damaged.read_bytes())
        root = Path(os.path.commonpath([model.parent, damaged.parent]))
        yield Target(
            f"{name}".replace(" ", "-").replace("/", "-"), copy, home / damaged.relative_to(root), read_weights
        )
    random = np.random.default_rng(0)
    with cnnfilterdb.create(folder / "db") as db:
        for number in range(2):
            kernels = random.standard_normal((8, 4, 3, 3)).astype(np.float32)
            db.add({"a.weight": kernels}, f"m{number}", domain=f"d{number}", license="MIT", new_words=True)
        db.index()
        db.annotate("custom/m0", task="Segmentation")
        db.publish("owner/name", folder=folder / "release")
    for kind in ("db", "release"):
        for number, pattern in enumerate(
            ("cnnfilterdb.json", "models/**/*.parquet", "layers/**/*.parquet", "index/*/basis.parquet",
             "bases/*.parquet", "histograms/**/*.parquet", "index/*/histograms/*.parquet", "annotations.csv",
             "commits/**/*.json", "manifest*.json")
        ):  # fmt: skip
            for file in sorted((folder / kind).glob(pattern))[-1:]:
                home = folder / f"{kind}{number}"
                shutil.copytree(folder / kind, home)
                name = f"{kind}-{file.parent.name if file.suffix == '.parquet' else file.stem}-{number}"
                yield Target(name, home, home / file.relative_to(folder / kind), read_database)


#: How targets are read, by the name under which a child process knows it.
ATTEMPTS = {attempt.__name__: attempt for attempt in (read_weights, read_database)}


def fuzzed(target: Target, seconds: int, corpus: Path, results: Path) -> None:
    """In a child process: fuzz one target."""
    import atheris

    with atheris.instrument_imports(include=["cnnfilterdb"]):
        import cnnfilterdb  # noqa: F401
        from cnnfilterdb.ingest import formats

        formats.registered()
    warnings.simplefilter("ignore")
    target.tried(target.replaced.read_bytes())  # what is loaded at the first use is not the time of an input
    corpus.mkdir()
    shutil.copyfile(target.replaced, corpus / "intact")
    results.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        "-print_final_stats=1",
    ]
    options += [f"-max_len={max(4 * target.replaced.stat().st_size, 4096)}", f"-artifact_prefix={results}/"]
    atheris.Setup([sys.argv[0], str(corpus), *options], target.tried)
    atheris.Fuzz()


def run(seconds: int, chosen: Sequence[str], keep: Path) -> Iterator[dict[str, object]]:
    """Fuzz targets, each in a child process: how many inputs, the largest memory in MB, and what failed.

    Args:
        seconds: For each.
        chosen: Names of targets; none for all.
        keep: Folder for inputs that fail.
    """
    with tempfile.TemporaryDirectory(prefix="cnnfilterdb-fuzz-") as folder:
        known = {target.name: target for target in targets(Path(folder) / "targets")}
        for number, name in enumerate(chosen or known):
            target = known[name]
            what = [target.name, str(target.opened), str(target.replaced), target.attempt.__name__]
            # Linux counts what the parent uses as a child's peak, unless another program starts the child.
            line = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-P", str(Path(__file__)), "--one", *what]
            line += [str(seconds), str(Path(folder) / f"corpus{number}"), str(keep / name)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + 300, check=False)
            lines = (
                part.removeprefix("stat::").split(":") for part in done.stderr.splitlines() if part[:6] == "stat::"
            )
            stats = {key: int(value) for key, value in lines}
            yield {
                "target": name,
                "inputs": stats.get("number_of_executed_units", 0),
                "megabytes": stats.get("peak_rss_mb", 0),
                "failed": "" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-1500:],
            }


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        name, opened, replaced, attempt, seconds, *folders = sys.argv[2:]
        one = Target(name, Path(opened), Path(replaced), ATTEMPTS[attempt])
        fuzzed(one, int(seconds), *map(Path, folders))
    results = []
    for found in run(int(sys.argv[1]), sys.argv[2:], Path(".fuzz")):
        results.append(found)
        print(json.dumps(found), flush=True)
    print(f"{sum(int(str(found['inputs'])) for found in results):,} inputs of {len(results)} targets")
    sys.exit(any(found["failed"] for found in results))
