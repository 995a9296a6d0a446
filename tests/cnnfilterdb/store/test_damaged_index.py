"""Whatever happens to the files of the index: questions that do not need it are answered, the others explained."""

import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnfilterdb
from cnnfilterdb.cli import cli
from cnnfilterdb.core.errors import CnnFilterDbError, DamagedIndexError
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index
from cnnfilterdb.store.seals import write_sealed


def other_version(path):
    """A column is absent, as in files of an older version, and another one is there."""
    table = pq.ParquetFile(path).read()
    table = table.drop_columns([name for name in ("sequence", "tensor_sha256") if name in table.column_names])
    write_sealed(table.append_column("later", pa.nulls(len(table), pa.int64())), path)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(1000)),
    "other schema": lambda path: write_sealed(pa.table({"a": [1, 2]}), path),
    "other version": other_version,
    "missing": lambda path: path.unlink(),
}

#: Which files are damaged.
FILES = {
    "all": "index/**/*.parquet",
    "bases": "index/[0-9]*/basis.parquet",
    "one basis": "index/3x3-*/basis.parquet",
    "histograms": "index/[0-9]*/histograms/*.parquet",
    "basis without rows": "index/_empty/basis.parquet",
    "histograms without rows": "index/_empty/histograms/*.parquet",
}

#: Questions that do not need the index.
PLAIN = {
    "models": lambda db: db.models().drop(columns="ingested_at", errors="ignore"),
    "models where": lambda db: db.models(where="kernel = '5x5'"),
    "layers": lambda db: db.layers(),
    "filters": lambda db: db.filters(),
    "quality": lambda db: db.quality("domain"),
    "moments": lambda db: pd.DataFrame(db.moments().mean),
    "fitted basis": lambda db: pd.DataFrame(db.basis(where="true AND true").components),
    "nearest": lambda db: db.nearest([[1, 0, -1]] * 3),
    "descriptors": lambda db: db.descriptors(per="layer"),
    "shift in a basis of the selection": lambda db: db.kl_shift("task", basis="selection"),
    "shared": lambda db: db.shared_models(),
    "sql": lambda db: db.sql("SELECT domain, count(*) FROM facts GROUP BY ALL ORDER BY ALL").df(),
    "tables": lambda db: db.sql("SELECT name FROM (SHOW TABLES) WHERE name IN ('models', 'facts')").df(),
}

#: Questions that need it.
INDEXED = {
    "shift": lambda db: db.kl_shift("domain"),
    "components": lambda db: db.kl_shift_components("domain"),
    "intervals": lambda db: db.kl_shift_intervals("domain", samples=10),
    "nearest groups": lambda db: db.nearest_groups("domain", "faces"),
    "groups": lambda db: db.groups("domain").sizes(),
    "basis in use": lambda db: pd.DataFrame(db.basis().components),
    "coefficients": lambda db: db.coefficients(),
    "sql of shifts": lambda db: db.sql("FROM kl_shift(domain)").df(),
    "sql of coefficients": lambda db: db.sql("FROM coefficients_3x3 ORDER BY ALL LIMIT 5").df(),
    "sql of bases": lambda db: db.sql("SELECT basis_id FROM bases ORDER BY ALL").df(),
}


@pytest.fixture
def damaged(sample_path, tmp_path, request):
    which, how = request.param
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    files = sorted(path.glob(FILES[which]))
    assert files
    for file in files:
        DAMAGE[how](file)
    return path


CASES = [("all", how) for how in DAMAGE] + [(which, "other version") for which in FILES if which != "all"]


@pytest.fixture(scope="module")
def good(sample_path):
    """The answers of the database as it was."""
    with cnnfilterdb.open(sample_path) as db:
        return {name: question(db) for name, question in (PLAIN | INDEXED).items()}


every = pytest.mark.parametrize("damaged", CASES, indirect=True, ids=lambda given: " ".join(given))


def content(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def answer(question, db):
    try:
        return question(db)
    except CnnFilterDbError as error:
        return error


def same(found, expected):
    """Assert that two tables are equal; numbers, and arrays of them in a cell, but for the order of sums."""
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected)
    for name in found.columns:
        ours, theirs = ([np.asarray(cell) for cell in table[name]] for table in (found, expected))
        numeric = [cell.dtype.kind in "fiu" for cell in theirs]
        numbers = [(one, other) for one, other, number in zip(ours, theirs, numeric, strict=True) if number]
        others = [(one, other) for one, other, number in zip(ours, theirs, numeric, strict=True) if not number]
        assert [cell.shape for cell in ours] == [cell.shape for cell in theirs]
        assert [str(one) for one, _ in others] == [str(other) for _, other in others]
        if numbers:
            found_numbers, expected_numbers = (np.concatenate(cells, axis=None) for cells in zip(*numbers, strict=True))
            np.testing.assert_allclose(found_numbers, expected_numbers, rtol=1e-12)


@every
@pytest.mark.filterwarnings("ignore")
def test_a_reader_answers_what_it_can_and_explains_the_rest(damaged, good):
    before = content(damaged)
    with cnnfilterdb.open(damaged, read_only=True) as db:
        for name, question in PLAIN.items():
            same(question(db), good[name])
        for name, question in INDEXED.items():
            found = answer(question, db)
            if isinstance(found, CnnFilterDbError):
                assert "`cnnfilterdb index`" in str(found)
                assert "\n" not in str(found)
                assert len(str(found)) < 700
            else:
                same(found, good[name])
    assert content(damaged) == before


@pytest.mark.parametrize("damaged", CASES[::2], indirect=True, ids=lambda given: " ".join(given))
def test_a_writer_rebuilds_what_is_damaged_with_one_warning(damaged, good):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cnnfilterdb.open(damaged) as db:
            for name, question in (PLAIN | INDEXED).items():
                same(question(db), good[name])
    messages = [str(one.message) for one in caught]
    assert len(messages) <= 2  # what a question skipped, and what was set aside
    with cnnfilterdb.open(damaged) as db:
        assert db.verify() == []
        index = Index(Store.open(damaged))
        assert index.damage() == index.missing() == {}
        assert len(index.bases()) == 3


@pytest.mark.parametrize("damaged", CASES[:6], indirect=True, ids=lambda given: given[1])
@pytest.mark.filterwarnings("ignore")
def test_index_rebuilds_it_at_the_command_line(damaged):
    cli.main(["index", "--quiet", "--db", str(damaged)], standalone_mode=False)
    assert cnnfilterdb.open(damaged).verify() == []


@pytest.mark.parametrize("damaged", [("all", how) for how in DAMAGE], indirect=True, ids=lambda given: given[1])
@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_cannot_be_written_to_is_read(damaged, good, monkeypatch):
    before = content(damaged)
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    with cnnfilterdb.open(damaged) as db:
        for name, question in PLAIN.items():
            same(question(db), good[name])
        with pytest.raises(CnnFilterDbError, match="`cnnfilterdb index`"):
            db.kl_shift("domain")
    assert content(damaged) == before


@pytest.mark.parametrize("damaged", [("histograms", "random")], indirect=True)
def test_the_error_is_of_the_index(damaged):
    with (
        cnnfilterdb.open(damaged, read_only=True) as db,
        pytest.raises(DamagedIndexError, match=r"/index/.*index`"),
    ):
        db.kl_shift("domain")
