"""What is killed: every verb that writes, what it starts from, and the checks of what it left.

A world is a folder with a database ``db``, a folder ``out`` for other files, and whatever the verb makes. Arrow starts
threads, which do not survive a fork: everything that touches data runs in forked children.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import shutil
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.errors import UnknownModelError
from cnnfilterdb.database.filterdb import FilterDB


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": (rng.normal(size=(12, 4, 3, 3)) * rng.uniform(0.2, 2, (3, 3))).astype(np.float32),
        "b.weight": rng.normal(size=(4, 3, 5, 5)).astype(np.float32),
    }


def make(root: Path) -> None:
    """``start``, from which every verb starts: four annotated models and an index; and what others read."""
    with cnnfilterdb.create(root / "start" / "db") as db:
        for number in range(4):
            db.add(weights(number), f"m{number}", domain=f"d{number % 2}", license="MIT", new_words=True)
        db.annotate("custom/m0", "custom/m1", task="Segmentation")
        db.index()
    (root / "start" / "out").mkdir()
    shared = root / "shared"
    with cnnfilterdb.create(shared / "other") as other:
        for number in range(10, 13):
            other.add(weights(number), f"m{number}", domain=f"d{number % 2}", license="MIT", new_words=True)
        other.add({"a.weight": weights(13)["a.weight"][:, :, :2]}, "m13", domain="d3", license="MIT", new_words=True)
        other.annotate("custom/m10", task="Denoising", new_words=True)
        other.publish("owner/name", folder=shared / "release")
        other.export(shared / "papers.h5")
    (shared / "files").mkdir()
    for number in range(20, 22):
        save_file(weights(number), shared / "files" / f"m{number}.safetensors")


def opened(action: Callable[[FilterDB, Path], object]) -> Callable[[Path, Path], object]:
    """An action on the database of a world."""

    def run(world: Path, shared: Path) -> object:
        with cnnfilterdb.open(world / "db", read_only=False) as db:
            return action(db, shared)

    return run


def complete(report: Any) -> None:
    assert not report.failed, report.failed


def removed(db: FilterDB, shared: Path) -> None:
    with contextlib.suppress(UnknownModelError):  # it was finished, and only its tidying up was killed
        db.remove("custom/m0", "custom/m1")
    assert len(db.models()) == 2


def damage(world: Path) -> None:
    """One model is damaged, and all that is derived."""
    path = world / "db"
    (model,) = path.glob("filters/kernel=3x3/source=custom/custom-m3-*.parquet")
    model.write_bytes(model.read_bytes()[:-100])
    for pattern in ("index/3x3-*/histograms/custom-m2-*.parquet", "index/5x5-*/basis.parquet"):
        (file,) = path.glob(pattern)
        file.write_bytes(file.read_bytes()[:-20])
    (path / "models" / "_empty.parquet").unlink()
    (path / "init.sql").write_text("SELECT 1;")
    with (path / "annotations.csv").open("a") as file:
        file.write("custom/m2,task,Denoising\n")


def without_index(world: Path) -> None:
    for folder in (world / "db").glob("index/3x3-*"):
        shutil.rmtree(folder)


def with_old_bases(world: Path) -> None:
    with cnnfilterdb.open(world / "db") as db:
        db.add(weights(8), "m8", domain="d8", new_words=True)
        db.index(refit=True)


@dataclass(frozen=True)
class Verb:
    """A verb that writes.

    Attributes:
        run: Runs it in a world; the second folder holds what is only read.
        prepare: Changes the start of the world.
        db: The database that it changes, in the world.
    """

    run: Callable[[Path, Path], object]
    prepare: Callable[[Path], object] | None = None
    db: str = "db"


def exported(suffix: str) -> Verb:
    return Verb(lambda world, _: cnnfilterdb.open(world / "db", read_only=True).export(world / "out" / f"all.{suffix}"))


def published(world: Path, shared: Path) -> None:
    folder = world / "out" / "release"
    if not (folder / "cnnfilterdb.json").exists() or (folder / ".cnnfilterdb-unfinished").exists():
        with cnnfilterdb.open(world / "db", read_only=False) as db:
            db.publish("owner/name", folder=folder)
    with cnnfilterdb.open(folder) as release:
        assert release.verify() == []


def basis_saved(world: Path, shared: Path) -> None:
    with cnnfilterdb.open(world / "db") as db:
        cnnfilterdb.save_basis(db.bases()[-1].basis, world / "out" / "basis.json")
    cnnfilterdb.load_basis(world / "out" / "basis.json")


VERBS = {
    "create": Verb(lambda world, _: cnnfilterdb.create(world / "new").close(), db="new"),
    "ingest": Verb(opened(lambda db, s: complete(db.ingest("files", str(s / "files"), allow_untrained=True)))),
    "add": Verb(opened(lambda db, _: db.add(weights(9), "m9", domain="d9", overwrite=True, new_words=True))),
    "overwrite": Verb(opened(lambda db, _: db.add(weights(7), "m1", domain="d1", overwrite=True, new_words=True))),
    "remove": Verb(opened(removed)),
    "annotate": Verb(opened(lambda db, _: db.annotate("custom/m2", domain="d0", task="Denoising", new_words=True))),
    "index": Verb(opened(lambda db, _: db.index()), without_index),
    "refit": Verb(
        opened(
            lambda db, _: (db.add(weights(8), "m8", domain="d8", overwrite=True, new_words=True), db.index(refit=True))
        )
    ),
    "prune": Verb(opened(lambda db, _: db.index(prune=True)), with_old_bases),
    "import": Verb(opened(lambda db, s: complete(db.import_released(s / "papers.h5")))),
    "pull": Verb(lambda world, s: complete(cnnfilterdb.pull(s / "release", world / "new")), db="new"),
    "merge": Verb(opened(lambda db, s: complete(db.merge(s / "other")))),
    "export parquet": exported("parquet"),
    "export csv": exported("csv.gz"),
    "export npz": exported("npz"),
    "export h5": exported("h5"),
    "publish": Verb(published),
    "repair": Verb(opened(lambda db, _: db.repair()), damage),
    "save basis": Verb(basis_saved),
    "report": Verb(opened(lambda db, _: db.report(db.location + "/../out/report.html"))),
}


def contents(path: Path) -> dict[str, Any]:
    """What a database says, times of writing aside."""
    with cnnfilterdb.open(path) as db:
        models = db.models().drop(columns=["ingested_at"])
        layers = db.layers()[["model_id", "layer", "tensor_sha256", "filters"]]
        if not len(models):
            return {"models": 0}
        shift = db.kl_shift("domain")
        return {
            "models": models.to_json(),
            "layers": layers.to_json(),
            "filters": db.filters().to_json(double_precision=15),
            "shift": (list(shift.index), shift.to_numpy().tobytes(), shift.attrs["basis"]),
            "bases": sorted(fitted.basis_id for fitted in db.bases()),
        }


def files(world: Path) -> dict[str, str]:
    """Files and their hashes."""
    return {
        file.relative_to(world).as_posix(): sha256(file)
        for file in sorted(world.rglob("*"))
        if file.is_file() and ".locks" not in file.parts
    }


#: Files that hold the time of their writing, or, like a release, those of models.
_DATED = re.compile(r"db/.*|new/.*|out/report.html|out/all.h5|out/release/.*")

# Imported before the forks, so that not each of the children does it.
for _module in ("numba", "scipy.stats", "matplotlib.figure", "h5py", "tables", "huggingface_hub"):
    importlib.import_module(_module)
for _module in (
    "exchange.export",
    "exchange.transfer",
    "ingest.papers_dataset",
    "ingest.pipeline",
    "ingest.sources.files",
    "plots.report",
    "publish.publish",
    "stats.compiled",
    "store.repair",
):
    importlib.import_module(f"cnnfilterdb.{_module}")


def listing(world: Path) -> dict[str, str]:
    """Names of all files and folders; hashes of those that are the same each time."""
    hashes = files(world)
    names = [path.relative_to(world).as_posix() for path in world.rglob("*") if ".locks" not in path.parts]
    return {
        re.sub(r"\.quarantine/[^/]+", ".quarantine/time", name): "" if _DATED.match(name) else hashes.get(name, "")
        for name in sorted(names)
    }


def hashes_of(path: Path) -> dict[str, str]:
    """Hash of the weights of each model."""
    if not (path / "cnnfilterdb.json").exists():
        return {}
    with cnnfilterdb.open(path) as db:
        ids = set(db.models()["model_id"])
        found = dict(db.layers().groupby("model_id")["tensor_sha256"].agg("".join))
    assert set(found) == ids
    return found


def forked(action: Callable[[], object], *, seconds: float = 300) -> int:
    """Exit status of a function in a child process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            import signal

            signal.alarm(int(seconds))
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Worlds:
    """Worlds of all verbs: before, and after an undisturbed run.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = root / "shared"
        assert forked(lambda: make(root)) == 0
        self._before: dict[str, dict[str, str]] = {}
        self._after: dict[str, dict[str, Any]] = {}

    def saved(self, action: Callable[[], Any]) -> Any:
        """What a function returns in a child process."""
        file = self.root / "result"
        assert forked(lambda: file.write_bytes(pickle.dumps(action()))) == 0
        return pickle.loads(file.read_bytes())

    def start(self, verb: str) -> Path:
        """The world that a verb starts from; not to be changed."""
        folder = self.root / f"start {verb}"
        if not folder.exists():
            shutil.copytree(self.root / "start", folder)
            if (prepare := VERBS[verb].prepare) is not None:
                assert forked(partial(prepare, folder)) == 0
            self._before[verb] = self.saved(lambda: hashes_of(folder / VERBS[verb].db))
        return folder

    def world(self, verb: str, name: str = "killed") -> Path:
        """A copy of the world that a verb starts from."""
        start, target = self.start(verb), self.root / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(start, target)
        return target

    def run(self, verb: str, world: Path) -> None:
        """Run a verb in this process."""
        VERBS[verb].run(world, self.shared)

    def _state(self, verb: str, world: Path) -> dict[str, Any]:
        path = world / VERBS[verb].db
        return {"hashes": hashes_of(path), "contents": contents(path), "listing": listing(world)}

    def after(self, verb: str) -> dict[str, Any]:
        """The state after an undisturbed run."""
        if verb not in self._after:
            world = self.world(verb, "undisturbed")
            assert forked(lambda: self.run(verb, world)) == 0
            self._after[verb] = self.saved(lambda: self._state(verb, world))
        return self._after[verb]

    def check(self, verb: str, world: Path, *, lasting: bool = False) -> None:
        """After a fault, in this process: open, query, finish, compare, verify.

        Args:
            verb: The verb that was disturbed.
            world: What it left.
            lasting: It had returned, so that its result must be there already.
        """
        after, before, path = self._after[verb], self._before[verb], world / VERBS[verb].db
        there = files(world)
        hashes = hashes_of(path)
        assert files(world) == there, "opening and reading changed files"
        for model_id, digest in hashes.items():
            known = {state.get(model_id) for state in (before, after["hashes"])}
            assert digest in known, f"{model_id} is neither the old nor the new one"
        missing = (before.keys() & after["hashes"].keys()) - hashes.keys()
        assert not missing or verb == "overwrite", f"{missing} disappeared"
        if not lasting:
            self.run(verb, world)
        found = self._state(verb, world)
        for part, value in after["contents"].items():
            assert found["contents"].get(part) == value, f"{part} is not that of an undisturbed run"
        other = sorted(set(found["listing"].items()) ^ set(after["listing"].items()))
        # Tidying up need not be on the disk: the next writer repeats it.
        assert not [one for one in other if not (lasting and "/.staging/" in one[0])], other
        with cnnfilterdb.open(path) as db:
            assert db.verify() == []
