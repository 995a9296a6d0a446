"""How two weights of the same shape differ: direction, distance, changed kernels, and scaling of output channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

__all__ = ["SCALED", "WeightDifference", "weight_difference"]

#: Cosine after the output channels are scaled from which two weights differ by that scaling only: that of float32
#: rounding.
SCALED = 1 - 1e-5


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """The difference of two weights; sums over layers give that of whole models.

    Attributes:
        weights: Number of weights.
        kernels: Number of kernels.
        equal_weights: Weights that are equal bit for bit.
        changed_kernels: Kernels with at least one weight that is not.
        inner: Inner product.
        square_a: Sum of squares of the first.
        square_b: Sum of squares of the second.
        square_difference: Sum of squares of the difference.
        aligned: Sum of squares of the second that scaling the output channels of the first can explain.
    """

    weights: int
    kernels: int
    equal_weights: int
    changed_kernels: int
    inner: float
    square_a: float
    square_b: float
    square_difference: float
    aligned: float

    def __add__(self, other: WeightDifference) -> WeightDifference:
        return WeightDifference(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between both; None where one is zero."""
        size = np.sqrt(self.square_a * self.square_b)
        return float(np.clip(self.inner / size, -1, 1)) if size > 0 else None

    @property
    def distance(self) -> float | None:
        """|a - b| / sqrt(|a| |b|), as Horwitz et al. take it (*Model Tree Heritage Recovery*, arXiv 2405.18432)."""
        size = np.sqrt(self.square_a * self.square_b)
        return float(np.sqrt(self.square_difference / size)) if size > 0 else None

    @property
    def scaled_cosine(self) -> float | None:
        """The cosine after each output channel of the first is scaled as it fits best; 1 for a folded normalisation."""
        return float(np.sqrt(np.clip(self.aligned / self.square_b, 0, 1))) if self.square_b > 0 else None

    @property
    def is_scaled(self) -> bool:
        """Whether the weights differ, and by the scale of their output channels only, as batch-norm folding makes it.

        A layer of few weights per output channel would fit by chance only if they were parallel to begin with.
        """
        cosine = self.scaled_cosine
        return self.equal_weights < self.weights and cosine is not None and cosine >= SCALED


def weight_difference(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> WeightDifference:
    """Compare two weights.

    Args:
        first: (out channels, in channels / groups, height, width), float32.
        second: Of the same shape.

    Raises:
        SelectionError: The shapes differ.

    >>> a = np.array([[[[1.0, 2.0]]], [[[3.0, 4.0]]]], np.float32)
    >>> scaled = a * np.float32([2, -1])[:, None, None, None]     # as folding a batch normalisation does
    >>> found = weight_difference(a, scaled)
    >>> found.changed_kernels, found.is_scaled, round(found.cosine, 3)
    (2, True, -0.408)
    >>> weight_difference(a, a).distance
    0.0
    """
    if first.shape != second.shape:
        raise SelectionError(f"weights of shapes {first.shape} and {second.shape} given; the same shape is needed")
    equal = first.view(np.uint32) == second.view(np.uint32)
    kernels = first.shape[0] * first.shape[1]
    a, b = (weight.reshape(len(weight), -1).astype(np.float64) for weight in (first, second))
    inner, square_a = np.einsum("oj,oj->o", a, b), np.einsum("oj,oj->o", a, a)
    explained = np.divide(inner**2, square_a, out=np.zeros_like(inner), where=square_a > 0)
    return WeightDifference(
        first.size, kernels, int(equal.sum()), int((~equal.reshape(kernels, -1).all(axis=1)).sum()),
        float(inner.sum()), float(square_a.sum()), float(np.einsum("oj,oj->", b, b)),
        float(np.einsum("oj,oj->", b - a, b - a)), float(explained.sum()),
    )  # fmt: skip
