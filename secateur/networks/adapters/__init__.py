"""A user's own network as a `Network`: Flax linen, Flax nnx, Equinox or plain functions.

`adapt` looks at what it is given and calls the adapter of that library; a library is imported only
if the user's network comes from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.networks.adapters.equinox_model import from_equinox
from secateur.networks.adapters.flax_linen import from_flax_linen
from secateur.networks.adapters.flax_nnx import from_flax_nnx
from secateur.networks.adapters.functions import from_functions
from secateur.networks.adapters.parts import parameter_names

__all__ = ["adapt", "from_equinox", "from_flax_linen", "from_flax_nnx", "from_functions"]

LIBRARIES: dict[str, Callable[..., Network]] = {
    "flax.linen": from_flax_linen,
    "flax.nnx": from_flax_nnx,
    "equinox": from_equinox,
}


def library(thing: Any) -> str | None:
    """The library that an object, a class or a partial of a class comes from; None if none."""
    if isinstance(thing, functools.partial):
        return library(thing.func)
    classes = thing.__mro__ if isinstance(thing, type) else type(thing).__mro__
    for each in classes:
        for name in LIBRARIES:
            if each.__module__ == name or each.__module__.startswith(name + "."):
                return name
    return None


def adapt(anything: Any, input_shape: tuple[int, ...], **options: Any) -> Network:
    """The `Network` of whatever a user brings.

    Args:
        anything: a `Network` (given back as it is), a Flax linen module, an nnx or Equinox class or
            constructor (``rngs -> model``, ``key -> model``) or model, or a pair ``(init, apply)``.
        input_shape: shape of one example, e.g. ``(28, 28, 1)``.
        options: those of the library's adapter.

    Raises:
        SecateurError: if it is none of these, or does not map (n, *input_shape) to (n, outputs).
    """
    if isinstance(anything, Network):
        return anything
    if isinstance(anything, tuple) and len(anything) == 2 and all(map(callable, anything)):
        return from_functions(*anything, input_shape, **options)
    name = library(anything)
    if name is None and callable(anything):
        # A plain function: a constructor. nnx calls its argument rngs; else see what it builds.
        if "rngs" in parameter_names(anything):
            name = "flax.nnx"
        else:
            name = _library_of_what_it_builds(anything)
    if name is None:
        raise SecateurError(
            f"cannot make a network of {type(anything).__name__!r}: expected a Flax linen module, "
            "an nnx or Equinox model or constructor, or a pair (init, apply); for anything else "
            "write the two functions and use from_functions."
        )
    return LIBRARIES[name](anything, input_shape, **options)


def _library_of_what_it_builds(constructor: Any) -> str | None:
    from secateur.networks.adapters.parts import construct

    built: list[Any] = []
    construct(constructor, lambda made: built.append(made))
    made = built[0][0] if isinstance(built[0], tuple) and built[0] else built[0]
    return library(made)
