"""What holds of every figure: it is drawn on a page of its own or where it is told, in the look it is told."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as PlainFigure
from matplotlib.image import imread
from matplotlib.text import Text

from cnnfilterdb import plots
from cnnfilterdb.cli import main
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots.look import LOOKS, look

RNG = np.random.default_rng(3)


def shifts(names):
    values = RNG.gamma(1.0, 0.3, (len(names), len(names)))
    return pd.DataFrame(values + values.T - np.diag(2 * np.diag(values)), names, names)


def layers(names):
    count = 8 * len(names)
    columns = ("sparsity", "variance_entropy", "randomness_threshold", "orthogonality")
    return pd.DataFrame({name: RNG.uniform(0.2, 0.9, count) for name in columns}).assign(domain=[*names] * 8)


def bases(names):
    ratios = np.linspace(0.4, 0.02, 9)
    return {
        name: SimpleNamespace(
            components=np.linalg.qr(RNG.normal(size=(9, 9)))[0], explained_variance_ratio=ratios, kernel="3x3"
        )
        for name in names
    }


def averages(names):
    return {name: {"3x3": (RNG.uniform(0, 2, 9), 10), "5x5": (RNG.uniform(0, 2, 25), 20)} for name in names}


def counts(names, *shape):
    return RNG.integers(1, 50, (len(names), *shape)).astype(float)


def models(names):
    labels = [name for name in names for _ in range(3)]
    return shifts(range(len(labels))), labels


FIGURES = {
    "heatmap": lambda names, **options: plots.heatmap(shifts(names), **options),
    "ridge": lambda names, **options: plots.ridge(counts(names, 9, 40), -3, 3, names, **options),
    "quality": lambda names, **options: plots.quality(layers(names), **options),
    "eigenfilters": lambda names, **options: plots.eigenfilters(bases(names), **options),
    "variance": lambda names, **options: plots.variance(averages(names), **options),
    "mean_kernels": lambda names, **options: plots.mean_kernels(averages(names), **options),
    "phenotypes": lambda names, **options: plots.phenotypes(counts(names, 20, 20), -3, 3, names, **options),
    "spread": lambda names, **options: plots.spread(*models(names), **options),
    "model_map": lambda names, **options: plots.model_map(RNG.normal(size=(len(names), 2)), names, **options),
    "filter_grid": lambda names, **options: plots.filter_grid(RNG.normal(size=(len(names), 3, 3)), **options),
}


@pytest.fixture(params=FIGURES)
def draw(request):
    return FIGURES[request.param]


@pytest.mark.parametrize("groups", [2, 26])
def test_paper_fits_its_columns_and_is_legible(draw, groups, assert_legible):
    figure = draw([f"group {i}" for i in range(groups)], style="paper", title="A title")
    assert_legible(figure)
    # Names of 26 groups need more than a column, but never more than the text of a page.
    assert figure.get_size_inches()[0] <= LOOKS["paper"].page + 1e-9
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= 3.9
    assert max(sizes) <= LOOKS["paper"].title
    assert look() is LOOKS["screen"], "the look outlives its figure"


@pytest.mark.parametrize("name", ["heatmap", "quality", "spread"])
def test_hundreds_of_groups_have_legible_names_on_a_page_of_limited_height(name, assert_legible):
    figure = FIGURES[name]([f"group {i}" for i in range(200)])
    assert_legible(figure)
    assert figure.get_size_inches()[1] < LOOKS["screen"].tallest + 2
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    step = -(-200 // len(shown))
    assert step > 1
    assert any(f"one name in {step} is shown" in text.get_text() for text in figure.texts)


def test_on_a_panel_of_the_user(draw):
    figure = PlainFigure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    right.plot([0, 1])
    assert draw(["a", "b", "c"], ax=left, title="mine") is figure
    assert left.get_title(loc="left") == "mine"
    assert len(right.get_lines()) == 1
    figure.draw_without_rendering()
    assert left.get_tightbbox().x1 <= right.get_position().x0 * figure.bbox.width


def test_on_a_part_of_a_figure(draw):
    figure = PlainFigure(figsize=(8, 4))
    part = figure.subfigures(1, 2)[1]
    assert draw(["a", "b"], ax=part) is figure
    assert part.axes
    figure.draw_without_rendering()


def test_an_unknown_style_is_refused(draw):
    with pytest.raises(SelectionError, match="style: 'poster' given; expected 'screen' or 'paper'"):
        draw(["a", "b"], style="poster")


def test_the_command_line_draws_in_the_look(sample_path, tmp_path, monkeypatch):
    widths = {}
    for style in LOOKS:
        target = tmp_path / f"{style}.png"
        line = ["plot", "means", "--style", style, "-o", str(target), "--dpi", "100", "--db", str(sample_path)]
        monkeypatch.setattr("sys.argv", ["cnnfilterdb", *line])
        main()
        widths[style] = imread(target).shape[1]
    assert widths["paper"] < widths["screen"] <= 716


def test_mean_kernels_of_a_database_are_those_of_its_filters(sample):
    figure = sample.plot.means("domain", kernel="3x3")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    filters = sample.filters(where="papers_layer").merge(sample.models()[["model_id", "domain"]], on="model_id")
    weights = filters.filter(regex=r"^w\d+$")
    weights = weights.div(weights.abs().max(axis=1).replace(0, 1), axis=0)  # as the papers scale them
    for name, image in zip(names, axes.images, strict=True):
        expected = weights[filters["domain"] == name].mean().to_numpy().reshape(3, 3)
        np.testing.assert_allclose(image.get_array(), expected, rtol=1e-4, atol=1e-6)


def test_groups_that_are_too_small_are_left_out(sample):
    sizes = sample.groups("domain").sizes()
    largest = int(sizes["filters"].max())
    kept = [label for label, filters in sizes["filters"].items() if filters == largest]
    for draw in (sample.plot.quality, sample.plot.means, sample.plot.variance, sample.plot.eigenfilters):
        options = {} if draw == sample.plot.quality else {"kernel": "3x3"}
        figure = draw(by="domain", min_filters=largest, **options)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == kept
        with pytest.raises(SelectionError, match="no group by domain has 99 models and 1 filters; the largest has"):
            draw(by="domain", min_models=99, **options)
