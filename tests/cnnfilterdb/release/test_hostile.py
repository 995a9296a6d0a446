"""Releases of strangers: whatever is wrong with one is found at the door, in one line, and nothing is written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import cnnfilterdb

pytestmark = pytest.mark.thorough

SCRIPT = Path(__file__).with_name("hostile.py")


def _hostile():
    specification = importlib.util.spec_from_file_location("hostile_releases", SCRIPT)
    module = sys.modules["hostile_releases"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hostile = _hostile()
import hostile_harness as harness  # noqa: E402 (beside the package's tests, which the script has put in the path)

#: Every fourth case, and each that would write or run something elsewhere; `make hostile` runs all.
TRIED = [
    name
    for number, name in enumerate(hostile.CASES)
    if number % 4 == 0
    or os.environ.get("HOSTILE") == "all"
    or name in {"file: absolute", "file: above", "file: through", "file: a statement", "bases: a key that is a path"}
]


@pytest.fixture(scope="module")
def outcomes(release_path, tmp_path_factory):
    """What became of each case; each has a process of its own, forked from one that has imported everything."""
    work = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(release_path), str(work), *TRIED],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {outcome["name"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


def test_there_are_many():
    assert len(hostile.CASES) >= 150


@pytest.mark.parametrize("name", TRIED)
def test_one_line_and_nothing_written(outcomes, name):
    outcome, case = outcomes[name], hostile.CASES[name]
    said = {what: outcome[what] for what in ("ask", "pull")}
    assert not any(text.startswith("RAW") for text in said.values()), said
    for what in case.fails:
        assert said[what] != "ok"
    if not case.partial:  # which prints a line for each model that failed
        for what in case.fails:
            assert "\n" not in said[what]
            assert "release" in said[what], "the message names the file"
            assert all(char.isprintable() for char in said[what])
    assert (outcome["new"], outcome["changed"]) == ([], [])
    if case.fails == ("pull",) and not case.partial:
        assert not outcome["pulled"]


def test_time_and_memory_are_bounded(outcomes):
    slow = {name: outcome["seconds"] for name, outcome in outcomes.items() if outcome["seconds"] > harness.SECONDS}
    large = {
        name: outcome["megabytes"] for name, outcome in outcomes.items() if outcome["megabytes"] > harness.MEMORY >> 20
    }
    assert (slow, large) == ({}, {})


def test_files_that_the_manifest_does_not_list_are_ignored(release_path, sample, tmp_path):
    folder = tmp_path / "release"
    shutil.copytree(release_path, folder)
    hostile.extra_shards(folder)
    with cnnfilterdb.open(folder) as release:
        pd.testing.assert_frame_equal(release.models(), sample.models())
        pd.testing.assert_frame_equal(release.filters(), sample.filters())
        pd.testing.assert_frame_equal(release.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
    report = cnnfilterdb.pull(folder, tmp_path / "db")
    assert (len(report.done), report.failed) == (5, {})


def test_counts_that_were_moved_between_bins_are_not_copied(release_path, sample, tmp_path):
    """They add up, so that no check can find them: what is pulled is counted again."""
    folder = tmp_path / "release"
    shutil.copytree(release_path, folder)

    def moved(rows):
        counts = rows["counts"].to_pylist()
        return rows.set_column(
            rows.schema.get_field_index("counts"),
            rows.schema.field("counts"),
            pa.array([row[::-1] for row in counts], rows.schema.field("counts").type),
        )

    hostile.rewrite(folder, "histograms", moved)
    assert not cnnfilterdb.pull(folder, tmp_path / "db").failed
    with cnnfilterdb.open(tmp_path / "db") as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)


def test_a_release_is_not_pulled_into_its_own_folder(release_path, tmp_path):
    folder = tmp_path / "release"
    shutil.copytree(release_path, folder)
    before = harness.tree(folder)
    with pytest.raises(cnnfilterdb.CnnFilterDbError, match="release"):
        cnnfilterdb.pull(folder, folder)
    assert harness.tree(folder) == before


def test_a_relative_path_with_a_colon(release_path, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(release_path, "run:1")
    with cnnfilterdb.open("run:1") as release:
        pd.testing.assert_frame_equal(release.filters(), sample.filters())
        assert release.verify() == []
    assert len(cnnfilterdb.pull("run:1", "db:2").done) == 5


def test_a_shift_is_not_computed_from_histograms_that_do_not_add_up(release_path, tmp_path):
    folder = tmp_path / "release"
    shutil.copytree(release_path, folder)
    hostile.CASES["histograms: moved counts"].change(folder)
    for ask in ("kl_shift", "nearest_groups", "kl_shift_components"):
        arguments = ("domain", "faces") if ask == "nearest_groups" else ("domain",)
        with (
            cnnfilterdb.open(folder) as release,
            pytest.raises(cnnfilterdb.CorruptError, match="histograms"),
        ):
            getattr(release, ask)(*arguments)
