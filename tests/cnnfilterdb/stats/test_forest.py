"""Trees of descent: the shortest ones, rooted by evidence; compared with networkx."""

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.stats import forest


@st.composite
def cases(draw):
    count = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distances = rng.random((count, count)) + 0.01
    distances[rng.random((count, count)) < draw(st.floats(0, 0.7))] = np.inf
    distances = np.maximum(distances, distances.T)
    np.fill_diagonal(distances, 0)
    evidence = np.triu(rng.integers(-1, 2, (count, count)), 1).astype(float)
    return distances, evidence - evidence.T


def tree_edges(found):
    return {frozenset((int(v), int(u))) for v, u in enumerate(found.parent) if u >= 0}


@settings(max_examples=150)
@given(cases())
def test_the_trees_are_shortest_and_meet_as_much_evidence_as_a_root_can(case):
    distances, evidence = case
    count = len(distances)
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_weighted_edges_from(
        (u, v, distances[u, v]) for u in range(count) for v in range(u) if np.isfinite(distances[u, v])
    )
    found = forest(distances, evidence)
    shortest = nx.minimum_spanning_tree(graph)
    assert tree_edges(found) == {frozenset(edge) for edge in shortest.edges}
    for members in nx.connected_components(graph):
        assert len({int(found.tree[one]) for one in members}) == 1
        tree = shortest.subgraph(members)
        best = max(sum(evidence[u, v] for u, v in nx.bfs_edges(tree, root)) for root in members)
        assert found.support[list(members)].sum() == best
        assert (found.parent[list(members)] < 0).sum() == 1
    for child, parent in enumerate(found.parent):
        assert found.support[child] == (evidence[parent, child] if parent >= 0 else 0)


def test_equal_models_are_joined():
    """A distance of 0 is a distance, not a missing edge."""
    distances = np.array([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]])
    assert tree_edges(forest(distances, np.zeros((3, 3)))) >= {frozenset((0, 1))}


def test_no_models():
    assert forest(np.zeros((0, 0)), np.zeros((0, 0))).parent.shape == (0,)
