"""A release without filters: what its statistics answer is what the database answers, and the rest is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import cnnfilterdb
from cnnfilterdb.core.durable import sha256
from cnnfilterdb.core.errors import CorruptError, QueryError, SelectionError
from cnnfilterdb.release.manifest import Manifest

ROOT = Path(__file__).parents[3]
EDGE = [[1, 0, -1], [1, 0, -1], [1, 0, -1]]


@pytest.fixture(scope="module")
def script():
    """scripts/reference.py as a module."""
    spec = importlib.util.spec_from_file_location("reference_script", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def statistics_path(script, sample_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "release"
    with cnnfilterdb.open(sample_path) as db:
        script.write(db, path)
    return path


@pytest.fixture
def statistics(statistics_path):
    with cnnfilterdb.open(statistics_path) as db:
        yield db


#: Questions that statistics answer.
ANSWERED = {
    "models": lambda db: db.models().drop(columns=["ingested_at"]),
    "layers": lambda db: db.layers(where="kernel IN ('1x1', '3x3')"),
    "layers of other sizes": lambda db: db.layers(where="kernel = '5x5'")[["filters", "sparsity", "orthogonality"]],
    "kl_shift": lambda db: db.kl_shift("domain"),
    "kl_shift of a recipe": lambda db: db.kl_shift("name", recipe="medneurips2022", balance="models"),
    "intervals": lambda db: db.kl_shift_intervals("task", samples=10),
    "quality": lambda db: db.quality("family"),
    "quality of another size": lambda db: db.quality("family", kernel="5x5"),
    "test": lambda db: db.shift_test("domain", permutations=9),
    "embedding": lambda db: db.embed(),
    "shared models": lambda db: db.shared_models(),
    "related models": lambda db: db.related_models(),
    "spectra": lambda db: db.spectra(kernel="5x5"),
    "SQL": lambda db: db.sql("FROM kl_shift(domain) ORDER BY ALL").df(),
    "group sizes": lambda db: db.sql("FROM group_sizes(domain) ORDER BY ALL").df(),
}

#: Questions that need the filters.
REFUSED = {
    "filters": lambda db: db.filters(),
    "batches": lambda db: db.filter_batches(kernel="5x5"),
    "weights": lambda db: db.layer_weights("custom/ct-a", 0),
    "coefficients": lambda db: db.coefficients(),
    "nearest": lambda db: db.nearest(EDGE),
    "descriptors": lambda db: db.descriptors(per="layer"),
    "other bins": lambda db: db.kl_shift("domain", bins=10),
    "a basis of the selection": lambda db: db.kl_shift("domain", basis="selection"),
    "another size": lambda db: db.kl_shift("domain", kernel="5x5"),
    "moments of another size": lambda db: db.moments(kernel="5x5"),
    "eigenfilters of another size": lambda db: db.plot.eigenfilters(by="domain", kernel="5x5"),
    "a layer": lambda db: db.plot.filters("custom/ct-a"),
    "SQL over filters": lambda db: db.sql("FROM filters_3x3"),
    "SQL over coefficients": lambda db: db.sql("SELECT c0 FROM coefficients_5x5"),
    "nearest in SQL": lambda db: db.sql("FROM nearest_3x3([1,0,-1,1,0,-1,1,0,-1])"),
}


@pytest.mark.parametrize("question", ANSWERED)
def test_statistics_answer_as_the_database_does(statistics, sample, question):
    found, expected = (ANSWERED[question](db) for db in (statistics, sample))
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("question", REFUSED)
def test_what_needs_filters_is_refused_in_one_line(statistics, question):
    with pytest.raises((SelectionError, QueryError)) as refusal:
        REFUSED[question](statistics)
    message = str(refusal.value)
    assert message.endswith("has the statistics of 3x3 filters, not the filters; "
                            "ask its publisher for a release with filters")  # fmt: skip


def test_a_basis_of_a_selection_comes_from_moments(statistics, sample):
    where = "domain = 'natural'"
    np.testing.assert_array_equal(statistics.basis(where=where).components, sample.basis(where=where).components)
    np.testing.assert_array_equal(statistics.moments().mean, sample.moments().mean)


def test_nothing_is_copied_from_it(statistics_path, tmp_path):
    with pytest.raises(SelectionError, match="not the filters"):
        cnnfilterdb.pull(statistics_path, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    with cnnfilterdb.create(tmp_path / "mine") as mine, pytest.raises(SelectionError, match="not the filters"):
        mine.merge(statistics_path)


def test_it_is_sound_and_lists_its_views(statistics):
    assert statistics.verify() == []
    names = set(statistics.sql("SHOW TABLES").df()["name"])
    assert {"models", "layers", "histograms"} <= names
    assert not {name for name in names if name.startswith(("filters_", "coefficients_"))}


def test_the_same_database_gives_the_same_bytes(script, sample_path, statistics_path, tmp_path):
    with cnnfilterdb.open(sample_path) as db:
        script.write(db, tmp_path)
    files = {path.relative_to(statistics_path) for path in statistics_path.rglob("*.*")}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert all((tmp_path / file).read_bytes() == (statistics_path / file).read_bytes() for file in files)


def _changed(folder: Path, target: Path, table: str, change) -> Path:
    """A copy of a release with a table changed and its hash brought up to date."""
    manifest = Manifest.from_json((folder / "cnnfilterdb.json").read_text(), "here")
    for file in manifest.files:
        (target / file.path).parent.mkdir(parents=True)
        (target / file.path).write_bytes((folder / file.path).read_bytes())
    file = next(file for file in manifest.files if file.table == table)
    rows = pq.read_table(target / file.path)
    pq.write_table(change(rows).cast(rows.schema), target / file.path)
    changed = dataclasses.replace(file, bytes=(target / file.path).stat().st_size, sha256=sha256(target / file.path))
    files = tuple(changed if one is file else one for one in manifest.files)
    (target / "cnnfilterdb.json").write_text(dataclasses.replace(manifest, files=files).to_json())
    return target


@pytest.mark.parametrize("column", ["scaled_mean", "scaled_scatter"])
def test_moments_are_there_for_all_layers_of_a_size_or_for_none(statistics_path, tmp_path, column):
    def change(rows):
        place = rows["kernel"].to_pylist().index("3x3")
        values = rows[column].to_pylist()
        values[place] = None
        return rows.set_column(rows.schema.get_field_index(column), rows.schema.field(column), [values])

    path = _changed(statistics_path, tmp_path, "layers", change)
    with cnnfilterdb.open(path) as db, pytest.raises(CorruptError, match=f"{column} of a stored layer is missing"):
        db.layers()


def test_a_release_with_filters_cannot_lack_them(statistics_path, tmp_path):
    manifest = Manifest.from_json((statistics_path / "cnnfilterdb.json").read_text(), "here")
    path = _changed(statistics_path, tmp_path, "models", lambda rows: rows)
    text = (path / "cnnfilterdb.json").read_text()
    assert manifest.statistics_only
    (path / "cnnfilterdb.json").write_text(text.replace('"statistics_only": true', '"statistics_only": false'))
    with cnnfilterdb.open(path) as db, pytest.raises(CorruptError):
        db.layers()
