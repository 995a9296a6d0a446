"""Corrections of the user: seen by every query, and nothing that is stored is rewritten."""

import hashlib

import duckdb
import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.cli import cli
from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError, SelectionError, UnknownModelError


def layer(seed):
    rng = np.random.default_rng(seed)
    return {"conv.weight": (rng.normal(size=(32, 8, 3, 3)) * np.linspace(1, 3, 9).reshape(3, 3)).astype(np.float32)}


@pytest.fixture
def db(tmp_path):
    db = cnnfilterdb.create(tmp_path / "a db")
    for number, domain in enumerate(["natural", "natural", "thermal", None]):
        db.add(layer(number), f"m{number}", domain=domain, task="Classification", license="MIT" if number else None)
    return db


def contents(db):
    return {
        path.relative_to(db.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("models", "layers", "filters")
        for path in (db.path / folder).rglob("*.parquet")
    }


def domains(db):
    return [None if value != value else value for value in db.models()["domain"]]


def test_every_query_sees_it_and_nothing_is_rewritten(db):
    before = contents(db)
    assert list(db.kl_shift("domain").index) == ["natural", "thermal"]
    assert db.annotate("custom/m1", domain="medical ct", family='"quoted", with a comma', new_words=True) == [
        "custom/m1"
    ]
    assert list(db.kl_shift("domain").index) == ["medical ct", "natural", "thermal"]
    assert domains(db) == ["natural", "medical ct", "thermal", None]
    assert db.models(where="family = '\"quoted\", with a comma'")["model_id"].tolist() == ["custom/m1"]
    assert set(db.layers(where="domain = 'medical ct'")["model_id"]) == {"custom/m1"}
    assert len(db.filters(where="domain = 'medical ct'")) == 256
    assert list(db.quality("domain").index) == ["medical ct", "natural", "thermal"]
    stored = db.sql("SELECT domain FROM models_stored WHERE model_id = 'custom/m1'").fetchall()
    assert stored == [("natural",)]
    assert contents(db) == before
    assert db.verify() == []


def test_a_shift_by_corrected_domains_is_that_of_models_that_were_stored_so(db, tmp_path):
    db.annotate("custom/m1", domain="thermal")
    other = cnnfilterdb.create(tmp_path / "b.db")
    for number, domain in enumerate(["natural", "thermal", "thermal", None]):
        other.add(layer(number), f"m{number}", domain=domain, task="Classification")
    np.testing.assert_allclose(db.kl_shift("domain").to_numpy(), other.kl_shift("domain").to_numpy(), rtol=1e-12)


def test_unknown_known_and_stored_again(db):
    db.annotate("custom/m0", "custom/m3", domain="faces")
    assert domains(db) == ["faces", "natural", "thermal", "faces"]
    db.annotate("custom/m0", domain=None)
    assert domains(db) == [None, "natural", "thermal", "faces"]
    assert list(db.kl_shift("domain").index) == ["faces", "natural", "thermal"]
    db.annotate("custom/m?", reset=["domain"])
    assert domains(db) == ["natural", "natural", "thermal", None]
    db.annotate(where="domain = 'natural'", task="Segmentation")
    assert db.models()["task"].tolist() == ["Segmentation"] * 2 + ["Classification"] * 2
    assert db.verify() == []


def test_any_client_of_duckdb_sees_it(db):
    db.annotate("custom/m0", domain="faces", license=None)
    client = duckdb.connect()
    client.execute((db.path / "init.sql").read_text())
    query = "SELECT domain FROM models WHERE model_id = 'custom/m0'"
    assert client.sql(query).fetchall() == [("faces",)]
    assert client.sql("SELECT * FROM annotations ORDER BY ALL").fetchall() == [
        ("custom/m0", "domain", "faces"),
        ("custom/m0", "license", None),
    ]
    (db.path / "annotations.csv").write_text("model_id,column,value\ncustom/m0,domain,art\n")  # edited by hand
    assert client.sql(query).fetchall() == [("art",)]
    assert domains(db)[0] == "art"


def test_a_model_that_is_replaced_keeps_them_and_one_that_is_removed_does_not(db):
    db.annotate("custom/m0", "custom/m1", domain="faces")
    db.add(layer(9), "m0", domain="natural", overwrite=True)
    db.remove("custom/m1")
    assert domains(db) == ["faces", "thermal", None]
    db.add(layer(1), "m1", domain="natural")
    assert domains(db) == ["faces", "natural", "thermal", None]
    assert db.verify() == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "model_id,column,value\ncustom/m0,domain,art\ncustom/m[12],domain,\ncustom/m0,license,CC0-1.0\n"),
        ("a.csv", "model_id,domain,license\ncustom/m0,art,CC0-1.0\ncustom/m3,,\n"),
        ("a.toml", '["custom/m0"]\ndomain = "art"\nlicense = "CC0-1.0"\n["custom/m[12]"]\ndomain = ""\n'),
    ],
)
def test_a_file_of_facts(db, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    db.annotate(file=tmp_path / name)
    others = ["natural", "thermal"] if "[12]" not in text else [None, None]
    assert domains(db) == ["art", *others, None]
    assert db.models()["license"].tolist() == ["CC0-1.0", "MIT", "MIT", "MIT"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"models": ["custom/m0"], "domian": "art"}, SelectionError, "unknown fact 'domian'; did you mean domain"),
        ({"models": ["custom/m0"], "parameters": "3"}, SelectionError, "unknown fact 'parameters'"),
        ({"models": ["custom/m0"], "new_word": True}, SelectionError, "did you mean new_words"),
        ({"models": ["custom/m0"], "domain": 3}, SelectionError, "domain: 3 given; expected text"),
        ({"models": ["custom/m0"], "domain": "naturel"}, SelectionError, "unknown domain 'naturel'.*'natural'"),
        ({"models": ["custom/m0"], "framework": "Pytorch"}, SelectionError, "unknown framework.*'pytorch'"),
        ({"models": ["custom/m00"], "domain": "art"}, UnknownModelError, "near: custom/m0"),
        ({"models": ["custom/m0"]}, SelectionError, "1 models and 0 facts"),
        ({"models": [], "domain": "art"}, SelectionError, "0 models and 1 facts"),
        ({"models": []}, SelectionError, "or a file of facts"),
        ({"models": ["custom/m0"], "reset": ["colour"]}, SelectionError, "unknown fact 'colour'"),
        ({"models": [], "where": "colour = 1", "domain": "art"}, SelectionError, "colour"),
    ],
)
def test_what_cannot_be_annotated(db, call, error, message):
    with pytest.raises(error, match=message):
        db.annotate(*call.pop("models"), **call)
    assert not (db.path / paths.ANNOTATIONS).exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,domain\nm0,art\n", "expected the columns model_id"),
        ("a.csv", "model_id,colour\ncustom/m0,red\n", "unknown fact 'colour'"),
        ("a.csv", "model_id,column,value\ncustom/m0,colour,red\n", "unknown fact 'colour'"),
        ("a.csv", "model_id,column,value\ncustom/m0,domain\n", "line 2: 3 cells expected"),
        ("a.csv", "model_id,column,value\ncustom/x0,domain,art\n", "no model 'custom/x0'"),
        ("a.csv", "model_id,domain,task\ncustom/m0,art,segmantation\n", r"\[custom/m0\] unknown task.*'Segmentation'"),
        ("a.csv", "model_id,column,value\ncustom/m0,family,resnet\n", "unknown family 'resnet'; did you mean 'ResNet'"),
        ("a.toml", '["custom/m0"]\ndomain = "naturel"\n', "unknown domain 'naturel'; did you mean 'natural'"),
        ("a.toml", "[custom\n", "not a TOML or CSV file"),
        ("a.toml", 'domain = "art"\n', "expected a table"),
        ("a.toml", '["custom/m0"]\ndomain = 3\n', "expected text, found 3"),
    ],
)
def test_a_file_of_another_form(db, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((SelectionError, UnknownModelError), match=message) as caught:
        db.annotate(file=tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SelectionError, match="cannot be read"):
        db.annotate(file=tmp_path / "absent.csv")
    assert not (db.path / paths.ANNOTATIONS).exists()


def test_new_words_are_introduced_on_purpose(db, tmp_path):
    db.annotate("custom/m0", domain="plankton", new_words=True)
    (tmp_path / "a.csv").write_text("model_id,domain\ncustom/m1,plankton\n")
    db.annotate(file=tmp_path / "a.csv", new_words=True)
    assert domains(db)[:2] == ["plankton", "plankton"]
    with pytest.raises(SelectionError, match=r"unknown domain 'plankton'.*new_words=True"):
        db.add(layer(9), "m9", domain="plankton")
    db.add(layer(9), "m9", domain="plankton", new_words=True)
    assert domains(db)[-1] == "plankton"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,column,value\n", "expected the header"),
        ("model_id,column,value\ncustom/m0,filters,3\n", "line 2: 'filters' cannot be annotated"),
        ("model_id,column,value\ncustom/m0,domain,a\ncustom/m0,domain,b\n", "is already set in line 2"),
        ("model_id,column,value\ncustom/m0,domain,a,b\n", "line 2: 3 cells expected, 4 found"),
        ("model_id,column,value\ncustom/m7,domain,a\n", "line 2: no model 'custom/m7'"),
        ('model_id,column,value\ncustom/m0,domain,"a\n', "is not a CSV row"),
    ],
)  # fmt: skip
def test_verify_checks_the_file(db, text, message):
    (db.path / paths.ANNOTATIONS).write_text(text)
    (problem,) = db.verify()
    assert message in problem.message
    assert problem.path == db.path / paths.ANNOTATIONS
    if "m7" not in text:
        with pytest.raises(CorruptError, match="annotations"):
            db.annotate("custom/m0", domain="art")
        assert (db.path / paths.ANNOTATIONS).read_text() == text


def test_command_line(db, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        cli.main([*map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    monkeypatch.setenv("CNNFILTERDB", str(db.path))
    assert run("annotate", "custom/m0", "--domain", "art", "--task", "") == "annotated 1 model\n"
    assert run("annotate", "--where", "domain = 'thermal'", "--license", "CC0-1.0") == "annotated 1 model\n"
    assert domains(db)[0] == "art"
    licences = run("models", "--license", "--format", "csv").splitlines()
    assert licences[0] == "model_id,license,paper,url"
    assert [line.split(",")[1] for line in licences[1:]] == ["", "MIT", "CC0-1.0", "MIT"]
    assert "unknown" in run("models").splitlines()[2]
    assert run("annotate", "custom/*", "--reset", "domain", "--reset", "license") == "annotated 4 models\n"
    assert domains(db)[0] == "natural"
