"""Trees of descent: the shortest ones through distances of models, rooted where the evidence allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Forest", "forest"]


@dataclass(frozen=True, slots=True)
class Forest:
    """Models in trees.

    Attributes:
        tree: (n,) number of the tree of each model, from 0.
        parent: (n,) the parent of each model; -1 for roots.
        support: (n,) evidence for the direction of the edge to the parent, negative if it is against it; 0 for roots
            and without evidence.
    """

    tree: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    support: npt.NDArray[np.float64]


def forest(distances: npt.NDArray[np.float64], evidence: npt.NDArray[np.float64]) -> Forest:
    """Join related models by the shortest trees, and root each where most of the evidence is met.

    After Horwitz, Shul and Hoshen, *Model Tree Heritage Recovery* (arXiv 2405.18432): a model lies nearer to its parent
    and its children than to other relatives. The paper adds a penalty for directions against the evidence to the
    distances and takes the minimum arborescence; here the evidence chooses the root of the minimum spanning tree, so
    that it never changes who is joined with whom. Without evidence the root is the model in the middle: that with the
    smallest sum of distances.

    Args:
        distances: (n, n), symmetric; infinite for models that are not related.
        evidence: (n, n): at [u, v] how much says that u is the parent of v, beyond what says the contrary; [v, u] is
            its negative.

    >>> line = np.array([[0.0, 1, 2.2], [1, 0, 1.5], [2.2, 1.5, 0]])
    >>> forest(line, np.zeros((3, 3))).parent.tolist()
    [1, -1, 1]
    >>> known = np.zeros((3, 3))
    >>> known[0, 1], known[1, 0] = 1, -1
    >>> found = forest(line, known)
    >>> found.parent.tolist(), found.support.tolist()
    ([-1, 0, 1], [0.0, 1.0, 0.0])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    count = len(distances)
    first, second = np.nonzero(np.triu(np.isfinite(distances), 1))
    # Ranks in place of distances: the tree depends on nothing else, and a distance of 0 would be no edge at all.
    ranks = np.empty(len(first))
    ranks[np.lexsort((second, first, distances[first, second]))] = np.arange(1, len(first) + 1)
    edges = first.astype(np.int32), second.astype(np.int32)  # SciPy before 1.17 takes no others
    shortest = minimum_spanning_tree(coo_array((ranks, edges), shape=(count, count)).tocsr()).tocoo()
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for u, v in zip(shortest.coords[0].tolist(), shortest.coords[1].tolist(), strict=True):
        neighbours[u].append(v)
        neighbours[v].append(u)
    _, labels = connected_components(shortest, directed=False)
    parent = np.full(count, -1, np.int64)
    support = np.zeros(count)
    for label in range(labels.max(initial=-1) + 1):
        members = np.flatnonzero(labels == label)
        sums = np.where(np.isfinite(distances), distances, 0)[np.ix_(members, members)].sum(axis=1)
        met = [sum(evidence[u, v] for u, v in _edges(neighbours, int(root))) for root in members]
        root = min(range(len(members)), key=lambda place: (-met[place], sums[place], place))
        for u, v in _edges(neighbours, int(members[root])):
            parent[v], support[v] = u, evidence[u, v]
    return Forest(labels.astype(np.int64), parent, support)


def _edges(neighbours: list[list[int]], root: int) -> Iterator[tuple[int, int]]:
    """The edges of a tree from its root on: parent and child."""
    pending = [(root, -1)]
    while pending:
        u, before = pending.pop()
        for v in neighbours[u]:
            if v != before:
                yield u, v
                pending.append((v, u))
