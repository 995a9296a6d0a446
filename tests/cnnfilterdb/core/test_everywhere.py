"""The same answers and the same files, wherever the work runs; nothing is lost or done twice."""

from __future__ import annotations

import shutil
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.core.runners import Processes
from cnnfilterdb.core.sharding import Share

pytestmark = pytest.mark.thorough

EDGE = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]


class Loses(Executor):
    """Half of the units are lost once, before or after they were done."""

    def __init__(self) -> None:
        self._pool, self._random, self._lost = ThreadPoolExecutor(2), Random(0), set()

    def submit(self, function, unit):
        fate = self._random.choice(["before", "after", "none", "none"])
        key = getattr(unit, "name", None) or repr(unit)
        if key in self._lost:
            fate = "none"
        self._lost.add(key)
        return self._pool.submit(self._run, function, unit, fate)

    @staticmethod
    def _run(function, unit, fate):
        if fate == "before":
            raise BrokenExecutor("lost")
        result = function(unit)
        if fate == "after":
            raise BrokenExecutor("lost")
        return result


@pytest.fixture(scope="module")
def processes():
    runner = Processes(2)
    yield runner
    runner.stop(now=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("files")
    for name, weights in tensors.items():
        save_file(weights, folder / f"{name}.safetensors")
    save_file({"fc.weight": np.ones((3, 3), np.float32)}, folder / "no-convolution.safetensors")
    return folder


@pytest.fixture(params=["serial", "threads", "processes", "given", "loses"])
def runner(request, processes, monkeypatch):
    monkeypatch.setattr("cnnfilterdb.core.runners._PAUSE", 0.0)
    made = {"processes": processes, "given": ThreadPoolExecutor(2), "loses": Loses()}
    return made.get(request.param, request.param)


def answers(db, folder):
    """What is asked of a database, as values that can be compared exactly."""
    path = folder / "export.csv"
    done = db.export(path)
    return {
        "export": (done.filters, path.read_bytes()),
        "fresh basis": db.groups("domain", basis="selection").counts.tolist(),
        "bins": db.groups("name", bins=11).counts.tolist(),
        "balanced": db.groups("domain", bins=11, balance="models").counts.tolist(),
        "nearest": db.nearest(EDGE, top=7).to_dict("list"),
        "nearest of some": db.nearest(EDGE, top=3, where="domain = 'faces'").to_dict("list"),
        "descriptors": db.descriptors(per="layer").to_dict("list"),
        "shapes": db.shapes("domain", all_kinds=True).to_dict("list"),
        "verify": db.verify(),
    }


@pytest.fixture(scope="module")
def expected(sample_path, tmp_path_factory):
    with cnnfilterdb.open(sample_path, runner="serial", threads=1) as db:
        return answers(db, tmp_path_factory.mktemp("expected"))


def test_answers_are_the_same(runner, sample_path, tmp_path, expected):
    db = cnnfilterdb.open(sample_path, runner=runner)
    found = answers(db, tmp_path)
    for question, answer in expected.items():
        np.testing.assert_equal(found[question], answer, question)


def test_a_release_and_parts_answer_too(processes, release_path, sample_path, tmp_path):
    here = cnnfilterdb.open(release_path, runner="serial")
    there = cnnfilterdb.open(release_path, runner=processes)
    for ask in (
        lambda db: db.nearest(EDGE, top=7).to_dict("list"),
        lambda db: db.groups("domain", basis="selection").counts.tolist(),
        lambda db: [row.to_pylist() for row in db.filter_batches(where="domain = 'faces'")],
    ):
        assert ask(there) == ask(here)


def test_imports_and_indices_are_the_same(runner, folder, tmp_path):
    here = cnnfilterdb.create(tmp_path / "here.db", runner="serial")
    report = here.ingest("files", str(folder), allow_untrained=True)
    there = cnnfilterdb.create(tmp_path / "there.db", runner=runner)
    seen = []

    class Seen(cnnfilterdb.Observer):
        def finished(self, model_id, outcome):
            seen.append((model_id, outcome))

    found = there.ingest("files", str(folder), allow_untrained=True, observer=Seen())
    assert (found.done, found.skipped) == (report.done, report.skipped)
    assert list(found.done) == list(report.done)
    assert [str(one.error) for one in found.failed] == [str(one.error) for one in report.failed]
    assert sorted(seen) == sorted([(m, "done") for m in report.done] + [("files/no-convolution", "failed")])
    assert str(there.ingest("files", str(folder), allow_untrained=True)) == "0 done, 5 skipped, 1 failed"
    assert there.verify() == []
    for db in (here, there):
        db.index()
    query = "SELECT basis_id, model_id, layer, recipe, counts FROM histograms ORDER BY ALL"
    assert there.sql(query).fetchall() == here.sql(query).fetchall()
    assert there.kl_shift("name").equals(here.kl_shift("name"))


def test_damage_is_found_everywhere(processes, sample_path, tmp_path):
    path = tmp_path / "copy.db"
    shutil.copytree(sample_path, path)
    file = next((path / "filters" / "kernel=3x3").rglob("*face*.parquet"))
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    here, there = (cnnfilterdb.open(path, runner=one).verify() for one in ("serial", processes))
    assert here
    assert there == here


def test_shares_cover_all_models_once_and_stay_where_they_are(folder, tmp_path, release_path):
    parts = []
    for number in (1, 2, 3):
        part = cnnfilterdb.create(tmp_path / f"part-{number}.db")
        part.ingest("files", str(folder), allow_untrained=True, shard=f"{number}/3")
        assert part.verify(shard="1/2") == part.verify(shard="2/2") == []
        parts.append(part.path)
    models = [model_id for path in parts for model_id in cnnfilterdb.open(path).models()["model_id"]]
    assert sorted(models) == sorted(f"files/{path.stem}" for path in folder.glob("*[ab]*") if "no-" not in path.stem)
    whole = cnnfilterdb.open(parts)
    assert len(whole.models()) == 5
    share = Share(2, 3)
    keys = [f"source/model-{number}" for number in range(1000)]
    assert share.among(keys[:500]) == [key for key in share.among(keys) if key in keys[:500]]
    assert 250 < len(share.among(keys)) < 420
    done = [cnnfilterdb.pull(release_path, tmp_path / f"p{n}.db", shard=f"{n}/2").done for n in (1, 2)]
    assert len(done[0]) + len(done[1]) == 5
    assert not done[0].keys() & done[1].keys()
