"""LeNet-5-Caffe, in the two forms that the literature calls by this name."""

from __future__ import annotations

import jax

from secateur.core.errors import lookup
from secateur.core.keys import Key, fold
from secateur.core.network import Network, Stats
from secateur.core.trees import Params
from secateur.networks.build import build, image_shape, made_once
from secateur.networks.layers import conv, dense, drawn, flat, max_pool

# Name -> (ReLU after the convolutions, initialiser of kernels, of biases).
VARIANTS: dict[str, tuple[bool, str, str]] = {
    "caffe": (False, "variance_scaling", "zeros"),  # Caffe; namhoonlee/snip-public: network.py
    "relu": (True, "glorot_normal", "small_normal"),  # neural-tangent-transfer: nn_models.py
}


@made_once
def lenet_5(
    variant: str = "caffe",
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    outputs: int = 10,
    initialiser: str | None = None,
    bias: str | None = None,
) -> Network:
    """conv 5x5x20, pool, conv 5x5x50, pool, 500 ReLU, outputs: 430,500 prunable weights.

    No padding. ReLU and max-pooling commute, so its place does not matter, but its presence does.

    Args:
        variant: ``"caffe"``: nothing but max-pooling after the convolutions (Caffe; SNIP).
            ``"relu"``: ReLU after each convolution (Neural Tangent Transfer, whose pictures have
            ``outputs=2``).
        initialiser, bias: names in `layers.INITIALISERS` and `layers.BIASES`; default: those of
            the variant's code, TensorFlow's variance scaling and zeros, or Glorot normal and
            N(0, 0.01^2).

    Leaves: ``conv_1, conv_2, dense_1, dense_2`` with ``kernel`` and ``bias``.

    Raises:
        SecateurError: for an unknown variant or initialiser, or images below 16 x 16.
    """
    rectified, kernel_default, bias_default = lookup("variant of LeNet-5", variant, VARIANTS)
    name = "lenet-5-caffe"
    image_shape(name, input_shape, outputs, least=16)
    draw = drawn(initialiser or kernel_default, bias or bias_default)
    height, width = (((n - 4) // 2 - 4) // 2 for n in input_shape[:2])
    shapes = {
        "conv_1": (5, 5, input_shape[2], 20),
        "conv_2": (5, 5, 20, 50),
        "dense_1": (height * width * 50, 500),
        "dense_2": (500, outputs),
    }

    def init(key: Key) -> tuple[Params, Stats]:
        return {layer: draw(fold(key, layer), shape) for layer, shape in shapes.items()}, {}

    def forward(
        params: Params, stats: Stats, x: jax.Array, key: Key | None
    ) -> tuple[jax.Array, Stats]:
        for layer in ("conv_1", "conv_2"):
            x = max_pool(conv(params[layer], x, padding="VALID"), 2)
            x = jax.nn.relu(x) if rectified else x
        x = jax.nn.relu(dense(params["dense_1"], flat(x)))
        return dense(params["dense_2"], x), stats

    return build(name, tuple(input_shape), outputs, init, forward)
