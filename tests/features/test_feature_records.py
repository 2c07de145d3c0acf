"""Features read as records: of lanes in one program, equal to the measures themselves."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from secateur.core.errors import SecateurError
from secateur.core.trees import apply_mask, flatten
from secateur.features import directions, frames, records
from secateur.features.grams import Gram
from secateur.features.movement import movement
from secateur.networks.mlp import mlp
from secateur.train.records import Record, take

RNG = np.random.default_rng(0)
NET = mlp(6, input_shape=(5,), outputs=3)
X = RNG.standard_normal((4, 5)).astype(np.float32)
STEPS = (0, 20)
potential = jax.jit(frames.frame_potential, static_argnames="normalise")
turned = jax.jit(directions.turned)


def tree() -> Any:
    draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
    return {
        "dense_1": {"kernel": draw(5, 6), "bias": draw(6)},
        "dense_2": {"kernel": draw(6, 3), "bias": draw(3)},
    }


MASKS = [
    {name: {"kernel": RNG.random(s) < 0.7, "bias": None} for name, s in shapes}
    for shapes in [(("dense_1", (5, 6)), ("dense_2", (6, 3)))] * 2
]
LANES = [jax.tree.map(np.asarray, apply_mask(mask, tree())) for mask in MASKS]
STARTS = [tree(), tree()]


def read(made: list[Record]) -> list[dict[str, np.ndarray]]:
    """As training takes it of lanes: one compiled program."""
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return take(made, NET, stack(LANES), {}, stack(MASKS), lanes=True)


def test_grams() -> None:
    form = Gram("post", centred=True)
    made = [records.gram_record(X * k, STEPS, form, layers=["dense_1/kernel"]) for k in (1, 2)]
    assert made[0].program() == made[1].program()
    assert made[0].program() != records.gram_record(X, STEPS).program()
    for k, (found, params) in enumerate(zip(read(made), LANES)):
        h = (k + 1) * X @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        a = np.maximum(h, 0)
        a = a - a.mean(0)
        assert list(found) == ["dense_1/kernel"]
        np.testing.assert_allclose(found["dense_1/kernel"], a @ a.T, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_frame_potentials_and_directions() -> None:
    potentials = read([records.frame_record(STEPS, normalise="m2")] * 2)
    cosines = read([records.cosine_record(STEPS, layers=["dense_1/kernel"])] * 2)
    turns = read([records.turn_record(start, STEPS) for start in STARTS])
    for k in (0, 1):
        weights, mask = flatten(LANES[k]), flatten(MASKS[k])
        for layer in ("dense_1/kernel", "dense_2/kernel"):
            given = weights[layer], mask[layer]
            wanted = potential(*given, normalise="m2")
            np.testing.assert_allclose(potentials[k][layer], wanted, rtol=1e-5)
            wanted = turned(flatten(STARTS[k])[layer], *given)
            np.testing.assert_allclose(turns[k][layer], wanted, rtol=1e-4)
        layer = "dense_1/kernel"
        assert set(cosines[k]) == {f"cosines/{layer}", f"norms/{layer}"}
        unit = directions.host_rows(weights[layer], mask[layer])
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
        np.testing.assert_allclose(cosines[k][f"cosines/{layer}"], unit @ unit.T, atol=1e-6)
        length = np.linalg.norm(np.asarray(weights[layer]), axis=0)
        np.testing.assert_allclose(cosines[k][f"norms/{layer}"], length, rtol=1e-5)


def test_movement() -> None:
    found = read([records.movement_record(start, STEPS) for start in STARTS])
    for k in (0, 1):
        wanted = movement(STARTS[k], LANES[k], MASKS[k], masked=True)
        assert set(found[k]) == {
            *(f"{part}/dense_{l}/kernel" for part in ("moved", "size") for l in (1, 2)),
            "relative",
        }
        np.testing.assert_allclose(found[k]["relative"], wanted.relative(), rtol=1e-5)
        layer = "dense_2/kernel"
        np.testing.assert_allclose(found[k][f"moved/{layer}"], wanted.moved[layer], rtol=1e-5)


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(SecateurError, match="'dense_1/bias' is no kernel"):
        read([records.cosine_record(STEPS, layers=["dense_1/bias"])] * 2)
    with pytest.raises(SecateurError, match="normalisation of the frame potential 'm'"):
        records.frame_record(STEPS, normalise="m")
