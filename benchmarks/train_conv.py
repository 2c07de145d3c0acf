"""CPU seconds and peak memory of a training step of LeNet-5 and Conv-4: Secateur beside PyTorch.

    python benchmarks/train_conv.py [--opponent-python PATH | --build FOLDER] [--repeats 2]

Both sides: one thread, the same 5,000 images of MNIST or CIFAR-10, the same start, Adam at 1.2e-3,
batch 60, 60 images evaluated after each interval of steps. ``dense`` trains all weights, ``ticket``
the same random 3 % of each kernel. Before anything is timed, the loss at the start and its
gradients for one batch are compared: they agree to 1e-4 of each leaf's largest entry.

Secateur's side is `train.fit` as it is. PyTorch's loop holds the normalised images in memory, takes
batches by index, uses fused Adam, flushes denormals, keeps a ticket by multiplying the weights by
the mask after each step, and runs in the fastest of its settings, tried first: images contiguous
or channels last, each as it is and through torch.compile where that finds a compiler.

Seconds are those of the best interval after the first one, which compiles; memory is the peak of
the process until the last step (``peak_mb_of_fit``: of ours to the end, when `fit` scores the whole
training set, 1,000 images at once).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np

RATE, BATCH, EXAMPLES, DENSITY = 1.2e-3, 60, 5000, 0.03
STEEP = 1e5
OPPONENT = ["torch==2.13.0", "numpy"]
ARMS = ("dense", "ticket")


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        network: its name in Secateur's registry.
        data: the data set.
        every: steps of an interval.
    """

    network: str
    data: str
    every: int


CASES = {
    "LeNet-5": Case("lenet-5-caffe", "mnist", 60),
    "Conv-4": Case("conv-4", "cifar10", 5),
}


# ----------------------------------------------------------------------------------------- our side


def prepare(case: Case, file: str) -> None:
    """Writes what both sides read: images, labels, start and masks."""
    import jax

    from secateur import data
    from secateur.core.trees import flatten
    from secateur.networks.registry import network

    loaded = data.load(case.data, download=False)
    net = network(case.network)
    params, _ = net.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    arrays = {
        "images": loaded.train.images[:EXAMPLES],
        "labels": loaded.train.labels[:EXAMPLES],
        "mean": np.asarray(loaded.mean, np.float32),
        "std": np.asarray(loaded.std, np.float32),
    }
    for name, leaf in flatten(params).items():
        arrays[f"p.{name}"] = np.asarray(leaf)
    for name, prunable in flatten(net.prunable(params)).items():
        if prunable is not None:
            kept = rng.permutation(prunable.size) < round(DENSITY * prunable.size)
            arrays[f"m.{name}"] = kept.reshape(prunable.shape)
    np.savez(file, **arrays)
    measure.answer()


def training(case: Case, file: str, arm: str, steps: int, rows: int, **recipe: Any) -> Any:
    """What Secateur is asked for: the only place that knows its interface."""
    import jax

    from secateur.core.trees import flatten, ones_mask, unflatten
    from secateur.data import from_arrays
    from secateur.networks.registry import network
    from secateur.train.recipes import Recipe
    from secateur.train.training import Training

    held = np.load(file)
    net = network(case.network)
    like, stats = net.init(jax.random.key(0))
    params = unflatten({n: held[f"p.{n}"] for n in flatten(like)}, like)
    mask = ones_mask(net.prunable(like))
    if arm == "ticket":
        cut = {n: None if m is None else held[f"m.{n}"] for n, m in flatten(mask).items()}
        mask = unflatten(cut, mask)
    images, labels = held["images"], held["labels"]
    few = images[:BATCH], labels[:BATCH]
    sets = from_arrays(
        case.data, (images[:rows], labels[:rows]), few, few, held["mean"], held["std"]
    )
    return Training(
        network=net,
        start=params,
        stats=stats,
        data=sets,
        recipe=Recipe(batch=BATCH, steps=steps, **recipe),
        mask=mask,
        key=jax.random.key(1),
        siblings=1000,  # as in a study: many levels and seeds share a program
    )


def our_gradient(case: Case, file: str, arm: str, result: str) -> None:
    """One step of plain descent on one batch: what it takes off is the gradient times the rate.

    The rate is so high that little is lost where gradients are far smaller than weights.
    """
    from secateur.core.trees import flatten
    from secateur.train.fit import fit

    asked = training(case, file, arm, 1, BATCH, optimiser="sgd", rate=STEEP, evaluate_every=1)
    fitted = fit(asked)
    start, after = flatten(asked.start), flatten(fitted.params)
    masks = flatten(asked.mask)
    taken = {}
    for name in start:
        kept = 1 if masks[name] is None else masks[name]
        taken[name] = (start[name] - np.asarray(after[name])) * kept / STEEP
    np.savez(result, loss=fitted.curve["validation_loss"][0], **taken)
    measure.answer()


def ours(case: Case, file: str, arm: str, intervals: int) -> None:
    """The child that trains with Secateur."""
    from dataclasses import replace

    from secateur.train.fit import fit
    from secateur.train.training import NoWatch

    ends, peaks = [], []

    class Clock(NoWatch):
        def tick(self, *_: Any) -> None:
            ends.append(measure.cpu_seconds())
            peaks.append(measure.peak_mb())

    asked = training(
        case, file, arm, case.every * intervals, EXAMPLES, rate=RATE, evaluate_every=case.every
    )
    # A copy that is kept after the first interval makes each interval a call, and a tick.
    fit(replace(asked, keep_at=(case.every,)), Clock())
    seconds = np.diff(ends) / case.every
    measure.answer(cpu=float(np.min(seconds)), peak=peaks[-1], until_first=round(ends[0], 1))


# ------------------------------------------------------------------------------------- the opponent


class Theirs:
    """The same networks and their training in PyTorch.

    Args:
        setting: ``contiguous`` or ``channels_last``, perhaps with ``, compiled``.
    """

    def __init__(self, file: str, arm: str, setting: str) -> None:
        import torch

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        torch.manual_seed(1)
        held = np.load(file)
        self.last = setting.startswith("channels_last")
        self.format = torch.channels_last if self.last else torch.contiguous_format
        images = torch.from_numpy(held["images"].transpose(0, 3, 1, 2).copy()).float().div_(255)
        spread = lambda name: torch.from_numpy(held[name])[:, None, None]
        images = images.sub_(spread("mean")).div_(spread("std"))
        self.images = images.contiguous(memory_format=self.format)
        self.labels = torch.from_numpy(held["labels"]).long()
        self.names = [name[2:] for name in held.files if name.startswith("p.")]
        self.channels = [held[f"p.{n}"].shape[-1] for n in self.names if n.startswith("conv")][-2]
        turned = lambda name: np.ascontiguousarray(self.turned(name, held[name]))
        given = lambda name: torch.from_numpy(turned(name))
        self.params = {n: self.laid(given(f"p.{n}")).requires_grad_() for n in self.names}
        self.masks = {}
        if arm == "ticket":
            masked = [n for n in self.names if f"m.{n}" in held.files]
            self.masks = {n: self.laid(given(f"m.{n}").float()) for n in masked}
            self.cut()
        forward = self.lenet if len(self.names) == 8 else self.conv
        self.forward = torch.compile(forward) if setting.endswith("compiled") else forward
        self.adam = torch.optim.Adam(list(self.params.values()), lr=RATE, fused=True)

    def turned(self, name: str, leaf: Any) -> Any:
        """A leaf of Secateur's, (h, w, in, out) or (in, out), as PyTorch has it: outputs first."""
        if leaf.ndim == 2 and "dense_1" in name and not self.last:
            # Its inputs are maps: here pixel by pixel, there channel by channel.
            side = round((len(leaf) / self.channels) ** 0.5)
            leaf = leaf.reshape(side, side, self.channels, -1).transpose(2, 0, 1, 3)
            leaf = leaf.reshape(-1, leaf.shape[-1])
        return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T

    def returned(self, name: str, leaf: Any) -> Any:
        """The inverse of `turned`."""
        leaf = leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf.T
        if leaf.ndim == 2 and "dense_1" in name and not self.last:
            side = round((len(leaf) / self.channels) ** 0.5)
            leaf = leaf.reshape(self.channels, side, side, -1).transpose(1, 2, 0, 3)
            leaf = leaf.reshape(-1, leaf.shape[-1])
        return leaf

    def laid(self, tensor: Any) -> Any:
        return tensor.contiguous(memory_format=self.format) if tensor.ndim == 4 else tensor.clone()

    def flat(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1) if self.last else x.flatten(1)

    def layer(self, x: Any, name: str, padding: int = 0) -> Any:
        from torch.nn import functional

        weight, bias = self.params[f"{name}/kernel"], self.params[f"{name}/bias"]
        if weight.ndim == 4:
            return functional.conv2d(x, weight, bias, padding=padding)
        return functional.linear(x, weight, bias)

    def lenet(self, x: Any) -> Any:
        from torch.nn.functional import max_pool2d

        x = max_pool2d(self.layer(x, "conv_1"), 2)
        x = max_pool2d(self.layer(x, "conv_2"), 2)
        return self.layer(self.layer(self.flat(x), "dense_1").relu(), "dense_2")

    def conv(self, x: Any) -> Any:
        from torch.nn.functional import max_pool2d

        for first in (1, 3):
            x = self.layer(x, f"conv_{first}", 1).relu()
            x = max_pool2d(self.layer(x, f"conv_{first + 1}", 1).relu(), 2)
        x = self.layer(self.flat(x), "dense_1").relu()
        return self.layer(self.layer(x, "dense_2").relu(), "dense_3")

    def cut(self) -> None:
        import torch

        if self.masks:
            with torch.no_grad():
                torch._foreach_mul_([self.params[n] for n in self.masks], [*self.masks.values()])

    def loss(self, rows: Any) -> Any:
        from torch.nn.functional import cross_entropy

        images = self.images[rows].contiguous(memory_format=self.format)
        return cross_entropy(self.forward(images), self.labels[rows])

    def train(self, steps: int) -> float:
        """CPU seconds of a step, the evaluation at the end included."""
        import torch

        def interval() -> None:
            for rows in torch.randint(0, EXAMPLES, (steps, BATCH)):
                loss = self.loss(rows)
                self.adam.zero_grad()
                loss.backward()
                self.adam.step()
                self.cut()
            with torch.no_grad():
                self.loss(torch.arange(BATCH))

        return measure.cpu_of(interval) / steps


def their_gradient(file: str, arm: str, setting: str, result: str) -> None:
    import torch

    side = Theirs(file, arm, setting)
    loss = side.loss(torch.arange(BATCH))
    loss.backward()
    found = {}
    for name, leaf in side.params.items():
        taken = leaf.grad * side.masks.get(name, 1)
        found[name] = side.returned(name, taken.contiguous().numpy())
    np.savez(result, loss=loss.item(), **found)
    measure.answer()


def settle(case: Case, file: str) -> None:
    """Tries PyTorch's settings; the fastest is used."""
    import torch

    tried = {}
    for setting in (
        "contiguous",
        "channels_last",
        "contiguous, compiled",
        "channels_last, compiled",
    ):
        try:
            side = Theirs(file, "dense", setting)
            side.train(2)
        except Exception as error:  # no compiler
            print(f"{setting}: {error}", file=sys.stderr)
            continue
        tried[setting] = min(side.train(case.every) for _ in range(3))
    measure.answer(
        setting=min(tried, key=lambda s: tried[s]),
        tried={s: round(t, 4) for s, t in tried.items()},
        torch=torch.__version__,
    )


def theirs(case: Case, file: str, arm: str, intervals: int, setting: str) -> None:
    """The child that trains with PyTorch."""
    side = Theirs(file, arm, setting)
    side.train(case.every)
    seconds = [side.train(case.every) for _ in range(intervals - 1)]
    measure.answer(cpu=min(seconds), peak=measure.peak_mb())


# ------------------------------------------------------------------------------------ in the parent


def compare(name: str, python: str, repeats: int, intervals: int) -> dict[str, Any]:
    """Both arms of one network."""
    this = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "task.npz"))
        command = lambda python, *given: [python, this, "--child", name, file, *map(str, given)]
        measure.child(command(sys.executable, "prepare"))
        best = measure.child(command(python, "settle"))
        print(f"{name}: {json.dumps(best)}", file=sys.stderr, flush=True)
        arms = {}
        for arm in ARMS:
            results = [str(Path(folder, f"{side}.npz")) for side in ("ours", "theirs")]
            measure.child(command(sys.executable, "our_gradient", arm, results[0]))
            measure.child(command(python, "their_gradient", arm, best["setting"], results[1]))
            apart = _apart(*map(np.load, results))
            runs = measure.alternate(
                {
                    "ours": command(sys.executable, "ours", arm, intervals),
                    "theirs": command(python, "theirs", arm, intervals, best["setting"]),
                },
                repeats,
            )
            whole = min(run["peak_mb"] for run in runs["ours"])
            for run in (*runs["ours"], *runs["theirs"]):
                run["peak_mb"] = run["peak"]
            made = measure.arm(measure.summary(runs["ours"]), measure.summary(runs["theirs"]), 1.0)
            made["setting"], made["tried"] = best["setting"], best["tried"]
            made["apart"], made["peak_mb_of_fit"] = apart, whole
            made["until_first"] = min(run["until_first"] for run in runs["ours"])
            if max(apart.values()) > 1e-4:
                raise SystemExit(f"{name}, {arm}: the two sides differ: {apart}")
            arms[f"{name}, {arm}"] = made
    return {"arms": arms, "torch": best["torch"]}


def _apart(ours: Any, theirs: Any) -> dict[str, float]:
    """The largest differences: of the loss relative, of gradients to each leaf's largest entry."""
    worst = 0.0
    for name in set(ours.files) - {"loss"}:
        scale = np.max(np.abs(theirs[name]))
        worst = max(worst, float(np.max(np.abs(ours[name] - theirs[name])) / scale))
    loss = abs(float(ours["loss"]) / float(theirs["loss"]) - 1)
    return {"loss": float(f"{loss:.1e}"), "gradient": float(f"{worst:.1e}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opponent-python", help="of an environment with torch and numpy")
    parser.add_argument("--build", metavar="FOLDER", help="makes that environment there")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--intervals", type=int, default=5, help="of one run, the first not timed")
    parser.add_argument("--cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        name, file, side, *given = asked.child
        case = CASES[name]
        children = {
            "prepare": lambda: prepare(case, file),
            "settle": lambda: settle(case, file),
            "our_gradient": lambda: our_gradient(case, file, *given),
            "their_gradient": lambda: their_gradient(file, *given),
            "ours": lambda: ours(case, file, given[0], int(given[1])),
            "theirs": lambda: theirs(case, file, given[0], int(given[1]), given[2]),
        }
        return children[side]()
    python = asked.opponent_python
    if asked.build:
        python = measure.environment(asked.build, OPPONENT)
    if not python:
        parser.error("give --opponent-python or --build")
    made = {name: compare(name, python, asked.repeats, asked.intervals) for name in asked.cases}
    measure.conclude(
        "train_conv",
        {arm: found for case in made.values() for arm, found in case["arms"].items()},
        unit="CPU seconds a step, one thread, programs compiled",
        repeats=asked.repeats,
        batch=BATCH,
        torch=next(iter(made.values()))["torch"],
    )


if __name__ == "__main__":
    main()
