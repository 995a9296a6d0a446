"""Readers beside writers: every answer is of one state, nothing fails because somebody writes, no lock is taken."""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError, DatabaseError, SelectionError
from cnnfilterdb.scan import steady as steady_module
from cnnfilterdb.scan.steady import steady
from cnnfilterdb.store import commits
from cnnfilterdb.store import folder as store_module

WRITER = """
    import sys, warnings
    import numpy as np
    import cnnfilterdb

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    db = cnnfilterdb.open(sys.argv[1])
    for number in range(1, int(sys.argv[2]) + 1):
        size = 3 if number % 2 else 4
        weights = {f"{i}.weight": rng.normal(size=(size, size, 3, 3)).astype(np.float32) for i in range(size)}
        db.add(weights, "changing", domain="a", overwrite=True, new_words=True)
        if number % 3 == 0:
            db.remove("custom/changing")
        if number % 4 == 0:
            db.index(refit=True)
"""


@pytest.mark.thorough
def test_a_reader_beside_a_writer_sees_one_state_at_a_time(tmp_path):
    rng = np.random.default_rng(1)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        for number in range(3):
            weights = {"a.weight": rng.normal(size=(8, 4, 3, 3)).astype(np.float32)}
            db.add(weights, f"m{number}", domain="ab"[number % 2], new_words=True)
        db.index()
    command = [sys.executable, "-P", "-c", textwrap.dedent(WRITER), str(tmp_path / "a.db"), "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        asked, seen = 0, set()
        with cnnfilterdb.open(tmp_path / "a.db", read_only=True) as reader:
            while writer.poll() is None:
                models = reader.models()
                assert set(models["model_id"]) >= {"custom/m0", "custom/m1", "custom/m2"}
                sizes = reader.layers(where="name = 'changing'").groupby("layer_name").size()
                assert len(sizes) in (0, 3, 4)
                filters = reader.filters(where="name = 'changing'")
                assert len(filters) in (0, 27, 64)
                shift = reader.groups("domain")
                assert shift.filters[1] == 32
                assert shift.filters[0] in (64, 64 + 27, 64 + 64)
                counted = shift.counts.sum(axis=(1, 2)) + shift.outside  # a frozen basis has a range
                np.testing.assert_array_equal(counted, 9 * shift.filters)
                seen.add(int(shift.filters[0]))
                asked += 1
        _, err = writer.communicate()
    assert (writer.returncode, err) == (0, "")
    assert asked >= 1
    with cnnfilterdb.open(tmp_path / "a.db") as db:
        assert db.verify() == []


@pytest.fixture
def states(monkeypatch):
    monkeypatch.setattr(steady_module, "_PAUSE", 0)
    monkeypatch.setattr(steady_module, "SECONDS", 0.2)


def test_a_question_is_repeated_until_what_it_read_has_stayed(states):
    numbers = itertools.count()
    current = {"a": 0}
    answers = iter([1, 1, 0, 0])

    def ask():
        current["a"] += next(answers)
        return next(numbers)

    assert steady(lambda: dict(current), ask) == 2


def test_models_that_are_added_do_not_disturb_and_other_errors_pass_through(states):
    current = {"a": 0}
    assert steady(lambda: dict(current), lambda: current.setdefault("b", 1)) == 1
    calls = []

    def ask(error):
        calls.append(error)
        raise error

    with pytest.raises(SelectionError):
        steady(lambda: current, lambda: ask(SelectionError("mine")))
    assert len(calls) == 1
    with pytest.raises(CorruptError, match="gone"):
        steady(lambda: current, lambda: ask(CorruptError("gone")))
    assert len(calls) > 2
    with pytest.raises(DatabaseError, match="other processes replaced"):
        steady(lambda: {"a": time.monotonic()}, lambda: 1)


@pytest.mark.parametrize("table", ["models", "layers", "filters/kernel=3x3/source=custom", "index/3x3-x/histograms"])
def test_a_named_pipe_or_a_link_in_place_of_a_file_is_refused(sample_path, tmp_path, table):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    folder = next(path.glob("index/3x3-*")) / "histograms" if table.startswith("index") else path / table
    file = sorted(folder.glob("custom-*"))[0]
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with cnnfilterdb.open(path, read_only=True) as db, pytest.raises(DatabaseError, match="not a regular file"):
        db.models()
    file.unlink()
    (tmp_path / "outside").write_bytes(content)
    file.symlink_to(tmp_path / "outside")
    with cnnfilterdb.open(path, read_only=True) as db, pytest.raises(DatabaseError, match="a link that leads out of"):
        db.models()


def weights(seed, size=8):
    return {"a.weight": np.random.default_rng(seed).normal(size=(size, 4, 3, 3)).astype(np.float32)}


@pytest.fixture
def two(tmp_path):
    with cnnfilterdb.create(tmp_path / "two.db") as db:
        db.add(weights(0), "a", domain="natural")
        db.add(weights(1), "b", domain="faces")
        db.index()
    with cnnfilterdb.open(tmp_path / "two.db") as writer, cnnfilterdb.open(tmp_path / "two.db") as reader:
        yield writer, reader


@pytest.mark.parametrize(
    "query", ["FROM models", "FROM filters_3x3", "SELECT model_id, sum(filters) FROM layers GROUP BY ALL", "FROM facts"]
)
def test_rows_of_sql_are_read_again_if_files_have_vanished(two, query):
    writer, reader = two
    rows = reader.sql(query)
    chained = reader.sql(query).filter("model_id LIKE '%'").limit(10_000)
    assert rows.to_arrow_table().num_rows > 0
    writer.remove("custom/a")
    for read in (lambda rows: rows.df(), lambda rows: rows.to_arrow_table().to_pandas()):
        assert set(read(rows)["model_id"]) == set(read(chained)["model_id"]) == {"custom/b"}
    assert all("custom/b" in row for row in rows.fetchall())
    writer.add(weights(2), "a", domain="natural")
    assert set(rows.df()["model_id"]) <= {"custom/a", "custom/b"}


@pytest.mark.parametrize("stream", ["to_arrow_reader", "iter_rows"])
@pytest.mark.parametrize("change", ["remove", "overwrite"])
def test_streams_of_sql_end_in_one_clear_error(two, stream, change):
    writer, reader = two
    rows = getattr(reader.sql("FROM filters_3x3 ORDER BY ALL"), stream)()
    if change == "remove":
        writer.remove("custom/a")
    else:
        writer.add(weights(5), "a", overwrite=True)
    with pytest.raises(DatabaseError, match="replaced or removed by another process") as caught:
        list(rows)
    assert "\n" not in str(caught.value)
    assert len(list(getattr(reader.sql("FROM filters_3x3"), stream)())) > 0
    with pytest.raises(cnnfilterdb.QueryError, match="Could not convert"):
        list(getattr(reader.sql("SELECT CAST(model_id AS INTEGER) FROM models"), stream)())


def test_a_statement_with_an_effect_is_not_repeated(two):
    _, reader = two
    reader.sql("CREATE SEQUENCE one")
    assert reader.sql("SELECT nextval('one')").fetchall()
    with pytest.raises(cnnfilterdb.QueryError, match="already exists"):
        reader.sql("CREATE SEQUENCE one")


@pytest.mark.parametrize("change", ["remove", "overwrite"])
def test_a_stream_never_mixes_two_states(two, change):
    writer, reader = two
    batches = reader.filter_batches(rows=8)
    assert next(batches)["model_id"][0].as_py() == "custom/a"
    if change == "remove":
        writer.remove("custom/b")
    else:
        writer.add(weights(5, 6), "b", overwrite=True)
    with pytest.raises(DatabaseError, match="replaced or removed by another process") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert len(reader.filters()) == (32 if change == "remove" else 32 + 24)


def test_a_stream_does_not_mind_other_models(two):
    writer, reader = two
    batches = reader.filter_batches(where="name = 'a'", rows=8)
    next(batches)
    writer.remove("custom/b")
    writer.add(weights(3), "c")
    writer.index(refit=True)
    assert sum(batch.num_rows for batch in batches) == 24


def test_a_model_that_is_being_replaced_is_not_absent(two, monkeypatch):
    """The reader asks when the old row is set aside, and the new one is not in place yet."""
    writer, reader = two
    gone, asked, answers = threading.Event(), threading.Event(), []
    real = commits._set_aside

    def set_aside(root, folder, files):
        real(root, folder, files)
        if folder.name.startswith("custom-b-"):
            gone.set()
            asked.wait(60)

    def ask():
        gone.wait(60)
        assert not (writer.storage.path / paths.models_path(paths.slug("custom/b"))).exists()
        threading.Timer(0.2, asked.set).start()
        answers.append(sorted(reader.models()["name"]))

    monkeypatch.setattr(commits, "_set_aside", set_aside)
    monkeypatch.setattr("cnnfilterdb.store.contents._REPLACING", 60)
    thread = threading.Thread(target=ask)
    thread.start()
    writer.add(weights(9), "b", overwrite=True)
    thread.join()
    assert answers == [["a", "b"]]


def test_the_replacement_of_a_killed_writer_is_waited_for_once(two, monkeypatch):
    writer, reader = two
    slug, root = paths.slug("custom/b"), writer.storage.path
    for folder in ("", "replaced/"):
        target = root / paths.STAGING / f"{slug}-killed" / f"{folder}models" / f"{slug}.parquet"
        target.parent.mkdir(parents=True)
        shutil.copy(root / paths.models_path(slug), target)
    (root / paths.models_path(slug)).unlink()
    looks = []
    monkeypatch.setattr("cnnfilterdb.store.contents._REPLACING", 0.05)
    monkeypatch.setattr("cnnfilterdb.store.contents.time.sleep", looks.append)
    assert reader.models()["name"].tolist() == ["a"]
    first = len(looks)
    assert first
    assert reader.models()["name"].tolist() == ["a"]
    assert len(looks) == first


FITTING = """
    import sys, warnings
    import cnnfilterdb

    warnings.simplefilter("ignore")
    with cnnfilterdb.open(sys.argv[1]) as db:
        print("ready", flush=True)
        for number in range(4):
            db.index(refit=True)
            db.annotate("custom/a", license=f"MIT{number}")
        db.add({"a.weight": db.layer_weights("custom/a", 0) + 1}, "b", domain="faces", overwrite=True)
        db.index(refit=True)
"""


@pytest.mark.thorough
def test_a_reader_beside_a_fit_answers_all_the_time(tmp_path):
    path = tmp_path / "fit.db"
    with cnnfilterdb.create(path) as db:
        for number, name in enumerate("abcd"):
            large = np.random.default_rng(number).normal(size=(256, 128, 3, 3)).astype(np.float32)
            db.add({"a.weight": large}, name, domain=["natural", "faces"][number % 2])
        db.index()
        before = db.kl_shift("domain")
    command = [sys.executable, "-P", "-c", textwrap.dedent(FITTING), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as fit:
        fit.stdout.readline()
        asked = 0
        with cnnfilterdb.open(path, read_only=True) as reader:
            while fit.poll() is None or not asked:
                assert len(reader.models()) == 4
                groups = reader.groups("domain")
                np.testing.assert_array_equal(groups.filters, [2 * 256 * 128] * 2)
                counted = groups.counts.sum(axis=(1, 2)) + groups.outside
                np.testing.assert_array_equal(counted, 9 * groups.filters)
                asked += 1
        assert (fit.wait(), fit.stderr.read()) == (0, "")
    with cnnfilterdb.open(path) as db:
        assert db.verify() == []
        assert not db.kl_shift("domain").equals(before)


def test_a_question_waits_for_no_lock(two, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 600)
    writer, reader = two
    store, (basis,) = writer.storage, writer.bases()
    with store.staging(paths.INIT), store.locked(basis.basis_id), store.locked(paths.slug("custom/a")):
        began = time.monotonic()
        assert len(reader.models()) == 2
        assert reader.kl_shift("domain").shape == (2, 2)
        assert len(reader.sql("FROM filters_3x3").df()) == 64
        assert time.monotonic() - began < store_module.LOCK_SECONDS
