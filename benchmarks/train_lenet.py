"""CPU seconds per 1,000 training steps of LeNet-300-100: Secateur against a masked PyTorch loop.

    python benchmarks/train_lenet.py [--torch-python PATH] [--repeats 3] [--quick]

Both sides: one thread, the same examples, start, mask, Adam at 1.2e-3 and batch, validation every
1,000 steps. The loop in PyTorch holds the normalised images in memory, takes its batches by index
from a random permutation, uses Adam in its fastest form (fused), flushes denormals, and multiplies
by the mask in the fastest of the ways in use (tried first, on this machine). The ticket is pruned
from the trained network by magnitude, 20 % of what is left a level, to 3 % of the weights.

Time per 1,000 steps is the difference of a long and a short training, so that neither start nor
compilation counts; both are reported beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

BOUNDS = {"dense": (0.7, 0.5), "ticket": (0.35, 0.2)}  # arm: (bound, aim)
RATE, EVERY = 1.2e-3, 1000
SIZES = (784, 300, 100, 10)


# ------------------------------------------------------------------------------------ our own side


def our_sets() -> Any:
    """Full MNIST where it is at hand, else the images inside the package."""
    from secateur import data
    from secateur.core.errors import SecateurError

    try:
        return data.split(data.load("mnist", download=False), 5000)
    except SecateurError:
        return data.split(data.load("mnist5k"), 500)


def our_fit(sets: Any, params: Any, mask: Any, batch: int, steps: int, every: int = EVERY) -> Any:
    """One call of Secateur's training: the only place that knows its interface."""
    import jax

    from secateur.networks.mlp import lenet_300_100
    from secateur.train.fit import fit
    from secateur.train.recipes import Recipe
    from secateur.train.training import Training

    recipe = Recipe(
        optimiser="adam",
        rate=RATE,
        batch=batch,
        steps=steps,
        evaluate_every=every,
    )
    training = Training(
        network=lenet_300_100(),
        start=params,
        stats={},
        data=sets,
        recipe=recipe,
        mask=mask,
        key=jax.random.key(1),
        siblings=1000,  # as in a study: many levels and seeds share a program
    )
    return fit(training)


def our_start(seed: int = 0) -> tuple[Any, Any]:
    import jax

    from secateur.core.trees import ones_mask
    from secateur.networks.mlp import lenet_300_100

    network = lenet_300_100()
    params, _ = network.init(jax.random.key(seed))
    return params, ones_mask(network.prunable(params))


def our_ticket(sets: Any, density: float, steps: int) -> tuple[Any, Any, float]:
    """Start and mask of a ticket by iterative magnitude pruning with rewinding, and its density."""
    from secateur.core.trees import apply_mask, flatten, unflatten
    from secateur.core.trees import density as density_of

    params, mask = our_start()
    while (now := density_of(mask)) > density:
        trained = flatten(our_fit(sets, apply_mask(mask, params), mask, 60, steps, steps).params)
        flat = flatten(mask)
        share = max(0.8, density / now)
        half = {max(flat): (1 + share) / 2}  # the output layer at half the rate, as in the paper
        for name, kept in flat.items():
            if kept is None:
                continue
            count = round(half.get(name, share) * np.sum(kept))
            size = np.where(kept, np.abs(np.asarray(trained[name])), -1).ravel()
            best = np.argsort(-size, kind="stable")[:count]
            flat[name] = np.zeros(size.shape, bool)
            flat[name][best] = True
            flat[name] = flat[name].reshape(np.shape(kept))
        mask = unflatten(flat, mask)
    return apply_mask(mask, params), mask, density_of(mask)


def prepare(path: Path, level_steps: int) -> None:
    """Writes what both sides read: examples, the dense start and the ticket."""
    from secateur.core.trees import flatten

    sets = our_sets()
    params, mask = our_start()
    ticket, ticket_mask, density = our_ticket(sets, 0.03, level_steps)
    arrays: dict[str, np.ndarray] = {
        "mean": np.asarray(sets.mean, np.float32),
        "std": np.asarray(sets.std, np.float32),
    }
    for part in ("train", "validation"):
        arrays[f"{part}_images"] = getattr(sets, part).images
        arrays[f"{part}_labels"] = getattr(sets, part).labels
    for arm, start, cut in (("dense", params, mask), ("ticket", ticket, ticket_mask)):
        flat, masks = flatten(start), flatten(cut)
        for name, leaf in flat.items():
            arrays[f"{arm}:{name}"] = np.asarray(leaf)
            if masks[name] is not None:
                arrays[f"{arm}:mask:{name}"] = np.asarray(masks[name])
    np.savez(path, **arrays)
    measure.answer(density=density, examples=len(sets.train.labels), data=sets.name)


def ours(path: Path, arm: str, batch: int, steps: int) -> None:
    """The child that trains with Secateur."""
    from secateur.core.trees import flatten, unflatten

    with np.load(path) as arrays:
        params, mask = our_start()
        flat = {name: arrays[f"{arm}:{name}"] for name in flatten(params)}
        cut = {
            name: None if m is None else arrays[f"{arm}:mask:{name}"]
            for name, m in flatten(mask).items()
        }
    params, mask, sets = unflatten(flat, params), unflatten(cut, mask), our_sets()
    train = lambda steps: our_fit(sets, params, mask, batch, steps)
    first = measure.cpu_of(lambda: train(EVERY))
    short = measure.cpu_of(lambda: train(EVERY))
    begin = time.perf_counter()
    long = measure.cpu_of(lambda: held.append(train(EVERY + steps)))
    measure.answer(
        cpu=(long - short) * 1000 / steps,
        compile=round(first - short, 3),
        wall_of_training=round(time.perf_counter() - begin, 3),
        accuracy=float(held[0].last["validation_accuracy"]),
    )


held: list[Any] = []


# ------------------------------------------------------------------------------------- the opponent


def theirs(path: Path, arm: str, batch: int, steps: int) -> None:
    """The child that trains with PyTorch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    with np.load(path) as arrays:
        mean, std = float(arrays["mean"][0]), float(arrays["std"][0])
        images, labels = {}, {}
        for part in ("train", "validation"):
            pixels = torch.from_numpy(arrays[f"{part}_images"]).reshape(-1, SIZES[0])
            images[part] = pixels.float().div_(255).sub_(mean).div_(std)
            labels[part] = torch.from_numpy(arrays[f"{part}_labels"]).long()
        kernels = [n for n in arrays.files if n.startswith(f"{arm}:") and arrays[n].ndim == 2]
        kernels = sorted((n for n in kernels if ":mask:" not in n), key=lambda n: -arrays[n].size)
        # PyTorch holds a weight as (outputs, inputs).
        start = [torch.from_numpy(arrays[n].T.copy()) for n in kernels]
        biases = [torch.from_numpy(arrays[n.replace("kernel", "bias")].copy()) for n in kernels]
        cuts = [
            torch.from_numpy(arrays[n.replace(":", ":mask:", 1)].T.astype(np.float32).copy())
            for n in kernels
        ]
    assert [tuple(w.shape) for w in start] == list(zip(SIZES[1:], SIZES[:-1]))

    def train(steps: int, way: str, fused: bool | None = True) -> float:
        weights = [w.clone().requires_grad_() for w in start]
        offsets = [b.clone().requires_grad_() for b in biases]
        optimiser = torch.optim.Adam([*weights, *offsets], lr=RATE, fused=fused)

        def forward(x: Any) -> Any:
            for i, (w, b) in enumerate(zip(weights, offsets)):
                x = functional.linear(x, w * cuts[i] if way == "forward" else w, b)
                x = x.relu() if i < 2 else x
            return x

        accuracy, at, order = 0.0, 0, torch.randperm(len(labels["train"]))
        for step in range(1, steps + 1):
            if at + batch > len(order):
                at, order = 0, torch.randperm(len(order))
            rows = order[at : at + batch]
            at += batch
            logits = forward(images["train"][rows])
            loss = functional.cross_entropy(logits, labels["train"][rows])
            optimiser.zero_grad()
            loss.backward()
            if way == "gradient":
                torch._foreach_mul_([w.grad for w in weights], cuts)
            optimiser.step()
            if way == "weights":
                with torch.no_grad():
                    torch._foreach_mul_(weights, cuts)
            if step % EVERY == 0:
                with torch.no_grad():
                    guess = forward(images["validation"]).argmax(1)
                    accuracy = float((guess == labels["validation"]).float().mean())
        if way != "dense":
            for w, m in zip(weights, cuts):
                assert not torch.any(w[m == 0]) or way == "forward"
        return accuracy

    ways = ("dense",) if arm == "dense" else ("gradient", "weights", "forward")
    train(50, ways[0])
    tried = lambda way: min(measure.cpu_of(lambda: train(100, way)) for _ in range(2))
    speed = {way: tried(way) for way in ways}
    way = min(speed, key=lambda w: speed[w])
    # Beside it, what most published code does: Adam as it comes, weight * mask in the forward pass.
    usual = measure.cpu_of(lambda: train(300, ways[-1], None)) / 0.3
    short = measure.cpu_of(lambda: train(EVERY, way))
    results: list[float] = []
    begin = time.perf_counter()
    long = measure.cpu_of(lambda: results.append(train(EVERY + steps, way)))
    measure.answer(
        cpu=(long - short) * 1000 / steps,
        way=way,
        usual=round(usual, 3),
        torch=torch.__version__,
        wall_of_training=round(time.perf_counter() - begin, 3),
        accuracy=results[0],
    )


# ----------------------------------------------------------------------------------------- together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="timed steps of one run")
    parser.add_argument("--level-steps", type=int, default=2000, help="steps of a pruning level")
    parser.add_argument("--quick", action="store_true", help="a trial: one repeat of 1,000 steps")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, path, arm, batch, steps = options.child
        if side == "prepare":
            return prepare(Path(path), int(steps))
        return {"ours": ours, "theirs": theirs}[side](Path(path), arm, int(batch), int(steps))
    if subprocess.run([options.torch_python, "-c", "import torch"], capture_output=True).returncode:
        raise SystemExit(
            f"{options.torch_python} has no torch: make an environment for the opponent with "
            "`python3 -m venv torchvenv && torchvenv/bin/pip install torch numpy` and give "
            "--torch-python torchvenv/bin/python."
        )
    repeats, steps = (1, 1000) if options.quick else (options.repeats, options.steps)
    this = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "task.npz"))
        task = measure.child(
            [sys.executable, this, "--child", "prepare", path, "-", "0", str(options.level_steps)]
        )
        arms = {}
        for arm, (bound, aim) in BOUNDS.items():
            for batch in (60, 128):
                print(f"{arm}, batch {batch}", file=sys.stderr, flush=True)
                rest = [path, arm, str(batch), str(steps)]
                runs = measure.alternate(
                    {
                        "ours": [sys.executable, this, "--child", "ours", *rest],
                        "theirs": [options.torch_python, this, "--child", "theirs", *rest],
                    },
                    repeats,
                )
                compared = measure.arm(
                    measure.summary(runs["ours"]), measure.summary(runs["theirs"]), bound, aim
                )
                compared["validation_accuracy"] = {s: r[-1]["accuracy"] for s, r in runs.items()}
                compared["compile"] = min(r["compile"] for r in runs["ours"])
                compared["torch_way"] = runs["theirs"][-1]["way"]
                compared["torch_usual"] = min(r["usual"] for r in runs["theirs"])
                arms[f"{arm}, batch {batch}"] = compared
    measure.conclude(
        "train_lenet",
        arms,
        unit="CPU seconds per 1,000 steps, one thread",
        repeats=repeats,
        density_of_ticket=round(task["density"], 4),
        data=task["data"],
        examples=task["examples"],
        torch=runs["theirs"][-1]["torch"],
    )


if __name__ == "__main__":
    main()
