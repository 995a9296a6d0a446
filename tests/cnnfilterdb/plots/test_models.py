import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from cnnfilterdb.cli import main
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import model_map, phenotypes, spread
from cnnfilterdb.plots.style import compact


def shifts(models, groups):
    """Shifts between models that lie near the others of their group."""
    rng = np.random.default_rng(models)
    places = rng.normal(size=(models, 3)) + 6 * np.array([[group == 0, group == 1, 0] for group in groups])
    return ((places[:, None] - places[None]) ** 2).sum(axis=2)


def medians_of(axes):
    """Where the white dots of a panel of boxes are."""
    return [
        tuple(place) for dots in axes.collections if isinstance(dots, PathCollection) for place in dots.get_offsets()
    ]


# ------------------------------------------------------------------------------------------------------------ the map


@pytest.mark.parametrize("groups", [1, 6, 7, 18, 19, 40])
def test_points_are_where_the_coordinates_say_in_the_colour_of_their_group(assert_legible, groups):
    rng = np.random.default_rng(groups)
    labels = [f"g{i % groups:02}" for i in range(2 * groups)]
    points = rng.normal(size=(2 * groups, 2))
    figure = model_map(points, labels, explained=[0.5, 0.25], title="Models")
    assert_legible(figure)
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(legend) == set(drawn)
    shown = [name for name in legend if name.startswith("g")]
    assert len(shown) == (groups if groups <= 18 else 17)
    for name in shown:
        label = name.partition(" ")[0]
        np.testing.assert_array_equal(drawn[name], points[[one == label for one in labels]])
    if groups > 18:
        assert legend[-1] == f"{groups - 17} other groups ({2 * (groups - 17)})"
    looks = {(to_hex(line.get_color()), line.get_marker()) for line in axes.lines if line.get_label() in shown}
    assert len(looks) == len(shown), "two groups look alike"
    assert axes.get_xlabel() == "coordinate 1 (50 % of the shifts)"
    assert axes.get_aspect() == 1


def test_models_of_unknown_group_are_grey():
    axes = model_map(np.eye(2), ["faces", None]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["faces (1)", "unknown (1)"]


def test_a_map_can_be_drawn_on_a_given_panel():
    figure = Figure()
    axes = figure.add_subplot()
    assert model_map(np.eye(2), ["a", "$b_"], ax=axes) is figure


@pytest.mark.parametrize(
    ("coordinates", "labels", "message"),
    [
        (np.zeros((0, 2)), [], "nothing to draw"),
        (np.eye(2), ["a"], r"expected shape \(1, 2\)"),
        (np.eye(3), ["a", "b", "c"], r"expected shape \(3, 2\)"),
        ([[0, np.nan]], ["a"], "finite"),
    ],
)
def test_maps_that_cannot_be_drawn(coordinates, labels, message):
    with pytest.raises(SelectionError, match=message):
        model_map(coordinates, labels)


# -------------------------------------------------------------------------------------------------- within and between


@pytest.mark.parametrize("groups", [2, 9, 40])
def test_boxes_are_the_quantiles_of_the_pairs(assert_legible, groups):
    labels = [f"g{i % groups:02}" for i in range(3 * groups)]
    matrix = shifts(len(labels), [int(label[1:]) for label in labels])
    figure = spread(matrix, labels, title="Spread")
    assert_legible(figure)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(set(labels))
    medians = sorted((row, median) for median, row in medians_of(axes))
    for row, name in enumerate(names):
        inside = np.array(labels) == name
        within = matrix[np.ix_(inside, inside)][np.triu_indices(3, 1)]
        between = matrix[np.ix_(inside, ~inside)]
        assert medians[2 * row][1] == pytest.approx(np.median(within))
        assert medians[2 * row + 1][1] == pytest.approx(np.median(between))


def test_groups_of_one_model_come_last_and_unknown_ones_are_left_out():
    matrix = shifts(5, [0, 0, 1, 2, 0])
    axes = spread(matrix, ["a", "a", "single", "z", None]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "single", "z"]


@pytest.mark.parametrize(
    ("matrix", "labels", "message"),
    [
        (np.zeros((0, 0)), [], "nothing to draw"),
        (np.zeros((2, 2)), ["a"], r"expected shape \(1, 1\)"),
        (np.zeros((2, 2)), ["a", "a"], "at least two groups, found 1"),
        (np.zeros((2, 2)), [None, None], "at least two groups, found 0"),
    ],
)
def test_spreads_that_cannot_be_drawn(matrix, labels, message):
    with pytest.raises(SelectionError, match=message):
        spread(matrix, labels)


def test_models_of_equal_weights_can_be_drawn(assert_legible):
    assert_legible(spread(np.zeros((4, 4)), ["a", "a", "b", "b"]))


# ----------------------------------------------------------------------------------------------------------- phenotypes


@pytest.mark.parametrize("groups", [1, 4, 13])
def test_panels_hold_the_densities(assert_legible, groups):
    rng = np.random.default_rng(groups)
    counts = rng.integers(0, 50, (groups, 12, 12)).astype(float)
    figure = phenotypes(counts, -3, 3, [f"a rather long name of group {i}" for i in range(groups)], title="Clouds")
    assert_legible(figure)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == groups
    for axes, cells in zip(panels, counts, strict=True):
        (image,) = axes.images
        density = np.asarray(image.get_array()).T
        assert density.sum() * 0.5**2 == pytest.approx(1)
        np.testing.assert_allclose(density / density.max(), cells / cells.max())
        assert image.get_extent() == [-3, 3, -3, 3]
    assert len({image.norm for axes in panels for image in axes.images}) == 1


@pytest.mark.parametrize(
    ("counts", "low", "labels", "message"),
    [
        (np.ones((1, 2, 2)), 3, ["a"], "left edge below the right"),
        (np.ones((2, 2, 2)), -3, ["a"], "expected 2 names"),
        (np.zeros((1, 2, 2)), -3, ["a"], "at least one filter"),
        (np.zeros((0, 2, 2)), -3, [], "nothing to draw"),
    ],
)
def test_phenotypes_that_cannot_be_drawn(counts, low, labels, message):
    with pytest.raises(SelectionError, match=message):
        phenotypes(counts, low, 3, labels)


# ---------------------------------------------------------------------------------------------------- from a database


def test_phenotypes_count_every_selected_filter(sample):
    groups = sample.groups("domain")
    figure = sample.plot.phenotypes("domain", components=(0, 2))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.texts[0].get_text() for axes in panels] == groups.labels
    assert [axes.texts[1].get_text() for axes in panels] == [f"{compact(count)} filters" for count in groups.filters]
    cells = (groups.high - groups.low) / 70
    for place, axes in enumerate(panels):
        # Their margins are the histograms of the index.
        for component, axis in ((0, 0), (2, 1)):
            margin = np.ma.filled(axes.images[0].get_array(), 0).sum(axis=axis) * cells**2 * groups.filters[place]
            np.testing.assert_allclose(margin, groups.counts[place, component], atol=1e-6)
    with pytest.raises(SelectionError, match="components 0 to 8, found 9"):
        sample.plot.phenotypes("domain", components=(0, 9))


def test_maps_and_spreads_of_a_database_hold_its_shifts(sample):
    placed = sample.embed(by="domain")
    points = np.concatenate([line.get_xydata() for line in sample.plot.map("domain").axes[0].lines])
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(placed[["x0", "x1"]].to_numpy(), axis=0))
    matrix = sample.kl_shift("model_id", balance="models")
    domains = sample.models().set_index("model_id").loc[list(matrix.index), "domain"].to_numpy()
    axes = sample.plot.spread("domain").axes[0]
    row = [label.get_text() for label in axes.get_yticklabels()].index("natural")
    inside = domains == "natural"
    within = matrix.to_numpy()[np.ix_(inside, inside)][np.triu_indices(inside.sum(), 1)]
    drawn = {round(row, 2): median for median, row in medians_of(axes)}
    assert drawn[round(row - 0.17, 2)] == pytest.approx(np.median(within))


def test_models_without_a_value_are_on_the_map_in_grey(sample):
    natural = int((sample.models()["domain"] == "natural").sum())
    by = "nullif(domain, 'natural')"
    placed = sample.embed(by=by)
    assert placed[by].isna().sum() == natural
    assert placed[["x0", "x1"]].equals(sample.embed()[["x0", "x1"]])
    texts = [text.get_text() for text in sample.plot.map(by).axes[0].get_legend().get_texts()]
    assert texts[-1] == f"unknown ({natural})"


@pytest.mark.parametrize("kind", ["map", "spread", "phenotypes"])
def test_command_line(sample_path, tmp_path, monkeypatch, capsys, kind):
    target = tmp_path / f"{kind}.png"
    monkeypatch.setattr("sys.argv", ["cnnfilterdb", "plot", kind, "-o", str(target), "--db", str(sample_path)])
    main()
    assert capsys.readouterr().out.startswith(str(target))
    assert imread(target).std() > 0.01
