"""Data of the toy worlds: Gaussian inputs with teachers of degree two, and XORD.

Nothing is read from files: inputs are drawn by key inside compiled programs, teachers are small
trees of arrays, and everything can be mapped over keys and scales.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.keys import Key
from secateur.core.quadratic import ArrayLike, Quadratic


def gaussian(key: Key, n: int, inputs: int) -> jax.Array:
    """n inputs x ~ N(0, I / D), (n, D)."""
    return jax.random.normal(key, (n, inputs)) / inputs**0.5


def committee_teacher(
    key: Key, inputs: int, units: int = 4, *, alpha: ArrayLike = 1.0, epsilon: ArrayLike = 0.5
) -> Quadratic:
    """Kumar's teacher: a committee machine of its own width, output scale and epsilon.

    y(x) = (alpha / N) sum_n h_n + epsilon h_n^2 / 2 with h_n = w_n.x, w_n ~ N(0, I). Where teacher
    and student share alpha, losses scale by alpha^2 and say nothing: fix the teacher's, and show
    losses over the variance of y (`Quadratic.variance`).
    """
    w = jax.random.normal(key, (inputs, units))
    return Quadratic(alpha * jnp.mean(w, axis=1), alpha * epsilon / 2 * (w @ w.T) / units)


def single_index(key: Key, inputs: int) -> Quadratic:
    """y(x) = (beta.x)^2 / 2 with beta ~ N(0, I), of the published code of Kumar et al. 2023."""
    beta = jax.random.normal(key, (inputs,))
    return Quadratic(jnp.zeros(inputs), jnp.outer(beta, beta) / 2)


# XORD. The four patterns v_1 .. v_4: v_1 and v_3, of equal signs, are what is to be found.
PATTERNS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], np.float32)
# What an input may contain: the 15 sets of patterns, (15, 4) booleans.
TYPES = np.array([[kind >> i & 1 for i in range(4)] for kind in range(1, 16)], bool)
LARGEST = 8  # pairs: all 4^pairs inputs are listed


def labels_of(present: np.ndarray) -> np.ndarray:
    """+1 where v_1 or v_3 is among the patterns, else -1; present (..., 4) booleans."""
    return np.where(present[..., 0] | present[..., 2], 1, -1)


def is_diverse(present: np.ndarray) -> np.ndarray:
    """All four patterns in a positive input; v_2 and v_4 in a negative one. (..., 4) -> (...)."""
    both = present[..., 1] & present[..., 3]
    return both & (present[..., 0] == present[..., 2])


def present(x: jax.Array) -> jax.Array:
    """Which patterns inputs (n, pairs, 2) contain: (n, 4) booleans."""
    return jnp.any(jnp.all(x[:, :, None, :] == PATTERNS, axis=-1), axis=1)


def condensed(has: ArrayLike | np.ndarray) -> jax.Array:
    """Inputs (n, 4, 2) that hold each of their patterns once and zeros for the others.

    The network takes the largest of its responses, none below 0, so that it sees no difference.
    """
    return jnp.asarray(has)[..., None] * PATTERNS


def xord(
    key: Key, n: int, pairs: int = 6, diverse: ArrayLike = 0.98
) -> tuple[jax.Array, jax.Array]:
    """XORD (Brutzkus & Globerson 2019): is a pair of equal signs among the pairs?

    The first half (the larger) are positives. An input is diverse with probability ``diverse``, and
    uniform over all diverse, or all other, inputs of its label.

    Returns:
        x (n, pairs, 2) of -1 and 1; y (n,), 1 or -1.

    Raises:
        SecateurError: for fewer than 4 pairs (no positive input were diverse) or more than 8.
    """
    members, sizes = _classes(pairs)
    which, place = jax.random.split(key)
    positive = jnp.arange(n) < (n + 1) // 2
    rows = 2 * positive.astype(int) + jax.random.bernoulli(which, diverse, (n,)).astype(int)
    chosen = jax.random.randint(place, (n,), 0, jnp.asarray(sizes)[rows])
    codes = jnp.asarray(members)[rows, chosen]
    digits = codes[:, None] // 4 ** jnp.arange(pairs) % 4
    return jnp.asarray(PATTERNS)[digits], jnp.where(positive, 1, -1)


def type_probabilities(pairs: int = 6, diverse: float = 0.5) -> np.ndarray:
    """How often inputs of `xord` are of each of the `TYPES`, labels equally often: (15,), sum 1.

    Raises:
        SecateurError: as `xord`.
    """
    members, sizes = _classes(pairs)
    share = np.zeros(len(TYPES))
    for row, (codes, size) in enumerate(zip(members, sizes)):
        kinds = _present_in(codes[:size], pairs) @ (1 << np.arange(4)) - 1
        part = (diverse if row % 2 else 1 - diverse) / 2
        share += part * np.bincount(kinds, minlength=len(TYPES)) / size
    return share


def _present_in(codes: np.ndarray, pairs: int) -> np.ndarray:
    """The patterns of inputs given by number, the digits in base 4 being their pairs: (n, 4)."""
    digits = codes[:, None] // 4 ** np.arange(pairs) % 4
    return (digits[:, :, None] == np.arange(4)).any(axis=1)


@cache
def _classes(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs' numbers, rows 2 positive + diverse, filled up with 0; and how many they are."""
    if not 4 <= pairs <= LARGEST:
        raise SecateurError(
            f"an input of XORD has {pairs} pairs, expected 4 to {LARGEST}; with fewer no positive "
            "input is diverse, and of more there are too many to list."
        )
    codes = np.arange(4**pairs)
    has = _present_in(codes, pairs)
    row = 2 * (labels_of(has) > 0) + is_diverse(has)
    rows = [codes[row == r] for r in range(4)]
    sizes = np.array([len(r) for r in rows])
    members = np.zeros((4, sizes.max()), np.int32)
    for r, codes in enumerate(rows):
        members[r, : len(codes)] = codes
    return members, sizes
