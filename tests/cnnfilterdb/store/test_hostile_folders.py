"""Folders of strangers: opening and asking execute nothing, write nothing, and answer or explain in one line."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import CnnFilterDbError
from cnnfilterdb.store.seals import write_sealed

SCRIPT = Path(__file__).with_name("hostile.py")


def _hostile():
    specification = importlib.util.spec_from_file_location("hostile_folders", SCRIPT)
    module = sys.modules["hostile_folders"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hostile = _hostile()
import hostile_harness as harness  # noqa: E402 (beside the package's tests, which the script has put in the path)

#: Every fourth case, so that each fault and each place is among them; `make hostile` runs all, each in its own process.
ALL = os.environ.get("HOSTILE") == "all"
TRIED = [
    name
    for number, name in enumerate(hostile.CASES)
    if ALL or number % 4 == 0 or name in {"histograms: counts short", "layers: filters huge"}
]
BATCH, PROCESSES = (1 if ALL else 8), 2


@pytest.fixture(scope="module")
def outcomes(sample_path, tmp_path_factory):
    """What became of each case, in child processes forked from ones that have imported everything."""

    def run(names):
        work = tmp_path_factory.mktemp("hostile")
        command = [sys.executable, "-P", str(SCRIPT), str(sample_path), str(work), str(BATCH), *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = pool.map(run, [TRIED[part::PROCESSES] for part in range(PROCESSES)])
        return {outcome["name"]: outcome for part in parts for outcome in part}


def test_there_are_many():
    assert len(hostile.CASES) >= 250
    assert len(TRIED) >= 80
    places, kinds = ({name.split(": ")[part] for name in TRIED} for part in (0, 1))
    assert set(hostile.FAULTS) <= kinds
    assert set(hostile.PLACES) <= places


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRIED)
def test_one_line_that_names_the_file_and_nothing_done(outcomes, name):
    outcome, case = dict(outcomes[name]), hostile.CASES[name]
    assert "died" not in outcome
    assert (outcome.pop("new"), outcome.pop("changed")) == ([], [])
    assert outcome.pop("seconds") < harness.SECONDS
    assert outcome.pop("megabytes") < harness.MEMORY >> 20
    found = outcome.pop("found")
    del outcome["name"]
    wrong = {
        question: said
        for question, said in outcome.items()
        if said != "ok" and (said.startswith("RAW") or not said.isprintable() or "hostile.db" not in said)
    }
    assert wrong == {}
    if case.sound:
        assert (outcome["open"], found) == ("ok", 0)
    else:
        assert outcome["open"] != "ok" or found > 0


QUESTIONS = {
    "models": lambda db: db.models(),
    "layers": lambda db: db.layers(where="kernel = '3x3'"),
    "filters": lambda db: db.filters(),
    "quality": lambda db: db.quality("domain"),
    "shift": lambda db: db.kl_shift("domain"),
    "coefficients": lambda db: db.sql("FROM coefficients_3x3").df(),
    "bases": lambda db: db.sql("FROM bases").df(),
    "verify": lambda db: db.verify(),
}


@pytest.fixture
def copy(sample_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(sample_path, tmp_path / "copy.db")


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_fifo()
    }


def answers(path, *, read_only=True):
    """The answer to every question, or the error, which must be one of this package and one line."""
    found = {}
    try:
        db = cnnfilterdb.open(path, read_only=read_only)
    except CnnFilterDbError as error:
        return dict.fromkeys(QUESTIONS, error)
    with db:
        for name, question in QUESTIONS.items():
            try:
                found[name] = question(db)
            except CnnFilterDbError as error:
                found[name] = error
    assert not any("\n" in str(error) for error in found.values() if isinstance(error, Exception))
    return found


def answered(found):
    return {name for name, answer in found.items() if not isinstance(answer, Exception)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "key",
    [
        "x\n;COPY (SELECT 1) TO 'evil.csv';\n--",
        "../../evil",
    ],
)
def test_the_key_of_a_basis_is_neither_executed_nor_written(copy, tmp_path, key):
    (file,) = copy.glob("index/3x3-*/basis.parquet")
    table = pq.ParquetFile(file).read()
    number = table.column_names.index("basis_id")
    write_sealed(table.set_column(number, table.schema.field("basis_id"), pa.array([key])), file)
    before = set(tree(tmp_path))
    for read_only in (True, False):
        assert answered(answers(copy, read_only=read_only)) >= {"models", "layers", "filters", "quality"}
    assert not [path for path in set(tree(tmp_path)) - before if not path.startswith("copy.db/")]
    with cnnfilterdb.open(copy) as db:
        db.annotate("custom/face", domain="natural")  # a write, which updates init.sql
    assert "evil" not in (copy / "init.sql").read_text()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.filterwarnings("ignore")
def test_names_of_folders_are_neither_executed_nor_followed(copy, tmp_path):
    (basis,) = copy.glob("index/3x3-*")
    (filters,) = copy.glob("filters/kernel=5x5")
    for name in ("3x3-a; COPY (SELECT 1) TO 'evil.csv'", "3x3-$path", "nothing"):
        shutil.copytree(basis, copy / "index" / name)
    for name in ("kernel=3x3'; COPY (SELECT 1) TO 'evil.csv'; --", "kernel=0x0", "kernel=-1x3", "kernel=x", "kernel="):
        shutil.copytree(filters, copy / "filters" / name)
    assert answered(answers(copy)) >= {"models", "layers", "filters", "quality"}
    assert not list(tmp_path.rglob("evil.csv"))


HUGE = """
import sys, warnings
from pathlib import Path
import cnnfilterdb
warnings.simplefilter("error" if sys.argv[2] == "error" else "ignore")
with cnnfilterdb.open(sys.argv[1]) as db:
    try:
        print(len(db.models()), len(db.filters()), db.kl_shift("domain").shape)
        db.filters(kernel="1500x1500")
    except (cnnfilterdb.CnnFilterDbError, UserWarning) as error:
        print(error)
# Not ru_maxrss, which a process inherits from the one that started it.
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) // 1024)
"""


def test_a_folder_of_impossible_kernels_costs_nothing(copy):
    (filters,) = copy.glob("filters/kernel=5x5")
    shutil.copytree(filters, copy / "filters" / "kernel=1500x1500")
    with cnnfilterdb.open(copy) as db:
        expected = len(db.models()), len(db.filters()), db.kl_shift("domain").shape
        assert db.storage.kernels() == ["3x3", "5x5", "7x7"]
        assert any("1500x1500" in str(problem.path) for problem in db.verify())
    run = subprocess.run(
        [sys.executable, "-c", HUGE, copy, "ignore"], capture_output=True, text=True, check=True, timeout=600
    )
    counts, message, megabytes = run.stdout.splitlines()
    assert counts == " ".join(map(str, expected))
    assert "1500x1500" in message
    assert int(megabytes) < 700


@pytest.mark.parametrize("name", ["[z]*?", "run:1"])
def test_a_folder_of_any_name_is_read_when_sql_is_confined(sample_path, tmp_path, name):
    path = shutil.copytree(sample_path, tmp_path / name)
    assert answered(answers(path)) == set(QUESTIONS)


@pytest.mark.skipif(os.name == "nt", reason="a separator there")
def test_a_backslash_in_a_path_is_refused_at_once(sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "a\\b")
    for opened in (cnnfilterdb.open, cnnfilterdb.create, lambda path: cnnfilterdb.create(path / "new")):
        with pytest.raises(CnnFilterDbError, match="backslash"):
            opened(path)
    assert not (path / "new").exists()
