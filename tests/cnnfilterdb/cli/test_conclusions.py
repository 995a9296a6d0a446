"""The verbs that end in a conclusion."""

import json

import pytest


def test_test(run, sample_path):
    status, out, err = run("test", "domain", "--db", sample_path, "--permutations", 99)
    assert (status, err) == (0, "")
    assert "null_mean" in out.splitlines()[0]
    assert "all groups: mean shift" in out
    assert "5 models, 99 permutations, metric kl" in out
    assert "balance models, 3x3 filters" in out


def test_explain(run, sample_path):
    status, out, err = run("explain", "domain", "--db", sample_path, "--format", "json", "--balance", "filters")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["factor"] for row in rows] == ["domain", "residual", "total"]
    assert rows[2]["p"] is None
    assert rows[0]["r2"] + rows[1]["r2"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["test", "layer"], "has several values within custom/"),
        (["test", "'one'"], "has one group only"),
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
