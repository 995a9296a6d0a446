"""Labels of degenerated layers, against the rules of the papers written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.stats import DEGENERATIONS, degenerated, degeneration, randomness_threshold

# Numbers that lie on the thresholds, beside them, or nowhere near.
entropies = st.one_of(st.sampled_from([0.0, 0.5, 0.93, 0.95]), st.floats(0, 1.6), st.just(math.nan))
thresholds = st.one_of(st.sampled_from([0.95, -0.009, 0.0]), st.floats(-0.2, 1.6), st.just(math.nan))
shares = st.one_of(st.sampled_from([0.0, 0.14, 1.0]), st.floats(0, 1), st.just(math.nan))


def by_hand(entropy, threshold, sparsity, weights=9, margin=0.02, low=0.5, high=0.14):
    if math.isnan(entropy) or math.isnan(sparsity) or math.isnan(threshold) or threshold <= 0:
        return None
    scale = np.log(float(weights)) / np.log(9)
    if entropy >= threshold - margin * scale:
        return "random"
    if entropy < low * scale:
        return "collapsed" if sparsity >= high else "repetitive"
    return "sparse" if sparsity >= high else "regular"


@given(st.lists(st.tuples(entropies, thresholds, shares, st.sampled_from([1, 4, 9, 25, 49])), min_size=1, max_size=20))
@settings(max_examples=200)
def test_labels_by_hand(layers):
    entropy, threshold, sparsity, weights = zip(*layers, strict=True)
    expected = [by_hand(*layer) for layer in layers]
    assert degeneration(entropy, threshold, sparsity, weights=weights).tolist() == expected
    assert set(expected) <= {None, *DEGENERATIONS}


@given(entropies, st.integers(3, 10**6), shares)
@settings(max_examples=200)
def test_degenerated_is_the_rule_of_the_ablation(entropy, kernels, sparsity):
    threshold = randomness_threshold(kernels)
    label = degeneration(entropy, threshold, sparsity)
    if math.isnan(entropy) or math.isnan(sparsity):
        assert label.tolist() == [None]
    else:
        expected = entropy >= threshold - 0.02 or (entropy < 0.5 and sparsity >= 0.14)
        assert degenerated(label).tolist() == [expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["regular", "repetitive", "sparse", "collapsed"]),
        ({"margin": 0.2}, ["random", "repetitive", "sparse", "collapsed"]),
        ({"low_entropy": 0.3}, ["regular", "regular", "sparse", "sparse"]),
        ({"high_sparsity": 0.5}, ["regular", "repetitive", "regular", "repetitive"]),
        # 25 weights: 1.46 times as high an entropy is to be expected.
        ({"weights": 25}, ["regular", "repetitive", "collapsed", "collapsed"]),
    ],
)
def test_thresholds_are_arguments(options, expected):
    labels = degeneration([0.8, 0.4, 0.7, 0.4], 0.95, [0, 0, 0.3, 0.3], **options)
    assert labels.tolist() == expected


def test_layers_too_small_for_a_threshold_have_no_label():
    for kernels in (1, 2):
        assert degeneration(0.0, randomness_threshold(kernels), 0.0).tolist() == [None]
    assert degenerated(np.array([None, "random"], object)).tolist() == [False, True]
    assert degeneration([], [], []).tolist() == []
