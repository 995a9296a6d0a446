"""The one way to write a file: whole or not at all, one line for every failure, nothing left behind."""

import errno
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.durable import GrowingFile, replacing, write_text, writing
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.store.seals import sealed, write_sealed


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk is full; free some space"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_is_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, call, code, message, there):
    target = tmp_path / "file"
    if there:
        target.write_text("old")
    original = getattr(os, call)

    def failing(*args, **kwargs):
        if call != "open" or str(args[0]) == str(tmp_path):
            raise OSError(code, "injected")
        return original(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(DatabaseError) as caught:
        write_text(target, "new")
    monkeypatch.undo()
    assert str(caught.value).startswith(f"{target}: {message}")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["file"] if there or call == "open" else [])
    if there and call != "open":  # the folder is flushed last, when the new name is there
        assert target.read_text() == "old"


def test_an_error_in_the_block_passes_through(tmp_path):
    def fail():
        with replacing(tmp_path / "file") as part:
            part.write_text("half")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_refused_and_a_missing_one_is_named(tmp_path):
    with pytest.raises(DatabaseError, match="is a folder; expected the name of a file"):
        write_text(tmp_path, "x")
    with pytest.raises(DatabaseError, match="No such file or directory"):
        write_text(tmp_path / "absent" / "file", "x")


KILLED = """
import os, sys
from pathlib import Path
from cnnfilterdb.core.durable import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os._exit(9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    target = tmp_path / "file"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "other", "x")
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(target) as part:
        part.write_text("outer")
        write_text(target, "inner")  # a living process is left alone
    assert target.read_text() == "outer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_line_ends_are_kept(tmp_path):
    write_text(tmp_path / "file", "a\r\nb\n")
    assert (tmp_path / "file").read_bytes() == b"a\r\nb\n"


def test_an_error_without_a_number_keeps_its_first_line(tmp_path):
    with pytest.raises(DatabaseError, match="cannot be written: first; check"), writing(tmp_path):
        raise OSError("first\nsecond")


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_every_flipped_and_every_missing_byte_breaks_a_seal(tmp_path, rows):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {i}" for i in range(rows)], "number": pa.array(range(rows), pa.int64())})
    write_sealed(table, path)
    assert sealed(path) is True
    assert pq.read_table(path).equals(table)
    assert pq.read_schema(path).equals(table.schema)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        assert sealed(path) is not True
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert sealed(path) is not True


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_other_bytes_have_no_seal(tmp_path_factory, before, after):
    path: Path = tmp_path_factory.mktemp("seal") / "x"
    for content in (before, before + b"cnnfilterdb_sha256" + after):
        path.write_bytes(content)
        assert sealed(path) is not True


@pytest.mark.parametrize("parts", [[], [b""], [b"a"], [b"a" * 3_000_000, b"", b"b" * 40_000_000, b"c"]])
def test_the_hash_of_a_growing_file_is_that_of_its_content(tmp_path, parts):
    path = tmp_path / "file"
    with ThreadPoolExecutor(1) as aside, path.open("wb", buffering=0) as file:
        growing = GrowingFile(path, aside)
        for part in parts:
            file.write(part)
            growing.grown()
        assert growing.sha256() == hashlib.sha256(b"".join(parts)).hexdigest()
        growing.close()


def test_what_reading_a_growing_file_fails_with_is_raised_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(GrowingFile._STEP))

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken, raising=False)
    with ThreadPoolExecutor(1) as aside:
        growing = GrowingFile(path, aside)
        growing.grown()
        with path.open("ab") as file:
            file.write(b"more")
        growing.grown()
        with pytest.raises(OSError, match="Input/output"):
            growing.sha256()
        growing.close()
