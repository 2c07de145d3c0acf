"""Sanity controls: what of a ticket matters? Frankle et al., ICLR 2021; Su et al., NeurIPS 2020.

Each control is another ticket, made by key from a given one, that keeps some of what the method
chose and destroys the rest. Where it trains as well as the ticket, that rest did not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.core.keys import Key
from secateur.core.keys import key as stream
from secateur.core.network import Network, Stats
from secateur.core.trees import Mask, Params, fingerprint, map_mask
from secateur.prune.criterion import Construction, Criterion, Scores
from secateur.prune.examples import Cast
from secateur.prune.find import Show, begin, find, found
from secateur.prune.lottery import shuffle_within_layers
from secateur.prune.methods import METHODS, build, load
from secateur.prune.problem import Problem
from secateur.prune.scopes import SCOPES, Given, Scope, SmartRatio
from secateur.prune.ticket import Provenance, Ticket, ticket
from secateur.train.losses import Loss

MOST_NOISE = 10_000  # inputs drawn where a method is scored on noise


@dataclass(frozen=True)
class Changed(Criterion):
    """A criterion of which something is changed; its declarations are those of ``inner``."""

    inner: Criterion

    def __post_init__(self) -> None:
        for name in Criterion.__annotations__:
            object.__setattr__(self, name, getattr(self.inner, name))

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        """What the criterion itself says; the changes below say something else."""
        return self.inner.score(problem, params, mask, key)


@dataclass(frozen=True)
class Inverted(Changed):
    """-s: what the method would keep goes first, in every round.

    The code of Synaptic-Flow and NTK-SAP inverts to 1/s, which keeps zeros (NaN) and disorders
    signed scores; the negative does neither.
    """

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        scores = self.inner.score(problem, params, mask, key)
        return map_mask(lambda m, s: None if m is None else -s, mask, scores)


@dataclass(frozen=True)
class OnRandomLabels(Changed):
    """The criterion, with labels drawn uniformly from all classes by ``words`` of a key."""

    words: tuple[int, ...] = ()

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        if problem.labels is not None:
            drawn = jax.random.randint(
                _key(self.words), problem.labels.shape, 0, problem.network.outputs
            )
            problem = replace(problem, labels=drawn.astype(problem.labels.dtype))
        return self.inner.score(problem, params, mask, key)


@dataclass(frozen=True)
class OnNoise(Changed):
    """The criterion, with independent normals for inputs and labels as they are."""

    words: tuple[int, ...] = ()

    def score(self, problem: Problem, params: Params, mask: Mask, key: Key) -> Scores:
        if problem.images is not None:
            n = min(len(problem.images), MOST_NOISE)
            dtype = str(jnp.result_type(*jax.tree.leaves(params)))
            labels = None if problem.labels is None else problem.labels[:n]
            noise = problem.noise(_key(self.words), n, dtype)
            problem = replace(problem, images=noise, labels=labels, prepare=Cast(dtype))
        return self.inner.score(problem, params, mask, key)


def _key(words: tuple[int, ...]) -> Key:
    return jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32))


def _words(key: Key) -> tuple[int, ...]:
    return tuple(int(x) for x in np.asarray(jax.random.key_data(key)).ravel())


@dataclass(frozen=True)
class Asked:
    """What a control may need beside the ticket."""

    ticket: Ticket
    network: Network
    seed: int
    kind: str
    data: Any
    params: Params | None
    stats: Stats | None
    method: Criterion | None
    loss: Loss | None
    progress: Show

    def key(self) -> Key:
        return stream(self.seed, "control", self.kind)

    def start(self) -> tuple[Params, Stats]:
        """The weights that the method scored, before they were masked.

        Raises:
            SecateurError: where they were given to `find` and are not given here, or are others.
        """
        told = self.ticket.provenance.start
        if self.params is not None:
            params, stats, _ = begin(self.network, 0, self.params, self.stats)
        elif told.get("from") == "network.init":
            if told.get("seed") is not None:
                params, stats = self.network.init(stream(told["seed"], "initial"))
            else:
                params, stats = self.network.init(_key(tuple(told["key"])))
        else:
            raise SecateurError(
                "the ticket holds only the weights that it keeps; give params= (and stats=) as "
                "they were given to find."
            )
        if fingerprint(params) != told["sha256"]:
            raise SecateurError(
                "these are not the weights that the ticket was found with (another network, "
                "precision, JAX, or other params); give params= as they were given to find."
            )
        return params, stats

    def again(self, change: Callable[[Criterion], Criterion]) -> Ticket:
        """The method run again, changed, with everything else as the provenance says.

        Raises:
            SecateurError: for a method that is no criterion, or data other than the ticket's.
        """
        p = self.ticket.provenance
        criterion = self.criterion()
        params, stats = self.start()
        schedule = p.schedule["name"]
        where = {k: v for k, v in p.scope.items() if k != "name"}
        settings: dict[str, Any] = {
            "scope": _scope(p.scope["name"], where),
            "schedule": p.schedule["densities"] if schedule == "given" else schedule,
            "rounds": p.rounds,
            "density": p.asked,
            "loss": self.loss if self.loss is not None else p.loss,
            "revival": p.revival,
            "count": p.count,
            "ties": p.ties,
            "prunable": lambda name: name in {row["name"] for row in p.layers},
        }
        made = found(
            self.network, params, stats, p.start, p.seed, self.progress, self.data,
            change(criterion), key=_key(tuple(p.key)), **settings,
        )  # fmt: skip
        before, now = p.data.get("sha256"), made.provenance.data.get("sha256")
        if before and now and before != now:
            raise SecateurError(
                "the data are not those that the ticket was scored on (their hashes differ); give "
                "the same."
            )
        told = replace(made.provenance, method=p.method, options=p.options, parity=p.parity)
        return replace(made, provenance=told)

    def criterion(self) -> Criterion:
        p = self.ticket.provenance
        if self.method is not None:
            return self.method
        if p.method not in METHODS:
            raise SecateurError(
                f"the ticket was found with {p.method}, which is not in the table of methods; give "
                "method= as it was given to find."
            )
        kind = load(p.method)
        if issubclass(kind, Construction):
            raise SecateurError(
                f"{p.method} makes its mask in a way of its own, without scores that could be "
                f"changed, so there is no {self.kind} control; take shuffled or reinitialised."
            )
        known = {f.name for f in fields(kind)}
        options = {
            k: tuple(v) if isinstance(v, list) else v for k, v in p.options.items() if k in known
        }
        return build(p.method, kind, options)


def _scope(name: str, options: dict[str, Any]) -> Scope:
    kind = lookup("scope", name, SCOPES)

    def plain(value: Any) -> Any:
        return tuple(plain(v) for v in value) if isinstance(value, list) else value

    return kind(**{k: plain(v) for k, v in options.items()})


def _shuffled(asked: Asked) -> Ticket:
    mask = shuffle_within_layers(asked.ticket.mask, asked.seed, "control", asked.kind)
    params, stats = asked.start()
    return ticket(mask, params, stats, asked.ticket.provenance)


def _reinitialised(asked: Asked) -> Ticket:
    params, stats = asked.network.init(asked.key())
    origin = {
        "from": "network.init",
        "key": list(_words(asked.key())),
        "sha256": fingerprint(params),
    }
    told = replace(asked.ticket.provenance, start=origin)
    return ticket(asked.ticket.mask, params, stats, told)


def _inverted(asked: Asked) -> Ticket:
    return asked.again(Inverted)


def _random(asked: Asked) -> Ticket:
    p = asked.ticket.provenance
    where = Given.from_ticket(asked.ticket)
    params, stats = asked.start()
    return find(
        asked.network, None, "random", None, scope=where, seed=asked.key(), params=params,
        stats=stats, prunable=lambda name: name in {row["name"] for row in p.layers},
        progress=False,
    )  # fmt: skip


def _random_labels(asked: Asked) -> Ticket:
    _needs(asked, "labels", "does not look at labels")
    return asked.again(lambda inner: OnRandomLabels(inner, _words(asked.key())))


def _noise(asked: Asked) -> Ticket:
    _needs(asked, "images", "does not look at examples")
    return asked.again(lambda inner: OnNoise(inner, _words(asked.key())))


def _needs(asked: Asked, what: str, why: str) -> None:
    criterion = asked.criterion()
    if what not in criterion.needs:
        raise SecateurError(
            f"{asked.ticket.provenance.method} {why}, so a {asked.kind} control is the ticket "
            "itself; take another control."
        )


def _smart_ratio(asked: Asked) -> Ticket:
    p = asked.ticket.provenance
    params, stats = asked.start()
    return find(
        asked.network, None, "random", p.density, scope=SmartRatio(), seed=asked.key(),
        params=params, stats=stats,
        prunable=lambda name: name in {row["name"] for row in p.layers}, progress=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        make: the ticket it gives.
        did: what it does, in a sentence; stands in the provenance.
        source: where it was proposed.
    """

    make: Callable[[Asked], Ticket]
    did: str
    source: str = "Frankle et al., ICLR 2021"


CONTROLS: dict[str, Control] = {
    "shuffled": Control(_shuffled, "the mask permuted uniformly inside each layer"),
    "reinitialised": Control(_reinitialised, "the same mask, weights drawn anew"),
    "inverted": Control(_inverted, "the method with negated scores in every round"),
    "random": Control(_random, "as many weights of each layer, chosen at random"),
    "random-labels": Control(
        _random_labels, "the method scored on random labels", "Su et al., NeurIPS 2020"
    ),
    "noise": Control(_noise, "the method scored on noise inputs", "Su et al., NeurIPS 2020"),
    "smart-ratio": Control(
        _smart_ratio, "random weights in data-independent ratios", "Su et al., NeurIPS 2020"
    ),
}


def control(
    of: Ticket,
    network: Network,
    kind: str = "shuffled",
    seed: int = 0,
    *,
    data: Any = None,
    params: Params | None = None,
    stats: Stats | None = None,
    method: Criterion | None = None,
    loss: Loss | None = None,
    progress: Show = None,
) -> Ticket:
    """A sanity control of a ticket, by seed.

    Args:
        of: the ticket; it is not changed.
        network: the one it was found in.
        kind: a name in `CONTROLS`.
        seed: of what the control draws. Weights, and the draws of a method that is run again, are
            those of the ticket.
        data: as given to `find`, where the method is run again and needs them.
        params, stats: as given to `find`, if they were.
        method, loss: the criterion and the loss, where `find` was given one's own.

    Returns:
        A ticket whose provenance says what was done to which.

    Raises:
        SecateurError: for an unknown kind; one that means nothing to the method; weights or data
            other than the ticket's.
    """
    row = lookup("control", kind, CONTROLS)
    asked = Asked(of, network, seed, kind, data, params, stats, method, loss, progress)
    if of.provenance.network and of.provenance.network != network.name:
        raise SecateurError(
            f"the ticket is of {of.provenance.network}, not of {network.name}; give its network."
        )
    made = row.make(asked)
    told: Provenance = made.provenance
    note = {
        "kind": kind, "seed": seed, "did": row.did, "source": row.source,
        "of": of.checksum, "of_method": of.provenance.method,
    }  # fmt: skip
    return replace(made, provenance=replace(told, control=note))


__all__ = ["CONTROLS", "Control", "control"]
