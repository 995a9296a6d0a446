"""The Parquet files of a release."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core.footers import row_groups
from cnnfilterdb.core.paths import UNFINISHED
from cnnfilterdb.core.schema import (
    BASES,
    FINGERPRINTS,
    HISTOGRAMS,
    LAYERS,
    MODELS,
    describe,
    filter_schema,
    release_schema,
)
from cnnfilterdb.publish.shards import plan, write_filter_shards, write_shards
from cnnfilterdb.publish.sources import FolderSource
from cnnfilterdb.release.manifest import Manifest
from cnnfilterdb.release.release import model_of
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

SMALL = (20_000, 60_000)


def add(db, name, channels=16, seed=None):
    rng = np.random.default_rng(len(name) if seed is None else seed)
    db.add({"a.weight": rng.normal(size=(channels, channels, 3, 3)).astype(np.float32)}, name, license="MIT")


def row(model_id, **facts):
    name = model_id.partition("/")[2]
    known = {"source": "custom", "name": name, "conv_layers": 1, "stored_filters": 1, "ingested_at": datetime.now(UTC)}
    return {"model_id": model_id, **known, **facts}


@pytest.fixture
def many(tmp_path):
    with cnnfilterdb.create(tmp_path / "many") as db:
        for number in range(24):
            add(db, f"m{number:02}", seed=number)
        add(db, "n-large", channels=64, seed=99)
        yield db


def written(db, folder, sizes=SMALL):
    store = Store.open(db.path)
    filters = FolderSource(Index(store)).filters("3x3", store.model_ids())
    files = write_filter_shards(folder, "3x3", filters, sizes=sizes)
    return {file.path: file for file in files}


def groups(folder, files):
    """Hash of the bytes of each row group, by its model and first layer."""
    found = {}
    for path in files:
        data = (folder / path).read_bytes()
        metadata = pq.ParquetFile(folder / path).metadata
        for number, facts in enumerate(row_groups(metadata)):
            group = metadata.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
            body = data[start : start + sum(column.total_compressed_size for column in columns)]
            found[model_of(facts, "here"), group.num_rows] = hashlib.sha256(body).hexdigest()
    return found


def test_files_are_between_the_sizes_and_hold_whole_models_in_order(many, tmp_path):
    files = list(written(many, tmp_path / "out").values())
    assert len(files) > 3
    assert [file.path for file in files] == [f"filters_3x3/{number:05}.parquet" for number in range(len(files))]
    assert all(36 * file.rows <= SMALL[1] for file in files[:-1])
    assert all(file.first_model <= file.last_model for file in files)
    assert [file.first_model for file in files] == sorted(file.first_model for file in files)
    tables = [pq.read_table(tmp_path / "out" / file.path) for file in files]
    assert [table.num_rows for table in tables] == [file.rows for file in files]
    table = pa.concat_tables(tables)
    assert table.schema.equals(filter_schema("3x3"))
    assert table.drop(["w0"]).num_columns == 12
    expected = many.filters()
    np.testing.assert_array_equal(table.to_pandas()[expected.columns], expected)


def test_a_row_group_is_of_one_model(many, tmp_path):
    files = written(many, tmp_path / "out")
    for path, file in files.items():
        metadata = pq.ParquetFile(tmp_path / "out" / path).metadata
        models = [model_of(group, "here") for group in row_groups(metadata)]
        assert (models[0], models[-1]) == (file.first_model, file.last_model)
        assert metadata.row_group(0).column(4).has_offset_index
        assert not metadata.row_group(0).column(4).has_dictionary_page


def test_the_same_database_gives_the_same_bytes(many, tmp_path):
    assert written(many, tmp_path / "first") == written(many, tmp_path / "second")


def test_a_new_model_leaves_all_row_groups_and_nearly_all_files_as_they_were(many, tmp_path):
    before = written(many, tmp_path / "before")
    add(many, "m11b", seed=1000)
    after = written(many, tmp_path / "after")
    old, new = groups(tmp_path / "before", before), groups(tmp_path / "after", after)
    assert old.items() <= new.items()
    assert len(new) == len(old) + 1
    hashes = {file.sha256 for file in before.values()}
    assert sum(file.sha256 not in hashes for file in after.values()) <= 2


@given(
    st.lists(st.tuples(st.text(max_size=4), st.integers(1, 300)), max_size=40, unique_by=lambda pair: pair[0]),
    st.integers(1, 100),
    st.integers(100, 300),
)
def test_a_plan_takes_in_every_model_once_and_keeps_to_the_sizes(models, least, most):
    ends = plan(models, least, most)
    assert ends == sorted(set(ends))
    assert ends[-1:] == ([len(models) - 1] if models else [])
    starts = [0, *(end + 1 for end in ends)]
    files = [models[start : end + 1] for start, end in zip(starts, ends, strict=False)]
    for number, file in enumerate(files):
        size = sum(size for _, size in file)
        assert len(file) == 1 or size <= most
        following = files[number + 1][0][1] if number + 1 < len(files) else most
        assert number == len(files) - 1 or size >= least or size + following > most


def test_a_plan_is_hardly_changed_by_a_model_more():
    rng = np.random.default_rng(0)
    models = [(f"custom/{number:03}", int(size)) for number, size in enumerate(rng.lognormal(2, 1.5, 400))]
    before = {models[end][0] for end in plan(models, 128, 512)}
    changed = []
    for place in range(0, 400, 20):
        more = [*models[:place], (f"custom/{place:03}-", 10), *models[place:]]
        after = {more[end][0] for end in plan(more, 128, 512)}
        changed.append(len(before ^ after))
    assert len(before) > 20
    assert np.mean(changed) < 2


def test_tables_without_rows_keep_their_columns(tmp_path):
    for table in ("models", "layers", "histograms", "bases", "fingerprints"):
        (file,) = write_shards(tmp_path, table, [])
        assert (file.rows, file.first_model) == (0, None)
        assert pq.read_schema(tmp_path / file.path).equals(release_schema(table))


@pytest.mark.parametrize("parts", [[4096], [1, 4095, 1, 5000], [3] * 2000, [10_000]])
def test_rows_come_in_groups_of_one_size_however_they_arrive(tmp_path, parts):
    numbers = iter(range(sum(parts)))
    tables = [
        pa.Table.from_pylist([row(f"custom/{next(numbers)}", metrics={"top1": 1.0}) for _ in range(part)], MODELS)
        for part in parts
    ]
    (file,) = write_shards(tmp_path, "models", tables)
    found = pq.ParquetFile(tmp_path / file.path)
    assert found.read()["model_id"].to_pylist() == [f"custom/{number}" for number in range(sum(parts))]
    sizes = [found.metadata.row_group(number).num_rows for number in range(found.num_row_groups)]
    assert all(size == 4096 for size in sizes[:-1])


def test_maps_are_lists_of_key_and_value(tmp_path):
    rows = [
        row("custom/a", metrics={"top1": 0.5, "top5": 0.75}, original={"Name": "x"}),
        row("custom/b", metrics=None, original={}),
    ]
    table = pa.Table.from_pylist(rows, MODELS)
    (file,) = write_shards(tmp_path, "models", [table.slice(0, 1), table.slice(1)])
    assert pq.read_table(tmp_path / file.path)["metrics"].to_pylist() == [
        [{"key": "top1", "value": 0.5}, {"key": "top5", "value": 0.75}],
        None,
    ]
    assert pq.read_table(tmp_path / file.path)["original"].to_pylist() == [[{"key": "Name", "value": "x"}], []]


def test_published_columns_are_those_of_the_database_and_described():
    for name, schema in {
        "layers": LAYERS,
        "histograms": HISTOGRAMS,
        "bases": BASES,
        "fingerprints": FINGERPRINTS,
    }.items():
        assert release_schema(name).equals(schema, check_metadata=True)
    assert release_schema("models").names == [name for name in MODELS.names if name != "files"]
    assert all(describe(release_schema("models")).values())


def test_a_release_is_whole_and_says_so(release_path, sample):
    manifest = Manifest.from_json((release_path / "cnnfilterdb.json").read_text(), "here")
    assert manifest.tables() == [
        "models", "layers", "filters_3x3", "filters_5x5", "filters_7x7", "histograms", "bases", "fingerprints",
    ]  # fmt: skip
    assert (manifest.models, manifest.filters) == (5, int(sample.models()["stored_filters"].sum()))
    there = {path.relative_to(release_path).as_posix() for path in release_path.rglob("*") if path.is_file()}
    own = {"README.md", "MODELS.md", "CITATION.cff", "init.sql", "cnnfilterdb.json", "shift.png"}
    assert there == own | {file.path for file in manifest.files}


def test_licences_decide_what_is_published(tmp_path):
    with cnnfilterdb.create(tmp_path / "db") as db:
        add(db, "free")
        rng = np.random.default_rng(0)
        for name, license_ in {"closed": "LicenseRef-BWH", "silent": None}.items():
            weight = rng.normal(size=(16, 16, 3, 3)).astype(np.float32)
            db.add({"a.weight": weight}, name, license=license_, domain="faces")
        db.index()
        manifest = db.publish("o/n", folder=tmp_path / "r1", version="1.0.0", verify=False)
        assert manifest.models == 1
        assert {left.model_id: left.license for left in manifest.left_out} == {
            "custom/closed": "LicenseRef-BWH",
            "custom/silent": None,
        }
        assert all(left.reason for left in manifest.left_out)
        with cnnfilterdb.open(tmp_path / "r1") as release:
            assert release.models()["name"].tolist() == ["free"]
            assert set(release.layers()["model_id"]) == set(release.filters()["model_id"]) == {"custom/free"}
            assert release.sql("SELECT DISTINCT model_id FROM histograms").fetchall() == [("custom/free",)]
        manifest = db.publish("o/n", folder=tmp_path / "r2", version="1.0.0", verify=False, include_license="unknown")
        assert manifest.models == 2
        db.annotate("custom/free", license="LicenseRef-BWH")
        with pytest.raises(cnnfilterdb.CnnFilterDbError, match="none of its 3 models may be published"):
            db.publish("o/n", folder=tmp_path / "r3", version="1.0.0", verify=False)


def test_an_empty_database_is_no_release(tmp_path):
    with (
        cnnfilterdb.create(tmp_path / "db") as db,
        pytest.raises(cnnfilterdb.CnnFilterDbError, match="contains no models; `cnnfilterdb ingest` imports some"),
    ):
        db.publish("o/n", folder=tmp_path / "release", version="1.0.0", verify=False)


def test_a_release_needs_an_empty_folder(sample, tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(cnnfilterdb.CnnFilterDbError, match="not an empty folder"):
        sample.publish("o/n", folder=tmp_path, version="1.0.0", verify=False)


def test_an_interrupted_build_is_repeated_in_its_own_folder(sample, tmp_path):
    folder = tmp_path / "release"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "00000.parquet").write_bytes(b"half")
    (folder / "models" / "00001.parquet").write_bytes(b"of another build")
    (folder / UNFINISHED).touch()
    manifest = sample.publish("o/n", folder=folder, version="1.0.0", verify=False)
    assert not (folder / UNFINISHED).exists()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")} == {
        file.path for file in manifest.files
    }
    (folder / UNFINISHED).touch()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(cnnfilterdb.CnnFilterDbError, match="not an empty folder"):
        sample.publish("o/n", folder=folder, version="1.0.0", verify=False)
    assert (folder / "models" / "00000.parquet").exists()


def test_annotations_are_published_as_facts(sample_path, tmp_path):
    import shutil

    shutil.copytree(sample_path, tmp_path / "db")
    with cnnfilterdb.create(tmp_path / "db") as db:
        db.annotate("custom/face", domain="thermal")
        db.publish("o/n", folder=tmp_path / "release", version="1.0.0", verify=False)
        with cnnfilterdb.open(tmp_path / "release") as release:
            assert release.models(where="domain = 'thermal'")["name"].tolist() == ["face"]
            np.testing.assert_array_equal(release.kl_shift("domain"), db.kl_shift("domain"))
