"""What a comparison says about what it used and what it left out."""

import shutil

import numpy as np
import pandas as pd
import pytest

import cnnfilterdb


def counted(db, by, where="true", kernel="3x3"):
    """The same numbers, from the tables with pandas."""
    rows = db.sql(f"SELECT *, ({by}) AS g FROM facts WHERE {where}").df()
    rows["filters"] = rows["filters"].where(rows["stored"], 0)
    used = rows[rows["stored"] & (rows["kernel"] == kernel) & rows["g"].notna() & rows["papers_layer"]]
    return {
        f"{prefix}{name}": int(value)
        for prefix, frame in (("", rows), ("used_", used))
        for name, value in (
            ("models", frame["model_id"].nunique()),
            ("layers", len(frame)),
            ("filters", frame["filters"].sum()),
        )
    }


@pytest.mark.parametrize(
    ("by", "where"),
    [("domain", None), ("CASE WHEN task = 'Segmentation' THEN family END", None), ("layer", "domain <> 'faces'")],
)
def test_counts_are_those_of_the_tables(sample, by, where):
    found = sample.kl_shift(by, where=where).attrs["coverage"]
    expected = counted(sample, by, where or "true")
    assert {name: found[name] for name in expected} == expected
    assert sum(found["models_without"].values()) == found["models"] - found["used_models"]
    assert sum(found["layers_without"].values()) == found["layers"] - found["used_layers"]
    assert "\n" not in found["text"]


def test_every_comparison_has_it(sample):
    matrix = sample.kl_shift("domain").attrs["coverage"]
    for frame in (
        sample.kl_shift_components("domain"),
        sample.kl_shift_intervals("domain", samples=2),
        sample.nearest_groups("domain", "faces"),
        sample.quality("domain"),
    ):
        found = frame.attrs["coverage"]
        assert (found["used_models"], found["used_filters"]) == (matrix["used_models"], matrix["used_filters"])


def test_the_reasons(sample):
    found = sample.kl_shift("CASE WHEN domain <> 'faces' THEN domain END", min_models=2).attrs["coverage"]
    assert found["models_without"] == {"without CASE WHEN domain <> 'faces' THEN domain END": 1}
    found = sample.kl_shift("domain", min_models=2).attrs["coverage"]
    assert found["models_without"] == {"in groups that are too small": 1}
    assert found["layers_without"]["of other kernel sizes than 3x3"] == 3
    text = sample.kl_shift("domain", kernel="5x5").attrs["coverage"]["text"]
    assert text.startswith("used 1 of 5 models, 1 of 13 layers, 256 of ")
    assert "4 models without 5x5 kernels" in text


def test_transposed_and_untrained_and_a_basis_of_some_models(sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    rng = np.random.default_rng(0)
    with cnnfilterdb.open(path) as db:
        db.add({"conv.weight": rng.normal(size=(64, 64, 3, 3)).astype(np.float32)}, "random", domain="natural")
        frame = db.kl_shift("domain")
        found = frame.attrs["coverage"]
        flagged = tuple(db.models(where="untrained")["model_id"])
        assert "custom/random" in flagged
        assert found["untrained"] == flagged
        basis, untrained = found["warnings"]
        assert "the basis was fitted on 5 of 6 models" in basis
        assert "cnnfilterdb index --refit" in basis
        assert f"{len(flagged)} of the models used are flagged untrained: {flagged[0]}" in untrained
        clean = db.kl_shift("domain", where="untrained IS NOT TRUE").attrs["coverage"]
        assert clean["untrained"] == ()
        db.index(refit=True)
        assert len(db.kl_shift("domain").attrs["coverage"]["warnings"]) == 1
        pd.testing.assert_index_equal(db.kl_shift("domain").index, frame.index)
