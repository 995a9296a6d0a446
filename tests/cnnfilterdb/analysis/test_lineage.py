"""Which layers of two models belong together, and how their weights differ."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.analysis.lineage import paired_layers
from cnnfilterdb.core.errors import SelectionError, UnknownModelError

SHAPES = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (8, 32, 5, 5)}


def tensors(seed, names=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    mixing = {25: np.eye(25) + 0.3 * np.random.default_rng(9).normal(size=(25, 25)),
              9: np.eye(9) + 0.3 * np.random.default_rng(8).normal(size=(9, 9))}  # fmt: skip
    found = {}
    for name, shape in zip(names, SHAPES.values(), strict=True):
        k = shape[2] * shape[3]
        weight = rng.normal(size=(shape[0] * shape[1], k)) @ mixing[k]
        found[f"{name}.weight"] = weight.astype(np.float32).reshape(shape)
    return found


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """A parent, one fine-tuned from it under other names, its folded twin, a stranger, and a permuted twin."""
    rng = np.random.default_rng(1)
    parent = tensors(0)
    tuned = {}
    for (name, weight), new in zip(parent.items(), ("x", "y", "z"), strict=True):
        changed = weight + 0.3 * rng.normal(size=weight.shape).astype(np.float32)
        changed[0] = weight[0]  # one output channel is frozen
        tuned[f"{new}.{name[0]}.weight"] = changed
    folded = {}
    for name, weight in parent.items():
        scale = rng.uniform(0.2, 3, len(weight)) * rng.choice([-1, 1], len(weight))
        folded[name] = (weight * scale[:, None, None, None]).astype(np.float32)
    permuted = {name: weight[rng.permutation(len(weight))] for name, weight in parent.items()}
    new = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    longer = {"a.weight": tensors(5)["a.weight"], "new.weight": new, "b.weight": parent["b.weight"]}
    db = cnnfilterdb.create(tmp_path_factory.mktemp("lineage") / "models.db")
    for name, weights in (("parent", parent), ("tuned", tuned), ("folded", folded), ("stranger", tensors(7)),
                          ("permuted", permuted), ("longer", longer)):  # fmt: skip
        db.add(weights, name, domain="natural")
    db.index()
    yield db, parent, tuned
    db.close()


def test_fine_tuning_under_other_names(db):
    db, parent, tuned = db
    found = db.diff("custom/parent", "custom/tuned")
    assert found["name_a"].tolist() == ["a", "b", "c"]
    assert found["name_b"].tolist() == ["x.a", "y.b", "z.c"]
    assert set(found["relation"]) == {"related"}
    for row, (a, b) in zip(found.itertuples(), zip(parent.values(), tuned.values(), strict=True), strict=True):
        x, y = a.ravel().astype(float), b.ravel().astype(float)
        assert row.cosine == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), rel=1e-9)
        assert row.distance == pytest.approx(np.linalg.norm(x - y) / np.sqrt(np.linalg.norm(x) * np.linalg.norm(y)))
        assert row.equal_weights == (a == b).mean()
        assert row.changed_kernels == pytest.approx((a != b).any(axis=(2, 3)).mean())
        assert row.weights == a.size
    x, y = (np.concatenate([w.ravel() for w in weights.values()]).astype(float) for weights in (parent, tuned))
    total = found.attrs["total"]
    assert total["cosine"] == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), rel=1e-9)
    assert total["relation"] == "related"
    pair = "model_id IN ('custom/parent', 'custom/tuned')"
    assert total["shift"] == pytest.approx(db.kl_shift("model_id", where=pair).iloc[0, 1])


def test_other_relations(db):
    db, _, _ = db
    assert set(db.diff("custom/parent", "custom/parent")["relation"]) == {"identical"}
    folded = db.diff("custom/parent", "custom/folded")
    assert set(folded["relation"]) == {"scaled"}
    assert (folded["changed_kernels"] > 0.9).all()
    stranger = db.diff("custom/parent", "custom/stranger")
    assert set(stranger["relation"]) == {"unrelated"}
    # Documented: a permuted twin computes the same and is not found.
    assert db.diff("custom/parent", "custom/permuted").attrs["total"]["relation"] == "unrelated"


def stacked(weights):
    """The weights of a model, each less its mean kernel, by shape."""
    kernels = {w.shape: w.reshape(-1, w.shape[2] * w.shape[3]).astype(float) for w in weights.values()}
    return {shape: (w - w.mean(axis=0)).ravel() for shape, w in kernels.items()}


def test_related_models_are_those_of_a_large_cosine(db):
    db, parent, tuned = db
    found = db.related_models()
    assert list(found.columns) == ["model_a", "model_b", "cosine", "layers"]
    pd.testing.assert_frame_equal(db.sql("FROM related_models").df(), found)
    # Permuted twins and rescaled ones with other signs are not found, which is documented.
    assert {row[:2]: row.layers for row in found.itertuples(index=False)} == {
        ("custom/longer", "custom/parent"): 2,  # of which one is equal
        ("custom/longer", "custom/tuned"): 2,
        ("custom/parent", "custom/tuned"): 3,
    }
    assert found["cosine"].is_monotonic_decreasing
    a, b = stacked(parent), stacked(tuned)
    inner = sum(a[shape] @ b[shape] for shape in a)
    cosine = inner / np.sqrt(sum(w @ w for w in a.values()) * sum(w @ w for w in b.values()))
    # 0.125 for a layer; this pair has three.
    tuned_pair = found[(found["model_a"] == "custom/parent")]["cosine"].item()
    assert tuned_pair == pytest.approx(cosine, abs=0.125)
    spectra = db.sql("SELECT model_id, count(*) AS layers FROM spectra GROUP BY ALL ORDER BY ALL").df()
    assert spectra["layers"].tolist() == [3] * 6


def test_layers_without_a_counterpart(db):
    db, _, _ = db
    found = db.diff("custom/parent", "custom/longer")
    assert found["name_a"].tolist() == ["a", "b"]
    assert found["relation"].tolist() == ["unrelated", "identical"]
    assert found.attrs["unpaired_a"] == ["c"]
    assert found.attrs["unpaired_b"] == ["new"]


def test_what_cannot_be_compared(db, tmp_path):
    db, _, _ = db
    with pytest.raises(UnknownModelError):
        db.diff("custom/parent", "custom/paren")
    with cnnfilterdb.example(tmp_path / "example.db") as example:
        example.add({"w.weight": np.random.default_rng(0).normal(size=(5, 5, 3, 3)).astype(np.float32)}, "odd")
        with pytest.raises(SelectionError, match="have no stored layers of the same shape"):
            example.diff("custom/scans", "custom/odd")


layers = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3)), max_size=9, unique_by=lambda one: one[0])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(layers, layers)
def test_pairs_are_in_order_and_of_one_shape(first, second):
    def rows(found):
        return [{"layer_name": name, "kernel": "3x3", "out_channels": size, "filters": size}
                for name, size in found]  # fmt: skip

    pairs = paired_layers(rows(first), rows(second))
    for side in (0, 1):
        places = [pair[side] for pair in pairs]
        assert places == sorted(set(places))
    assert all(first[i][1] == second[j][1] for i, j in pairs)
    assert len(paired_layers(rows(first), rows(first))) == len(first)
