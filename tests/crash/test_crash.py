"""Kills of writing verbs, a short run; ``make crash N=500`` does more of them by hand."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_verbs_leave_a_database_that_is_whole_and_can_be_finished():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from harness import VERBS, run\n"
        "tried = run(24, seconds=45)\n"
        "assert sum(tried.values()) >= 3, tried\n"
        "print(dict(tried))"
    )
    command = [sys.executable, "-P", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
