import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import depth_deciles, quality


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    count = 240
    return pd.DataFrame(
        {
            "domain": rng.choice(["faces", "natural", "thermal"], count),
            "conv_depth_norm": rng.uniform(0, 1, count),
            "sparsity": rng.beta(0.3, 4, count),
            "variance_entropy": rng.uniform(0.3, 0.95, count),
            "randomness_threshold": 0.94,
            "orthogonality": rng.uniform(0.5, 1, count),
        }
    )


def medians(axes):
    return [
        float(x) for points in axes.collections if isinstance(points, PathCollection) for x, _ in points.get_offsets()
    ]


def test_medians_are_those_of_the_layers(layers):
    figure = quality(layers)
    expected = layers.assign(entropy=layers.variance_entropy / 0.94).groupby("domain").median()
    for axes, measure in zip(figure.axes, ["sparsity", "entropy", "orthogonality"], strict=True):
        assert medians(axes) == pytest.approx(expected[measure].tolist())
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["faces", "natural", "thermal"]
    assert {str(size) for size in layers.domain.value_counts()} <= {text.get_text() for text in first.texts}


def test_every_layer_is_seen(layers):
    for axes in quality(layers).axes:
        low, high = axes.get_xlim()
        dots = np.concatenate([line.get_xdata() for line in axes.get_lines() if line.get_marker() == "."])
        assert len(dots) == len(layers)
        assert (dots >= low).all()
        assert (dots <= high).all()


@pytest.mark.parametrize(("all_layers", "expected"), [(False, 1), (True, 2)])
def test_the_figure_has_the_layers_of_the_table(tmp_path, all_layers, expected):
    """Neither has transposed layers, which the papers leave out, unless all are asked for."""
    torch.manual_seed(0)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 8, 3)), "m", domain="natural")
        assert db.quality("domain", all_layers=all_layers)["layers"].tolist() == [expected]
        figure = db.plot.quality("domain", all_layers=all_layers)
        drawn = [one for axes in figure.axes for one in axes.collections if isinstance(one, PathCollection)]
        caption = " ".join(text.get_text() for text in figure.texts)
    assert f"{expected} layer" in caption
    assert drawn


def test_entropy_without_a_positive_threshold_is_left_out(layers):
    layers["randomness_threshold"] = layers["randomness_threshold"].where(layers.domain != "faces", -0.166)
    layers.loc[layers.domain == "natural", "randomness_threshold"] = np.nan
    assert len(medians(quality(layers).axes[1])) == 1


def test_depth_is_cut_into_tenths(layers):
    figure = quality(layers, by="conv_depth_norm")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "[0, 0.1]"
    assert names[1] == "(0.1, 0.2]"
    assert names[-1] == "(0.9, 1]"
    assert len(names) == 10


def test_tenths_agree_with_their_names():
    depth = pd.Series([0.0, 0.05, 0.1, 0.3, 0.30000001, 0.7, 1.0, np.nan])
    assert depth_deciles(depth).astype(object).where(depth.notna(), None).tolist() == [
        "[0, 0.1]",
        "[0, 0.1]",
        "[0, 0.1]",
        "(0.2, 0.3]",
        "(0.3, 0.4]",
        "(0.6, 0.7]",
        "(0.9, 1]",
        None,
    ]


@pytest.mark.parametrize("groups", [1, 2, 8, 40])
def test_layout_is_legible_whatever_the_groups_are_named(layers, assert_legible, long_labels, groups):
    layers["domain"] = [long_labels(groups)[i % groups] for i in range(len(layers))]
    figure = quality(layers, title="A title that is far too long to fit " * 8)
    assert len(figure.axes[0].get_yticklabels()) == groups
    assert_legible(figure)


def test_given_normalised_entropy_is_taken_as_it_is(layers):
    given = layers.drop(columns=["variance_entropy", "randomness_threshold"]).assign(normalised_entropy=0.5)
    assert medians(quality(given).axes[1]) == [0.5, 0.5, 0.5]


def test_what_cannot_be_drawn_is_reported_in_one_line(layers):
    with pytest.raises(SelectionError, match="no layer with a domain"):
        quality(layers.iloc[:0])
    with pytest.raises(SelectionError, match="missing family, sparsity"):
        quality(layers.drop(columns="sparsity"), by="family")
