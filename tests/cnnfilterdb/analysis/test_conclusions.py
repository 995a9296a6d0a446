"""Tests of shifts, explained variation, dispersion, maps and purity, asked of a database."""

import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError

LABELS = {"a": ("ct", "U-Net"), "b": ("ct", "U-Net"), "c": ("ct", "ResNet"), "d": ("natural", "U-Net"),
          "e": ("natural", "ResNet"), "f": ("natural", "ResNet"), "g": (None, "ResNet")}  # fmt: skip


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Seven models of two domains and two families; the kernels of a domain are alike."""
    rng = np.random.default_rng(0)
    mixing = {domain: np.eye(9) + rng.normal(size=(9, 9)) for domain in ("ct", "natural", None)}
    db = cnnfilterdb.create(tmp_path_factory.mktemp("conclusions") / "models.db")
    for name, (domain, family) in LABELS.items():
        own = mixing[domain] + 0.1 * rng.normal(size=(9, 9))
        tensors = {}
        for layer in range(2):
            filters = rng.normal(size=(32 * 16, 9)) @ own
            tensors[f"layer{layer}.weight"] = filters.astype(np.float32).reshape(32, 16, 3, 3)
            tensors[f"layer{layer}.bias"] = np.zeros(32, np.float32)
        facts = {"domain": domain} if domain else {}
        db.add(tensors, name, family=family, new_words=True, **facts)
    db.index()
    return db


def test_shift_test(db):
    found = db.shift_test("domain", permutations=199)
    assert found.columns.tolist() == [
        "group_a", "group_b", "shift", "null_mean", "null_high", "excess", "p", "p_holm", "p_bh",
        "models_a", "models_b", "arrangements", "remark",
    ]  # fmt: skip
    (row,) = found.itertuples()
    assert (row.group_a, row.group_b, row.models_a, row.models_b, row.arrangements) == ("ct", "natural", 3, 3, 20)
    expected = db.kl_shift("domain", balance="models").loc["ct", "natural"]
    assert row.shift == pytest.approx(expected)
    assert row.null_mean < row.shift
    assert row.excess == pytest.approx(row.shift - row.null_mean)
    assert 0.05 <= row.p <= 0.2  # two of twenty arrangements are the observed one
    assert row.p == row.p_holm == row.p_bh
    assert found.attrs["unlabelled"] == {"domain": 1}
    assert found.attrs["overall"]["shift"] == pytest.approx(row.shift)
    pd.testing.assert_frame_equal(found, db.shift_test("domain", permutations=199))


def test_shift_test_within_strata(db):
    held = db.shift_test("domain", within="family", permutations=199)
    assert held.loc[0, "arrangements"] == 9
    assert held.loc[0, "remark"] == "too few models: p cannot be below 0.111"
    alone = db.shift_test("model_id", within="model_id", permutations=9)
    assert set(alone["remark"]) == {"cannot be tested: there is nothing to exchange"}
    assert (alone["p"] == 1).all()
    assert not alone.isna().any(axis=None)


def test_whether_groups_do_not_differ(db):
    found = db.shift_test("domain", tolerance=1000, permutations=199)
    assert found.columns.tolist() == [
        "group_a", "group_b", "shift", "null_mean", "null_high", "excess", "p", "p_holm", "p_bh", "unbiased",
        "low", "high", "p_equivalent", "p_equivalent_holm", "finding", "models_a", "models_b", "arrangements", "remark",
    ]  # fmt: skip
    (row,) = found.itertuples()
    assert 0 < row.p_equivalent <= 0.05
    assert row.finding == "do not differ by 1000"  # p cannot be below 0.05 with three models a group
    assert row.low <= row.unbiased < row.shift
    assert (found.attrs["level"], found.attrs["tolerance"]) == (0.95, 1000)
    plain = db.shift_test("domain", permutations=199)
    pd.testing.assert_frame_equal(found[plain.columns], plain)
    assert "finding" not in db.shift_test("domain", level=0.9, permutations=9)
    assert db.shift_test("domain", tolerance=1e-6, permutations=199).loc[0, "finding"] == "undecided"
    alone = db.shift_test("model_id", tolerance=0.1, permutations=9)
    assert alone["low"].isna().all()
    assert set(alone["p_equivalent"]) == {1}
    assert alone.loc[0, "remark"].endswith("; a group of one model has no interval")


def test_variance_explained(db):
    found = db.variance_explained(["family", "domain"], permutations=199)
    assert found["factor"].tolist() == ["family", "domain", "residual", "total"]
    assert found["df"].tolist() == [1, 1, 3, 5]
    assert found["r2"].iloc[:3].sum() == pytest.approx(1)
    shifts = db.kl_shift("model_id", where="domain IS NOT NULL", balance="models").to_numpy()
    assert found["ss"].iloc[3] == pytest.approx(shifts.sum() / 12)  # sum over pairs of the squared distances / models
    last = db.variance_explained(["domain", "family"], permutations=199, marginal=True)
    assert last.loc[0, "ss"] == pytest.approx(found.loc[1, "ss"])
    assert found.loc[1, "r2"] > 0.5 > found.loc[0, "r2"]


def test_a_factor_that_another_determines(db):
    found = db.variance_explained(["model_id", "domain"], permutations=9)
    assert found["remark"].tolist() == [
        "as many levels as models: nothing is left to test against", "determined by the other factors", "", "",
    ]  # fmt: skip
    assert found["p"].iloc[:2].tolist() == [1, 1]


def test_a_factor_that_strata_hold_fixed_cannot_be_tested(db):
    found = db.variance_explained(["family", "domain"], within="family", permutations=19).set_index("factor")
    assert found["remark"].to_dict() == {
        "family": "cannot be tested: it has one value within each stratum", "domain": "", "residual": "", "total": "",
    }  # fmt: skip
    assert found.loc["family", "p"] == 1
    assert found.loc["domain", "p"] < 1


def test_dispersion_embedding_and_purity(db):
    spread = db.dispersion_test("domain", permutations=99)
    assert spread["models"].to_dict() == {"ct": 3, "natural": 3}
    assert 0 < spread.attrs["p"] <= 1
    places = db.embed(by=["domain"], dimensions=2)
    assert places.columns.tolist() == ["x0", "x1", "domain"]
    first = places["x0"]
    assert (first[places["domain"] == "ct"].max() < first[places["domain"] == "natural"].min()) or (
        first[places["domain"] == "ct"].min() > first[places["domain"] == "natural"].max()
    )
    assert len(db.embed()) == 7
    sizes = places["domain"].value_counts()
    assert len(db.embed(by="domain", min_models=sizes.max())) == sizes[sizes == sizes.max()].sum()
    with pytest.raises(SelectionError, match="embed: min_models counts the models of each group; give by"):
        db.embed(min_models=2)
    purity = db.neighbour_purity("domain", permutations=99)
    assert purity.loc["all", ["share", "models"]].tolist() == [1, 6]
    across = db.neighbour_purity("domain", across="family", permutations=99)
    assert across.loc["all", "share"] == 1


QUESTIONS = ("shift_test", "variance_explained", "dispersion_test", "neighbour_purity")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("by", "options", "message"),
    [
        ("domain", {"permutations": 0}, "permutations: 0 given; expected a whole number of at least 1, better 999"),
        ("domain", {"permutations": "many"}, "permutations: 'many' given"),
        ("domain", {"seed": -1}, "seed: -1 given; expected a whole number of at least 0"),
        ("domain", {"weights": [float("nan")] * 9}, "weights: .* 9 finite numbers of at least 0"),
        ("domain", {"weights": [0.0] * 9}, "weights: .* not all of them 0"),
        ("domain", {"kernel": "7x7"}, "no basis for 7x7 kernels"),
        ("domain", {"kernel": "3by3"}, "not a kernel size: '3by3'"),
        ("domain", {"where": "false"}, "no 3x3 filters by model_id where false"),
        ("domain", {"metric": "angle"}, "metric: 'angle' given; expected one of kl"),
        ("domian", {}, 'column "domian" not found'),
        (["domain", 3], {}, r"by: .* given; expected names as text"),
        ("paper", {}, "no selected model has a value of paper"),
        ("layer", {}, "'layer' has several values within custom/a"),
    ],
)
def test_what_no_test_can_answer(db, question, by, options, message):
    with pytest.raises(SelectionError, match=message):
        getattr(db, question)(by, **options)


@pytest.mark.parametrize("question", QUESTIONS)
def test_one_permutation_and_a_seed_of_its_own_are_answered(db, question):
    options = {"permutations": 1, "seed": None}
    found = getattr(db, question)("domain", **options)
    p = found["p"].dropna() if "p" in found else [found.attrs["p"]]
    assert all(value in (0.5, 1) for value in p)


def test_models_that_are_equal(tmp_path):
    """No distance at all, or the same distance between any two domains, is answered; nothing is NaN or infinite."""
    rng = np.random.default_rng(1)
    kernels = {domain: rng.normal(size=(16, 8, 3, 3)).astype(np.float32) for domain in ("ct", "natural")}
    with cnnfilterdb.create(tmp_path / "equal.db") as equal:
        for number in range(6):
            domain = ("ct", "natural")[number % 2]
            equal.add({"conv.weight": kernels[domain]}, f"m{number}", domain=domain, new_words=True)
        alike = {"where": "domain = 'ct'"}
        assert equal.shift_test("name = 'm0'", **alike, permutations=19)["p"].tolist() == [1]
        assert equal.variance_explained("name = 'm0'", **alike, permutations=19)["p"].dropna().tolist() == [1]
        assert equal.dispersion_test("name = 'm0'", **alike, permutations=19).attrs["p"] == 1
        assert equal.embed(**alike).to_numpy().tolist() == [[0, 0]] * 3
        explained = equal.variance_explained(["domain", "domain || 'x'"], permutations=99)
        assert explained.loc[0, "r2"] == pytest.approx(1)
        assert np.isfinite(explained["f"].dropna().astype(float)).all()
        assert explained["remark"].tolist() == ["", "determined by the other factors", "", ""]
        assert 0 < explained.loc[0, "p"] <= 0.2  # two of twenty arrangements
        spread = equal.dispersion_test("domain", permutations=19)
        assert (spread.attrs["f"], spread.attrs["p"]) == (0, 1)
        found = equal.shift_test("domain", level=0.95, permutations=99)
        # Three models a side cannot exclude a shift of 0: p cannot be below 0.1.
        assert found.loc[0, ["low", "high"]].tolist() == pytest.approx([0, found.loc[0, "shift"]], rel=0.02)


def test_what_cannot_be_answered(db):
    with pytest.raises(SelectionError, match="'layer' has several values within custom/a"):
        db.shift_test("layer")
    with pytest.raises(SelectionError, match="one group only, ct"):
        db.shift_test("domain", where="domain = 'ct'")
    with pytest.raises(SelectionError, match="family has one value only"):
        db.variance_explained(["family"], where="family = 'U-Net'")
    with pytest.raises(SelectionError, match="no factor given"):
        db.variance_explained([])
    with pytest.raises(SelectionError, match="no selected model has a value of paper"):
        db.shift_test("paper")
    with pytest.raises(SelectionError, match="balance: models are compared one by one"):
        db.shift_test("domain", balance="families")
    with pytest.raises(SelectionError, match="within: with strata"):
        db.shift_test("domain", within="family", tolerance=0.1)
    with pytest.raises(SelectionError, match="tolerance: -1 given"):
        db.shift_test("domain", tolerance=-1)
    with pytest.raises(SelectionError, match="level: 95 given"):
        db.shift_test("domain", level=95)
    with pytest.raises(SelectionError, match="not symmetric"):
        db.embed(metric="directed")
    with pytest.raises(SelectionError, match="unknown option 'permutation'"):
        db.shift_test("domain", permutation=9)
    with pytest.raises(SelectionError, match="no group by domain has 9 models; the largest has 3"):
        db.shift_test("domain", min_models=9)
