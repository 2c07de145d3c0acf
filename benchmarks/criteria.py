"""CPU seconds of pruning before training: Secateur against the same computation in PyTorch.

    python benchmarks/criteria.py [--torch-python PATH] [--repeats 3] [--quick]

One thread each, the same sizes, counts and rounds, data from memory. What is timed is the second
call, when programs are compiled and memory is warm; compilation stands beside it.

- synflow: 100 rounds on LeNet-300-100 to 2 %.
- ntk-sap: one round of five draws at batch 100 on ResNet-20 with batch norm, published estimator:
  new weights, a pass that sets the statistics, two evaluations, one backward pass through both.
- snip, grasp: one score of 100 examples of 32 x 32 x 3 on ResNet-20, batch statistics.

The opponent is a plain version written for this benchmark, without hooks or data loaders; the
faster of its two memory layouts counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

ARMS = {  # arm: (bound, aim)
    "synflow": (0.5, None),
    "ntk-sap": (1.0, None),
    "snip": (1.0, None),
    "grasp": (1.0, None),
}
EXAMPLES, DRAWS, SIGMA, DENSITY = 100, 5, 0.01, 0.02


# ------------------------------------------------------------------------------------ our own side


def ours(arm: str) -> None:
    """The child that scores with Secateur."""
    import numpy as np

    from secateur.networks.registry import network
    from secateur.prune.find import find

    rng = np.random.default_rng(0)
    data = (
        rng.standard_normal((EXAMPLES, 32, 32, 3), np.float32),
        (np.arange(EXAMPLES) % 10).astype(np.int32),
    )

    def run(rounds: int) -> Callable[[], Any]:
        if arm == "synflow":
            net = network("lenet-300-100")
            return lambda: find(net, None, arm, DENSITY, progress=False)
        net = network("resnet-20")
        given: dict[str, Any] = {"progress": False}
        if arm == "ntk-sap":
            # The schedule does not change what a round costs.
            given |= {"rounds": rounds, "draws": DRAWS, "examples": EXAMPLES, "sigma": SIGMA}
            return lambda: find(net, None, arm, DENSITY, **given)
        given |= {"bn": "batch"} | ({"examples": EXAMPLES} if arm == "snip" else {"per_class": 10})
        return lambda: find(net, data, arm, DENSITY, **given)

    first = measure.cpu_of(run(1))
    one = measure.cpu_of(run(1))
    if arm == "ntk-sap":  # so that drawing the first weights does not count
        measure.answer(cpu=(measure.cpu_of(run(3)) - one) / 2, compile=round(first - one, 3))
    else:
        measure.answer(cpu=one, compile=round(first - one, 3))


# ------------------------------------------------------------------------------------- the opponent


def theirs(arm: str) -> None:
    """The child that scores with PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential()
            if before != after:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
                )

        def forward(self, x: Any) -> Any:
            h = F.relu(self.bn1(self.conv1(x)))
            return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))

    def resnet_20() -> Any:
        blocks, before = [], 16
        for stage, width in enumerate((16, 32, 64)):
            for k in range(3):
                blocks.append(Block(before, width, 2 if k == 0 and stage else 1))
                before = width
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def kernels(net: Any) -> list[Any]:
        return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    def initialise(net: Any) -> None:
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def keep(scores: list[Any], count: int) -> list[Any]:
        flat = torch.cat([s.reshape(-1) for s in scores])
        cut = torch.kthvalue(flat, len(flat) - count + 1).values
        return [(s >= cut).float() for s in scores]

    def synflow() -> Callable[[], Any]:
        weights = [
            torch.randn(b, a) * (2 / a) ** 0.5 for a, b in ((784, 300), (300, 100), (100, 10))
        ]
        total = sum(w.numel() for w in weights)

        def run() -> Any:
            sizes = [w.abs() for w in weights]
            masks = [torch.ones_like(w) for w in weights]
            for k in range(1, 101):
                live = [(w * m).requires_grad_() for w, m in zip(sizes, masks)]
                x = torch.ones(1, 784)
                for w in live:
                    x = F.linear(x, w)
                grads = torch.autograd.grad(x.sum(), live)
                scores = [(g * w).detach() for g, w in zip(grads, live)]
                masks = keep(scores, round(total * DENSITY ** (k / 100)))
            return masks

        return run

    def on_resnet(channels_last: bool) -> Callable[[], Any]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = resnet_20().to(memory_format=layout)
        initialise(net)
        weights = kernels(net)
        total = sum(w.numel() for w in weights)
        x = torch.randn(EXAMPLES, 3, 32, 32).to(memory_format=layout)
        y = torch.randint(0, 10, (EXAMPLES,))

        def snip() -> Any:
            net.train()
            grads = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
            return keep([(w * g).abs().detach() for w, g in zip(weights, grads)], total // 50)

        def grasp() -> Any:
            net.train()
            loss = F.cross_entropy(net(x) / 200, y)
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            product = sum((g * g.detach()).sum() for g in grads)
            second = torch.autograd.grad(product, weights)
            return keep([(w * h).detach() for w, h in zip(weights, second)], total // 50)

        def ntk_sap() -> Any:
            from torch.func import functional_call

            names = {id(w): n for n, w in net.named_parameters()}
            masks = [torch.ones_like(w).requires_grad_() for w in weights]
            score = [torch.zeros_like(w) for w in weights]
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
            for _ in range(DRAWS):
                initialise(net)
                z = torch.randn(EXAMPLES, 3, 32, 32).to(memory_format=layout)
                with torch.no_grad():
                    net.train()
                    net(z)
                net.eval()
                clean = {names[id(w)]: w.detach() * m for w, m in zip(weights, masks)}
                moved = {
                    names[id(w)]: (w.detach() + SIGMA * torch.randn_like(w)) * m
                    for w, m in zip(weights, masks)
                }
                gap = functional_call(net, clean, (z,)) - functional_call(net, moved, (z,))
                grads = torch.autograd.grad((gap**2).sum(), masks)
                score = [s + g for s, g in zip(score, grads)]
            return keep([s.abs() for s in score], total // 2)

        return {"snip": snip, "grasp": grasp, "ntk-sap": ntk_sap}[arm]

    if arm == "synflow":
        run = synflow()
        run()
        measure.answer(cpu=measure.cpu_of(run), layout="", torch=torch.__version__)
        return
    times = {}
    for layout in (False, True):
        run = on_resnet(layout)
        run()
        times["channels_last" if layout else "default"] = measure.cpu_of(run)
    best = min(times, key=lambda k: times[k])
    measure.answer(
        cpu=times[best],
        layout=best,
        layouts={k: round(v, 3) for k, v in times.items()},
        torch=torch.__version__,
    )


# ----------------------------------------------------------------------------------------- together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a trial: one repeat")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, arm = options.child
        return {"ours": ours, "theirs": theirs}[side](arm)
    if subprocess.run([options.torch_python, "-c", "import torch"], capture_output=True).returncode:
        raise SystemExit(
            f"{options.torch_python} has no torch: make an environment for the opponent with "
            "`python3 -m venv torchvenv && torchvenv/bin/pip install torch numpy` and give "
            "--torch-python torchvenv/bin/python."
        )
    this = str(Path(__file__).resolve())
    compared = {}
    for arm in options.arms:
        print(arm, file=sys.stderr, flush=True)
        runs = measure.alternate(
            {
                "ours": [sys.executable, this, "--child", "ours", arm],
                "theirs": [options.torch_python, this, "--child", "theirs", arm],
            },
            1 if options.quick else options.repeats,
        )
        bound, aim = ARMS[arm]
        compared[arm] = measure.arm(
            measure.summary(runs["ours"]), measure.summary(runs["theirs"]), bound, aim
        )
        compared[arm]["compile"] = min(run["compile"] for run in runs["ours"])
        compared[arm]["torch_layouts"] = runs["theirs"][-1].get("layouts", {})
    measure.conclude(
        "criteria",
        compared,
        unit="CPU seconds, one thread, programs compiled",
        repeats=options.repeats,
        torch=runs["theirs"][-1]["torch"],
    )


if __name__ == "__main__":
    main()
