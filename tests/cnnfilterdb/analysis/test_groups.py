"""Groups: from the index and from a scan alike, with what they hold."""

import numpy as np
import pytest

from cnnfilterdb.analysis import sums
from cnnfilterdb.analysis.grouping import BALANCES, Grouping
from cnnfilterdb.analysis.groups import by_model
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import Basis, Moments


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("recipe", ["cvpr2022", "medneurips2022"])
def test_a_scan_gives_the_groups_of_the_index(sample, balance, recipe):
    stored = sample.groups("domain", balance=balance, recipe=recipe)
    scanned = sample.groups("domain", balance=balance, recipe=recipe, basis=sample.basis())
    assert scanned.labels == stored.labels == ["faces", "medical ct", "natural"]
    np.testing.assert_allclose(scanned.counts, stored.counts, rtol=1e-12, atol=1e-12)
    for name in ("models", "layers", "filters", "outside", "weights"):
        np.testing.assert_array_equal(getattr(scanned, name), getattr(stored, name))
    assert (scanned.low, scanned.high) == (stored.low, stored.high)
    assert (stored.basis_id is None, scanned.basis_id is None) == (False, True)


def test_counts_are_numpys_of_the_filters(sample):
    groups = sample.groups("name", bins=13, range=(-0.7, 0.9))
    for label, counts, outside in zip(groups.labels, groups.counts, groups.outside, strict=True):
        found = sample.coefficients(where=f"name = '{label}'")[[f"c{i}" for i in range(9)]].to_numpy()
        expected = [np.histogram(column, 13, (-0.7, 0.9))[0] for column in found.T]
        np.testing.assert_array_equal(counts, expected)
        assert outside == ((found < -0.7) | (found > 0.9)).sum()


def test_balanced_members_count_the_same(sample):
    groups = sample.groups("domain", balance="models", range=(-9, 9))
    # Each model of a group adds up to one in every component.
    np.testing.assert_allclose(groups.counts.sum(axis=2), np.repeat(groups.models[:, None], 9, axis=1))


def test_models_add_up_to_their_groups(sample):
    groups = sample.groups("domain", balance="models")
    numbers, counts = by_model(sample._histograms_in(groups.basis_id, groups.basis), groups)
    assert np.bincount(numbers).tolist() == groups.models.tolist()
    for number in range(len(groups.labels)):
        np.testing.assert_allclose(counts[numbers == number].sum(axis=0), groups.counts[number], rtol=1e-12)
    few = groups.at_least(2, 1)
    numbers, counts = by_model(sample._histograms_in(few.basis_id, few.basis), few)
    assert np.bincount(numbers).tolist() == few.models.tolist() == [2, 2]


@pytest.mark.parametrize("asked", [{"by": "domain", "where": "random ( ) < 0.5"}, {"by": "UUID()"}])
def test_a_random_question_has_no_answer(sample, asked):
    # What a question counts and its groups are asked for one after the other, and could be those of other groups.
    with pytest.raises(SelectionError, match="leave out what is random"):
        sample.groups(**asked)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("chunk", [1, 3, 2048])
def test_groups_are_those_of_sql_however_they_are_read(sample, monkeypatch, balance, chunk):
    monkeypatch.setattr(sums, "_CHUNK", chunk)
    groups = sample.groups("domain", balance=balance)
    asked = f"FROM group_histograms(domain, balance := '{balance}'%s) ORDER BY \"group\", model_id"
    rows = sample.sql(asked % "").df()
    assert rows["group"].tolist() == groups.labels
    np.testing.assert_allclose(np.stack(rows["counts"]), groups.counts.reshape(len(rows), -1), rtol=1e-12)
    numbers, counts = by_model(sample._histograms_in(groups.basis_id, groups.basis), groups)
    rows = sample.sql(asked % ", by_model := true").df()
    assert rows["group"].tolist() == [groups.labels[number] for number in numbers]
    np.testing.assert_allclose(np.stack(rows["counts"]), counts.reshape(len(rows), -1), rtol=1e-12)


def test_small_groups_are_left_out_of_every_array(sample):
    groups = sample.groups("domain")
    few = groups.at_least(2, 1)
    assert few.labels == ["medical ct", "natural"]
    for name in ("models", "layers", "filters", "outside", "counts"):
        np.testing.assert_array_equal(getattr(few, name), getattr(groups, name)[1:])
    assert groups.at_least(1, 1) is groups
    with pytest.raises(SelectionError, match="the largest has 2 and"):
        groups.at_least(3, 1)


def test_wrong_questions(sample):
    with pytest.raises(SelectionError, match="recipe: 'x' is not one of"):
        Grouping("domain", recipe="x")
    with pytest.raises(SelectionError, match="balance: 'x' is not one of"):
        Grouping("domain", balance="x")
    other = Basis.fit(Moments.of(np.random.default_rng(0).normal(size=(50, 25)).astype(np.float32)), "5x5")
    with pytest.raises(SelectionError, match="the basis is of 5x5"):
        sample.groups("domain", basis=other)
