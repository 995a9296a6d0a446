"""The figure of null distributions: what is drawn is what was computed."""

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import null_distributions
from cnnfilterdb.stats import adjusted_holm


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("style", ["screen", "paper"])
def test_each_row_has_its_distribution_and_its_observed_value(assert_legible, rows, style):
    rng = np.random.default_rng(rows)
    nulls = [rng.gamma(2, 0.01 * (row + 1), 999) for row in range(rows)]
    observed = [0.001 * 4**row for row in range(rows)]
    names = [f"a group, group {row}" for row in range(rows)]
    p = [0.001 if row % 2 else 0.5 for row in range(rows)]
    figure = null_distributions(names, observed, nulls, p, ["3 · 4"] * rows, title="Tests", style=style)
    assert_legible(figure)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    lines = [one for one in axes.collections if one.get_linewidth()[0] == 1.4]
    assert [one.get_segments()[0][0][0] for one in lines] == pytest.approx(observed)
    assert len({tuple(one.get_color()[0]) for one in lines}) == min(rows, 2)
    assert {f"p {value:.3g}" for value in p} <= {text.get_text() for text in axes.texts}


def test_pairs_of_a_database_are_those_of_the_test(sample):
    found = sample.shift_test("domain", permutations=19)
    figure = sample.plot.null("domain", permutations=19)
    (axes,) = figure.axes
    names = {label.get_text() for label in axes.get_yticklabels()}
    testable = found[found["arrangements"] >= 2]
    assert names == {f"{row.group_a}, {row.group_b}" for row in testable.itertuples()}
    lines = sorted(one.get_segments()[0][0][0] for one in axes.collections if one.get_linewidth()[0] == 1.4)
    assert lines == pytest.approx(sorted(testable["shift"]))
    written = {text.get_text() for text in axes.texts if text.get_text().startswith("p ")}
    assert written == {f"p {p:.3g}" for p in adjusted_holm(found["p"].to_numpy())[found["arrangements"] >= 2]}
    assert len(sample.plot.null("domain", permutations=9, top=1).axes[0].get_yticks()) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"by": "'x'"}, "one group only"),
        ({"top": 0}, "top: 0 given"),
        ({"permutations": 0}, "permutations: 0 given"),
        ({"metric": "x"}, "metric: 'x' given"),
        ({"style": "x"}, "style: 'x' given"),
        ({"by": "layer"}, "several values within"),
        ({"within": "domain"}, "no pair of groups can be tested"),
    ],
)
def test_wrong_arguments(sample, wrong, message):
    with pytest.raises(SelectionError, match=message):
        sample.plot.null(**{"permutations": 9, **wrong})


def test_what_cannot_be_tested():
    with cnnfilterdb.example() as db, pytest.raises(SelectionError, match="no pair of groups can be tested"):
        db.plot.null("model_id", permutations=9, where="name <> 'scans'", within="model_id")
    with pytest.raises(SelectionError, match="no pair"):
        null_distributions([], [], [], [], [])
