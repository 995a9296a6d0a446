"""What a user may write as `by` and `where`, and what confined SQL is refused."""

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.errors import QueryError, SelectionError
from cnnfilterdb.core.sqltext import check_confined, check_repeatable, expression, literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + 1", 2),
        ("a -- and a comment", 1),
        ("a /* and ( another */", 1),
        ("CASE WHEN a = 1 THEN 'x; y (SELECT 1)' ELSE '--' END", "x; y (SELECT 1)"),
        ("a IS DISTINCT FROM 2", True),
        ("extract(year FROM DATE '2026-01-01')", 2026),
        ("CAST(a AS VARCHAR) || '?'", "1?"),
        ("a::DOUBLE * 2", 2.0),
        ("b IN ('read_text', 'getenv')", False),
        ("list_sum(list_transform([1, 2], lambda x: x * 2))", 6),
        ('"a" BETWEEN 0 AND 3', True),
        ("b LIKE 'ü%'", True),
        ("(a, b) = (1, 'übung')", True),
        ("$$quoted; text$$", "quoted; text"),
        ("ä", 5),
    ],
)
def test_expressions_are_accepted(text, value):
    query = f"SELECT {expression(text, 'by')} FROM (SELECT 1 AS a, 'übung' AS b, 5 AS ä)"
    assert duckdb.connect().sql(query).fetchall() == [(value,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "by: empty"),
        (" \n", "by: empty"),
        (5, "by: 5 given; expected a SQL expression as text"),
        ("domain,task", r"is 2 expressions; join them into one: domain \|\| ' ' \|\| task"),
        ("f(a, b), c", r"is 2 expressions; join them into one: f\(a, b\) \|\| ' ' \|\| c"),
        ("domain =", "is not a SQL expression: syntax error"),
        ("domain AS d", "is not a SQL expression"),
        ("domain d", "is not a SQL expression"),
        ("1) FROM read_text('/etc/passwd') --", "is not a SQL expression"),
        ("1) + (2", "is not a SQL expression"),
        ("domain)) TO 'x.csv'; --", "is not a SQL expression"),
        ("true; COPY (SELECT 1) TO 'x.csv'", "is not a SQL expression"),
        ("domain /*", "is not a SQL expression"),
        ("domain;", "is not a SQL expression"),
        ("domain = $1", "without parameters"),
        ("domain = ?", "without parameters"),
        ("domain = '\ud800'", "not text that can be encoded"),
        ("domain = $name", "without parameters"),
        ("(SELECT content FROM read_text('/etc/passwd'))", "contains a subquery"),
        ("((FROM read_text('/etc/passwd')))", "contains a subquery"),
        ("( /* x */ select 1)", "contains a subquery"),
        ("EXISTS (FROM glob('/*'))", "contains a subquery"),
        ("domain IN (VALUES ('x'))", "contains a subquery"),
        ("domain IN (TABLE models)", "contains a subquery"),
        ("domain = ANY (SELECT 'x')", "contains a subquery"),
        ("ARRAY(SELECT 1)", "contains a subquery"),
        ("(WITH x AS (COPY (SELECT 1) TO 'x.csv') SELECT 1)", "contains a subquery"),
        ("getenv('HOME')", r"calls getenv\(\)"),
        ("\"getenv\" ('HOME')", r"calls getenv\(\)"),
        ("'HOME'.GETENV()", r"calls getenv\(\)"),
        ("system.main.current_setting('home_directory')", r"calls current_setting\(\)"),
        ("COLUMNS('.*')", r"calls columns\(\)"),
        ("*", "names several columns"),
        ("facts.*", "names several columns"),
    ],
)
def test_everything_else_is_refused_with_one_line(text, message):
    with pytest.raises(SelectionError, match=message) as caught:
        expression(text, "by")
    assert str(caught.value).startswith("by: ")


@given(st.text(max_size=30))
def test_any_text_stays_inside_its_bracket(text):
    """As a literal every text is one expression; as SQL it is refused, or it is one column of one row."""
    assert expression(literal(text).replace("\0", ""), "by")
    try:
        bracketed = expression(text, "by")
    except SelectionError:
        return
    (statement,) = duckdb.connect().extract_statements(f"SELECT 1, {bracketed}, 2")
    assert statement.type == duckdb.StatementType.SELECT


@pytest.mark.parametrize(
    "query",
    [
        "COPY models TO 'x.csv'",
        "copy (from models) to 'x.csv'",
        "SELECT 1; COPY models TO 'x.csv'",
        "WITH x AS (COPY models TO 'x.csv') FROM x",
        "EXPLAIN ANALYZE COPY models TO 'x.csv'",
        "/* */ EXPORT DATABASE 'x'",
        "ATTACH 'x.duckdb'",
        "CREATE PERSISTENT SECRET s (TYPE s3)",
    ],
)
def test_confined_sql_has_no_statement_that_writes(query):
    with pytest.raises(QueryError, match="the database is open for reading only"):
        check_confined(query)


@pytest.mark.parametrize("query", ["FROM models", "SELECT 'COPY', \"copy\" -- copy", "EXPLAIN SELECT 1", "", "SHOW"])
def test_other_confined_sql_is_not_refused(query):
    check_confined(query)


#: Functions that DuckDB calls volatile and that are the same for every row, or fail.
HARMLESS = {
    "current_connection_id", "current_query", "current_query_id", "current_transaction_id", "error", "stats",
    "vector_type",
}  # fmt: skip


def test_every_function_that_changes_by_itself_is_refused():
    query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    names = {name for (name,) in duckdb.connect().sql(query).fetchall()}
    assert "random" in names
    for name in names - HARMLESS:
        for text in (f"{name}()", f"1 + {name.upper()} ()", f'"{name}"(1)'):
            with pytest.raises(SelectionError, match=f"calls {name}"):
                check_repeatable(expression(text, "by"), "by")


@pytest.mark.parametrize("text", ["random", "'random()'", "hash(model_id) % 2 = 0", "random || uuid"])
def test_names_and_texts_are_not_calls(text):
    check_repeatable(text, "by")
