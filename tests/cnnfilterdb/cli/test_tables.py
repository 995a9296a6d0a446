"""Tables for people: aligned, as wide as the terminal at most, without control characters."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.cli import output
from cnnfilterdb.cli.output import Output, emit
from cnnfilterdb.cli.tables import Column, columns_of, number_column, table_text
from cnnfilterdb.core.reports import escaped


@settings(max_examples=50)
@given(st.text())
def test_no_control_character_is_printed(text):
    table, _ = table_text(columns_of(pa.table({text: [text, None]}), short=True), 40)
    assert all(char.isprintable() or char == "\n" for char in table)
    assert table.count("\n") == 4
    assert all(char.isprintable() for char in escaped(text))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.text("abcdefgh/", min_size=1, max_size=60), st.booleans()), min_size=1, max_size=12),
    st.integers(60, 200),
)
def test_tables_fit_the_terminal_and_lose_no_column(specification, width):
    columns = [Column(title[:15] if right else title, [title[:15]] * 2, right) for title, right in specification]
    text, remark = table_text(columns, width)
    assert max(map(len, text.splitlines())) <= width
    assert bool(remark) == (sum(column.width for column in columns) + 2 * (len(columns) - 1) > width)
    titles = " ".join(line for line in text.splitlines())
    assert all(column.title in titles for column in columns if column.right or column.width <= 12)


def test_decimals_align():
    assert number_column("x", [0.07, 0.232, 0.4]).cells == ["0.070", "0.232", "0.400"]
    assert number_column("x", [1.0, 20.0, None]).cells == ["1", "20", ""]
    assert number_column("x", [0.0021, 1234.5]).cells == ["0.0021", "1,234.5000"]
    assert number_column("x", [1e-9, 2e-9]).cells == ["1.000e-09", "2.000e-09"]


def test_lists_are_shortened_in_cells_of_a_terminal_only():
    table = pa.table({"counts": [list(range(5670)), [1, 2]], "facts": [{"a": 1.5}, None]})
    short = columns_of(table, short=True)
    assert short[0].cells == ["[0, 1, 2, … 5,670 values]", "[1, 2]"]
    assert short[1].cells == ["{a: 1.5}", ""]
    assert columns_of(table, short=False)[0].cells[0].endswith("5668, 5669]")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_a_terminal_shows_a_screenful_and_counts_the_rest(terminal, capsys):
    table = pa.table({"n": range(100)})
    emit(table, Output())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 43
    assert lines[-1] == "60 more rows; --rows 0 prints all"
    emit(table, Output(limit=0))
    assert len(capsys.readouterr().out.splitlines()) == 102


def test_a_pipe_gets_everything(capsys):
    emit(pa.table({"n": range(100), "list": [list(range(50))] * 100}), Output())
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 102
    assert "…" not in out
    emit(pa.table({"n": range(100)}), Output(limit=5))
    assert capsys.readouterr().out.splitlines()[-1] == "95 more rows; --rows 0 prints all"


def test_a_wide_table_is_split(terminal, capsys):
    table = pa.table({"model_id": ["pypi/a"]} | {f"column_{i}": [0.5] for i in range(20)})
    emit(table, Output())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.count("pypi/a") == 4
    assert "columns split into 4 parts to fit the terminal; -o FILE writes everything" in out


def test_of_a_large_answer_only_what_is_shown_is_read(sample_path, capsys, monkeypatch):
    """The rest is counted: tens of millions of filters would not fit into memory."""
    from cnnfilterdb.analysis.queries import QueryResult
    from cnnfilterdb.cli import cli

    read = []
    whole = QueryResult.to_arrow_table
    monkeypatch.setattr(QueryResult, "to_arrow_table", lambda self: read.append(whole(self)) or read[-1])
    query = "SELECT i, 'text' AS t FROM range(25000) AS r(i)"
    cli.main(["sql", query, "--rows", "2", "--db", str(sample_path)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["0  text", "1  text", "24,998 more rows; --rows 0 prints all"]
    assert [table.num_rows for table in read] == [10_001]
    cli.main(["sql", query, "--rows", "20000", "--db", str(sample_path)], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == "5,000 more rows; --rows 0 prints all"
    cli.main(["sql", query, "--db", str(sample_path)], standalone_mode=False)
    assert len(capsys.readouterr().out.splitlines()) == 25_002
