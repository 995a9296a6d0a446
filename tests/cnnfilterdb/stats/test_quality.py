"""Quality of layers against torchconvquality, and against the formulas written as plain loops."""

import multiprocessing
import os
from itertools import product

import numpy as np
import pytest
import torch
import torchconvquality as tcq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import (
    QUALITY_RULES,
    Moments,
    binary_residual,
    isotropy,
    layer_statistics,
    levels,
    looks_untrained,
    norms,
    orthogonality,
    scaled_norm_max,
    sparse_kernels,
    sparsity,
    variance_entropy,
)
from cnnfilterdb.stats.arguments import are_finite

seeds = st.integers(0, 2**32 - 1)


def make(seed, outs=16, ins=8, sparse=0.1, side=3):
    """A layer of mixed random kernels of many sizes, a share of which is sparse."""
    rng = np.random.default_rng(seed)
    size = side * side
    mixing = np.eye(size) + 0.5 * rng.normal(size=(size, size))
    filters = rng.normal(size=(outs * ins, size)) @ mixing * rng.lognormal(size=(outs * ins, 1))
    filters[rng.random(outs * ins) < sparse] *= 1e-5
    return filters.astype(np.float32).reshape(outs, ins, side, side)


def rows(weight):
    return weight.reshape(weight.shape[0] * weight.shape[1], -1)


def entropy_of(filters):
    """H = -sum p log10 p with p from the singular values of the centred kernels; NaN without variance."""
    if len(filters) < 2 or (filters == filters[0]).all():
        return float("nan")
    wide = filters.astype(np.float64)
    variances = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False) ** 2 / (len(wide) - 1)
    total = 0.0
    for variance in variances:
        share = variance / variances.sum()
        total -= share * np.log10(share) if share > 0 else 0.0
    return total


def scaled(filters):
    peak = np.abs(filters).max(axis=1, keepdims=True)
    return filters / np.where(peak > 0, peak, 1)


def same(found, expected, tolerance=1e-9):
    """None and NaN are the same; everything else differs by no more than the tolerance."""
    found, expected = (np.nan if value is None else value for value in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------------------------------- torchconvquality


@given(seeds, st.integers(2, 24), st.integers(1, 12), st.sampled_from([0.0, 0.05, 0.4, 0.9]))
@settings(max_examples=60)
def test_metrics_are_torchconvqualitys(seed, outs, ins, sparse):
    weight = make(seed, outs, ins, sparse)
    tensor = torch.from_numpy(weight)
    expected = tcq.measure_conv_weight_quality(tensor.double())
    _, mask = tcq.sparsity(tensor)
    found = layer_statistics(weight)
    np.testing.assert_array_equal(sparse_kernels(rows(weight), rule="torchconvquality"), mask.numpy())
    assert found.sparsity == mask.numpy().mean()
    same(found.orthogonality, expected["orthogonality"], 1e-6)
    for name, kept in (("variance_entropy", rows(weight)), ("variance_entropy_clean", rows(weight)[~mask.numpy()])):
        same(getattr(found, name), entropy_of(kept))
        # With no more kernels than weights a share of exactly 0 makes it NaN in torchconvquality.
        if len(kept) > 9:
            same(getattr(found, name), expected[name])
            same(found.variance_entropy / found.randomness_threshold, expected["variance_entropy_norm"])


@pytest.mark.parametrize(
    ("weight", "shares", "entropies"),
    [
        # In the order of QUALITY_RULES, for sparsity and entropy.
        pytest.param(np.zeros((2, 3, 3, 3)), (0, 1, 1, 0), (np.nan, 0, np.nan), id="zeros"),
        pytest.param(np.zeros((1, 1, 3, 3)), (0, 1, 1, 0), (np.nan,) * 3, id="one kernel of zeros"),
        pytest.param(np.full((2, 3, 3, 3), 0.7), (0, 0, 0, 0), (np.nan, 0, np.nan), id="equal kernels"),
        pytest.param(np.arange(9.0).reshape(1, 1, 3, 3), (0, 0, 0, 0), (np.nan,) * 3, id="one kernel"),
        pytest.param(np.full((2, 3, 3, 3), -0.7), (0, 0, 0, 1), (np.nan, 0, np.nan), id="equal and negative"),
    ],
)
def test_edge_cases_are_those_of_each_code(weight, shares, entropies):
    weight = weight.astype(np.float32)
    filters = rows(weight)
    assert [sparsity(filters, rule=rule) for rule in QUALITY_RULES] == list(shares)
    moments = Moments.of(filters, scale=False)
    for rule, expected in zip(QUALITY_RULES, entropies, strict=False):
        same(variance_entropy(moments, rule=rule), expected, 0)
    theirs = torch.from_numpy(weight)
    assert sparsity(filters, rule="torchconvquality") == tcq.sparsity(theirs)[0]
    same(variance_entropy(moments, rule="torchconvquality"), tcq.variance_entropy(theirs)[0], 0)
    statistics = layer_statistics(weight)
    assert (statistics.sparsity, statistics.nonsparse) == (shares[0], None)
    for name in ("variance_entropy", "variance_entropy_clean", "variance_entropy_scaled"):
        assert getattr(statistics, name) is None


def test_without_kernels():
    none = np.empty((0, 9), np.float32)
    for rule in QUALITY_RULES:
        assert np.isnan(sparsity(none, rule=rule))
        assert np.isnan(variance_entropy(Moments.of(none, scale=False), rule=rule))


def test_a_rule_must_be_known():
    filters = np.ones((2, 9), np.float32)
    with pytest.raises(SelectionError, match="'cvpr2023' is not one of cvpr2022, torchconvquality"):
        sparsity(filters, rule="cvpr2023")
    with pytest.raises(SelectionError, match="'cvpr2023' is not one of"):
        variance_entropy(Moments.of(filters), rule="cvpr2023")


# ------------------------------------------------------------------------------------------------------- sparsity


def sparse_by_loops(filters, threshold, rule):
    signed = rule == "medneurips2022"
    largest = max(float(w if signed else abs(w)) for kernel in filters for w in kernel)
    limit = np.float32(largest * threshold)
    if rule == "torchconvquality" and largest * threshold == 0:
        limit = np.float32(1)
    found = []
    for kernel in filters:
        if signed:
            found.append(not any(w >= limit for w in kernel))
        elif rule == "cvprw2022":
            found.append(max(abs(w) for w in kernel) <= limit)
        else:
            found.append(all(abs(w) < limit for w in kernel))
    return found


# Weights on, just beside, and off the limit of 1 % of 1, and some that vanish when they are multiplied by it.
near = [0.0, -0.0, 1e-45, 1e-30, 0.005, 0.01, np.nextafter(np.float32(0.01), np.float32(1)), 0.5, 1.0]
values = st.sampled_from([np.float32(sign * value) for value in near for sign in (1, -1)])


@given(st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=6), st.sampled_from([0.01, 0.1, 0.5]))
@example([[np.float32(1e-45)] * 4, [np.float32(0)] * 4], 0.01)
@settings(max_examples=300)
def test_sparse_kernels_by_all_rules(filters, threshold):
    filters = np.array(filters, np.float32)
    for rule in QUALITY_RULES:
        expected = sparse_by_loops(filters, threshold, rule)
        assert sparse_kernels(filters, threshold, rule=rule).tolist() == expected, rule
        assert sparsity(filters, threshold, rule=rule) == np.mean(expected)
    _, mask = tcq.sparsity(torch.from_numpy(filters.reshape(-1, 1, 2, 2)), threshold)
    assert sparse_kernels(filters, threshold, rule="torchconvquality").tolist() == mask.tolist()


# -------------------------------------------------------------------------------------------------------- entropy


@given(seeds, st.integers(2, 40), st.sampled_from([2, 3, 5]), st.sampled_from([0.0, 0.2, 0.7]))
@settings(max_examples=60)
def test_entropies_are_those_of_singular_values(seed, kernels, side, sparse):
    weight = make(seed, kernels, 1, sparse, side)
    filters = rows(weight)
    kept = ~sparse_kernels(filters)
    found = layer_statistics(weight)
    assert kept.any()
    same(found.variance_entropy, entropy_of(filters))
    same(found.variance_entropy_clean, entropy_of(filters[kept]))
    same(found.variance_entropy_scaled, entropy_of(scaled(filters)[kept]))
    same(variance_entropy(Moments.of(filters[kept])), found.variance_entropy_scaled)
    assert -1e-12 <= found.variance_entropy <= np.log10(side * side) + 1e-12
    assert (found.nonsparse is None) == kept.all()
    moments = found.nonsparse or found.moments
    expected = scaled(filters)[kept].astype(np.float64)
    assert moments.count == kept.sum()
    np.testing.assert_allclose(moments.mean, expected.mean(axis=0), atol=1e-12)
    centred = expected - expected.mean(axis=0)
    np.testing.assert_allclose(moments.scatter, centred.T @ centred, atol=1e-9)


@pytest.mark.parametrize("sparse", [1, 3, 40, 90])
@pytest.mark.parametrize("first", ["sparse", "kept"])
def test_equal_kernels_beside_sparse_ones_have_no_clean_entropy(sparse, first):
    """Differences of sums leave rounding there, which must not pass for variance."""
    rng = np.random.default_rng(sparse)
    filters = np.tile(rng.normal(size=9), (100, 1))
    filters[:sparse] = 1e-5 * rng.normal(size=(sparse, 9))
    weight = filters[:: 1 if first == "sparse" else -1].astype(np.float32).reshape(10, 10, 3, 3)
    found = layer_statistics(weight)
    assert found.sparsity == sparse / 100
    assert found.nonsparse.count == 100 - sparse
    assert not found.nonsparse.scatter.any()
    assert (found.variance_entropy_clean, found.variance_entropy_scaled) == (None, None)
    assert found.variance_entropy == pytest.approx(0, abs=1e-6)


def test_kernels_that_hardly_differ_keep_their_clean_entropy():
    rng = np.random.default_rng(0)
    filters = (rng.normal(size=9) + 1e-5 * rng.normal(size=(200, 9))).astype(np.float32)
    filters[:20] *= 1e-5
    found = layer_statistics(filters.reshape(20, 10, 3, 3))
    same(found.variance_entropy_clean, entropy_of(filters[20:]), 1e-7)


@given(seeds, st.integers(-8, 8), st.sampled_from([0.0, 0.3]), st.permutations(range(9)))
@settings(max_examples=40)
def test_scale_sign_turns_and_order_do_not_matter(seed, octaves, sparse, order):
    weight = make(seed, 12, 6, sparse)
    found = layer_statistics(weight)
    rng = np.random.default_rng(seed)
    flipped = np.rot90(weight, axes=(2, 3))
    shuffled = rows(weight)[:, order].reshape(weight.shape)
    for other in (weight * np.float32(2**octaves), -weight, flipped, flipped[:, :, ::-1], shuffled, weight[::-1]):
        same_layer = layer_statistics(np.ascontiguousarray(other))
        assert same_layer.sparsity == found.sparsity
        assert (same_layer.binary_filters, same_layer.levels) == (found.binary_filters, found.levels)
        for name in ("variance_entropy", "variance_entropy_clean", "variance_entropy_scaled", "orthogonality"):
            same(getattr(same_layer, name), getattr(found, name), 2e-6 if name == "orthogonality" else 1e-9)
    # Each output filter on its own scale, as a folded normalisation leaves it.
    folded = weight * (rng.lognormal(size=(12, 1, 1, 1)) * rng.choice([-1, 1], size=(12, 1, 1, 1))).astype(np.float32)
    same(orthogonality(folded), found.orthogonality, 2e-6)


@pytest.mark.parametrize("shape", [(300, 200, 3, 3), (64, 1100, 1, 3)])
def test_layers_of_many_kernels(shape):
    """More kernels than one thread sums at a time."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=shape).astype(np.float32)
    weight[rng.random(shape[:2]) < 0.1] *= 1e-4
    filters = rows(weight)
    kept = filters[~sparse_kernels(filters)]
    found = layer_statistics(weight)
    same(found.variance_entropy, entropy_of(filters))
    same(found.variance_entropy_clean, entropy_of(kept))
    assert found.sparsity == (len(filters) - len(kept)) / len(filters)
    assert (found.norm_l1, found.norm_l2) == pytest.approx(norms(weight), rel=1e-12)
    assert found.binary_filters == (binary_residual(filters) <= 0.01).sum()
    longest = np.linalg.norm(filters / np.abs(filters).max(axis=1, keepdims=True), axis=1).max()
    assert found.scaled_norm_max == scaled_norm_max(filters) == pytest.approx(longest, rel=1e-6)
    theirs = tcq.orthogonality(torch.from_numpy(weight).double())
    same(found.orthogonality, theirs, 1e-6)


# -------------------------------------------------------------------------------------------------- orthogonality


def orthogonality_by_loops(weight):
    filters = [row / (np.linalg.norm(row) or 1) for row in weight.reshape(len(weight), -1).astype(np.float64)]
    total = 0.0
    for i, j in product(range(len(filters)), repeat=2):
        total += abs(filters[i] @ filters[j] - (i == j))
    return 1 - total / (len(filters) * (len(filters) - 1))


@given(seeds, st.integers(2, 12), st.sampled_from([1e-38, 1e-20, 1.0, 1e20]), st.integers(0, 2))
@settings(max_examples=60)
def test_orthogonality_by_loops(seed, outs, unit, zeros):
    weight = make(seed, outs, 3, 0) / np.float32(100) * np.float32(unit)
    weight[:zeros] = 0
    assert orthogonality(weight) == pytest.approx(orthogonality_by_loops(weight), abs=1e-6)


def test_orthogonality_of_known_layers():
    eye = np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3)
    assert orthogonality(eye) == 1
    assert orthogonality(np.concatenate([eye[:1], -3 * eye[:1], 2 * eye[:1]])) == pytest.approx(0, abs=1e-7)
    assert np.isnan(orthogonality(eye[:1]))
    # All zeros: each row misses its diagonal element.
    zeros = np.zeros((4, 2, 3, 3), np.float32)
    assert orthogonality(zeros) == 1 - 1 / 3
    assert orthogonality(zeros) == pytest.approx(tcq.orthogonality(torch.from_numpy(zeros)), abs=1e-7)


@pytest.mark.parametrize("shape", [(2100, 1, 2, 3), (301, 90, 3, 3), (67, 5, 1, 7), (512, 4, 3, 3), (513, 4, 3, 3)])
def test_orthogonality_of_many_filters(shape):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[[0, shape[0] // 2]] = 0
    expected = tcq.orthogonality(torch.from_numpy(weight).double())
    assert orthogonality(weight) == pytest.approx(expected, abs=1e-6)
    assert orthogonality(weight) == orthogonality(weight)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    weight = np.random.default_rng(0).normal(size=(301, 120, 3, 3)).astype(np.float32)
    expected = layer_statistics(weight)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(layer_statistics, (weight,)).get(timeout=600)
    assert (found.orthogonality, found.norm_l1) == (expected.orthogonality, expected.norm_l1)


# --------------------------------------------------------------------------------------- norms, levels, binary ones


@given(seeds)
@settings(max_examples=20)
def test_norms(seed):
    weight = make(seed, 4, 4)
    plain = weight.astype(np.float64).ravel()
    assert norms(weight) == pytest.approx((np.linalg.norm(plain, 1), np.linalg.norm(plain, 2)), rel=1e-12)
    standard = torch.from_numpy(plain)
    standard = (standard - standard.mean()) / standard.std()
    expected = (standard.abs().sum().item(), np.sqrt(plain.size - 1))
    assert norms(weight, standardise=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", [np.ones(5, np.float32), np.ones(1, np.float32)])
def test_standardised_norms_need_a_spread(weight):
    assert np.isnan(norms(weight, standardise=True)).all()


@given(seeds, st.integers(1, 300), st.integers(1, 4))
@settings(max_examples=40)
def test_levels_are_counted_in_each_channel(seed, kinds, outs):
    rng = np.random.default_rng(seed)
    steps = (rng.integers(-kinds // 2, kinds // 2 + 1, (outs, 40, 3, 3)) * rng.lognormal(size=(outs, 1, 1, 1))).astype(
        np.float32
    )
    weight = steps * rng.choice([-1, 1], size=steps.shape).astype(np.float32)
    expected = max(len(np.unique(channel)) for channel in weight)
    assert levels(weight) == (expected if expected <= 256 else None)
    assert levels(weight, expected) == expected
    assert levels(weight, expected - 1) is None


def test_eight_bits_are_256_levels():
    weight = (np.arange(-128, 128) / np.float32(37)).astype(np.float32).reshape(1, 256, 1, 1)
    assert levels(weight) == 256
    assert levels(np.concatenate([weight, weight], axis=1)) == 256
    assert levels(np.concatenate([weight, np.full((1, 1, 1, 1), 9, np.float32)], axis=1)) is None


@given(st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5), st.sampled_from([2, 3]))
@settings(max_examples=60)
def test_binary_residual_is_the_distance_to_the_nearest_such_kernel(kernel, values):
    kernel = np.array(kernel, np.float32)
    if np.abs(kernel).max() < 1e-3:
        kernel = np.ones(5, np.float32)
    wide = kernel.astype(np.float64)
    distances = []
    for signs in product([-1, 1] if values == 2 else [-1, 0, 1], repeat=5):
        pattern = np.array(signs, np.float64)
        if pattern.any():
            best = (wide @ pattern) / (pattern @ pattern) * pattern
            distances.append(((wide - best) ** 2).sum() / (wide @ wide))
    for scale in (1, -4, 0.125):
        found = binary_residual(kernel[None] * np.float32(scale), values=values)
        assert found[0] == pytest.approx(min(distances), abs=1e-12)


def test_binary_residual_needs_two_or_three_values():
    with pytest.raises(SelectionError, match="4 given; expected 2"):
        binary_residual(np.ones((1, 9), np.float32), values=4)


def test_binary_filters_are_counted():
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(60, 9)).astype(np.float32)
    filters[:25] = np.sign(filters[:25]) * rng.lognormal(size=(25, 1))
    filters[50:] = 0
    assert (binary_residual(filters) <= 0.01).sum() == 25
    assert layer_statistics(filters.reshape(6, 10, 3, 3)).binary_filters == 25


# ------------------------------------------------------------------------------------------------------- isotropy


def test_isotropy_is_uniform_for_random_kernels_and_tiny_for_others():
    rng = np.random.default_rng(0)

    def p_value(filters):
        return isotropy(Moments.of(filters.astype(np.float32), scale=False))

    found = [p_value(0.02 * rng.normal(size=(400, 9))) for _ in range(400)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09
    random = rng.normal(size=(400, 9))
    assert p_value(random + 0.5) < 1e-6
    assert p_value(random * np.linspace(1, 2, 9)) < 1e-6
    assert p_value(random @ (np.eye(9) + 0.3 * np.eye(9, k=1))) < 1e-6
    assert p_value(random[:89]) is None
    assert p_value(np.ones((400, 9))) is None
    assert p_value(rng.normal(size=(400, 1))) is None


def test_a_model_looks_untrained_when_no_layer_differs_from_random_ones():
    rng = np.random.default_rng(0)
    untrained = [layer_statistics(rng.normal(size=(32, 32, 3, 3)).astype(np.float32)) for _ in range(5)]
    few = layer_statistics(rng.normal(size=(3, 3, 3, 3)).astype(np.float32))
    assert looks_untrained([*untrained, few]) is True
    assert looks_untrained([*untrained, layer_statistics(make(0, 32, 32))]) is False
    assert looks_untrained([few]) is None
    assert looks_untrained([]) is None


# ----------------------------------------------------------------------------------------------------- real layers


@pytest.mark.network
def test_real_layers_of_a_resnet_against_torchconvquality(record_property):
    from cnnfilterdb.ingest import formats
    from cnnfilterdb.ingest.sources.pypi import PypiSource

    read = formats.read(PypiSource().resolve("brainscore-vision/aughost_fair_resnet18"))
    layers = [layer.read() for layer in read.layers if layer.kernel == "3x3"]
    assert len(layers) == 16
    largest = dict.fromkeys(("sparsity", "variance_entropy", "variance_entropy_clean"), 0.0)
    for weight in layers:
        found, expected = layer_statistics(weight), tcq.measure_conv_weight_quality(torch.from_numpy(weight).double())
        expected["sparsity"] = tcq.sparsity(torch.from_numpy(weight))[1].numpy().mean()
        for name in largest:
            largest[name] = max(largest[name], abs(getattr(found, name) - expected[name]))
    for name, difference in largest.items():
        record_property(name, difference)
        print(f"{name}: largest difference {difference:.1e}")
    assert largest["sparsity"] == 0
    assert max(largest.values()) < 1e-9


@given(
    arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.floats(width=32),
)
def test_finite_weights_are_told_from_others(weights, large):
    weights = np.append(weights, np.float32(large))
    assert are_finite(weights) == bool(np.isfinite(weights).all())
