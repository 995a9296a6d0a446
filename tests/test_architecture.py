"""Imports run in one direction: the table below is the picture of the architecture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import cnnfilterdb

ROOT = Path(__file__).parents[1]

#: What each room may import besides itself; a room is a folder, or a module that stands alone. Anything else is
#: refused: adding an arrow is a decision.
CORE = {"core"}
FOUND = CORE | {"scan", "stats"}
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "stats": CORE,
    "sql": CORE,
    "catalog": CORE,
    "scan": CORE | {"stats"},
    "analysis": FOUND | {"sql"},
    "store": FOUND | {"analysis", "sql"},
    "release": CORE | {"analysis", "scan", "sql"},
    "parts": CORE | {"analysis", "release", "scan", "sql", "store"},
    "questions": FOUND | {"analysis", "sql"},
    "plots": CORE | {"analysis", "stats"},
    "ingest": CORE | {"catalog", "stats", "store"},
    "health": CORE | {"ingest", "scan", "store"},
    "testing": CORE | {"catalog", "ingest"},
    "exchange": FOUND | {"analysis", "release", "store"},
    "publish": CORE | {"analysis", "catalog", "parts", "release", "scan", "sql", "store"},
    "study": CORE | {"analysis", "catalog", "plots", "stats"},
    "explore": CORE | {"analysis", "plots", "questions", "sql", "stats"},
    "database": CORE | {"analysis", "catalog", "exchange", "explore", "ingest", "parts", "plots", "publish"}
    | {"questions", "release", "store", "study"},
    "errors": CORE,
    # The public names, each imported when it is first used.
    "": CORE | {"analysis", "database", "exchange", "explore", "health", "ingest", "publish", "release", "stats"}
    | {"study"},
    # The command line uses the public names; the rest is what these do not offer.
    "cli": CORE | {"", "analysis", "catalog", "ingest", "store"},
    "__main__": {"cli"},
}  # fmt: skip

#: Libraries that a question to a stored index must not load: each costs every start of the command line.
NOT_LOADED = ("numba", "scipy", "matplotlib", "onnx", "h5py", "torch", "timm", "datasets")


def sources() -> list[tuple[str, Path]]:
    """The modules of the package by dotted name, as they install."""
    found = []
    for folder in ("cnnfilterdb", "ingest", "catalog"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "cnnfilterdb" else ("cnnfilterdb", *parts)
            found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


MODULES = {name for name, _ in sources()}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(module: str) -> str:
    """The room of a module: its first part below the package; the package itself is the room ``""``."""
    return [*module.split("."), ""][1]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Modules of the package that a module imports anywhere in it, with the line; not those for type checkers only."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.lineno, full if full in MODULES else str(node.module)))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return [(line, name) for line, name in found if name.split(".")[0] == "cnnfilterdb"]


@pytest.mark.parametrize(("name", "path"), sources(), ids=[name for name, _ in sources()])
def test_imports_run_in_one_direction(name: str, path: Path):
    here = room(name)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {here or 'the package root'} must not import {target}"
        for line, target in imports(parsed(path))
        if room(target) not in ALLOWED[here] | {here}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_names_every_room_and_arrow_and_has_no_circle():
    found: dict[str, set[str]] = {room(name): set() for name, _ in sources()}
    for name, path in sources():
        found[room(name)] |= {room(target) for _, target in imports(parsed(path))}
    found[""] |= {room(target) for target in cnnfilterdb._lazy.values()}
    assert {name: targets - {name} for name, targets in found.items()} == ALLOWED
    rooms, below = dict(ALLOWED), set()
    while rooms:
        free = [name for name, allowed in rooms.items() if allowed <= below]
        assert free, f"a circle among {', '.join(rooms)}"
        below |= set(free)
        for name in free:
            del rooms[name]


def test_modules_import_each_other_in_no_circle():
    graph = {name: {target for _, target in imports(parsed(path)) if target != name} for name, path in sources()}
    while graph:
        free = [name for name, targets in graph.items() if not targets & graph.keys()]
        assert free, f"a circle among {', '.join(sorted(graph))}"
        for name in free:
            del graph[name]


def test_nothing_below_knows_the_database_even_for_types():
    above = {"", "cli", "database"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for name, path in sources()
        if room(name) not in above
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cnnfilterdb.database")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_top_of_the_package_is_small():
    # Python fixes the name and the place of __main__, which is one call.
    assert len({path.name for path in (ROOT / "cnnfilterdb").glob("*.py")} - {"__main__.py"}) <= 12


def test_every_room_says_what_question_it_answers():
    for path in [*(ROOT / "cnnfilterdb").glob("*/__init__.py"), *(ROOT / "ingest").rglob("__init__.py")]:
        first = (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
        assert len(first) > 20, path


def test_modules_stay_short():
    # numba's cache does not see changes of functions that are inlined from another module: they stay in one file.
    exempt = {ROOT / "cnnfilterdb/stats/compiled.py"}
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for _, path in sources()
        if path not in exempt and (lines := len(path.read_text(encoding="utf-8").splitlines())) > 650
    ]
    assert not long, "\n".join(long)


def test_a_question_to_the_index_loads_no_heavy_library(sample_path):
    code = (
        "import sys, cnnfilterdb\n"
        f"with cnnfilterdb.open({str(sample_path)!r}) as db:\n"
        "    assert len(db.models()) == 5\n"
        "    assert db.kl_shift(by='domain').shape == (3, 3)\n"
        f"print(*sorted(set({NOT_LOADED!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_verbs_that_print_rows_load_no_data_frames(sample_path):
    code = (
        "import sys\n"
        "from cnnfilterdb.cli import cli\n"
        "for verb in (['models'], ['shift', 'domain'], ['sql', 'FROM kl_shift(domain)']):\n"
        f"    cli.main([*verb, '--db', {str(sample_path)!r}], standalone_mode=False)\n"
        "print('loaded:', *sorted({'pandas', 'pyarrow.dataset'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "loaded:"), done.stderr


def test_only_paths_spells_the_names_of_files():
    # Names of columns, tables and folders of other things are texts too: only whole paths and file names are found.
    spelt = re.compile(
        r"(^|/)(models|layers|filters|index|bases|histograms|filters_[^/]+)/(?![^/]*[ ,;])"
        r"|(basis|_empty)\.parquet|(^|/)(annotations\.csv|init\.sql|commit\.json|cnnfilterdb\.json)$|^\.(locks|staging)"
    )
    allowed = {"cnnfilterdb.core.paths", "cnnfilterdb.publish.hub", "cnnfilterdb.store.seals"}
    found = []
    for name, path in sources():
        if not name.startswith("cnnfilterdb") or name in allowed or name.startswith("cnnfilterdb.ingest"):
            continue
        tree = parsed(path)
        texts = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            if isinstance(node.body[0], ast.Expr)
        }
        found += [
            f"{name}:{node.lineno}: {node.value[:60]!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
            if spelt.search(node.value)
        ]
    found += [
        f"{path.name}: {line}"
        for path in (ROOT / "cnnfilterdb/sql").glob("*.sql")
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".parquet" in line and not line.startswith("--")
    ]
    assert not found, "\n".join(found)


def test_one_name_means_one_thing():
    # Both registries are used alike, and `levels` is a statistic and its compiled loop.
    same = {"register", "registered", "levels"}
    rooms: dict[str, set[str]] = {}
    for name, path in sources():
        if room(name) == "cli":  # a verb has the name of the method that it calls
            continue
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                rooms.setdefault(node.name, set()).add(name)
    twice = {name: sorted(found) for name, found in rooms.items() if len(found) > 1 and name not in same}
    assert not twice


def test_pyarrow_is_not_asked_for_columns_of_row_groups():
    # It ends the process if a footer contradicts itself; see cnnfilterdb/core/footers.py.
    found = []
    for name, path in sources():
        tree = parsed(path)
        safe = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("num_rows", "num_columns", "total_byte_size")
        }
        found += [
            f"{name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "row_group"
            if id(node) not in safe
        ]
    assert not found, "\n".join(found)
