import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as PlainFigure

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import heatmap, ordered_groups

# Shifts between tasks as published with version 1.0.0 of the authors' data set, in the published order.
PUBLISHED = """
GAN-Generator    0    .024 .019 .072 .093 .077 .168 .061 .173 .109 .306
Depth-Estimation .024 0    .013 .077 .098 .082 .178 .056 .178 .093 .322
Object-Detection .019 .013 0    .093 .109 .045 .189 .029 .210 .067 .359
Style-Transfer   .072 .077 .093 0    .013 .194 .082 .205 .029 .290 .088
Super-Resolution .093 .098 .109 .013 0    .194 .082 .221 .051 .306 .082
Segmentation     .077 .082 .045 .194 .194 0    .205 .051 .322 .109 .466
Face-Recognition .168 .178 .189 .082 .082 .205 0    .301 .104 .412 .141
Classification   .061 .056 .029 .205 .221 .051 .301 0    .375 .029 .556
Auto-Encoder     .173 .178 .210 .029 .051 .322 .104 .375 0    .492 .035
Face-Detection   .109 .093 .067 .290 .306 .109 .412 .029 .492 0    .700
GAN-Discriminator .306 .322 .359 .088 .082 .466 .141 .556 .035 .700 0
"""


@pytest.fixture
def published():
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    names = [row[0] for row in rows]
    return pd.DataFrame([[float(value) for value in row[1:]] for row in rows], index=names, columns=names)


def square(values, names=None):
    names = [f"group {i}" for i in range(len(values))] if names is None else names
    return pd.DataFrame(values, index=names, columns=names)


def random_shifts(groups, seed=0):
    values = np.random.default_rng(seed).gamma(1.0, 0.3, (groups, groups))
    values = values + values.T
    np.fill_diagonal(values, 0)
    return values


def test_the_order_is_the_published_one(published):
    shuffled = published.sample(frac=1, random_state=0)
    shuffled = shuffled[shuffled.index]
    figure = heatmap(shuffled)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(published.index)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(published.index)
    assert np.array_equal(axes.images[0].get_array(), published.to_numpy())


@settings(max_examples=50)
@given(arrays.arrays(np.float64, st.integers(1, 12).map(lambda n: (n, n)), elements=st.floats(0, 10)))
def test_order_by_mean_ascends_and_is_a_permutation(values):
    order = ordered_groups(square(values))
    assert sorted(order) == list(range(len(values)))
    assert (np.diff(values.mean(axis=0)[order]) >= -1e-12).all()


def test_clusters_are_side_by_side():
    near, far = 0.01, 1.0
    values = np.array([[far if (i + j) % 2 else near for j in range(8)] for i in range(8)])
    np.fill_diagonal(values, 0)
    order = ordered_groups(square(values), "cluster")
    assert {frozenset(order[:4]), frozenset(order[4:])} == {frozenset((0, 2, 4, 6)), frozenset((1, 3, 5, 7))}


def test_order_none_leaves_the_order_alone(published):
    assert ordered_groups(published.iloc[::-1, ::-1], None) == list(range(11))


def test_cells_hold_the_values_in_a_readable_colour(published):
    axes = heatmap(published).axes[0]
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in axes.texts}
    assert cells[10, 9].get_text() == "0.700"
    assert cells[10, 9].get_color() == "black"  # on the brightest colour
    assert cells[0, 0].get_text() == "0.000"
    assert cells[0, 0].get_color() == "white"
    assert len(cells) == 121


def test_counts_follow_the_names(published):
    counts = pd.DataFrame({"models": range(1, 12), "filters": np.arange(1, 12) * 1_000_000}, index=published.index)
    texts = {text.get_text() for text in heatmap(published, counts=counts).axes[0].texts}
    assert {"models · filters", "1 · 1 M", "11 · 11 M"} <= texts


def test_colours_run_from_zero_to_the_largest_shift(published):
    figure = heatmap(published)
    assert figure.axes[0].images[0].norm.vmin == 0
    assert figure.axes[0].images[0].norm.vmax == 0.7
    assert figure.axes[1].get_ylabel() == "KL shift D (nats)"
    assert heatmap(published, vmax=0.5).axes[0].images[0].norm.vmax == 0.5


def test_one_group_has_one_colour_and_no_scale():
    figure = heatmap(pd.DataFrame([[0.0]], ["only"], ["only"]))
    assert [len(axes.images) for axes in figure.axes] == [1]


@pytest.mark.parametrize("groups", [1, 2, 8, 16, 40])
def test_layout_is_legible_whatever_the_groups_are_named(assert_legible, long_labels, groups):
    values = random_shifts(groups)
    counts = pd.DataFrame({"models": 999, "filters": 123_456_789}, index=range(groups))
    for matrix, given_counts in ((square(values, long_labels(groups)), None), (square(values, range(groups)), counts)):
        figure = heatmap(matrix, counts=given_counts, title="A title that is far too long to fit " * 8)
        assert_legible(figure)
        renderer = figure.canvas.get_renderer()
        cell = figure.axes[0].get_window_extent(renderer).width / groups
        numbers = [t for t in figure.axes[0].texts if t.get_text().replace(".", "").isdigit() and "." in t.get_text()]
        assert len(numbers) == groups**2
        assert all(number.get_window_extent(renderer).width < cell for number in numbers)


def test_values_are_left_out_of_many_cells_unless_they_are_asked_for():
    assert not heatmap(square(random_shifts(41))).axes[0].texts
    assert len(heatmap(square(random_shifts(41)), annotate=True).axes[0].texts) == 41**2


def test_an_unknown_shift_is_a_dash_and_orders_last():
    values = random_shifts(4)
    values[1, :] = values[:, 1] = np.nan
    for order in ("mean", "cluster", None):
        figure = heatmap(square(values), order=order)
        assert sum(text.get_text() == "–" for text in figure.axes[0].texts) == 7
    assert ordered_groups(square(values))[-1] == 1


def test_it_draws_on_a_given_panel(published):
    figure = PlainFigure()
    left, right = figure.subplots(1, 2)
    assert heatmap(published, ax=right, title="right") is figure
    assert not left.images
    assert np.array_equal(right.images[0].get_array(), published.to_numpy())
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (pd.DataFrame(), {}, "nothing to draw"),
        (pd.DataFrame([[0.0, 1.0]], index=["a"], columns=["a", "b"]), {}, "same groups in rows and columns"),
        (pd.DataFrame([[0.0, 1.0], [1.0, 0.0]], index=["a", "b"], columns=["b", "a"]), {}, "in the same order"),
        (square([[0.0]]), {"order": "size"}, "'mean', 'cluster' or None"),
        (square([[0.0]]), {"vmax": -1.0}, "positive number"),
        (square([[0.0]]), {"counts": pd.DataFrame({"models": [1]}, index=["other"])}, "no row for 'group 0'"),
        (square([[0.0]]), {"counts": pd.DataFrame({"size": [1]}, index=["group 0"])}, "'models' or 'filters'"),
    ],
)
def test_what_cannot_be_drawn_is_reported_in_one_line(matrix, options, message):
    with pytest.raises(SelectionError, match=message) as caught:
        heatmap(matrix, **options)
    assert "\n" not in str(caught.value)


def test_an_outlying_group_does_not_own_the_colours():
    values = random_shifts(9)
    usual = values[:8, :8].max()
    values[8, :8] = values[:8, 8] = 40.0
    figure = heatmap(square(values), order=None)
    assert figure.axes[0].images[0].norm.vmax == usual
    assert "40.0" in {text.get_text() for text in figure.axes[0].texts}
    # Two groups of equal standing are not outliers of each other.
    two = np.kron(1 - np.eye(2), np.ones((4, 4)) * 9) + np.kron(np.eye(2), np.ones((4, 4)))
    np.fill_diagonal(two, 0)
    assert heatmap(square(two)).axes[0].images[0].norm.vmax == 9


def test_small_values_in_small_cells_keep_three_decimals():
    values = np.full((25, 25), 0.004)
    np.fill_diagonal(values, 0)
    assert {text.get_text() for text in heatmap(square(values)).axes[0].texts} == {".004", ".000"}


@pytest.mark.parametrize("style", ["screen", "paper"])
@pytest.mark.parametrize("names", [["a", "b"], ["faces", "medical electron microscopy"] * 3, list("abcdefghijkl") * 3])
def test_a_page_ends_below_its_lowest_label(names, style, assert_legible):
    names = [f"{name} {number}" for number, name in enumerate(names)]
    matrix = pd.DataFrame(1 - np.eye(len(names)), names, names)
    figure = heatmap(matrix, style=style, order=None, label="directed KL divergence, row from column (nats)")
    assert_legible(figure)
    assert len(figure.axes[0].get_yticklabels()) == len(names)
    renderer = FigureCanvasAgg(figure).get_renderer()
    lowest = min(artist.get_tightbbox(renderer).y0 for artist in figure.axes)
    assert lowest / figure.dpi <= 0.15  # inches
