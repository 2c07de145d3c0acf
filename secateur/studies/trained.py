"""What the studies of trained networks share: their data, and a training as values and arrays."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from secateur.core.network import Network
    from secateur.data.examples import Sets
    from secateur.lab.cells import Result
    from secateur.train.recipes import Recipe
    from secateur.train.training import Fitted


@lru_cache(maxsize=2)
def sets(dataset: str, validation: int, split_seed: int, normalisation: str = "own") -> Sets:
    """The three sets of a run, read once a process.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    from secateur.data.registry import load
    from secateur.data.splits import split

    return split(load(dataset, normalisation=normalisation), validation, split_seed)


def recipe(fields: Any) -> Recipe:
    """As fields of these names say it; Adam at a constant rate where they say no more.

    ``drops`` lists steps, at each of which the rate falls to a tenth.

    Raises:
        SecateurError: for what no recipe can be.
    """
    from secateur.train.recipes import Recipe

    return Recipe(
        optimiser=getattr(fields, "optimiser", "adam"),
        weight_decay=getattr(fields, "weight_decay", 0.0),
        augment=getattr(fields, "augment", "none"),
        drops=tuple((step, 0.1) for step in getattr(fields, "drops", ())),
        rate=fields.learning_rate,
        batch=fields.batch,
        steps=fields.steps,
        evaluate_every=fields.evaluate_every,
    )


def network_for(name: str, data: Sets, options: Sequence[str] = ()) -> Network:
    """The built-in network of that name, for images and classes of these data.

    Args:
        options: of its maker, as ``width=8``.

    Raises:
        SecateurError: for an option that it has not, or a value that it does not take.
    """
    from secateur.lab.spec import values_of
    from secateur.networks.registry import network, option_types

    told = values_of(f"option of {name}", option_types(name), options)
    shape = tuple(data.train.images.shape[1:])
    return network(name, **{"input_shape": shape, "outputs": len(data.classes), **told})


def described(
    fields: Any, apart: Collection[str] = (), later: Collection[str] = ()
) -> dict[str, Any]:
    """The fields as they stand in a cell's address.

    Args:
        apart: fields that change no cell.
        later: fields that came when cells were in stores already: at their defaults they change no
            address, so that these cells are found.
    """
    import msgspec

    told = msgspec.to_builtins(fields)
    usual = msgspec.to_builtins(type(fields)())
    return {k: v for k, v in told.items() if k not in apart and not (k in later and v == usual[k])}


def data_address(data: str) -> str:
    """The hash of the data as it stands in an address: double precision gives other numbers."""
    double = os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "y", "on", "t")
    return f"{data} in float64" if double else data


def pack(mask: Any, params: Any, prefix: str = "weights:") -> dict[str, np.ndarray]:
    """Weights by name: of leaves with a mask the survivors alone; the others are exactly 0."""
    import numpy as np

    from secateur.core.trees import flatten

    masks = flatten(mask)
    return {
        prefix + leaf: np.asarray(p) if masks[leaf] is None else np.asarray(p)[masks[leaf]]
        for leaf, p in flatten(params).items()
    }


def pack_mask(mask: Any) -> dict[str, np.ndarray]:
    """The mask by name, for `unpack_mask`."""
    import numpy as np

    from secateur.core.trees import flatten

    return {f"mask:{k}": np.asarray(m) for k, m in flatten(mask).items() if m is not None}


def unpack_mask(result: Result, like: Any) -> Any:
    """The mask of a stored cell, with the structure of ``like``."""
    from secateur.core.trees import flatten, unflatten

    return unflatten({k: result.arrays.get(f"mask:{k}") for k in flatten(like)}, like)


def unpack(result: Result, like: Any, prefix: str = "weights:") -> tuple[Any, Any]:
    """Mask and weights of a stored cell, as trees with the structure of ``like``."""
    import numpy as np

    from secateur.core.trees import flatten, unflatten

    mask = unpack_mask(result, like)
    masks, values = flatten(mask), {}
    for leaf, shape in ((k, np.shape(v)) for k, v in flatten(like).items()):
        stored = result.arrays[prefix + leaf]
        if masks[leaf] is None:
            values[leaf] = stored.reshape(shape)
        else:
            values[leaf] = np.zeros(shape, stored.dtype)
            values[leaf][masks[leaf]] = stored
    return mask, unflatten(values, like)


def told(mask: Any, fitted: Fitted, data: Sets, hashed: Mapping[str, Any]) -> dict[str, Any]:
    """What every study tells of a training: counts, accuracies, curve, split, hashes.

    Args:
        hashed: trees whose fingerprints prove where the training began.
    """
    import numpy as np

    from secateur.core import trees

    return {
        "density": trees.density(mask),
        "alive": sum(trees.alive(mask).values()),
        "alive_by_layer": trees.alive(mask),
        "size_by_layer": trees.sizes(mask),
        "best": fitted.best,
        "last": fitted.last,
        "curve": {k: np.asarray(v).tolist() for k, v in fitted.curve.items()},
        "widths": fitted.widths,
        "packed": fitted.packed,
        "hashes": {
            "mask": trees.fingerprint(mask),
            **{name: trees.fingerprint(tree) for name, tree in hashed.items()},
        },
        "split": {
            **data.split,
            "train": len(data.train.labels),
            "validation": len(data.validation.labels),
            "test": len(data.test.labels),
        },
    }
