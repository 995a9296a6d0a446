"""Layers of several models keep to one allowance, and no model waits for ever."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.core.errors import BadWeightsError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import pipeline
from cnnfilterdb.ingest.allowance import Allowance, EndedError, Held
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights
from cnnfilterdb.store.index import Projection


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=4), st.integers(1, 40))
def test_models_keep_to_the_allowance(models, limit):
    allowance, lock = Allowance(limit), threading.Lock()
    alive, most = [], []

    def take(sizes, held, taken):
        for size in sizes:
            held.take(size)
            with lock:
                alive.append(size)
                most.append((sum(alive), len(alive)))
            taken.release()

    def model(sizes):
        """One thread takes layers, as reading does; this one gives them back in their order, as writing does."""
        taken = threading.Semaphore(0)
        with Held(allowance) as held:
            reader = threading.Thread(target=take, args=(sizes, held, taken))
            reader.start()
            for size in sizes:
                assert taken.acquire(timeout=30)
                with lock:
                    alive.remove(size)
                held.give_back(size)
            reader.join()

    with ThreadPoolExecutor(len(models)) as pool:
        list(pool.map(model, models))
    assert alive == []
    assert all(held <= limit or layers == 1 for held, layers in most)


def test_a_model_that_fails_gives_back_what_it_held():
    allowance = Allowance(10)
    with Held(allowance) as failed, ThreadPoolExecutor(1) as pool:
        failed.take(10)
        waiting = pool.submit(failed.take, 5)  # for what the model itself holds
        failed.__exit__(None, None, None)
        with pytest.raises(EndedError):
            waiting.result(20)
        with Held(allowance) as other:
            other.take(10)


def test_a_large_model_that_fails_in_between_does_not_wait_for_itself(tmp_path, monkeypatch):
    """The layer after the damaged one does not fit into memory beside those that were read before."""
    monkeypatch.setattr(pipeline, "_BYTES_AHEAD", 3000)
    good = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    bad = np.full_like(good, np.nan)
    layers = tuple(
        ConvLayer(f"conv{number}", good.shape, lambda weight=weight: weight, "float32")
        for number, weight in enumerate([good, bad, good, good])
    )
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        with pytest.raises(BadWeightsError, match="conv1"):
            pipeline.take_in(
                db._store, Weights("synthetic", None, layers), source="a", name="b", facts=ModelFacts,
                projector=Projection(db._index),
            )  # fmt: skip
        assert len(db.models()) == 0


_AGAIN = """
import sys
import cnnfilterdb

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1e3

with cnnfilterdb.create(sys.argv[2]) as db:
    for _ in range(4):
        report = db.ingest("files", [sys.argv[1]], allow_untrained=True, overwrite=True)
        assert len(report.done) == 12, report
        print(resident())
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status of Linux")
def test_memory_does_not_grow_with_the_number_of_models(tmp_path):
    """What threads free goes back to the system."""
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for number in range(12):
        channels = rng.integers(200, 850, 4).tolist()
        layers = {f"a{i}.weight": rng.standard_normal((n, n, 3, 3), np.float32) for i, n in enumerate(channels)}
        save_file(layers, tmp_path / "files" / f"m{number}.safetensors")
    command = [sys.executable, "-c", _AGAIN, tmp_path / "files", tmp_path / "db"]
    megabytes = [float(line) for line in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()]
    assert max(megabytes) < megabytes[0] + 100
