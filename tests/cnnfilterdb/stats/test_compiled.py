"""The compiled loops start wherever Python does, and their shortcuts change no result."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cnnfilterdb.stats import compiled

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


@given(
    kernels=npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 300), st.sampled_from([2, 9, 25])),
        elements=st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-38, -3e37, 1e-45, 0.3333, 1 + 2**-20, 3.0]),
    ),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
    sign=st.booleans(),
    centred=st.booleans(),
    least=st.floats(-1, 1),
    seed=st.integers(0, 5),
)
def test_single_precision_misses_no_filter_that_is_similar_enough(kernels, scale, sign, centred, least, seed):
    with np.errstate(over="ignore"):
        kernels = (kernels * np.float32(scale)).clip(-3e38, 3e38)
    columns = [np.ascontiguousarray(column) for column in kernels.T]
    variants = np.random.default_rng(seed).normal(size=(2, kernels.shape[1]))
    variants -= variants.mean(axis=1, keepdims=True) if centred else 0
    variants /= np.linalg.norm(variants, axis=1, keepdims=True)
    every, which, numbers = compiled.similarities(columns, variants, sign, centred)
    np.testing.assert_array_equal(numbers, np.arange(len(kernels)))
    found, names, numbers = compiled.similarities(columns, variants, sign, centred, least)
    wanted = np.flatnonzero(every >= least)
    np.testing.assert_array_equal(numbers, wanted)
    np.testing.assert_array_equal(found, every[wanted])
    np.testing.assert_array_equal(names, which[wanted])


def test_single_precision_excludes_most_filters():
    kernels = np.random.default_rng(0).normal(size=(100_000, 9)).astype(np.float32)
    columns = [np.ascontiguousarray(column) for column in kernels.T]
    found, _, numbers = compiled.similarities(columns, np.full((1, 9), 1 / 3), False, False, 0.9)
    assert 0 < len(found) < 10_000
    cosines = kernels.mean(axis=1) * 3 / np.linalg.norm(kernels, axis=1)
    np.testing.assert_array_equal(numbers, np.flatnonzero(cosines >= 0.9))
