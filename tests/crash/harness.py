"""Kills writing verbs at chosen and at random moments, and checks what is left.

By hand: ``make crash N=500``. Each round copies a small database, runs one verb
in a child process, kills it with SIGKILL, either before its n-th file-system call that makes, renames, removes or
flushes a name, or after a random time, and then checks that

- the database opens, and answers, and nothing has been written by that;
- every model that is present is whole, and each is as before the verb or as after it;
- the same verb run again finishes, and the result is that of an undisturbed run;
- ``verify`` finds nothing, and no staging folder is left.

Arrow starts threads, which do not survive a fork: everything that touches data runs in children.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cnnfilterdb
from cnnfilterdb.database import FilterDB
from cnnfilterdb.errors import UnknownModelError
from cnnfilterdb.store.durable import sha256

CALLS = ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync")


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": (rng.normal(size=(12, 4, 3, 3)) * rng.uniform(0.2, 2, (3, 3))).astype(np.float32),
        "b.weight": rng.normal(size=(4, 3, 5, 5)).astype(np.float32),
    }


def make(path: Path) -> None:
    """Four annotated models and an index."""
    with cnnfilterdb.create(path) as db:
        for number in range(4):
            db.add(weights(number), f"m{number}", domain=f"d{number % 2}", new_words=True)
        db.annotate("custom/m0", "custom/m1", task="Segmentation")
        db.index()


def removed(db: FilterDB) -> None:
    with contextlib.suppress(UnknownModelError):  # it was finished, and only its tidying up was killed
        db.remove("custom/m0", "custom/m1")
    assert len(db.models()) == 2


VERBS: dict[str, Callable[[FilterDB], object]] = {
    "add": lambda db: db.add(weights(9), "m9", domain="d9", overwrite=True, new_words=True),
    "overwrite": lambda db: db.add(weights(7), "m1", domain="d1", overwrite=True, new_words=True),
    "remove": removed,
    "annotate": lambda db: db.annotate("custom/m2", domain="d0", task="Denoising", new_words=True),
    "index": lambda db: db.index(),
    "refit": lambda db: (db.add(weights(8), "m8", domain="d8", overwrite=True, new_words=True), db.index(refit=True)),
}


def copied(source: Path, target: Path, verb: str) -> Path:
    """A copy of the database, as the verb finds it."""
    shutil.copytree(source, target)
    if verb == "index":
        for folder in target.glob("index/3x3-*"):
            shutil.rmtree(folder)
    return target


def contents(path: Path) -> dict[str, Any]:
    """What a database says, times of writing aside."""
    with cnnfilterdb.open(path) as db:
        models = db.models().drop(columns=["ingested_at"])
        layers = db.layers()[["model_id", "layer", "tensor_sha256", "filters"]]
        shift = db.kl_shift("domain")
        return {
            "models": models.to_json(),
            "layers": layers.to_json(),
            "filters": db.filters().to_json(double_precision=15),
            "shift": (list(shift.index), shift.to_numpy().tobytes(), shift.attrs["basis"]),
            "bases": sorted(fitted.basis_id for fitted in db.bases()),
        }


def files(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): sha256(file)
        for file in path.rglob("*")
        if file.is_file() and ".locks" not in file.parts
    }


def forked(action: Callable[[], object]) -> int:
    """Exit status of a function in a child process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            action()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(point: int, found: Path) -> None:
    """Kill this process before its point-th call; below zero, only count the calls."""
    calls = itertools.count()

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            number = next(calls)
            if number == point:
                os.kill(os.getpid(), signal.SIGKILL)
            if point < 0:
                found.write_text(str(number + 1))
            return original(*args, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def check(path: Path, verb: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """After a kill: open, query, finish, verify, compare."""
    there = files(path)
    with cnnfilterdb.open(path) as db:
        ids = set(db.models()["model_id"])
        hashes = dict(db.layers().groupby("model_id")["tensor_sha256"].agg("".join))
    assert files(path) == there, "opening and reading changed files"
    assert set(hashes) == ids
    known = {model_id: {state["hashes"].get(model_id) for state in (before, after)} for model_id in ids}
    assert all(hashes[model_id] in known[model_id] for model_id in ids), "a model is neither the old nor the new one"
    with cnnfilterdb.open(path) as db:
        VERBS[verb](db)
    found = contents(path)
    for part, value in after["contents"].items():
        assert found[part] == value, f"{part} is not that of an undisturbed run"
    with cnnfilterdb.open(path) as db:
        assert db.verify() == []
    assert not list((path / ".staging").iterdir()), "a staging folder is left"
    assert not (path / ".quarantine").exists(), "something was set aside"


def state(path: Path) -> dict[str, Any]:
    with cnnfilterdb.open(path) as db:
        hashes = dict(db.layers().groupby("model_id")["tensor_sha256"].agg("".join))
    return {"hashes": hashes, "contents": contents(path)}


def run(rounds: int, seed: int = 0, seconds: float | None = None) -> Counter[str]:
    """Kill, check, and count.

    Args:
        rounds: Number of kills.
        seed: Of the choice of verbs and moments.
        seconds: Stop after this time.

    Returns:
        Number of kills by verb and kind.
    """
    import pickle

    chooser, tried, end = random.Random(seed), Counter[str](), time.monotonic() + (seconds or 1e9)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        assert forked(lambda: make(root / "db")) == 0

        def saved(path: Path, name: str) -> dict[str, Any]:
            assert forked(lambda: (root / name).write_bytes(pickle.dumps(state(path)))) == 0
            found: dict[str, Any] = pickle.loads((root / name).read_bytes())
            return found

        before = saved(root / "db", "before")
        after, points, durations = {}, {}, {}

        def verb_in(path: Path, verb: str, point: int) -> None:
            db = cnnfilterdb.open(path)
            counted(point, root / "calls")
            VERBS[verb](db)

        for number in range(rounds):
            if time.monotonic() > end:
                break
            verb = list(VERBS)[number % len(VERBS)]
            if verb not in after:
                path = copied(root / "db", root / f"after-{verb}", verb)
                started = time.monotonic()
                assert forked(partial(verb_in, path, verb, -1)) == 0
                durations[verb] = time.monotonic() - started
                points[verb] = int((root / "calls").read_text())
                after[verb] = saved(path, f"after-{verb}.pickle")
            path = copied(root / "db", root / "killed", verb)
            if number // len(VERBS) % 4 == 3:
                kind = "at a random time"
                pid = os.fork()
                if pid == 0:
                    with contextlib.suppress(BaseException):
                        verb_in(path, verb, 1 << 60)
                    os._exit(0)
                time.sleep(chooser.uniform(0, durations[verb]))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            else:
                kind = "at a call"
                point = chooser.randrange(points[verb])
                assert forked(partial(verb_in, path, verb, point)) in (-signal.SIGKILL, 0)
            assert forked(partial(check, path, verb, before, after[verb])) == 0, f"{verb}, {kind}, round {number}"
            tried[f"{verb} {kind}"] += 1
            shutil.rmtree(path)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill writing verbs and check what is left.")
    parser.add_argument("rounds", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for what, number in sorted(run(given.rounds, given.seed).items()):
        sys.stdout.write(f"{number:6} {what}\n")


if __name__ == "__main__":
    main()
