"""What a kernel is asked of: a network or any ``f(params, x)``, its parameters, mask and examples.

Checked before the work begins. What was read of the last functions is kept, so that asking
again compiles nothing anew.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.network import Network
from secateur.kernels.factors import Form, direct, factors, form, gradients, layout
from secateur.structure.canonical import canonical
from secateur.structure.sites import Function, Sites, names_of, read_sites, resized

UNREACHED = "it does not reach the output"


class DifferentiatedWarning(UserWarning):
    """A leaf's place in a function cannot be read, so that its part of a kernel takes longer."""


@dataclass
class Prepared:
    """A function, what was read of it, its compiled programs, and leaves that were warned of."""

    f: Function
    sites: Sites
    programs: dict[Any, Any] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def program(self, key: Any, make: Callable[[], Any]) -> Any:
        """The compiled program of that key, made where it is asked for the first time."""
        if key not in self.programs:
            self.programs[key] = make()
        return self.programs[key]


@dataclass(frozen=True)
class Subject:
    """A function at parameters and examples, with the weights that are counted.

    Attributes:
        prepared: the function and its programs.
        params: what it is given; of a network, parameters and statistics together.
        x: the examples.
        counted: leaves that the kernel counts.
        weights: leaf -> what each of its weights counts, 0 or 1; only where it has a mask.
        prefix: of the names of a network's parameters inside ``params``.
        outputs: C.
        dtype: of the outputs.
    """

    prepared: Prepared
    params: Any
    x: Any
    counted: tuple[str, ...]
    weights: dict[str, np.ndarray]
    prefix: str
    outputs: int
    dtype: Any

    def kept(self, how: Form) -> dict[str, np.ndarray]:
        """The columns of the weights that count, of the leaves that have a mask."""
        found = {}
        for name in (*how.columns, *how.rest):
            if name not in self.weights:
                continue
            mask, sites = self.weights[name], how.sites.found.get(name, ())
            if direct(sites):
                used = layout(sites[0], jnp.asarray(mask.reshape(sites[0].shape)))
                mask = np.swapaxes(np.asarray(used), 1, 2)
            found[name] = np.flatnonzero(mask).astype(np.int32)
        return found

    @property
    def n(self) -> int:
        return examples(self.x)

    def leaves(self) -> dict[str, Any]:
        """Every leaf by name."""
        return dict(zip(self.prepared.sites.names, jax.tree.leaves(self.params)))

    def shown(self, name: str) -> str:
        """A leaf's name as its owner knows it."""
        return name.removeprefix(self.prefix)

    def form(self) -> Form:
        """In which form each counted leaf's part is taken."""
        return self.prepared.program(("form", self.counted), lambda: _verified(self))

    def tell(self, how: Form) -> None:
        """Warns, once a function, of leaves that take every example's own backward passes."""
        new = [name for name in how.rest if name not in self.prepared.told]
        self.prepared.told.update(new)
        if not new:
            return
        said = [f"{self.shown(name)!r} ({how.sites.why.get(name, UNREACHED)})" for name in new[:5]]
        more = f" and {len(new) - 5} more" if len(new) > 5 else ""
        warnings.warn(
            f"the kernel takes every example's own backward passes for {', '.join(said)}{more}, "
            "which is slow: ntk.plan tells what each leaf takes, and counted= leaves some out.",
            DifferentiatedWarning,
            stacklevel=_outside(),
        )

    def factors(self, how: Form) -> Any:
        """The compiled function (params, x, outputs, kept) -> `Factors`."""
        run = lambda *given: factors(how, self.prepared.f, *given)
        key = ("factors", how.products, how.columns, how.rest)
        return self.prepared.program(key, lambda: jax.jit(canonical(run)))


def _outside() -> int:
    """How far up the caller of the package is, as ``stacklevel`` of who asks."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == "secateur":
        level, frame = level + 1, frame.f_back
    return level


def _verified(about: Subject) -> Form:
    """The form, with every leaf demoted whose sites do not give its gradient.

    Of two examples, at noisy parameters (so that a layer of zeros hides nothing), the gradients of
    one combination of the outputs are compared with JAX's own, to 1e-3 of their largest entry.

    Raises:
        SecateurError: where all of them are 0.
    """
    f, sites = about.prepared.f, about.prepared.sites
    rng = np.random.default_rng(0)

    def noisy(name: str, leaf: Any) -> np.ndarray:
        a = np.asarray(leaf)
        if name not in about.counted:  # a statistic, perhaps, that must not turn negative
            return a
        spread = 0.1 * (np.std(a) if a.size > 1 and np.std(a) > 0 else 1.0)
        return (a + spread * rng.standard_normal(a.shape)).astype(a.dtype)

    leaves = [noisy(*item) for item in about.leaves().items()]
    params = jax.tree.unflatten(jax.tree.structure(about.params), leaves)
    two = jax.tree.map(lambda a: a[:2], about.x)
    row = rng.standard_normal(about.outputs).astype(about.dtype)
    while True:
        how = form(sites, about.params, resized(about.x, 2), f, about.counted)
        found, right = jax.jit(lambda p, x, row, how=how: gradients(how, f, p, x, row))(
            params, two, row
        )
        if not all(np.all(np.isfinite(g)) for g in right.values()) and params is not about.params:
            params = about.params
            continue
        size = {name: float(np.max(np.abs(g), initial=0)) for name, g in right.items()}
        if max(size.values()) == 0:
            raise SecateurError(
                "the outputs have no derivative by any counted leaf (a decision, or a stopped "
                "gradient?), so that their kernel is 0."
            )
        wrong = {
            name
            for name, g in found.items()
            if not np.max(np.abs(g - right[name]), initial=0) <= 1e-3 * size[name]
        }
        if not wrong:
            return how
        said = "what was read of it does not give its gradient"
        sites = replace(
            sites,
            found={name: s for name, s in sites.found.items() if name not in wrong},
            why=sites.why | dict.fromkeys(wrong, said),
        )


def examples(x: Any) -> int:
    return int(np.shape(jax.tree.leaves(x)[0])[0])


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(a), str(a.dtype)) for a in leaves)


_PREPARED: OrderedDict[Any, Prepared] = OrderedDict()  # of the functions that were asked last
_REMEMBERED = 32


@functools.lru_cache(maxsize=64)
def _of_network(network: Network) -> Function:
    def f(both: dict[str, Any], x: Any) -> jax.Array:
        return network.apply(both["params"], both["stats"], x)

    return f


def subject(
    f: Function | Network,
    params: Any,
    x: Any,
    *,
    stats: Any = None,
    mask: Any = None,
    masked_point: bool = True,
    counted: Callable[[str], bool] | None = None,
) -> Subject:
    """Checks what was given, and reads the function.

    Args:
        f: a `Network`, taken in evaluation mode, or ``f(params, x) -> (n, C)`` of any framework.
        params: a tree of arrays.
        x: (n, ...), or a tree of such arrays.
        stats: the batch statistics of a network.
        mask: the tree of ``params`` with 0 and 1 (or booleans) where weights are masked, None where
            all of a leaf counts.
        masked_point: derivatives are taken at ``mask * params``; else at ``params``, and the mask
            only says which of them count.
        counted: which leaves count, by name; all by default.

    Raises:
        SecateurError: for a mask of another structure, outputs that are no (n, C) of floats,
            examples that are not independent, or leaves that are no floats.
    """
    prefix = ""
    params, x = _strong(params, "params"), _strong(x, "x")
    _some(params, x, counted)
    masked = _masked(params, mask)
    if isinstance(f, Network):
        _sized(f, x)
        f, prefix = _of_network(f), "params/"
        params = {"params": params, "stats": {} if stats is None else stats}
    elif stats is not None:
        raise SecateurError("stats belong to a Network; of a function, close over them.")
    names = names_of(params)
    leaves = dict(zip(names, jax.tree.leaves(params)))
    weights = {prefix + name: m for name, m in masked.items()}
    at = dict(leaves)
    if masked_point:
        at |= {name: at[name] * jnp.asarray(m, at[name].dtype) for name, m in weights.items()}
    params = jax.tree.unflatten(jax.tree.structure(params), [at[name] for name in names])
    wanted = [name for name in names if name.startswith(prefix)]
    floats = [name for name in wanted if jnp.issubdtype(at[name].dtype, jnp.floating)]
    if counted is not None:
        floats = [name for name in floats if counted(name.removeprefix(prefix))]
        if not floats:
            raise SecateurError(
                "no leaf is counted; the leaves are "
                + ", ".join(name.removeprefix(prefix) for name in wanted)
            )
    try:
        out = jax.eval_shape(f, params, x)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(x))
        raise SecateurError(
            f"the function cannot take these parameters with examples of shape {shapes} ({first}); "
            "call it on them yourself first."
        ) from error
    if not hasattr(out, "shape") or len(out.shape) != 2 or out.shape[0] != examples(x):
        shape = getattr(out, "shape", type(out).__name__)
        raise SecateurError(
            f"the function gives {shape} for {examples(x)} examples, expected (n, outputs): one "
            "row an example."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise SecateurError(
            f"the outputs are {out.dtype}, which have no derivative; give logits, not decisions."
        )
    prepared = _prepare(f, params, x, frozenset(name for name in names if name not in wanted))
    reached = tuple(k for k in floats if prepared.sites.why.get(k) != UNREACHED)
    if not reached:
        raise SecateurError("no counted leaf reaches the outputs, so that their kernel is 0.")
    _check_independent(prepared, params, x)
    return Subject(prepared, params, x, reached, weights, prefix, out.shape[1], out.dtype)


def _strong(tree: Any, name: str) -> Any:
    """Arrays of their own dtype: a Python number would take that of its neighbours."""
    try:
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), tree)
    except TypeError as error:
        raise SecateurError(
            f"{name} holds what is no array ({str(error).splitlines()[0]}); give a tree of arrays: "
            "of an Equinox module equinox.partition takes them apart."
        ) from error


def _some(params: Any, x: Any, counted: Any) -> None:
    """Nothing, or a SecateurError where there is nothing to take a kernel of."""
    if not jax.tree.leaves(params):
        raise SecateurError("params hold no array; give a tree of arrays.")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise SecateurError(
            f"x holds arrays of {sorted(sizes)} examples, expected one number above 0: (n, ...)."
        )
    if counted is not None and not callable(counted):
        raise SecateurError(
            f"counted is a function of a leaf's name, as name.startswith, not {counted!r}."
        )
    for leaf in jax.tree.leaves(x):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise SecateurError("x holds NaN or infinity; its examples have no kernel.")


def _sized(network: Network, x: Any) -> None:
    if np.shape(x)[1:] != network.input_shape:
        raise SecateurError(
            f"x is {np.shape(x)}, expected (n, {', '.join(map(str, network.input_shape))}) for "
            f"{network.name}."
        )


def _masked(params: Any, mask: Any) -> dict[str, np.ndarray]:
    """Leaf -> what each weight counts, where the mask has the leaf."""
    if mask is None:
        return {}
    none = lambda node: node is None
    found = jax.tree_util.tree_flatten_with_path(mask, is_leaf=none)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    masks = {name(path): leaf for path, leaf in found}
    shapes = dict(zip(names_of(params), map(np.shape, jax.tree.leaves(params))))
    for leaf in masks:
        if leaf not in shapes and masks[leaf] is not None:
            raise SecateurError(
                f"the mask has a leaf {leaf!r} that the parameters have not; they have "
                f"{', '.join(list(shapes)[:8])}."
            )
    for leaf, shape in shapes.items():
        if leaf not in masks:
            raise SecateurError(
                f"the mask lacks {leaf!r}; give every leaf of the parameters its mask, or None "
                "where nothing of it is masked."
            )
        if masks[leaf] is not None and np.shape(masks[leaf]) != shape:
            raise SecateurError(
                f"the mask of {leaf!r} is {np.shape(masks[leaf])}, expected {shape} as the leaf is."
            )
    held = {k: np.asarray(m, bool) for k, m in masks.items() if m is not None}
    for leaf, m in held.items():
        if not np.array_equal(m, np.asarray(masks[leaf])):
            raise SecateurError(f"the mask of {leaf!r} holds other values than 0 and 1.")
    return held


def _prepare(f: Function, params: Any, x: Any, fixed: frozenset[str]) -> Prepared:
    try:
        key = (f, _shapes(params), _shapes(resized(x, 2)))
        known = _PREPARED.get(key)
    except TypeError:  # what has no hash is read each time
        return Prepared(f, read_sites(f, params, x, fixed))
    if known is None:
        known = _PREPARED[key] = Prepared(f, read_sites(f, params, x, fixed))
        if len(_PREPARED) > _REMEMBERED:
            _PREPARED.popitem(last=False)
    _PREPARED.move_to_end(key)
    return known


def _nudged(params: Any) -> Any:
    """Each leaf of floats times a factor of its own, from 1 to 1.1."""
    leaves, tree = jax.tree.flatten(params)
    factors = 1 + 0.1 * (np.arange(1, len(leaves) + 1) * 0.618 % 1)
    floats = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    moved = [
        leaf * jnp.asarray(f, leaf.dtype) if of else leaf
        for leaf, f, of in zip(leaves, factors, floats)
    ]
    return jax.tree.unflatten(tree, moved)


def _check_independent(prepared: Prepared, params: Any, x: Any) -> None:
    """Row k of the outputs must come from example k alone."""
    n = examples(x)
    run = prepared.program("outputs", lambda: jax.jit(prepared.f))
    few, first = (jax.tree.map(lambda a, k=k: a[:k], x) for k in (min(n, 3), 1))
    if n == 1:  # beside itself, twice as large where that is a number
        twice = lambda a: a + a if jnp.issubdtype(a.dtype, jnp.floating) else a
        few = jax.tree.map(lambda a: jnp.concatenate([a, twice(a)]), first)

    def differ(params: Any) -> bool:
        together, alone = (np.asarray(run(params, part)[0]) for part in (few, first))
        if not np.all(np.isfinite(together)):
            raise SecateurError("the outputs are not finite, so that they have no kernel.")
        scale = max(float(np.max(np.abs(together))), 1e-30)
        return float(np.max(np.abs(together - alone))) > 1e-3 * scale

    # Outputs that are centred are rounding where they start; a little away they are outputs.
    if differ(params) and differ(_nudged(params)):
        raise SecateurError(
            "the outputs of an example depend on the others in its batch (batch statistics, or "
            "noise shared by a batch); take the function in evaluation mode, with fixed statistics."
        )
