"""SVD bases of scaled filters: centred principal components, as the papers fit them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.stats.moments import Moments

if TYPE_CHECKING:
    from cnnfilterdb.stats.compiled import Columns

__all__ = ["BINS", "Basis"]

#: Bins of a histogram of coefficients (papers' notebook).
BINS = 70


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """An orthonormal basis of filters of one kernel size.

    The papers call it the SVD basis: principal components of the scaled filters f' = f / max |f|, centred by their mean
    (CNN Filter DB, arXiv 2203.15331; ``sklearn.decomposition.PCA`` in its notebook). The coefficients of a filter are
    c = V (f' - mean).

    Attributes:
        kernel: Kernel size, such as ``3x3``.
        mean: Mean of the scaled filters, (k,) float64.
        components: V, one component per row by falling variance, (k, k) float64. Signs carry no meaning; each
            component's loading of largest magnitude is made positive, the first of them on a tie.
        explained_variance: Variance along each component, (k,), with n - 1 in the denominator.
        explained_variance_ratio: Its share of the total, (k,); zeros when the filters do not vary at all.
        filters: Number of filters that it was fitted on.
        low: Smallest coefficient over all components of the filters it was fitted on; None where it is not known.
        high: Largest coefficient.
        bins: Bins of the histograms made in it.
        variant: ``all``, or ``nonsparse`` when it was fitted without sparse filters (arXiv 2204.02481).

    >>> rng = np.random.default_rng(0)
    >>> basis = Basis.fit(Moments.of(rng.normal(size=(500, 9)).astype(np.float32)), "3x3")
    >>> basis.components.shape, bool(np.isclose(basis.explained_variance_ratio.sum(), 1))
    ((9, 9), True)
    >>> basis.with_range(-2.5, 2.5)
    <Basis of 500 3x3 filters, explained variance ratio 0.139 0.130 0.120 ..., range -2.500 to 2.500>
    """

    kernel: str
    mean: npt.NDArray[np.float64]
    components: npt.NDArray[np.float64]
    explained_variance: npt.NDArray[np.float64]
    explained_variance_ratio: npt.NDArray[np.float64]
    filters: int
    low: float | None = None
    high: float | None = None
    bins: int = BINS
    variant: str = "all"

    def __repr__(self) -> str:
        """What it was fitted on, in one line; the arrays are left out."""
        ratios = " ".join(f"{ratio:.3f}" for ratio in self.explained_variance_ratio[:3])
        more = " ..." if len(self.explained_variance_ratio) > 3 else ""
        limits = "" if self.low is None or self.high is None else f", range {self.low:.3f} to {self.high:.3f}"
        variant = "" if self.variant == "all" else f", {self.variant}"
        of = f"{self.filters:,} {self.kernel} filters"
        return f"<Basis of {of}, explained variance ratio {ratios}{more}{limits}{variant}>"

    def _repr_html_(self) -> str:
        """What it was fitted on, for notebooks; the arrays are left out."""
        ratios = " ".join(f"{ratio:.3f}" for ratio in self.explained_variance_ratio[:9])
        facts = {"kernel": self.kernel, "filters": f"{self.filters:,}", "explained variance ratio": ratios}
        if self.low is not None and self.high is not None:
            facts["range"] = f"{self.low:.3f} to {self.high:.3f}"
        rows = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table><caption>Basis</caption>{rows}</table>"

    @classmethod
    def fit(cls, moments: Moments, kernel: str, *, variant: str = "all") -> Basis:
        """Fit a basis to moments; no filter is read again.

        Args:
            moments: Of the scaled filters.
            kernel: Their kernel size.
            variant: Which filters the moments are of, ``all`` or ``nonsparse``; recorded in the basis.

        Raises:
            SelectionError: Fewer than two filters, moments of another kernel size, or moments that are not finite.
        """
        height, width = kernel_shape(kernel)
        if len(moments.mean) != height * width:
            raise SelectionError(f"moments of {len(moments.mean)} weights do not fit {kernel} kernels")
        if moments.count < 2:
            raise SelectionError(f"a basis needs at least 2 filters; there is {moments.count or 'none'} of {kernel}")
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()):
            raise SelectionError(f"the moments of the {kernel} filters are not finite; run `cnnfilterdb verify`")
        values, vectors = np.linalg.eigh(moments.scatter / (moments.count - 1))
        # Rounding may leave a variance of zero slightly negative.
        variance = np.maximum(values[::-1], 0)
        total = variance.sum()
        return cls(
            kernel=kernel,
            mean=moments.mean.copy(),
            components=_signed(np.ascontiguousarray(vectors.T[::-1])),
            explained_variance=variance,
            explained_variance_ratio=variance / total if total > 0 else variance,
            filters=moments.count,
            variant=variant,
        )

    def with_range(self, low: float, high: float) -> Basis:
        """The same basis with the range of its coefficients."""
        return dataclasses.replace(self, low=low, high=high)

    @property
    def offsets(self) -> npt.NDArray[np.float64]:
        """V mean, (k,): what is subtracted from V f'."""
        return self.components @ self.mean

    def project(self, filters: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Coefficients (n, k) of filters (n, k), which are scaled first.

        Raises:
            SelectionError: Filters of another size.
        """
        from cnnfilterdb.stats import compiled

        if filters.ndim != 2 or filters.shape[1] != len(self.mean):
            raise SelectionError(
                f"filters of shape {filters.shape} were given; this basis is of {self.kernel}: (n, {len(self.mean)})"
            )
        return compiled.project(filters, self.components, self.offsets)

    def coefficient_range(self, columns: Columns) -> tuple[float, float]:
        """Smallest and largest coefficient, over all components, of filters given as k arrays (n,).

        Without filters it is (inf, -inf), which any other range absorbs.
        """
        from cnnfilterdb.stats import compiled

        return compiled.coefficient_bounds(columns, self.components, self.offsets)

    def reach(self, low: float, high: float) -> float:
        """The norm that a scaled filter has at least if one of its coefficients is below ``low`` or above ``high``.

        A coefficient, less its offset, is the inner product of the filter and a component, so that it is at most the
        product of their norms.

        >>> basis = Basis.fit(Moments.of(np.eye(4, dtype=np.float32)), "2x2")
        >>> round(basis.reach(-2.0, 2.0), 3)
        1.5
        """
        bounds = np.minimum(high + self.offsets, -low - self.offsets) / np.linalg.norm(self.components, axis=1)
        # Less the errors of double precision, in the norms of filters too.
        return max(0.0, float(bounds.min()) * (1 - 1e-9))


def _signed(components: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give each component the sign that makes its largest loading positive.

    Loadings that are equal except for rounding, as those of symmetric kernels are, count as a tie: the first one
    decides.
    """
    magnitude = np.abs(components)
    largest = magnitude.max(axis=1, keepdims=True)
    first = (magnitude >= largest * (1 - 1e-6)).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), first])
    signed: npt.NDArray[np.float64] = components * signs[:, None]
    return signed
