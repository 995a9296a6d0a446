"""Hostile database folders: each case damages a copy of a sound one, and a child process opens it and asks it.

Run as a script it prints a line of JSON for each case::

    python hostile.py DATABASE WORK BATCH [NAME ...]

BATCH is how many cases share a child process, one after the other, each in a folder of its own; most of the time of a
case is the start of DuckDB. Each case of a batch that dies is tried again in a process of its own.

Most cases are the product of faults and places. Files whose content is changed are sealed again, so that only checks of
the content can find what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_harness import copied, import_all, in_child

Change = Callable[[Path], None]
ANNOTATIONS = b"model_id,column,value\ncustom/face,license,CC0-1.0\n"
SQL = "x'; COPY (SELECT 1) TO 'evil.csv'; --"


@dataclass(frozen=True)
class Case:
    """A hostile folder.

    ``change`` damages it. ``sound`` says that it still is a valid database, in which ``verify`` finds nothing.
    """

    change: Change
    sound: bool = False


CASES: dict[str, Case] = {}


def case(name: str, change: Change, *, sound: bool = False) -> None:
    """Register a case."""
    assert name not in CASES, name
    CASES[name] = Case(change, sound)


def first(folder: Path, pattern: str) -> Path:
    """The first file of a pattern; in the sample, of ``ct-a``, which has 3x3 and 5x5 filters."""
    return sorted(folder.glob(pattern))[0]


#: One file of each kind.
PLACES = {
    "marker": "cnnfilterdb.json",
    "init.sql": "init.sql",
    "annotations": "annotations.csv",
    "models": "models/custom-*.parquet",
    "layers": "layers/custom-*.parquet",
    "filters": "filters/kernel=3x3/source=custom/custom-*.parquet",
    "basis": "index/3x3-*/basis.parquet",
    "histograms": "index/3x3-*/histograms/custom-*.parquet",
    "fingerprints": "index/fingerprints/custom-*.parquet",
    "models without rows": "models/_empty.parquet",
    "layers without rows": "layers/_empty.parquet",
    "filters without rows": "filters/kernel=3x3/source=_/_empty.parquet",
    "basis without rows": "index/_empty/basis.parquet",
    "fingerprints without rows": "index/fingerprints/_empty.parquet",
}
TABLES = ("models", "layers", "filters", "basis", "histograms", "fingerprints")

# --------------------------------------------------------------------------------------- faults of any file, x places


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(change(file.read_bytes())) and None


def _foreign(file: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}), file)


FAULTS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": _bytes(lambda content: b""),
    "cut": _bytes(lambda content: content[: len(content) // 2]),
    "zeroed": _bytes(lambda content: bytes(len(content))),
    "a web page": _bytes(lambda content: b"<!DOCTYPE html><title>404</title>" + b"\n" * 2000),
    "a footer of noise": _bytes(lambda content: b"PAR1" + b"\xff" * 400 + (200).to_bytes(4, "little") + b"PAR1"),
    "a named pipe": _replaced(os.mkfifo),
    "a device": _replaced(lambda file: file.symlink_to("/dev/zero")),
    "a folder": _replaced(lambda file: file.mkdir()),
    "a link to nothing": _replaced(lambda file: file.symlink_to("nowhere")),
    "another table": _foreign,
}
#: The faults that a place is tried with, where not all: texts are no tables.
_TEXTS = ("marker", "init.sql", "annotations")

for _place, _pattern in PLACES.items():
    for _fault, _change in FAULTS.items():
        if _place in _TEXTS and _fault in ("a footer of noise", "another table"):
            continue
        if "without" in _place and _fault not in ("missing", "cut", "a named pipe", "another table"):
            continue
        case(
            f"{_place}: {_fault}",
            lambda folder, pattern=_pattern, change=_change: change(first(folder, pattern)),
            # What is derived is made again when it is needed.
            sound=(_place, _fault)
            in {
                ("init.sql", "missing"),
                ("histograms", "missing"),
                ("histograms", "a link to nothing"),
                ("fingerprints", "missing"),
                ("fingerprints", "a link to nothing"),
                ("fingerprints without rows", "missing"),
            },
        )

# ------------------------------------------------------------------------------------- links, x places and folders


def _moved_out(relative: str) -> Change:
    """A file or folder that is moved beside the database, with a link in its place."""

    def change(folder: Path) -> None:
        path = first(folder, relative)
        outside = folder.parent / "outside"
        shutil.move(path, outside)
        path.symlink_to(outside)

    return change


for _place in ("marker", "annotations", "models", "layers", "filters", "basis", "histograms"):
    case(f"{_place}: a link to elsewhere", _moved_out(PLACES[_place]))
for _name in ("models", "layers", "filters", "index", ".locks", "filters/kernel=3x3", "index/3x3-*"):
    case(f"folder {_name}: a link to elsewhere", _moved_out(_name))
for _name in ("models", "layers", "filters", "index", "filters/kernel=3x3", "index/3x3-*", "index/3x3-*/histograms"):
    case(
        f"folder {_name}: missing",
        lambda folder, name=_name: shutil.rmtree(first(folder, name)),
        sound=_name.startswith("index/"),
    )

# ------------------------------------------------------------------------------------------------- tables, x changes


def rewrite(folder: Path, table: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a table again, changed and sealed."""
    from cnnfilterdb.store.seals import write_sealed

    file = first(folder, PLACES[table])
    write_sealed(change(pq.ParquetFile(file).read()), file, **options)


def put(table: pa.Table, column: str, value: Any, row: int = 0) -> pa.Table:
    """A table with one cell replaced, by a value or by a function of the one that is there."""
    number = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value(values[row]) if callable(value) else value
    return table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))


def table_case(name: str, table: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    case(f"{table}: {name}", lambda folder: rewrite(folder, table, change, **options))


for _table in TABLES:
    for _name, _change in {
        "a column less": lambda rows: rows.drop_columns([rows.column_names[-1]]),
        "no key": lambda rows: rows.drop_columns([rows.column_names[0]]),
        "a column more": lambda rows: rows.append_column("evil", pa.array([1] * rows.num_rows)),
        "keys of numbers": lambda rows: rows.set_column(0, rows.column_names[0], pa.array(range(rows.num_rows))),
        "a column twice": lambda rows: rows.rename_columns([rows.column_names[1], *rows.column_names[1:]]),
        "no rows": lambda rows: rows.slice(0, 0),
        "rows twice": lambda rows: pa.concat_tables([rows, rows]),
    }.items():
        table_case(_name, _table, _change)
    _rows = 50_000 if _table == "histograms" else 200_000
    table_case("a bomb", _table, lambda rows, count=_rows: rows.take(pa.repeat(pa.scalar(0), count)))

#: Every identifier that a database contains.
IDENTIFIERS = {
    "models": ("model_id", "source", "name"),
    "layers": ("model_id", "kernel"),
    "filters": ("model_id",),
    "basis": ("basis_id", "kernel", "variant"),
    "histograms": ("basis_id", "model_id", "recipe"),
    "fingerprints": ("model_id",),
}
for _table, _columns in IDENTIFIERS.items():
    for _column in _columns:
        for _name, _value in {"a statement": SQL, "a path": "../../evil", "an escape": "\x1b]0;evil\x07\n"}.items():
            table_case(f"{_column} {_name}", _table, lambda rows, c=_column, v=_value: put(rows, c, v))

for _table, _column, _name, _value in (
    ("models", "stored_filters", "negative", -1),
    ("models", "stored_filters", "huge", 2**62),
    ("models", "conv_layers", "wrong", 77),
    ("models", "files", "elsewhere", [{"path": "../../evil", "rows": 1, "bytes": 1, "sha256": "0" * 64}]),
    ("models", "files", "none", None),
    ("layers", "layer", "a gap", 5),
    ("layers", "layer", "negative", -1),
    ("layers", "filters", "negative", -1),
    ("layers", "filters", "huge", 2**62),
    ("layers", "kernel_h", "0", 0),
    ("layers", "kernel_h", "huge", 2**31 - 1),
    ("layers", "out_channels", "0", 0),
    ("layers", "tensor_sha256", "missing", None),
    ("layers", "tensor_sha256", "a path", "../../evil"),
    ("layers", "scaled_mean", "short", [0.0]),
    ("layers", "scaled_mean", "not numbers", [float("nan")] * 9),
    ("layers", "scaled_scatter", "short", [1.0]),
    ("layers", "scaled_scatter", "missing", None),
    ("layers", "scaled_norm_max", "0", 0.0),
    ("layers", "scaled_norm_max", "not a number", float("nan")),
    ("filters", "w0", "not a number", float("nan")),
    ("filters", "layer", "unknown", 999),
    ("basis", "bins", "0", 0),
    ("basis", "bins", "2 billion", 2_000_000_000),
    ("basis", "bins", "negative", -70),
    ("basis", "low", "not a number", float("nan")),
    ("basis", "high", "infinite", float("inf")),
    ("basis", "mean", "short", [0.0]),
    ("basis", "mean", "not numbers", lambda values: [float("nan")] * len(values)),
    ("basis", "components", "short", lambda rows: rows[1:]),
    ("basis", "components", "not orthonormal", lambda rows: [[1.0] * len(rows)] * len(rows)),
    ("basis", "models", "missing", None),
    ("basis", "sequence", "huge", 2**62),
    ("histograms", "counts", "negative", lambda values: [-1, *values[1:]]),
    ("histograms", "counts", "short", lambda values: values[1:]),
    ("histograms", "counts", "huge", lambda values: [2**62] * len(values)),
    ("histograms", "below", "short", []),
    ("histograms", "layer", "unknown", 999),
    ("histograms", "low", "not a number", float("nan")),
    ("fingerprints", "sketch", "short", [1]),
    ("fingerprints", "sketch", "huge", [30_000] * 64),
    ("fingerprints", "kurtosis", "infinite", float("inf")),
    ("fingerprints", "layer", "unknown", 999),
    ("fingerprints", "tensor_sha256", "of another weight", "0" * 64),
):
    table_case(f"{_column} {_name}", _table, lambda rows, c=_column, v=_value: put(rows, c, v))
# Any text is a domain: it is made harmless where it is printed.
case(
    "models: domain a page",
    lambda folder: rewrite(folder, "models", lambda rows: put(rows, "domain", "<script>alert(1)</script>\x1b[2J")),
    sound=True,
)

# ------------------------------------------------------------------------------------------------------- the marker


def marker(**changes: Any) -> Change:
    """Change entries of the marker, whose seal is then wrong, as nobody but the package computes it."""

    def change(folder: Path) -> None:
        known = json.loads((folder / "cnnfilterdb.json").read_text())
        (folder / "cnnfilterdb.json").write_text(json.dumps(known | changes))

    return change


for _value in (1, 3, 10**400, "2", None, [2], True, -1):
    case(f"marker: format {str(_value)[:9]!r}", marker(format_version=_value))
case("marker: a release", marker(layout="release"))
case("marker: another layout", marker(layout=SQL))
case("marker: deep", lambda folder: (folder / "cnnfilterdb.json").write_text("[" * 200_000) and None)
case(
    "marker: a surrogate",
    lambda folder: (folder / "cnnfilterdb.json").write_text('{"format_version": "\\ud800"}') and None,
)

# ------------------------------------------------------------------------------------------------------- the folder


def staged(name: str, record: Any, files: tuple[str, ...] = ()) -> Change:
    """A staging folder with a commit record, as a killed process leaves it."""

    def change(folder: Path) -> None:
        staging = folder / ".staging" / name
        staging.mkdir(parents=True)
        text = record if isinstance(record, str) else json.dumps(record)
        (staging / "commit.json").write_text(text)
        for file in files:
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).write_text("evil")

    return change


_ROW = "models/custom-evil-e6aa6a5a63.parquet"
for _name, _record in {
    "outside": {"model_id": "custom/evil", "files": ["../../../victim", _ROW]},
    "absolute": {"model_id": "custom/evil", "files": ["/tmp/victim", _ROW]},
    "of another": {"model_id": "custom/face", "files": ["models/custom-ct-a-0000000000.parquet"]},
    "of a statement": {"model_id": SQL, "files": [_ROW]},
    "a list": [],
    "numbers": {"model_id": 1, "files": [2]},
    "deep": "[" * 200_000,
    "not JSON": "evil",
    "a removal of numbers": {"rows": {"custom/face": 5}},
}.items():
    for _staging in ("custom-evil-abc", "removal-abc"):
        case(f"commit {_staging}: {_name}", staged(_staging, _record, ("models/evil.parquet",)), sound=True)


def _link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder.parent / "victim").mkdir(exist_ok=True)
        (folder.parent / "victim" / "file").write_text("precious")
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(folder.parent / target)

    return change


case("staging: a link", _link(".staging", "victim"))
case("staging: a link in it", _link(".staging/custom-face-0123456789-abc", "victim"), sound=True)
case("quarantine: a link", _link(".quarantine", "victim"))


@lambda change: case("models: two rows of one model", change)
def _(folder: Path) -> None:
    file = first(folder, PLACES["models"])
    shutil.copy(file, file.with_name("custom-other-0123456789.parquet"))


@lambda change: case("models: the row of another model", change)
def _(folder: Path) -> None:
    one, other = sorted(folder.glob(PLACES["models"]))[:2]
    shutil.copy(other, one)


@lambda change: case("layers: those of another model", change)
def _(folder: Path) -> None:
    one, other = sorted(folder.glob(PLACES["layers"]))[:2]
    shutil.copy(other, one)


@lambda change: case("filters: those of another size", change)
def _(folder: Path) -> None:
    shutil.copy(first(folder, "filters/kernel=5x5/source=custom/*"), first(folder, PLACES["filters"]))


@lambda change: case("index: a basis under another key", change)
def _(folder: Path) -> None:
    path = first(folder, "index/3x3-*")
    path.rename(path.with_name("3x3-evil"))


@lambda change: case("folder: half copied", change)
def _(folder: Path) -> None:
    for file in sorted(folder.rglob("*.parquet"))[::2]:
        file.unlink()


@lambda change: case("folder: only the marker", change)
def _(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "cnnfilterdb.json":
            path.unlink()


for _name in ("1500x1500", "0x0", "-1x3", "x", "", "3x3'; COPY (SELECT 1) TO 'evil.csv'; --", "3x3\x1b[2J", "1x1"):
    case(
        f"folder: kernel={_name!r}",
        lambda folder, name=_name: (
            shutil.copytree(first(folder, "filters/kernel=5x5"), folder / "filters" / f"kernel={name}") and None
        ),
    )
for _name in ("3x3-a; COPY (SELECT 1) TO 'evil.csv'", "3x3-$path", "notes", "3x3-\x1b[2J", "..."):
    case(
        f"folder: index/{_name!r}",
        lambda folder, name=_name: shutil.copytree(first(folder, "index/3x3-*"), folder / "index" / name) and None,
    )
for _name in ("custom\x1b]0;evil\x07.parquet", "' OR 1.parquet", "notes.parquet", "*.parquet"):
    case(
        f"folder: models/{_name!r}",
        lambda folder, name=_name: shutil.copy(first(folder, PLACES["models"]), folder / "models" / name) and None,
    )

# ----------------------------------------------------------------------------------------------------------- running

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "models": lambda db: db.models(),
    "layers": lambda db: db.layers(),
    "filters": lambda db: db.filters(),
    "shift": lambda db: db.kl_shift("domain"),
    "coefficients": lambda db: db.sql("FROM coefficients_3x3").df(),
    "related": lambda db: db.related_models(),
    "verify": lambda db: db.verify(),
}


def attempt(folder: Path) -> dict[str, Any]:
    """What became of opening and of every question: "ok", or the message; and what ``verify`` found.

    It is opened for reading, asked, and then opened for writing, asked again and written to.
    """
    import cnnfilterdb
    from cnnfilterdb.core.errors import CnnFilterDbError

    said: dict[str, Any] = {"found": 0}

    def tried(what: str, ask: Callable[[], Any]) -> Any:
        said[what] = "ok"
        try:
            return ask()
        except CnnFilterDbError as error:
            said[what] = str(error)
        except BaseException as error:
            said[what] = f"RAW {type(error).__name__}: {error}"
        return None

    warnings.simplefilter("ignore")
    db = tried("open", lambda: cnnfilterdb.open(folder, read_only=True))
    if db is not None:
        for what, question in QUESTIONS.items():
            answer = tried(what, lambda question=question: question(db))
            if what == "verify":
                said["found"] = 1 if answer is None else len(answer)
        db.close()
    db = tried("open to write", lambda: cnnfilterdb.open(folder, read_only=False))
    if db is not None:
        tried("shift of a writer", lambda: db.kl_shift("domain"))
        tried("annotate", lambda: db.annotate("custom/*", license="MIT"))
        db.close()
    return said


def run(database: Path, work: Path, names: list[str]) -> list[dict[str, Any]]:
    """Some cases, in one process."""
    work = work / sha256(names[0].encode()).hexdigest()[:12]
    folders = {name: copied(database, work, name, "hostile.db") for name in names}

    def change() -> dict[str, str]:
        for name, folder in folders.items():
            os.chdir(folder.parent)
            (folder / "annotations.csv").write_bytes(ANNOTATIONS)
            (folder / "annotations.csv.sha256").write_text(f"{sha256(ANNOTATIONS).hexdigest()}  annotations.csv\n")
            CASES[name].change(folder)
        return {}

    def ask() -> dict[str, Any]:
        found = {}
        for name, folder in folders.items():
            os.chdir(folder.parent)
            began = time.process_time()
            found[name] = attempt(folder) | {"seconds": round(time.process_time() - began, 2)}
        return found

    # In a process of its own, whose memory does not count.
    assert "died" not in in_child(work, change, len(names))
    outcome = in_child(work, ask, len(names))
    shutil.rmtree(work)
    if "died" in outcome and len(names) > 1:
        return [one for name in names for one in run(database, work.parent, [name])]
    of_batch = {"megabytes": outcome["megabytes"]}
    if "died" in outcome:
        of_batch |= {"died": outcome["died"], "seconds": outcome["seconds"]}
    places = {f"{folder.parent.name}/": name for name, folder in folders.items()}
    found = {name: {"name": name, **outcome.get(name, {}), **of_batch, "new": [], "changed": []} for name in names}
    for key in ("new", "changed"):
        for path in outcome[key]:
            place = path[: path.find("/") + 1]
            if not path.startswith(f"{place}hostile.db"):
                # One outside all of them is the doing of any.
                for name in [places[place]] if place in places else names:
                    found[name][key].append(path)
    return list(found.values())


if __name__ == "__main__":
    DATABASE, WORK, BATCH = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    import_all()  # nothing has started a thread yet
    NAMES = sys.argv[4:] or list(CASES)
    for START in range(0, len(NAMES), BATCH):
        for OUTCOME in run(DATABASE, WORK, NAMES[START : START + BATCH]):
            print(json.dumps(OUTCOME), flush=True)
