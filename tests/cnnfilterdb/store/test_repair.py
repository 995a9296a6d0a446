"""Repair sets aside what is damaged, and nothing that was merely unreadable for a moment or replaced meanwhile."""

from __future__ import annotations

import errno
import os
import warnings

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.store import annotations, verify
from cnnfilterdb.store.folder import Store

#: Functions that read a file of a database whole.
READERS = (
    *((verify, name) for name in ("sha256", "sealed", "read_small")),
    *((annotations, name) for name in ("sha256", "read_small")),
)


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "copy.db"
    with cnnfilterdb.create(path) as db:
        for name in "ab":
            db.add(weights(name), name, domain=name, new_words=True)
        db.annotate("custom/a", task="Segmentation")
        db.index()
    return path


def weights(name):
    return {"c.weight": np.random.default_rng(ord(name)).normal(size=(6, 4, 3, 3)).astype(np.float32)}


@pytest.fixture
def calls(monkeypatch):
    """Lets one call of the readers fail: the place of the call in the order, or None; and the calls so far."""
    state = {"fail": None, "made": 0}

    def failing(reader):
        def read(*arguments):
            state["made"] += 1
            if state["made"] == state["fail"]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return reader(*arguments)

        return read

    for module, name in READERS:
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    return state


def counted(calls, fail, action):
    calls.update(fail=fail, made=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def test_an_error_of_the_disk_is_a_problem_and_sets_nothing_aside_once_it_has_passed(copy, calls):
    with cnnfilterdb.open(copy, read_only=False) as db:
        assert counted(calls, None, db.verify) == []
        last = calls["made"]
        assert last > 10
        contents = {file: file.read_bytes() for file in copy.rglob("*") if file.suffix in (".parquet", ".csv", ".json")}
        for fail in range(1, last + 1):
            found = counted(calls, fail, db.verify)
            assert all("\n" not in problem.message for problem in found)
            counted(calls, fail, db.repair)
            assert {file: file.read_bytes() for file in contents} == contents, fail
        assert not (copy / ".quarantine").exists()
        assert counted(calls, None, db.verify) == []


def test_a_model_that_is_replaced_while_it_is_found_damaged_stays(copy, monkeypatch):
    (file,) = copy.glob("filters/kernel=3x3/source=custom/custom-a-*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    verified = Store.verify

    def overtaken(self, *arguments, **options):
        found = verified(self, *arguments, **options)
        assert any(problem.path == file for problem in found)
        with cnnfilterdb.open(copy, read_only=False) as other:
            other.add(weights("a"), "a", domain="a", overwrite=True, new_words=True)
        return found

    with cnnfilterdb.open(copy, read_only=False) as db:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "verify", overtaken)
            assert db.repair() == []
        assert len(db.models()) == 2
        assert db.verify() == []
