"""What the study `at-init` varies, and its presets: this machine's sizes and the papers' own.

Those of the papers take their recipes from the published codes, with as many steps: these codes
train on all images, here some are held out for validation, so that an epoch has fewer.
"""

from __future__ import annotations

from typing import Any

import msgspec

METHODS = (
    "random",
    "magnitude",
    "snip",
    "logit-snip",
    "iterative-snip",
    "force",
    "grasp",
    "synflow",
    "synflow-l2",
    "path-trace",
    "phew",
    "ntk-sap",
)


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        dataset: a name of ``secateur data``.
        network: a built-in network, by name; ``network_options``: of its maker, as ``width=8``.
        validation: examples held out of the training part; ``split`` is the seed of that cut.
        normalisation: whose mean and deviation; ``own``: those of the training images.
        optimiser: ``adam``, ``sgd``, ``momentum`` or ``nesterov`` (0.9).
        learning_rate: until the first step in ``drops``, at each of which it falls to a tenth.
        weight_decay: coupled, on all weights. augment: a name of the table of augmentations.
        steps: of each training; ``evaluate_every`` divides it.
        keep: level c keeps the fraction keep^c of the weights. levels: which are trained.
        methods: names, as in the docs; ``method_options``: as ``ntk-sap.draws=5``.
        shuffled: train every mask also shuffled within its layers.
        controls: further sanity controls of every method, where they make sense: ``reinitialised``,
            ``inverted``, ``random-labels``, ``noise``.
        ticket: the lottery ticket beside them; it trains every level up to the last.
    """

    dataset: str = "mnist"
    network: str = "lenet-300-100"
    network_options: tuple[str, ...] = ()
    validation: int = 5000
    split: int = 0
    normalisation: str = "own"
    optimiser: str = "adam"
    learning_rate: float = 1.2e-3
    drops: tuple[int, ...] = ()
    weight_decay: float = 0.0
    augment: str = "none"
    batch: int = 60
    steps: int = 3000
    evaluate_every: int = 100
    keep: float = 0.8
    levels: tuple[int, ...] = (3, 6, 10, 14, 18)
    methods: tuple[str, ...] = METHODS
    method_options: tuple[str, ...] = ()
    shuffled: bool = True
    controls: tuple[str, ...] = ()
    ticket: bool = True


# Fields that say which cells there are, and change none.
APART = ("levels", "methods", "method_options", "shuffled", "controls", "ticket")
# Fields that came when cells were in stores: at their defaults they change no address.
LATER = (
    "network_options",
    "normalisation",
    "optimiser",
    "drops",
    "weight_decay",
    "augment",
    "keep",
    "method_options",
)

_SIX = ("random", "magnitude", "snip", "grasp", "synflow", "ntk-sap")
_SEVEN = ("random", "magnitude", "snip", "iterative-snip", "grasp", "synflow", "ntk-sap")
_TENS = tuple(f"{method}.per_class=10" for method in ("snip", "iterative-snip", "grasp"))


def _sap(rounds: int, draws: int, batches: int = 1, examples: int = 100) -> tuple[str, ...]:
    """NTK-SAP's own options; its comparisons give iterative SNIP 100 rounds."""
    told = {"rounds": rounds, "draws": draws, "batches": batches, "examples": examples}
    return ("iterative-snip.rounds=100", *(f"ntk-sap.{k}={v}" for k, v in told.items()))


def _recipe(epoch: int, epochs: int, drops: tuple[int, ...], **fields: Any) -> Fields:
    """SGD as all of these codes have it, in epochs of ``epoch`` steps, evaluated after each."""
    told: dict[str, Any] = {
        "optimiser": "momentum",
        "learning_rate": 0.1,
        "weight_decay": 1e-4,
        "batch": 128,
        "augment": "pad_crop_flip",
        "normalisation": "ntk-sap",
        "methods": _SEVEN,
        "ticket": False,
        "levels": tuple(range(2, 19, 2)),
    }
    told |= {"steps": epochs * epoch, "evaluate_every": epoch}
    return Fields(**{**told, **fields}, drops=tuple(epoch * e for e in drops))


_IMAGENET: dict[str, Any] = {
    "dataset": "imagenet",
    "network_options": ("stem=7x7",),
    "validation": 50_000,
    "batch": 448,  # the paper's is not known; iurada/px-ntk-pruning's
    "augment": "resized_crop_flip",
    "levels": (10, 14),
    "method_options": (*_TENS, *_sap(20, 1, 40, 250)),
}
presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=400,
        evaluate_every=20,
        levels=(6, 14, 18),
        methods=_SIX,
        ticket=False,
    ),
    "mlp": Fields(),
    "lenet-5": Fields(
        network="lenet-5-relu",
        batch=64,
        steps=1500,
        levels=(10, 14, 18),
        methods=_SIX,
        ticket=False,
    ),
    # NTK-SAP: YiteWang/NTK-SAP, scripts/run.sh; 100 noise inputs, 20 rounds of 5 draws.
    "resnet-20-cifar10": _recipe(
        391,
        160,
        (80, 120),
        dataset="cifar10",
        network="resnet-20",
        method_options=(*_TENS, *_sap(20, 5)),
    ),
    # NTK-SAP: BeiYazi0/NTK-SAP, README; 1,000 noise inputs in 4 batches, 100 rounds of 1 draw.
    "vgg-16-cifar100": _recipe(
        391,
        160,
        (60, 120),
        dataset="cifar100",
        network="vgg-16",
        network_options=("code=ntk-sap",),
        optimiser="nesterov",
        weight_decay=5e-4,
        method_options=(*_TENS, *_sap(100, 1, 4, 250)),
    ),
    # SynFlow: ganguli-lab/Synaptic-Flow, args.json of its stored results.
    "vgg-16-cifar10": _recipe(
        391,
        160,
        (60, 120),
        dataset="cifar10",
        network="vgg-16",
        optimiser="nesterov",
        normalisation="synflow",
        keep=10**-0.25,
        levels=(4, 6, 8, 10, 12),
        methods=("random", "magnitude", "snip", "grasp", "synflow"),
        method_options=_TENS,
    ),
    # NTK-SAP: BeiYazi0/NTK-SAP and iurada/px-ntk-pruning, which has weight decay 1e-4.
    "resnet-18-tiny-imagenet": _recipe(
        391,
        200,
        (100, 150),
        dataset="tiny-imagenet",
        network="resnet-18",
        validation=10_000,
        batch=256,
        learning_rate=0.2,
        weight_decay=5e-4,
        augment="resized_crop_flip_tiny",
        method_options=(*_TENS, *_sap(100, 1, 8, 250)),
    ),
    # NTK-SAP, table 1: iurada/px-ntk-pruning; 10,000 noise inputs, 20 rounds of 1 draw.
    "resnet-18-imagenet": _recipe(2860, 90, (30, 60, 80), network="resnet-18", **_IMAGENET),
    "resnet-50-imagenet": _recipe(2860, 90, (30, 60, 80), network="resnet-50", **_IMAGENET),
}
seeds = {**dict.fromkeys(presets, 3), "mlp": 5, "resnet-18-imagenet": 1, "resnet-50-imagenet": 1}

# Forward multiply-adds of an image, in millions, counted over the traced program; a training step
# takes three times as many.
WORK = {
    "resnet-20": 41,
    "vgg-16": 313,
    "resnet-18": 2222,  # at 64 x 64; at 224 x 224 with the large stem 1,814
    "resnet-50": 4089,
}
