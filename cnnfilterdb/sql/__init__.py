"""The SQL interface of a database: views and macros in plain DuckDB SQL, no Python in the query plan.

:func:`definitions` lists them one by one, so that a connection creates only what a query names; :func:`render` joins
them into ``init.sql``, which any DuckDB client can run::

    duckdb -init mydb/init.sql -c "FROM kl_shift(domain)"

The templates are the ``.sql`` files of this package. What they are filled with is the location, as a quoted literal,
and kernel sizes, which :mod:`cnnfilterdb.core.schema` has checked: no other text of a database gets into SQL. Bases
are read from the table of bases when a query runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from string import Template

from cnnfilterdb.core import paths
from cnnfilterdb.core.schema import ANNOTATED, PAPERS_LAYER, indexable, weight_columns
from cnnfilterdb.core.sqltext import literal
from cnnfilterdb.sql.documentation import comments

__all__ = [
    "COMMENTED",
    "LISTING",
    "NEEDS_FINGERPRINTS",
    "NEEDS_INDEX",
    "RELEASED_MODELS",
    "Definition",
    "Relations",
    "assembled",
    "definitions",
    "identifiers_in",
    "needed",
    "needs_fingerprints",
    "needs_index",
    "parquet_rows",
    "read_annotations",
    "reads_filters",
    "render",
    "without_wildcards",
]

#: Names that are answered from the index, besides the views of coefficients.
NEEDS_INDEX = frozenset(
    {
        "bases",
        "basis_rows",
        "current_bases",
        "fingerprints",
        "group_histograms",
        "group_layers",
        "group_probabilities",
        "group_totals",
        "histograms",
        "kl_shift",
        "kl_shift_components",
        "layer_sketches",
        "nearest_groups",
        "related_models",
        "shift_metrics",
        "spectra",
        "svd_coefficients",
    }
)

#: Names that are answered from the fingerprints, which take longer to compute than the rest of the index.
NEEDS_FINGERPRINTS = frozenset({"fingerprints", "layer_sketches", "related_models", "spectra"})

#: Words of queries that may look at any definition without naming it: those that list the catalog, and those that
#: compute the name of a table.
LISTING = frozenset(
    {
        "describe",
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_tables",
        "duckdb_views",
        "export",
        "information_schema",
        "pg_catalog",
        "query",
        "query_table",
        "show",
        "sqlite_master",
    }
)

#: Those of them that show comments.
COMMENTED = frozenset({"duckdb_columns", "duckdb_functions", "duckdb_views", "information_schema", "pg_catalog"})

# Names of the views and macros that read filters.
_OF_FILTERS = re.compile(r"(filters|coefficients|nearest)_\d+x\d+")

_STATEMENT = re.compile(r"^CREATE OR REPLACE (?:VIEW|MACRO) \"?(\w+)", re.MULTILINE)
_NO_NAMES = re.compile(r"--.*|'(?:[^']|'')*'")  # comments and texts


def needs_index(query: str) -> bool:
    """Whether the answer to a query comes from the index, which must be built first where it is missing.

    >>> needs_index("FROM KL_SHIFT(domain)"), needs_index("FROM coefficients_5x5"), needs_index("FROM models")
    (True, True, False)
    """
    return _of_index(identifiers_in(query))


def reads_filters(query: str) -> bool:
    """Whether a query names a view or macro that reads filters.

    >>> reads_filters("FROM nearest_3x3([1])"), reads_filters("FROM facts")
    (True, False)
    """
    return any(_OF_FILTERS.fullmatch(word) for word in identifiers_in(query))


def _of_index(words: Iterable[str]) -> bool:
    return any(word in NEEDS_INDEX or word.startswith("coefficients_") for word in words)


def needs_fingerprints(query: str) -> bool:
    """Whether the answer to a query comes from the fingerprints, which must be computed first where they are missing.

    >>> needs_fingerprints("FROM spectra"), needs_fingerprints("FROM kl_shift(domain)")
    (True, False)
    """
    return not NEEDS_FINGERPRINTS.isdisjoint(identifiers_in(query))


@dataclass(frozen=True)
class Definition:
    """A view or macro.

    Attributes:
        name: Its name.
        text: The statement that creates it, with the comment before it.
        kernel: The kernel size that it is about; None for what is the same for all.
    """

    name: str
    text: str
    kernel: str | None = None

    @cached_property
    def words(self) -> frozenset[str]:
        """The words in its statement."""
        return identifiers_in(_NO_NAMES.sub("", self.text))

    @property
    def needs_index(self) -> bool:
        """Whether it reads the index."""
        return _of_index(self.words)

    @cached_property
    def comments(self) -> str:
        """The ``COMMENT ON`` statements for it and its columns."""
        return comments(self.text)


def identifiers_in(text: str) -> frozenset[str]:
    """The names and keywords in a SQL text, in lower case.

    >>> sorted(identifiers_in('SELECT "A"."b" FROM kl_shift(domain)'))
    ['a', 'b', 'domain', 'from', 'kl_shift', 'select']
    """
    return frozenset(re.findall(r"\w+", text.lower()))


@cache
def _template(name: str) -> Template:
    return Template(files(__package__).joinpath(name).read_text(encoding="utf-8"))


@cache
def _split(text: str, kernel: str | None = None) -> tuple[Definition, ...]:
    """The definitions of a text, which ends each statement with a semicolon at the end of a line."""
    parts = re.split(r"(?<=;)\n", text)
    found = [(_STATEMENT.search(part), part) for part in parts if part.strip()]
    return tuple(Definition(match[1], part.strip("\n") + "\n", kernel) for match, part in found if match)


@cache
def _kernel_block(kernel: str, filters: str, key: str) -> str:
    columns = weight_columns(kernel)
    size = len(columns)
    text = _template("kernel.sql").substitute(
        kernel=kernel, filters=filters, key=key, columns=", ".join(columns), size=size
    )
    text += _template("nearest.sql").substitute(kernel=kernel, size=size)
    if not indexable(kernel):
        return text
    return text + _template("coefficients.sql").substitute(
        kernel=kernel, coefficients=", ".join(f"c[{i + 1}] AS c{i}" for i in range(size))
    )


def annotated_models(annotations: str | None) -> dict[str, str]:
    """The views of the annotations and of the models that they change.

    Args:
        annotations: The query that reads the annotations; None where there are none, and so no file of them.
    """
    if annotations is None:
        none = 'SELECT NULL::VARCHAR AS model_id, NULL::VARCHAR AS "column", NULL::VARCHAR AS value WHERE false'
        return {"annotations": none, "models": "FROM models_stored"}
    replaced = ",\n    ".join(
        f"CASE WHEN coalesce(map_contains(a.facts, '{column}'), false) "
        f"THEN a.facts['{column}'] ELSE m.{column} END AS {column}"
        for column in ANNOTATED
    )
    models = _template("annotated.sql").substitute(replaced=replaced).rstrip()
    return {"annotations": annotations, "models": models}


def read_annotations(file: str) -> str:
    """The query that reads a file of annotations, given as SQL."""
    text = ", ".join(f"'{column}': 'VARCHAR'" for column in ("model_id", "column", "value"))
    return (
        f"FROM read_csv({file}, columns = {{{text}}}, header = true, "
        "auto_detect = false, delim = ',', quote = '\"', escape = '\"')"
    )


#: The columns of a models table of a release as those of a folder, which has maps in place of lists.
RELEASED_MODELS = (
    "* REPLACE (map_from_entries(metrics) AS metrics, map_from_entries(original) AS original), NULL::VARCHAR[] AS files"
)

_FOLDER = {
    "models_columns": "*",
    "models": f"database_files('/{paths.models_pattern()}')",
    "layers": f"database_files('/{paths.layers_pattern()}')",
    # The file without rows comes first, so that its columns are those that every other file must have.
    "bases": f"[database_files('/{paths.basis_path(paths.EMPTY)}'), database_files('/{paths.bases_pattern()}')]",
    "histogram_files": f"[database_files('/{paths.histograms_path(paths.EMPTY, paths.EMPTY)}'), "
    # DuckDB refuses a pattern without matches, so each matches the folder of the file without rows, too.
    f"database_files(replace('/{paths.histograms_pattern('@')}', '@', CASE WHEN kernel IS NULL THEN '*' "
    f"ELSE '[{paths.EMPTY[0]}' || regexp_extract(kernel, '^[0-9]') || ']*' END))]",
    # Databases that were written before there were fingerprints have no such file before `cnnfilterdb index`.
    "fingerprints": f"database_files('/{paths.fingerprints_pattern()}')",
}
_RELEASE = {
    "models_columns": RELEASED_MODELS,
    "models": f"database_files('/{paths.shards_pattern('models')}')",
    "layers": f"database_files('/{paths.shards_pattern('layers')}')",
    "bases": f"database_files('/{paths.shards_pattern('bases')}')",
    "histogram_files": f"database_files('/{paths.shards_pattern('histograms')}')",
    "fingerprints": f"database_files('/{paths.shards_pattern('fingerprints')}')",
}


def _listed_places(listed: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The places of the small tables of which the files are listed."""

    def files(tables: Iterable[str]) -> str:
        names = (literal(f"/{without_wildcards(file)}") for table in tables for file in listed[table])
        return f"[{', '.join(names)}]::VARCHAR[]"

    every = "[database_files(file) FOR file IN {}]"
    found = {
        table: every.format(files([table]))
        for table in (paths.MODELS, paths.LAYERS, paths.FINGERPRINTS)
        if listed.get(table)
    }
    by_kernel: dict[str, list[str]] = {}
    for table in listed:
        kind, _, basis_id = table.partition("-")
        if kind == paths.HISTOGRAMS:
            by_kernel.setdefault(basis_id.partition("-")[0], []).append(table)
    if by_kernel:
        parts = [
            f"CASE WHEN coalesce(kernel = {literal(kernel)}, true) THEN {files(tables)} ELSE [] END"
            for kernel, tables in by_kernel.items()
        ]
        # By the first file DuckDB estimates the rows: were it the one without rows, a join would copy all histograms.
        parts.append(f"[{literal(f'/{paths.histograms_path(paths.EMPTY, paths.EMPTY)}')}]")
        found["histogram_files"] = every.format(f"flatten([{', '.join(parts)}])")
    return found


def without_wildcards(path: str) -> str:
    """A path as DuckDB reads it: wildcards in it are put in brackets, which makes them letters.

    >>> without_wildcards("/data/[old] what?")
    '/data/[[]old] what[?]'
    """
    return re.sub(r"([*?\[{])", r"[\1]", path)


# The same in SQL.
_FOLDER_PATH = r"regexp_replace(getvariable('cnnfilterdb_path'), '([*?\[{])', '[\1]', 'g')"


def _database_files(shards: Mapping[str, Sequence[str]] | None) -> str:
    """The files of a pattern: the pattern itself in the folder, or the shards of that table by name."""
    if shards is None:
        return f"{_FOLDER_PATH} || pattern"
    cases = " ".join(
        f"WHEN {literal(f'/{paths.shards_pattern(table)}')} THEN [{', '.join(literal(f'/{path}') for path in files)}]"
        for table, files in shards.items()
    )
    return f"[{_FOLDER_PATH} || file FOR file IN CASE pattern {cases} END]"


def _without_rows() -> str:
    """Macros for the time in which the views of a folder are created: its files are those without rows.

    DuckDB looks up the columns of a view or macro when it creates it. Every file has those of the file without rows,
    and looking for the files of hundreds of models a hundred times takes longer than all the rest.
    """
    stands_for = {
        paths.models_pattern(): paths.models_path(paths.EMPTY),
        paths.layers_pattern(): paths.layers_path(paths.EMPTY),
        paths.bases_pattern(): paths.basis_path(paths.EMPTY),
        paths.fingerprints_pattern(): paths.fingerprints_path(paths.EMPTY),
    }
    cases = " ".join(f"WHEN {literal(f'/{many}')} THEN {literal(f'/{file}')}" for many, file in stands_for.items())
    folder = paths.kernel_folder("")
    several, one = (
        literal(path.removeprefix(folder)) for path in (paths.filters_pattern(""), paths.empty_filters_path(""))
    )
    histograms = literal(f"/{paths.histograms_path(paths.EMPTY, paths.EMPTY)}")
    return f"""
-- While views are created, the files without rows stand for all: they have the same columns, and nothing is searched.
CREATE OR REPLACE MACRO database_files(pattern) AS
    {_FOLDER_PATH} || CASE pattern {cases} ELSE replace(pattern, {several}, {one}) END;
CREATE OR REPLACE MACRO histogram_files(kernel := NULL) AS database_files({histograms});
"""


def definitions(
    kernels: Iterable[str],
    *,
    annotated: bool = False,
    published: bool = False,
    shards: Mapping[str, Sequence[str]] | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, Definition]:
    """The views and macros of a database by name, in an order in which they can be created.

    They read the variable ``cnnfilterdb_path``, the location of the database.

    Args:
        kernels: Kernel sizes that have filters; of a folder 3x3 is always included.
        annotated: Whether the folder has annotations.
        published: Whether the tables are in the shards of a release (:mod:`cnnfilterdb.release.manifest`).
        shards: The files of each table of a release, relative to it. Without them every file in the folder of a table
            is read, including files that do not belong to the release.
        listed: The files of small tables of a folder, relative to it: name of the table -> its files, where that of
            histograms ends in the key of a basis. Patterns name the files of a table that is not listed, or has none.

    Raises:
        SelectionError: Not a kernel size of stored filters.
    """
    sizes = list(kernels) if published else list(dict.fromkeys(["3x3", *kernels]))
    places = (_RELEASE if published else _FOLDER) | _listed_places(listed or {})
    found = _split(
        _template("database_files.sql").substitute(
            database_files=_database_files(shards), histogram_files=places["histogram_files"]
        )
    )

    def rows(pattern: str) -> str:
        return parquet_rows(f"database_files('{pattern}')")

    relations = Relations(
        models_stored=f"SELECT {places['models_columns']} FROM {parquet_rows(places['models'])}",
        annotations=read_annotations(f"database_files('/{paths.ANNOTATIONS}')") if annotated else None,
        layers=parquet_rows(places["layers"]),
        bases=parquet_rows(places["bases"]),
        all_histograms=parquet_rows("histogram_files()"),
        histograms=parquet_rows("histogram_files(kernel)"),
        fingerprints=parquet_rows(places["fingerprints"]),
        filters={
            kernel: rows(
                "/" + (paths.shards_pattern(f"filters_{kernel}") if published else paths.filters_pattern(kernel))
            )
            for kernel in sizes
        },
    )
    return {one.name: one for one in found} | assembled(relations)


def parquet_rows(files: str) -> str:
    """The relation of some Parquet files, given as SQL."""
    return f"read_parquet({files}, hive_partitioning = false)"


@dataclass(frozen=True)
class Relations:
    """Where the tables of a database are, as SQL: what the templates are filled with.

    Attributes:
        models_stored: The query for the models table.
        annotations: The query for the annotations; None if there are none.
        layers: The relation of the layers, which may be of models that do not exist any more.
        bases: The relation of the bases.
        all_histograms: The relation of the histograms.
        histograms: The same, where the macro argument ``kernel`` may narrow it.
        fingerprints: The relation of the fingerprints.
        filters: The relation of the filters of each kernel size.
        key: The columns that say which model a row of these relations belongs to.
    """

    models_stored: str
    annotations: str | None
    layers: str
    bases: str
    all_histograms: str
    histograms: str
    fingerprints: str
    filters: Mapping[str, str]
    key: tuple[str, ...] = ("model_id",)


def assembled(relations: Relations) -> dict[str, Definition]:
    """The views and macros over some relations by name, in an order in which they can be created."""
    key = ", ".join(relations.key)
    more = ", ".join(relations.key[1:])
    views = _template("views.sql").substitute(
        papers_layer=PAPERS_LAYER,
        models_stored=relations.models_stored,
        layers=relations.layers,
        bases=relations.bases,
        all_histograms=relations.all_histograms,
        fingerprints=relations.fingerprints,
        key=key,
        own=f"* EXCLUDE ({more})" if more else "*",
        **annotated_models(relations.annotations),
    )
    macros = _template("macros.sql").substitute(histograms=relations.histograms)
    texts = [views, macros]
    texts += [
        _template(name).template
        for name in ("quality.sql", "descriptors.sql", "structure.sql", "search.sql", "lineage.sql")
    ]
    found = [one for text in texts for one in _split(text)]
    for kernel, filters in relations.filters.items():
        found += _split(_kernel_block(kernel, filters, key), kernel)
    return {one.name: one for one in found}


def needed(query: str, known: dict[str, Definition]) -> list[Definition]:
    """The definitions that a query may use, in an order in which they can be created.

    A definition is needed when its name occurs in the query, or in another one that is needed. A query that lists the
    catalog needs all.

    >>> known = definitions(["3x3"])
    >>> [one.name for one in needed("FROM models", known)]
    ['database_files', 'models_stored', 'models']
    >>> [one.name for one in needed("SELECT 1", known)], len(needed("SHOW TABLES", known)) == len(known)
    ([], True)
    """
    named = identifiers_in(query)
    if named & LISTING:
        return list(known.values())
    lower = {name.lower(): name for name in known}
    found: set[str] = set()
    pending = [lower[word] for word in named & lower.keys()]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += [lower[word] for word in known[name].words & lower.keys()]
    return [one for name, one in known.items() if name in found]


def render(
    location: str,
    kernels: Sequence[str],
    *,
    annotated: bool = False,
    published: bool = False,
    shards: Mapping[str, Sequence[str]] | None = None,
    mark: str | None = None,
) -> str:
    """The text of ``init.sql``: all definitions with their comments, and the location of the database.

    A client may set the variable ``cnnfilterdb_path`` beforehand to override the location, for instance when the folder
    has moved.

    Args:
        location: Folder of the database, or address of a release.
        kernels: As in :func:`definitions`.
        annotated: As in :func:`definitions`.
        published: As in :func:`definitions`.
        shards: As in :func:`definitions`.
        mark: A text in the manifest of this release and of no other. If the client runs in a folder with such a
            manifest, the files there are read, and not those at the location, which may not be published yet.
    """
    places = literal(location)
    if mark is not None:
        here = f"FROM read_text({literal(paths.MARKER)}) WHERE contains(content, {literal(mark)})"
        places = f"(SELECT '.' {here}), {places}"
    head = _template("head.sql").substitute(places=places)
    found = definitions(kernels, annotated=annotated, published=published, shards=shards)
    last: list[Definition] = []
    if not published:
        head += _without_rows()
        last = [found.pop(name) for name in ("database_files", "histogram_files")]
    everything = [*found.values(), *last]
    text = "".join(f"\n{one.text}" if one.text.startswith("--") else one.text for one in everything)
    return f"{head}{text}\n{''.join(one.comments for one in everything)}"
