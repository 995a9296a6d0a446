"""Several parts on the command line and in the explorer."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.explore.views import Explorer
from cnnfilterdb.explore.watched import WatchedReader


@pytest.fixture
def two(part_paths):
    """A folder and a release in a folder."""
    return part_paths["folder"], part_paths["release"]


def test_verbs_read_several(run, two, tmp_path):
    options = [word for path in two for word in ("--db", path)]
    with cnnfilterdb.open(two) as db:
        status, out, err = run("models", *options, "--format", "json")
        assert (status, err) == (0, "")
        assert [(row["model_id"], row["part"]) for row in json.loads(out)] == [
            tuple(row) for row in db.models()[["model_id", "part"]].to_numpy()
        ]
        assert run("models", *options)[1].split()[0] == "part"
        status, out, _ = run("shift", "part", *options, "--format", "json")
        assert status == 0
        found = pd.DataFrame(json.loads(out)).set_index("part")[["folder.db", "release"]]
        pd.testing.assert_frame_equal(found, db.kl_shift("part"), check_names=False)
    for line in (
        ["quality", "domain"], ["layers"], ["nearest", "1 0 -1; 1 0 -1; 1 0 -1"], ["shared"], ["related"],
        ["basis", tmp_path / "basis.json"], ["verify"], ["sql", "FROM group_sizes(part)"],
        ["test", "part", "--permutations", "99"], ["structure", "domain"],
        ["explain", "part", "domain", "--permutations", "99"],
        ["plot", "shift", "--by", "part", "-o", tmp_path / "shift.png"], ["export", tmp_path / "all.npz"],
        ["report", "--by", "part", "-o", tmp_path / "report.html"], ["diff", "custom/ct-b", "custom/ct-b"],
    ):  # fmt: skip
        status, out, err = run(*line, *options)
        assert (status, "error" in err) == (0, False), (line, err)


def test_a_list_and_the_variable(run, two, tmp_path, monkeypatch):
    path = tmp_path / "my corpus.parts.toml"
    path.write_text(f'[parts]\na = "{two[0]}"\nb = "{two[1]}"\n')
    monkeypatch.setenv("CNNFILTERDB", str(path))  # which is one location, though it has a space
    status, out, _ = run("sql", "FROM group_sizes(part)", "--format", "json")
    assert [row["group"] for row in json.loads(out)] == ["a", "b"]
    for line in (["index"], ["remove", "custom/face"], ["add", two[0], "--name", "x"]):
        status, out, err = run(*line)
        assert (status, out) == (1, "")
        assert "can only be read; open the one to write to" in err
    status, _, err = run("verify", "custom/*", *[word for one in two for word in ("--db", one)])
    assert (status, "give one --db" in err) == (2, True)


def test_duplicates(run, two):
    options = ["--db", two[0], "--db", two[1], "--db", "reference"]
    assert run("models", *options, "--duplicates", "first", "--format", "csv")[1].count("\n") == 250
    status, _, err = run("models", "--db", two[0], "--duplicates", "first")
    assert (status, err) == (1, f"error: {two[0]}: one database, not several parts; leave out duplicates\n")


def test_the_explorer(parts, sample):
    shown = ("--db", "one.db", "--db", "s3://parts/face")
    watched = WatchedReader(parts, memory="256MB")
    try:
        explorer = Explorer(watched, shown)
        start = explorer.start({})
        assert start["groupings"][0] == "part"
        assert (start["models"], start["kernels"]) == (5, ["3x3", "5x5", "7x7"])
        assert {"kl_shift", "group_sizes"} <= {macro["name"] for macro in start["macros"]}
        models = explorer.models({})
        assert [row["model_id"] for row in models["rows"]] == sample.models()["model_id"].tolist()
        assert models["command"] == "cnnfilterdb models --db one.db --db s3://parts/face"
        assert explorer.groups({"by": "part"})["labels"]
        pd.testing.assert_frame_equal(watched.kl_shift("domain"), sample.kl_shift("domain"), rtol=1e-12)
        with pytest.raises(cnnfilterdb.QueryError):
            watched.sql("FROM 'elsewhere.csv'")
    finally:
        watched.close()
