"""Parts of a query: values and names quoted, and the user's own text checked.

A ``by`` or ``where`` is one expression, and confined SQL writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

import duckdb

from cnnfilterdb.core.errors import QueryError, SelectionError

__all__ = ["check_confined", "check_repeatable", "expression", "identifier", "is_constant", "literal", "uses_only"]

#: How a subquery may begin after a bracket.
_SUBQUERY = frozenset(
    {"desc", "describe", "from", "pivot", "select", "show", "summarize", "table", "unpivot", "values", "with"}
)

#: Functions that look at, or change, more than the row that they are given.
_FUNCTIONS = frozenset(
    {"columns", "current_setting", "currval", "getenv", "glob", "nextval", "pg_sleep", "query", "query_table",
     "setseed", "setval", "sleep_ms", "sniff_csv", "write_log"}
)  # fmt: skip
_PREFIXES = ("duckdb_", "json_execute", "parquet_", "pragma_", "read_")

#: Functions that give something else at each call.
_RANDOM = frozenset({"gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"})

#: Words of expressions that are about the row alone.
_PLAIN = frozenset(
    {"and", "between", "case", "else", "end", "false", "ilike", "in", "is", "like", "not", "null", "or", "then", "true",
     "when"}
)  # fmt: skip

#: Statements that write files; DuckDB also allows them inside queries.
_WRITING = frozenset({"attach", "copy", "export", "secret"})

_NAMES = (duckdb.token_type.identifier, duckdb.token_type.keyword)


def literal(text: str) -> str:
    """Quote a text as a SQL literal.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Quote a name as a SQL identifier.

    >>> identifier('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def expression(text: str, argument: str = "expression") -> str:
    """A user's SQL expression in brackets, ready to be put into a query.

    DuckDB parses it on its own first. So an error quotes what the user wrote and nothing else, and the text can
    neither end the bracket that it is put into nor begin a second statement. It works on the columns of a row:
    subqueries are refused, and functions that reach files, settings or the environment.

    Args:
        text: The expression.
        argument: Name of the argument that it was given for; messages begin with it.

    Raises:
        SelectionError: It is empty, is not SQL, or is not one such expression.

    >>> expression("domain || task", "by")
    '(domain || task)'
    >>> expression("domain =", "where")
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: where: 'domain =' is not a SQL expression: syntax error at or near "="
    >>> expression("domain, task", "by")
    Traceback (most recent call last):
    cnnfilterdb.SelectionError: by: 'domain, task' is 2 expressions; join them into one: domain || ' ' || task
    """
    if not isinstance(text, str):
        raise SelectionError(f"{argument}: {text!r} given; expected a SQL expression as text, such as 'domain'")
    if not text.strip():
        raise SelectionError(f"{argument}: empty; expected a SQL expression over columns, such as domain")
    what = f"{argument}: {text!r}"
    if text != text.encode("utf-8", "ignore").decode():
        raise SelectionError(f"{what} is not text that can be encoded as UTF-8")
    # Alone it must be an expression, and in brackets too: "1) + (2" is one there, "domain AS d" is one alone.
    bracketed = f"({text}\n)" if "--" in text else f"({text})"  # a comment must not swallow the closing bracket
    for part in (text, bracketed):
        try:
            duckdb.SQLExpression(part)
        except duckdb.Error as error:
            message = str(error).partition("\n")[0]
            if "only a single expression" in message:
                parts = _parts(text)
                joined = " || ' ' || ".join(parts)
                raise SelectionError(f"{what} is {len(parts)} expressions; join them into one: {joined}") from error
            raise SelectionError(f"{what} is not a SQL expression: {message.partition(': ')[2] or message}") from error
    tokens = list(_tokens(text))
    for (kind, token), (next_kind, following) in pairwise([*tokens, (duckdb.token_type.operator, "")]):
        name = _called(kind, token, following)
        if token == "(" and next_kind == duckdb.token_type.keyword and following.lower() in _SUBQUERY:
            raise SelectionError(f"{what} contains a subquery; an expression uses the columns of the row only")
        if name in _FUNCTIONS or name.startswith(_PREFIXES):
            raise SelectionError(f"{what} calls {name}(), which an expression over columns may not use")
        if token == ";" or (token.startswith(("$", "?")) and kind != duckdb.token_type.string_const):
            raise SelectionError(f"{what} contains {token}; expected one SQL expression without parameters")
    if tokens[-1][1] == "*":
        raise SelectionError(f"{what} names several columns; name one, such as domain")
    return bracketed


def check_repeatable(text: str, argument: str) -> None:
    """Refuse an expression that gives something else at each call: what depends on it is asked for more than once.

    Raises:
        SelectionError: It calls such a function.

    >>> check_repeatable("hash(model_id) % 2 = 0", "where")
    """
    for (kind, token), (_, following) in pairwise(_tokens(text)):
        if (name := _called(kind, token, following)) in _RANDOM:
            raise SelectionError(
                f"{argument}: {text!r} calls {name}(), which gives something else each time; leave out what is random, "
                "or choose by a hash: hash(model_id) % 2 = 0"
            )


def _called(kind: duckdb.token_type, token: str, following: str) -> str:
    """The function that a token calls, in lower case; empty if it calls none."""
    return token.strip('"').lower() if following == "(" and kind in _NAMES else ""


def is_constant(text: str) -> bool:
    """Whether an expression names no column, so that it has one value for all rows.

    >>> is_constant("1"), is_constant("'domain'"), is_constant("domain"), is_constant("name")
    (True, True, False, False)
    """
    return all(kind not in _NAMES or token.lower() in ("true", "false", "null") for kind, token in _tokens(text))


def uses_only(text: str, columns: Collection[str]) -> bool:
    """Whether an expression certainly uses some columns only, each row for itself.

    It is False for all but plain expressions: no window, type or other name of a table is looked into.

    >>> [uses_only(text, {"a"}) for text in ("lower(a) LIKE 'x%' AND a <> 'b'", "a || b", "rank() OVER (ORDER BY a)")]
    [True, False, False]
    """
    tokens = [*_tokens(text), (duckdb.token_type.operator, "")]
    return all(
        kind not in _NAMES
        or bool(_called(kind, token, following))
        or token.lower() in _PLAIN
        or token.strip('"').lower() in columns
        for (kind, token), (_, following) in pairwise(tokens)
    )


def check_confined(query: str) -> None:
    """Refuse statements that write files.

    Raises:
        QueryError: It contains one.

    >>> check_confined("SELECT 'copy' FROM models")
    >>> check_confined("COPY models TO 'models.csv'")
    Traceback (most recent call last):
    cnnfilterdb.QueryError: COPY: the database is open for reading only; open it without read_only=True
    """
    for kind, token in _tokens(query):
        if kind in _NAMES and token.lower() in _WRITING:
            raise QueryError(f"{token.upper()}: the database is open for reading only; open it without read_only=True")


def _tokens(text: str) -> Iterator[tuple[duckdb.token_type, str]]:
    """The tokens of a SQL text, without comments."""
    data = text.encode()  # DuckDB counts bytes
    starts = duckdb.tokenize(text)
    stops = [*(place for place, _ in starts), len(data)][1:]
    for (place, kind), stop in zip(starts, stops, strict=True):
        if kind != duckdb.token_type.comment:
            yield kind, data[place:stop].decode(errors="replace").strip()


def _parts(text: str) -> list[str]:
    """The parts of a list of expressions."""
    data, cuts, depth = text.encode(), [-1], 0
    for place, kind in duckdb.tokenize(text):
        if kind == duckdb.token_type.operator:
            token = data[place : place + 1]
            depth += (token in b"([{") - (token in b")]}")
            if token == b"," and not depth:
                cuts.append(place)
    cuts.append(len(data))
    return [data[start + 1 : stop].decode(errors="replace").strip() for start, stop in pairwise(cuts)]
