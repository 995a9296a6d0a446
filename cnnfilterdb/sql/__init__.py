"""The SQL face of a database: views and macros in plain DuckDB SQL, no Python in the query plan.

:func:`render` makes the text of ``init.sql``. A Python connection runs it, and so can any other DuckDB client::

    duckdb -init mydb/init.sql -c "FROM kl_shift(domain)"

Three kinds of text are joined: ``views.sql`` and ``macros.sql``, which are the same for every database, and one block
per kernel size, in which the columns and the current basis stand as constants, because that is what lets DuckDB project
filters as fast as it reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template

from cnnfilterdb import paths
from cnnfilterdb.schema import ANNOTATED, PAPERS_LAYER, weight_columns
from cnnfilterdb.stats import Basis

__all__ = ["NEEDS_INDEX", "identifier", "literal", "render"]

#: Names whose answers come from the index; a connection that sees one of them in a query builds a missing index first.
NEEDS_INDEX = frozenset(
    {
        "bases",
        "coefficients",
        "group_histograms",
        "group_probabilities",
        "histograms",
        "kl_shift",
        "kl_shift_components",
        "nearest_groups",
        "shift_metrics",
        "svd_coefficients",
    }
)


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


@cache
def _template(name: str) -> Template:
    return Template(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _sum(terms: Iterable[str]) -> str:
    return " + ".join(terms)


def _coefficients(basis: Basis, scaled: list[str]) -> list[str]:
    """Expressions of the coefficients c = V (s - mean) = V s - V mean, in double precision."""
    offsets = basis.components @ basis.mean
    return [
        _sum(f"{value!r} * {name}" for value, name in zip(row.tolist(), scaled, strict=True)) + f" - {offset!r}"
        for row, offset in zip(basis.components, offsets.tolist(), strict=True)
    ]


def _kernel_block(kernel: str, basis: tuple[str, Basis] | None, published: bool) -> str:
    columns = weight_columns(kernel)
    text = _template("kernel.sql").substitute(
        kernel=kernel,
        filters=f"/filters_{kernel}/*.parquet" if published else f"/{paths.filters_pattern(kernel)}",
        columns=", ".join(columns),
        size=len(columns),
    )
    text += _template("nearest.sql").substitute(kernel=kernel, size=len(columns))
    if basis is None:
        return text
    basis_id, fitted = basis
    greatest = ", ".join(f"abs({column})" for column in columns)
    # Divided as REAL, as every other part of the package scales; summed as DOUBLE.
    scaled = ", ".join(f"CAST({column} / peak AS DOUBLE) AS s{i}" for i, column in enumerate(columns))
    names = [f"s{i}" for i in range(len(columns))]
    coefficients = _coefficients(fitted, names)
    text += _template("coefficients.sql").substitute(
        kernel=kernel,
        basis_id=basis_id,
        peak=f"greatest({greatest})" if len(columns) > 1 else greatest,
        scaled=scaled,
        coefficients=",\n       ".join(f"{expression} AS c{i}" for i, expression in enumerate(coefficients)),
    )
    if kernel == "3x3":
        elements = [f"CAST(scale_filter(w)[{i + 1}] AS DOUBLE)" for i in range(len(columns))]
        text += _template("svd.sql").substitute(
            basis_id=basis_id, coefficients=",\n    ".join(_coefficients(fitted, elements))
        )
    return text


def _annotations(annotated: bool) -> dict[str, str]:
    """The views of the annotations, which have no file before there is one, and of the models that they change."""
    if not annotated:
        none = 'SELECT NULL::VARCHAR AS model_id, NULL::VARCHAR AS "column", NULL::VARCHAR AS value WHERE false'
        return {"annotations": none, "models": "FROM models_stored"}
    text = ", ".join(f"'{column}': 'VARCHAR'" for column in ("model_id", "column", "value"))
    replaced = ",\n    ".join(
        f"CASE WHEN coalesce(map_contains(a.facts, '{column}'), false) "
        f"THEN a.facts['{column}'] ELSE m.{column} END AS {column}"
        for column in ANNOTATED
    )
    return {
        "annotations": f"FROM read_csv(database_files('/{paths.ANNOTATIONS}'), columns = {{{text}}}, header = true, "
        "auto_detect = false, delim = ',', quote = '\"', escape = '\"')",
        "models": _template("annotated.sql").substitute(replaced=replaced).rstrip(),
    }


# Where the tables are in a folder and in a release, which has lists in place of maps.
_FOLDER = {
    "models_columns": "*",
    "bases": f"/{paths.bases_pattern()}",
    "histograms": f"/{paths.histograms_pattern('*')}",
}
_RELEASE = {
    "models_columns": "* REPLACE (map_from_entries(metrics) AS metrics, map_from_entries(original) AS original), "
    "NULL::VARCHAR[] AS files",
    "bases": "/bases/*.parquet",
    "histograms": "/histograms/*.parquet",
}


# Wildcards in the path of the folder are put in brackets, which makes them letters.
_FOLDER_PATH = r"regexp_replace(getvariable('cnnfilterdb_path'), '([*?\[{])', '[\1]', 'g')"


def _database_files(shards: Mapping[str, Sequence[str]] | None) -> str:
    """The files of a pattern: the pattern itself in the folder, or the shards of that table by name."""
    if shards is None:
        return f"{_FOLDER_PATH} || pattern"
    cases = " ".join(
        f"WHEN {literal(f'/{table}/*.parquet')} THEN [{', '.join(literal(f'/{path}') for path in paths)}]"
        for table, paths in shards.items()
    )
    return f"[{_FOLDER_PATH} || file FOR file IN CASE pattern {cases} END]"


def render(
    path: str,
    kernels: Iterable[str],
    bases: Mapping[str, tuple[str, Basis]],
    *,
    annotated: bool = False,
    published: bool = False,
    shards: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The text of ``init.sql``.

    Args:
        path: Folder of the database, or address of a release. A client may set the variable ``cnnfilterdb_path``
            beforehand to override it, for instance when the folder has moved.
        kernels: Kernel sizes whose views are made; of a folder 3x3 is always there.
        bases: The current basis of each kernel size that has one: kernel -> (basis id, basis).
        annotated: Whether the folder holds annotations.
        published: Whether the tables are in the shards of a release (:mod:`cnnfilterdb.release.manifest`).
        shards: The files of each table of a release, relative to it. Without them every file in the folder of a table
            is read, including files that do not belong to the release.
    """
    sizes = list(kernels) if published else list(dict.fromkeys(["3x3", *kernels]))
    places = _RELEASE if published else _FOLDER
    parts = [
        _template("views.sql").substitute(
            path=literal(path),
            papers_layer=PAPERS_LAYER,
            database_files=_database_files(shards),
            **places,
            **_annotations(annotated),
        )
    ]
    parts += [_template(name).template for name in ("macros.sql", "quality.sql", "descriptors.sql", "search.sql")]
    parts += [_kernel_block(kernel, bases.get(kernel), published) for kernel in sizes]
    return "\n".join(parts)
