"""SynFlow and its relatives: the share of the flow over all paths that crosses a weight.

Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020; Gebhart, Saxena & Schrater 2021, arXiv:2101.10552.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.trees import Mask, Params, map_mask
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.problem import Problem
from secateur.structure.flow import log_flow

READINGS = {"square": 2, "magnitude": 1}  # the power of |theta| before dR / d theta^2

STATISTICS = {
    "mean": lambda x: jnp.abs(jnp.mean(x, axis=0)),
    "mean_abs": lambda x: jnp.mean(jnp.abs(x), axis=0),
    "second_moment": lambda x: jnp.mean(x * x, axis=0),
}


def input_statistic(problem: Problem, name: str, examples: int, dtype: jnp.dtype) -> jax.Array:
    """v of R_v: ``"ones"``, or |E x|, E|x| or E[x^2] of each input, ``input_shape``.

    Args:
        examples: that many, spread evenly over the data as stored; the same in every round.

    Raises:
        SecateurError: for another name, or where data are asked for and there are none.
    """
    if name == "ones":
        return jnp.ones(problem.network.input_shape, dtype)
    statistic = lookup("statistic of the inputs", name, {"ones": None, **STATISTICS})
    assert statistic is not None
    if problem.images is None:
        raise SecateurError(
            f"v={name!r} is a statistic of the inputs, and no examples were given: give data, or "
            'take v="ones".'
        )
    n = len(problem.images)
    rows = np.unique(np.linspace(0, n - 1, min(n, examples)).round().astype(int))
    return statistic(problem.prepare(problem.images[rows])).astype(dtype)


@dataclass(frozen=True)
class SynFlow(Criterion):
    """s = |theta| * d log R / d|theta|, R = sum of the outputs of the network with weights
    |m * theta|, an input of ones and neither shifts nor activations: the share of all path values
    |pi_p| that goes through a weight. Layer sums are 1 in a layered network. Tanaka et al. 2020,
    eq. 2 and algorithm 1.

    The paper's score is R * s. R is one number for all weights, so the ranks are the same, and s
    neither over- nor underflows.

    Attributes:
        v: the input: ``"ones"``, or a statistic of the data (`SynFlowDist`).
        examples: how many are read for a statistic.
        pooling: max-pooling as the ``"sum"`` over its window, so that R counts all paths, or
            ``"as_is"``: the largest alone passes, as in the published code.
        keep_bias: |shifts| start paths of their own, as in the published code.
        scale_free: False gives the paper's R * s, which overflows float32 in deep networks.
    """

    title: ClassVar[str] = "SynFlow"
    source: ClassVar[str] = "Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020, algorithm 1"
    passes: ClassVar[str] = "1 forward, 1 backward of one input, each round"
    rounds: ClassVar[int] = 100
    schedule: ClassVar[str] = "exponential"
    rescales: ClassVar[bool] = True
    trap: ClassVar[str] = (
        "In one round it collapses at high compression, although it never does in many; "
        "a norm whose scale starts at 0 closes its branch, so all weights there score 0."
    )
    codes: ClassVar[tuple[str, ...]] = (
        "ganguli-lab/Synaptic-Flow runs R itself in float32, which overflows from some 40 layers.",
        'Synaptic-Flow keeps max-pooling (pooling="as_is") and |biases| (keep_bias=True).',
        "ganguli-lab/Synaptic-Flow stops at high compression, where many dead weights tie at 0.",
    )
    power: ClassVar[int] = 1

    v: str = "ones"
    examples: int = 1000
    pooling: str = "sum"
    keep_bias: bool = False
    scale_free: bool = True

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        size = map_mask(
            lambda m, t: None if m is None else jnp.where(m, jnp.abs(t), 0).astype(t.dtype),
            mask,
            params,
        )
        u = jax.tree.map(lambda a: a**self.power, size)
        v = input_statistic(problem, self.v, self.examples, jnp.result_type(*jax.tree.leaves(u)))
        log_r, gradient = jax.value_and_grad(
            lambda u: log_flow(
                problem.network,
                params,
                problem.stats,
                u,
                v,
                power=self.power,
                pooling=self.pooling,
                keep_bias=self.keep_bias,
            )
        )(u)
        r = 1 if self.scale_free else jnp.exp(log_r)
        return jax.tree.map(lambda u, a, g: r * self.weigh(u, a, g), u, size, gradient)

    def weigh(self, u: jax.Array, size: jax.Array, gradient: jax.Array) -> jax.Array:
        """The score of one leaf from u, |m theta| and d log R / du."""
        return u * gradient


@dataclass(frozen=True)
class SynFlowL2(SynFlow):
    """s = theta^2 * d log R / d theta^2 with R the sum of squared path values: SynFlow in the
    2-norm, which is the path kernel's. Gebhart et al. 2021.

    Attributes:
        score_as: ``"square"``: as above; layer sums are 1, and rescaling a unit changes nothing.
            ``"magnitude"``: |theta| * d log R / d theta^2, as public code has it: fewer units live,
            and rescaling a unit changes its scores.
    """

    title: ClassVar[str] = "SynFlow-L2"
    source: ClassVar[str] = "Gebhart, Saxena & Schrater 2021, arXiv:2101.10552"
    codes: ClassVar[tuple[str, ...]] = (
        'ShreyasMalakarjunPatil/PHEW scores |theta| dR/d theta^2 (score_as="magnitude").',
    )
    power: ClassVar[int] = 2

    score_as: str = "square"

    def weigh(self, u: jax.Array, size: jax.Array, gradient: jax.Array) -> jax.Array:
        power = lookup("reading of SynFlow-L2", self.score_as, READINGS)
        return (u if power == 2 else size) * gradient


_DATA_TRAP = (
    "Pixels that are 0 in all data get no flow, so their weights go first; of normalised images "
    'v="mean" is near 0 everywhere and leaves noise.'
)


@dataclass(frozen=True)
class SynFlowDist(SynFlow):
    """`SynFlow` with the data's E|x| at the input in place of ones. Gebhart et al. 2021.

    Attributes:
        v: ``"mean_abs"``, or ``"mean"`` (|E x|), ``"second_moment"``, ``"ones"``; which of them
            the paper takes is not known.
    """

    title: ClassVar[str] = "SynFlow-Dist"
    source: ClassVar[str] = SynFlowL2.source
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    trap: ClassVar[str] = _DATA_TRAP
    codes: ClassVar[tuple[str, ...]] = ()

    v: str = "mean_abs"


@dataclass(frozen=True)
class SynFlowL2Dist(SynFlowL2):
    """`SynFlowL2` with the data's E[x^2] at the input: the gradient of the sign-averaged NTK trace.
    Gebhart et al. 2021.

    Attributes:
        v: as for `SynFlowDist`.
    """

    title: ClassVar[str] = "SynFlow-L2-Dist"
    needs: ClassVar[frozenset[str]] = frozenset({"images"})
    trap: ClassVar[str] = _DATA_TRAP

    v: str = "second_moment"
