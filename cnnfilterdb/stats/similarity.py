"""Similarity of kernels to a given one, up to scale and, on request, sign, mean, rotation and reflection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

if TYPE_CHECKING:
    from cnnfilterdb.stats.compiled import Columns

__all__ = ["Nearest", "Pattern", "symmetries"]


def symmetries(kernel: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Rotations and reflections of a kernel (height, width) that keep its shape, each different one once.

    A square has eight, another rectangle four.

    >>> list(symmetries(np.array([[1.0, 0.0], [0.0, 0.0]])))
    ['identity', 'rotated 90', 'rotated 180', 'rotated 270']
    """
    found: dict[str, npt.NDArray[np.float64]] = {}
    for flip in (False, True):
        for turn in range(4):
            turned = np.rot90(np.fliplr(kernel) if flip else kernel, turn)
            name = ("flipped, " if flip else "") + f"rotated {90 * turn}"
            if turned.shape == kernel.shape and not any(np.array_equal(turned, known) for known in found.values()):
                found[{"rotated 0": "identity", "flipped, rotated 0": "flipped"}.get(name, name)] = turned
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """A kernel to look for.

    The similarity of a kernel f to the pattern g is the cosine f'g / (|f| |g|): 1 for every positive multiple of g,
    independent of scale. A kernel of zeros is similar to nothing.

    Attributes:
        variants: What counts as the pattern, as unit vectors, (v, k) float64.
        names: What was done to the given kernel for each variant, (v,).
        sign: A negative multiple counts as well; the similarity is |cosine|.
        centred: The mean of both kernels is subtracted first, so that an added constant does not matter and the
            similarity is a correlation.

    >>> edge = Pattern.of(np.array([[1, 0, -1]] * 3), rotation=True)
    >>> edge.names
    ('identity', 'rotated 90', 'rotated 180', 'rotated 270')
    """

    variants: npt.NDArray[np.float64]
    names: tuple[str, ...]
    sign: bool = False
    centred: bool = False

    @classmethod
    def of(cls, kernel: npt.ArrayLike, *, sign: bool = False, centred: bool = False, rotation: bool = False) -> Pattern:
        """The pattern of a kernel (height, width).

        Args:
            kernel: The kernel.
            sign: Negative multiples count as well.
            centred: Subtract the mean of the kernel first, so that an added constant does not matter.
            rotation: Rotations by right angles and reflections count as well.

        Raises:
            SelectionError: Not a finite kernel of two dimensions, or without direction: zeros, or constant with
                ``centred``.
        """
        given = np.asarray(kernel, np.float64)
        if given.ndim != 2 or given.size < 2 or not np.isfinite(given).all():
            raise SelectionError(
                f"a kernel of shape {given.shape} was given; expected (height, width) with finite weights"
            )
        # The largest weight becomes 1 first, so that squares of tiny weights do not vanish.
        given = given / (np.abs(given).max() or 1.0)
        given = given - given.mean() if centred else given
        length = np.linalg.norm(given)
        if length < 1e-12:
            raise SelectionError(
                "a kernel of zeros has no direction to look for"
                if not centred
                else "a constant kernel has no direction once its mean is subtracted; search without centred"
            )
        turned = symmetries(given / length) if rotation else {"identity": given / length}
        if sign:
            # The negative of a variant adds nothing when signs do not count.
            kept: dict[str, npt.NDArray[np.float64]] = {}
            for name, variant in turned.items():
                if not any(np.array_equal(variant, -known) for known in kept.values()):
                    kept[name] = variant
            turned = kept
        return cls(np.stack([variant.ravel() for variant in turned.values()]), tuple(turned), sign, centred)

    def similarity(
        self, columns: Columns, least: float = -np.inf
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Similarity of filters to the most similar variant.

        Args:
            columns: k float32 arrays (n,), the weights of n filters.
            least: Filters that are less similar are left out, which takes less time.

        Returns:
            Of m filters, by default all: similarity from -1 to 1, -inf for a filter without direction, (m,) float64;
            the number of the variant, (m,), with ``sign`` -1 - v for a variant whose negative is meant; and the
            numbers of the filters, (m,), rising.
        """
        from cnnfilterdb.stats import compiled

        return compiled.similarities(columns, self.variants, self.sign, self.centred, least)


@dataclass(slots=True, eq=False)
class Nearest:
    """The most similar filters found so far: a mergeable state of bounded size.

    Attributes:
        limit: How many are kept.
        similarity: Their similarities, falling, (m,).
        places: What identifies them, one row each, (m, p) int64, where p is that of the first update.
    """

    limit: int
    similarity: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    places: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))

    @property
    def least(self) -> float:
        """Similarity that a filter must exceed to be kept; -inf while there is room."""
        return float(self.similarity[-1]) if len(self.similarity) == self.limit else -np.inf

    def candidates(self, similarity: npt.NDArray[np.float64], least: float = -np.inf) -> npt.NDArray[np.int64]:
        """Which of these filters may be kept: with equals, more than there is room for; of many filters, few.

        Args:
            similarity: (n,).
            least: Of no interest is what is less similar, because others are known.

        >>> Nearest(2).candidates(np.array([0.5, 0.9, -np.inf, 0.7, 0.7])).tolist()
        [1, 3, 4]
        """
        least = max(self.least, least)
        if least == -np.inf and len(similarity) > self.limit:  # a partition takes a fraction of the time of sorting
            least = max(least, float(np.partition(similarity, -self.limit)[-self.limit]))
        return np.flatnonzero((similarity >= least) & (similarity > -np.inf))

    def update(self, similarity: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> None:
        """Add filters; among equals the smallest places are kept, so the order of updates does not matter.

        Args:
            similarity: (n,).
            places: (n, p), compared column by column.

        >>> nearest = Nearest(2)
        >>> nearest.update(np.array([0.5, 0.9, 0.9]), np.array([[0], [7], [3]]))
        >>> nearest.similarity.tolist(), nearest.places.ravel().tolist()
        ([0.9, 0.9], [3, 7])
        """
        chosen = self.candidates(similarity)
        if len(chosen) == 0:
            return
        if len(self.similarity):
            similarity = np.concatenate([self.similarity, similarity[chosen]])
            places = np.concatenate([self.places, places[chosen]])
        else:
            similarity, places = similarity[chosen], places[chosen]
        order = np.lexsort((*places.T[::-1], -similarity))[: self.limit]
        self.similarity, self.places = similarity[order], places[order]

    def merge(self, other: Nearest) -> None:
        """Add the filters that another one has kept."""
        if len(other.similarity):
            self.update(other.similarity, other.places)
