import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.plots import Figure, ridge, to_png
from cnnfilterdb.plots.style import compact, contrast, distinct_labels, label_text, ramp, shorten, text_width


@given(st.text(max_size=120), st.integers(1, 60))
def test_shorten_keeps_both_ends(text, width):
    short = shorten(text, width)
    assert len(short) == min(len(text), width)
    if len(text) > width:
        head, _, tail = short.partition("…") if "…" not in text else (short[: (width) // 2], "", "")
        assert text.startswith(head)
        assert text.endswith(tail)
    else:
        assert short == text


@given(st.lists(st.text("ab_", max_size=50), unique=True, max_size=12), st.integers(8, 40))
def test_distinct_groups_get_distinct_labels(names, width):
    labels = distinct_labels(names, width)
    texts = [label_text(name) for name in names]
    assert len(labels) == len(names)
    assert all(len(label) <= width or label == "(empty)" for label in labels)
    if len(set(texts)) == len(texts):
        assert len(set(labels)) == len(labels)


def test_names_that_differ_only_in_the_middle_are_kept_apart():
    names = [f"{'a' * 60}{i}{'b' * 60}" for i in range(3)]
    labels = distinct_labels(names, 20)
    assert len(set(labels)) == 3
    assert all(len(label) <= 20 for label in labels)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (float("nan"), "unknown"), (pd.NA, "unknown"), (" a\r\n b ", "a b"), ("", "(empty)"), (7, "7")],
)
def test_label_text(value, text):
    assert label_text(value) == text


@given(st.integers(0, 10**12))
def test_compact_is_right_to_three_digits(count):
    number, _, unit = compact(count).partition(" ")
    value = float(number) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[unit]
    assert value == pytest.approx(count, rel=0.005)
    assert len(number.replace(".", "")) <= 4


def test_contrast_of_every_colour_is_readable():
    # WCAG 2 asks for 4.5; black or white, whichever is better, always reaches it.
    def luminance(rgb):
        rgb = np.asarray(rgb[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for colour in matplotlib.colormaps["inferno"](np.linspace(0, 1, 101)):
        light, dark = luminance(colour), 0.0 if contrast(tuple(colour)) == "black" else 1.0
        assert (max(light, dark) + 0.05) / (min(light, dark) + 0.05) >= 4.5


@pytest.mark.parametrize("count", [1, 2, 40])
def test_ramp_gives_distinct_colours_away_from_white(count):
    colours = ramp(count)
    assert len(set(colours)) == count
    assert all(min(colour[:3]) < 0.6 for colour in colours)


def test_dollar_signs_are_measured_as_they_are_drawn():
    assert text_width("$x^2$", 8) > text_width("x^2", 8)


def test_a_figure_shows_itself_and_draws_the_same_bytes(histograms):
    figure = ridge(histograms(2), -4, 4, ["a", "b"])
    assert isinstance(figure, Figure)
    content, size = figure._repr_png_()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert size["width"] == round(96 * figure.get_size_inches()[0])
    assert to_png(figure) == to_png(ridge(histograms(2), -4, 4, ["a", "b"]))


def test_pyplot_stays_out_and_so_does_matplotlib_until_a_plot_is_wanted():
    program = (
        "import sys, cnnfilterdb\n"
        "assert 'matplotlib' not in sys.modules, 'import cnnfilterdb loads matplotlib'\n"
        "import cnnfilterdb.plots as plots\n"
        "plots.to_png(plots.filter_grid([[1.0, -1.0, 0.0, 2.0]]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'a plot loads pyplot'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_a_dark_style_sheet_leaves_text_dark_on_white(histograms):
    with matplotlib.rc_context({"text.color": "white", "axes.labelcolor": "white", "figure.facecolor": "black"}):
        figure = ridge(histograms(2), -4, 4, ["a", "b"], title="t")
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    texts = [*figure.texts, *(text for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()])]
    assert texts
    assert all(contrast("white") == "black" and text.get_color() != "white" for text in texts)
