"""Several hundred hostile weight files: each is refused in one line that names it, or read, within limits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("hostile_files", Path(__file__).with_name("hostile_files.py"))
hostile = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hostile)

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and measures the memory of a child process"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, files by name, and what the canary was before any of them was read."""
    folder = tmp_path_factory.mktemp("hostile")
    return folder, hostile.make(folder, share=3), hostile.tree(folder / "canary")


@pytest.fixture(scope="module")
def outcomes(made):
    return hostile.outcomes(made[1])


def test_each_is_refused_in_one_line_or_read_within_limits(made, outcomes):
    folder, paths, canary = made
    assert len(paths) >= 300
    assert outcomes.keys() == paths.keys()
    for name, one in outcomes.items():
        said = one["said"]
        assert not one["raw"], (name, said)
        assert said.isprintable(), name
        assert said != "SECRET", f"{name}: a file outside was read"
        assert said == "read" or str(paths[name].parent) in said, (name, said)
        assert one["seconds"] < 20, name
        assert one["peak"] < 1.5e9, name
    assert hostile.tree(folder / "canary") == canary


def test_what_asks_for_other_files_or_for_code_is_refused(outcomes):
    refused = ("outside", "absolute", "behind", "device", "external", "runs", "opens", "evaluates")
    for name, one in outcomes.items():
        # Members of an archive are not extracted: their names are no paths.
        if any(word in name for word in refused) and not name.startswith("npz"):
            assert one["said"] != "read", name


def test_the_command_line_reports_each_and_exits_with_1(made, outcomes, tmp_path):
    folder, paths, canary = made
    chosen = [name for name, one in outcomes.items() if one["said"] != "read" and paths[name].is_file()][::25]
    line = [sys.executable, "-P", "-m", "cnnfilterdb", "ingest", "files", *(str(paths[name]) for name in chosen),
            "--allow-untrained", "--quiet", "--db", str(tmp_path / "db")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    for name in chosen:
        assert sum(str(paths[name].parent) in line for line in lines) == 1, (name, done.stderr)
    assert all(line.isprintable() for line in lines)
    assert hostile.tree(folder / "canary") == canary
    assert json.loads((tmp_path / "db" / "cnnfilterdb.json").read_text())["format_version"]
