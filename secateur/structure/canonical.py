"""Every convolution of a finished program in the one form that XLA's CPU backend runs fast.

The backend has fast routines for channels-last images, (N, H, W, C) with kernels (kh, kw, in, out),
and turns other orders into this one, but not inside the body of a loop: there the two gradients of
a convolution, which autodiff always writes in other orders, fall to a naive loop nest, 40 and 150
times slower. And max-pooling's gradient is a scalar loop everywhere.

`canonical` traces a step, *after* differentiation and vmap, and evaluates the traced program again,
equation by equation, with each convolution between explicit transpositions and the gradient of
non-overlapping max-pooling as strided slices. It descends into calls, which it dissolves, and into
the bodies of loops and branches, which it builds again. The numbers are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

from secateur.core.errors import SecateurError
from secateur.structure.convolutions import convolution, form

# Dissolved where they hold something to rewrite: name of the primitive -> its parameter.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def canonical(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its convolutions and poolings as XLA's CPU backend likes them.

    It comes last, outside `grad` and `vmap`; only `jit` stands around it, and donation belongs
    there. A program without convolution or max-pooling's gradient is left untouched, and so is
    everything where the default backend is no CPU. Applying it twice is applying it once.

    Args:
        step: any function of arrays to arrays (trees of them).

    Raises:
        SecateurError: from the result, where it is differentiated (the calls that it dissolved
            carried derivative rules, so that derivatives would be silently wrong, and slow), or
            given a leaf that is no array.
    """

    @wraps(step)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        if jax.default_backend() != "cpu":
            return step(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        _check(leaves)

        def flat(*leaves: Any) -> Any:
            args, kwargs = jax.tree.unflatten(structure, leaves)
            return step(*args, **kwargs)

        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        walk = _Walk()
        if not walk.holds(closed.jaxpr, _is_target):
            return step(*args, **kwargs)
        evaluate: Any = jax.custom_jvp(lambda *leaves: walk.closed(closed, leaves))
        evaluate.defjvp(_refuse)
        return jax.tree.unflatten(jax.tree.structure(shapes), evaluate(*leaves))

    return rewritten


def _refuse(primals: Any, tangents: Any) -> Any:
    raise SecateurError(
        "a function made by `canonical` was differentiated, which would give wrong gradients; "
        "differentiate first and apply canonical last: jax.jit(canonical(jax.grad(f)))."
    )


def _check(leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        try:
            jax.typeof(leaf)
        except TypeError as error:
            raise SecateurError(
                f"canonical takes functions of arrays, and got a {type(leaf).__name__} among the "
                "arguments; close over what is no array (of an Equinox module: partition it first)."
            ) from error


def _is_target(eqn: Any) -> bool:
    return eqn.primitive.name in ("conv_general_dilated", "select_and_scatter_add")


def _is_wrong(eqn: Any) -> bool:
    """Whether the equation is one that the pass rewrites."""
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated":
        if params.get("out_sharding") is not None:
            return False
        return tuple(params["dimension_numbers"]) != tuple(form(eqn.invars[0].aval.ndim))
    return name == "select_and_scatter_add" and _splits(params)


def _splits(params: Any) -> bool:
    """Whether the windows of a max-pooling tile the array, or a first part of it."""
    return (
        params["select_prim"].name == "ge"
        and tuple(params["window_dimensions"]) == tuple(params["window_strides"])
        and not np.any(params["padding"])
    )


class _Walk:
    """One evaluation of a program; remembers what its sub-programs hold."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, Any], bool] = {}

    def holds(self, jaxpr: Jaxpr, test: Callable[[Any], bool]) -> bool:
        """Whether an equation that passes the test stands in a program, at any depth."""
        known = self.known.get((jaxpr, test))
        if known is None:
            known = any(
                test(eqn) or any(self.holds(s, test) for s in jaxprs_in_params(eqn.params))
                for eqn in jaxpr.eqns
            )
            self.known[jaxpr, test] = known
        return known

    def closed(self, closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        return self.open(closed.jaxpr, closed.consts, args)

    def open(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs of a program, with what is wrong in it rewritten."""
        env: dict[Any, Any] = {}
        read = lambda atom: atom.val if isinstance(atom, Literal) else env[atom]
        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        left = _last_uses(jaxpr)
        for number, eqn in enumerate(jaxpr.eqns):
            with eqn.ctx.manager:
                outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
            for variable in left.get(number, ()):
                env.pop(variable, None)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Any]) -> Sequence[Any]:
        name, params = eqn.primitive.name, eqn.params
        if _is_wrong(eqn):
            rewrite = convolution if name == "conv_general_dilated" else _unpool
            return [rewrite(args[0], args[1], params)]
        if any(self.holds(inner, _is_wrong) for inner in jaxprs_in_params(params)):
            if name in CALLS:
                inner = params[CALLS[name]]
                closed = isinstance(inner, ClosedJaxpr)
                return self.closed(inner, args) if closed else self.open(inner, (), args)
            if name in ("scan", "while", "cond"):
                return getattr(self, f"_{name}")(eqn, args)
        return _bind(eqn.primitive, params, args)

    def _scan(self, eqn: Any, args: list[Any]) -> Sequence[Any]:
        p = eqn.params
        start = p["num_consts"] + p["num_carry"]
        consts, carry, xs = args[: p["num_consts"]], args[p["num_consts"] : start], args[start:]

        def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            outs = self.closed(p["jaxpr"], [*consts, *carry, *xs])
            return outs[: p["num_carry"]], outs[p["num_carry"] :]

        carry, ys = lax.scan(body, carry, xs, p["length"], p["reverse"], p["unroll"])
        return [*carry, *ys]

    def _while(self, eqn: Any, args: list[Any]) -> Sequence[Any]:
        # Not lax.while_loop, which refuses the batched predicate of a vmapped loop.
        p = dict(eqn.params)
        of_cond, of_both = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        avals = [v.aval for v in eqn.invars]
        for part, held in (("cond", avals[:of_cond]), ("body", avals[of_cond:of_both])):
            inner = p[f"{part}_jaxpr"]
            run = lambda *args, inner=inner: self.closed(inner, args)
            p[f"{part}_jaxpr"] = jax.make_jaxpr(run)(*map(_struct, [*held, *avals[of_both:]]))
        return _bind(eqn.primitive, p, args)

    def _cond(self, eqn: Any, args: list[Any]) -> Sequence[Any]:
        index, *operands = args
        branches = [
            lambda *operands, closed=closed: self.closed(closed, operands)
            for closed in eqn.params["branches"]
        ]
        return lax.switch(index, branches, *operands)


def _last_uses(jaxpr: Jaxpr) -> dict[int, list[Any]]:
    """Equation -> variables that nothing reads after it, so that they may go (eager memory)."""
    last: dict[Any, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        for atom in (*eqn.invars, *eqn.outvars):
            if not isinstance(atom, Literal):
                last[atom] = number
    kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    ends: dict[int, list[Any]] = {}
    for variable, number in last.items():
        if variable not in kept:
            ends.setdefault(number, []).append(variable)
    return ends


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _bind(primitive: Any, params: Any, args: Sequence[Any]) -> Sequence[Any]:
    """The equation as it is. Some versions of JAX split parameters into functions and others."""
    found = primitive.get_bind_params(params)
    functions, params = found if isinstance(found, tuple) else ((), found)
    outs = primitive.bind(*functions, *args, **params)
    return outs if primitive.multiple_results else [outs]


# ---- pooling ------------------------------------------------------------------------------------


def _unpool(source: Any, operand: Any, params: Any) -> Any:
    """max-pooling's gradient for ``operand``: each window's goes to the first of equal maxima.

    Slices and a chain of ``where(a >= b, a, b)``: ties, NaN and -inf are decided as by the
    primitive, whose comparison runs through the window in the same order.
    """
    window = tuple(params["window_dimensions"])

    def pool(x: Any) -> Any:
        places = [
            lax.slice(
                x,
                at,
                tuple(a + (n - 1) * w + 1 for a, n, w in zip(at, source.shape, window)),
                window,
            )
            for at in np.ndindex(window)
        ]
        return reduce(lambda a, b: jnp.where(a >= b, a, b), places)

    return jax.vjp(pool, operand)[1](source)[0]
