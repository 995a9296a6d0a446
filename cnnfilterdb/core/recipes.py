"""Recipes: how each of the papers compares groups."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one of the papers compares groups.

    Attributes:
        low: Left edge of the histograms; None means the smallest coefficient of the basis.
        high: Right edge; None means the largest coefficient.
        weights: Weights of the components: ``explained_variance`` ratio, or ``uniform``.
    """

    low: float | None
    high: float | None
    weights: str


#: ``cvpr2022``: CNN Filter DB (arXiv 2203.15331), one range over all coefficients, weighted by explained variance
#: ratio. ``medneurips2022``: Does Medical Imaging learn different Convolution Filters? (arXiv 2210.13799), range -3 to
#: 3, equal weights. Both: 70 bins, symmetric KL divergence as a sum, in nats.
RECIPES = {
    "cvpr2022": Recipe(None, None, "explained_variance"),
    "medneurips2022": Recipe(-3.0, 3.0, "uniform"),
}
