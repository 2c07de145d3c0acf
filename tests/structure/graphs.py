"""Random graphs of dense layers, evaluated and differentiated by hand in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
from zoo import network, relu

from secateur.core.network import Network


@dataclass(frozen=True)
class Graph:
    """h_l = phi(sum over sources of h_s W_sl + b_l) + sum over skips of h_s; the last is linear.

    Attributes:
        widths: of the input, the hidden rows and the output.
        sources: of each row but the input, the earlier rows that a kernel leads from.
        skips: of each row but the input, the earlier rows of equal width that are added.
    """

    widths: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    skips: tuple[tuple[int, ...], ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for l, sources in enumerate(self.sources, start=1):
            found[f"bias_{l}"] = (self.widths[l],)
            for s in sources:
                found[f"kernel_{s}_{l}"] = (self.widths[s], self.widths[l])
        return found

    def forward(self, p: Any, x: Any) -> tuple[list[Any], list[Any]]:
        """Rows h and what goes into each activation."""
        rows, inside = [x], [None]
        for l, (sources, skips) in enumerate(zip(self.sources, self.skips, strict=True), start=1):
            z = sum(rows[s] @ p[f"kernel_{s}_{l}"] for s in sources) + p[f"bias_{l}"][None]
            inside.append(z)
            h = z if l == len(self.sources) else relu(z)
            rows.append(sum((rows[s] for s in skips), h))
        return rows, inside

    def gradient(self, p: Any, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Of sum((f(x) - y)^2) / 2, by hand."""
        rows, inside = self.forward(p, x)
        errors = [np.zeros_like(h) for h in rows]
        errors[-1] = rows[-1] - y
        found = {}
        for l in reversed(range(1, len(rows))):
            for s in self.skips[l - 1]:
                errors[s] = errors[s] + errors[l]
            delta = errors[l] if l == len(self.sources) else errors[l] * (inside[l] > 0)
            found[f"bias_{l}"] = delta.sum(0)
            for s in self.sources[l - 1]:
                found[f"kernel_{s}_{l}"] = rows[s].T @ delta
                errors[s] = errors[s] + delta @ p[f"kernel_{s}_{l}"].T
        return found

    def paths(self, masks: dict[str, Any]) -> list[np.ndarray]:
        """How many paths of surviving weights and skips lead from each unit to an output."""
        count: list[Any] = [np.zeros(w, object) for w in self.widths]
        count[-1] = np.ones(self.widths[-1], object)
        for l in reversed(range(1, len(self.widths))):
            for s in self.skips[l - 1]:
                count[s] = count[s] + count[l]
            for s in self.sources[l - 1]:
                count[s] = count[s] + masks[f"kernel_{s}_{l}"].astype(object) @ count[l]
        return count

    def reaching(self, masks: dict[str, Any]) -> list[np.ndarray]:
        """Units from which surviving weights lead to an output; joined rows count as one."""
        one = {l: min(rows) for rows in self.rows_that_are_one() for l in rows}
        last = len(self.widths) - 1
        edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for k, m in masks.items():
            if m is not None:
                _, s, l = k.split("_")
                for i, j in zip(*np.nonzero(m), strict=True):
                    edges.setdefault((one[int(s)], int(i)), []).append((one[int(l)], int(j)))

        def leads(unit: tuple[int, int]) -> bool:
            seen, waiting = {unit}, [unit]
            while waiting:
                for after in edges.get(waiting.pop(), []):
                    if after not in seen:
                        seen.add(after)
                        waiting.append(after)
            return any(row == last for row, _ in seen)

        return [
            np.array([leads((one[l], i)) for i in range(width)])
            for l, width in enumerate(self.widths)
        ]

    def rows_that_are_one(self) -> list[set[int]]:
        """Rows joined by skips."""
        sets = [{l} for l in range(len(self.widths))]
        for l, skips in enumerate(self.skips, start=1):
            for s in skips:
                a = next(g for g in sets if l in g)
                b = next(g for g in sets if s in g)
                if a is not b:
                    sets.remove(b)
                    a |= b
        return sets

    def network(self) -> Network:
        return network(
            self.shapes(),
            lambda p, x: self.forward(p, x)[0][-1],
            (self.widths[0],),
            self.widths[-1],
        )


@st.composite
def graphs(draw: Any) -> Graph:
    """1 to 4 hidden rows of 2 to 6 units; any row may read and add any earlier one."""
    hidden = draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
    widths = (draw(st.integers(2, 6)), *hidden, draw(st.integers(2, 3)))
    sources, skips = [], []
    for l in range(1, len(widths)):
        some = draw(st.sets(st.integers(0, l - 1), min_size=1, max_size=3))
        sources.append(tuple(sorted(some)))
        equal = [s for s in range(l) if widths[s] == widths[l] and l < len(widths) - 1]
        skips.append(tuple(sorted(draw(st.sets(st.sampled_from(equal)))) if equal else ()))
    return Graph(widths, tuple(sources), tuple(skips))


def weights(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {k: rng.standard_normal(shape) for k, shape in graph.shapes().items()}


def masks(graph: Graph, rng: np.random.Generator, density: float) -> dict[str, Any]:
    """Sparse, with whole rows and columns empty now and then; None for biases."""
    found: dict[str, Any] = {}
    for k, shape in graph.shapes().items():
        found[k] = None
        if len(shape) == 2:
            rows, columns = rng.random(shape[0]) < 0.8, rng.random(shape[1]) < 0.8
            found[k] = (rng.random(shape) < density) & rows[:, None] & columns[None]
    return found
