"""The scripts for batch systems do on this machine what they do on a cluster."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import cnnfilterdb

pytestmark = pytest.mark.thorough

EXAMPLES = Path(__file__).parents[1] / "examples" / "cluster"


@pytest.fixture
def environment(tmp_path):
    """The variables of a task, with the command line of this checkout on the path."""
    command = tmp_path / "bin" / "cnnfilterdb"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m cnnfilterdb "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are for bash")
def test_an_array_of_tasks_and_its_combination(tmp_path, environment, object_store):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        weight = np.random.default_rng(number).normal(size=(4, 3, 3, 3)).astype(np.float32)
        save_file({"a.weight": weight}, folder / f"{number}.safetensors")

    def task(script, *arguments, **variables):
        line = ["bash", EXAMPLES / script, *arguments]
        done = subprocess.run(
            line, env=environment | variables, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    names = ("files", str(folder), "--allow-untrained")
    task("ingest-array.sh", "parts", *names, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_TASK_COUNT="2")
    fsspec.filesystem("s3", **object_store).mkdir("cluster")
    cloud = {"AWS_ENDPOINT_URL": object_store["endpoint_url"], "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    done = task("ingest-array.sh", "parts", *names, SHARD="2/2", PUSH="s3://cluster/parts", **cloud)
    assert '"outcome": "done"' in done.stderr
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["part-1-of-2.db", "part-2-of-2.db"]
    found = [set(cnnfilterdb.open(part).models()["name"]) for part in parts]
    assert found[0] | found[1] == set("012345")
    assert not found[0] & found[1]
    with cnnfilterdb.open("s3://cluster/parts/part-2-of-2", storage_options=object_store) as pushed:
        assert set(pushed.models()["name"]) == found[1]
    with cnnfilterdb.create(tmp_path / "whole.db") as whole:
        whole.merge(*parts)
    for shard in ("1/2", "2/2"):
        task("index-array.sh", "whole.db", SHARD=shard)
    assert len(list((tmp_path / "whole.db/index/fingerprints").glob("files-*.parquet"))) == 6
    assert "all counts and hashes are correct" in task("combine.sh", "parts", "whole.db").stdout
    assert len(cnnfilterdb.open(tmp_path / "whole.db").models()) == 6


def test_the_job_of_kuberay_runs_a_command_that_exists():
    from cnnfilterdb.cli import cli

    job = yaml.safe_load((EXAMPLES / "ray-job.yaml").read_text())
    words = job["spec"]["entrypoint"].split()
    assert words[0] == "cnnfilterdb"
    verb = cli.commands[words[1]]
    context = verb.make_context(words[1], words[2:])
    assert context.params["source"] == "pypi"
    assert context.meta["cnnfilterdb.resources"] == {"runner": "ray"}
