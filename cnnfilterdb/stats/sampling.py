"""New kernels from the distribution of trained ones, to initialise networks with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.stats.arguments import random_numbers
from cnnfilterdb.stats.basis import Basis

__all__ = ["Initializer"]


@dataclass(frozen=True, slots=True, eq=False)
class Initializer:
    """Draws kernels whose SVD coefficients are distributed as those of a selection.

    Initialising with the covariance of trained kernels improves training (Trockman, Willmott and Kolter, ICLR 2023,
    arXiv 2210.03651). Coefficients of different components are drawn independently; they are uncorrelated in the basis
    of the selection.

    Attributes:
        basis: Mean and components of the scaled kernels, and the variance of their coefficients.
        edges: Edges of the bins of ``shares``, (bins + 1,); None for Gaussian coefficients.
        shares: Distribution of each coefficient, (k, bins); None likewise.
    """

    basis: Basis
    edges: npt.NDArray[np.float64] | None = None
    shares: npt.NDArray[np.float64] | None = None

    def sample(self, shape: tuple[int, int, int, int], *, seed: int = 0, unit: str = "he") -> npt.NDArray[np.float32]:
        """Draw the weight of a layer.

        Args:
            shape: (out channels, in channels / groups, height, width).
            seed: The same seed gives the same kernels.
            unit: ``he`` scales the weights to an expected mean square of 2 / (in channels x height x width), which
                keeps the variance of activations through layers with ReLU (He et al., ICCV 2015, arXiv 1502.01852);
                ``scaled`` leaves them like the kernels of the basis, whose largest absolute weight is 1.

        Returns:
            Float32 of that shape.

        Raises:
            SelectionError: Another kernel size than that of the selection, an unknown unit, or kernels that are all
                zeros.

        >>> import cnnfilterdb
        >>> db = cnnfilterdb.example()
        >>> weight = db.initializer(where="domain = 'natural'").sample((64, 32, 3, 3))
        >>> weight.shape, round(float((weight**2).mean()) * 32 * 9, 1)
        ((64, 32, 3, 3), 2.0)
        """
        if len(shape) != 4 or tuple(shape[2:]) != kernel_shape(self.basis.kernel):
            raise SelectionError(
                f"shape: {tuple(shape)} given; expected (out channels, in channels / groups, "
                f"{', '.join(map(str, kernel_shape(self.basis.kernel)))})"
            )
        if unit not in ("he", "scaled"):
            raise SelectionError(f"unit: {unit!r} given; expected he or scaled")
        rng = random_numbers(seed)
        count, size = int(shape[0] * shape[1]), len(self.basis.mean)
        if self.edges is None or self.shares is None:
            variance = self.basis.explained_variance
            middle = np.zeros(size)
            coefficients = rng.standard_normal((count, size)) * np.sqrt(variance)
        else:
            centres, width = (self.edges[1:] + self.edges[:-1]) / 2, self.edges[1] - self.edges[0]
            middle = self.shares @ centres
            variance = self.shares @ centres**2 - middle**2 + width**2 / 12
            bins = np.stack([rng.choice(len(centres), count, p=share) for share in self.shares], axis=1)
            coefficients = centres[bins] + width * (rng.random((count, size)) - 0.5)
        kernels = self.basis.mean + coefficients @ self.basis.components
        if unit == "he":
            mean = self.basis.mean + middle @ self.basis.components
            square = float(mean @ mean + variance.sum()) / size
            if not square > 0:
                raise SelectionError("all selected kernels are zeros; choose others with where")
            kernels *= np.sqrt(2 / (shape[1] * size) / square)
        return kernels.reshape(shape).astype(np.float32)
