"""Dense ReLU networks with random weights: the law that means of kernels are taken over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.layers import flat
from secateur.networks.mlp import mlp

PARAMETRISATIONS = {
    "standard": "z = h W + b, W ~ N(0, s_w / fan_in), b ~ N(0, s_b): weights as they are trained; "
    "the NTK grows with the widths (Sohl-Dickstein et al. 2020)",
    "ntk": "z = sqrt(s_w / fan_in) h W + sqrt(s_b) b, W and b ~ N(0, 1): the NTK has a limit "
    "(Jacot et al. 2018)",
}
# Name in `networks.layers.INITIALISERS` -> variance of a weight by fan-in and fan-out.
INITIAL_VARIANCES: dict[str, Callable[[int, int], float]] = {
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "kaiming_normal": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_normal_fan_out": lambda fan_in, fan_out: 2 / fan_out,
    "torch_uniform": lambda fan_in, fan_out: 1 / (3 * fan_in),
    "variance_scaling": lambda fan_in, fan_out: 1 / fan_in,
    "small_normal": lambda fan_in, fan_out: 1e-4,
}


@dataclass(frozen=True)
class DenseEnsemble:
    """Dense ReLU networks of independent Gaussian weights: what a kernel's mean is taken over.

    Args:
        inputs: numbers in an example.
        hidden: width of each hidden layer, first to last; none gives a linear model.
        outputs: C.
        weight_variance: s_w, fan-in times the variance of a weight; one for each layer, or one for
            all. 2 is He et al. 2015, which keeps the mean square of the outputs from layer to
            layer.
        bias_variance: s_b.
        parametrisation: a key of `PARAMETRISATIONS`.
        biases: whether there are biases, which are trained also where they start at 0 (in the NTK
            parametrisation those of s_b = 0 do nothing).

    Raises:
        SecateurError: for widths below 1, variances that are negative or too few, or an unknown
            word.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int = 1
    weight_variance: float | tuple[float, ...] = 2.0
    bias_variance: float | tuple[float, ...] = 0.0
    parametrisation: str = "standard"
    biases: bool = True

    def __post_init__(self) -> None:
        lookup("parametrisation", self.parametrisation, PARAMETRISATIONS)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if min(self.widths) < 1:
            raise SecateurError(f"every width is at least 1, not {self.widths}.")
        layers = len(self.widths) - 1
        for name in ("weight_variance", "bias_variance"):
            given = getattr(self, name)
            each = tuple(given) if isinstance(given, Sequence) else (float(given),) * layers
            if len(each) != layers or not all(0 <= v < math.inf for v in each):
                raise SecateurError(
                    f"{name} is {given}; give one number of at least 0, or one for each of the "
                    f"{layers} layers."
                )
            object.__setattr__(self, name, each)
        if not all(v > 0 for v in self.weight_variances):
            raise SecateurError("a weight_variance of 0 leaves a layer without weights.")
        if not self.biases and any(self.bias_variances):
            raise SecateurError("bias_variance is not 0 and there are no biases; set biases=True.")

    @classmethod
    def of_initialiser(
        cls, inputs: int, hidden: Sequence[int], outputs: int, initialiser: str, **fields: Any
    ) -> DenseEnsemble:
        """The ensemble of an MLP of this package: the initialiser's variances, biases from 0.

        Normal weights stand for uniform and truncated ones of the same variance: with these the
        diagonal stays exact, and the rest is what width makes of either.

        Raises:
            SecateurError: for an unknown initialiser.
        """
        variance = lookup("initialiser", initialiser, INITIAL_VARIANCES)
        widths = (inputs, *hidden, outputs)
        each = tuple(fan_in * variance(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        return cls(inputs, tuple(hidden), outputs, each, **fields)

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.inputs, *self.hidden, self.outputs)

    @property
    def weight_variances(self) -> tuple[float, ...]:
        """s_w of each layer."""
        return self.weight_variance  # type: ignore[return-value]  # a tuple since __post_init__

    @property
    def bias_variances(self) -> tuple[float, ...]:
        """s_b of each layer."""
        return self.bias_variance  # type: ignore[return-value]

    def variances(self) -> dict[str, float]:
        """Leaf -> variance of its entries as they act in the network, in both parametrisations."""
        found = {}
        each = zip(self.widths, self.weight_variances, self.bias_variances)
        for l, (fan_in, s_w, s_b) in enumerate(each, start=1):
            found[f"dense_{l}/kernel"] = s_w / fan_in
            if self.biases:
                found[f"dense_{l}/bias"] = s_b
        return found

    def network(self) -> Network:
        """The network whose ``init`` draws from the ensemble; equal ensembles give the same one."""
        return _network(self)


@functools.lru_cache(maxsize=64)
def _network(of: DenseEnsemble) -> Network:
    plain = mlp(*of.hidden, input_shape=(of.inputs,), outputs=of.outputs, bias=of.biases)
    given = list(zip(pairwise(of.widths), of.weight_variances, of.bias_variances))
    standard = of.parametrisation == "standard"

    def init(key: Key) -> tuple[Params, Stats]:
        params = {}
        for l, ((fan_in, fan_out), s_w, s_b) in enumerate(given, start=1):
            draw = lambda shape, part, s, l=l: (
                math.sqrt(s if standard else 1) * jax.random.normal(fold(key, part, l), shape)
            )
            params[f"dense_{l}"] = {"kernel": draw((fan_in, fan_out), "kernel", s_w / fan_in)}
            if of.biases:
                params[f"dense_{l}"]["bias"] = draw((fan_out,), "bias", s_b)
        return params, {}

    def apply(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
        h = flat(x)
        for l, ((fan_in, _), s_w, s_b) in enumerate(given, start=1):
            h = (h @ params[f"dense_{l}"]["kernel"]) * math.sqrt(s_w / fan_in)
            if of.biases:
                h = h + math.sqrt(s_b) * params[f"dense_{l}"]["bias"][None, :]
            if l < len(given):
                h = jax.nn.relu(h)
        return h

    def train(params: Params, stats: Stats, x: jax.Array, key: Key) -> tuple[jax.Array, Stats]:
        return apply(params, stats, x), stats

    if standard:
        return Network(plain.name, plain.input_shape, of.outputs, init, plain.apply, plain.train)
    return Network(f"{plain.name}-ntk", plain.input_shape, of.outputs, init, apply, train)
