"""Threads and memory that are asked for are what is used."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import DatabaseError, SelectionError
from cnnfilterdb.core.resources import Resources, parse_size
from cnnfilterdb.scan.ordered import PIECE, RowCursor
from cnnfilterdb.store import fingerprints


@pytest.mark.parametrize(
    ("text", "expected"),
    [("400MB", 4e8), ("1.5 GB", 1.5e9), ("2GiB", 2 * 2**30), ("700k", 7e5), ("5 B", 5), (123, 123), ("1t", 1e12)],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1GB", "1 XB", "1,5GB", True, None, "1GBB"])
def test_what_is_no_size(text):
    with pytest.raises(SelectionError, match="expected a size such as 400MB"):
        parse_size(text)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_threads(threads):
    with pytest.raises(SelectionError, match=r"threads: .* given; expected a whole number of at least 1"):
        Resources.of(threads=threads)


@pytest.mark.parametrize("read_only", [True, False, None])
def test_duckdb_has_the_threads_and_the_memory_of_the_database(sample_path, read_only):
    with cnnfilterdb.open(sample_path, read_only=read_only, threads=1, memory="1GB") as db:
        query = "SELECT current_setting('threads'), current_setting('memory_limit')"
        assert db.sql(query).fetchall() == [(1, "686.6 MiB")]
        assert db.storage.resources.threads == 1


def test_a_query_beyond_the_memory_is_refused_with_a_remedy(sample_path):
    with cnnfilterdb.open(sample_path, memory="400MB") as db:
        query = "SELECT list(i) FROM range(100_000_000) t(i)"
        with pytest.raises(DatabaseError, match=r"needs more memory \(.*\); give more with memory=, or fewer threads="):
            db.sql(query).fetchall()


@pytest.mark.parametrize("work", ["verify", "index"])
def test_a_large_file_is_read_a_piece_at_a_time(work, tmp_path, monkeypatch):
    weight = np.random.default_rng(0).normal(size=(16, 65536, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "a.db", threads=1) as db:
        db.add({"a.weight": weight}, "large")
        db._index.build(fingerprints=False)
        held, take = [], RowCursor.take

        def counted(self, count):
            held.append(pa.total_allocated_bytes())
            return take(self, count)

        monkeypatch.setattr(RowCursor, "take", counted)
        before = pa.total_allocated_bytes()
        assert not getattr(db, work)()
    assert len(held) == weight.size // 9 // PIECE
    assert max(held) - before < weight.nbytes / 2


def test_the_largest_layers_are_in_memory_one_after_another(sample_path, tmp_path, monkeypatch):
    path = shutil.copytree(sample_path, tmp_path / "a.db")
    for file in (path / "index/fingerprints").glob("custom-*"):
        file.unlink()
    monkeypatch.setattr(fingerprints, "_LAYERS", 1)
    running, most, table = [], [], fingerprints._table

    def counted(model):
        running.append(model)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(model)
        return table(model)

    monkeypatch.setattr(fingerprints, "_table", counted)
    with cnnfilterdb.open(path, read_only=False, threads=4) as db:
        db.index()
        assert db.verify() == []
    assert most == [1] * 5


INDEX = """
import re, sys
from cnnfilterdb.cli import main
sys.argv = ["cnnfilterdb", "index", "--memory", "400MB", "--quiet", "--db", sys.argv[1]]
main()
status = open("/proc/self/status").read()
peak, code = (int(re.search(rf"{name}:\\s+(\\d+)", status)[1]) for name in ("VmHWM", "RssFile"))
print(1024 * (peak - code))
"""


FREED = """
import numpy as np
from cnnfilterdb.core.resources import release_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [np.ones(10_000) for _ in range(2_000)]  # small enough to be taken from what the allocator keeps
last = blocks[-1]
del blocks
before = resident()
release_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the allocator of glibc")
def test_freed_memory_is_returned():
    done = subprocess.run([sys.executable, "-P", "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from Linux")
def test_memory_is_kept_while_an_index_is_built(tmp_path):
    """Ten row groups of 3x3 kernels. Compiling takes more memory, once: the index of a small model comes first.

    How much of the libraries is mapped, 130 MB or more, depends on what the system holds in its cache.
    """
    rng = np.random.default_rng(0)
    large = rng.normal(size=(5, 512, 512, 3, 3)).astype(np.float32)
    for name, models in ("small", [rng.normal(size=(8, 8, 3, 3))]), ("large", large):
        with cnnfilterdb.create(tmp_path / name) as db:
            for number, weight in enumerate(models):
                db.add({"conv.weight": weight.astype(np.float32)}, f"model-{number}")
    peaks = []
    for name in ("small", "large"):
        line = [sys.executable, "-P", "-c", INDEX, str(tmp_path / name)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < 400_000_000 - 130_000_000
