"""Hostile releases: each case damages a copy of a sound one, and a child process opens it, asks it and pulls it.

Run as a script it prints a line of JSON for each case::

    python hostile.py RELEASE WORK [NAME ...]

The files of a case are consistent with its manifest wherever the case is not about hashes: only checks of the content
can find what is wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_harness import copied, in_child, print_outcomes

MARKER = "cnnfilterdb.json"
SQL = "x; COPY (SELECT 1) TO 'evil.csv'; --"


@dataclass(frozen=True)
class Case:
    """A hostile release.

    ``change`` damages the folder. Then ``fails`` names what must fail: "pull", "ask" or both. ``partial`` pulls take
    over the models that are sound.
    """

    change: Callable[[Path], None]
    fails: tuple[str, ...] = ("pull",)
    partial: bool = False


CASES: dict[str, Case] = {}


def case(name: str, fails: tuple[str, ...] = ("pull",), *, partial: bool = False) -> Callable[..., Any]:
    """Register what a decorated function does to a folder."""

    def register(change: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in CASES, name
        CASES[name] = Case(change, fails, partial)
        return change

    return register


# ------------------------------------------------------------------------------------------------------------- tools


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARKER).read_text())


def save(folder: Path, known: Any) -> None:
    (folder / MARKER).write_text(json.dumps(known))


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change entries of the manifest; ``...`` removes one."""

    def change(folder: Path) -> None:
        known = manifest_of(folder)
        for key, value in changes.items():
            if value is ...:
                known.pop(key)
            else:
                known[key] = value
        save(folder, known)

    return change


def edit_file(**changes: Any) -> Callable[[Path], None]:
    """Change the manifest's first file; ``...`` removes an entry."""

    def change(folder: Path) -> None:
        known = manifest_of(folder)
        for key, value in changes.items():
            if value is ...:
                known["files"][0].pop(key)
            else:
                known["files"][0][key] = value
        save(folder, known)

    return change


def seal(folder: Path, path: str, rows: int | None = None) -> None:
    """Let the manifest describe a file as it is now."""
    known = manifest_of(folder)
    data = (folder / path).read_bytes()
    for file in known["files"]:
        if file["path"] == path:
            file |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
            if rows is not None:
                file["rows"] = rows
    save(folder, known)


def rewrite(folder: Path, table: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a table again as its first shard, changed, with a manifest that agrees."""
    path = f"{table}/00000.parquet"
    changed = change(pq.ParquetFile(folder / path).read())
    pq.write_table(changed, folder / path, **options)
    seal(folder, path, changed.num_rows)


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """A table with one cell replaced."""
    number = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))


def cell(table: str, column: str, value: Any, row: int = 0) -> Callable[[Path], None]:
    """Replace a cell, by a value or by a function of the one that is there."""

    def change(folder: Path) -> None:
        def changed(rows: pa.Table) -> pa.Table:
            return put(rows, column, row, value(rows[column][row].as_py()) if callable(value) else value)

        rewrite(folder, table, changed)

    return change


def layer_cell(column: str, value: Any) -> Callable[[Path], None]:
    """Replace a cell of the first stored 3x3 layer."""

    def change(folder: Path) -> None:
        def changed(rows: pa.Table) -> pa.Table:
            kernels, stored = rows["kernel"].to_pylist(), rows["stored"].to_pylist()
            row = next(i for i in range(len(kernels)) if kernels[i] == "3x3" and stored[i])
            return put(rows, column, row, value(rows[column][row].as_py()) if callable(value) else value)

        rewrite(folder, "layers", changed)

    return change


# --------------------------------------------------------------------------------------------------------- manifests

for _name, _text in {
    "empty": b"",
    "binary": bytes(range(256)),
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list": b"[]",
    "a text": b'"release"',
    "a number": b"1e999",
    "null": b"null",
    "a huge number": b'{"layout": "release", "format_version": ' + b"9" * 10_000 + b"}",
    "large": b'{"layout": "release", "x": "' + b"a" * (33 << 20) + b'"}',
}.items():

    @case(f"manifest: {_name}")
    def _(folder: Path, text: bytes = _text) -> None:
        (folder / MARKER).write_bytes(text)


for _name, _changes in {
    "models negative": {"models": -1},
    "models true": {"models": True},
    "models text": {"models": "5"},
    "models float": {"models": 5.0},
    "models infinite": {"models": float("inf")},
    "models huge": {"models": 10**300},
    "models wrong": {"models": 4},
    "filters missing": {"filters": ...},
    "filters wrong": {"filters": 1},
    "files an object": {"files": {}},
    "files missing": {"files": ...},
    "files null": {"files": [None]},
    "files nested": {"files": [[[[]]]]},
    "no files": {"files": []},
    "left out a text": {"left_out": "nothing"},
    "left out numbers": {"left_out": [{"model_id": 1, "license": 2, "reason": 3}]},
    "created by a number": {"created_by": 7},
    "version one": {"version": "1"},
    "version null": {"version": None},
    "version a statement": {"version": SQL},
    "surrogates": {"created_by": "\ud800"},
    "format null": {"format_version": None},
    "format text": {"format_version": "2"},
    "format true": {"format_version": True},
    "format new": {"format_version": 10**6},
    "format old": {"format_version": 0},
    "format a list": {"format_version": [2]},
}.items():
    case(f"manifest: {_name}")(edit(**_changes))

for _name, _changes in {
    "absolute": {"path": "/tmp/evil.pth"},
    "above": {"path": "../evil/00000.parquet"},
    "through": {"path": "models/../../00000.parquet"},
    "drive": {"path": "C:\\evil.parquet"},
    "empty": {"path": ""},
    "zero byte": {"path": "models/\x0000000.parquet"},
    "doubled slash": {"path": "models//00000.parquet"},
    "long": {"path": "models/" + "0" * 5000 + ".parquet"},
    "a number": {"path": 5},
    "of another table": {"table": "layers"},
    "of no table": {"table": "secrets", "path": "secrets/00000.parquet"},
    "of impossible filters": {"table": "filters_1500x1500", "path": "filters_1500x1500/00000.parquet"},
    "a statement": {"table": f"filters_3x3 {SQL}", "path": f"filters_3x3 {SQL}/00000.parquet"},
    "hash short": {"sha256": "ab"},
    "hash null": {"sha256": None},
    "hash other": {"sha256": "0" * 64},
    "rows negative": {"rows": -5},
    "rows wrong": {"rows": 10**9},
    "bytes wrong": {"bytes": 10**12},
    "bytes missing": {"bytes": ...},
}.items():
    case(f"file: {_name}")(edit_file(**_changes))


@case("file: listed twice")
def _(folder: Path) -> None:
    known = manifest_of(folder)
    save(folder, known | {"files": [*known["files"], known["files"][0]]})


@case("file: filters twice")
def _(folder: Path) -> None:
    shutil.copy(folder / "filters_3x3/00000.parquet", folder / "filters_3x3/00001.parquet")
    known = manifest_of(folder)
    twice = next(file for file in known["files"] if file["table"] == "filters_3x3")
    save(folder, known | {"files": [*known["files"], twice | {"path": "filters_3x3/00001.parquet"}]})


for _table in ("models", "layers", "histograms", "bases"):

    @case(f"file: no {_table}")
    def _(folder: Path, table: str = _table) -> None:
        known = manifest_of(folder)
        save(folder, known | {"files": [file for file in known["files"] if file["table"] != table]})


# ------------------------------------------------------------------------------------------------------- file system

for _table in ("models", "layers", "bases", "filters_3x3"):
    _path = f"{_table}/00000.parquet"

    @case(f"disk: {_table} missing")
    def _(folder: Path, path: str = _path) -> None:
        (folder / path).unlink()

    @case(f"disk: {_table} a pipe")
    def _(folder: Path, path: str = _path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    @case(f"disk: {_table} a link to elsewhere")
    def _(folder: Path, path: str = _path) -> None:
        (folder / path).rename(folder.parent / "outside.parquet")
        (folder / path).symlink_to(folder.parent / "outside.parquet")

    @case(f"disk: {_table} cut")
    def _(folder: Path, path: str = _path) -> None:
        (folder / path).write_bytes((folder / path).read_bytes()[:-100])

    @case(f"disk: {_table} something else")
    def _(folder: Path, path: str = _path) -> None:
        (folder / path).write_bytes(b"PAR1" + b"\xff" * 400 + b"PAR1")
        seal(folder, path)


@case("disk: a device")
def _(folder: Path) -> None:
    (folder / "models/00000.parquet").unlink()
    (folder / "models/00000.parquet").symlink_to("/dev/zero")


@case("disk: a folder in place of a file")
def _(folder: Path) -> None:
    (folder / "models/00000.parquet").unlink()
    (folder / "models/00000.parquet").mkdir()


@case("disk: a folder that leads elsewhere")
def _(folder: Path) -> None:
    (folder / "layers").rename(folder.parent / "layers-outside")
    (folder / "layers").symlink_to(folder.parent / "layers-outside")


@case("disk: the manifest a pipe")
def _(folder: Path) -> None:
    (folder / MARKER).unlink()
    os.mkfifo(folder / MARKER)


@case("disk: the manifest a link to elsewhere")
def _(folder: Path) -> None:
    (folder / MARKER).rename(folder.parent / "outside.json")
    (folder / MARKER).symlink_to(folder.parent / "outside.json")


# ----------------------------------------------------------------------------------------------------------- schemas

for _name, _change in {
    "a column less": lambda rows: rows.drop_columns(["domain"]),
    "a column more": lambda rows: rows.append_column("evil", pa.array([1] * rows.num_rows)),
    "a column renamed": lambda rows: rows.rename_columns(["id", *rows.column_names[1:]]),
    "a column of numbers": lambda rows: rows.set_column(
        rows.schema.get_field_index("domain"), "domain", pa.array(range(rows.num_rows))
    ),
    "another order": lambda rows: rows.select(rows.column_names[::-1]),
    "a column twice": lambda rows: rows.rename_columns(["model_id", "model_id", *rows.column_names[2:]]),
}.items():

    @case(f"schema: {_name}")
    def _(folder: Path, change: Callable[[pa.Table], pa.Table] = _change) -> None:
        rewrite(folder, "models", change)


@case("schema: filters of another size")
def _(folder: Path) -> None:
    shutil.copy(folder / "filters_5x5/00000.parquet", folder / "filters_3x3/00000.parquet")
    seal(folder, "filters_3x3/00000.parquet", pq.read_metadata(folder / "filters_3x3/00000.parquet").num_rows)


@case("bomb: rows", ("pull", "ask"))
def _(folder: Path) -> None:
    def many(rows: pa.Table) -> pa.Table:
        return rows.take(pa.repeat(pa.scalar(0), 2_000_000))

    rewrite(folder, "models", many, compression="zstd")


@case("bomb: filters")
def _(folder: Path) -> None:
    def many(rows: pa.Table) -> pa.Table:
        columns = [pa.repeat(rows[name][0], 8_000_000) for name in rows.column_names]
        return pa.table(columns, schema=rows.schema)

    rewrite(folder, "filters_3x3", many, compression="zstd", row_group_size=8_000_000)


@case("bomb: a text in a dictionary")
def _(folder: Path) -> None:
    def long(rows: pa.Table) -> pa.Table:
        rows = rows.take(pa.repeat(pa.scalar(0), 100_000))
        number = rows.schema.get_field_index("domain")
        text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 100_000), pa.array(["a" * 100_000]))
        return rows.set_column(number, "domain", text)

    path = folder / "models/00000.parquet"
    schema = pq.ParquetFile(path).schema_arrow
    table = long(pq.ParquetFile(path).read())
    # The stored schema is that of the table, so that only the size gives it away.
    with pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
    del schema
    seal(folder, "models/00000.parquet", 100_000)


@case("bomb: one long text")
def _(folder: Path) -> None:
    cell("models", "domain", "a" * (120 << 20))(folder)
    rewrite(folder, "models", lambda rows: rows, compression="zstd")


# ----------------------------------------------------------------------------------------------------------- content

for _name, _column, _value in (
    ("key without source", "model_id", "model"),
    ("key of another", "model_id", "custom/another"),
    ("key of a path", "name", "../../evil"),
    ("key with an escape", "name", "\x1b]0;evil\x07"),
    ("negative filters", "stored_filters", -1),
    ("other filters", "stored_filters", 10),
    ("huge filters", "stored_filters", 2**62),
    ("other layers", "conv_layers", 77),
    ("negative parameters", "parameters", -5),
    ("key that turns text around", "name", "face\u202egnp"),
):
    case(f"models: {_name}")(cell("models", _column, _value))


@case("models: twice")
def _(folder: Path) -> None:
    rewrite(folder, "models", lambda rows: pa.concat_tables([rows, rows]))
    edit(models=10, filters=2 * manifest_of(folder)["filters"])(folder)


@case("models: unsorted")
def _(folder: Path) -> None:
    rewrite(folder, "models", lambda rows: rows.take(pa.array(range(rows.num_rows))[::-1]))


for _name, _column, _value in (
    ("a gap", "layer", 5),
    ("a negative number", "layer", -1),
    ("of an unknown model", "model_id", "custom/nobody"),
    ("a kernel that is a statement", "kernel", SQL),
    ("a kernel of other sides", "kernel", "5x5"),
    ("no height", "kernel_h", 0),
    ("a huge height", "kernel_h", 2**31 - 1),
    ("negative filters", "filters", -1),
    ("no filters", "filters", 0),
    ("huge filters", "filters", 2**62),
    ("no channels", "out_channels", 0),
    ("channels that do not divide", "out_channels", 7919),
    ("negative groups", "groups", -1),
    ("a hash that is none", "tensor_sha256", "../../evil"),
    ("no hash", "tensor_sha256", None),
    ("an unknown kind", "kind", SQL),
    ("a short mean", "scaled_mean", [0.0]),
    ("a mean of nothing", "scaled_mean", None),
    ("a mean that is not a number", "scaled_mean", [float("nan")] * 9),
    ("an infinite mean", "raw_mean", [float("inf")] * 9),
    ("a short scatter", "scaled_scatter", [1.0] * 44),
    ("more sparse filters than filters", "nonsparse_filters", 10**9),
    ("sparse moments without filters", "nonsparse_mean", [0.0] * 9),
    ("a sparsity beyond 1", "sparsity", 1.5),
    ("a sparsity that is not a number", "sparsity", float("nan")),
    ("no sparsity", "sparsity", None),
    ("an infinite orthogonality", "orthogonality", float("inf")),
    ("a negative norm", "norm_l2", -1.0),
    ("a negative entropy", "variance_entropy", -0.1),
    ("an entropy of too many weights", "variance_entropy_clean", 99.0),
    ("a threshold that is not a number", "randomness_threshold", float("nan")),
    ("a probability of 2", "isotropy", 2.0),
    ("more binary filters than filters", "binary_filters", 10**9),
    ("no levels", "levels", 0),
    ("a norm that no scaled filter has", "scaled_norm_max", 99.0),
    ("a scaled norm that is not a number", "scaled_norm_max", float("nan")),
    ("no scaled norm", "scaled_norm_max", None),
    ("no stride", "stride_h", 0),
    ("a negative dilation", "dilation_w", -3),
    ("a depth beyond 1", "conv_depth_norm", 1.01),
    ("a negative depth", "conv_depth", -1),
):
    case(f"layers: {_name}")(layer_cell(_column, _value))

case("layers: a weight of another hash", partial=True)(layer_cell("tensor_sha256", "0" * 64))
case("layers: a mean of other filters", partial=True)(layer_cell("scaled_mean", [0.5] * 9))
for _column in ("sparsity", "orthogonality", "variance_entropy", "isotropy"):
    case(f"layers: {_column} of other filters", partial=True)(layer_cell(_column, 0.123))
case("layers: a norm of other filters", partial=True)(layer_cell("norm_l1", lambda value: value * 1.001))
case("layers: levels of other filters", partial=True)(layer_cell("levels", 2))
case("layers: a scaled norm of other filters", partial=True)(layer_cell("scaled_norm_max", 1.0))


@case("layers: one less")
def _(folder: Path) -> None:
    rewrite(folder, "layers", lambda rows: rows.slice(0, rows.num_rows - 1))


for _name, _column, _value in (
    ("a key that is a statement", "basis_id", f"3x3-{SQL}"),
    ("a key with lines", "basis_id", "x\n;COPY (SELECT 1) TO 'evil.csv';\n--"),
    ("a key that is a path", "basis_id", "../../evil"),
    ("a kernel that is a statement", "kernel", SQL),
    ("another kernel", "kernel", "11x11"),
    ("no bins", "bins", 0),
    ("negative bins", "bins", -70),
    ("too many bins", "bins", 2_000_000_000),
    ("bins unknown", "bins", None),
    ("a range upside down", "low", 1e9),
    ("no range", "high", None),
    ("an infinite range", "high", float("inf")),
    ("a range of nothing", "low", float("nan")),
    ("a short mean", "mean", [0.0]),
    ("a mean that is not a number", "mean", lambda values: [float("nan")] * len(values)),
    ("a huge mean", "mean", lambda values: [1e300] * len(values)),
    ("components that are not orthonormal", "components", lambda rows: [[1.0] * len(rows)] * len(rows)),
    ("a component less", "components", lambda rows: rows[1:]),
    ("a short component", "components", lambda rows: [rows[0][1:], *rows[1:]]),
    ("shares over 1", "explained_variance_ratio", lambda values: [1.0] * len(values)),
    ("a negative variance", "explained_variance", lambda values: [-1.0] * len(values)),
    ("an unknown variant", "variant", SQL),
    ("no models", "models", None),
    ("strange models", "models", ["x", None]),
    ("no time", "created_at", None),
    ("negative filters", "filters", -1),
):
    case(f"bases: {_name}")(cell("bases", _column, _value))


@case("bases: twice")
def _(folder: Path) -> None:
    rewrite(folder, "bases", lambda rows: pa.concat_tables([rows, rows]))


# What is pulled gets histograms of its own, so that only questions in place read those of the release.
for _name, _column, _value in (
    ("an unknown basis", "basis_id", "3x3-unknown"),
    ("an unknown model", "model_id", "custom/nobody"),
    ("an unknown layer", "layer", 999),
    ("a negative layer", "layer", -1),
    ("an unknown recipe", "recipe", SQL),
    ("another range", "low", lambda value: value - 1),
    ("no range", "high", float("nan")),
    ("other filters", "filters", 1),
    ("negative counts", "counts", lambda values: [-1, *values[1:]]),
    ("moved counts", "counts", lambda values: [value + 1 for value in values]),
    ("counts missing", "counts", lambda values: [None, *values[1:]]),
    ("short counts", "counts", lambda values: values[1:]),
    ("short tails", "below", []),
    ("huge tails", "above", lambda values: [2**62] * len(values)),
):
    case(f"histograms: {_name}", ("ask",))(cell("histograms", _column, _value))


@case("histograms: twice", ("ask",))
def _(folder: Path) -> None:
    rewrite(folder, "histograms", lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))


@case("histograms: one less", ("ask",))
def _(folder: Path) -> None:
    rewrite(folder, "histograms", lambda rows: rows.slice(1))


# ------------------------------------------------------------------------------------------------------- fingerprints

for _name, _column, _value in (
    ("an unknown model", "model_id", "custom/nobody"),
    ("an unknown layer", "layer", 999),
    ("of another weight", "tensor_sha256", "0" * 64),
    ("a short sketch", "sketch", [1]),
    ("a sketch with a gap", "sketch", lambda values: [None, *values[1:]]),
    ("a huge sketch", "sketch", [30_000] * 64),
    ("no number", "alpha", float("nan")),
    ("a negative norm", "centred_norm", -1.0),
):
    case(f"fingerprints: {_name}", ("ask",))(cell("fingerprints", _column, _value))


@case("fingerprints: one less", ("ask",))
def _(folder: Path) -> None:
    rewrite(folder, "fingerprints", lambda rows: rows.slice(1))


# ----------------------------------------------------------------------------------------------------------- filters


def filters(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Change the first row group of the 3x3 filters."""

    def changed(folder: Path) -> None:
        path = folder / "filters_3x3/00000.parquet"
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(number) for number in range(file.metadata.num_row_groups)]
        groups[0] = change(groups[0])
        with pq.ParquetWriter(path, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
        seal(folder, "filters_3x3/00000.parquet", sum(group.num_rows for group in groups))

    return changed


def constant(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A column of one value."""

    def change(rows: pa.Table) -> pa.Table:
        field = rows.schema.field(column)
        number = rows.schema.get_field_index(column)
        return rows.set_column(number, field, pa.repeat(pa.scalar(value, field.type), rows.num_rows))

    return change


case("filters: not a number", partial=True)(filters(constant("w0", float("nan"))))
case("filters: other weights", partial=True)(filters(constant("w0", 0.5)))
case("filters: of another model", partial=True)(filters(constant("model_id", "custom/nobody")))
case("filters: of another layer", partial=True)(filters(constant("layer", 99)))
case("filters: of a negative layer", partial=True)(filters(constant("layer", -1)))
case("filters: upside down", partial=True)(
    filters(lambda rows: rows.take(pa.array(np.arange(rows.num_rows)[::-1].copy())))
)
case("filters: a row less")(filters(lambda rows: rows.slice(1)))
case("filters: rows twice")(filters(lambda rows: pa.concat_tables([rows, rows]).combine_chunks()))


# ---------------------------------------------------------------------------------------------------- what is harmless


def extra_shards(folder: Path) -> None:
    """Files that the manifest does not list: copies of shards, a pipe, notes."""
    for table in ("models", "layers", "filters_3x3", "histograms", "bases", "fingerprints"):
        shutil.copy(folder / table / "00000.parquet", folder / table / "00001.parquet")
        os.mkfifo(folder / table / "00002.parquet")
    (folder / "models/notes.parquet").write_text("not a table")


# ------------------------------------------------------------------------------------------------------------ running


def ask(folder: Path) -> None:
    """Open a release and ask it everything that reads another part of it."""
    import cnnfilterdb

    with cnnfilterdb.open(folder) as db:
        db.models()
        db.kl_shift("domain")
        db.layers()
        db.filters()
        db.sql("FROM coefficients_3x3 LIMIT 1").df()
        db.sql("FROM histograms LIMIT 1").df()
        db.related_models()


def pull(folder: Path) -> None:
    """Pull a release by the command line; raises SystemExit."""
    from cnnfilterdb.cli import main

    sys.argv = ["cnnfilterdb", "pull", str(folder), "--db", str(folder.parent / "pulled"), "--quiet"]
    main()


def attempt(name: str, folder: Path) -> dict[str, str]:
    """What became of asking and of pulling: "ok", or the message."""
    from cnnfilterdb.core.errors import CnnFilterDbError

    outcome = {}
    try:
        ask(folder)
        outcome["ask"] = "ok"
    except CnnFilterDbError as error:
        outcome["ask"] = str(error)
    except BaseException as error:
        outcome["ask"] = f"RAW {type(error).__name__}: {error}"
    if "pull" not in CASES[name].fails:
        return outcome | {"pull": "not tried"}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            pull(folder)
        outcome["pull"] = "ok"
    except SystemExit as stop:
        outcome["pull"] = "ok" if stop.code in (0, None) else said.getvalue().strip() or f"RAW exit {stop.code}"
    except BaseException as error:
        outcome["pull"] = f"RAW {type(error).__name__}: {error}"
    return outcome


def run(release: Path, work: Path, name: str) -> dict[str, Any]:
    """One case in a process of its own."""
    folder = copied(release, work, name, "release")
    CASES[name].change(folder)
    outcome = in_child(folder.parent, lambda: attempt(name, folder))
    if "died" in outcome:
        outcome |= dict.fromkeys(("ask", "pull"), outcome.pop("died"))
    new = outcome["new"]
    shutil.rmtree(folder.parent)
    return outcome | {
        "new": [path for path in new if path.partition("/")[0] != "pulled"],
        "pulled": "pulled" in new,
    }


if __name__ == "__main__":
    RELEASE, WORK = Path(sys.argv[1]), Path(sys.argv[2])
    print_outcomes(lambda name: run(RELEASE, WORK, name), sys.argv[3:] or CASES)
