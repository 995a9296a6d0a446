"""Coefficients like those of real layers (mixtures about zero, with a spike), and checks that hold of any figure."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

EVR = np.array([0.398, 0.183, 0.117, 0.099, 0.066, 0.055, 0.030, 0.028, 0.024])


def _coefficients(rng, filters):
    spread = 1.1 * np.sqrt(EVR / EVR[0]) * rng.uniform(0.6, 1.2)
    values = rng.normal(scale=spread, size=(filters, 9))
    values[:, 0] += rng.choice([-0.7, 0.7], size=filters)
    values[: int(filters * rng.uniform(0.0, 0.3))] *= 0.02
    return values


@pytest.fixture
def histograms():
    """Counts (groups, 9, 70) over -4 to 4 of so many groups."""

    def make(groups, filters=3000):
        rng = np.random.default_rng(groups)
        return np.stack(
            [
                [np.histogram(column, bins=70, range=(-4, 4))[0] for column in _coefficients(rng, filters).T]
                for _ in range(groups)
            ]
        )

    return make


@pytest.fixture
def make_basis():
    """A basis fitted on random kernels, as scikit-learn's PCA gives it."""

    def make(kernel="3x3", seed=0):
        from sklearn.decomposition import PCA

        height, width = map(int, kernel.split("x"))
        kernels = np.random.default_rng(seed).normal(size=(200, height * width))
        fitted = PCA().fit(kernels / np.abs(kernels).max(axis=1, keepdims=True))
        return SimpleNamespace(
            components=fitted.components_, explained_variance_ratio=fitted.explained_variance_ratio_, kernel=kernel
        )

    return make


@pytest.fixture
def assert_legible():
    """No text of a figure is cut by its edge, and no two labels of an axis lie on each other."""

    def shown(axis):
        low, high = sorted(axis.get_view_interval())
        margin = 1e-9 * (high - low)
        ticks = [tick for tick in axis.get_major_ticks() if low - margin <= tick.get_loc() <= high + margin]
        labels = [label for tick in ticks for label in (tick.label1, tick.label2)]
        return [label for label in labels if label.get_visible() and label.get_text()]

    def check(figure):
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        width, height = figure.bbox.width, figure.bbox.height
        texts = [*figure.texts]
        for axes in figure.axes:
            shown_x, shown_y = shown(axes.xaxis), shown(axes.yaxis)
            texts += [*axes.texts, *shown_x, *shown_y, axes.xaxis.label, axes.yaxis.label, axes.title]
            boxes = sorted((label.get_window_extent(renderer) for label in shown_y), key=lambda box: box.y0)
            for lower, upper in pairwise(boxes):
                assert upper.y0 >= lower.y1 - 3.0, "row labels overlap"
            if not any(label.get_rotation() for label in shown_x):
                boxes = sorted((label.get_window_extent(renderer) for label in shown_x), key=lambda box: box.x0)
                for left, right in pairwise(boxes):
                    assert right.x0 >= left.x1 - 0.5, "column labels overlap"
            if axes.get_legend():
                texts += axes.get_legend().get_texts()
        there = [text for text in texts if text.get_visible() and text.get_text().strip()]
        level = [text for text in there if not text.get_rotation()]
        x0, y0, x1, y1 = np.array([text.get_window_extent(renderer).extents for text in level]).reshape(-1, 4).T
        across = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
        down = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
        # Boxes of lines of text have room above and below the letters.
        over = np.argwhere(np.triu((across > 1.0) & (down > 3.0), 1))
        assert not over.size, f"texts overlap: {[[level[i].get_text() for i in pair] for pair in over[:3].tolist()]}"
        for text in texts:
            if text.get_text():
                box = text.get_window_extent(renderer)
                assert box.x0 >= -0.5, f"cut at the left: {text}"
                assert box.y0 >= -0.5, f"cut at the bottom: {text}"
                assert box.x1 <= width + 0.5, f"cut at the right: {text}"
                assert box.y1 <= height + 0.5, f"cut at the top: {text}"

    return check


@pytest.fixture
def long_labels():
    """So many distinct long names, some of them hostile to mark-up of one kind or another."""

    def make(count):
        names = [f"compnet_weights_axial_improvement_{i:02}_NITRC_IITmean_b0_256_12" for i in range(count)]
        for position, name in enumerate(("$\\frac{1}{0}", "a\nb\tc", "<b>&amp;</b>", "", None)[: count - 1]):
            names[position] = name
        return names

    return make
