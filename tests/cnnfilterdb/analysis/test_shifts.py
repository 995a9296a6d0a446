"""What FilterDB says of shifts beside the matrix: measures, components, intervals, nearest groups, bases as files."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

import cnnfilterdb
from cnnfilterdb.core.errors import DatabaseError, SelectionError
from cnnfilterdb.stats import Basis


def test_other_measures_are_scipys(sample):
    groups = sample.groups("domain")
    middles = np.linspace(groups.low, groups.high, 71)[:-1] + (groups.high - groups.low) / 140
    shares = groups.counts / groups.counts.sum(axis=-1, keepdims=True)

    def expected(measure):
        return [
            [
                sum(w * measure(p, q) for w, p, q in zip(groups.weights, a, b, strict=True))
                for b in shares
            ]
            for a in shares
        ]  # fmt: skip

    found = sample.kl_shift("domain", metric="jensen_shannon").to_numpy()
    np.testing.assert_allclose(found, expected(lambda p, q: jensenshannon(p, q) ** 2), atol=1e-12)
    found = sample.kl_shift("domain", metric="wasserstein").to_numpy()
    np.testing.assert_allclose(found, expected(lambda p, q: wasserstein_distance(middles, middles, p, q)), atol=1e-12)
    found = sample.kl_shift("domain", metric="total_variation").to_numpy()
    np.testing.assert_allclose(found, expected(lambda p, q: np.abs(p - q).sum() / 2), atol=1e-12)
    directed = sample.kl_shift("domain", metric="directed").to_numpy()
    np.testing.assert_allclose(directed + directed.T, sample.kl_shift("domain").to_numpy(), atol=1e-12)


@pytest.mark.parametrize("metric", ["kl", "directed", "jensen_shannon", "total_variation", "wasserstein"])
def test_sql_gives_the_same_numbers(sample, metric):
    rows = sample.sql("FROM shift_metrics(domain)").df()
    square = rows.pivot(index="group_a", columns="group_b", values=metric)
    np.testing.assert_allclose(square.to_numpy(), sample.kl_shift("domain", metric=metric).to_numpy(), atol=1e-9)


def test_components_add_up(sample):
    rows = sample.kl_shift_components("domain")
    assert len(rows) == 3 * 3 * 9
    total = rows.groupby(["group_a", "group_b"])["shift"].sum().unstack()
    np.testing.assert_allclose(total.to_numpy(), sample.kl_shift("domain").to_numpy(), atol=1e-12)
    sql = sample.sql("FROM kl_shift_components(domain)").df()
    np.testing.assert_allclose(
        sql.sort_values(["group_a", "group_b", "component"])["divergence"], rows["divergence"], atol=1e-9
    )


@pytest.mark.parametrize("balance", ["filters", "models"])
def test_intervals_hold_the_shift_of_resamples(sample, balance):
    rows = sample.kl_shift_intervals("domain", samples=200, balance=balance)
    matrix = sample.kl_shift("domain", balance=balance)
    assert len(rows) == 3
    for row in rows.itertuples():
        assert row.shift == pytest.approx(matrix.loc[row.group_a, row.group_b], rel=1e-9)
        # The faces are one model, which cannot be resampled.
        alone = "faces" in (row.group_a, row.group_b)
        assert (np.isnan(row.low), np.isnan(row.high)) == (alone, alone)
        assert alone or 0 <= row.low <= row.high
    again = sample.kl_shift_intervals("domain", samples=200, balance=balance)
    np.testing.assert_allclose(rows["low"], again["low"], rtol=1e-9)
    with pytest.raises(SelectionError, match="leave out bins"):
        sample.kl_shift_intervals("domain", bins=10)


def test_nearest_groups(sample):
    found = sample.nearest_groups("domain", "faces")
    expected = sample.kl_shift("domain").loc["faces"].drop("faces").sort_values()
    assert list(found.index) == list(expected.index)
    np.testing.assert_array_equal(found["shift"], expected)
    sql = sample.sql("FROM nearest_groups(domain, 'faces', top := 1)").df()
    assert list(sql["group"]) == list(expected.index[:1])
    with pytest.raises(SelectionError, match=r"no group 'cars'.*faces"):
        sample.nearest_groups("domain", "cars")


def test_small_groups_are_left_out(sample):
    assert list(sample.kl_shift("domain", min_models=2)) == ["medical ct", "natural"]
    rows = sample.sql("FROM kl_shift(domain, min_models := 2)").df()
    assert set(rows["group_a"]) == {"medical ct", "natural"}
    with pytest.raises(SelectionError, match="no group by domain has 9 models"):
        sample.kl_shift("domain", min_models=9)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_basis_travels_as_a_file(sample, tmp_path, suffix):
    basis = sample.basis(where="domain = 'natural'").with_range(-2.5, 2.5)
    path = cnnfilterdb.save_basis(basis, tmp_path / f"natural.{suffix}")
    again = cnnfilterdb.load_basis(path)
    assert isinstance(again, Basis)
    for name in ("mean", "components", "explained_variance", "explained_variance_ratio"):
        np.testing.assert_array_equal(getattr(again, name), getattr(basis, name))
    assert (again.kernel, again.filters, again.low, again.high, again.bins) == ("3x3", basis.filters, -2.5, 2.5, 70)
    np.testing.assert_array_equal(
        sample.kl_shift("domain", basis=again).to_numpy(), sample.kl_shift("domain", basis=basis).to_numpy()
    )
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_basis_files_are_refused(sample, tmp_path):
    path = cnnfilterdb.save_basis(sample.basis(), tmp_path / "basis.json")
    values = json.loads(path.read_text())
    for change, message in [
        ({"mean": [0.5] * 9}, "damaged"),
        ({"components": [[1.0]]}, "damaged"),
        ({"version": 99}, "newer version"),
        ({"kernel": "round"}, "not a basis"),
    ]:
        path.write_text(json.dumps(values | change))
        with pytest.raises(DatabaseError, match=message):
            cnnfilterdb.load_basis(path)
    path.write_text("{}")
    with pytest.raises(DatabaseError, match="not a basis"):
        cnnfilterdb.load_basis(path)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(DatabaseError, match=r"bad\.npz"):
        cnnfilterdb.load_basis(tmp_path / "bad.npz")
    with pytest.raises(DatabaseError, match="cannot be read"):
        cnnfilterdb.load_basis(tmp_path / "none.npz")
    with pytest.raises(DatabaseError, match=r"\.json or \.npz"):
        cnnfilterdb.save_basis(sample.basis(), tmp_path / "basis.txt")


def test_basis_without_sparse_filters(tmp_path):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 20, 3, 3)).astype(np.float32) @ (np.eye(3) + 0.4).astype(np.float32)
    weight[rng.random((40, 20)) < 0.3] *= 1e-5
    db = cnnfilterdb.create(tmp_path / "a.db")
    db.add({"a.weight": weight, "b.weight": weight[:5] * 3}, "m")
    filters = np.concatenate([weight.reshape(-1, 9), weight[:5].reshape(-1, 9) * 3])
    limits = np.repeat([np.abs(weight).max() * 0.01, np.abs(weight[:5] * 3).max() * 0.01], [800, 100])
    kept = filters[np.abs(filters).max(axis=1) >= limits]
    assert 0 < len(kept) < len(filters)
    pca = PCA(9).fit((kept / np.abs(kept).max(axis=1, keepdims=True)).astype(np.float64))
    basis = db.basis(variant="nonsparse")
    assert (basis.filters, basis.variant) == (len(kept), "nonsparse")
    np.testing.assert_allclose(basis.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-9)
    with pytest.raises(SelectionError, match="variant"):
        db.basis(variant="dense")
