from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.errors import (
    BadWeightsError,
    CorruptError,
    DatabaseError,
    LockedError,
    NotADatabaseError,
    SelectionError,
    UnknownModelError,
)
from cnnfilterdb.core.paths import slug
from cnnfilterdb.core.schema import FORMAT_VERSION, LAYERS, MODELS, filter_schema, weight_columns
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store import contents as contents_module
from cnnfilterdb.store import folder as store_module
from cnnfilterdb.store import writer as writer_module
from cnnfilterdb.store.folder import Store

HOSTILE = [
    "pypi/../../etc/passwd",
    "pypi/..",
    'custom/it\'s "quoted" `$HOME`; DROP TABLE models',
    "custom/日本語のモデル",
    "custom/" + "long" * 75,
    "custom/CON",
    "custom/con",
    "custom/a*b?[c]",
    "custom/kernel=3x3",
    "custom/.hidden",
    "custom/_underscore",
    "we ird'%41/source",
]


def files_under(folder: Path) -> set[str]:
    """The files that belong to models."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.parquet")
        if path.name not in ("_empty.parquet", "basis.parquet")
    }


def staged(store: Store) -> list[Path]:
    return list((store.path / ".staging").iterdir())


# ---------------------------------------------------------------------------------------------------------- slugs


@given(st.text())
def test_a_slug_is_one_safe_path_component(model_id):
    name = slug(model_id)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}-[0-9a-f]{10}", name)
    assert name == slug(model_id)


@given(st.text(), st.text())
def test_slugs_of_two_models_differ_even_without_case(one, other):
    assert (slug(one).lower() == slug(other).lower()) == (one == other)


@given(st.text(min_size=1))
def test_slugs_differ_where_only_case_or_the_end_of_a_long_name_differs(text):
    variants = {text, text.upper(), text.lower(), "x" * 100 + text, "x" * 100 + text + "y"}
    assert len({slug(variant).lower() for variant in variants}) == len(variants)


def test_slugs_never_change():
    # Files of existing databases are found by these names.
    assert slug("pypi/facenet_pytorch/onet.pt") == "pypi-facenet_pytorch-onet-pt-262a6a7121"
    assert slug("custom/\u65e5\u672c") == "custom-82072e3e90"
    assert slug("") == "model-e3b0c44298"


# --------------------------------------------------------------------------------------------------- create, open


def test_create_makes_a_database_and_opens_an_existing_one(tmp_path):
    path = tmp_path / "deep" / "db"
    created = Store.create(path)
    assert json.loads((path / "cnnfilterdb.json").read_text())["format_version"] == FORMAT_VERSION
    assert (created.model_ids(), created.kernels(), created.filter_files("3x3"), created.verify()) == ([], [], [], [])
    assert created.models().schema.equals(MODELS)
    assert created.layers().schema.equals(LAYERS)
    assert Store.create(path).path == Store.open(path).path == path


def test_an_empty_folder_becomes_a_database_and_a_full_one_does_not(tmp_path):
    (tmp_path / "empty").mkdir()
    assert Store.create(tmp_path / "empty").model_ids() == []
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(NotADatabaseError, match=r"thesis\.tex.*choose an empty"):
        Store.create(tmp_path)
    with pytest.raises(NotADatabaseError, match="a file, not a database"):
        Store.create(tmp_path / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "thesis.tex"]


def test_a_creation_that_was_interrupted_is_finished(tmp_path):
    store = Store.create(tmp_path / "db")
    (store.path / "cnnfilterdb.json").unlink()
    shutil.rmtree(store.path / "layers")
    assert Store.create(store.path).layers().num_rows == 0


@pytest.mark.parametrize("kind", ["missing", "folder", "file"])
def test_open_refuses_what_is_no_database(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("x")
    with pytest.raises(NotADatabaseError, match=kind if kind == "file" else "database") as caught:
        Store.open(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_open_refuses_another_format_and_a_damaged_marker(store):
    marker = store.path / "cnnfilterdb.json"
    marker.write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(DatabaseError, match="upgrade cnnfilterdb"):
        Store.open(store.path)
    marker.write_text(json.dumps({"format_version": 1}))
    for method in (Store.open, Store.create):
        with pytest.raises(DatabaseError) as caught:
            method(store.path)
        assert str(caught.value) == (
            f"{store.path}: written in format 1, this version reads format 3; ingest its models again into a new folder"
        )
    for text in ("", "{}", "[]", '{"format_version": "one"}'):
        marker.write_text(text)
        with pytest.raises(DatabaseError, match="no format version"):
            Store.create(store.path)


# ----------------------------------------------------------------------------------------------------- write, read


def test_what_is_written_is_read_back_bit_by_bit(store, write_model):
    weights = write_model(store, "pypi/one", seed=1)
    write_model(store, "custom/two", seed=2)

    assert store.model_ids() == ["custom/two", "pypi/one"]
    assert store.has("pypi/one")
    assert not store.has("pypi/on")
    assert store.kernels() == ["1x7", "3x3", "5x5"]
    model = store.models().to_pylist()[1]
    assert (model["source"], model["name"], model["conv_layers"]) == ("pypi", "one", 5)
    assert model["stored_filters"] == sum(len(w) * w.shape[1] for w in weights if w.shape[2:] != (1, 1))
    assert dict(model["metrics"]) == {"top1": 0.5}
    assert [(file["path"], file["rows"]) for file in model["files"]] == [
        (f"filters/kernel=1x7/source=pypi/{slug('pypi/one')}.parquet", 7),
        (f"filters/kernel=3x3/source=pypi/{slug('pypi/one')}.parquet", 48),
        (f"filters/kernel=5x5/source=pypi/{slug('pypi/one')}.parquet", 32),
        (f"layers/{slug('pypi/one')}.parquet", 5),
    ]
    layers = store.layers(["pypi/one"])
    assert layers["layer"].to_pylist() == [0, 1, 2, 3, 4]
    assert layers["stored"].to_pylist() == [True, True, True, False, True]
    assert store.layers()["model_id"].to_pylist() == ["custom/two"] * 5 + ["pypi/one"] * 5
    assert store.layers(columns=["layer_name"]).column_names == ["layer_name"]

    for number, weight in enumerate(weights):
        kernel = f"{weight.shape[2]}x{weight.shape[3]}"
        if kernel == "1x1":
            continue
        (file,) = store.filter_files(kernel, ["pypi/one"])
        table = pq.ParquetFile(file).read()
        table = table.filter(pc.equal(table["layer"], number))
        found = np.stack([table[column].to_numpy() for column in weight_columns(kernel)], axis=1).reshape(weight.shape)
        assert found.tobytes() == weight.tobytes()
        assert table["out_channel"].to_pylist() == np.repeat(np.arange(len(weight)), weight.shape[1]).tolist()
        assert table["in_channel"].to_pylist() == np.tile(np.arange(weight.shape[1]), len(weight)).tolist()
    assert len(store.filter_files("3x3")) == 2
    assert store.filter_files("9x9") == []
    assert store.verify() == []


def test_filters_are_read_with_their_descriptions(store, write_model):
    """Although they are written with another type of the model, which takes less time."""
    write_model(store, "custom/a", shapes=[(2, 3, 3, 3)])
    (path,) = store.filter_files("3x3")
    assert pq.read_schema(path).equals(filter_schema("3x3"), check_metadata=True)
    assert pq.read_table(path)["model_id"].to_pylist() == ["custom/a"] * 6


def test_special_values_keep_their_bits(store):
    values = np.array([-0.0, 1e-45, -3.4e38, np.finfo(np.float32).tiny, 0.1, 1, -1, 2, 0], np.float32)
    with store.writer("custom/special") as writer:
        writer.add_layer({"layer_name": "a", "dtype": "float32"}, values.reshape(1, 1, 3, 3))
        writer.commit({})
    (file,) = store.filter_files("3x3")
    read = pq.ParquetFile(file).read()
    assert (
        np.array([read[column][0].as_py() for column in weight_columns("3x3")], np.float32).tobytes()
        == values.tobytes()
    )
    assert store.verify() == []


@pytest.mark.parametrize("rows", [1, 7, 24, 25, 1000])
def test_row_groups_are_filled_across_layers(store, write_model, monkeypatch, rows):
    monkeypatch.setattr(writer_module, "ROW_GROUP_ROWS", rows)
    write_model(store, "custom/groups")
    (file,) = store.filter_files("3x3")
    metadata = pq.read_metadata(file)
    found = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert found == [rows] * (48 // rows) + [48 % rows] * (48 % rows > 0)
    assert store.verify() == []


def test_filters_are_encoded_as_the_benchmark_chose(store, write_model):
    write_model(store, "custom/encoded")
    (file,) = store.filter_files("3x3")
    column = pq.read_metadata(file).row_group(0).column(4)
    assert column.path_in_schema == "w0"
    assert column.compression == "LZ4"
    assert "BYTE_STREAM_SPLIT" in column.encodings


def test_any_name_is_safe_and_any_engine_reads_it(store, write_model):
    for number, model_id in enumerate(HOSTILE):
        write_model(store, model_id, seed=number)
    assert store.model_ids() == sorted(HOSTILE)
    assert store.verify() == []
    assert {path.parts[0] for path in map(Path, files_under(store.path))} == {"models", "layers", "filters", "index"}

    count = len(HOSTILE)
    sources = {"pypi": 2 * 48, "custom": (count - 3) * 48, "we ird'%41": 48}
    read = duckdb.connect().execute
    hive = f"read_parquet('{store.path}/filters/*/*/*.parquet', hive_partitioning = true, union_by_name = true)"
    found = read(f"SELECT source, count(*) FROM {hive} WHERE kernel = '3x3' GROUP BY source").fetchall()
    assert dict(found) == sources
    assert read(f"SELECT count(*) FROM '{store.path}/models/*.parquet'").fetchone() == (count,)
    joined = f"'{store.path}/layers/*.parquet' JOIN '{store.path}/models/*.parquet' USING (model_id)"
    assert read(f"SELECT count(*), count(DISTINCT model_id) FROM {joined}").fetchone() == (5 * count, count)

    table = ds.dataset(store.path / "filters", partitioning="hive").to_table(filter=ds.field("kernel") == "3x3")
    assert {
        s: n["counts"] for s in sources for n in table["source"].value_counts().to_pylist() if n["values"] == s
    } == sources
    for folder, rows in (("models", count), ("layers", 5 * count)):
        assert ds.dataset(store.path / folder).count_rows() == rows
        assert pq.read_table(store.path / folder).num_rows == rows


@pytest.mark.parametrize("name", ["new\nline", "a\x1b[2J", "a\u202eb", "half \ud800", "long" * 251])
def test_names_that_control_a_terminal_are_refused(store, write_model, name):
    with pytest.raises(SelectionError, match="expected source/name, printable"):
        write_model(store, f"custom/{name}")
    assert store.model_ids() == []


def test_an_empty_database_binds_in_duckdb(store):
    read = duckdb.connect().execute
    for pattern in ("models/*", "layers/*", "filters/kernel=3x3/*/*", "index/*/histograms/*"):
        assert read(f"SELECT count(*) FROM '{store.path}/{pattern}.parquet'").fetchone() == (0,)
    described = read(
        f"DESCRIBE FROM read_parquet('{store.path}/filters/*/*/*.parquet', hive_partitioning = true)"
    ).fetchall()
    assert [row[0] for row in described] == [
        "model_id",
        "layer",
        "out_channel",
        "in_channel",
        *weight_columns("3x3"),
        "kernel",
        "source",
    ]


def test_a_kernel_size_still_binds_when_its_last_model_is_gone(store, write_model):
    write_model(store, "custom/last")
    store.remove("custom/last")
    query = f"SELECT count(*) FROM '{store.path}/filters/kernel=5x5/*/*.parquet'"
    assert duckdb.connect().execute(query).fetchone() == (0,)
    assert store.kernels() == []


def test_a_writer_refuses_what_does_not_fit(store):
    weight = np.ones((2, 1, 3, 3), np.float32)
    row = {"layer_name": "a", "dtype": "float32"}
    for bad in (
        {"kernal": "3x3"},
        {"kernel": "5x5"},
        {"filters": 3},
        {"layer": 1},
        {"stored": False},
        {"layer_name": None},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))), store.writer("custom/a") as writer:
            writer.add_layer(row | bad, weight)
    with pytest.raises(ValueError, match="float32"), store.writer("custom/a") as writer:
        writer.add_layer(row, weight.astype(np.float64))
    for value in (np.nan, np.inf):
        with pytest.raises(BadWeightsError, match="NaN or infinite"), store.writer("custom/a") as writer:
            writer.add_layer(row, np.where(weight == 1, np.float32(value), weight))
    with pytest.raises(ValueError, match="source"), store.writer("custom/a") as writer:
        writer.commit({"source": "pypi"})
    with pytest.raises(ValueError, match="taks"), store.writer("custom/a") as writer:
        writer.commit({"taks": "Segmentation"})
    for name in ("noslash", "/name", "source/", ""):
        with pytest.raises(SelectionError, match="source/name"), store.writer(name):
            pass
    assert (store.model_ids(), staged(store), files_under(store.path)) == (
        [],
        [],
        set(),
    )


def test_an_error_inside_the_block_passes_through_and_leaves_nothing(store, write_model):
    write_model(store, "custom/there")
    before = files_under(store.path)

    def broken_weights():
        with store.writer("custom/new") as writer:
            writer.add_layer({"layer_name": "a", "dtype": "float32"}, np.ones((2, 1, 3, 3), np.float32))
            raise OSError("from reading the weights")

    with pytest.raises(OSError, match="from reading the weights") as caught:
        broken_weights()
    assert type(caught.value) is OSError
    with store.writer("custom/new"):
        pass  # no commit
    assert files_under(store.path) == before
    assert staged(store) == []


def test_overwrite_replaces_all_files(store, write_model):
    write_model(store, "custom/a", seed=1)
    with pytest.raises(DatabaseError, match="already"), store.writer("custom/a"):
        pass
    write_model(store, "custom/a", seed=2, shapes=[(4, 2, 7, 7), (3, 4, 3, 3)], overwrite=True)
    assert store.kernels() == ["3x3", "7x7"]
    assert store.models()["domain"].to_pylist() == ["seed 2"]
    assert store.layers().num_rows == 2
    assert store.verify() == []


def test_removal_leaves_no_file_of_the_model(store, write_model):
    write_model(store, "custom/stays")
    before = files_under(store.path)
    write_model(store, "custom/goes")
    assert f"index/3x3-test/histograms/{slug('custom/goes')}.parquet" in files_under(store.path)
    store.remove("custom/goes")
    assert files_under(store.path) == before
    assert store.verify() == []
    with pytest.raises(UnknownModelError, match="near: custom/stays"):
        store.remove("custom/stay")
    for method in (lambda: store.layers(["custom/stay"]), lambda: store.filter_files("3x3", ["custom/stay"])):
        with pytest.raises(UnknownModelError):
            method()


def test_a_damaged_table_is_named(store, write_model):
    write_model(store, "custom/a")
    path = store.path / f"models/{slug('custom/a')}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match=slug("custom/a")) as caught:
        store.models()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["models", "layers"])
def test_a_table_is_read_again_if_a_model_is_replaced_meanwhile(store, write_model, tmp_path, monkeypatch, table):
    write_model(store, "custom/a", seed=1, shapes=[(2, 1, 3, 3)] * 3)
    file = store.path / f"{table}/{slug('custom/a')}.parquet"

    def disturbed(*arguments, original=contents_module.read_rows):
        monkeypatch.setattr(contents_module, "read_rows", original)
        file.rename(tmp_path / "away")  # as another process does when it replaces the model
        try:
            return original(*arguments)
        finally:
            (tmp_path / "away").rename(file)
            write_model(store, "custom/a", seed=2, shapes=[(2, 1, 3, 3)] * 2, overwrite=True)

    monkeypatch.setattr(contents_module, "read_rows", disturbed)
    assert getattr(store, table)().num_rows == {"models": 1, "layers": 2}[table]
    assert store.models()["domain"].to_pylist() == ["seed 2"]


def test_init_sql_is_written_once_and_whole(store):
    store.write_init("SELECT 1;")
    assert (store.path / "init.sql").read_text().splitlines()[0] == "SELECT 1;"
    before = (store.path / "init.sql").stat().st_ino
    store.write_init("SELECT 1;")
    assert (store.path / "init.sql").stat().st_ino == before
    store.write_init("SELECT 2;")
    assert (store.path / "init.sql").read_text().splitlines()[0] == "SELECT 2;"
    assert staged(store) == []


# ------------------------------------------------------------------------------------------------------- full disk


def failing(monkeypatch, point: int, error: int) -> list[str]:
    """Let the point-th call that writes, flushes, renames or makes a folder fail. The list shows which one it was."""
    calls = itertools.count()
    failed = []

    def wrap(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if next(calls) == point:
                failed.append(name)
                raise OSError(error, "injected")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, name in (
        (os, "replace"),
        (os, "mkdir"),
        (os, "fsync"),
        (pq.ParquetWriter, "write_table"),
        (pq.ParquetWriter, "close"),
    ):
        wrap(owner, name)
    return failed


@pytest.mark.thorough
@pytest.mark.parametrize("there", [False, True], ids=["new", "overwrite"])
def test_a_full_disk_is_one_line_and_leaves_nothing_visible(store, write_model, there):
    small = [(2, 1, 3, 3), (1, 2, 5, 5)]
    write_model(store, "custom/other", seed=5, shapes=small)
    if there:
        write_model(store, "custom/a", seed=1, shapes=small)
    before = files_under(store.path)
    messages, kinds = set(), set()
    for point in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            failed = failing(patch, point, errno.ENOSPC)
            try:
                write_model(store, "custom/a", seed=2, shapes=small, overwrite=there)
            except DatabaseError as error:
                messages.add(str(error))
                kinds.update(failed)
            else:
                if not failed:
                    break
                # Making a folder that is there already may fail without harm, and the flush after the commit.
                assert failed in (["mkdir"], ["fsync"])
                write_model(store, "custom/a", seed=1, shapes=small, overwrite=True)
                if not there:
                    store.remove("custom/a")
                continue
        assert store.has("custom/a") == there
        assert files_under(store.path) == before
        assert staged(store) == []
        assert store.verify() == []
    assert kinds == {"mkdir", "fsync", "replace", "write_table", "close"}
    assert messages == {f"{store.path}: the disk is full; free some space and run it again"}
    assert store.models()["domain"].to_pylist() == ["seed 2", "seed 5"]


def test_other_failures_of_the_disk_are_reported_too(store, write_model, monkeypatch):
    failing(monkeypatch, 3, errno.EIO)
    with pytest.raises(DatabaseError, match=r"cannot be written: .*check the folder"):
        write_model(store, "custom/a")


def test_a_staging_folder_is_held_by_one_and_cleaned_after_it(store, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.05)
    with store.staging("3x3-new") as folder:
        (folder / "histograms").mkdir()
        (folder / "histograms" / "x.parquet").write_bytes(b"half written")
        with pytest.raises(LockedError, match="3x3-new"), store.staging("3x3-new"):
            pass
        assert store.recover() == []
        assert store.verify() == []
        kept = shutil.copytree(folder, folder.with_name("3x3-new-leftover"))
    assert not folder.exists()
    assert store.recover() == [kept.relative_to(store.path).as_posix()]
    assert staged(store) == []


def run_script(script: str, *args: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(command, text=True, capture_output=True, timeout=600, **options)


MEMORY = """
    import sys, tracemalloc
    import numpy as np
    import pyarrow as pa
    from cnnfilterdb.store.folder import Store

    store = Store.open(sys.argv[1])
    weight = np.random.default_rng(0).normal(size=(512, 512, 3, 3)).astype(np.float32)  # 9.4 MB
    with store.writer("custom/small") as writer:  # imports what is imported when it is used
        writer.add_layer({"layer_name": "a", "dtype": "float32"}, weight[:2, :2])
        writer.commit({})
    tracemalloc.start()
    with store.writer("custom/large") as writer:
        for number in range(int(sys.argv[2])):
            writer.add_layer({"layer_name": str(number), "dtype": "float32"}, weight)
        writer.commit({})
    print(tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory())
"""


def test_memory_of_a_writer_does_not_grow_with_the_model(store):
    arrays, buffers = map(int, run_script(MEMORY, store.path, 20).stdout.split())
    assert max(file.stat().st_size for file in store.filter_files("3x3")) > 150e6
    assert 1e6 < arrays < 20e6
    assert 1e5 < buffers < 50e6


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_a_real_limit_on_the_size_of_files(store):
    script = """
        import resource, signal, sys
        import numpy as np
        from cnnfilterdb.core.errors import DatabaseError
        from cnnfilterdb.store.folder import Store

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        store = Store.open(sys.argv[1])
        weight = np.random.default_rng(0).normal(size=(512, 256, 3, 3)).astype(np.float32)
        try:
            with store.writer("custom/large") as writer:
                writer.add_layer({"layer_name": "a", "dtype": "float32"}, weight)
                writer.commit({})
        except DatabaseError as error:
            print(error)
    """
    done = run_script(script, store.path)
    assert re.fullmatch(r".*cannot be written: File too large; check the folder and its permissions\n", done.stdout)
    assert done.stderr == ""
    assert (store.model_ids(), staged(store), store.verify()) == ([], [], [])


# ------------------------------------------------------------------------------------------------ kills and races

# Imports once, then forks for every point at which the process is killed: before the n-th call of the operating system
# that makes, renames or removes a name, whichever of these it is.
KILLED = """
    import itertools, os, shutil, signal, sys
    import numpy as np
    import pandas  # Arrow imports it, which every child would do again
    from cnnfilterdb.store.folder import Store

    case, before, folder = sys.argv[1:]

    def write(store, seed):
        rng = np.random.default_rng(seed)
        with store.writer("custom/a", overwrite=True) as writer:
            for number, size in enumerate((3, 5, 3) if seed == 1 else (3, 7)):
                weight = rng.normal(size=(4, 3, size, size)).astype(np.float32)
                writer.add_layer({"layer_name": str(number), "dtype": "float32"}, weight)
            writer.commit({"domain": f"seed {seed}"})

    def at(point):
        calls = itertools.count()
        for name in ("replace", "mkdir", "unlink", "rmdir"):
            def wrapped(*args, original=getattr(os, name), **kwargs):
                if next(calls) == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)
            setattr(os, name, wrapped)

    def forked(action):
        # Arrow starts threads, which a fork would lose: they live in the children only.
        pid = os.fork()
        if pid == 0:
            action()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def prepare():
        store = Store.create(before)
        if case != "new":
            write(store, 1)

    forked(prepare)
    for point in itertools.count():
        path = f"{folder}/{point}"
        shutil.copytree(before, path)

        def change():
            store = Store.open(path)
            at(point)
            store.remove("custom/a") if case == "remove" else write(store, 2)

        if forked(change) == 0:
            print(point)
            break
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("case", ["new", "overwrite", "remove"])
def test_a_model_is_there_whole_or_not_at_all_whenever_the_process_is_killed(tmp_path, write_model, case):
    done = run_script(KILLED, case, tmp_path / "before", tmp_path)
    assert done.stderr == ""
    points = int(done.stdout)
    assert points > (4 if case == "remove" else 25)
    outcomes = set()
    for point in range(points):
        reader = Store.open(tmp_path / str(point))
        seen = reader.models()["domain"].to_pylist()
        assert reader.verify(reader.model_ids()) == []
        assert reader.layers().num_rows == {(): 0, ("seed 1",): 3, ("seed 2",): 2}[tuple(seen)]

        if point % 3 == 0:  # the next writer of the model clears up as well as the next opening does
            write_model(reader, "custom/a", seed=3, shapes=[(2, 2, 5, 5)], overwrite=True)
            assert reader.models()["domain"].to_pylist() == ["seed 3"]
            assert (reader.verify(), staged(reader)) == ([], [])
            continue
        store = Store.create(reader.path)
        before = {path: path.stat().st_ino for path in store.path.rglob("*")}
        assert before == {path: path.stat().st_ino for path in store.path.rglob("*")}
        store.recover()
        found = tuple(store.models()["domain"].to_pylist())
        assert (store.verify(), staged(store), store.recover()) == ([], [], [])
        # A commit or a removal that was decided is finished.
        assert found in (tuple(seen), () if case == "remove" else ("seed 2",))
        outcomes.add(found)
    # What was being replaced is never lost: either the old model or the new one is there.
    assert (
        outcomes
        == {
            "new": {(), ("seed 2",)},
            "overwrite": {("seed 1",), ("seed 2",)},
            "remove": {(), ("seed 1",)},
        }[case]
    )


LOOP = """
    import os, random, signal, sys, time
    import numpy as np
    import pandas  # see above
    from cnnfilterdb.store.folder import Store

    def write(path, seed, rounds):
        store = Store.create(path)
        rng = np.random.default_rng(seed)
        for number in range(rounds):
            with store.writer(f"custom/{number % 5}", overwrite=True) as writer:
                for layer in range(6):
                    weight = rng.normal(size=(32, 32, 3 + 2 * (layer % 2), 3)).astype(np.float32)
                    writer.add_layer({"layer_name": str(layer), "dtype": "float32"}, weight)
                writer.commit({})

    for seed in range(12):
        pid = os.fork()
        if pid == 0:
            write(sys.argv[1], seed, 1_000_000 if seed else 1)
            os._exit(0)
        if seed == 0:  # one model at least, however busy the machine is
            os.waitpid(pid, 0)
            continue
        time.sleep(random.Random(seed).uniform(0.02, 0.4))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kills_at_any_time_leave_a_sound_database(store):
    assert run_script(LOOP, store.path).stderr == ""
    reader = Store.open(store.path)
    assert reader.verify(reader.model_ids()) == []
    cleaned = Store.create(store.path)
    cleaned.recover()
    assert len(cleaned.model_ids()) >= 1
    assert cleaned.verify() == []
    assert staged(cleaned) == []


HOLD = """
    import sys
    import numpy as np
    from cnnfilterdb.store.folder import Store

    with Store.open(sys.argv[1]).writer("custom/held") as writer:
        writer.add_layer({"layer_name": "a", "dtype": "float32"}, np.ones((2, 1, 3, 3), np.float32))
        print("held", flush=True)
        if sys.stdin.readline():
            writer.commit({})
"""


@pytest.fixture
def holder(store):
    """Another process that is writing custom/held."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(HOLD), str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_writer_at_a_time_per_model(store, holder, write_model, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    with (
        pytest.raises(LockedError, match="custom/held: another process is writing it; wait"),
        store.writer("custom/held"),
    ):
        pass
    with pytest.raises(LockedError):
        store.remove("custom/held")
    write_model(store, "custom/free")
    assert Store.create(store.path).recover() == []  # what is being written is no leftover
    assert len(staged(store)) == 1
    holder.communicate("commit\n", timeout=600)
    assert store.model_ids() == ["custom/free", "custom/held"]
    assert store.verify() == []


def test_the_next_writer_takes_over_from_a_killed_one(store, holder, write_model):
    holder.kill()
    holder.wait()
    assert len(staged(store)) == 1
    write_model(store, "custom/held")
    assert staged(store) == []
    assert store.verify() == []


MANY = """
    import os, sys
    import numpy as np
    import pandas  # see above
    from cnnfilterdb.store import folder
    from cnnfilterdb.store.folder import Store

    folder.LOCK_SECONDS = 600  # however busy the machine is
    pids = []
    for worker in range(4):
        pid = os.fork()
        if pid == 0:
            store = Store.create(sys.argv[1])
            for number in range(6):
                # All fight over custom/shared; the rest is their own.
                for name, overwrite in ((f"custom/{worker}-{number}", False), ("custom/shared", True)):
                    with store.writer(name, overwrite=overwrite) as writer:
                        weight = np.full((8, 8, 3, 3), worker + 1, np.float32)
                        writer.add_layer({"layer_name": "a", "dtype": "float32"}, weight)
                        writer.commit({})
            os._exit(0)
        pids.append(pid)
    print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def test_a_database_that_appears_while_its_folder_is_looked_at_is_opened(tmp_path, monkeypatch):
    """Another process may have made it between the look for its marker and the list of what is in the folder."""
    path = tmp_path / "db"
    listed = Path.iterdir

    def late(self):
        if self == path:
            monkeypatch.setattr(Path, "iterdir", listed)
            Store.create(path)
            (path / "init.sql").touch()
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", late)
    assert Store.create(path).model_ids() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_create_and_fill_one_database_together(tmp_path):
    done = run_script(MANY, tmp_path / "db")
    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0]\n", "")
    store = Store.open(tmp_path / "db")
    assert len(store.model_ids()) == 25
    assert store.verify() == []


# ------------------------------------------------------------------------------------- opening, strangers, recovery


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_opening_and_reading_change_nothing_whatever_is_there(store, write_model):
    write_model(store, "custom/a")
    (store.path / "layers" / "my_own_notes.parquet").write_bytes(b"mine")
    (store.path / "layers" / "other-0123456789.parquet").write_bytes(b"a stray")
    staged_folder = store.path / ".staging" / "custom-b-x"
    staged_folder.mkdir()
    (staged_folder / "half").write_bytes(b"x")
    (store.path / ".locks" / "x.lock").touch()
    before = everything(store.path)
    for method in (Store.open, Store.create):
        opened = method(store.path)
        assert opened.model_ids() == ["custom/a"]
        opened.layers()
    assert everything(store.path) == before


def test_models_moved_away_and_back_lose_nothing(store, write_model):
    for name in "abc":
        write_model(store, f"custom/{name}", seed=ord(name))
    before = everything(store.path)
    (store.path / "models").rename(store.path.parent / "models")
    opened = Store.create(store.path)
    opened.recover()
    write_model(opened, "custom/d")
    for file in (store.path.parent / "models").iterdir():
        file.rename(store.path / "models" / file.name)
    assert store.model_ids() == ["custom/a", "custom/b", "custom/c", "custom/d"]
    assert store.verify() == []
    assert before.items() <= everything(store.path).items()


def test_files_in_the_way_of_a_new_model_are_kept(store, write_model):
    write_model(store, "custom/a", seed=1)
    old = {path: content for path, content in everything(store.path).items() if slug("custom/a") in path}
    (store.path / "models" / f"{slug('custom/a')}.parquet").unlink()
    with pytest.warns(UserWarning, match="moved to .quarantine"):
        write_model(store, "custom/a", seed=2)
    kept = {
        path.split("/", 2)[2]: c for path, c in everything(store.path).items() if c and path.startswith(".quarantine/")
    }
    assert kept.items() >= {path: old[path] for path in old if path.startswith(("layers", "filters"))}.items()
    assert store.verify() == []


def staged_by(store: Store, name: str, record: object, files: dict[str, bytes]) -> Path:
    folder = store.path / ".staging" / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commit.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


EVIL = slug("custom/evil")
ROW = f"models/{EVIL}.parquet"


@pytest.mark.parametrize(
    "record",
    [
        {"model_id": "custom/evil", "files": ["../../../victim", ROW]},
        {"model_id": "custom/evil", "files": ["/tmp/cnnfilterdb-victim", ROW]},
        {"model_id": "custom/evil", "files": ["cnnfilterdb.json", ROW]},
        {"model_id": "custom/evil", "files": [f"index/../../{EVIL}.parquet", ROW]},
        {"model_id": "custom/evil", "files": [f"filters/kernel=../source=custom/{EVIL}.parquet", ROW]},
        {"model_id": "custom/evil", "files": [f"layers/{slug('custom/a')}.parquet", ROW]},
        {"model_id": "custom/evil", "files": [ROW, ROW]},
        {"model_id": "custom/evil", "files": []},
        {"model_id": "custom/evil", "files": [7]},
        {"model_id": "custom/a", "files": [f"models/{slug('custom/a')}.parquet"]},
        {"model_id": 7, "files": [ROW]},
        {"files": [ROW]},
        [],
        "",
        "[" * 100_000,
        "{",
    ],
    ids=str,
)
def test_a_forged_commit_record_moves_nothing(store, write_model, record):
    write_model(store, "custom/a")
    victim = store.path.parent / "victim"
    victim.write_text("precious")
    before = everything(store.path)
    staged_by(store, f"{EVIL}-1", record, {"victim": b"x", ROW: b"row", "cnnfilterdb.json": b"x"})
    with pytest.warns(UserWarning, match="is not what this package leaves"):
        store.recover()
    assert victim.read_text() == "precious"
    assert before.items() <= everything(store.path).items()
    assert all(path.startswith((".quarantine", ".locks/")) for path in set(everything(store.path)) - set(before))
    assert not staged(store)
    write_model(store, "custom/evil")
    assert store.verify() == []


def test_links_in_the_staging_folder_are_refused(store, write_model, tmp_path):
    outside = tmp_path / "outside"
    (outside / "models").mkdir(parents=True)
    (outside / ROW).write_bytes(b"row")
    (outside / "commit.json").write_text(json.dumps({"model_id": "custom/evil", "files": [ROW]}))
    (store.path / ".staging" / f"{EVIL}-1").symlink_to(outside)
    folder = staged_by(store, f"{EVIL}-2", {"model_id": "custom/evil", "files": [ROW]}, {})
    (folder / "models").symlink_to(outside / "models")
    folder = staged_by(store, f"{EVIL}-3", {"model_id": "custom/evil", "files": [ROW]}, {})
    (folder / "models").mkdir()
    os.mkfifo(folder / ROW)
    with pytest.warns(UserWarning, match="is not what this package leaves"):
        store.recover()
    assert sorted(path.name for path in outside.rglob("*")) == ["commit.json", f"{EVIL}.parquet", "models"]
    assert not (store.path / ROW).exists()
    shutil.rmtree(store.path / ".staging")
    (store.path / ".staging").symlink_to(outside)
    with pytest.raises(DatabaseError, match="link"):
        Store.create(store.path)
    with pytest.raises(DatabaseError, match="link"):
        write_model(store, "custom/b")
    assert len(list(outside.rglob("*"))) == 3


def test_a_release_is_not_a_database_folder(store):
    marker = store.path / "cnnfilterdb.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"layout": "release"}))
    before = everything(store.path)
    for method in (Store.open, Store.create):
        with pytest.raises(NotADatabaseError, match="read-only"):
            method(store.path)
    assert everything(store.path) == before


# -------------------------------------------------------------------------------------------------------- removal

REMOVED = """
    import itertools, os, shutil, signal, sys
    import pandas  # see above
    from cnnfilterdb.store import annotations
    from cnnfilterdb.store.folder import Store

    before, folder = sys.argv[1:]
    for point in itertools.count():
        path = f"{folder}/{point}"
        shutil.copytree(before, path)
        pid = os.fork()
        if pid == 0:
            store = Store.open(path)
            calls = itertools.count()
            for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
                def wrapped(*args, original=getattr(os, name), **kwargs):
                    if next(calls) == point:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)
                setattr(os, name, wrapped)
            store.remove("custom/a", "custom/b")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            print(point)
            break
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_removal_of_annotated_models_is_whole_and_can_be_repeated_whenever_it_is_killed(tmp_path, store, write_model):
    for name in "abc":
        write_model(store, f"custom/{name}", shapes=[(2, 1, 3, 3)])
    notes.change(store, lambda facts: facts.update({f"custom/{name}": {"domain": "faces"} for name in "abc"}))
    done = run_script(REMOVED, store.path, tmp_path)
    assert done.stderr == ""
    points, outcomes = int(done.stdout), set()
    assert points > 20
    for point in range(points):
        killed = Store.open(tmp_path / str(point))
        if point % 2:
            killed.recover()
            ids, known = killed.model_ids(), notes.stored_facts(killed.path)
            outcomes.add(tuple(ids))
            assert set(known) == set(ids)
            assert (killed.verify(), notes.annotation_problems(killed), staged(killed)) == ([], [], [])
        if point % 4 != 1:
            killed = Store.open(killed.path)
            try:
                killed.remove("custom/a", "custom/b")
            except UnknownModelError:
                # Only where a recovery that somebody asked for has finished the removal, or the removal had ended.
                assert point % 2 or point >= points - 3
                assert killed.model_ids() == ["custom/c"]
            assert killed.model_ids() == ["custom/c"]
            assert set(notes.stored_facts(killed.path)) == {"custom/c"}
            assert (killed.verify(), notes.annotation_problems(killed), staged(killed)) == ([], [], [])
    assert outcomes == {("custom/a", "custom/b", "custom/c"), ("custom/c",)}


def test_a_removal_that_fails_removes_nothing(store, write_model, holder, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    for name in "abc":
        write_model(store, f"custom/{name}", shapes=[(2, 1, 3, 3)])
    before = {path: content for path, content in everything(store.path).items() if not path.startswith(".")}
    for bad, error in (("custom/held", LockedError), ("custom/nope", UnknownModelError)):
        with pytest.raises(error):
            store.remove("custom/a", "custom/b", bad)
    for point in range(0, 40, 3):
        with pytest.MonkeyPatch.context() as patch:
            failed = failing(patch, point, errno.EIO)
            try:
                store.remove("custom/a", "custom/b")
            except DatabaseError:
                pass
            else:
                assert not failed or failed == ["mkdir"]
                break
        assert {path: c for path, c in everything(store.path).items() if not path.startswith(".")} == before
    store.remove("custom/c", "custom/c")
    assert "custom/c" not in store.model_ids()


def test_annotations_that_were_changed_or_deleted_are_found(store, write_model):
    write_model(store, "custom/a")
    notes.change(store, lambda facts: facts.update({"custom/a": {"domain": "faces"}}))
    path = store.path / "annotations.csv"
    content = path.read_bytes()
    assert notes.annotation_problems(store) == []
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert notes.annotation_problems(store) != []
    path.write_text("model_id,column,value\ncustom/a,domain,art\n")  # edited by hand
    (problem,) = notes.annotation_problems(store)
    assert "verify --repair` accepts it" in problem.message
    notes.accept(store)
    assert notes.annotation_problems(store) == []
    path.unlink()
    (problem,) = notes.annotation_problems(store)
    assert "is missing" in problem.message
    notes.accept(store)
    assert notes.annotation_problems(store) == []
