import numpy as np
import pytest
from matplotlib.figure import Figure as PlainFigure

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import eigenfilters, filter_grid


@pytest.fixture
def kernels():
    return np.random.default_rng(0).normal(size=(30, 3, 3)).astype(np.float32)


def test_every_kernel_is_an_image_in_order(kernels):
    for given in (kernels, kernels.reshape(-1, 9)):
        images = filter_grid(given).axes[0].images
        assert len(images) == 30
        for image, kernel in zip(images, kernels, strict=True):
            assert np.array_equal(image.get_array(), kernel)
            assert image.norm.vmax == -image.norm.vmin == np.abs(kernel).max()


def test_layer_scale_is_one_range_over_all_even_those_not_drawn(kernels):
    kernels[-1] = 50.0
    images = filter_grid(kernels, scale="layer", limit=4).axes[0].images
    assert [image.norm.vmax for image in images] == [50.0] * 4


def test_zero_is_white_in_the_middle_of_the_colours(kernels):
    image = filter_grid(kernels).axes[0].images[0]
    red, green, blue, _ = image.cmap(image.norm(0.0))
    assert min(red, green, blue) > 0.95
    assert image.cmap(image.norm(image.norm.vmax))[0] > image.cmap(image.norm(image.norm.vmax))[2]  # positive is red
    assert image.cmap(image.norm(image.norm.vmin))[2] > image.cmap(image.norm(image.norm.vmin))[0]  # negative is blue


def test_first_row_of_a_kernel_is_on_top_and_rows_fill_first(kernels):
    axes = filter_grid(kernels, columns=10).axes[0]
    assert axes.yaxis_inverted()
    places = [image.get_extent() for image in axes.images]
    assert len({place[0] for place in places}) == 10
    assert len({place[3] for place in places}) == 3
    assert places[9][3] == places[0][3] < places[10][3]
    assert all(top < bottom for _, _, bottom, top in places)
    assert all(image.origin == "upper" for image in axes.images)


def test_a_limit_is_reported(kernels, assert_legible):
    figure = filter_grid(kernels, limit=8, title="layer1.0.conv1 of a model with a rather long name $x$")
    assert len(figure.axes[0].images) == 8
    assert "first 8 of 30 kernels" in {text.get_text() for text in figure.texts}
    assert_legible(figure)
    assert not any("first" in text.get_text() for text in filter_grid(kernels, limit=30).texts)


def test_channels_label_rows_and_columns(kernels, assert_legible):
    channels = [(out, inner) for out in range(10) for inner in range(3)]
    figure = filter_grid(kernels, channels=channels, title="model", subtitle="layer 3 (a.b.c)")
    axes, bar = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["out 0", *map(str, range(1, 10))]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in 0", "1", "2"]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["−max", "0", "max"]
    assert_legible(figure)
    deep = filter_grid(kernels, channels=[(0, inner) for inner in range(30)], columns=10)
    assert [label.get_text() for label in deep.axes[0].get_yticklabels()] == ["out:in 0:0", "0:10", "0:20"]
    with pytest.raises(SelectionError, match="channels: expected one pair"):
        filter_grid(kernels, channels=channels[:3])


def test_a_long_subtitle_keeps_the_name_of_the_layer(kernels):
    name = "layer 1 (" + "features." * 40 + "down1.conv)"
    figure = filter_grid(kernels, title="pypi/some-package/" + "weights" * 40, subtitle=name)
    title, subtitle = (text.get_text() for text in figure.texts)
    assert title.startswith("pypi/")
    assert subtitle.startswith("layer 1 (fea")
    assert subtitle.endswith("down1.conv)")


@pytest.mark.parametrize("shape", [(1, 3, 3), (256, 3, 3), (20, 7, 7), (20, 1, 7), (20, 7, 1), (5, 2, 31)])
def test_pictures_of_any_kernel_size_have_a_sensible_size(shape, assert_legible):
    figure = filter_grid(np.random.default_rng(1).normal(size=shape), title="t")
    width, height = figure.get_size_inches()
    assert 0.3 < width < 12
    assert 0.3 < height < 12
    assert_legible(figure)


def test_zero_kernels_are_white_and_not_an_error():
    assert filter_grid(np.zeros((2, 9))).axes[0].images[0].norm.vmax == 1.0


def test_it_draws_on_a_given_panel(kernels):
    figure = PlainFigure()
    axes = figure.subplots()
    assert filter_grid(kernels, limit=4, title="t", ax=axes) is figure
    assert len(axes.images) == 4
    assert axes.get_xlabel() == "first 4 of 30 kernels"


@pytest.mark.parametrize(
    ("filters", "options", "message"),
    [
        (np.zeros((0, 9)), {}, "nothing to draw"),
        (np.zeros((4, 7)), {}, "not a square kernel; pass shape"),
        (np.full((1, 9), np.nan), {}, "NaN or infinity"),
        (np.zeros(9), {}, "expected 3 dimensions"),
        (np.zeros((1, 9)), {"scale": "model"}, "'filter' or 'layer'"),
        (np.zeros((1, 9)), {"limit": 0}, "at least 1"),
        (np.zeros((1, 9)), {"columns": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_reported_in_one_line(filters, options, message):
    with pytest.raises(SelectionError, match=message) as caught:
        filter_grid(filters, **options)
    assert "\n" not in str(caught.value)


def test_eigenfilters_are_the_components_row_by_row(make_basis):
    bases = {"faces": make_basis(seed=1), None: make_basis(seed=2)}
    axes = eigenfilters(bases).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["faces", "unknown"]
    expected = np.concatenate([basis.components for basis in bases.values()])
    assert len(axes.images) == 18
    for image, component in zip(axes.images, expected, strict=True):
        assert np.array_equal(image.get_array(), component.reshape(3, 3))
        assert (image.norm.vmin, image.norm.vmax) == (-1.0, 1.0)
    ratios = np.concatenate([basis.explained_variance_ratio for basis in bases.values()])
    assert [text.get_text() for text in axes.texts] == [f"{ratio:.2f}" for ratio in ratios]


@pytest.mark.parametrize(("groups", "kernel"), [(1, "3x3"), (2, "1x7"), (8, "5x5"), (40, "3x3")])
def test_eigenfilters_are_legible(make_basis, assert_legible, long_labels, groups, kernel):
    basis = make_basis(kernel)
    figure = eigenfilters(
        dict(zip(long_labels(groups), [basis] * groups, strict=True)), title="A title that is far too long to fit " * 8
    )
    assert sum(len(axes.images) for axes in figure.axes) == groups * min(9, len(basis.components))
    assert_legible(figure)


def test_fewer_components_can_be_asked_for(make_basis):
    assert len(eigenfilters({"a": make_basis()}, components=3).axes[0].images) == 3


def test_eigenfilters_that_cannot_be_drawn(make_basis):
    with pytest.raises(SelectionError, match="no basis"):
        eigenfilters({})
    with pytest.raises(SelectionError, match="one kernel size, found 3x3, 5x5"):
        eigenfilters({"a": make_basis("3x3"), "b": make_basis("5x5")})
    with pytest.raises(SelectionError, match="at least 1"):
        eigenfilters({"a": make_basis()}, components=0)
    with pytest.raises(SelectionError, match="positive"):
        eigenfilters({"a": make_basis()}, vmax=0.0)


@pytest.mark.parametrize("style", ["screen", "paper"])
def test_the_colour_bar_and_its_label_fit_beside_the_kernels(kernels, assert_legible, style):
    for factor in (1.0, 1e-6, 12345.0):
        figure = filter_grid(factor * kernels, scale="layer", style=style)
        assert figure.axes[1].get_ylabel() == "weight"
        assert_legible(figure)
