"""The verb inspect: warnings first, then coverage and layers; what is written for programs is complete."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import cnnfilterdb


@pytest.fixture
def face(tmp_path, tensors):
    """The weights of a model of the sample database, in a file."""
    path = tmp_path / "face.safetensors"
    save_file(tensors["face"], path)
    return path


def test_a_file_without_a_database(run, face, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("inspect", face)
    found = cnnfilterdb.inspect(face)
    assert status == 0
    assert out.splitlines()[:2] == [found.title, found.coverage[0]]
    assert out.splitlines()[2] == found.coverage[1]
    assert err.splitlines() == [f"warning: {warning}" for warning in found.warnings]
    assert out.splitlines()[4].split()[:2] == ["layer_name", "kernel"]
    assert not (tmp_path / "filters.db").exists()
    assert "read 2 of 2 convolution weights" not in run("inspect", face, "--quiet")[1]


def test_levels_are_shown_where_weights_repeat(run, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "net.safetensors"
    weights = {"free.weight": rng.normal(size=(4, 1, 3, 3)), "ternary.weight": rng.integers(-1, 2, (4, 4, 3, 3))}
    save_file({name: weight.astype(np.float32) for name, weight in weights.items()}, path)
    out = run("inspect", path, "--no-compare")[1]
    heading, free, ternary = (line for line in out.splitlines() if line.startswith(("layer_name", "free", "ternary")))
    at = slice(heading.index("levels"), heading.index("levels") + len("levels"))
    assert (free[at].strip(), ternary[at].strip()) == ("", "3")


def test_formats_for_programs_are_complete(run, face, tmp_path):
    found = cnnfilterdb.inspect(face).layers
    status, out, _ = run("inspect", face, "--format", "json")
    rows = json.loads(out)
    assert status == 0
    compared = ["reference_layers", "sparsity_percentile", "variance_entropy_percentile", "orthogonality_percentile"]
    assert list(rows[0]) == [*found, *compared]
    assert rows[0]["reference_layers"] > 3000  # those of the reference corpus
    assert list(json.loads(run("inspect", face, "--format", "json", "--no-compare")[1])[0]) == list(found)
    assert [row["variance_entropy"] for row in rows] == found["variance_entropy"].tolist()
    frame = pd.read_csv(io.StringIO(run("inspect", face, "--format", "csv")[1]))
    np.testing.assert_array_equal(frame["orthogonality"], found["orthogonality"])
    assert run("inspect", face, "-o", tmp_path / "layers.parquet")[:2] == (0, "")
    assert pd.read_parquet(tmp_path / "layers.parquet")["labels"].equals(found["labels"])


def test_what_is_excluded_is_reported_in_every_format(run, tmp_path):
    path = tmp_path / "net.safetensors"
    kernels = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
    save_file({"a.weight": kernels, "mask.table": kernels}, path)
    line = "excluded 1: mask.table: four dimensions, but its name does not end in weight"
    assert line in run("inspect", path)[1].splitlines()
    assert line in run("inspect", path, "--format", "json")[2].splitlines()


def test_the_contents_of_a_file_are_a_table(run, face):
    contents = cnnfilterdb.inspect(face).contents
    status, out, _ = run("inspect", face, "--contents", "--format", "json")
    rows = json.loads(out)
    assert status == 0
    assert {row["class"]: (row["tensors"], row["numbers"]) for row in rows} == contents
    assert contents["kernels"][0] == 2
    assert all(row["meaning"] for row in rows)
    assert "kernels" in run("inspect", face, "--contents")[1]
    assert run("inspect", face, "--contents", "--nearest")[0] == 2


def test_beside_a_database(run, face, sample_path):
    status, out, _ = run("inspect", face, "--db", sample_path, "--top", 2)
    assert status == 0
    assert "percentiles among 10 layers of the same kernel sizes" in out
    assert "nearest of 5 models by symmetric KL divergence of 3x3 kernels" in out
    assert "custom/face" in out
    status, out, _ = run("inspect", face, "--db", sample_path, "--nearest", "--top", 2, "--format", "json")
    rows = json.loads(out)
    assert rows[0]["model_id"] == "custom/face"
    assert len(rows) == 2
    out = run("inspect", face, "--db", sample_path, "--family", "MTCNN", "--format", "json")[1]
    assert [row["variance_entropy_percentile"] for row in json.loads(out)] in ([25, 75], [75, 25])


def test_wrong_lines_are_one_line(run, face, tmp_path, sample_path):
    (tmp_path / "notes.pt").write_text("hello, this is text")
    for status, line, message in [
        (1, [tmp_path / "missing.pt"], "does not exist; expected a weight file"),
        (1, [tmp_path / "notes.pt"], "notes.pt: "),
        (1, [face, "--db", tmp_path / "no.db"], "no such database"),
        (1, [face, "--db", sample_path, "--family", "VGG"], "no 3x3 layer of the family 'VGG'"),
        (1, [face, "--db", sample_path, "--family", "resnet"], "of the family 'resnet'; did you mean 'ResNet'?"),
        (1, [face, "--db", sample_path, "--kernel", "5x5"], "no 5x5 layer to compare"),
    ]:
        found, out, err = run("inspect", *line)
        assert (found, out, err.count("\n")) == (status, "", 1), err
        assert err.startswith("error: ")
        assert message in err
    status, _, err = run("inspect", face, "--no-compare", "--family", "VGG")
    assert status == 2
    assert "--no-compare excludes --db, --family, --kernel and --nearest" in err


def test_what_cannot_be_compared_is_still_described(run, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"a.weight": np.random.default_rng(0).normal(size=(4, 4, 5, 5)).astype(np.float32)}, path)
    status, out, _ = run("inspect", path)
    assert status == 0
    assert "5x5" in out
    percentiles, nearest = out.splitlines()[-2:]
    assert re.fullmatch("percentiles among [1-9][0-9]* layers of the same kernel sizes", percentiles)
    assert nearest.startswith("no nearest models: the reference corpus has the statistics of 3x3 filters, not the filt")
    status, out, err = run("inspect", path, "--nearest")
    assert (status, out, err) == (1, "", f"error: {nearest}\n")
    save_file({"a.weight": np.ones((4, 4, 1, 1), np.float32)}, path)
    status, out, _ = run("inspect", path)
    assert status == 0
    assert out.endswith(f"\n\nnot compared with other models: {path}: no layer with spatial kernels to compare\n")
