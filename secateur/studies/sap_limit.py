"""What is left of NTK-SAP when its draws are many: SynFlow with equal weights, and noise within.

Over symmetric random weights all weights of a dense layer are alike, so the expected score of
NTK-SAP is one number a layer: 2 tr / N_l at a full mask, and the derivative of a sum over paths at
any other (`NtkSap`, estimator ``limit``). The study tests what follows. Scores within a layer even
out as one over the root of the draws. Layers whose scores do not differ end with equally many
weights; the noise of few draws, like the spread of weights in SynFlow, tells weights apart. Two
masks of one network agree no more than by chance. Shuffling a mask within its layers costs little.
Wang, Li & Sun, ICLR 2023, is the method; the limit is derived here.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from secateur.core.errors import SecateurError
from secateur.lab.cells import Cell, Result
from secateur.studies import trained
from secateur.studies.figures import Curves
from secateur.studies.sap_limit_claims import CLAIMS
from secateur.studies.sap_limit_words import (
    CLOSED,
    MASKS,
    ONCE,
    SCORES,
    SHUFFLED,
    branches,
    citation,
    notes,
    sentence,
)

if TYPE_CHECKING:
    from secateur.core.keys import Key
    from secateur.core.network import Network
    from secateur.data.examples import Sets
    from secateur.prune.ticket import Ticket
    from secateur.train.training import Fitted, Training

name = "sap-limit"
title = "NTK-SAP and its limit"
meaning = 1  # raise when results change meaning: the golden cell in the tests says when
claims = CLAIMS
summary = "what NTK-SAP chooses, and what is noise: against its limit of many draws and SynFlow"
__all__ = ["branches", "citation", "notes", "sentence"]

# Trained masks: branch -> method and options. All else is the method's paper's.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ntk-sap": ("ntk-sap", {}),
    "ntk-sap vjp": ("ntk-sap", {"estimator": "vjp"}),
    "limit": ("ntk-sap-limit", {}),
    "synflow": ("synflow", {}),
    "random": ("random", {}),
}
ESTIMATORS = ("fd", "vjp")


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the study varies.

    Attributes:
        dataset: a name of ``secateur data``.
        validation: examples held out of the training part; ``split`` is the seed of that cut.
        hidden: widths of the hidden layers; ``initialiser`` of the kernels.
        steps: of each training; ``evaluate_every`` divides it. Adam at ``learning_rate``.
        levels: trained densities: level c keeps the fraction 0.8^c of the weights.
        draws: numbers of draws at which the variation of scores within a layer is measured.
        budgets: draws a round of masks that are only compared with the limit, at ``level``.
        closed: draws that test the closed form.
    """

    dataset: str = "mnist"
    validation: int = 5000
    split: int = 0
    hidden: tuple[int, ...] = (300, 100)
    initialiser: str = "kaiming_normal"
    learning_rate: float = 1.2e-3
    batch: int = 60
    steps: int = 3000
    evaluate_every: int = 100
    levels: tuple[int, ...] = (6, 10, 14, 18)
    draws: tuple[int, ...] = (4, 16, 64, 256, 1024)
    budgets: tuple[int, ...] = (1, 5, 25, 125)
    level: int = 18
    closed: int = 4096


presets: dict[str, Fields] = {
    "quick": Fields(
        dataset="mnist5k",
        validation=500,
        steps=400,
        evaluate_every=20,
        levels=(10, 18),
        draws=(4, 16, 64),
        budgets=(1, 5, 25),
        closed=256,
    ),
    "paper": Fields(),
}
seeds = {"quick": 3, "paper": 5}

_ACCURACY: dict[str, Any] = {
    "x": "density",
    "x_title": "weights remaining",
    "x_log": True,
    "x_reverse": True,
}
_BUDGET: dict[str, Any] = {
    "x": "budget",
    "x_title": "draws of weights a round",
    "x_log": True,
    "percent_y": True,
}
figures = (
    Curves(
        name="accuracy",
        title="Test accuracy against weights remaining",
        caption="At the last step of training. All methods of a seed begin with the same weights.",
        y="last.test_accuracy",
        y_title="test accuracy",
        percent_x=True,
        percent_y=True,
        **_ACCURACY,
    ),
    Curves(
        name="spread",
        title="Scores within a layer even out with the draws",
        caption="Standard deviation over mean of the signed scores of a layer, all weights alive; "
        "the mean over layers. By symmetry the expected scores of a layer are equal, so all of "
        "this is noise, and falls as one over the root of the draws: a line of slope -1/2 here.",
        x="draws",
        y="spread",
        x_title="draws of weights",
        y_title="variation within a layer",
        x_log=True,
        y_log=True,
    ),
    Curves(
        name="from-limit",
        title="Layer densities against those of the limit",
        caption="Largest relative difference of a layer's density from that of the limit of "
        "infinitely many draws, by draws a round.",
        y="from_limit",
        y_title="largest difference",
        **_BUDGET,
    ),
    Curves(
        name="from-synflow",
        title="Layer densities against those of SynFlow",
        caption="The same against SynFlow at the initial weights of the seed.",
        y="from_synflow",
        y_title="largest difference",
        **_BUDGET,
    ),
    Curves(
        name="overlap",
        title="How far two masks of one network agree beyond chance",
        caption="Weights that two masks from different random numbers have in common, as a "
        "fraction of the weights kept, minus what independent masks with the same layer densities "
        "have in common on average.",
        y="overlap_beyond_chance",
        y_title="in common beyond chance",
        percent_x=True,
        percent_y=True,
        **_ACCURACY,
    ),
)


def check(fields: Fields) -> None:
    """Refuses what cannot be run, before anything is.

    Raises:
        SecateurError: one sentence: what is wrong, what was expected.
    """
    from secateur.core.errors import lookup
    from secateur.kernels.ensemble import INITIAL_VARIANCES

    trained.recipe(fields)
    lookup("initialiser", fields.initialiser, INITIAL_VARIANCES)
    if not fields.hidden or min(fields.hidden) < 1:
        raise SecateurError(f"hidden lists widths of at least 1, not {fields.hidden}.")
    for told in ("levels", "draws", "budgets"):
        given = getattr(fields, told)
        if not given or min(given) < 1 or len(set(given)) < len(given):
            raise SecateurError(f"{told} lists different whole numbers of at least 1, not {given}.")
    if fields.closed < 2:
        raise SecateurError(f"closed is at least 2 draws, not {fields.closed}.")
    if fields.validation < 1:
        raise SecateurError(f"validation is at least 1, not {fields.validation}.")


_TRAINED = ("validation", "split", "learning_rate", "batch", "steps", "evaluate_every")
_LISTS = ("levels", "draws", "budgets", "level", "closed")  # they are in a cell's place


def cells(fields: Fields, seeds: Sequence[int], data: str) -> list[Cell]:
    """Every cell of the study, each after those it needs.

    Args:
        data: SHA-256 of the data set; masks and scores see none of it but its shape.
    """
    described = trained.described(fields, _LISTS)
    untrained = {k: v for k, v in described.items() if k not in _TRAINED}
    data, made = trained.data_address(data), []

    def cell(
        seed: int, branch: str, level: int, cost: float, more: Any = None, **needs: Cell
    ) -> Cell:
        is_trained = more is None
        place = {"branch": branch, "level": level, **(more or {})}
        told = described if is_trained else untrained
        made.append(Cell(name, meaning, told, seed, place, data, needs, cost))
        return made[-1]

    for seed in seeds:
        cell(seed, "dense", 0, fields.steps)
        for level in fields.levels:
            for method in METHODS:
                masked = cell(seed, method, level, fields.steps + 1000)
                if method != "random":
                    cell(seed, method + SHUFFLED, level, fields.steps, mask=masked)
        for estimator in ESTIMATORS:
            for k, draws in enumerate(fields.draws, start=1):
                cell(seed, estimator + SCORES, k, 3.0 * draws, {"draws": draws})
            for k, draws in enumerate(fields.budgets, start=1):
                more = {"at": fields.level, "draws": draws}
                cell(seed, estimator + MASKS, k, 60.0 * draws, more)
        cell(seed, ONCE, 1, 500.0, {"at": fields.level})
        cell(seed, CLOSED, 1, 3.0 * fields.closed, {"draws": fields.closed})
    return made


def takes(fields: Fields) -> dict[str, Any]:
    """What a cell takes: steps, CPU seconds a step, compiled programs, bytes of memory and disk.

    Draws are counted as three steps each: of LeNet-300-100 at 100 inputs both take about 1 ms.
    """
    return {
        "steps": fields.steps,
        "seconds_per_step": 1.25e-3 * (0.2 + 0.8 * fields.batch / 60),
        "programs": "1 of training, 1 a method, estimator and budget",
        "memory": 1.2e9,
        "disk": 1e5,
    }


def network(fields: Fields) -> Network:
    """A dense ReLU network for the data set; biases start at 0."""
    from secateur.core.errors import lookup
    from secateur.data.registry import DATASETS
    from secateur.networks.mlp import mlp

    entry = lookup("data set", fields.dataset, DATASETS)
    return mlp(
        *fields.hidden,
        input_shape=tuple(entry.shape),
        outputs=len(entry.classes),
        initialiser=fields.initialiser,
    )


def sets(fields: Fields) -> Sets:
    """The three sets of a run.

    Raises:
        SecateurError: where the data are not at hand or cannot be cut like this.
    """
    return trained.sets(fields.dataset, fields.validation, fields.split)


def work(cell: Cell, inputs: Mapping[str, Result]) -> Generator[Training, Fitted, Result]:
    """Trains one mask, or measures scores or masks alone. The lab drives it."""
    fields = msgspec.convert({"levels": [], "draws": [], "budgets": [], **cell.fields}, Fields)
    branch = cell.place["branch"]
    if branch.endswith(SCORES):
        return spread(cell, network(fields))
    if branch.endswith(MASKS) or branch == ONCE:
        return _compared(cell, network(fields))
    if branch == CLOSED:
        from secateur.kernels.ensemble import INITIAL_VARIANCES

        return closed_form(cell, network(fields), INITIAL_VARIANCES[fields.initialiser])
    return (yield from _trained(cell, inputs, fields))


# -- masks that are trained ---------------------------------------------------------------------


def _trained(
    cell: Cell, inputs: Mapping[str, Result], fields: Fields
) -> Generator[Training, Fitted, Result]:
    import jax
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.train.training import Training

    data, net = sets(fields), network(fields)
    branch, level, seed = cell.place["branch"], int(cell.place["level"]), cell.seed
    initial, stats, ones = lottery.begin(net, seed)
    more: dict[str, Any] = {}
    if branch == "dense":
        mask = ones
    elif branch.endswith(SHUFFLED):
        mask = trained.unpack_mask(inputs["mask"], ones)
        mask = lottery.shuffle_within_layers(mask, seed, "shuffled", branch, level)
    else:
        method, options = METHODS[branch]
        find = key(seed, "find", branch, level)
        ticket = _find(net, method, level, find, initial, **options)
        mask = ticket.mask
        other = jax.tree.map(np.asarray, net.init(key(seed, "twin"))[0])
        twin = _find(net, method, level, key(seed, "twin", branch, level), other, **options)
        more = {**_overlap(mask, twin.mask), "dispersion": _dispersion(mask)}
        told = msgspec.to_builtins(ticket.provenance)
        kept = ("title", "source", "options", "scope", "rounds", "bn")
        more["provenance"] = {k: told[k] for k in kept}
    start = jax.tree.map(np.asarray, trees.apply_mask(mask, initial))
    fitted = yield Training(
        net,
        start,
        stats,
        data,
        trained.recipe(fields),
        mask,
        key(seed, "train"),  # of all methods: the same examples in the same order
        siblings=10,
        grain=128,
    )
    values = {
        "branch": branch,
        "level": level,
        **trained.told(mask, fitted, data, {"initial": initial, "start": start}),
        **more,
    }
    alive, weights = trees.alive(mask), sum(trees.sizes(ones).values())
    checks = {"exact counts": sum(alive.values()) == int(0.8**level * weights + 0.5)}
    if branch.endswith(SHUFFLED):
        before = trees.alive(trained.unpack_mask(inputs["mask"], ones))
        checks["as many weights in each layer as the method's mask"] = before == alive
    return Result(values, trained.pack_mask(mask), {**fitted.checks, **checks})


def _find(net: Network, method: str, level: int, seed: Key, params: Any, **options: Any) -> Ticket:
    from secateur.prune.find import find

    return find(net, None, method, 0.8**level, seed=seed, params=params, progress=False, **options)


def _densities(mask: Any) -> dict[str, float]:
    from secateur.core import trees

    sizes = trees.sizes(mask)
    return {name: n / sizes[name] for name, n in trees.alive(mask).items()}


def _equal(sizes: Mapping[str, int], total: float) -> dict[str, float]:
    """Layer densities where each layer keeps as many weights, or all it has; ``total`` in all."""
    left, count, found = total, len(sizes), {}
    for leaf, n in sorted(sizes.items(), key=lambda item: item[1]):
        kept = min(n, left / count)
        found[leaf], left, count = kept / n, left - kept, count - 1
    return found


def _overlap(mask: Any, twin: Any) -> dict[str, float]:
    """Weights that two masks share, and would on average if each layer were shuffled; over kept."""
    import numpy as np

    from secateur.core import trees

    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(trees.flatten(mask).values(), trees.flatten(twin).values())
        if a is not None
    ]
    kept = sum(int(a.sum()) for a, _ in pairs)
    common = sum(int((a & b).sum()) for a, b in pairs) / kept
    chance = sum(int(a.sum()) * int(b.sum()) / a.size for a, b in pairs) / kept
    return {"overlap": common, "chance": chance, "overlap_beyond_chance": common - chance}


def _dispersion(mask: Any) -> dict[str, float]:
    """Variance over mean of the live weights into each unit: 1 - density at random places."""
    import numpy as np

    from secateur.core import trees

    found = {}
    for leaf, m in trees.flatten(mask).items():
        if m is not None:
            into = np.asarray(m).sum(axis=0)
            found[leaf] = float(into.var() / into.mean()) if into.any() else 0.0
    return found


# -- masks and scores alone ---------------------------------------------------------------------


def _compared(cell: Cell, net: Network) -> Result:
    """A mask at one budget beside the limit's and SynFlow's; layer by layer."""
    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery

    branch, level, seed = cell.place["branch"], int(cell.place["at"]), cell.seed
    initial, _, ones = lottery.begin(net, seed)

    def densities(method: str, **options: Any) -> dict[str, float]:
        return _densities(_find(net, method, level, key(seed, "alone"), initial, **options).mask)

    if branch == ONCE:
        found, published = densities("ntk-sap", rounds=1), densities("ntk-sap")
        sizes = trees.sizes(ones)
        largest = max(sizes, key=lambda leaf: sizes[leaf])
        more = {"layer": largest, "once_over_rounds": found[largest] / published[largest]}
    else:
        draws = int(cell.place["draws"])
        found = densities("ntk-sap", estimator=branch.removesuffix(MASKS), draws=draws)
        limit, synflow = densities("ntk-sap-limit"), densities("synflow")
        sizes = trees.sizes(ones)
        equal = _equal(sizes, sum(limit[k] * n for k, n in sizes.items()))
        apart = lambda theirs: max(abs(found[k] / d - 1) for k, d in theirs.items() if d)
        more = {
            "budget": draws,
            "from_limit": apart(limit),
            "from_synflow": apart(synflow),
            "limit_from_synflow": max(abs(limit[k] / d - 1) for k, d in synflow.items() if d),
            "limit_from_equal": max(abs(limit[k] / d - 1) for k, d in equal.items()),
            "limit_by_layer": limit,
            "synflow_by_layer": synflow,
        }
    values = {"branch": branch, "level": int(cell.place["level"]), "density_by_layer": found}
    return Result({**values, **more})


@lru_cache(maxsize=8)
def _summed(net: Network, estimator: str, inputs: str) -> Any:
    """Compiled: (problem, params, mask, key, draws) -> sums of estimates, squares, signed scores.

    The number of draws is data, so that all of them share one program.
    """
    import jax
    import jax.numpy as jnp

    from secateur.prune.criteria.ntk_sap import NtkSap

    sap = NtkSap(estimator=estimator, draws=1, inputs=inputs)

    @jax.jit
    def run(problem: Any, params: Any, mask: Any, key: Any, draws: Any) -> Any:
        def draw(number: Any, total: Any) -> Any:
            one = jax.random.fold_in(key, number)
            value, scores = sap.saliency(problem, params, mask, one)
            return jax.tree.map(jnp.add, total, (value, value**2, scores))

        shapes = jax.eval_shape(sap.saliency, problem, params, mask, key)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], *shapes))
        return jax.lax.fori_loop(0, draws, draw, zero)

    return run


def spread(cell: Cell, net: Network) -> Result:
    """How far the mean scores of a layer lie apart after some draws, all weights alive."""
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.prune.problem import Problem

    branch, draws = cell.place["branch"], int(cell.place["draws"])
    estimator = branch.removesuffix(SCORES)
    initial, stats, ones = lottery.begin(net, cell.seed)
    # One stream for all numbers of draws, so that more go on where fewer ended.
    stream = key(cell.seed, "spread", estimator)
    run = _summed(net, estimator, "noise")
    value, _, scores = run(Problem(net, stats), initial, ones, stream, draws)
    found = {k: np.asarray(s, float) for k, s in trees.flatten(scores).items() if s is not None}
    by_layer = {k: float(s.std() / s.mean()) for k, s in found.items()}
    off = max(abs(s.sum() / (2 * float(value)) - 1) for s in found.values())
    values = {
        "branch": branch,
        "level": int(cell.place["level"]),
        "draws": draws,
        "spread_by_layer": by_layer,
        "spread": sum(by_layer.values()) / len(by_layer),
    }
    return Result(values, {}, {"layers conserve the score to 1e-3 in single precision": off < 1e-3})


def closed_form(cell: Cell, net: Network, variance: Any) -> Result:
    """The mean trace of a random mask on fixed inputs, by draws and by the sum over paths."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune import lottery
    from secateur.prune.criteria.ntk_sap import NtkSap
    from secateur.prune.problem import Problem
    from secateur.structure.flow import log_flow

    draws, seed = int(cell.place["draws"]), cell.seed
    initial, stats, ones = lottery.begin(net, seed)
    rng = np.random.default_rng([seed, 17])
    mask = trees.map_mask(lambda m: None if m is None else rng.random(m.shape) < 0.5, ones)
    # Inputs that are not centred and differ in size, so that their part in the formula is seen.
    x = rng.random((100, *net.input_shape)).astype(np.float32)
    problem = Problem(net, stats, jnp.asarray(x))

    run = _summed(net, "vjp", "data")
    total, squares, scores = run(problem, initial, mask, key(seed, "closed form"), draws)
    mean = float(total) / draws
    error = np.sqrt(max(float(squares) / draws - mean**2, 0.0) / (draws - 1))

    gates = trees.map_mask(lambda m: None if m is None else jnp.asarray(m, jnp.float32), mask)
    q = jnp.sum(jnp.asarray(x) ** 2, axis=0)
    paths = float(jax.jit(lambda u, v: log_flow(net, initial, stats, u, v))(gates, q))
    shapes = [np.shape(m) for m in trees.flatten(mask).values() if m is not None]
    var = np.array([variance(*shape) for shape in shapes])
    wanted = float(np.exp(paths + (1 - len(var)) * np.log(2) + np.log(var).sum())) * sum(1 / var)

    sap = NtkSap(estimator="limit", inputs="data")
    limit = jax.jit(sap.saliency)(problem, initial, mask, key(seed, "limit"))[1]
    found, theory = [], []
    for leaf, m in trees.flatten(mask).items():
        if m is not None:
            found.append(np.asarray(trees.flatten(scores)[leaf])[m] / draws)
            theory.append(np.asarray(trees.flatten(limit)[leaf])[m] * wanted)
    values = {
        "branch": CLOSED,
        "level": 1,
        "draws": draws,
        "mean": mean,
        "formula": wanted,
        "ratio": mean / wanted,
        "standard_error": float(error / wanted),
        "z": float((mean - wanted) / error),
        "pearson": float(np.corrcoef(np.concatenate(found), np.concatenate(theory))[0, 1]),
        "identity": _identity(net, mask, seed),
    }
    return Result(values)


def _identity(net: Network, mask: Any, seed: int) -> float:
    """Largest relative error of "each layer's signed scores sum to 2 D" of `fd`, in float64."""
    import jax

    from secateur.core import trees
    from secateur.core.keys import key
    from secateur.prune.criteria.ntk_sap import NtkSap
    from secateur.prune.problem import Problem

    with jax.enable_x64(True):
        params, stats = net.init(key(seed, "identity"))
        sap = NtkSap(draws=1, examples=20, theta="fixed")
        value, scores = jax.jit(sap.saliency)(
            Problem(net, stats), params, mask, key(seed, "identity", "draw")
        )
        sums = [s.sum() for s in trees.flatten(scores).values() if s is not None]
        return max(float(abs(s / (2 * value) - 1)) for s in sums)
