"""What parts may be, what they may have in common, and what happens when they change."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.parts import common

NAMES = ("ct-a", "ct-b", "face", "photo-a", "photo-b")


@pytest.fixture(scope="module")
def made(tmp_path_factory, part_of) -> tuple[Path, Path]:
    """Folders with three and two models, with bases of their own. Do not write to them."""
    folder = tmp_path_factory.mktemp("two")
    return part_of(folder / "one.db", NAMES[:3]), part_of(folder / "two.db", NAMES[3:])


@pytest.fixture
def two(tmp_path, made) -> tuple[Path, Path]:
    """Copies of these folders."""
    one, other = (shutil.copytree(path, tmp_path / path.name) for path in made)
    return one, other


def derived_files(db) -> list[Path]:
    return sorted(path for path in db.storage.derived.path.rglob("*.parquet") if not path.name.startswith("_"))


# --------------------------------------------------------------------------------------------------------- bases


def test_parts_that_share_a_basis_are_added_up(tmp_path, sample_path, sample):
    for name in ("one", "two"):
        shutil.copytree(sample_path, tmp_path / name)
    with cnnfilterdb.open(tmp_path / "one") as one, cnnfilterdb.open(tmp_path / "two") as two:
        one.remove("custom/face", "custom/photo-a")
        two.remove("custom/ct-a", "custom/ct-b", "custom/photo-b")
    with cnnfilterdb.open([tmp_path / "one", tmp_path / "two"]) as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
        assert all(path.name == "basis.parquet" for path in derived_files(db))
        assert not (db.storage.derived.path / "fitted").exists()


def test_another_basis_of_the_same_key_is_not_the_same(tmp_path, sample_path, sample):
    """A stranger can give a basis any key."""
    from dataclasses import replace

    shutil.copytree(sample_path, tmp_path / "one")
    shutil.copytree(sample_path, tmp_path / "two")
    with cnnfilterdb.open(tmp_path / "one") as one, cnnfilterdb.open(tmp_path / "two") as two:
        one.remove("custom/face", "custom/photo-a")
        two.remove("custom/ct-a", "custom/ct-b", "custom/photo-b")
        fitted = two._index.current()["3x3"]
        flipped = replace(fitted, basis=replace(fitted.basis, components=-fitted.basis.components))
        two._index.put(flipped)
    with cnnfilterdb.open([tmp_path / "one", tmp_path / "two"]) as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
        assert any("histograms" in path.parts for path in derived_files(db))


def test_the_reference_is_compared_in_its_own_basis(two, sample):
    with cnnfilterdb.open([*two, "reference"]) as db, cnnfilterdb.reference() as reference:
        (fitted,) = db.bases()
        assert fitted.basis_id == reference.bases()[0].basis_id
        found = db.kl_shift("domain", where="part = 'reference'")
        expected = reference.kl_shift("domain")
        np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
        expected = sample.kl_shift("domain", basis=reference.bases()[0].basis)
        found = db.kl_shift("domain", where="part != 'reference'")
        np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())


def test_what_needs_filters_says_which_part_has_none(two):
    with cnnfilterdb.open([two[0], "reference"]) as db:
        for ask in (
            lambda: db.filters(),
            lambda: db.nearest(np.eye(3)),
            lambda: db.kl_shift("part", bins=10),
            lambda: db.descriptors(),
            lambda: db.moments(kernel="5x5"),
        ):
            with pytest.raises(cnnfilterdb.SelectionError, match=r"the part reference has .*, not their filters; "):
                ask()
        with pytest.raises(cnnfilterdb.QueryError, match="the part reference has"):
            db.sql("FROM filters_3x3")
        with pytest.raises(cnnfilterdb.SelectionError, match="the part reference has neither a basis nor filters"):
            db.kl_shift("part", kernel="5x5")
        assert len(db.filters(where="part = 'one.db'")) == len(cnnfilterdb.open(two[0]).filters())
        assert db.nearest(np.eye(3), top=1, where="part != 'reference'")["model_id"][0].startswith("custom/")
    with (
        cnnfilterdb.open(["reference"]) as db,
        pytest.raises(cnnfilterdb.SelectionError, match="the reference corpus has the statistics"),
    ):
        db.filters()


def test_the_second_opening_counts_nothing(two, tmp_path, monkeypatch):
    with cnnfilterdb.open(two) as db:
        expected = db.kl_shift("domain")
    monkeypatch.setattr(common, "fit", None)
    monkeypatch.setattr(common, "model_histograms", None)
    with cnnfilterdb.open(two) as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)
    with cnnfilterdb.open([two[1], two[0]]) as db:  # in another order
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)
    cnnfilterdb.create(tmp_path / "empty.db").close()
    with cnnfilterdb.open([*two, tmp_path / "empty.db"]) as db:  # other parts with the same models
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)


def test_what_is_derived_may_be_damaged_or_deleted_at_any_time(two):
    with cnnfilterdb.open(two) as db:
        expected = db.kl_shift("domain")
        shutil.rmtree(db.storage.derived.path)
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)
        files = derived_files(db)
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with cnnfilterdb.open(two) as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)


def test_a_cache_that_cannot_be_written(two, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "file"))
    with cnnfilterdb.open(two) as db, pytest.warns(UserWarning, match="computed again the next time"):
        assert db.kl_shift("domain").shape == (3, 3)


def test_fingerprints_that_a_part_lacks_are_computed_beside_it(two, sample, tensors):
    with cnnfilterdb.open(two[0]) as writer:
        writer.add(tensors["ct-a"], "copy", domain="medical ct")
    with cnnfilterdb.open(two) as db:
        found = db.sql("SELECT * FROM fingerprints WHERE model_id != 'custom/copy' ORDER BY ALL").df()
        expected = sample.sql("SELECT * FROM fingerprints ORDER BY ALL").df()
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        copied = db.sql(
            "SELECT layer, sketch FROM fingerprints WHERE model_id = 'custom/copy' ORDER BY layer"
        ).fetchall()
        assert (
            copied
            == sample.sql(
                "SELECT layer, sketch FROM fingerprints WHERE model_id = 'custom/ct-a' ORDER BY layer"
            ).fetchall()
        )
    with cnnfilterdb.open(two[0]) as writer:
        assert writer._index.without_fingerprints()  # nothing was written to the part


# -------------------------------------------------------------------------------------------------------- models


def test_models_of_the_same_key(two, part_of, tmp_path):
    again = part_of(tmp_path / "again.db", ("face", "photo-b"))
    with pytest.raises(
        cnnfilterdb.DatabaseError,
        match=r"custom/face is in the parts one.db and again.db; open them with duplicates=\"first\"",
    ):
        cnnfilterdb.open([*two[:1], again])
    with cnnfilterdb.open([*two, again], duplicates="first") as db:
        assert sorted(db.models()["name"]) == list(NAMES)
        assert db.models(where="part = 'again.db'").empty
    with cnnfilterdb.open([again, *two], duplicates="first") as db, cnnfilterdb.open(two) as once:
        assert db.models(where="part = 'again.db'")["name"].tolist() == ["face", "photo-b"]
        pd.testing.assert_frame_equal(db.kl_shift("name"), once.kl_shift("name"), check_exact=True)
        pd.testing.assert_frame_equal(db.filters(), once.filters(), check_exact=True)
        pd.testing.assert_frame_equal(db.layers(), once.layers(), check_exact=True)
        assert db.sql("SELECT count(*) FROM filters_3x3").fetchall() == [(len(once.filters()),)]
        assert (
            db.sql("SELECT count(*) FROM histograms").fetchall()
            == once.sql("SELECT count(*) FROM histograms").fetchall()
        )


def test_annotations_are_those_of_the_part_that_a_model_is_taken_from(two, part_of, tmp_path):
    again = part_of(tmp_path / "again.db", ("face",))
    with cnnfilterdb.open(again) as db:
        db.annotate("custom/face", domain="portraits", new_words=True)
    with cnnfilterdb.open([again, *two], duplicates="first") as db:
        assert db.models(where="name = 'face'")["domain"].tolist() == ["portraits"]
        assert "portraits" in db.kl_shift("domain").index
    with cnnfilterdb.open([*two, again], duplicates="first") as db:
        assert db.models(where="name = 'face'")["domain"].tolist() == ["faces"]
        assert db.sql("FROM annotations").fetchall() == []


def test_an_empty_part(two, tmp_path, sample):
    cnnfilterdb.create(tmp_path / "empty.db").close()
    with cnnfilterdb.open([tmp_path / "empty.db", *two]) as db:
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
    with cnnfilterdb.open([tmp_path / "empty.db"]) as db:
        assert (len(db.models()), db.bases(), len(db.filters())) == (0, [], 0)
        with pytest.raises(cnnfilterdb.SelectionError, match="no basis for 3x3 kernels"):
            db.kl_shift("domain")


def test_a_model_that_no_part_has(two):
    with cnnfilterdb.open(two) as db, pytest.raises(cnnfilterdb.UnknownModelError, match="custom/face"):
        db.layer_weights("custom/fase", 0)


# ------------------------------------------------------------------------------------------------------- changes


def test_a_part_that_is_written_to_while_it_is_open(two, tensors, sample):
    with cnnfilterdb.open(two[1]) as writer, cnnfilterdb.open(two) as db:
        before = db.kl_shift("name")
        (basis, *_) = db.bases()
        writer.add(tensors["face"], "new", domain="faces", new_words=True)
        assert "new" in db.models()["name"].tolist()
        after = db.kl_shift("name")
        # In the basis that was fitted before, the weights of both are the same.
        assert after.loc["new", "face"] == 0
        # A matrix of another size may be multiplied in another order.
        rest = after.drop(index="new", columns="new")
        pd.testing.assert_frame_equal(rest, before, rtol=1e-12, check_names=False)
        assert db.bases()[0].basis_id == basis.basis_id
        assert len(db.sql("SELECT DISTINCT model_id FROM histograms").fetchall()) == 6

        # Weights that change are counted again, and no layer twice.
        writer.add(tensors["ct-a"], "new", domain="faces", new_words=True, overwrite=True)
        assert db.kl_shift("name").loc["new", "ct-a"] == 0
        writer.remove("custom/new")
        pd.testing.assert_frame_equal(db.kl_shift("name"), before, check_exact=True)
        writer.index(refit=True)
        pd.testing.assert_frame_equal(db.kl_shift("name"), before, check_exact=True)

        # A model that another part has too is refused from then on.
        writer.add(tensors["face"], "ct-b", domain="faces", new_words=True)
        with pytest.raises(cnnfilterdb.CnnFilterDbError, match="custom/ct-b"):
            db.models()
        with pytest.raises(cnnfilterdb.CnnFilterDbError, match="custom/ct-b"):
            db.kl_shift("name")
        assert writer.path == two[1]


def test_nothing_is_written_to_a_part(two, tensors):
    with cnnfilterdb.open(two[0]) as writer:
        writer.add(tensors["face"], "new", domain="faces", new_words=True)
        shutil.rmtree(two[0] / "index" / writer.bases()[0].basis_id)
    state = {path: path.stat().st_mtime_ns for part in two for path in part.rglob("*")}
    with cnnfilterdb.open(two) as db:
        db.kl_shift("domain")
        db.quality("domain")
    assert {path: path.stat().st_mtime_ns for part in two for path in part.rglob("*")} == state


def test_a_part_that_vanishes(two, sample):
    with cnnfilterdb.open(two) as db:
        expected = db.kl_shift("domain")
        two[1].rename(two[1].with_name("elsewhere"))
        for ask in (lambda: db.models(), lambda: db.kl_shift("domain"), lambda: db.filters()):
            with pytest.raises(cnnfilterdb.CnnFilterDbError, match=r"two\.db"):
                ask()
        two[1].with_name("elsewhere").rename(two[1])
        pd.testing.assert_frame_equal(db.kl_shift("domain"), expected, check_exact=True)


# --------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.thorough
@settings(max_examples=6)
@given(split=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_any_split_answers_as_the_whole(split, sample, sample_path, tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    for number in set(split):
        chosen = ", ".join(f"'{name}'" for name, part in zip(NAMES, split, strict=True) if part == number)
        with cnnfilterdb.create(root / f"{number}.db") as db:
            db.merge(sample_path, where=f"name IN ({chosen})")
            db.index(refit=True, prune=True)
    with cnnfilterdb.open([root / f"{number}.db" for number in sorted(set(split))]) as db:
        assert {fitted.basis_id for fitted in db.bases()} == {fitted.basis_id for fitted in sample.bases()}
        pd.testing.assert_frame_equal(db.kl_shift("name"), sample.kl_shift("name"), check_exact=True)
        pd.testing.assert_frame_equal(db.filters(), sample.filters(), check_exact=True)
        pd.testing.assert_frame_equal(db.quality("domain"), sample.quality("domain"), rtol=1e-12)


def test_wrong_arguments(two, tmp_path):
    for ask, message in (
        (lambda: cnnfilterdb.open([]), "no parts given"),
        (lambda: cnnfilterdb.open([two[0], two[0]]), "given twice"),
        (lambda: cnnfilterdb.open([two[0]], duplicates="last"), "'last' given; expected one of error, first"),
        (lambda: cnnfilterdb.open(two[0], duplicates="first"), "one database, not several parts"),
        (lambda: cnnfilterdb.open([two[0]], storage_options={"key": "k"}), "open the part with them"),
        (lambda: cnnfilterdb.open({"a\n": two[0]}), "expected the name of a part"),
        (lambda: cnnfilterdb.open([two[0], tmp_path / "none"]), "none: does not exist"),
        (lambda: cnnfilterdb.open([two[0]], read_only=False), "can only be read"),
    ):
        with pytest.raises(cnnfilterdb.CnnFilterDbError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)
    folder = tmp_path / "x;\n--.db"
    shutil.copytree(two[0], folder)
    with pytest.raises(cnnfilterdb.DatabaseError, match="expected a folder or an address, printable"):
        cnnfilterdb.open([folder])


def test_folders_with_any_name(two, tmp_path, sample):
    """Names are texts in the views, and wildcards in them are letters."""
    places = []
    for path, name in zip(two, ["it's 100% [*]?{a,b} bases; --", 'histograms "kl_shift" {{$x}}'], strict=True):
        shutil.copytree(path, tmp_path / "odd" / name)
        places.append(tmp_path / "odd" / name)
    for confined in (None, True):
        with cnnfilterdb.open(places, read_only=confined) as db:
            assert db.models()["part"].nunique() == 2
            pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
            assert len(db.filters()) == len(sample.filters())


def test_parts_of_parts_and_names(two, part_of, tmp_path):
    third = part_of(tmp_path / "deeper" / "one.db", ())
    with cnnfilterdb.open([cnnfilterdb.open({"first": two[0], "second": two[1]}), third]) as db:
        assert [part.name for part in db.storage.parts] == ["first", "second", "one.db"]
    with cnnfilterdb.open([two[0], third]) as db:  # both folders are called one.db
        assert [part.name for part in db.storage.parts] == [str(two[0]), str(third)]
    with pytest.raises(cnnfilterdb.SelectionError, match="several parts; give each of them a name"):
        cnnfilterdb.open({"both": cnnfilterdb.open(two)})


# --------------------------------------------------------------------------------------------------------- merge


def test_several_are_merged_into_one_folder(two, tmp_path, sample):
    done: list[tuple[int, int]] = []
    with cnnfilterdb.create(tmp_path / "merged.db") as db:
        report = db.merge(*two, progress=lambda model_id, number, of: done.append((number, of)))
        assert sorted(report.done) == [f"custom/{name}" for name in NAMES]
        assert done == [(number, 5) for number in range(1, 6)]
        db.index(refit=True)
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
        assert sorted(db.merge(*two).skipped) == sorted(report.done)
        with pytest.raises(cnnfilterdb.SelectionError, match="no database given"):
            db.merge()


def test_parts_are_merged_with_the_models_and_annotations_that_they_show(two, part_of, tmp_path):
    again = part_of(tmp_path / "again.db", ("face", "photo-b"))
    with cnnfilterdb.open(again) as db:
        db.annotate("custom/face", domain="portraits", new_words=True)
    with (
        cnnfilterdb.open([again, *two], duplicates="first") as db,
        cnnfilterdb.create(tmp_path / "merged.db") as merged,
    ):
        report = merged.merge(db, where="domain != 'medical ct'")
        assert sorted(report.done) == ["custom/face", "custom/photo-a", "custom/photo-b"]
        assert merged.models(where="name = 'face'")["domain"].tolist() == ["portraits"]


# -------------------------------------------------------------------------------------------------------- remote


@pytest.mark.thorough
def test_two_releases_in_object_stores(part_paths, object_store, monkeypatch):
    """Each is read through a file system of its own, though both have the same protocol."""
    store = fsspec.filesystem("s3", **object_store)
    store.put(f"{part_paths['release']}/", "parts/release/", recursive=True)
    options = [{"storage_options": object_store}, {"storage_options": {**object_store, "use_listings_cache": False}}]
    remote = [
        cnnfilterdb.open(address, **one)
        for address, one in zip(["s3://parts/face", "s3://parts/release"], options, strict=True)
    ]
    with cnnfilterdb.open(remote, read_only=True) as db:
        assert db.sql("SELECT part, count(*) FROM models GROUP BY ALL ORDER BY ALL").fetchall() == [
            ("face", 1),
            ("release", 2),
        ]
        found = db.kl_shift("name")
        assert len(db.filters()) == db.sql("SELECT count(*) FROM filters_3x3").fetchall()[0][0]
        monkeypatch.setattr(common, "model_histograms", None)
    with cnnfilterdb.open(remote) as db:  # of which only tables are read again
        pd.testing.assert_frame_equal(db.kl_shift("name"), found, check_exact=True)
