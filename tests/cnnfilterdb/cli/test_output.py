"""Every format contains every value in full."""

import csv
import io
import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.analysis.queries import QueryResult
from cnnfilterdb.cli.output import FORMATS, Output, emit, encoded, remark
from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.rows import write

TABLE = pa.table(
    {
        "text": ["a", None, "", 'quo"te, and\nbreak', "naïve"],
        "whole": pa.array([1, None, 2**53 + 1, -1, 0], pa.int64()),
        "single": pa.array([0.1, None, math.nan, 1e-30, -0.0], pa.float32()),
        "double": [0.1, None, 1e300, 5e-324, 1 / 3],
        "flag": [True, None, False, True, False],
        "list": [list(range(5670)), None, [], [1], [2, None]],
        "weights": pa.array([[0.1] * 9, None, [1.0] * 9, [0.5] * 9, [0.0] * 9], pa.list_(pa.float32(), 9)),
        "struct": [{"a": 1, "b": "x"}, None, {"a": 2, "b": None}, {"a": 3, "b": "y"}, {"a": 4, "b": "z"}],
        "map": pa.array([[("top1", 0.5)], None, [], [("k", 1.0)], [("k", 2.0)]], pa.map_(pa.string(), pa.float64())),
        "when": pa.array([datetime(2024, 1, 2, tzinfo=UTC)] * 4 + [None], pa.timestamp("us", "UTC")),
        "sum": pa.array([Decimal("12345678901234567890"), None, Decimal("1"), Decimal("2"), Decimal("3")]),
    }
)


def test_csv_has_lists_as_json_and_keeps_null_apart_from_empty():
    text = encoded(TABLE, "csv")
    lines = list(csv.reader(io.StringIO(text)))
    assert lines[0] == TABLE.column_names
    assert len(lines) == 6
    first, null, empty = (dict(zip(lines[0], line, strict=True)) for line in lines[1:4])
    assert json.loads(first["list"]) == list(range(5670))
    assert json.loads(first["weights"]) == [0.1] * 9
    assert json.loads(first["struct"]) == {"a": 1, "b": "x"}
    assert json.loads(first["map"]) == {"top1": 0.5}
    assert first["single"] == "0.1"
    assert first["sum"] == "12345678901234567890"
    assert set(null.values()) == {"", null["when"]}
    assert empty["whole"] == str(2**53 + 1)
    assert "..." not in text
    assert text.splitlines()[2].startswith(",,")  # NULL is empty, an empty text is quoted
    assert text.splitlines()[3].startswith('"",')


def test_a_terminal_breaks_remarks_between_words(monkeypatch, capsys):
    monkeypatch.setattr("cnnfilterdb.cli.output.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    remark("used 24 of 24 models, a\x1bb; not used: 3x3-864260c7-and-more")
    assert capsys.readouterr().out.splitlines() == [
        "used 24 of 24", r"models, a\x1bb; not", "used:", "3x3-864260c7-and-more",
    ]  # fmt: skip
    remark("")
    assert capsys.readouterr().out == "\n"


def test_json_keeps_null_and_every_value():
    rows = json.loads(encoded(TABLE, "json"))
    lines = [json.loads(line) for line in encoded(TABLE, "jsonl").splitlines()]
    assert rows == lines
    assert rows[0]["list"] == list(range(5670))
    assert rows[1]["text"] is None
    assert rows[2]["single"] is None  # JSON has no NaN
    assert rows[4]["list"] == [2, None]
    assert [row["whole"] for row in rows] == [1, None, 2**53 + 1, -1, 0]
    assert [row["double"] for row in rows] == TABLE["double"].to_pylist()
    assert json.loads(encoded(TABLE.slice(0, 0), "json")) == []


def test_parquet_and_arrow_are_the_table_itself():
    assert pq.read_table(pa.BufferReader(encoded(TABLE, "parquet"))).cast(TABLE.schema)["list"] == TABLE["list"]
    with pa.ipc.open_file(pa.BufferReader(encoded(TABLE, "arrow"))) as file:
        assert file.read_all().schema == TABLE.schema


@given(
    st.lists(st.tuples(st.text(), st.floats(allow_nan=False), st.lists(st.integers(-(2**63), 2**63 - 1))), min_size=1)
)
def test_text_formats_read_back(rows):
    text, number, numbers = map(list, zip(*rows, strict=True))
    table = pa.table({"text": text, "number": number, "list": pa.array(numbers, pa.list_(pa.int64()))})
    for style, delimiter in (("csv", ","), ("tsv", "\t")):
        read = list(csv.reader(io.StringIO(encoded(table, style), newline=""), delimiter=delimiter))[1:]
        assert [float(line[1]) for line in read] == number
        assert [json.loads(line[2]) for line in read] == numbers
        assert [line[0].removeprefix("'") for line in read] == [one.removeprefix("'") for one in text]
    found = [json.loads(line) for line in encoded(table, "jsonl").split("\n")[:-1]]
    assert [row["text"] for row in found] == text


@pytest.mark.parametrize("start", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\tx", "\rx"])
def test_spreadsheets_execute_nothing(start):
    (cell,) = list(csv.reader(io.StringIO(encoded(pa.table({"x": [start]}), "csv"), newline="")))[1]
    assert cell == "'" + start
    assert encoded(pa.table({"x": [-1.5]}), "csv") == "x\n-1.5\n"


@pytest.mark.parametrize(("style", "suffix"), [(style, suffix) for style in FORMATS for suffix in FORMATS[style]])
def test_the_suffix_selects_the_format(tmp_path, style, suffix):
    target = tmp_path / f"rows{suffix.upper()}"
    table = TABLE.select(["text", "whole"])
    emit(table, Output(output=target))
    expected = encoded(table, style)
    assert target.read_bytes() == (expected if isinstance(expected, bytes) else expected.encode())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("style", ["csv", "tsv", "json", "jsonl", "parquet", "arrow"])
def test_a_stream_is_written_as_it_comes_and_as_its_table_is(monkeypatch, style):
    monkeypatch.setattr("cnnfilterdb.core.rows._GROUP_ROWS", 3)
    table = pa.concat_tables([TABLE.select(["text", "double", "list"])] * 4).combine_chunks()
    target, written = io.BytesIO(), []

    def batches():
        for start in range(0, table.num_rows, 2):
            written.append(target.tell())
            yield from table.slice(start, 2).to_batches()

    write(pa.RecordBatchReader.from_batches(table.schema, batches()), style, target)
    if style in ("parquet", "arrow"):
        read = pq.read_table if style == "parquet" else lambda file: pa.ipc.open_file(file).read_all()
        assert read(pa.BufferReader(target.getvalue())).equals(table)
    else:
        assert target.getvalue() == encoded(table, style).encode()
    assert written == sorted(written)
    assert len(set(written)) > len(written) / 2  # no more than two batches wait


def test_groups_of_large_rows_are_small(monkeypatch):
    monkeypatch.setattr("cnnfilterdb.core.rows._GROUP_BYTES", 100_000)
    wide = pa.table({"x": [[1.5] * 5670] * 10})
    target = io.BytesIO()
    write(wide.to_reader(1), "parquet", target)
    file = pq.ParquetFile(target)
    assert file.num_row_groups == 4
    assert file.read() == wide


def test_a_large_answer_is_never_a_table(run, sample_path, tmp_path, monkeypatch):
    monkeypatch.setattr(QueryResult, "to_arrow_table", None)
    monkeypatch.setattr("cnnfilterdb.cli.listings._BATCH", 100)
    query = "SELECT * EXCLUDE (w) FROM filters_3x3 ORDER BY ALL"
    status, out, err = run("sql", query, "--format", "csv", "--db", sample_path)
    assert (status, err) == (0, "")
    assert run("sql", query, "-o", tmp_path / "x.csv", "--db", sample_path)[0] == 0
    assert (tmp_path / "x.csv").read_text() == out
    frame = pd.read_csv(io.StringIO(out), dtype={f"w{i}": np.float32 for i in range(9)})
    with cnnfilterdb.open(sample_path) as db:
        expected = db.filters().sort_values(["model_id", "layer", "out_channel", "in_channel"])
    pd.testing.assert_frame_equal(frame, expected.reset_index(drop=True)[frame.columns], check_dtype=False)


def test_a_stream_that_fails_leaves_no_file(tmp_path):
    def batches():
        yield from TABLE.select(["text"]).to_batches()
        raise DatabaseError("the files were replaced")

    target = tmp_path / "rows.csv"
    with pytest.raises(DatabaseError, match="replaced"):
        emit(pa.RecordBatchReader.from_batches(TABLE.select(["text"]).schema, batches()), Output(output=target))
    assert not list(tmp_path.iterdir())


def test_a_format_beats_the_suffix_and_frames_are_rows_too(tmp_path):
    target = tmp_path / "rows.weird"
    frame = pd.DataFrame({"x": [np.float32(0.1)], "w": [np.arange(3.0)]})
    emit(frame, Output("json", target))
    assert json.loads(target.read_text()) == [{"x": 0.1, "w": [0.0, 1.0, 2.0]}]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(DatabaseError, match="cannot be written: No such file"):
        emit(TABLE, Output(output=tmp_path / "none" / "x.csv"))
