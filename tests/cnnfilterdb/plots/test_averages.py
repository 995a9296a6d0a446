import numpy as np
import pytest
from matplotlib.image import imread

from cnnfilterdb.cli import main
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import mean_kernels, variance
from cnnfilterdb.plots.style import root_ticks
from cnnfilterdb.stats import variance_map


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    sizes = {"3x3": 9, "7x7": 49, "1x7": 7}
    return {
        label: {size: (rng.uniform(0.2, 3, count), 1000 * (place + 1)) for size, count in sizes.items()}
        for place, label in enumerate(["faces", "natural"])
    }


def test_images_hold_the_variances_in_rows_and_columns(maps, assert_legible):
    del maps["natural"]["1x7"]
    figure = variance(maps, title="Where weights vary")
    assert_legible(figure)
    axes, bar = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["faces", "natural"]
    sizes = [label.get_text() for label in axes.get_xticklabels()]
    assert sorted(sizes) == ["1x7", "3x3", "7x7"]
    assert len(axes.images) == 5
    drawn = {}
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        column = np.abs(axes.get_xticks() - (left + right) / 2).argmin()
        row = np.abs(axes.get_yticks() - (bottom + top) / 2).argmin()
        drawn[["faces", "natural"][row], sizes[column]] = image
        height, width = map(int, sizes[column].split("x"))
        assert image.get_array().shape == (height, width)
        # Pixels are squares: long kernels are not stretched.
        assert (right - left) / width == pytest.approx((bottom - top) / height)
    for label, group in maps.items():
        for size, (values, _) in group.items():
            np.testing.assert_array_equal(drawn[label, size].get_array().ravel(), values)
    largest = max(values.max() for group in maps.values() for values, _ in group.values())
    assert {image.norm.vmax for image in axes.images} == {largest}
    assert {image.norm.vmin for image in axes.images} == {0}
    assert bar.get_ylim() == (0, pytest.approx(largest))
    counts = [text.get_text() for text in axes.texts]
    assert counts.count("1 k") == 3
    assert counts.count("2 k") == 2


def test_brightest_colour_can_be_given(maps):
    assert {image.norm.vmax for image in variance(maps, vmax=7.5).axes[0].images} == {7.5}


@pytest.mark.parametrize(("groups", "sizes"), [(1, 1), (3, 2), (20, 1), (12, 6), (2, 14)])
def test_layout_is_legible_whatever_the_groups_are_named(assert_legible, long_labels, groups, sizes):
    names = [f"{2 * side + 1}x{2 * side + 1}" for side in range(1, sizes + 1)]
    group = {name: (np.ones((2 * side + 3) ** 2), 10**side) for side, name in enumerate(names)}
    for labels in ([f"group {i}" for i in range(groups)], long_labels(groups)):
        figure = variance(dict.fromkeys(labels, group), title="A title that is far too long to fit " * 8)
        assert sum(len(axes.images) for axes in figure.axes) == groups * sizes
        assert_legible(figure)
        assert max(figure.get_size_inches()) < 16


def test_zeros_can_be_drawn(assert_legible):
    assert_legible(variance({"flat": {"3x3": (np.zeros(9), 4)}}))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "nothing to draw, found no kernels"),
        ({"faces": {}}, "nothing to draw, found no kernels"),
        ({"faces": {"5x5": (np.ones(9), 3)}}, "faces has 9 variances for 5x5 kernels"),
        ({"faces": {"3x3": (np.full(9, np.nan), 3)}}, "faces, 3x3"),
        ({"faces": {"3x3": (np.ones((3, 3)), 3)}}, "faces, 3x3"),
    ],
)
def test_what_cannot_be_drawn_is_reported_in_one_line(maps, message):
    with pytest.raises(SelectionError, match=message) as caught:
        variance(maps)
    assert "\n" not in str(caught.value)


def test_no_figure_is_kept_alive(maps):
    import gc
    import weakref

    figure = variance(maps)
    reference = weakref.ref(figure)
    del figure
    gc.collect()
    assert reference() is None


# --------------------------------------------------------------------------------------------------- from a database


def test_a_database_is_drawn_by_group_and_size(sample, tensors):
    axes = sample.plot.variance("domain").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["faces", "medical ct", "natural"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3x3", "5x5", "7x7"]
    # 3x3 of all three, 5x5 of the medical ones, 7x7 of the natural ones; 1x1 says nothing.
    assert len(axes.images) == 5
    faces = [tensors["face"][f"{name}.weight"].reshape(-1, 9).astype(np.float64) for name in "ab"]
    expected = np.concatenate([layer / layer.std() for layer in faces]).var(axis=0)
    image = next(image for image in axes.images if image.get_array().shape == (3, 3))
    np.testing.assert_allclose(image.get_array().ravel(), expected, atol=1e-9)
    counts = np.array([len(layer) for layer in faces])
    means, variances = (np.stack([getattr(layer, name)(axis=0) for layer in faces]) for name in ("mean", "var"))
    np.testing.assert_allclose(variance_map(counts, means, variances), expected, atol=1e-9)
    assert {"190"} <= {text.get_text() for text in axes.texts}


def test_sizes_and_rows_can_be_chosen(sample):
    axes = sample.plot.variance("name", where="domain = 'natural'", kernel=["7x7", "3x3"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["photo-a", "photo-b"]
    assert len(axes.images) == 3
    with pytest.raises(SelectionError):
        sample.plot.variance("domain", kernel="9x9")
    with pytest.raises(SelectionError):
        sample.plot.variance("domain", where="domain = 'cars'")


@pytest.mark.parametrize("options", [[], ["--kernel", "5x5"], ["--by", "name", "--where", "domain = 'natural'"]])
def test_command_line(sample_path, tmp_path, monkeypatch, capsys, options):
    target = tmp_path / "variance.png"
    line = ["cnnfilterdb", "plot", "variance", *options, "--output", str(target), "--db", str(sample_path)]
    monkeypatch.setattr("sys.argv", line)
    main()
    assert capsys.readouterr().out.strip() == str(target)
    picture = imread(target)
    # Drawn on, and on more than one grey.
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


def test_images_of_few_kernels_do_not_set_the_range(assert_legible):
    faint = {"3x3": (np.full(9, -0.1), 5000), "5x5": (np.full(25, 0.025), 800)}
    figure = mean_kernels({"faces": faint | {"7x7": (np.linspace(-1, 1, 49), 2)}})
    assert_legible(figure)
    images = figure.axes[0].images
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(-0.1, 0.1)}
    # By square roots: a quarter of the largest mean has half its colour.
    assert [image.norm(image.get_array()[0, 0]) for image in images[:2]] == pytest.approx([0.0, 0.75])
    bar = figure.axes[-1]
    assert bar.get_ylabel().replace("\n", " ") == "mean of scaled weights"
    assert bar.get_yticklabels()[0].get_text().startswith("−0.0")
    alone = mean_kernels({"faces": {"7x7": (np.linspace(-1, 1, 49), 2)}}).axes[0].images[0]
    assert alone.norm.vmax == 1
    assert variance({"faces": {"3x3": (np.full(9, 1.5), 100), "5x5": (np.full(25, 9.0), 99)}}).axes[0].images[
        1
    ].norm.vmax == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("bound", "height", "signed"), [(12, 1.4, False), (0.4, 1.4, True), (3e-5, 0.4, True), (7, 0.2, False)]
)
def test_ticks_of_square_roots_are_evenly_spaced_and_leave_room(bound, height, signed):
    ticks = root_ticks(bound, height, signed=signed)
    places = np.sign(ticks) * np.sqrt(np.abs(ticks))
    assert np.ptp(np.diff(places)) == pytest.approx(0, abs=1e-9)
    assert max(ticks) <= bound * (1 + 1e-9)
    assert 0 in ticks
    span = (2 if signed else 1) * np.sqrt(bound)
    assert np.diff(places).min() / span * height >= 6.5 / 72  # a line of text
