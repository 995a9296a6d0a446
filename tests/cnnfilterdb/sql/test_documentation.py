"""Every view, macro, argument and column is described, once, and DuckDB shows the description."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import cnnfilterdb
from cnnfilterdb.core import schema
from cnnfilterdb.sql import definitions
from cnnfilterdb.sql.documentation import _words, column_meaning, documentation

ALL = {name: documentation(one.text) for name, one in definitions(["3x3", "5x5"], annotated=True).items()}


@pytest.fixture(scope="module")
def example():
    with cnnfilterdb.example() as db:
        yield db


@pytest.fixture(scope="module")
def plain(sample_path):
    """A client that has run init.sql and knows nothing of this package."""
    connection = duckdb.connect()
    connection.execute((sample_path / "init.sql").read_text(encoding="utf-8"))
    return connection


@pytest.mark.parametrize("name", ALL)
def test_each_has_a_description_a_true_example_and_words_for_all_its_arguments_and_columns(name, example):
    one = ALL[name]
    assert one.name == name
    assert len(one.description) > 10
    assert "CREATE" not in one.description
    assert re.search(rf"\b{name}\b", one.example)
    assert all(one.argument_meaning(argument) for argument in one.arguments)
    found = example.sql(one.example)
    assert found.to_arrow_table().num_rows or name in (
        "annotations",
        "shared_models",
        "shared_layers",
        "related_models",
    )
    if one.kind == "view":
        assert all(column_meaning(name, column)[0] for column in example.sql(f"FROM {name} LIMIT 0").columns)


def test_every_column_of_a_table_macro_is_described(example):
    calls = {
        name: f"{name}(domain, 'natural')" if "group" in one.arguments else f"{name}(domain)"
        for name, one in ALL.items()
        if one.kind == "table macro" and not name.startswith("nearest_3") and not name.startswith("nearest_5")
    }
    calls["nearest_3x3"] = "nearest_3x3(range(9))"
    for name, call in calls.items():
        for column in example.sql(f"FROM {call} LIMIT 0").columns:
            assert column_meaning(name, column)[0], (name, column)


def test_no_word_describes_what_is_not_there(example):
    words = _words()
    arguments = {argument for one in ALL.values() for argument in one.arguments}
    assert set(words["arguments"]) <= arguments
    for name in words.keys() - {"arguments", "columns"}:
        one = ALL[name]
        there = set(one.arguments)
        if one.kind != "macro":
            call = (
                {"view": name, "table macro": f"{name}(domain)"}[one.kind] if name != "nearest_groups" else one.example
            )
            there |= set(example.sql(call if call.startswith("SELECT") else f"FROM {call} LIMIT 0").columns) | {
                "directed"
            }
        assert set(words[name]) <= there, name


def test_every_number_of_a_table_has_a_unit_and_every_unit_a_column():
    tables = [
        schema.MODELS,
        schema.LAYERS,
        schema.BASES,
        schema.HISTOGRAMS,
        schema.FINGERPRINTS,
        schema.filter_schema("1x1"),
    ]
    for table in tables:
        for field in table:
            kind = field.type
            while pa.types.is_list(kind):
                kind = kind.value_type
            numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
            assert numeric == (field.name in schema.UNITS) or pa.types.is_map(kind), field.name
    assert set(schema.UNITS) <= {name for table in tables for name in table.names}


def test_any_client_shows_the_comments(plain):
    views = dict(plain.sql("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall())
    macros = dict(plain.sql("SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal").fetchall())
    assert views["layers"] == ALL["layers"].description
    assert macros["kl_shift"] == ALL["kl_shift"].description
    assert "7x7" in macros["nearest_7x7"]
    assert None not in {**views, **macros}.values()
    columns = plain.sql("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal").fetchall()
    missing = {table for table, _, comment in columns if comment is None}
    assert all(re.match(r"(filters|coefficients)_\d", table) for table in missing)
    assert ("facts", "stride_h", "vertical stride [pixels]") in columns


def test_python_shows_the_same_comments_and_makes_them_only_when_asked(sample_path, plain):
    query = "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
    with cnnfilterdb.open(sample_path) as db:
        db.sql("FROM models").fetchall()
        assert db._views._commented == set()
        assert db.sql(query).fetchall() == plain.sql(query).fetchall()
        db.sql("FROM models").fetchall()
        assert db.sql(query).fetchall() == plain.sql(query).fetchall()


def test_the_templates_have_no_other_tag():
    tags = set()
    for path in (Path(cnnfilterdb.__file__).parent / "sql").glob("*.sql"):
        tags |= set(re.findall(r"^-- ([A-Z][a-z]+): ", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert tags == {"Source", "Example"}
