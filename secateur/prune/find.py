"""`find`: a network, a method and a density in, a ticket out; all rounds are one program."""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup, nearest
from secateur.core.keys import Key, fold
from secateur.core.keys import key as stream
from secateur.core.network import Network, Stats, check_fit, check_network
from secateur.core.trees import Mask, Params, fingerprint, flatten, ones_mask, unflatten
from secateur.prune.criterion import Construction, Criterion, Progress
from secateur.prune.examples import Source, gather
from secateur.prune.methods import METHODS, described, method
from secateur.prune.parity import PARITIES, Parity
from secateur.prune.problem import Problem
from secateur.prune.schedules import counts, densities
from secateur.prune.scopes import Given, NofM, Scope, scope
from secateur.prune.select import count_true, unranked
from secateur.prune.ticket import Provenance, Ticket, ticket, versions
from secateur.structure.canonical import canonical
from secateur.structure.convolutions import apart
from secateur.train.losses import LOSSES, Loss

DENSITY = 0.1  # where neither the caller nor the scope nor the schedule says

Prunable = Callable[[str], bool] | Sequence[str] | None
Show = Progress | bool | None


class Carry(NamedTuple):
    """The state between two rounds."""

    mask: Mask
    bad: jax.Array  # int32 (layers,): scores without a rank, in the first round that had any
    bad_round: jax.Array  # int32 (): that round, or -1
    revived: jax.Array  # int32 (): weights that came back, over all rounds


@dataclass(frozen=True)
class Plan:
    """What is asked of a network: everything but its weights and the key.

    Attributes:
        order: prunable leaves in the order in which ties are broken and layers are listed.
        counts: int32 (rounds, groups): what each group of the scope keeps after each round.
    """

    name: str
    criterion: Criterion | Construction
    scope: Scope
    order: tuple[str, ...]
    counts: np.ndarray
    ties: str
    revival: bool
    problem: Problem
    needs_keep: int
    provenance: Provenance


def declared_order(network: Network, prunable: Mask) -> tuple[str, ...]:
    """The prunable leaves in the order in which the network's ``init`` makes them.

    JAX sorts the keys of dicts, which puts ``conv_10`` before ``conv_2``; the dict that ``init``
    returns still knows.
    """
    found: list[str] = []

    def walk(tree: Any, path: str) -> None:
        if isinstance(tree, Mapping):
            for k, v in tree.items():
                walk(v, f"{path}/{k}" if path else str(k))
        else:
            found.extend(f"{path}/{k}" if k else path for k in flatten(tree))

    def init(key: Key) -> Any:
        params, stats = network.init(key)
        walk(params, "")
        return params, stats

    jax.eval_shape(init, jax.random.key(0))
    wanted = [name for name, m in flatten(prunable).items() if m is not None]
    places = {name: i for i, name in reversed(list(enumerate(found)))}
    return tuple(sorted(wanted, key=lambda name: places.get(name, len(found))))


_STATIC = ("criterion", "scope", "order", "ties", "revival")


def _rounds(
    criterion: Criterion,
    scope: Scope,
    order: tuple[str, ...],
    ties: str,
    revival: bool,
    problem: Problem,
    stats: Stats,
    params: Params,
    carry: Carry,
    counts: jax.Array,
    key: Key,
    start: jax.Array,
    stop: jax.Array,
) -> Carry:
    """Rounds ``start`` to ``stop`` of a criterion: score, rank, cut.

    A round's key depends on its number alone, so where the rounds are divided makes no difference.

    Args:
        counts: int32 (at least ``stop``, groups).
    """
    problem = replace(problem, stats=stats)

    def round_(k: jax.Array, carry: Carry) -> Carry:
        scoring, tying = jax.random.split(jax.random.fold_in(key, k))
        scores = flatten(criterion.score(problem, params, carry.mask, scoring))
        before = flatten(carry.mask)
        for name in order:
            found = scores.get(name)
            if found is None or found.shape != before[name].shape:
                raise SecateurError(
                    f"{type(criterion).__name__} scored {name} with "
                    f"{None if found is None else found.shape}; a score for each of its weights "
                    f"{before[name].shape} was expected."
                )
        alive = [jnp.ones_like(before[n]) if revival else before[n] for n in order]
        ranked = apart([scores[n] for n in order])
        bad = jnp.stack([unranked(s, a) for s, a in zip(ranked, alive)])
        chosen = dict(zip(order, scope.choose(ranked, alive, counts[k], tying, ties)))
        first = (carry.bad_round < 0) & (jnp.sum(bad) > 0)
        back = sum(count_true(chosen[n] & ~before[n]) for n in order) if revival else 0
        return Carry(
            unflatten({**before, **chosen}, carry.mask),
            jnp.where(first, bad, carry.bad),
            jnp.where(first, k, carry.bad_round),
            carry.revived + back,
        )

    return jax.lax.fori_loop(start, stop, round_, carry)


@partial(jax.jit, static_argnames=_STATIC)
def run_rounds(
    criterion: Criterion,
    scope: Scope,
    order: tuple[str, ...],
    ties: str,
    revival: bool,
    problem: Problem,
    *data: Any,
) -> Carry:
    """`_rounds` as one compiled program; everything but what is named first is data."""
    run = partial(_rounds, criterion, scope, order, ties, revival)
    return canonical(run)(problem, *data)


@partial(jax.jit, static_argnames=_STATIC)
def run_lanes(
    criterion: Criterion,
    scope: Scope,
    order: tuple[str, ...],
    ties: str,
    revival: bool,
    problem: Problem,
    *data: Any,
) -> Carry:
    """`run_rounds` with a leading lane axis on statistics, weights, state and key."""
    run = partial(_rounds, criterion, scope, order, ties, revival)
    lanes = jax.vmap(run, in_axes=(None, 0, 0, 0, None, 0, None, None))
    return canonical(lanes)(problem, *data)


def _begin(mask: Mask, layers: int) -> Carry:
    return Carry(
        jax.tree.map(jnp.asarray, mask),
        jnp.zeros(layers, jnp.int32),
        jnp.int32(-1),
        jnp.int32(0),
    )


def _check(plan: Plan, carry: Carry) -> None:
    """The one sentence about scores without a rank."""
    rounds, bad = np.atleast_1d(carry.bad_round), np.asarray(carry.bad).reshape(-1, len(plan.order))
    for lane in np.flatnonzero(rounds >= 0):
        where = [f"{name} ({n:,})" for name, n in zip(plan.order, bad[lane]) if n]
        raise SecateurError(
            f"scores of {plan.name} are NaN or infinite in {', '.join(where)}, round "
            f"{rounds[lane] + 1}, so they have no rank; look for weights that are not finite, or "
            "score in float64."
        )


def _drive(plan: Plan, call: Callable[[Carry, int, int], Carry], carry: Carry, show: Show) -> Carry:
    """All rounds, a few at a time: so many that a call takes about a third of a second."""
    rounds, done, at_once = len(plan.counts), 0, 1
    with showing(show, plan.name, rounds) as progress:
        while done < rounds:
            began = time.perf_counter()
            stop = min(rounds, done + at_once)
            carry = jax.block_until_ready(call(carry, done, stop))
            if done and time.perf_counter() - began < 0.15:  # the first call also compiles
                at_once *= 2
            done = stop
            _check(plan, carry)
            progress(done, rounds)
    return carry


@contextmanager
def showing(show: Show, label: str, rounds: int) -> Iterator[Progress]:
    """Where progress goes: the caller's function, a bar where there is a terminal, or nowhere."""
    if callable(show):
        yield show
        return
    if show is False or rounds == 1 or not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _padded(counts: np.ndarray) -> jax.Array:
    """With at least 128 rows: programs of one round and of a hundred are one."""
    rows = max(128, 1 << (len(counts) - 1).bit_length())
    return jnp.asarray(np.pad(counts, ((0, rows - len(counts)), (0, 0)), mode="edge"))


def may_be_pruned(network: Network, params: Params, prunable: Prunable) -> Mask:
    """The mask of all weights that a method may prune.

    Args:
        prunable: None for the network's own choice; a predicate on names of leaves, which only
            narrows that choice; or names (or patterns, ``"*/shortcut/*"``) to leave out of it.

    Raises:
        SecateurError: for a name that is no prunable leaf, or where nothing is left.
    """
    mask = ones_mask(network.prunable(params))
    flat = flatten(mask)
    names = [k for k, m in flat.items() if m is not None]
    if not names:
        raise SecateurError(
            f"nothing can be pruned in {network.name}: none of its leaves "
            f"({', '.join(list(flat)[:5])}, ...) is a kernel; say which are with "
            "Network(prunable=...)."
        )
    if prunable is None:
        return mask
    if callable(prunable):
        left = {k for k in names if prunable(k)}
    else:
        out = [prunable] if isinstance(prunable, str) else list(prunable)
        for pattern in out:
            if not fnmatch.filter(names, pattern):
                raise SecateurError(
                    f"{pattern!r} is no prunable leaf of {network.name}. {nearest(pattern, names)}"
                )
        left = {k for k in names if not any(fnmatch.fnmatch(k, p) for p in out)}
    if not left:
        raise SecateurError(
            f"nothing is left to prune in {network.name}: prunable= leaves out all of "
            f"{', '.join(names)}."
        )
    return unflatten({k: m if k in left else None for k, m in flat.items()}, mask)


def plan(
    network: Network,
    params: Params,
    data: Any = None,
    method: str | Criterion | Construction = "snip",
    density: float | None = None,
    *,
    scope: str | Scope | None = None,
    schedule: str | Sequence[float] | None = None,
    rounds: int | None = None,
    key: Key,
    loss: str | Loss | None = None,
    revival: bool | None = None,
    keep_at_least: int = 0,
    prunable: Prunable = None,
    parity: str | None = None,
    count: str | None = None,
    ties: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Plan, Mask]:
    """Everything that `find` settles before it computes, and the mask of all prunable weights."""
    name, criterion, rules, followed = _method(network, method, parity, dict(options or {}))
    constructs = isinstance(criterion, Construction)
    mask = may_be_pruned(network, params, prunable)
    order = declared_order(network, mask)
    leaves = flatten(mask)
    shapes = {k: np.shape(leaves[k]) for k in order}
    total = sum(leaves[k].size for k in order)

    row = METHODS.get(name)
    if isinstance(criterion, Construction):
        for what, given in (
            ("scope", scope), ("schedule", schedule), ("rounds", rounds), ("revival", revival),
            ("ties", ties), ("keep_at_least", keep_at_least or None),
        ):  # fmt: skip
            if given is not None:
                raise SecateurError(
                    f"{name} makes its mask in a way of its own, so {what} means nothing to it; "
                    "leave it out."
                )
        where = _scope("everywhere", 0)
        steps = densities("one-shot", DENSITY if density is None else density, 1)
        schedule = "one-shot"
    else:
        where = _scope(
            scope or (row.scope if row and row.scope else None) or criterion.scope, keep_at_least
        )
        if schedule is None:
            schedule = (row.schedule if row else None) or rules.schedule or criterion.schedule
            if rounds is None and isinstance(schedule, str):
                rounds = 1 if schedule == "one-shot" else criterion.rounds
            if schedule == "one-shot" and rounds and rounds > 1:
                schedule = "exponential"
        elif rounds is None and isinstance(schedule, str) and schedule != "one-shot":
            rounds = criterion.rounds if criterion.rounds > 1 else None
            if rounds is None:
                raise SecateurError(
                    f"{name} prunes in one round; say how many rounds the {schedule} schedule has."
                )
        fixed = where.total(shapes) if isinstance(where, Given | NofM) else None
        if density is None and isinstance(schedule, str):
            density = DENSITY if fixed is None else fixed / total
        steps = densities(schedule, density, rounds)
        if fixed is not None and abs(steps[-1] * total - fixed) > len(order):
            raise SecateurError(
                f"the scope keeps {fixed:,} of {total:,} weights, density {fixed / total:.4g}, not "
                f"density={steps[-1]:g}; leave density out."
            )
    rule = count or rules.count or "nearest"
    kept = counts(steps, total, rule)
    table = where.plan(shapes, kept, steps)

    criterion_loss = loss if loss is not None else rules.loss or "cross_entropy"
    loss_name = criterion_loss if isinstance(criterion_loss, str) else _name_of(criterion_loss)
    known = {**LOSSES, **rules.losses}
    loss_of = lookup("loss", criterion_loss, known) if isinstance(criterion_loss, str) else loss
    rounds_done = len(table)
    source = gather(network, params, data, name, criterion, rounds_done, key)
    problem = Problem(
        network, {}, source.images, source.labels, loss_of, source.prepare  # type: ignore[arg-type]
    )  # fmt: skip
    tied = str(ties or rules.ties or getattr(criterion, "ties", "index"))
    back = revival if revival is not None else rules.revival
    back = getattr(criterion, "revival", False) if back is None else back
    provenance = Provenance(
        method=name,
        title=criterion.title,
        source=criterion.source,
        options=described(criterion),
        network=network.name,
        asked=steps[-1],
        scope={} if constructs else {"name": _scope_name(where), **described(where)},
        schedule={} if constructs else {
            "name": schedule if isinstance(schedule, str) else "given", "densities": steps,
        },
        rounds=rounds_done,
        kept_by_round=[] if constructs else kept,
        ties=tied,
        count=rule,
        revival=bool(back),
        data=source.record,
        loss=loss_name if "labels" in criterion.needs else None,
        bn=getattr(criterion, "bn", None),
        layers=[{"name": n} for n in order],
        parity=followed,
    )  # fmt: skip
    return (
        Plan(name, criterion, where, order, table, tied, bool(back), problem, kept[-1], provenance),
        mask,
    )


_scope = scope  # the argument of `find` and `plan` has the same name


def _scope_name(found: Scope) -> str:
    from secateur.prune.scopes import SCOPES

    names = {kind: name for name, kind in SCOPES.items()}
    return names.get(type(found), type(found).__name__)


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _method(
    network: Network,
    given: str | Criterion | Construction,
    parity: str | None,
    options: dict[str, Any],
) -> tuple[str, Criterion | Construction, Parity, dict[str, Any] | None]:
    """Name, criterion, and the rules and record of the published code that is followed."""
    rules = lookup("published code", parity, PARITIES) if parity else Parity("")
    if isinstance(given, str):
        kept = rules.options_for(given, network) if parity else {}
        made = method(given, **{**kept, **options})
        name = given
    else:
        if not isinstance(given, Criterion | Construction):
            raise SecateurError(
                f"method is a name, a Criterion or a Construction, not a {type(given).__name__}."
            )
        kept = {}
        known = [f.name for f in dataclasses.fields(given)]
        for option in options:
            lookup(f"option of {type(given).__name__}", option, dict.fromkeys(known))
        made, name = replace(given, **options), type(given).__name__
    if not parity:
        return name, made, rules, None
    record = {"code": parity, "source": rules.source, "options": kept, **rules.told()}
    return name, made, rules, record


def _keys(seed: int | Key) -> tuple[Key, Key, int | None]:
    """Where the weights and where the scores are drawn from; the seed, if it is one."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return fold(seed, "initial"), fold(seed, "find"), None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise SecateurError(
            f"seed is a whole number or a key of jax.random.key, not {type(seed).__name__}."
        )
    return stream(int(seed), "initial"), stream(int(seed), "find"), int(seed)


def _key_data(key: Key) -> list[int]:
    return [int(x) for x in np.asarray(jax.random.key_data(key)).ravel()]


def begin(
    network: Network, seed: int | Key, params: Params | None, stats: Stats | None
) -> tuple[Params, Stats, dict[str, Any]]:
    """The weights and statistics to score, and where they came from.

    Raises:
        SecateurError: statistics without weights, or weights of another structure or shape.
    """
    check_network(network)
    initial, _, number = _keys(seed)
    if params is None:
        if stats is not None:
            raise SecateurError("stats belong to params; give both, or neither.")
        params, stats = network.init(initial)
        origin: dict[str, Any] = {"from": "network.init", "seed": number}
        if number is None:
            origin["key"] = _key_data(initial)
    else:
        origin = {"from": "given"}
        check_fit(network, params)
        if stats is None:
            if flatten(jax.eval_shape(network.init, initial)[1]):
                raise SecateurError(
                    f"{network.name} has batch statistics; give stats= together with params=."
                )
            stats = {}
    origin["sha256"] = fingerprint(params)
    return params, stats, origin


def find(
    network: Network,
    data: Any = None,
    method: str | Criterion | Construction = "snip",
    density: float | None = None,
    *,
    scope: str | Scope | None = None,
    schedule: str | Sequence[float] | None = None,
    rounds: int | None = None,
    seed: int | Key = 0,
    params: Params | None = None,
    stats: Stats | None = None,
    loss: str | Loss | None = None,
    revival: bool | None = None,
    keep_at_least: int = 0,
    prunable: Prunable = None,
    parity: str | None = None,
    count: str | None = None,
    ties: str | None = None,
    progress: Show = None,
    **options: Any,
) -> Ticket:
    """Prune a network before training: which weights stay, and where they start.

    What is not said follows the method's paper; the ticket's provenance says what that was.

    Args:
        network: built-in, or a user's own through an adapter.
        data: `Sets` (their training part, normalised as in training), a pair of arrays
            (images, labels), images alone, or any iterable of batches, read until there are enough
            examples. None for methods that need no data.
        method: a name in `methods.METHODS`, or a criterion of one's own.
        density: kept over prunable weights, above 0 and at most 1; 0.1 where nothing says.
        scope: a name in `scopes.SCOPES`, or a `Scope`.
        schedule: a name in `schedules.SCHEDULES`, or the densities after each round.
        rounds: how many, for a named schedule.
        seed: of weights and draws; a whole number or a key.
        params, stats: the weights to score and train; ``network.init`` by the seed where None.
        loss: per example, ``(logits, labels) -> (n,)``, or a name in `train.losses.LOSSES`.
        revival: whether pruned weights compete again in each round.
        keep_at_least: the least that each layer keeps.
        prunable: a predicate on names of leaves, or names or patterns to leave out.
        parity: a published code, in `parity.PARITIES`, whose counts, ties, modes and batches are
            followed instead of the paper's.
        count, ties: rules in `schedules.COUNTS` and `select.TIES`.
        progress: called with (rounds done, of how many); False for silence; by default a bar where
            there is a terminal.
        options: of the method, checked by name and type.

    Raises:
        SecateurError: for unknown names, impossible densities, data that do not fit the network or
            lack what the method needs, a network in which nothing can be pruned, or scores that
            are NaN or infinite, with the layer named.
    """
    weights, statistics, origin = begin(network, seed, params, stats)
    _, key, number = _keys(seed)
    return found(
        network, weights, statistics, origin, number, progress, data, method, density,
        scope=scope, schedule=schedule, rounds=rounds, key=key, loss=loss, revival=revival,
        keep_at_least=keep_at_least, prunable=prunable, parity=parity, count=count, ties=ties,
        options=options,
    )  # fmt: skip


def found(
    network: Network,
    params: Params,
    stats: Stats,
    origin: dict[str, Any],
    number: int | None,
    progress: Show,
    *asking: Any,
    key: Key,
    **settings: Any,
) -> Ticket:
    """`find` at given weights and with the very key that its scores are drawn with.

    Args:
        origin: of the weights, for the provenance. number: the seed, if there was one.
        asking, settings: as for `plan`.
    """
    asked, mask = plan(network, params, *asking, key=key, **settings)
    told = replace(
        asked.provenance, seed=number, key=_key_data(key), start=origin, versions=versions()
    )
    if isinstance(asked.criterion, Construction):
        problem = replace(asked.problem, stats=stats)
        with showing(progress, asked.name, 2) as watch:
            chosen, weights, record = asked.criterion.construct(
                problem, params, mask, asked.needs_keep, key, watch
            )
        return ticket(chosen, weights, stats, replace(told, record=record))
    weights = jax.tree.map(jnp.asarray, params)
    table = _padded(asked.counts)

    def call(carry: Carry, start: int, stop: int) -> Carry:
        return run_rounds(
            asked.criterion, asked.scope, asked.order, asked.ties, asked.revival,
            asked.problem, stats, weights, carry, table, key, jnp.int32(start), jnp.int32(stop),
        )  # fmt: skip

    carry = _drive(asked, call, _begin(mask, len(asked.order)), progress)
    told = replace(told, revived=int(carry.revived))
    return ticket(carry.mask, params, stats, told)


def find_lanes(
    network: Network,
    data: Any = None,
    method: str | Criterion = "snip",
    density: float | None = None,
    *,
    seeds: Sequence[int],
    progress: Show = None,
    **asked: Any,
) -> list[Ticket]:
    """`find` for several seeds as lanes of one program: the tickets of single runs.

    On a GPU many small networks cost about as much as one; on a CPU separate runs are cheaper.

    Args:
        asked: any further argument of `find` but ``params`` and ``stats``.

    Raises:
        SecateurError: as `find`; also for a method that makes its mask in a way of its own, and
            for data that must be drawn from by seed.
    """
    for word in ("params", "stats", "seed"):
        if word in asked:
            raise SecateurError(f"lanes begin at {word} of their own, drawn by seeds=.")
    named = {k: asked.pop(k) for k in list(asked) if k in _NAMED}
    begins = [begin(network, seed, None, None) for seed in seeds]
    keys = [_keys(seed)[1] for seed in seeds]
    settled, mask = plan(
        network, begins[0][0], data, method, density, key=keys[0], options=asked, **named
    )
    if isinstance(settled.criterion, Construction):
        raise SecateurError(f"{settled.name} runs on the host, not in lanes; call find for each.")
    if settled.provenance.data.get("drawn"):
        raise SecateurError(
            "the data are larger than lanes share, so each seed draws its own; call find for each."
        )

    def stacked(*trees: Any) -> Any:
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    weights, statistics = stacked(*(b[0] for b in begins)), stacked(*(b[1] for b in begins))
    key, table = jnp.stack(keys), _padded(settled.counts)

    def call(carry: Carry, start: int, stop: int) -> Carry:
        return run_lanes(
            settled.criterion, settled.scope, settled.order, settled.ties, settled.revival,
            settled.problem, statistics, weights, carry, table, key,
            jnp.int32(start), jnp.int32(stop),
        )  # fmt: skip

    carries = stacked(*(_begin(mask, len(settled.order)) for _ in seeds))
    done = _drive(settled, call, carries, progress)
    made = versions()
    return [
        ticket(
            jax.tree.map(lambda m, i=i: m[i], done.mask),
            begins[i][0],
            begins[i][1],
            replace(
                settled.provenance,
                seed=int(seed),
                key=_key_data(keys[i]),
                start=begins[i][2],
                revived=int(done.revived[i]),
                versions=made,
            ),
        )
        for i, seed in enumerate(seeds)
    ]


_NAMED = (
    "scope", "schedule", "rounds", "loss", "revival", "keep_at_least", "prunable", "parity",
    "count", "ties",
)  # fmt: skip

__all__ = ["Plan", "Source", "find", "find_lanes", "may_be_pruned", "plan", "run_rounds"]
