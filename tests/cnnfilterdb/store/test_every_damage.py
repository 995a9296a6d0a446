"""Whatever happens to any file of a database or a release: verify reports it, and repair restores what is derived."""

from __future__ import annotations

import random
import shutil
import warnings

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CnnFilterDbError

pytestmark = pytest.mark.thorough

_FLIPS = 4  # bytes that are changed in each file, besides its first and its last

#: Kinds of files in a database, and whether repair restores them without the source of the model.
DATABASE = {
    "cnnfilterdb.json": True,
    "init.sql": True,
    "annotations.csv": False,
    "annotations.csv.sha256": True,
    "models/[!_]*.parquet": False,
    "models/_empty.parquet": True,
    "layers/[!_]*.parquet": False,
    "layers/_empty.parquet": True,
    "filters/kernel=3x3/source=custom/*.parquet": False,
    "filters/kernel=5x5/source=custom/*.parquet": False,
    "filters/*/source=_/_empty.parquet": True,
    "index/3x3-*/basis.parquet": True,
    "index/3x3-*/histograms/*.parquet": True,
    "index/_empty/basis.parquet": True,
    "index/_empty/histograms/_empty.parquet": True,
}

RELEASE = (
    "cnnfilterdb.json",
    "init.sql",
    "README.md",
    "MODELS.md",
    "CITATION.cff",
    "shift.png",
    "models/*.parquet",
    "layers/*.parquet",
    "filters_3x3/*.parquet",
    "filters_5x5/*.parquet",
    "histograms/*.parquet",
    "bases/*.parquet",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database of two annotated models with two kernel sizes, and its release."""
    folder = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(folder / "db") as db:
        for name in "ab":
            weights = {f"{size}.weight": rng.normal(size=(6, 4, size, size)).astype(np.float32) for size in (3, 5)}
            db.add(weights, name, domain=name, license="MIT", new_words=True)
        db.annotate("custom/a", task="Segmentation")
        db.index()
        db.publish("owner/name", folder=folder / "release")
        assert db.verify() == []
    with cnnfilterdb.open(folder / "release") as release:
        assert release.verify() == []
    return folder


def changes(content: bytes, choose: random.Random, flips: int):
    """Every kind of damage to the content of a file; None stands for a missing file."""
    size = len(content)
    for place in [0, size - 1, *(choose.randrange(size) for _ in range(flips))]:
        yield content[:place] + bytes([content[place] ^ 1 << choose.randrange(8)]) + content[place + 1 :]
    for length in (0, size // 2, size - 1):
        yield content[:length]
    yield content + b"\0"
    yield None


def put(path, content):
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def problems(folder):
    """What is reported: by verify, or at once by opening."""
    try:
        with cnnfilterdb.open(folder) as db:
            return [str(problem) for problem in db.verify()]
    except CnnFilterDbError as error:
        return [str(error)]


@pytest.mark.parametrize("pattern", DATABASE)
def test_verify_finds_every_damage_of_a_database(made, pattern):
    choose = random.Random(pattern)
    file = choose.choice(sorted((made / "db").glob(pattern)))
    content = file.read_bytes()
    for number, damaged in enumerate(changes(content, choose, _FLIPS)):
        put(file, damaged)
        found = problems(made / "db")
        file.write_bytes(content)
        # A missing histogram is not damage: the next question that needs it computes it again.
        assert found or (damaged is None and "histograms/*" in pattern), (pattern, number)
        assert all("\n" not in one for one in found)
    assert problems(made / "db") == []


@pytest.mark.parametrize("pattern", RELEASE)
def test_verify_finds_every_damage_of_a_release(made, pattern):
    choose = random.Random(pattern)
    file = choose.choice(sorted((made / "release").glob(pattern)))
    content = file.read_bytes()
    for number, damaged in enumerate(changes(content, choose, _FLIPS)):
        put(file, damaged)
        found = problems(made / "release")
        file.write_bytes(content)
        assert found, (pattern, number)
    assert problems(made / "release") == []


def answers(folder):
    with cnnfilterdb.open(folder) as db:
        return (
            db.models().drop(columns="ingested_at").to_json(),
            db.layers().to_json(),
            db.kl_shift("domain").to_numpy().tobytes(),
            (folder / "init.sql").read_text().replace(str(folder), "").splitlines()[:-1],  # the last has a checksum
            (folder / "annotations.csv").read_bytes(),
        )


@pytest.mark.parametrize("pattern", [pattern for pattern, derived in DATABASE.items() if derived])
def test_repair_restores_what_is_derived(made, tmp_path, pattern):
    choose, expected = random.Random(pattern), answers(made / "db")
    for number, which in enumerate(
        (choose.randrange(_FLIPS + 2), _FLIPS + 3, _FLIPS + 6)
    ):  # a flipped byte, half of it, nothing
        path = shutil.copytree(made / "db", tmp_path / str(number))
        file = choose.choice(sorted(path.glob(pattern)))
        put(file, list(changes(file.read_bytes(), choose, _FLIPS))[which])
        if pattern == paths.MARKER:
            try:
                db = cnnfilterdb.open(path)
            except CnnFilterDbError:  # nothing says that it is a database: only its user can
                continue
        else:
            db = cnnfilterdb.open(path)
        with db, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert db.repair() == []
        assert problems(path) == []
        assert answers(path) == expected


@pytest.mark.parametrize("pattern", [pattern for pattern, derived in DATABASE.items() if not derived])
def test_repair_keeps_all_bytes_of_what_is_not_derived(made, tmp_path, pattern):
    path = shutil.copytree(made / "db", tmp_path / "db")
    file = sorted(path.glob(pattern))[0]
    damaged = file.read_bytes()[:-1] if pattern != "annotations.csv" else b"\xff" + file.read_bytes()
    file.write_bytes(damaged)
    with cnnfilterdb.open(path) as db, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = db.repair()
    assert len(left) == 1
    assert all("no model 'custom/a'" in one for one in problems(path))  # its annotation waits for it
    assert damaged in {kept.read_bytes() for kept in path.glob(".quarantine/**/*") if kept.is_file()}
