"""The verb `structure`, and the spectra of `layers`."""

import json

import pytest

import cnnfilterdb

SHAPES = {
    (): ["models", "layers", "filters", "mean_symmetry"],
    ("--positions",): ["y", "x", "layers", "energy", "relative"],
    ("--correlation",): ["dy", "dx", "correlation"],
}


@pytest.mark.parametrize("options", SHAPES)
def test_structure(run, sample_path, options):
    status, out, err = run("structure", "domain AS d", "--db", sample_path, *options, "--format", "json")
    assert (status, err) == (0, "")
    assert list(json.loads(out)[0]) == ["d", *SHAPES[options]]


def test_overlap(run, sample_path):
    status, out, err = run("structure", "domain", "--overlap", 2, "--db", sample_path, "--format", "json")
    assert (status, err) == (0, "")
    with cnnfilterdb.open(sample_path) as db:
        found = db.subspace_overlap("domain", dimensions=2)
    for row in json.loads(out):
        for other in found.columns:
            assert row[other] == pytest.approx(found.loc[row["domain"], other])


def test_spectra(run, sample_path):
    status, out, err = run("layers", "--spectra", "3x3", "--db", sample_path, "--format", "json")
    assert (status, err) == (0, "")
    with cnnfilterdb.open(sample_path) as db:
        assert len(json.loads(out)) == len(db.layers(where="stored AND kernel = '3x3'"))


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (["structure", "domain", "--positions", "--correlation"], 2, "give one of --positions, --correlation"),
        (["structure", "domain", "--where", "false"], 1, "no 3x3 filters by domain"),
        (["structure", "domain", "--overlap", "10"], 1, "kernels of 9 weights have 1 to 9 components"),
        (["layers", "--spectra", "x"], 1, "not a kernel size"),
    ],
)
def test_what_cannot_be_answered(run, sample_path, line, status, message):
    found, out, err = run(*line, "--db", sample_path)
    assert (found, out) == (status, "")
    assert message in err
