"""The DuckDB connection: threads, forks, pickles, what is created when, and what confined SQL may do."""

import gc
import os
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pytest

from cnnfilterdb import sql
from cnnfilterdb.analysis.connection import Connection
from cnnfilterdb.core.errors import DatabaseError, QueryError
from cnnfilterdb.store.folder import Store

QUESTIONS = [
    "SELECT count(*) FROM models",
    "SELECT model_id, filters FROM layers ORDER BY ALL",
    "SELECT * FROM facts ORDER BY model_id, layer LIMIT 3",
    "FROM kl_shift(domain)",
    "FROM group_sizes(task)",
    "SELECT model_id, sum(w0) FROM filters_3x3 GROUP BY ALL ORDER BY ALL",
    "SELECT round(sum(c0), 6) FROM coefficients_5x5",
    "FROM filter_quality(family)",
    "FROM nearest_3x3([1, 0, -1, 2, 0, -2, 1, 0, -1], top := 3)",
    "SELECT name FROM models WHERE domain = 'natural' ORDER BY ALL",
]


@pytest.fixture
def connection(sample_path):
    found = Connection(Store.open(sample_path))
    yield found
    found.close()


def ask(connection, query):
    return connection.connect(query).sql(query).fetchall()


def created(connection):
    rows = connection.connect("SELECT 1").sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    return {name for (name,) in rows}


@pytest.mark.thorough
def test_eight_threads_ask_four_hundred_questions(connection):
    expected = {query: ask(connection, query) for query in QUESTIONS}
    fresh = Connection(connection._storage)

    def work(seed):
        chosen = random.Random(seed).choices(QUESTIONS, k=50)
        return all(ask(fresh, query) == expected[query] for query in chosen)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8
    fresh.close()


def test_a_relation_stays_valid_while_others_are_read(connection):
    query = "SELECT model_id, layer, w0 FROM filters_3x3"
    relation = connection.connect(query).sql(query)
    reader = connection.connect(query).sql(query).to_arrow_reader(10)
    first = reader.read_next_batch()
    gc.collect()
    assert ask(connection, "SELECT count(*) FROM models") == [(5,)]
    rows = first.num_rows + sum(batch.num_rows for batch in reader)
    assert len(relation.fetchall()) == rows == 3190


def test_a_closed_connection_says_so(connection):
    relation = connection.connect("FROM models").sql("FROM models")
    connection.close()
    connection.close()
    with pytest.raises(DatabaseError, match=r"closed; open it again with cnnfilterdb\.open"):
        connection.connect("FROM models")
    with pytest.raises(duckdb.Error, match="closed"):
        relation.fetchall()


def test_a_pickled_copy_opens_its_own(connection, sample_path):
    expected = ask(connection, QUESTIONS[3])
    copy = pickle.loads(pickle.dumps(connection))
    connection.close()
    assert ask(copy, QUESTIONS[3]) == expected
    script = "import pickle, sys; c = pickle.load(sys.stdin.buffer); print(len(c.connect('models').sql('FROM models')))"
    run = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(copy), capture_output=True, check=True)
    assert run.stdout.strip() == b"5"
    copy.close()


FORK = """
import os, sys, time
from cnnfilterdb.analysis.connection import Connection
from cnnfilterdb.store.folder import Store
connection = Connection(Store.open(sys.argv[1]))
query = "SELECT sum(w0) FROM filters_3x3"
ask = lambda: connection.connect(query).sql(query).fetchall()
expected = ask()
pending = connection.connect(query).sql(query)
for leave in (os._exit, sys.exit):
    child = os.fork()
    if not child:
        leave(0 if ask() == expected == ask() else 1)
    end = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if found[0] == 0:
        os.kill(child, 9)
    print(found[0] == child and found[1] == 0)
print(ask() == expected, pending.fetchall() == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_opens_its_own(sample_path):
    run = subprocess.run([sys.executable, "-c", FORK, sample_path], capture_output=True, text=True, timeout=600)
    assert run.stdout.split() == ["True"] * 4, run.stderr


# ------------------------------------------------------------------------------------------- what is created when


def test_only_what_a_query_names_is_created(connection):
    assert created(connection) == set()
    ask(connection, "FROM models")
    assert created(connection) == {"models_stored", "models"}
    ask(connection, 'SELECT count(*) FROM "FILTERS_5x5"')
    assert created(connection) == {"models_stored", "models", "filters_5x5"}
    ask(connection, "SHOW TABLES")
    known = sql.definitions(connection._storage.kernels())
    views = {one.name for one in known.values() if f"VIEW {one.name} " in one.text}
    assert created(connection) == views
    assert {"facts", "coefficients_7x7", "shared_layers"} <= views


def test_every_definition_works_alone(sample_path):
    store = Store.open(sample_path)
    for one in sql.definitions(store.kernels()).values():
        connection = Connection(store)
        connection.connect(one.name)
        assert one.name in connection._created
        connection.close()


def test_views_come_back_after_they_were_dropped(connection):
    ask(connection, "SELECT count(*) FROM facts")
    connection.connect("DROP VIEW models").execute("DROP VIEW models")
    connection.connect("create or replace view facts as select 1").execute("CREATE OR REPLACE VIEW facts AS SELECT 1")
    assert ask(connection, "SELECT count(*) FROM models") == [(5,)]
    assert ask(connection, "SELECT count(DISTINCT model_id) FROM facts") == [(5,)]


def test_new_kernel_sizes_and_annotations_are_seen(sample_path, tmp_path):
    import numpy as np

    import cnnfilterdb

    path = tmp_path / "copy"
    shutil.copytree(sample_path, path)
    connection = Connection(Store.open(path))
    with pytest.raises(duckdb.CatalogException):
        ask(connection, "FROM filters_1x7")
    with cnnfilterdb.open(path) as db:
        db.add({"a.weight": np.ones((2, 3, 1, 7), np.float32)}, "wide")
        db.annotate("custom/wide", domain="sound", new_words=True)
    assert ask(connection, "SELECT count(*) FROM filters_1x7") == [(6,)]
    assert ask(connection, "SELECT domain FROM models WHERE name = 'wide'") == [("sound",)]
    connection.close()


def test_reading_changes_nothing_on_disk(sample_path, tmp_path):
    import cnnfilterdb

    path = tmp_path / "copy"
    shutil.copytree(sample_path, path)
    (path / "init.sql").unlink()

    def state():
        return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*")}

    before = state()
    with cnnfilterdb.open(path) as db:
        db.models()
        db.kl_shift("domain")
        db.filters(kernel="5x5")
        db.sql("SHOW TABLES").fetchall()
    assert state() == before


# ------------------------------------------------------------------------------------------------ confined SQL


@pytest.fixture
def confined(sample_path):
    found = Connection(Store.open(sample_path), confined=True)
    yield found
    found.close()


def test_confined_sql_answers_all_questions(connection, confined):
    for query in QUESTIONS:
        assert ask(confined, query) == ask(connection, query)


@pytest.mark.parametrize(
    "query",
    [
        "FROM read_text('{outside}')",
        "FROM read_csv('{outside}')",
        "FROM glob('{folder}/*')",
        "COPY (SELECT 1) TO '{folder}/new.csv'",
        "COPY (SELECT 1) TO '{database}/models/new.parquet'",
        "ATTACH '{folder}/new.duckdb'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE '{folder}/new'",
    ],
)
def test_confined_sql_reads_and_writes_nothing_else(confined, sample_path, tmp_path, query):
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    before = sorted(sample_path.rglob("*"))
    query = query.format(outside=outside, folder=tmp_path, database=sample_path)
    with pytest.raises((duckdb.Error, QueryError)):
        confined.connect(query).execute(query).fetchall()
    assert list(tmp_path.iterdir()) == [outside]
    assert sorted(sample_path.rglob("*")) == before
    assert ask(confined, "SELECT count(*) FROM models") == [(5,)]


def test_extensions_are_not_loaded_by_themselves(connection):
    rows = connection.connect("").sql(
        "SELECT name, value FROM duckdb_settings() WHERE name LIKE 'auto%known_extensions'"
    )
    assert {value for _, value in rows.fetchall()} == {"false"}
