"""The number of rows that is read off the beginning of a footer, against pyarrow's own reader of footers."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.core.footers import stated_rows
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
