"""How one kernel is carried out: which factors are held together, and the blocks formed of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from secateur.core.errors import SecateurError, lookup
from secateur.kernels.factors import Factors, Form
from secateur.kernels.plan import Line, Masked, Plan, choose, masked_products, passes
from secateur.kernels.products import ByColumns, layer
from secateur.kernels.rules import OUTPUTS, Bucket, Rule, block, buckets, kept_columns
from secateur.kernels.subject import Subject
from secateur.structure.sites import tap_shapes

RULES = {
    "auto": "of each leaf the one of the fewest operations",
    "dense": "one product of matrices, where nothing is masked",
    "rows": "unit by unit, from the inputs that are left",
    "columns": "the Jacobian at the kept weights",
}
# Seconds of a kernel below which what is 0 in all examples is not left out, and all units of a
# layer are taken alike: what is changes the program from one call to the next, and compiling takes
# longer than the kernel.
COMPILED = 0.3


@dataclass(frozen=True)
class Settings:
    """What may be said of the way.

    Attributes:
        outputs: a key of `rules.OUTPUTS`.
        memory: bytes that may be held beside the result.
        rule: a key of `RULES`: taken wherever it is exact.
        block_size: examples a side of one block; by the rules where None.
    """

    outputs: str = "full"
    memory: float = 1e9
    rule: str = "auto"
    block_size: int | None = None

    def __post_init__(self) -> None:
        lookup("form of the kernel", self.outputs, OUTPUTS)
        lookup("rule", self.rule, RULES)
        told, size = self.memory, self.block_size
        number = isinstance(told, (int, float)) and not isinstance(told, bool) and told > 0
        whole = size is None or (isinstance(size, int) and size >= 1)
        if not number or not whole:
            raise SecateurError(
                f"memory is a number of bytes above 0 and block_size a whole number above 0, not "
                f"{told!r} and {size!r}."
            )

    @property
    def summed(self) -> str:
        """The form of a block: a mean is a trace that is divided at the end."""
        return "trace" if self.outputs == "mean" else self.outputs


@dataclass
class Job:
    """One kernel: what it is of, how it is formed, and in which parts."""

    first: Subject
    second: Subject | None  # None: the kernel of the first with itself
    settings: Settings
    how: Form
    rules: tuple[Rule, ...]
    masked: list[Masked]
    plan: Plan
    chunks: list[np.ndarray]  # outputs whose factors are held together
    part: int  # examples whose factors are held together
    passed: int  # examples that pass through the network together
    size: int  # examples a side of a block

    @property
    def mirrored(self) -> bool:
        return self.second is None

    @property
    def shape(self) -> tuple[int, ...]:
        n, m = self.plan.examples
        c = self.first.outputs
        return {"full": (n, c, m, c), "diagonal": (n, m, c)}.get(self.settings.outputs, (n, m))

    def place(self, rows: slice, columns: slice) -> tuple[Any, ...]:
        if self.settings.outputs == "full":
            return rows, slice(None), columns
        return rows, columns

    def blocks(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Every block, or those on and below the diagonal; again for each chunk of outputs."""
        for chunk in self.chunks:
            for rows in _cut(self.plan.examples[0], self.part):
                left = self._factors(self.first, rows, chunk)
                for columns in _cut(self.plan.examples[1], self.part):
                    same = self.mirrored and rows == columns
                    if self.mirrored and columns.start > rows.start:
                        continue
                    other = self.first if self.second is None else self.second
                    right = left if same else self._factors(other, columns, chunk)
                    yield from self._within(rows, columns, left, right, same, chunk)

    def layers(self) -> list[Any]:
        """Every leaf's part of the operator, of all examples and outputs."""
        n, c = self.first.n, self.first.outputs
        whole = self._factors(self.first, slice(0, n), np.arange(c))
        parts: list[Any] = [
            layer(
                product.entered,
                product.felt,
                mask=None if np.all(of.weights == 1) else of.weights,
                bias=of.bias,
            )
            for product, of in zip(whole.products, self.masked)
        ]
        return [*parts, *map(ByColumns, whole.columns.values())]

    def _within(
        self,
        rows: slice,
        columns: slice,
        left: Factors,
        right: Factors,
        same: bool,
        chunk: np.ndarray,
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        taken, a, b = self._ruled(left, right, same)
        for i in _cut(rows.stop - rows.start, self.size):
            one = _padded(a, i, self.size)
            for j in _cut(columns.stop - columns.start, self.size):
                if same and j.start > i.start:
                    continue
                two = one if same and i == j else _padded(b, j, self.size)
                part = block(taken[0], self.settings.summed, one, two, taken[1])
                n, m = i.stop - i.start, j.stop - j.start
                part = part[:n, :, :m] if self.settings.outputs == "full" else part[:n, :m]
                at = slice(rows.start + i.start, rows.start + i.stop)
                to = slice(columns.start + j.start, columns.start + j.stop)
                found = np.asarray(part)
                with np.errstate(invalid="ignore"):  # infinities of both signs
                    total = np.sum(found, dtype=np.float64)
                if not np.isfinite(total):
                    raise SecateurError(
                        "the outputs or their derivatives are not finite at some examples, so that "
                        "they have no kernel: look at the parameters and the examples."
                    )
                if self.settings.outputs == "diagonal" and len(self.chunks) > 1:
                    spread = np.zeros((n, m, self.first.outputs), found.dtype)
                    spread[:, :, chunk] = found
                    found = spread
                yield at, to, _half(found, self.settings.outputs) if same and i == j else found

    def _factors(self, of: Subject, part: slice, chunk: np.ndarray) -> Factors:
        self.first.tell(self.how)
        run = of.factors(self.how)
        kept = of.kept(self.how)
        made = []
        for some in _cut(part.stop - part.start, self.passed):
            numbers = np.arange(part.start + some.start, part.start + some.stop)
            short = self.passed - len(numbers) if len(numbers) < part.stop - part.start else 0
            taken = np.concatenate([numbers, np.repeat(numbers[-1:], short)])
            found = run(of.params, _take(of.x, taken), np.eye(of.outputs)[chunk], kept)
            made.append(found.of(slice(0, len(numbers))) if short else found)
        if len(made) == 1:
            return made[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *made)

    def _ruled(self, left: Factors, right: Factors, same: bool) -> tuple[Any, Factors, Factors]:
        """The rules and buckets of the products that stay, the others as columns."""
        rules: list[Rule] = []
        rows: list[tuple[Bucket, ...]] = []
        stay: list[int] = []
        columns: dict[str, list[Any]] = {}
        for k, (rule, of) in enumerate(zip(self.rules, self.masked)):
            if rule.name == "dense":
                rules.append(rule)
                rows.append(())
                stay.append(k)
                continue
            one, two = left.products[k], right.products[k]
            inputs, units = (np.ones(size, bool) for size in of.weights.shape)
            coarse = self.plan.seconds <= COMPILED
            if not coarse:
                inputs, units = _live(one, two, same)
            found = buckets(of.weights, of.bias, inputs, units, coarse)
            if rule.name == "rows":
                rules.append(rule)
                rows.append(found)
                stay.append(k)
            elif found:
                taken = kept_columns(one, found)
                columns[f"{k}"] = [taken, taken if same else kept_columns(two, found)]
        sides = [
            Factors(
                side.outputs,
                tuple(side.products[k] for k in stay),
                side.columns | {name: both[number] for name, both in columns.items()},
            )
            for number, side in enumerate((left, right))
        ]
        return (tuple(rules), tuple(rows)), sides[0], sides[1]


def _live(one: Any, two: Any, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that are not 0 in every example, and units that some output of some example feels."""
    sides = [one] if same else [one, two]
    entered = [np.asarray(_any(side.entered, (0,))) for side in sides]
    felt = [np.asarray(_any(side.felt, (0, 1))) for side in sides]
    # A column of zeros on one side is enough for the product to be 0.
    return np.logical_and.reduce(entered), np.logical_and.reduce(felt)


@partial(jax.jit, static_argnums=1)
def _any(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.any(a != 0, axis=axes)


def _take(tree: Any, numbers: np.ndarray) -> Any:
    return jax.tree.map(lambda a: a[numbers], tree)


def _padded(of: Factors, part: slice, size: int) -> Factors:
    """Some examples, and zeros up to the size of a block."""
    if part.stop - part.start == size:
        return of.of(part)
    short = size - (part.stop - part.start)
    pad = lambda a: jnp.pad(a[part], [(0, short), *[(0, 0)] * (a.ndim - 1)])
    return jax.tree.map(pad, of)


def _cut(n: int, size: int) -> list[slice]:
    return [slice(k, min(k + size, n)) for k in range(0, n, size)]


def _half(part: np.ndarray, outputs: str) -> np.ndarray:
    """A block on the diagonal, made exactly symmetric by mirroring its lower half."""
    if outputs == "full":
        n, c = part.shape[:2]
        flat = part.reshape(n * c, n * c)
        return (np.tril(flat) + np.tril(flat, -1).T).reshape(part.shape)
    if outputs == "diagonal":
        lower = np.tril(np.moveaxis(part, 2, 0))
        return np.moveaxis(lower + np.swapaxes(np.tril(lower, -1), 1, 2), 0, 2)
    return np.tril(part) + np.tril(part, -1).T


def prepare(first: Subject, second: Subject | None, settings: Settings, whole: bool = False) -> Job:
    """Decides how the kernel of two subjects, or of one with itself, is formed.

    Args:
        whole: all outputs at a time, so that each block comes once.

    Raises:
        SecateurError: see `kernels.ntk.ntk`.
    """
    n, m, c = first.n, first.n if second is None else second.n, first.outputs
    width = np.dtype(first.dtype).itemsize
    result = float(n * m * width * {"full": c * c, "diagonal": c}.get(settings.outputs, 1))
    if second is not None and jax.tree.map(_example, first.x) != jax.tree.map(_example, second.x):
        raise SecateurError(
            f"x2 holds examples of {jax.tree.map(_example, second.x)}, expected "
            f"{jax.tree.map(_example, first.x)} as in x."
        )
    how = first.form()
    masked = masked_products(first, how)
    rules, lines = _lines(first, how, masked, settings, n * m if second else n * (n + 1) / 2)
    # Bytes of an example: what is held of it whatever its outputs, and for each of them.
    fixed = width * float(sum(of.weights.shape[0] for of in masked))
    apart = sum(line.bytes for line in lines)
    # Passing through the network holds each tapped value and each Jacobian a few times.
    one = jax.tree.map(lambda a: a[:1], first.x)
    seen = tap_shapes(first.prepared.f, first.params, one, how.sites)
    sizes = [np.prod(s.shape) for s in seen.values()]
    sizes += [np.size(first.leaves()[name]) for name in (*how.columns, *how.rest)]
    passing = 3.0 * width * float(sum(sizes))
    sides = 1 if second is None else 2
    room = settings.memory / 2 / sides
    chunk = c
    if settings.outputs != "full" and not whole:
        # All examples with some outputs at a time: every factor is made once.
        chunk = int(np.clip((room / (2 * max(n, m)) - fixed) / max(apart, 1.0), 1, c))
    held = fixed + chunk * apart
    part = int(np.clip(room / (2 * held), 1, max(n, m)))
    if part < max(n, m) and second is None:  # then two parts are held
        part = max(1, part // 2)
    # Beyond some tens of megabytes a pass leaves the cache; a few examples at least are worth one.
    fit = settings.memory / 4 / (chunk * passing)
    passed = int(np.clip(min(fit, max(8.0, 64e6 / (chunk * passing))), 1, part))
    passed = -(-part // -(-part // passed))  # as even as can be
    slow = any(rule.name == "rows" for rule in rules)
    size = settings.block_size
    if size is None:
        size = (50 if slow else 100) if settings.outputs == "full" else (250 if slow else 500)
    size = max(1, min(size, part, max(n, m)))
    chunks = [np.arange(k, min(k + chunk, c)) for k in range(0, c, chunk)]
    again = max(1.0, -(-m // part) / 2) if part < max(n, m) else 1.0
    total = again * (n + (m if second else 0)) * passes(first, how)
    working = 2 * part * held * sides + passed * chunk * passing
    plan = Plan(settings.outputs, (n, m), c, lines, total, result, working, (part, chunk), size)
    return Job(first, second, settings, how, rules, masked, plan, chunks, part, passed, size)


def _lines(
    about: Subject, how: Form, masked: list[Masked], settings: Settings, pairs: float
) -> tuple[tuple[Rule, ...], tuple[Line, ...]]:
    """The rule of each product, and what each leaf takes; bytes are of one example and output."""
    c, width = about.outputs, np.dtype(about.dtype).itemsize
    rules, lines = [], []
    for place, (site, of) in enumerate(zip(how.products, masked)):
        last = site.tap == how.sites.out
        rule, work = choose(site, of, settings.outputs, c, last, settings.rule)
        rules.append(rule)
        kept = int(np.count_nonzero(of.weights))
        floats = of.weights.shape[1] + (kept if rule.name == "columns" else 0)
        name = about.shown(site.leaf)
        lines.append(Line(name, "dense", rule.name, kept, pairs * work, width * floats))
        lines += [
            Line(about.shown(bias), "bias", f"with {name}", int(np.count_nonzero(of.bias)), 0, 0)
            for bias, owner in how.biases.items()
            if owner == place
        ]
    for name in (*how.columns, *how.rest):
        sites = how.sites.found.get(name, ())
        size = int(np.size(about.leaves()[name]))
        kept = int(np.count_nonzero(about.weights[name])) if name in about.weights else size
        work = pairs * kept * (c * c if settings.outputs == "full" else c)
        kind, rule_name = (sites[0].kind, "columns") if sites else ("other", "differentiated")
        why = "" if sites else how.sites.why.get(name, "")
        lines.append(Line(about.shown(name), kind, rule_name, kept, work, width * kept, why))
    return tuple(rules), tuple(lines)


def _example(a: Any) -> tuple[int, ...]:
    return tuple(np.shape(a)[1:])


def check_memory(plan: Plan) -> None:
    """Refuses a kernel that the machine's memory will not hold.

    Raises:
        SecateurError: with the numbers, and the ways out.
    """
    free, result = _free_memory(), plan.result
    if free is None or result <= 0.9 * free:
        return
    (n, m), c, outputs = plan.examples, plan.classes, plan.outputs
    ways = "take fewer examples, or ntk_blocks (a block at a time) or ntk_operator (products alone)"
    if outputs == "full":
        ways = f'outputs="trace" ({result / c**2 / 1e9:.3g} GB), ' + ways
    raise SecateurError(
        f"the {outputs} kernel of {n:,} x {m:,} examples and {c} outputs takes "
        f"{result / 1e9:.3g} GB and {free / 1e9:.3g} GB are free: {ways}."
    )


def _free_memory() -> float | None:
    """Bytes that may still be taken, where the system tells."""
    try:
        with open("/proc/meminfo") as told:
            lines = dict(line.split(":", 1) for line in told)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
