"""Small training sets: a share of the training examples, and labels that say nothing of them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    import numpy as np

    from secateur.data.examples import Sets


def check(fields: Any) -> None:
    """Refuses an impossible number of examples.

    Raises:
        SecateurError: one sentence.
    """
    if fields.examples and fields.examples < fields.batch:
        raise SecateurError(
            f"examples is the number of training examples, at least a batch ({fields.batch}), or 0 "
            f"for all of them, not {fields.examples}."
        )


@lru_cache(maxsize=4)
def part(dataset: str, validation: int, split_seed: int, examples: int) -> Sets:
    """The three sets of a run, with ``examples`` of the training examples alone; 0 keeps all.

    Each class gives its share, as of a validation set (`data.splits.split`).

    Raises:
        SecateurError: where the data are not at hand or have not so many training examples.
    """
    from dataclasses import replace

    from secateur.data.registry import load
    from secateur.data.splits import split

    whole = load(dataset)
    sets = split(whole, validation, split_seed)
    spare = len(sets.train) - examples
    if not examples or not spare:
        return sets
    if spare < 0:
        raise SecateurError(
            f"{dataset} has {len(sets.train):,} training examples beside {validation:,} for "
            f"validation; set examples to at most that, not {examples:,}."
        )
    kept = split(replace(whole, train=sets.train), spare, split_seed).train
    return replace(sets, train=kept, split={**sets.split, "examples": examples})


def permuted(data: Sets, seed: int, stream: str = "labels") -> Sets:
    """The same sets with the training labels in another order; validation and test stay true.

    So every class keeps its number of training examples (Zhang et al. 2017 draw each label anew).

    Args:
        stream: its name under the seed: another name, another order.
    """
    from dataclasses import replace

    import jax
    import numpy as np

    from secateur.core.keys import key
    from secateur.data.examples import Examples

    draws = np.asarray(jax.random.bits(key(seed, stream), (len(data.train),)))
    labels = data.train.labels[np.argsort(draws, kind="stable")]
    train = Examples(data.train.images, labels)
    # The split names the labels, so that no compiled program takes two sets for one.
    return replace(data, train=train, split={**data.split, "labels": f"{stream} of seed {seed}"})


def probe(data: Sets, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` training examples, evenly spaced over the set, as a network takes them.

    Returns:
        Images (n, *shape), normalised; the rows (n,) where they stand in the training set.
    """
    import jax.numpy as jnp
    import numpy as np

    from secateur.data.augment import normalise

    count = min(most, len(data.train))
    rows = np.arange(count) * len(data.train) // count
    images = jnp.asarray(np.asarray(data.train.images[rows]))
    return np.asarray(normalise(images, np.asarray(data.mean), np.asarray(data.std))), rows


def right(network: Any, params: Any, stats: Any, mask: Any, x: Any, y: Any) -> dict[str, Any]:
    """The share of examples that the network has right, as a record."""
    import jax.numpy as jnp

    return {"accuracy": jnp.mean(jnp.argmax(network.apply(params, stats, x), axis=-1) == y)}
