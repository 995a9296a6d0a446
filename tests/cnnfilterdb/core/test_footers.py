"""What is read off footers, against pyarrow's own reader of them; and footers with wrong bits, which end that one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.core.footers import row_groups, stated_rows
from cnnfilterdb.core.schema import BASES, HISTOGRAMS, LAYERS, MODELS

SCHEMA = pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.list_(pa.string()))])


def rows(count: int) -> pa.Table:
    return pa.table({"a": range(count), "b": [["x"]] * count}, schema=SCHEMA)


@pytest.mark.parametrize(
    ("pattern", "schema"),
    [
        (paths.models_pattern(), MODELS),
        (paths.layers_pattern(), LAYERS),
        (paths.histograms_pattern("*"), HISTOGRAMS),
        (paths.bases_pattern(), BASES),
    ],
)
def test_the_tables_of_a_database_are_read_this_way(pattern, schema):
    files = list(cnnfilterdb.example().path.glob(pattern))
    assert len(files) > 2
    assert {file: stated_rows(file, schema) for file in files} == {
        file: pq.read_metadata(file).num_rows for file in files
    }


@pytest.mark.parametrize("count", [0, 1, 63, 64, 127, 8191, 8192, 100_000])
@pytest.mark.parametrize("settings", [{}, {"compression": "zstd", "write_page_checksum": True}, {"row_group_size": 50}])
def test_numbers_of_every_length(tmp_path, count, settings):
    file = tmp_path / "a.parquet"
    pq.write_table(rows(count), file, **settings)
    # A footer of many row groups is longer than what is read of it.
    assert stated_rows(file, SCHEMA) == (None if settings.get("row_group_size") and count > 8192 else count)


def test_other_columns_and_other_files_are_unknown(tmp_path):
    pq.write_table(rows(3).select(["a"]), tmp_path / "columns.parquet")
    pq.write_table(rows(3), tmp_path / "old.parquet", version="1.0")
    (tmp_path / "text.parquet").write_text("PAR1" * 20)
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe.parquet")  # reading it would wait forever
    (tmp_path / "link.parquet").symlink_to("nothing")
    assert {file.name: stated_rows(file, SCHEMA) for file in tmp_path.iterdir()} == dict.fromkeys(
        (f"{name}.parquet" for name in ("columns", "old", "text", "empty", "folder", "pipe", "link")), None
    )


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_footer_is_unknown_or_states_what_pyarrow_reads(tmp_path_factory, place, byte):
    file: Path = tmp_path_factory.mktemp("damaged") / "a.parquet"
    pq.write_table(rows(300), file, compression="none")
    content = bytearray(file.read_bytes())
    content[-1 - place % len(content)] = byte
    file.write_bytes(content)
    found = stated_rows(file, SCHEMA)
    try:
        expected = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return  # whoever reads it finds out
    assert found in (None, expected)


def bounds(statistics):
    """The smallest and the largest value of a column, as Parquet stores numbers and text."""
    if statistics is None or not statistics.has_min_max:
        return None, None
    kinds = {"INT32": "<i4", "INT64": "<i8", "FLOAT": "<f4", "DOUBLE": "<f8"}
    kind = kinds.get(statistics.physical_type)
    values = (statistics.min_raw, statistics.max_raw)
    return tuple(np.array(value, kind).tobytes() if kind else value for value in values)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1) | st.none(), max_size=20),
    st.lists(st.text(max_size=40) | st.none(), min_size=20, max_size=20),
    st.integers(1, 7),
    st.booleans(),
    st.sampled_from(["zstd", "none"]),
)
def test_row_groups_are_those_that_pyarrow_finds(numbers, texts, size, statistics, compression):
    texts = texts[: len(numbers)]
    table = pa.table(
        {
            "number": pa.array(numbers, pa.int32()),
            "text": pa.array(texts, pa.string()),
            "real": pa.array([None if n is None else n / 3 for n in numbers], pa.float64()),
            "list": pa.array([None if n is None else [n, None] for n in numbers], pa.list_(pa.int64())),
            "structs": pa.array([{"yes": n is None, "parts": [t]} for n, t in zip(numbers, texts, strict=True)],
                                pa.struct({"yes": pa.bool_(), "parts": pa.list_(pa.string())})),
        }
    )  # fmt: skip
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=size, write_statistics=statistics, compression=compression)
    metadata = pq.read_metadata(pa.BufferReader(buffer.getvalue()))
    found = row_groups(metadata)
    assert [group.rows for group in found] == [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    for number, group in enumerate(found):
        assert len(group.chunks) == metadata.num_columns
        for place, chunk in enumerate(group.chunks):
            column = metadata.row_group(number).column(place)
            assert (chunk.values, chunk.unpacked) == (column.num_values, column.total_uncompressed_size)
            if column.physical_type != "BOOLEAN" and bounds(column.statistics) != (None, None):
                assert (chunk.lowest, chunk.highest) == bounds(column.statistics)


def test_bounds_that_are_not_exact_are_none():
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": ["x" * 9]}), buffer)
    content = buffer.getvalue().to_pybytes()
    # Fields 7 and 8 of Statistics, both true: in the compact protocol, a boolean is the type of its field.
    exactly = b"x" * 9 + b"\x11\x11\x00"
    assert exactly in content
    for exact, expected in ((b"\x11\x12", (None, b"x" * 9)), (b"\x12\x11", (b"x" * 9, None))):
        changed = content.replace(exactly, b"x" * 9 + exact + b"\x00")
        (group,) = row_groups(pq.read_metadata(pa.BufferReader(changed)))
        assert (group.chunks[0].lowest, group.chunks[0].highest) == expected


WRONG_BITS = """
import sys, warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import cnnfilterdb
from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.scan.scan import filter_groups, filters_metadata, may_hold, only_model
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.regular import check_size


def read(file):
    if file.parent.parent.name == "kernel=3x3":
        for group in filter_groups(file, filters_metadata(file, "3x3")):
            only_model(group)
            may_hold(group, [0])
    try:
        with pq.ParquetFile(file) as opened:
            check_size(opened, file)
    except ValueError:
        pass  # a name of a column that is not text


def ask(file):
    assert any(problem.path == file for problem in Store.open(root).verify())
    with cnnfilterdb.open(root, read_only=True) as db:
        for question in (lambda: db.kl_shift("name", basis="selection"),
                         lambda: db.nearest([[1, 0, -1]] * 3, where="layer = 0"),
                         lambda: db.filters(where="layer = 0", kernel="3x3")):
            try:
                question()
            except CnnFilterDbError:
                pass


warnings.simplefilter("ignore")
root, act, first, step = Path(sys.argv[1]), {"read": read, "ask": ask}[sys.argv[2]], *map(int, sys.argv[3:5])
changed = 0
for pattern in sys.argv[5:]:
    file = sorted(root.glob(pattern))[-1]
    content = file.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    for bit in range(8 * (len(content) - 8 - length) + first, 8 * (len(content) - 8), step):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        file.write_bytes(wrong)
        changed += 1
        try:
            act(file)
        except (OSError, pa.ArrowException, CnnFilterDbError):
            pass
    file.write_bytes(content)
print(changed)
"""

THOROUGH = pytest.mark.thorough


@pytest.mark.parametrize(
    ("act", "first", "step"),
    [("read", 0, 101), *(pytest.param("read", first, 31, marks=THOROUGH) for first in (3, 11, 19)),
     pytest.param("ask", 1, 2003, marks=THOROUGH)],
)  # fmt: skip
def test_no_wrong_bit_of_a_footer_ends_the_process(tmp_path, act, first, step):
    shutil.copytree(cnnfilterdb.example().path, tmp_path / "my.db")
    patterns = ["models/*.parquet", "layers/*.parquet", "filters/kernel=3x3/*/*.parquet", "index/3x3*/histograms/*"]
    command = [sys.executable, "-P", "-c", WRONG_BITS, str(tmp_path / "my.db"), act, str(first), str(step), *patterns]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50
