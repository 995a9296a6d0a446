"""Kills, faults of the file system, power losses and signals, a short run; by hand: ``make crash N=500``."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and watches system calls by LD_PRELOAD"),
]


def run(script: str, rounds: int, seconds: int) -> str:
    line = [sys.executable, "-P", str(FOLDER / script), str(rounds), "--seconds", str(seconds)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiler():
    sys.path.insert(0, str(FOLDER))
    import shim

    sys.path.remove(str(FOLDER))
    if not shim.available():
        pytest.skip("no C compiler: the library that kills and records cannot be built")


@pytest.mark.parametrize("script", ["harness.py", "faults.py", "power.py"])
def test_verbs_that_are_killed_fail_or_lose_power_can_be_finished(compiler, script):
    assert int(run(script, 20, 4).split()[0]) >= 1


def test_verbs_that_are_interrupted_end_with_one_line():
    assert int(run("signals.py", 20, 4).split()[0]) >= 1
