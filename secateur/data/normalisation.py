"""The constants by which published codes normalise, by name.

They differ, and not only in digits: GraSP and force divide CIFAR-10 by deviations averaged over
images (too small by a fifth), open_lth by ImageNet's. What a data set comes with (``own``) is its
training set's mean and deviation, of each channel, on the [0, 1] scale.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from secateur.core.errors import SecateurError, lookup
from secateur.data.examples import Dataset, Sets

D = TypeVar("D", Dataset, Sets)
Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean, std

_IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MNIST: Constants = ((0.1307,), (0.3081,))
_HALF: Constants = ((0.5,), (0.5,))
_CIFAR10: Constants = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
_CIFAR10_GRASP: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100: Constants = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
_CIFAR100_GRASP: Constants = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_TINY: Constants = ((0.480, 0.448, 0.397), (0.276, 0.269, 0.282))
_TINY_GRASP: Constants = ((0.48025, 0.44807, 0.39755), (0.27699, 0.26906, 0.28208))

# Data set -> published code -> its constants. NTT and SNIP compute theirs from the training images
# when they load them: that is "own".
NORMALISATIONS: dict[str, dict[str, Constants]] = {
    "mnist": {"synflow": _MNIST, "ntk-sap": _MNIST, "open_lth": _MNIST, "grasp": _HALF},
    "cifar10": {
        "synflow": _CIFAR10,
        "ntk-sap": _CIFAR10,
        "grasp": _CIFAR10_GRASP,
        "force": _CIFAR10_GRASP,
        "open_lth": _IMAGENET,
        "effective-sparsity": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    },
    "cifar100": {
        "synflow": _CIFAR100,
        "ntk-sap": _CIFAR100,
        "grasp": _CIFAR100_GRASP,
        "force": _CIFAR100_GRASP,
    },
    "tiny-imagenet": {"synflow": _TINY, "ntk-sap": _TINY, "grasp": _TINY_GRASP},
    "imagenet": {"synflow": _IMAGENET, "ntk-sap": _IMAGENET, "open_lth": _IMAGENET},
}


def normalised(data: D, normalisation: str = "own") -> D:
    """The same data, normalised by the constants of a published code.

    Args:
        normalisation: a name of `NORMALISATIONS` for this data set, or ``"own"``: what it has.

    Raises:
        SecateurError: the code has no constants for this data set.
    """
    if normalisation == "own":
        return data
    if data.name not in NORMALISATIONS:
        raise SecateurError(
            f"{data.name} has no published normalisations; take normalisation='own', or give mean= "
            f"and std= where its arrays are read."
        )
    known = {"own": (data.mean, data.std)} | NORMALISATIONS[data.name]
    mean, std = lookup(f"normalisation of {data.name}", normalisation, known)
    return replace(data, mean=mean, std=std)
