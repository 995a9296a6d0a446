"""The verbs that end in a conclusion."""

import json
import re

import pytest

from cnnfilterdb.cli.output import FORMATS


def test_test(run, sample_path):
    status, out, err = run("test", "domain", "--db", sample_path, "--permutations", 99)
    assert (status, err) == (0, "")
    assert "null_mean" in out.splitlines()[0]
    assert "all groups: mean shift" in out
    assert "5 models, 99 permutations, metric kl" in out
    assert "balance models, 3x3 filters" in out


@pytest.mark.parametrize("style", list(FORMATS))
def test_test_of_equivalence_in_every_format(run, sample_path, tmp_path, style):
    path = tmp_path / "found"
    line = ["test", "domain", "--db", sample_path, "--permutations", 99, "--tolerance", 0.05]
    status, _, err = run(*line, "--format", style, "-o", path)
    assert (status, err) == (0, "")
    assert b"p_equivalent_holm" in path.read_bytes()
    assert b"NaN" not in path.read_bytes()


def test_explain(run, sample_path):
    status, out, err = run("explain", "domain", "--db", sample_path, "--format", "json", "--balance", "filters")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["factor"] for row in rows] == ["domain", "residual", "total"]
    assert rows[2]["p"] is None
    assert rows[0]["r2"] + rows[1]["r2"] == pytest.approx(1)


def test_diff(run, sample_path):
    line = ("diff", "custom/ct-a", "custom/ct-a", "--db", sample_path)
    status, out, err = run(*line, "--format", "json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["name_a"] for row in rows] == ["enc", "mid", "up", "total"]
    assert rows[-1]["layer_a"] is None
    assert {(row["relation"], row["distance"], row["shift"]) for row in rows} == {("identical", 0, 0)}
    status, out, _ = run("diff", "custom/photo-a", "custom/photo-b", "--db", sample_path)
    assert status == 1
    assert out == ""


@pytest.mark.thorough
def test_study(run, sample_path, tmp_path):
    line = ("study", "medical", "--db", sample_path, "--permutations", 9, "--no-scan")
    page, folder = tmp_path / "study.html", tmp_path / "figures"
    status, out, err = run(*line, "-o", page, "--figures", folder)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == str(page)
    assert "Does medical imaging learn different filters?" in page.read_text(encoding="utf-8")
    assert {path.suffix for path in folder.iterdir()} == {".png", ".pdf"}
    status, out, _ = run(*line, "--format", "json")
    assert json.loads(out)["numbers"]["medical models"] == 1
    status, out, _ = run(*line, "--format", "md", "--figures", folder)
    assert out.startswith("# Does medical imaging learn different filters?")
    assert all((tmp_path / path).exists() for path in re.findall(r"\]\(([^)]*\.png)\)", out))
    status, _, err = run(*line, "-o", tmp_path / "study.docx")
    assert status == 2
    assert "expected a suffix of .html" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["test", "layer"], "has several values within custom/"),
        (["test", "'one'"], "has one group only"),
        (["test", "domain", "--tolerance", "0"], "tolerance: 0.0 given; expected the largest shift"),
        (["test", "domain", "--tolerance", "1", "--within", "family"], "within: with strata"),
        (["explain", "paper"], "no selected model has a value of paper"),
        (["explain", "domain", "--metric", "directed"], "not symmetric"),
    ],
)
def test_what_cannot_be_answered_is_one_line(run, sample_path, line, message):
    status, out, err = run(*line, "--db", sample_path)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
