"""The same work by threads, processes and Ray on two local nodes, one after another in one run.

    python -m benchmarks.runners [--kernels 16000000] [--repeat 3] [--runner threads --runner processes]

Each runner imports the same safetensors files into a database of its own, indexes it and asks questions that read all
filters. Workers are started, and have loaded the compiled functions, before the clock runs. Seconds are the fastest of
the repetitions; processor seconds and memory are those of all processes together, Ray's own included, of the same
repetition. The answers of all runners must be the same. Ray is left out where its extra is not installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from benchmarks._synthetic import SyntheticModel, kernels, measured

RUNNERS = ("threads", "processes", "ray")
WORKERS = 2
CHANNELS = (512, 512)
LAYERS = 4
DOMAINS = 4
QUERY = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
_SAMPLE_SECONDS = 0.25


def corpus(count: int) -> list[SyntheticModel]:
    """Models of equal size with so many kernels or a few more."""
    size = LAYERS * CHANNELS[0] * CHANNELS[1]
    return [
        SyntheticModel(f"model-{number:03}", f"domain {number % DOMAINS}", (CHANNELS,) * LAYERS)
        for number in range(-(-count // size))
    ]


def write_files(folder: Path, count: int) -> None:
    """The weight files of the models, and in another folder small ones with which workers get ready."""
    for name, models in {
        "files": corpus(count),
        "small": [SyntheticModel(f"small-{number}", "none", ((64, 64),)) for number in range(4 * WORKERS)],
    }.items():
        (folder / name).mkdir()
        for model in models:
            tensors = {f"layers.{layer}.weight": kernels(model, layer) for layer in range(len(model.layers))}
            save_file(tensors, folder / name / f"{model.name}.safetensors")


def _tree() -> list[int]:
    """This process and those below it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [os.getpid()]
    for process in found:
        found += children.get(process, ())
    return found


def _cpu_seconds() -> float:
    """Processor seconds of this process and those below it, ended ones included."""
    ticks = 0
    for process in _tree():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory() -> int:
    """Bytes of memory of this process and those below it; what several share counts once."""
    total = 0
    for process in _tree():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The largest memory within the block, without pages of files."""
    found, ended = [_memory()], threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            found[0] = max(found[0], _memory())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextmanager
def _two_nodes() -> Iterator[None]:
    """Ray on two nodes of this machine, one processor each."""
    import ray
    from ray.cluster_utils import Cluster

    # Otherwise workers wait for everything else that runs on the machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - the name that Ray reads
    node = {"num_cpus": WORKERS // 2, "object_store_memory": 200_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=WORKERS // 2, object_store_memory=200_000_000)
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        ray.init(cluster.address, log_to_driver=False, logging_level="error", runtime_env=environment)
        cluster.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _imported(db: Any) -> Any:
    return db.sql("SELECT model_id, layer, filters, tensor_sha256 FROM layers ORDER BY ALL").fetchall()


def _indexed(db: Any) -> Any:
    query = "SELECT basis_id, model_id, layer, recipe, counts FROM histograms ORDER BY ALL"
    return _digest(db.sql(query).fetchall())


def _fingerprinted(db: Any) -> Any:
    return _digest(db.sql("FROM fingerprints ORDER BY model_id, layer").fetchall())


#: Each kind of work, and what it leaves or answers.
WORK: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Any], Any] | None]] = {
    "ingest": (lambda db, files: str(db.ingest("files", str(files), allow_untrained=True)), _imported),
    "index": (lambda db, files: db._index.build(fingerprints=False), _indexed),
    "fingerprints": (lambda db, files: db.index(), _fingerprinted),
    "fresh": (lambda db, files: db.kl_shift("name", basis="selection").to_numpy().tolist(), None),
    "nearest": (lambda db, files: db.nearest(QUERY, top=20).to_dict("list"), None),
    "verify": (lambda db, files: db.verify(), None),
}
LABELS = {
    "ingest": "`ingest files`",
    "index": "`index`: bases and histograms",
    "fingerprints": "`index`: fingerprints",
    "fresh": "fresh basis, histograms and shift",
    "nearest": "`nearest` to one kernel",
    "verify": "`verify`",
}


def _all_work(db: Any, files: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, (action, left) in WORK.items():
        with _peak() as peak:
            start, spent = time.perf_counter(), _cpu_seconds()
            answer = action(db, files)
            seconds, cpu = time.perf_counter() - start, _cpu_seconds() - spent
        answer = left(db) if left else answer
        found[name] = {"seconds": seconds, "cpu": cpu, "peak_gb": peak[0] / 1e9, "answer": _digest(answer)}
    return found


def side(runner: str, folder: Path) -> dict[str, dict[str, Any]]:
    """All work by one runner."""
    import cnnfilterdb

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        db = cnnfilterdb.create(Path(scratch) / "made.db", runner=runner, threads=WORKERS)
        small = cnnfilterdb.create(Path(scratch) / "small.db", runner=db._store.resources.runner, threads=WORKERS)
        _all_work(small, folder / "small")
        try:
            return _all_work(db, folder / "files")
        finally:
            db._store.resources.runner.stop()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, default=16_000_000, help="3x3 kernels (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="times each runner is run (default: %(default)s)")
    parser.add_argument("--runner", action="append", choices=RUNNERS, help="this one; may be given several times")
    parser.add_argument("--folder", type=Path, help="where the files are; a temporary folder by default")
    parser.add_argument("--output", type=Path, help="also append the figures of each run to this file")
    parser.add_argument("--side", choices=RUNNERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "ray":
        with _two_nodes():
            print(json.dumps(side("ray", arguments.folder)))
        return
    if arguments.side:
        print(json.dumps(side(arguments.side, arguments.folder)))
        return
    runners = arguments.runner or [one for one in RUNNERS if one != "ray" or importlib.util.find_spec("ray")]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="runners-") as scratch:
        folder = Path(scratch)
        write_files(folder, arguments.kernels)
        runs: dict[str, list[dict[str, Any]]] = {runner: [] for runner in runners}
        for _ in range(arguments.repeat):
            for runner in runners:
                found = measured("runners", "--side", runner, "--folder", folder)
                runs[runner].append(found)
                if arguments.output:
                    with arguments.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"runner": runner, "work": found}) + "\n")
        shutil.rmtree(folder / "files")
    models = corpus(arguments.kernels)
    count = sum(model.filters for model in models)
    for name in WORK:
        answers = {run[name]["answer"] for known in runs.values() for run in known}
        assert len(answers) == 1, f"{name}: the answers of the runners differ"
    print(
        f"{count:,} 3x3 kernels in {len(models)} safetensors files, {WORKERS} workers; fastest of {arguments.repeat}\n"
    )
    columns = ["s", "processor s", "memory, GB"]
    print("| work | " + " | ".join(f"{runner}, {column}" for runner in runners for column in columns) + " |")
    print("|---|" + "--:|" * len(runners) * len(columns))
    for name in WORK:
        best = [min((run[name] for run in runs[runner]), key=lambda row: row["seconds"]) for runner in runners]
        cells = [f"{row['seconds']:.2f} | {row['cpu']:.2f} | {row['peak_gb']:.2f}" for row in best]
        print(f"| {LABELS[name]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
