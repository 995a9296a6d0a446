"""A few seconds of coverage-guided fuzzing, and every input that failed once; ``make fuzz`` does more of it by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("guided", Path(__file__).with_name("guided.py"))
guided = importlib.util.module_from_spec(_SPEC)
sys.modules["guided"] = guided
_SPEC.loader.exec_module(guided)

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="atheris is built for Linux, and memory is limited there"),
]
FOUND = sorted(path for path in guided.FOUND.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return {one.name: one for one in guided.targets(tmp_path_factory.mktemp("fuzz") / "targets")}


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_inputs_that_failed_once(path, targets):
    targets[path.parent.name].tried(path.read_bytes())


def test_new_inputs_are_read_or_refused(targets, tmp_path):
    pytest.importorskip("atheris")
    program = next(name for name in targets if name.startswith("xnnpack.pte"))
    for one in guided.run(3, ["pickle", program, "release-cnnfilterdb-0"], tmp_path):
        assert not one["failed"], one
        assert one["inputs"] > 10, one
        assert one["megabytes"] < guided.MEGABYTES
