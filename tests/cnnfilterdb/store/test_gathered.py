"""Copies of the small tables of many models: answers are those of the files of the models, whatever happens."""

import hashlib
import json
import os
import shutil
import tempfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core import paths
from cnnfilterdb.store import contents, gathered
from cnnfilterdb.store.folder import Store

QUESTIONS = {
    "models": lambda db: db.models(),
    "layers": lambda db: db.layers(),
    "shift": lambda db: db.kl_shift("name"),
    "depth": lambda db: db.kl_shift("layer"),
    "balanced": lambda db: db.kl_shift("domain", balance="models", all_layers=True, recipe="medneurips2022"),
    "5x5": lambda db: db.kl_shift("name", kernel="5x5"),
    "sql": lambda db: db.sql("SELECT model_id, layer, recipe, counts FROM histograms ORDER BY ALL").df(),
    "fingerprints": lambda db: db.sql("SELECT model_id, layer, kurtosis FROM fingerprints ORDER BY ALL").df(),
    "facts": lambda db: db.sql("SELECT model_id, layer, kernel FROM facts ORDER BY ALL").df(),
    "keys": lambda db: pd.DataFrame(db.storage.model_ids()),
}


#: Questions that need no index.
PLAIN = ("models", "layers", "facts", "keys")


def answers(db, names=tuple(QUESTIONS)):
    return {name: QUESTIONS[name](db) for name in names}


def assert_same(found, expected):
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(found[name], frame, obj=name)


@pytest.fixture
def few(monkeypatch):
    """Gather two models or more."""
    monkeypatch.setattr(gathered, "LEAST", 2)


@pytest.fixture
def path(sample_path, tmp_path, few):
    """A database whose five models are gathered."""
    path = tmp_path / "my [*] db"
    shutil.copytree(sample_path, path)
    with cnnfilterdb.open(path) as db:
        db.index()
        assert set(db._store.listed()["models"]) - {"models/_empty.parquet"} == {chunk_table(path, "models")}
    return path


def chunks(path):
    return sorted((path / paths.GATHERED).glob("*/members.json"))


def chunk_table(path, table):
    (members,) = chunks(path)
    return f"{paths.GATHERED}/{members.parent.name}/{table}.parquet"


def weights(seed):
    return {"a.weight": np.random.default_rng(seed).normal(size=(4, 2, 3, 3)).astype(np.float32)}


def plain_answers(path, names=tuple(QUESTIONS)):
    """The answers from the files of the models alone."""
    aside = path.with_name("aside")
    if (path / paths.GATHERED).exists():
        (path / paths.GATHERED).rename(aside)
    try:
        with cnnfilterdb.open(path, read_only=True) as db:
            return answers(db, names)
    finally:
        if aside.exists():
            aside.rename(path / paths.GATHERED)


def test_answers_are_those_of_the_files(path):
    with cnnfilterdb.open(path) as db:
        found = answers(db)
        assert db.verify() == []
    assert_same(found, plain_answers(path))
    with cnnfilterdb.open([path]) as parts:  # as a part, too
        pd.testing.assert_frame_equal(parts.kl_shift("name"), found["shift"])


def test_every_table_is_read_from_the_copy(path):
    """So that the other tests compare what they mean to: without the files of the models, answers are the same."""
    with cnnfilterdb.open(path) as db:
        expected = answers(db)
    for pattern in ("layers/*", "index/fingerprints/*", "index/[0-9]*/histograms/*"):
        for file in path.glob(f"{pattern}.parquet"):
            if file.stem != paths.EMPTY:
                os.truncate(file, 0)
    with cnnfilterdb.open(path, read_only=True) as db:
        assert_same(answers(db), expected)


def replace_model(db):
    db.add(weights(9), "face", overwrite=True, new_words=True)


def add_model(db):
    db.add(weights(8), "late", new_words=True)


def remove_model(db):
    db.remove("custom/face")


def annotate(db):
    db.annotate("custom/face", domain="natural")


def refit(db):
    db.add(weights(7), "late", new_words=True)
    db.index(refit=True)


@pytest.mark.parametrize("change", [replace_model, add_model, remove_model, annotate, refit])
@pytest.mark.parametrize("gather", [True, False])
def test_a_change_is_seen_at_once(path, change, gather, monkeypatch):
    """By a process that was there before, too; whether or not the change is gathered."""
    if not gather:
        monkeypatch.setattr(Store, "gather", lambda self: None)
    with cnnfilterdb.open(path, read_only=True) as reader, cnnfilterdb.open(path) as db:
        before = answers(reader, PLAIN)
        change(db)
        after = answers(reader, PLAIN)
        assert_same(after, plain_answers(path, PLAIN))
        assert any(not before[name].equals(after[name]) for name in before)
        db._ensure_index(fingerprints=True)
        assert_same(answers(reader), plain_answers(path))
        assert db.verify() == []


def test_the_layers_of_most_models_come_from_the_copies(path, monkeypatch):
    read, opened = contents.read_rows, []

    def counted(root, files, *arguments):
        files = list(files)
        opened.append(len(files))
        return read(root, files, *arguments)

    monkeypatch.setattr(contents, "read_rows", counted)
    with cnnfilterdb.open(path) as db:
        ids = db.storage.model_ids()
        expected = db.storage.layers()
        for chosen, few in ((ids[1:], True), (ids[:1], False), ([], False)):
            opened.clear()
            rows = db.storage.layers(chosen, columns=["layer", "layer_name"])
            keep = pc.is_in(expected["model_id"], pa.array(chosen, pa.string()))
            assert rows.equals(expected.filter(keep).select(["layer", "layer_name"]))
            assert opened == [2 if few else len(chosen) + 1]


def test_another_model_whose_rows_are_damaged_does_not_matter(path):
    with cnnfilterdb.open(path) as db:
        ids = db.storage.model_ids()
        db.add(weights(0), "late", new_words=True)
        expected = db.storage.layers(ids)
        (path / paths.layers_path(paths.slug("custom/late"))).write_bytes(b"no Parquet")
    with cnnfilterdb.open(path) as db:
        assert db.storage.layers(ids).equals(expected)
        with pytest.raises(cnnfilterdb.CorruptError, match="late"):
            db.storage.layers([*ids, "custom/late"])


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "replace"]), st.integers(0, 5)), max_size=6))
def test_any_sequence_of_changes(changes):
    """Which models are gathered, and in which folders, never shows."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered, "LEAST", 2)
        with cnnfilterdb.create(f"{folder}/db") as db:
            present = {}
            for seed, (change, number) in enumerate(changes):
                name = f"m{number}"
                if change == "remove":
                    if present.pop(name, None) is not None:
                        db.remove(f"custom/{name}")
                elif change == "replace" or name not in present:
                    db.add(weights(seed), name, overwrite=True, new_words=True)
                    present[name] = seed
                found = dict(db.sql("SELECT name, tensor_sha256 FROM facts").fetchall())
                expected = {
                    name: hashlib.sha256(weights(seed)["a.weight"].tobytes()).hexdigest()
                    for name, seed in present.items()
                }
                assert found == expected
                assert set(db.models()["name"]) == set(present)
                most = sorted(present)[: -(-2 * len(present) // 3)]
                rows = db.storage.layers([f"custom/{name}" for name in most], columns=["tensor_sha256"])
                assert rows["tensor_sha256"].to_pylist() == [expected[name] for name in most]


def test_a_copied_folder_is_not_trusted_and_gathered_again(path, tmp_path):
    """Nobody can bring copies that differ from the models: they have other inodes."""
    copy = tmp_path / "copy.db"
    shutil.copytree(path, copy)
    with cnnfilterdb.open(copy) as db:
        assert db._store.listed() == {}
        expected = answers(db)
        db.index()
        assert db._store.listed()
        assert_same(answers(db), expected)
        assert len(chunks(copy)) == 1


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "random": lambda file: overwrite(file, lambda content: np.random.default_rng(0).bytes(len(content))),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "missing": lambda file: file.unlink(),
}


def overwrite(file, change):
    """Change the content of a file, which keeps its inode, time and size."""
    status = file.stat()
    with file.open("r+b") as opened:
        content = opened.read()
        opened.seek(0)
        opened.write(change(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.thorough
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("table", ["models", "layers", "histograms-3x3-*", "totals-3x3-*", "members"])
def test_damage_is_never_an_error_of_a_question(path, damage, table):
    expected = plain_answers(path)
    (file,) = path.glob(f"{paths.GATHERED}/*/{table}.*")
    DAMAGE[damage](file)
    with cnnfilterdb.open(path, read_only=True) as db:
        assert_same(answers(db), expected)
    with cnnfilterdb.open(path) as db:
        db.index()
        assert db.verify() == []
        assert_same(answers(db), expected)


def list_again(path, file, digest):
    """Write the state of a file into the list of members."""
    (listed,) = chunks(path)
    content = json.loads(listed.read_text())
    content["files"][file.name][:2] = [gathered.stamp_of(file.lstat()), digest]
    listed.write_text(json.dumps(content))


@pytest.mark.parametrize("table", ["models", "histograms-3x3-*", "totals-3x3-*"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(path, table, make):
    """A pipe would be read for ever."""
    expected = plain_answers(path)
    (file,) = path.glob(f"{paths.GATHERED}/*/{table}.parquet")
    file.unlink()
    make(file)
    list_again(path, file, "")
    with cnnfilterdb.open(path, read_only=True) as db:
        assert db.storage.gathered.chunks() == []
        assert_same(answers(db), expected)


OTHER_COLUMNS = {
    "the same": lambda table: table,
    "without counts": lambda table: table.drop_columns(["counts"]),
    "without a key": lambda table: table.drop_columns(["model_id"]),
    "text": lambda table: table.set_column(table.column_names.index("low"), "low", [["low"] * table.num_rows]),
    "numbers": lambda table: table.set_column(table.column_names.index("counts"), "counts", [range(table.num_rows)]),
    "one more": lambda table: table.append_column("above_all", [["more"] * table.num_rows]),
}


@pytest.mark.parametrize("table", ["histograms", "totals"])
@pytest.mark.parametrize("change", OTHER_COLUMNS)
def test_a_copy_with_other_columns_is_never_an_error_of_a_question(path, change, table):
    """One that its list of members describes, as a stranger's may."""
    expected = plain_answers(path)
    (file,) = path.glob(f"{paths.GATHERED}/*/{table}-3x3-*.parquet")
    pq.write_table(OTHER_COLUMNS[change](pq.read_table(file)), file)
    list_again(path, file, hashlib.sha256(file.read_bytes()).hexdigest())
    with cnnfilterdb.open(path, read_only=True) as db:
        assert len(db.storage.gathered.chunks()) == (change == "the same")
        for name, ask in QUESTIONS.items():
            pd.testing.assert_frame_equal(ask(db), expected[name], obj=name)
            pd.testing.assert_frame_equal(ask(db), expected[name], obj=f"{name}, again")


def test_verify_finds_a_changed_copy(path):
    file = path / chunk_table(path, "layers")
    overwrite(file, lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with cnnfilterdb.open(path) as db:
        (problem,) = db.verify()
        assert problem.path == file
        assert "has changed" in problem.message
        assert db.repair() == [] == db.verify()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"members": 1, "files": {}}', '{"members": {"../x": [1, 2, 3]}, "files": {}}', "[" * 100_000,
     '{"members": {"custom-a-0123456789": [1, 2]}, "files": {}}',
     '{"members": {}, "files": {"../../../etc/passwd": [[1, 2, 3], ""]}}'],
)  # fmt: skip
def test_a_list_of_members_is_validated(path, text):
    (members,) = chunks(path)
    members.write_text(text)
    expected = plain_answers(path)
    with cnnfilterdb.open(path, read_only=True) as db:
        assert_same(answers(db), expected)


def test_a_huge_list_of_members_is_not_read(path):
    with cnnfilterdb.open(path, read_only=True) as db:
        assert len(db.storage.gathered.chunks()) == 1
        with chunks(path)[0].open("a") as file:
            file.write(" " * (8 << 20))
        assert db.storage.gathered.chunks() == []


def test_links_are_not_followed(path, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (path / paths.GATHERED).rename(elsewhere)
    (path / paths.GATHERED).symlink_to(elsewhere)
    with pytest.raises(cnnfilterdb.UnsafePathError, match="a link that leads out"):
        cnnfilterdb.open(path)
    (path / paths.GATHERED).unlink()
    (path / paths.GATHERED).mkdir()
    (path / paths.GATHERED / "linked").symlink_to(next(elsewhere.iterdir()))
    with cnnfilterdb.open(path) as db:
        assert db._store.listed() == {}
        db.index()
        assert len(db._store.listed()) > 2
    assert len(list(elsewhere.glob("*/*"))) > 3  # nothing was removed there


@pytest.mark.parametrize("name", ["0", "z"])
def test_an_index_that_comes_later_is_gathered(sample_path, tmp_path, few, name):
    """Whatever the folder is called that it replaces."""
    path = tmp_path / "db"
    shutil.copytree(sample_path, path)
    shutil.rmtree(path / paths.INDEX)
    with cnnfilterdb.open(path) as db:
        db._store.gather()
        (members,) = chunks(path)
        members.parent.rename(path / paths.gathered_folder(name))
        db.index()
        (members,) = chunks(path)
        assert len(list(members.parent.glob("histograms-*"))) == len(list(members.parent.glob("totals-*"))) > 1
        db._store.gather()
        assert chunks(path) == [members]


def test_a_folder_without_totals_is_gathered_again(path):
    """One of an earlier version."""
    (members,) = chunks(path)
    content = json.loads(members.read_text())
    content["files"] = {name: state for name, state in content["files"].items() if not name.startswith("totals-")}
    members.write_text(json.dumps(content))
    with cnnfilterdb.open(path) as db:
        basis_id = db._bases.current()["3x3"].basis_id
        assert db.storage.totals(basis_id) is None
        assert_same(answers(db), plain_answers(path))
        db._store.gather()
        assert db.storage.totals(basis_id).layers == ()


def test_few_models_are_not_gathered(sample_path, tmp_path):
    shutil.copytree(sample_path, tmp_path / "few.db")
    with cnnfilterdb.open(tmp_path / "few.db") as db:
        db.index()
    assert not (tmp_path / "few.db" / paths.GATHERED).exists()


def test_small_folders_are_joined(tmp_path, few):
    """As models are added one by one, the number of folders grows with the logarithm of their number."""
    with cnnfilterdb.create(tmp_path / "db") as db:
        for number in range(24):
            db.add(weights(number), f"m{number}", new_words=True)
        sizes = [len(json.loads(file.read_text())["members"]) for file in chunks(tmp_path / "db")]
    assert sum(sizes) >= 23
    assert len(sizes) <= 5


def test_rows_that_a_copy_cannot_have_are_refused(path, monkeypatch):
    """A copy states as many rows as its models can have; others are not read."""
    from cnnfilterdb.analysis import connection

    limits = [(table, schema, 0 if table == "layers" else most, names)
              for table, schema, most, names in connection._MOST_ROWS]  # fmt: skip
    monkeypatch.setattr(connection, "_MOST_ROWS", limits)
    with cnnfilterdb.open(path, read_only=True) as db, pytest.raises(cnnfilterdb.CorruptError, match="rows, expected"):
        db.layers()


def test_a_kill_while_gathering_leaves_answers_as_they_were(path):
    """Folders appear as a whole; what a killed process has staged is removed by the next one that writes."""
    staged = path / paths.STAGING / f"{paths.GATHERED}-killed"
    shutil.copytree(chunks(path)[0].parent, staged / "half")
    with cnnfilterdb.open(path) as db:
        assert_same(answers(db), plain_answers(path))
        add_model(db)
        assert_same(answers(db), plain_answers(path))
    assert not staged.exists()


def test_schema_of_a_copy_is_that_of_the_table(path):
    for table in ("models", "layers"):
        copy = pq.read_schema(path / chunk_table(path, table))
        assert copy.equals(pq.read_schema(path / table / "_empty.parquet"))
