"""The compiled loops start wherever Python does."""

import subprocess
import sys

CODE = """
from numba.core import caching

if {without}:
    caching.CompileResultCacheImpl._locator_classes = []  # as for a folder and a home that cannot be written to

import numpy as np
from cnnfilterdb.stats import compiled

low, high = compiled.extremes(np.float32([[1, -2], [0, 0.5]]))
print(compiled._COMPILED["cache"], low.tolist(), high.tolist())
"""


def started(without: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(without=without)], capture_output=True, text=True, check=False
    )


def test_compiled_code_is_kept_where_it_can_be():
    assert started(False).stdout == "True [-2.0, 0.0] [1.0, 0.5]\n"


def test_without_a_writable_folder_code_is_compiled_again():
    done = started(True)
    assert (done.stdout, done.stderr) == ("False [-2.0, 0.0] [1.0, 0.5]\n", "")
