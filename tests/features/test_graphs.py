"""The alignment graph, in both definitions, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.features.graphs import alignment_graph, cosine_at, merged

RNG = np.random.default_rng(0)
SHOTS = [RNG.standard_normal((6, 9)) for _ in range(3)]


def cosine(shot: np.ndarray, i: int, j: int) -> float:
    u, v = shot[:, i], shot[:, j]
    return u @ v / np.linalg.norm(u) / np.linalg.norm(v)


@pytest.mark.parametrize("definition", ["text", "code"])
def test_edges_by_both_definitions(definition: str) -> None:
    graph = alignment_graph(SHOTS, definition=definition)
    distance = {
        "code": lambda x: (1 - x) / 2,
        "text": lambda x: np.sqrt(1 - x),
    }[definition]
    every = [
        0.0 if i == j else distance(cosine(shot, i, j))
        for shot in SHOTS
        for i in range(9)
        for j in range(9)
    ]
    s = np.mean(every)
    assert graph.scale == pytest.approx(s, rel=1e-12)
    for shot, edges in zip(SHOTS, graph.edges):
        right = {
            (i, j): np.exp(-(distance(cosine(shot, i, j)) ** 2) / s**2)
            for i in range(9)
            for j in range(i + 1, 9)
        }
        right = {pair: a for pair, a in right.items() if a >= 0.37}
        found = {tuple(p): a for p, a in zip(edges.pairs.tolist(), edges.weights)}
        assert found == pytest.approx(right, rel=1e-10)
        assert np.all(np.diff(edges.weights) <= 0)
        for pair, a, x in zip(edges.pairs, edges.weights, edges.cosines):
            assert x == pytest.approx(cosine(shot, *pair), abs=1e-12)
            assert graph.cosine_at(a) == pytest.approx(x, abs=1e-9)  # the slider's inverse
    assert graph.radii().max() == pytest.approx(12)
    assert graph.norms[1, 4] == pytest.approx(np.linalg.norm(SHOTS[1][:, 4]))


def test_an_orthogonal_pair_in_the_code_is_at_one_over_e_for_random_directions() -> None:
    assert np.exp(-0.25 / 0.5**2) == pytest.approx(1 / np.e)
    assert cosine_at(1 / np.e, 0.5) == pytest.approx(0, abs=1e-14)
    many = alignment_graph([RNG.standard_normal((200, 300))])
    assert many.scale == pytest.approx(0.5, abs=0.01)  # the diagonal takes 1 / 300 of it away


def test_components_at_a_cutoff() -> None:
    """Two bunches and a single unit; the flood fill goes by neighbours."""
    axes = np.eye(6)
    kernel = np.stack(
        [axes[0], axes[0] + 0.1 * axes[1], axes[2], axes[2] + 0.1 * axes[3], 3 * axes[2], axes[4]],
        axis=1,
    )
    graph = alignment_graph([kernel])
    labels = graph.components(0.9)
    assert labels[0] == labels[1]
    assert labels[2] == labels[3] == labels[4]
    assert len(set(labels)) == 3
    counts = graph.component_counts([0.37, 0.9, 1.1])
    assert counts.tolist() == [graph.components(0.37).max() + 1, 3, 6]
    sizes, largest = graph.component_sizes(0.9)
    assert sorted(zip(sizes.tolist(), largest.round(6).tolist())) == [
        (1, 1.0),
        (2, round(float(np.sqrt(1.01)), 6)),
        (3, 3.0),
    ]


def test_two_networks_in_one_graph_and_what_is_left_out() -> None:
    pairs = merged(SHOTS, [2 * shot for shot in SHOTS])
    graph = alignment_graph(pairs, most=4)
    assert graph.networks.tolist() == [0] * 4 + [1] * 4
    assert graph.units == 18
    for edges in graph.edges:  # each unit is joined to its double
        joined = {tuple(p): a for p, a in zip(edges.pairs.tolist(), edges.weights)}
        assert all(joined[k, k + 4] == pytest.approx(1, abs=1e-12) for k in range(4))
    mask = np.ones((6, 9), bool)
    mask[:, 2] = False
    dead = alignment_graph(SHOTS, mask=mask)
    assert all(2 not in edges.pairs for edges in dead.edges)
    assert np.all(dead.norms[:, 2] == 0)
    with pytest.raises(SecateurError, match="no common graph"):
        merged(SHOTS, SHOTS[:2])
    with pytest.raises(SecateurError, match="one snapshot or more"):
        alignment_graph([])
    with pytest.raises(SecateurError, match="expected above 0"):
        alignment_graph([np.ones((3, 4))], scale=0.0)
    with pytest.raises(SecateurError, match=r"in \(0, 1\]"):
        cosine_at(0.0, 0.5)
