"""Captions say which models, layers and filters a figure shows, and in which basis."""

import io

import pytest
from PIL import Image

from cnnfilterdb.plots import heatmap
from cnnfilterdb.plots.captions import Caption

DRAWN = {
    "kl_shift": lambda plot, **options: plot.kl_shift("domain", **options),
    "ridge": lambda plot, **options: plot.ridge("domain", **options),
    "eigenfilters": lambda plot, **options: plot.eigenfilters(by="domain", **options),
    "quality": lambda plot, **options: plot.quality("domain", **options),
    "variance": lambda plot, **options: plot.variance("domain", kernel="3x3", **options),
    "means": lambda plot, **options: plot.means("domain", kernel="3x3", **options),
    "map": lambda plot, **options: plot.map("domain", **options),
    "spread": lambda plot, **options: plot.spread("domain", **options),
    "null": lambda plot, **options: plot.null("domain", permutations=99, **options),
    "phenotypes": lambda plot, **options: plot.phenotypes("domain", **options),
}
#: Figures whose numbers depend on no basis, and those that fit one on each group.
WITHOUT_BASIS = {"eigenfilters", "quality", "variance", "means"}
WHERE = "domain <> 'faces'"


@pytest.mark.parametrize("name", DRAWN)
def test_a_caption_has_the_sizes_the_condition_and_the_basis(sample, assert_legible, name):
    figure = DRAWN[name](sample.plot, where=WHERE)
    layers = sample.layers(where=f"{WHERE} AND kernel = '3x3' AND stored")
    sizes = f"{layers['model_id'].nunique()} models, {len(layers)} layers, {layers['filters'].sum():,} 3x3 filters"
    assert sizes in figure.caption
    assert f"where {WHERE}" in figure.caption
    if name in WITHOUT_BASIS:
        assert "basis" in figure.caption.lower()
    else:
        current = next(one.basis_id for one in sample.bases() if one.basis.kernel == "3x3")
        assert current in figure.caption
        assert "recipe cvpr2022" in figure.caption
    # It is below the figure, word for word.
    assert figure.caption in " ".join(text.get_text() for text in figure.texts)
    assert_legible(figure)


def test_a_caption_of_a_layer(sample):
    figure = sample.plot.filters("custom/ct-a", layer=1)
    assert figure.caption.startswith("custom/ct-a, layer 1 (mid): 512 3x3 kernels of 32 output channels.")


def test_on_paper_the_caption_is_not_drawn_but_in_the_file(sample):
    figure = sample.plot.kl_shift("domain", style="paper")
    assert "Shifts between 3 groups by domain" in figure.caption
    assert not any("Shifts" in text.get_text() for text in figure.texts)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    assert Image.open(target).text["Description"] == figure.caption
    target = io.BytesIO()
    figure.savefig(target, format="svg")
    assert "Shifts between 3 groups by domain" in target.getvalue().decode()


def test_a_caption_of_ones_own_and_a_panel_without_one(sample):
    matrix = sample.kl_shift("domain")
    long = heatmap(matrix, caption="word " * 200)
    assert long.get_size_inches()[1] > heatmap(matrix).get_size_inches()[1]
    page = heatmap(matrix, caption="What was drawn")
    assert "What was drawn" in [text.get_text() for text in page.texts]
    given = sample.plot.kl_shift("domain", ax=heatmap(matrix).add_subplot())
    assert not any("Shifts" in text.get_text() for text in given.texts)


@pytest.mark.parametrize("by", ["model_id", "layer", "conv_layers"])
def test_groups_may_have_the_names_of_columns_that_captions_count(sample, by):
    assert "4 models, 8 layers" in sample.plot.quality(by, where=WHERE).caption


def test_many_kernel_sizes_are_counted_and_few_are_listed():
    def text(sizes):
        return str(Caption(what="Means", models=1, layers=2, filters=30, kernel=sizes))

    assert text(["3x3", "5x5"]).startswith("Means: 1 model, 2 layers, 30 3x3, 5x5 filters, without")
    assert text([f"{side}x{side}" for side in range(3, 9)]).startswith(
        "Means: 1 model, 2 layers, 30 filters of 6 kernel sizes, without"
    )
