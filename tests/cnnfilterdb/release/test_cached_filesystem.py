"""Files out of remembered blocks."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.errors import RemoteError, SelectionError
from cnnfilterdb.release.cached_filesystem import BLOCK, CachedFileSystem
from cnnfilterdb.release.remote import reaching

DATA = np.random.default_rng(0).bytes(5 * BLOCK + 123)


class Counting(MemoryFileSystem):
    protocol = "counted"
    cachable = False

    def __init__(self):
        super().__init__()
        self.reads = []

    def info(self, path, **options):
        return {"name": path, "size": len(DATA), "type": "file"}

    def open(self, path, mode="rb", **options):
        counting = self

        class File(io.BytesIO):
            def read(self, size=-1):
                counting.reads.append((self.tell(), size))
                return super().read(size)

        return File(DATA)


@given(st.lists(st.tuples(st.integers(0, len(DATA) + 10), st.integers(-1, 3 * BLOCK)), max_size=12), st.integers(1, 6))
def test_what_is_read_is_what_is_there(places, blocks):
    file = CachedFileSystem(Counting(), memory=blocks * BLOCK).open("file")
    for start, size in places:
        assert file.seek(start) == start
        expected = DATA[start:] if size < 0 else DATA[start : start + size]
        assert file.read(size) == expected
        assert file.tell() == start + len(expected)


def test_seeking_from_anywhere():
    file = CachedFileSystem(Counting()).open("file")
    assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
    assert file.read() == DATA[-10:]
    assert file.seek(-4, io.SEEK_CUR) == len(DATA) - 4
    assert file.readable()
    assert file.seekable()


def test_nothing_is_fetched_twice_while_it_is_remembered():
    source = Counting()
    blocks = CachedFileSystem(source)
    for _ in range(3):
        with blocks.open("file") as file:
            file.seek(BLOCK + 5)
            assert file.read(10) == DATA[BLOCK + 5 : BLOCK + 15]
    assert source.reads == [(BLOCK, BLOCK)]
    with blocks.open("file") as file:
        file.read()
    assert len(source.reads) == 2


def test_missing_neighbours_are_one_request():
    source = Counting()
    blocks = CachedFileSystem(source)
    blocks.fetch("file", 10, 4 * BLOCK)
    assert source.reads == [(0, 4 * BLOCK)]


def test_memory_is_bounded():
    source = Counting()
    blocks = CachedFileSystem(source, memory=2 * BLOCK)
    blocks.fetch("file", 0, len(DATA))
    assert len(blocks._blocks) == 2
    assert blocks.fetch("file", 0, 4) == DATA[:4]


def test_threads_get_the_same():
    blocks = CachedFileSystem(Counting(), memory=3 * BLOCK)
    starts = [int(start) for start in np.random.default_rng(1).integers(0, len(DATA) - 5000, 300)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: blocks.fetch("file", start, start + 5000), starts))
    assert found == [DATA[start : start + 5000] for start in starts]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "there: not found; check the address"),
        (PermissionError("Forbidden"), "there: access is refused"),
        (TimeoutError("timed\nout"), r"there: cannot be read \(timed out\); check the address and the network"),
        (KeyError(), r"there: cannot be read \(KeyError\)"),
    ],
)
def test_what_file_systems_raise_is_one_line(error, message):
    with pytest.raises(RemoteError, match=message), reaching("there"):
        raise error


def test_own_errors_stay_what_they_are():
    with pytest.raises(SelectionError), reaching("there"):
        raise SelectionError("mine")
