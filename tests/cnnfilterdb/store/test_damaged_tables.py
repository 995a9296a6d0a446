"""Damage of the models, layers and filters is reported as such by every question, whatever DuckDB makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import cnnfilterdb

QUESTIONS: dict[str, Callable[[cnnfilterdb.Reader], object]] = {
    "models": lambda db: db.models(),
    "layers": lambda db: db.layers(where="domain = 'natural'"),
    "shift": lambda db: db.kl_shift("domain"),
    "quality": lambda db: db.quality("domain"),
    "filters": lambda db: db.sql("FROM filters_3x3").df(),
    "count": lambda db: db.sql("SELECT count(*) FROM models JOIN layers USING (model_id)").fetchall(),
    "batches": lambda db: list(db.sql("FROM filters_3x3").to_arrow_reader()),
    "nearest": lambda db: db.nearest([[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "weights": lambda db: db.layer_weights("custom/photos-large", 0),
    "spectra": lambda db: db.spectra(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "db"
    with cnnfilterdb.example() as db:
        shutil.copytree(db.storage.path, folder)
    return folder


@given(
    table=st.sampled_from(("models", "layers", "filters/kernel=3x3")),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=30),
    kept=st.none() | st.floats(0, 1),
    question=st.sampled_from(sorted(QUESTIONS)),
)
@example(table="models", damage=[(0.0, 1)], kept=0.5, question="shift")
@example(table="layers", damage=[(0.0, 1)], kept=0.0, question="layers")
def test_every_question_says_that_a_file_is_damaged(folder, table, damage, kept, question):
    path = next((folder / table).rglob("*large*.parquet"))
    sound = path.read_bytes()
    data = bytearray(sound)
    for place, flip in damage:
        data[int(place * len(data))] ^= flip
    path.write_bytes(data if kept is None else data[: int(kept * len(data))])
    failure: Exception | None = None
    try:
        with cnnfilterdb.open(folder, read_only=True) as db:
            QUESTIONS[question](db)  # damage of values is found by `verify`
    except cnnfilterdb.CnnFilterDbError as error:
        failure = error
    finally:
        path.write_bytes(sound)
    if failure is not None and isinstance(failure.__cause__ or failure, duckdb.Error | cnnfilterdb.DatabaseError):
        assert isinstance(failure, cnnfilterdb.CorruptError), failure
        assert str(folder) in str(failure)
        assert "`cnnfilterdb verify`" in str(failure) or "`cnnfilterdb index`" in str(failure)
        assert "\n" not in str(failure)


def test_damage_of_a_users_own_file_is_not_one_of_the_database(folder, tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"no Parquet file")
    with cnnfilterdb.open(folder) as db, pytest.raises(cnnfilterdb.QueryError, match=r"mine\.parquet"):
        db.sql(f"FROM '{tmp_path}/mine.parquet'").df()


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_damage(folder, weight):
    path = next((folder / "filters/kernel=3x3").rglob("*large*.parquet"))
    sound = path.read_bytes()
    table = pq.read_table(path)
    values = table["w4"].to_numpy().copy()
    values[len(values) // 2] = weight
    number = table.column_names.index("w4")
    pq.write_table(table.set_column(number, table.field(number), pa.array(values, pa.float32())), path)
    try:
        with (
            cnnfilterdb.open(folder, read_only=True) as db,
            pytest.raises(cnnfilterdb.CorruptError, match="not finite") as caught,
        ):
            db.kl_shift("domain", basis="selection")
    finally:
        path.write_bytes(sound)
    assert str(path) in str(caught.value)
    assert "`cnnfilterdb verify`" in str(caught.value)
