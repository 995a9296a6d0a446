"""Ray gives what this process gives, also if a node is lost meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
import time

import pytest
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.core.errors import MissingExtraError
from cnnfilterdb.core.ray_runner import Ray

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::Warning")]

EDGE = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    # Small stores, and no dashboard: as little as a cluster needs.
    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    # Workers find the package where this process does.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    ray.init(made.address, log_to_driver=False, logging_level="error", runtime_env=environment)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_that_is_killed_midway_loses_and_doubles_nothing(cluster, sample_path, tensors, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, weights in tensors.items():
        for copy in range(3):
            save_file({key: value + copy for key, value in weights.items()}, folder / f"{name}-{copy}.safetensors")
    here = cnnfilterdb.create(tmp_path / "here.db", runner="serial")
    expected = here.ingest("files", str(folder), allow_untrained=True)
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()

    class Kill(cnnfilterdb.Observer):
        killed = False

        def finished(self, model_id: str, outcome: str) -> None:
            if not self.killed:
                self.killed = True
                cluster.remove_node(second, allow_graceful=False)

    there = cnnfilterdb.create(tmp_path / "there.db", runner="ray")
    observer = Kill()
    report = there.ingest("files", str(folder), allow_untrained=True, observer=observer)
    assert observer.killed
    assert (report.done, report.skipped, report.failed) == (expected.done, [], [])
    assert list(report.done) == list(expected.done)
    assert there.verify() == []
    hashes = "SELECT model_id, layer, tensor_sha256 FROM layers ORDER BY ALL"
    assert there.sql(hashes).fetchall() == here.sql(hashes).fetchall()
    for db in (here, there):
        db.index()
    assert there.kl_shift("name").equals(here.kl_shift("name"))
    assert there.nearest(EDGE, top=5).equals(here.nearest(EDGE, top=5))


def test_a_node_that_is_killed_while_an_index_is_built_loses_and_doubles_nothing(cluster, tensors, tmp_path):
    here = cnnfilterdb.create(tmp_path / "here.db", runner="serial")
    for name, weights in tensors.items():
        for copy in range(3):
            here.add({key: value + copy for key, value in weights.items()}, f"{name}-{copy}", domain="natural")
    shutil.copytree(here.path, tmp_path / "there.db")
    here.index()
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()
    steps = []

    def kill(step, done, total):
        if step == "fingerprints" and step not in steps:
            cluster.remove_node(second, allow_graceful=False)
        steps.append(step)

    there = cnnfilterdb.open(tmp_path / "there.db", read_only=False, runner="ray")
    there.index(progress=kill)
    assert steps.count("fingerprints") == len(tensors) * 3
    assert there.verify() == []
    for table in ("histograms", "fingerprints"):
        query = f"FROM {table} ORDER BY ALL"
        assert there.sql(query).fetchall() == here.sql(query).fetchall()
    assert there.kl_shift("name", basis="selection").equals(here.kl_shift("name", basis="selection"))


def test_what_a_unit_needs_is_declared(cluster):
    started = time.monotonic()
    from cnnfilterdb.core.runners import Demand

    # More memory than any node has would wait forever.
    runs = Ray("ray", 2).run(abs, [-1, 2], demand=Demand(cpus=1, memory=1 << 60))
    assert [future.result() for _, future in runs] == [1, 2]
    assert time.monotonic() - started < 60


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"runner ray: needs Ray; pip install 'cnnfilterdb\[ray\]'"):
        list(Ray("ray", 1).run(abs, [1]))
