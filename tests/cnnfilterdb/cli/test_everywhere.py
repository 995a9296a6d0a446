"""What holds for every verb and for every source, whichever there are."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.cli import cli, ingesting
from cnnfilterdb.database.reader import Reader
from cnnfilterdb.ingest import sources
from cnnfilterdb.publish.hub import Released
from cnnfilterdb.testing import no_network

#: A line of each verb that ends well. ROOT is a folder with a weight file, a database, a release, and the
#: papers' dataset.
LINES = {
    "demo": ["--report", "ROOT/report"],
    "ingest": ["files", "ROOT/net.safetensors", "--allow-untrained", "--overwrite"],
    "add": ["ROOT/net.safetensors", "--name", "net", "--overwrite"],
    "import": ["ROOT/dataset.h5", "--overwrite"],
    "pull": ["ROOT/release", "--overwrite"],
    "merge": ["ROOT/other.db", "--overwrite"],
    "models": [],
    "layers": [],
    "sql": ["FROM kl_shift(domain)"],
    "nearest": ["1 0 -1; 2 0 -2; 1 0 -1"],
    "shared": [],
    "related": [],
    "vocabulary": ["domains"],
    "inspect": ["ROOT/net.safetensors"],
    "shift": ["domain"],
    "test": ["domain", "--permutations", "9"],
    "explain": ["domain", "--permutations", "9"],
    "quality": ["domain"],
    "structure": ["domain"],
    "diff": ["custom/face", "custom/face"],
    "lineage": [],
    "basis": ["ROOT/basis.json"],
    "explore": ["--no-browser"],
    "plot": ["shift", "-o", "ROOT/shift.png"],
    "report": ["-o", "ROOT/report.html"],
    "study": ["medical", "--permutations", "9", "--no-scan", "-o", "ROOT/study.html"],
    "publish": ["me/filters", "--dry-run", "ROOT/published", "--include-license", "unknown"],
    "push": ["s3://everywhere/part"],
    "releases": ["me/filters"],
    "export": ["ROOT/filters.parquet"],
    "index": [],
    "annotate": ["custom/face", "--domain", "natural"],
    "remove": ["custom/face"],
    "verify": [],
    "doctor": ["--offline"],
    "cache": [],
}

#: Verbs that answer in words, and not in rows; the others of no rows only do something.
ANSWERS = {"demo", "doctor", "explore", "plot", "report", "study", "verify"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_path):
    """The files that the lines name."""
    folder = tmp_path_factory.mktemp("everywhere")
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    save_file({"a.weight": weight}, folder / "net.safetensors")
    with cnnfilterdb.create(folder / "other.db") as db:
        db.add({"b.weight": weight}, "other", domain="natural", license="MIT")
        db.index()
    with cnnfilterdb.open(sample_path) as db:
        db.export(folder / "dataset.h5")
        db.publish("me/filters", folder=folder / "release")
    return folder


@pytest.mark.parametrize("verb", cli.commands)
def test_quiet_leaves_results_and_errors(run, root, sample_path, tmp_path, monkeypatch, verb):
    """Rows, answers and warnings: of what a verb prints, --quiet leaves no line about what it did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ingesting, "_collected", lambda name: {})  # of the demo
    monkeypatch.setattr(cnnfilterdb, "releases", lambda repo: [Released("v1.0.0", (1, 0, 0), "0" * 40)])
    monkeypatch.setattr(cnnfilterdb.ExplorerServer, "run", lambda self: None)
    made = iter((tmp_path / "first", tmp_path / "second"))
    monkeypatch.setattr(Reader, "push", lambda self, address, **_: self.publish("me/x", folder=next(made)))
    options = {option.name for option in cli.commands[verb].params}
    found = []
    for quiet in ([], ["--quiet"]):
        folder = shutil.copytree(root, tmp_path / f"quiet{len(quiet)}")
        shutil.copytree(sample_path, folder / "my.db")
        line = [word.replace("ROOT", str(folder)) for word in LINES[verb]]
        at = ["--db", folder / "my.db"] if "path" in options else []
        with no_network():
            status, out, err = run(verb, *line, *at, *quiet)
        assert status == 0, err
        # A second run need not take as long.
        found.append((re.sub(r"token=\S+|[\d.,]+", "#", out.replace(str(folder), "ROOT")).splitlines(), err))
    (loud, _), (quiet, err) = found
    assert all(line.startswith("warning: ") for line in err.splitlines())
    assert set(quiet) <= set(loud) or verb == "doctor"  # which measures what other processes leave
    assert bool(quiet) == ({"style", "limit"} <= options or verb in ANSWERS)


#: Models of sources that list none.
NAMED = {"files": "net.safetensors", "hub": "owner/net"}


@pytest.mark.parametrize("name", sources.registered())
def test_every_source_looks_in_a_folder_without_a_network(run, tmp_path, monkeypatch, name):
    """A file in the folder is imported, or refused because it is another; a missing one is asked for."""
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    listed = sources.get(name, offline=True).list()
    model = NAMED.get(name) or min(listed, key=len)
    for options in (["--offline"], ["--offline", "--from", folder], ["--offline", "--from", folder, "--quiet"]):
        with no_network():
            status, out, err = run("ingest", name, model, *options, "--db", tmp_path / "my.db")
        failed, *summary = err.splitlines()
        assert (status, out) == (1, "")
        if name == "files":
            assert (failed, summary) == (
                f"error: files: {model!r} does not exist; expected a file, folder or pattern",
                [],
            )
            continue
        assert summary == ["0 done, 0 skipped, 1 failed"]
        assert failed.startswith(f"failed: {name}/{model}: ")
        assert "offline, and " in failed
        assert f"not in the cache {tmp_path / 'cache'}" in failed
        assert ("nor below" in failed, "no folder is given" in failed) == ("--from" in options, "--from" not in options)
        assert failed.endswith("into a folder and pass it with --from (option folder), or go online") or (
            "or go online for https://" in failed
        )


@pytest.mark.parametrize("name", sources.registered())
def test_every_source_takes_partial_or_says_why_not(run, tmp_path, monkeypatch, name):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))
    with no_network():
        _, _, err = run("ingest", name, NAMED.get(name, "*"), "--partial", "--offline", "--db", tmp_path / "my.db")
    refused = f"error: source {name} does not support --partial (partial=True): "
    assert err.startswith(refused) == bool(sources.get(name).unsupported)
    if err.startswith(refused):
        assert err.count("\n") == 1
        assert not (tmp_path / "my.db").exists()
