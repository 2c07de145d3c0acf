"""NTK-SAP: how much of the kernel's trace, over random weights and inputs, hangs on a weight.

Wang, Li & Sun, "NTK-SAP: Improving neural network pruning by aligning training dynamics", ICLR
2023 (arXiv 2304.02840).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network
from secateur.core.trees import Mask, Params, flatten, map_mask, unflatten
from secateur.kernels.trace import COUNTED, FORMS, as_gates, gated, trace
from secateur.prune.criterion import Criterion, Scores
from secateur.prune.problem import BN_MODES, Problem, batch_statistics
from secateur.structure.chain import chain
from secateur.structure.flow import log_flow

Net = Callable[[Params], jax.Array]  # w -> outputs (n, C) on one batch

BIASES = ("drawn", "zero", "given")
THETA = ("redrawn", "fixed")


def _noise(like: Mask, params: Params, key: Key) -> Mask:
    """Standard normals in the shapes of the prunable leaves, None elsewhere; drawn at once."""
    flat, of = flatten(like), flatten(params)
    names = [name for name, m in flat.items() if m is not None]
    sizes = [math.prod(jnp.shape(of[name])) for name in names]
    dtype = jnp.result_type(*(of[name] for name in names))
    drawn = jnp.split(jax.random.normal(key, (sum(sizes),), dtype), np.cumsum(sizes)[:-1])
    shaped = {n: d.reshape(jnp.shape(of[n])).astype(of[n].dtype) for n, d in zip(names, drawn)}
    return unflatten({name: shaped.get(name) for name in flat}, like)


def _moved(theta: Params, v: Mask, sigma: float) -> Params:
    return map_mask(lambda d, p: p if d is None else p + sigma * d, v, theta)


def _direction(v: Mask, gates: Mask, theta: Params, counted: str) -> Params:
    """The change of w for the change v of theta; pruned weights move only in the reading full."""

    def change(m: Any, d: Any, p: Any) -> Any:
        if m is None:
            return jnp.zeros_like(p)
        return m * d if counted == "masked" else d

    return map_mask(change, gates, v, theta)


# One estimate of tr Theta each, ``(f, gates, theta, key, sap) -> number``, differentiable by gates.


def _fd(f: Net, gates: Mask, theta: Params, key: Key, sap: NtkSap) -> jax.Array:
    """|f(m (theta + sigma v)) - f(m theta)|^2 / sigma^2, v ~ N(0, I): as published."""
    v = _noise(gates, theta, key)
    w = gated(gates, theta)
    if sap.trace == "masked":
        moved = gated(gates, _moved(theta, v, sap.sigma))
    else:
        moved = _moved(w, v, sap.sigma)
    return jnp.sum((f(moved) - f(w)) ** 2) / sap.sigma**2


def _jvp(f: Net, gates: Mask, theta: Params, key: Key, sap: NtkSap) -> jax.Array:
    """|J v|^2, v ~ N(0, I): the limit sigma -> 0 of `_fd` where f is smooth."""
    v = _direction(_noise(gates, theta, key), gates, theta, sap.trace)
    return jnp.sum(jax.jvp(f, (gated(gates, theta),), (v,))[1] ** 2)


def _vjp(f: Net, gates: Mask, theta: Params, key: Key, sap: NtkSap) -> jax.Array:
    """|J^T u|^2, u independent signs, one for each example and output."""
    out, pull = jax.vjp(f, gated(gates, theta))
    (g,) = pull(jax.random.rademacher(key, out.shape, out.dtype))
    weighed = gated(gates, g) if sap.trace == "masked" else g
    parts = map_mask(lambda m, d: None if m is None else jnp.sum(d**2), gates, weighed)
    return sum(jax.tree.leaves(parts), jnp.zeros((), out.dtype))


def _begins_at_zero(network: Network, leaves: frozenset[str]) -> bool:
    """Whether a new network has nothing but zeros in these leaves."""
    if not leaves:
        return True
    with jax.ensure_compile_time_eval():
        new = flatten(network.init(jax.random.key(0))[0])
        return all(not np.any(np.asarray(new[name])) for name in leaves)


DRAWN: dict[str, Callable[..., jax.Array]] = {"fd": _fd, "jvp": _jvp, "vjp": _vjp}
ESTIMATORS = (*DRAWN, "exact", "limit")


@dataclass(frozen=True)
class NtkSap(Criterion):
    """s = |m * d tr Theta(m) / dm|, averaged over random weights theta and inputs z.

    tr Theta = ||J||_F^2 of f(z; m * theta) over the prunable weights, the nuclear norm of the
    kernel; eq. 10 of the paper estimates it by ``|f(m theta) - f(m (theta + Delta))|^2``, Delta ~
    N(0, eps I). **eps is a variance**: the paper's 1e-4 is ``sigma=0.01``. Keeps the largest; the
    absolute value is taken after the sum over draws. A score has nothing to do with the weights
    that will be trained unless ``theta="fixed"``.

    The paper's draws a round: CIFAR-10 ``draws=5`` with 20 rounds (the defaults); CIFAR-100
    ``draws=1, batches=4, examples=250`` with 100 rounds; Tiny-ImageNet ``draws=1, batches=8,
    examples=250``, 100 rounds; ImageNet ``draws=1, batches=40, examples=256``.

    Attributes:
        estimator: ``fd`` finite difference, as published; ``jvp`` its derivative, along v ~ N(0, I)
            in the weights; ``vjp`` along random signs in the outputs (least noise for its price);
            ``exact`` all outputs; ``limit`` the mean over infinitely many draws of weights and
            noise, in closed form, for bias-free ReLU chains with a dense head (ties at random, and
            layers end with nearly equal numbers of weights, as no noise tells weights apart).
            On ReLU networks ``fd`` has more noise than the others, at any sigma worth having, and
            another mean for fixed weights, because of gates that flip; over symmetric random
            weights the means agree.
        sigma: standard deviation of the finite difference.
        draws: R, draws of weights a round; ``batches`` of ``examples`` inputs for each of them.
        new_weights: "new input, new weight": every batch has weights of its own, so that there are
            ``draws * batches`` draws at the price of ``draws``; False keeps them for all batches.
        theta: ``redrawn`` from the network's initialiser, or ``fixed``: the weights that are given
            (the fixed-weight kernel of the paper's ablation).
        inputs: ``noise``, standard normal, or ``data``: examples of the problem.
        biases: ``drawn`` by the initialiser, ``zero``, or ``given``: those of the weights that will
            be trained, which the published code keeps.
        bn: a key of `BN_MODES`: ``frozen-batch`` takes the statistics of each batch at m * theta
            as constants, for both sides of the difference.
        trace: ``masked``, the published score; ``full`` counts derivatives by pruned weights too.
        form: of ``exact``: ``layers`` (a backward pass an output; a leaf whose place in the network
            cannot be read is refused), ``examples`` (any network, one backward pass for each
            example and output) or ``auto``.
    """

    title: ClassVar[str] = "NTK-SAP"
    source: ClassVar[str] = "Wang, Li & Sun, ICLR 2023, eq. 10 and algorithm 1"
    passes: ClassVar[str] = "a draw: 2 forward, 1 backward through both (one more with batch norm)"
    rounds: ClassVar[int] = 20
    schedule: ClassVar[str] = "exponential"
    ties: ClassVar[str] = "random"  # `limit` ties within a dense layer; the others never tie
    resamples: ClassVar[bool] = True
    permutes: ClassVar[bool] = False  # in distribution only: weights are drawn anew
    trap: ClassVar[str] = (
        "One round starves the largest layer, and with a handful of draws the choice within a "
        "layer is mostly noise: look at the shuffled control."
    )
    codes: ClassVar[tuple[str, ...]] = (
        "YiteWang/NTK-SAP removes int((1 - d) N) weights, and all that tie with the last of them.",
        "YiteWang/NTK-SAP leaves biases as constructed, and freezes the unbiased batch variance.",
        "YiteWang/NTK-SAP calls the standard deviation epsilon; a later port sets it to 1e-4.",
        "YiteWang/NTK-SAP trains single-shot masks from the weights of the last draw.",
    )

    estimator: str = "fd"
    sigma: float = 0.01
    draws: int = 5
    batches: int = 1
    examples: int = 100
    new_weights: bool = True
    theta: str = "redrawn"
    inputs: str = "noise"
    biases: str = "drawn"
    bn: str = "frozen-batch"
    trace: str = "masked"
    form: str = "layers"

    def __post_init__(self) -> None:
        lookup("estimator of NTK-SAP", self.estimator, dict.fromkeys(ESTIMATORS))
        lookup("reading of the trace", self.trace, COUNTED)
        lookup("form of the trace", self.form, FORMS)
        lookup("kind of biases", self.biases, dict.fromkeys(BIASES))
        lookup("kind of theta", self.theta, dict.fromkeys(THETA))
        lookup("mode of batch norm", self.bn, BN_MODES)
        lookup("kind of inputs", self.inputs, dict.fromkeys(("noise", "data")))
        if min(self.draws, self.batches, self.examples) < 1:
            raise SecateurError(
                "draws, batches and examples of NTK-SAP are at least 1, not "
                f"{self.draws}, {self.batches} and {self.examples}."
            )
        if not self.sigma > 0:
            raise SecateurError(f"sigma is a positive standard deviation, not {self.sigma}.")
        if self.estimator == "limit" and (self.trace, self.theta) != ("masked", "redrawn"):
            raise SecateurError(
                "the limit of many draws is known for redrawn weights and the masked trace; take "
                'estimator="exact" for others.'
            )

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        draws, ties = jax.random.split(key)
        signed = self.saliency(problem, params, mask, draws)[1]
        scores = map_mask(lambda m, s: None if m is None else jnp.abs(s), mask, signed)
        if self.estimator != "limit":
            return scores
        # What is equal by symmetry differs in its last digits by the order of sums, that is, by
        # place: equal scores are told apart by key before they are ranked.
        return map_mask(
            lambda m, s, r: (
                None if m is None else s * (1 + 256 * jnp.finfo(s.dtype).eps * jnp.tanh(r))
            ),
            mask,
            scores,
            _noise(mask, params, ties),
        )

    def saliency(
        self, problem: Problem, params: Params, mask: Mask, key: Key
    ) -> tuple[jax.Array, Scores]:
        """The mean estimate of the trace and the signed scores m * dtr/dm.

        Args:
            mask: booleans or real gates, None where nothing may be pruned.

        Returns:
            For ``limit``, 1 and the scores over the trace, which might overflow: in a layer of a
            chain they sum to 2, as those of the others sum to twice the first number.

        Raises:
            SecateurError: where the estimator does not fit the network; the reason in one sentence.
        """
        gates = as_gates(mask, params)
        if self.estimator == "limit":
            return self._limit(problem, params, gates, key)

        def draw(total: tuple[jax.Array, Scores], number: jax.Array) -> tuple[Any, None]:
            value, slope = self._draw(problem, params, gates, key, number)
            return jax.tree.map(jnp.add, total, (value, slope)), None

        number = self.draws * self.batches
        shapes = jax.eval_shape(partial(self._draw, problem, params, gates, key), 0)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (value, slope), _ = jax.lax.scan(draw, zero, jnp.arange(number))
        signed = map_mask(lambda m, g: None if m is None else m * g / number, gates, slope)
        return value / number, signed

    def _draw(
        self, problem: Problem, params: Params, gates: Mask, key: Key, number: Any
    ) -> tuple[jax.Array, Scores]:
        """One batch: an estimate of the trace and its derivative by the gates."""
        weights = number if self.new_weights else number // self.batches
        theta = self._theta(problem, params, fold(key, "weights", weights))
        x = self._inputs(problem, params, fold(key, "inputs", number))
        drop = fold(key, "dropout", number)
        network = problem.network
        given = fold(key, "estimator", number)
        network, stats = problem.network, problem.stats
        if self.bn == "frozen-batch":
            # Of the clean network, for both sides of the difference, as constants.
            stats = batch_statistics(network, gated(gates, theta), x, drop)
            stats = jax.lax.stop_gradient(stats)
        elif self.bn == "init":
            stats = network.init(key)[1]

        def f(w: Params) -> jax.Array:
            if self.bn == "batch":
                return network.train(w, stats, x, drop)[0]
            return network.apply(w, stats, x)

        def of_gates(gates: Mask) -> jax.Array:
            if self.estimator != "exact":
                return DRAWN[self.estimator](f, gates, theta, given, self)
            if self.bn != "batch":
                options = {"counted": self.trace, "form": self.form}
                return trace(network, theta, stats, gates, x, **options)
            # Examples depend on each other: the batch is one example with n C outputs.
            whole = replace(
                network,
                input_shape=x.shape,
                outputs=len(x) * network.outputs,
                apply=lambda w, stats, xs: f(w).reshape(1, -1),
            )
            return trace(whole, theta, stats, gates, x[None], counted=self.trace, form="examples")

        return jax.value_and_grad(of_gates)(gates)

    def _theta(self, problem: Problem, params: Params, key: Key) -> Params:
        """The weights of one draw, in the dtypes of ``params``."""
        drawn = params if self.theta == "fixed" else problem.network.init(key)[0]
        flat, given = flatten(drawn), flatten(params)
        for name, leaf in flat.items():
            if leaf is None:
                continue
            if name.split("/")[-1] in ("bias", "b"):
                if self.biases == "zero":
                    leaf = jnp.zeros_like(leaf)
                elif self.biases == "given":
                    leaf = given[name]
            flat[name] = jnp.asarray(leaf, jnp.result_type(given[name]))
        return unflatten(flat, drawn)

    def _inputs(self, problem: Problem, params: Params, key: Key) -> jax.Array:
        if self.inputs == "data":
            return problem.batch(key, self.examples).x
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return problem.noise(key, self.examples, dtype)

    def _limit(
        self, problem: Problem, params: Params, gates: Mask, key: Key
    ) -> tuple[jax.Array, Scores]:
        """m * d log P / dm, P = sum over paths of q_input * prod of m^2.

        Of a chain of L layers of independent, symmetric weights of variance sigma_l^2, ReLU
        between them, E tr Theta = 2^(1-L) prod sigma_l^2 sum sigma_l^-2 P for any mask and inputs,
        q = sum over examples of x^2. Noise has q = n everywhere.

        Proof in short, for a dense chain: given the layers below, flipping the signs of the weights
        into one unit swaps its gate and changes nothing else, so each gate is worth 1/2; products
        of different paths have mean 0. Fixed coefficients on the way (`chain` lets none through as
        yet) enter squared. Average pooling stays out for another reason: the places that it adds
        are positive together and share the weight above them, so that the products have a mean.
        """
        network = problem.network
        theta = jax.eval_shape(network.init, key)[0]
        found = chain(network, theta, problem.stats)
        if found.why:
            raise SecateurError(
                f"the limit of many draws is known for chains of dense layers and convolutions "
                f"with ReLU between them and a dense head, and {network.name} is none: "
                f'{found.why}; take estimator="vjp".'
            )
        if self.biases != "zero" and not _begins_at_zero(network, found.biases):
            raise SecateurError(
                f"the limit of many draws is known without biases, and {network.name} begins with "
                'some; give biases="zero".'
            )
        dtype = jnp.result_type(*jax.tree.leaves(params))
        q = jnp.ones((), dtype)
        if self.inputs == "data":
            q = jnp.sum(problem.batch(key, self.examples).x.astype(dtype) ** 2, axis=0)
        # Kernels that are never pruned count once a path, whatever their values.
        ones = jax.tree.map(jnp.ones_like, params)

        def log_paths(gates: Mask) -> jax.Array:
            squares = map_mask(lambda m: None if m is None else m * m, gates)
            return log_flow(network, ones, problem.stats, squares, q, power=2)

        slope = jax.grad(log_paths)(gates)
        signed = map_mask(lambda m, g: None if m is None else m * g, gates, slope)
        return jnp.ones((), dtype), signed
