"""Writes docs/methods.md: a card for every method of pruning before training.

    python scripts/cards.py

The cards are the methods' own docstrings and declarations, so that page and code cannot differ; a
test fails when the page is not what this writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from secateur.prune.criterion import Criterion
from secateur.prune.methods import METHODS, Row, load

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """# Methods of pruning before training

<!-- Written by scripts/cards.py from the docstrings; change those. -->

```python
import secateur

network = secateur.lenet_300_100()
data = secateur.split(secateur.load("mnist5k"), validation=500)
ticket = secateur.find(network, data, "snip", density=0.05, progress=False)
print(ticket)
```

`find` takes any name of this page. What is not said follows the method's paper: rounds, schedule,
scope, options; `ticket.provenance` says what that was. Options are given by name and checked:
`find(network, data, "grasp", density=0.05, rank="absolute")`. Larger scores stay, in every method.
Published code is followed, where it differs, with `parity="synaptic-flow"` and the like.
"""
PARAGRAPH = """
A method of your own is a class with one function; it needs no line anywhere. Give `find` an
instance:

```python
from dataclasses import dataclass

import jax.numpy as jnp

from secateur.core.trees import map_mask
from secateur.prune.criterion import Criterion


@dataclass(frozen=True)
class NearOne(Criterion):
    title = "weights near one"
    source = "this page"
    centre: float = 1.0

    def score(self, problem, params, mask, key):
        score = lambda m, w: None if m is None else -jnp.abs(jnp.abs(w) - self.centre)
        return map_mask(score, mask, params)


print(secateur.find(network, method=NearOne(centre=0.5), density=0.05).provenance.title)
```
"""


def sections(text: str) -> tuple[str, str]:
    """A docstring before its ``Attributes:``, and the attributes."""
    before, _, after = inspect.cleandoc(text).partition("\nAttributes:\n")
    return before.strip(), after.rstrip()


def attributes(text: str) -> dict[str, str]:
    """name (or "a, b") -> what the docstring says of it, on one line."""
    found: dict[str, str] = {}
    last = ""
    for line in inspect.cleandoc(text).splitlines() if text else ():
        head = re.match(r"([a-z_][a-z_0-9, ]*): (.*)", line)
        if head and not line.startswith(" "):
            last = head[1]
            found[last] = head[2]
        elif last:
            found[last] += " " + line.strip()
    return found


def prose(text: str) -> str:
    """reStructuredText's double backticks as Markdown's single ones; * as itself."""
    text = text.replace("``", "`")
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def cost(kind: Any) -> str:
    needs = " and ".join(sorted(kind.needs)) or "no data"
    return f"**Needs** {needs}. **Cost of a score** {kind.passes or 'none'}."


def way(name: str, row: Row, kind: Any) -> str:
    if not issubclass(kind, Criterion):
        return "makes its mask in a way of its own"
    schedule = row.schedule or kind.schedule
    rounds = kind.rounds
    turns = "1 round" if rounds == 1 else f"{rounds} rounds, {schedule}"
    revival = "; pruned weights may come back" if kind.revival else ""
    return f"{turns}; {row.scope or kind.scope}{revival}"


def card(kind: Any, names: list[str]) -> str:
    before, after = sections(kind.__doc__)
    lines = [f"## {kind.title}", ""]
    for name in names:
        row = METHODS[name]
        fixed = ", ".join(f"`{k}={v!r}`" for k, v in row.options.items())
        lines.append(f"- `{name}`: {way(name, row, kind)}" + (f"; {fixed}" if fixed else ""))
    lines += ["", prose(before), "", f"{cost(kind)} **Source** {prose(kind.source)}", ""]
    options = [f for f in dataclasses.fields(kind) if f.init]
    told = attributes(after)
    if options:
        lines += ["| option | default | |", "|---|---|---|"]
        said: set[str] = set()
        for option in options:
            words = next((k for k in told if option.name in re.split(r",\s*", k)), "")
            text = prose(told.get(words, "")) if words not in said else "as above"
            said.add(words)
            lines.append(f"| `{option.name}` | `{option.default!r}` | {text} |")
        lines.append("")
    if kind.trap:
        lines += [f"**Trap.** {prose(kind.trap)}", ""]
    if kind.codes:
        lines += ["**Published code.**", "", *(f"- {prose(code)}" for code in kind.codes), ""]
    return "\n".join(lines)


def written() -> str:
    """The whole page."""
    kinds: dict[Any, list[str]] = {}
    for name in METHODS:
        kinds.setdefault(load(name), []).append(name)
    table = ["| method | | needs | how it is run |", "|---|---|---|---|"]
    for kind, names in kinds.items():
        for name in names:
            anchor = re.sub(r"[^\w\- ]", "", kind.title).lower().replace(" ", "-")
            needs = ", ".join(sorted(kind.needs)) or "nothing"
            table.append(
                f"| `{name}` | [{kind.title}](#{anchor}) | {needs} | "
                f"{way(name, METHODS[name], kind)} |"
            )
    cards = [card(kind, names) for kind, names in kinds.items()]
    return "\n".join([HEAD, *table, PARAGRAPH, *cards]).rstrip() + "\n"


def main() -> None:
    PAGE.write_text(written())
    print(f"{PAGE.name}: {len(METHODS)} methods")


if __name__ == "__main__":
    main()
