"""The form in which a pruned network is trained: smaller, packed, or as it is; the same numbers.

*Smaller*: rows and columns without use are cut out (`structure.shrink`). *Packed*: of a leaf with
few survivors the optimiser holds the survivors alone, as a vector; the matrix is made from it in
each step. Moments of pruned weights then do not exist, and an Adam step costs what the survivors
cost. *Turned*: a kernel (in, out) is held as (out, in), since XLA's CPU backend then multiplies its
gradient 5 to 25 % faster (d^T x instead of x^T d; 784x300 at batch 128: 530 us instead of 637). All
are exact: they leave out what is masked and change nothing else but the order of sums.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from secateur import __version__
from secateur.core.trees import flatten, unflatten
from secateur.structure import shrink
from secateur.train.training import Training

# Seconds of one core, measured on 784-300-100-10 (benchmarks/train_lenet.py): the three products of
# a layer, for each weight and example; an Adam step, for each weight held; making a matrix from a
# packed vector, for each weight of the matrix and for each survivor; compiling a program.
PRODUCTS, UPDATE, CLEAR, PLACE, COMPILE = 4.5e-11, 1.2e-9, 0.3e-9, 4e-9, 3.0


@dataclass(frozen=True)
class Form:
    """What of a network is trained.

    Attributes:
        selection: the units that stay, or None for all.
        places: packed leaf -> indices of its survivors in the flattened (smaller) leaf, int32,
            filled up with the leaf's size, which is nowhere.
        shapes: packed leaf -> shape of the (smaller, turned) leaf.
        counts: packed leaf -> survivors, without the filling.
        turned: kernels that are held as (out, in).
    """

    selection: shrink.Selection | None = None
    places: Mapping[str, np.ndarray] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    def static(self) -> tuple[tuple[str, tuple[int, ...] | None, bool], ...]:
        """Of each changed leaf: name, shape if it is packed, whether it is turned."""
        names = sorted({*self.shapes, *self.turned})
        return tuple((name, self.shapes.get(name), name in self.turned) for name in names)

    def mark(self) -> np.ndarray:
        """32 bytes that differ between forms and versions: a checkpoint fits the form it is of."""
        digest = hashlib.sha256(f"{__version__} {self.static()}".encode())
        units = self.selection.units if self.selection else {}
        for name, array in sorted([*((str(g), u) for g, u in units.items()), *self.places.items()]):
            digest.update(name.encode() + np.asarray(array, np.int64).tobytes())
        return np.frombuffer(digest.digest(), np.uint8)

    def features(self) -> np.ndarray | None:
        """Indices into the flattened input that are read, or None for all of it."""
        return self.selection.features() if self.selection else None

    def widths(self) -> dict[str, dict[str, int]]:
        """Full, live and trained width of each cut axis, by name."""
        return self.selection.widths() if self.selection else {}

    def of(self, params: Any) -> Any:
        """Full parameters in this form."""
        small = self._small(params)
        for name, places in self.places.items():
            leaf = np.asarray(small[name]).ravel()
            small[name] = np.zeros(len(places), leaf.dtype)
            kept = self.counts[name]
            small[name][:kept] = leaf[places[:kept]]
        return unflatten(small, params)

    def _small(self, tree: Any) -> dict[str, Any]:
        small = flatten(self.selection.take(tree) if self.selection else tree)
        for name in self.turned:
            if small[name] is not None:
                small[name] = np.ascontiguousarray(np.asarray(small[name]).T)
        return small

    def of_mask(self, mask: Any) -> Any:
        """The mask in this form: of a packed leaf, which entries are survivors and no filling."""
        small = self._small(mask)
        for name, places in self.places.items():
            small[name] = np.arange(len(places)) < self.counts[name]
        return unflatten(small, mask)

    def full(self, trained: Any, start: Any) -> Any:
        """Full parameters again; what was left out has its value of ``start``."""
        small = flatten(trained)
        for name, places in self.places.items():
            leaf = np.zeros(math.prod(self.shapes[name]), np.asarray(small[name]).dtype)
            kept = self.counts[name]
            leaf[places[:kept]] = np.asarray(small[name])[:kept]
            small[name] = leaf.reshape(self.shapes[name])
        for name in self.turned:
            small[name] = np.ascontiguousarray(np.asarray(small[name]).T)
        tree = unflatten(small, start)
        return self.selection.put(tree, start) if self.selection else tree


def choose(trainings: Sequence[Training]) -> list[Form]:
    """The cheapest form, one for each lane, all of one shape.

    On a CPU a form is taken where the time it saves over all its siblings pays its compilation.
    Elsewhere small products cost no less than large ones, and networks are trained as they are.
    """
    first = trainings[0]
    if not first.shrink or jax.default_backend() != "cpu":
        return [Form() for _ in trainings]
    plain = [Form(turned=_turned(first)) for _ in trainings]
    selections = _selections(trainings)
    smaller = [replace(plain[0], selection=s) for s in selections] if selections else plain
    options = [
        plain,
        _packed(trainings, plain),
        smaller,
        _packed(trainings, smaller),
    ]
    seconds = [_seconds(first, form[0]) for form in options]
    saved = [seconds[0] - s for s in seconds]
    best = max(range(len(options)), key=lambda k: saved[k])
    return options[best] if saved[best] * max(1, first.siblings) > COMPILE else plain


def _seconds(training: Training, form: Form) -> float:
    """CPU seconds of all steps by the constants above."""
    products = stored = made = 0.0
    for name, leaf in flatten(form.of(training.start)).items():
        size = math.prod(form.shapes[name]) if name in form.shapes else np.size(leaf)
        products += size
        stored += np.size(leaf)
        if name in form.shapes:
            made += CLEAR * size + PLACE * np.size(leaf)
    steps = training.recipe.steps - training.first_step
    return steps * (PRODUCTS * products * training.recipe.batch + UPDATE * stored + made)


def _turned(training: Training) -> frozenset[str]:
    """The kernels of dense layers that lie as (in, out)."""
    layers = shrink.dense_layers(training.network)
    return frozenset(layer.kernel for layer in layers if layer.in_axis == 0)


def _selections(trainings: Sequence[Training]) -> list[shrink.Selection] | None:
    """The smaller networks, all of one shape, or None where there are none."""
    first = trainings[0]
    if shrink.reason_full(first.network):
        return None
    if first.recipe.augment != "none":
        return None  # augmentation needs whole images
    decays = bool(first.recipe.weight_decay)
    kept = [shrink.kept(t.network, t.mask, t.start, decays) for t in trainings]
    found = shrink.select(kept, first.grain)
    if not found[0].units:
        return None
    if shrink.agrees(first.network, found[0], first.start, first.mask):
        return None
    return found


def _packed(trainings: Sequence[Training], forms: Sequence[Form]) -> list[Form]:
    """The forms with their sparse leaves packed; equal lengths for all lanes."""
    masks = [flatten(f.of_mask(t.mask)) for t, f in zip(trainings, forms)]
    lengths: dict[str, int] = {}
    for name, mask in masks[0].items():
        if mask is not None:
            most = max(int(np.sum(m[name])) for m in masks)
            length = _rung(most, np.size(mask))
            if UPDATE * np.size(mask) > CLEAR * np.size(mask) + (PLACE + UPDATE) * length:
                lengths[name] = length
    packed = []
    for form, mask in zip(forms, masks):
        places, counts = {}, {}
        for name, length in lengths.items():
            found = np.flatnonzero(mask[name])
            places[name] = np.full(length, np.size(mask[name]), np.int32)
            places[name][: len(found)] = found
            counts[name] = len(found)
        shapes = {name: np.shape(mask[name]) for name in lengths}
        packed.append(replace(form, places=places, shapes=shapes, counts=counts))
    return packed


def _rung(count: int, size: int) -> int:
    """``count`` rounded up on a ladder of half octaves below ``size``: few programs, shared."""
    if count == 0:
        return 1
    return math.ceil(size * 2 ** (math.floor(2 * math.log2(count / size) + 1e-9) / 2 + 0.5))
