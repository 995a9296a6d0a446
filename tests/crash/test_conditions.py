"""Under other conditions than those of the person who wrote the database: no right to write, no home, few open files,
and several writers at the same time with a reader beside them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnfilterdb

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="rights and limits of processes"),
]
# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, without which root may write only what the rights permit
_CAPABILITIES, _PR_CAPBSET_DROP = range(4), 24

READ = """
import cnnfilterdb
with cnnfilterdb.open({path!r}) as db:
    print(len(db.models()), db.kl_shift("domain").shape, len(db.filters()), db.verify())
"""


def weights(seed):
    return {"c.weight": np.random.default_rng(seed).normal(size=(8, 4, 3, 3)).astype(np.float32)}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("conditions") / "a.db"
    with cnnfilterdb.create(path) as db:
        for number in range(3):
            db.add(weights(number), f"m{number}", domain=f"d{number % 2}", new_words=True)
        db.index()
    return path


@pytest.fixture
def read_only(database):
    """The database without the right to write into it."""
    everything = [database.parent, database, *database.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    yield database
    for path, mode in modes.items():
        path.chmod(mode)


def without_privileges():
    for capability in _CAPABILITIES:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def run(code, begin=None, **environment):
    line, options = [sys.executable, "-P", "-c", code], {"preexec_fn": begin, "env": os.environ | environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False, **options)


def tree(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


ANSWER = "3 (2, 2) 96 []\n"


def test_a_database_is_read_without_the_right_to_write_it_and_without_a_home(read_only):
    before = tree(read_only)
    home = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/proc/none", "NUMBA_CACHE_DIR": ""}
    done = run(READ.format(path=str(read_only)), without_privileges, **home)
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr
    assert tree(read_only) == before


@pytest.mark.parametrize(
    "call",
    ["db.add({{'c.weight': numpy.random.randn(8, 4, 3, 3)}}, 'z')", "db.remove('custom/m0')",
     "db.annotate('custom/m0', task='Segmentation')", "db.export({folder!r} + '/x.csv')"],
    ids=lambda call: call.partition("(")[0],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_one_line(read_only, call):
    before = tree(read_only)
    opened = f"import numpy, cnnfilterdb\ndb = cnnfilterdb.open({str(read_only)!r}, read_only=False)\n"
    done = run(opened + call.format(folder=str(read_only.parent)), without_privileges)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("cnnfilterdb.DatabaseError: ")
    assert "cannot be written: Permission denied; check the folder and its permissions" in said
    assert tree(read_only) == before


def test_few_open_files_are_enough(database):
    done = run(READ.format(path=str(database)), lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    assert (done.returncode, done.stdout) == (0, ANSWER), done.stderr


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_read_and_not_written(database, tmp_path, monkeypatch, code):
    """As on NFS without its lock daemon: no lock is taken for one that holds, and none is left behind."""
    path = shutil.copytree(database, tmp_path / "a.db")
    before = tree(path)

    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with cnnfilterdb.open(path) as db:
        assert len(db.models()) == 3
        assert db.kl_shift("domain").shape == (2, 2)
        assert db.verify() == []
        for write in (
            lambda: db.add(weights(9), "z"),
            lambda: db.remove("custom/m0"),
            lambda: db.annotate("custom/m0", task="Segmentation"),
            lambda: db.repair(),
        ):
            with pytest.raises(cnnfilterdb.DatabaseError, match=r"the file system cannot lock files .*doctor`"):
                write()
    assert {file: content for file, content in tree(path).items() if ".locks" not in file.parts} == {
        file: content for file, content in before.items() if ".locks" not in file.parts
    }


WRITE = """
import numpy as np, cnnfilterdb
from cnnfilterdb.store import folder
folder.LOCK_SECONDS = 600  # however busy the machine is
for number in (0, 1, 0):
    with cnnfilterdb.open({path!r}, read_only=False) as db:
        kernels = np.random.default_rng(number + 10 * {writer}).normal(size=(8, 4, 3, 3)).astype(np.float32)
        db.add({{"c.weight": kernels}}, f"w{writer}-{{number}}", overwrite=True)
with cnnfilterdb.open({path!r}, read_only=False) as db:
    db.index()
"""


def test_four_writers_and_a_reader_at_the_same_time(tmp_path):
    path = tmp_path / "a.db"
    with cnnfilterdb.create(path) as db:
        db.add(weights(0), "first", domain="d", new_words=True)
        db.index()
    lines = [[sys.executable, "-P", "-c", WRITE.format(path=str(path), writer=writer)] for writer in range(4)]
    writers = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        with cnnfilterdb.open(path) as db:
            seen = max(seen, len(db.models()))
            assert len(db.layers()) >= 1
            assert np.isfinite(db.kl_shift("model_id").to_numpy()).all()
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    assert seen >= 1
    with cnnfilterdb.open(path) as db:
        assert len(db.models()) == 9
        assert db.verify() == []
        for writer in range(4):
            for number in range(2):
                stored = db.filters(where=f"model_id = 'custom/w{writer}-{number}'")
                assert len(stored) == 32
    assert not Path(path, ".staging").exists() or not list(Path(path, ".staging").iterdir())
