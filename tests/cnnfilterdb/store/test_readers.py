"""Readers beside writers: every answer is of one state, nothing fails because somebody writes, no lock is taken."""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.errors import CorruptError, DatabaseError, SelectionError
from cnnfilterdb.scan import steady as steady_module
from cnnfilterdb.scan.steady import steady

WRITER = """
    import sys, time, warnings
    import numpy as np
    import cnnfilterdb

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    db = cnnfilterdb.open(sys.argv[1])
    end = time.monotonic() + float(sys.argv[2])
    number = 0
    while time.monotonic() < end:
        number += 1
        size = 3 if number % 2 else 4
        weights = {f"{i}.weight": rng.normal(size=(size, size, 3, 3)).astype(np.float32) for i in range(size)}
        db.add(weights, "changing", domain="a", overwrite=True)
        if number % 3 == 0:
            db.remove("custom/changing")
        if number % 4 == 0:
            db.index(refit=True)
    print(number)
"""


def test_a_reader_beside_a_writer_sees_one_state_at_a_time(tmp_path):
    rng = np.random.default_rng(1)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        for number in range(3):
            weights = {"a.weight": rng.normal(size=(8, 4, 3, 3)).astype(np.float32)}
            db.add(weights, f"m{number}", domain="ab"[number % 2])
        db.index()
    command = [sys.executable, "-P", "-c", textwrap.dedent(WRITER), str(tmp_path / "a.db"), "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        asked, seen = 0, set()
        with cnnfilterdb.open(tmp_path / "a.db", read_only=True) as reader:
            while writer.poll() is None:
                models = reader.models()
                assert set(models["model_id"]) >= {"custom/m0", "custom/m1", "custom/m2"}
                sizes = reader.layers(where="name = 'changing'").groupby("layer_name").size()
                assert len(sizes) in (0, 3, 4)
                filters = reader.filters(where="name = 'changing'")
                assert len(filters) in (0, 27, 64)
                shift = reader.groups("domain")
                assert shift.filters[1] == 32
                assert shift.filters[0] in (64, 64 + 27, 64 + 64)
                counted = shift.counts.sum(axis=(1, 2)) + shift.outside  # a frozen basis has a range
                np.testing.assert_array_equal(counted, 9 * shift.filters)
                seen.add(int(shift.filters[0]))
                asked += 1
        out, err = writer.communicate()
    assert (writer.returncode, err) == (0, "")
    assert int(out) >= 1
    assert asked >= 1
    with cnnfilterdb.open(tmp_path / "a.db") as db:
        assert db.verify() == []


@pytest.fixture
def states(monkeypatch):
    monkeypatch.setattr(steady_module, "_PAUSE", 0)
    monkeypatch.setattr(steady_module, "SECONDS", 0.2)


def test_a_question_is_repeated_until_what_it_read_has_stayed(states):
    numbers = itertools.count()
    current = {"a": 0}
    answers = iter([1, 1, 0, 0])

    def ask():
        current["a"] += next(answers)
        return next(numbers)

    assert steady(lambda: dict(current), ask) == 2


def test_models_that_are_added_do_not_disturb_and_other_errors_pass_through(states):
    current = {"a": 0}
    assert steady(lambda: dict(current), lambda: current.setdefault("b", 1)) == 1
    calls = []

    def ask(error):
        calls.append(error)
        raise error

    with pytest.raises(SelectionError):
        steady(lambda: current, lambda: ask(SelectionError("mine")))
    assert len(calls) == 1
    with pytest.raises(CorruptError, match="gone"):
        steady(lambda: current, lambda: ask(CorruptError("gone")))
    assert len(calls) > 2
    with pytest.raises(DatabaseError, match="other processes replaced"):
        steady(lambda: {"a": time.monotonic()}, lambda: 1)


@pytest.mark.parametrize("table", ["models", "layers", "filters/kernel=3x3/source=custom", "index/3x3-x/histograms"])
def test_a_named_pipe_or_a_link_in_place_of_a_file_is_refused(sample_path, tmp_path, table):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    folder = next(path.glob("index/3x3-*")) / "histograms" if table.startswith("index") else path / table
    file = sorted(folder.glob("custom-*"))[0]
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with cnnfilterdb.open(path, read_only=True) as db, pytest.raises(DatabaseError, match="not a regular file"):
        db.models()
    file.unlink()
    (tmp_path / "outside").write_bytes(content)
    file.symlink_to(tmp_path / "outside")
    with cnnfilterdb.open(path, read_only=True) as db, pytest.raises(DatabaseError, match="a link that leads out of"):
        db.models()
