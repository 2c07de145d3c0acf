"""The command. It parses, calls and prints; what it does stands in the rooms below.

Nothing heavy is imported at the top: ``--help`` answers before an array library would have loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from secateur import __version__
from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    from secateur.studies.plan import Plan

STORE = "secateur-runs"
EXECUTORS = ("serial", "processes", "lanes", "ray")


class Sentences(click.Group):
    """A group whose errors are one line: what is wrong and what to do. Exit status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            with _stopped_by_ctrl_c():
                status = super().main(*args, **kwargs)
        except SecateurError as error:
            _say(error)
            sys.exit(getattr(error, "status", 2))
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort:
            _say("stopped.")
            sys.exit(130)
        except click.ClickException as error:
            _say(error.format_message())
            sys.exit(2)
        except BrokenPipeError:  # `secateur studies | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        sys.exit(status if isinstance(status, int) else 0)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            from secateur.core.errors import nearest

            raise SecateurError(
                f"there is no command {cmd_name!r}. {nearest(cmd_name, sorted(self.commands))}"
            )
        return found


@contextlib.contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the command at once and for certain, whatever it is in.

    Raised as an exception it can be lost: inside the callbacks of the array library's garbage
    collection Python prints it, ignores it and goes on. Whatever is written is written whole, so
    there is nothing to be undone; while cells are computed the lab listens instead.
    """
    try:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, _stop)
    except ValueError:  # not the main thread: a program that calls the command
        ours = False
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"secateur: stopped.\n")
    os._exit(130)


def script() -> None:
    """The command as a process of its own: what ``secateur`` and ``python -m secateur`` run.

    When the command has done its work, Python itself takes a while to end. A Ctrl-C then is too
    late to stop anything, and would show as an error of work that is done.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(message: object) -> None:
    text = str(message)
    click.echo(f"secateur: {text}", err=True)


@click.group(cls=Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="secateur")
def main() -> None:
    """How neural networks learn, studied by cutting them down.

    Begin with: secateur run lottery
    """


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which cells of a study are meant."""
    for option in reversed(
        (
            click.argument("study"),
            click.option("--preset", help="Named settings: quick, paper, ... (see: studies)."),
            click.option("--seeds", type=int, help="How many seeds: 0, 1, ..., N-1."),
            click.option("--first-seed", type=int, default=0, show_default=True, help="The first."),
            click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="One field."),
            click.option(
                "--grid", "grids", multiple=True, metavar="FIELD=A,B,C", help="One run for each."
            ),
            click.option(
                "--store", default=STORE, show_default=True, type=click.Path(path_type=Path)
            ),
            click.option("--data-dir", help="Where data sets lie; a list, as in PATH."),
        )
    ):
        command = option(command)

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("data_dir"):
            # Workers find the data as the driver does, through their environment.
            os.environ["SECATEUR_DATA"] = os.pathsep.join(
                str(Path(part).absolute()) for part in kwargs["data_dir"].split(os.pathsep) if part
            )
        kwargs.pop("data_dir")
        return command(*args, **kwargs)

    return wrapped


def _plan(study: str, preset: str | None, seeds: int | None, **more: Any) -> Plan:
    from secateur.studies.plan import plan

    return plan(study, preset, seeds, **more)


def _narrowed(
    preset: str | None,
    seeds: int | None,
    first_seed: int,
    sets: tuple[str, ...],
    grids: tuple[str, ...],
) -> bool:
    """Whether a command says which cells it means."""
    return bool(preset or seeds is not None or first_seed or sets or grids)


@main.command()
@_chosen
@click.option(
    "--executor",
    type=click.Choice(EXECUTORS),
    help="Where cells are computed; the default suits the machine.",
)
@click.option("--workers", type=int, help="Processes, lanes or Ray tasks at once.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done and what it takes; do nothing."
)
def run(
    study: str,
    preset: str | None,
    seeds: int | None,
    first_seed: int,
    sets: tuple[str, ...],
    grids: tuple[str, ...],
    store: Path,
    executor: str | None,
    workers: int | None,
    dry_run: bool,
) -> None:
    """Run STUDY, or go on where it stopped, and write its page.

    Results that the store has are not computed again. Stop it whenever you like: the same command
    goes on from there.
    """
    planned = _plan(study, preset, seeds, first_seed=first_seed, sets=sets, grids=grids)
    from secateur.lab.executors import default_executor, make_executor
    from secateur.lab.run import CellsFailed
    from secateur.lab.run import run as compute
    from secateur.lab.store import Store
    from secateur.lab.watch import interval_from_environment

    if executor:
        chosen = make_executor(executor, workers)
    else:
        chosen = default_executor(planned.cells, workers)
    interval = interval_from_environment()
    if dry_run:
        there = Store(store, create=False) if (store / "cells").is_dir() else None
        for line in planned.estimate(there, chosen):
            click.echo(line)
        return
    for part in planned.parts if hasattr(planned.study, "sets") else ():
        planned.study.sets(part.fields)  # fetched, verified and cut before any worker asks for it
    kept = Store(store)
    planned.remember(kept)
    failed: CellsFailed | None = None
    try:
        compute(planned.cells, planned.study.work, kept, chosen, interval=interval)
    except CellsFailed as error:
        failed = error
    try:
        _pages(planned, kept)
    except SecateurError:
        if failed is None:
            raise
    click.echo(f"results  {kept.path.absolute()}")
    if failed:
        raise failed


@main.command()
@_chosen
@click.option(
    "--figures", type=click.Path(path_type=Path), help="Also write them here: SVG, PDF, PNG."
)
@click.option("--format", "formats", multiple=True, default=("svg", "pdf"), show_default=True)
def report(
    study: str,
    preset: str | None,
    seeds: int | None,
    first_seed: int,
    sets: tuple[str, ...],
    grids: tuple[str, ...],
    store: Path,
    figures: Path | None,
    formats: tuple[str, ...],
) -> None:
    """Write the page of STUDY from what the store has; nothing is computed.

    Without --preset, --seeds and --set it is the page of the last run of STUDY in this store.
    """
    from secateur.lab.store import Store
    from secateur.studies.plan import recalled

    kept = Store(store, create=False)
    if _narrowed(preset, seeds, first_seed, sets, grids):
        planned = _plan(study, preset, seeds, first_seed=first_seed, sets=sets, grids=grids)
    else:
        planned = recalled(study, kept)
    _pages(planned, kept, figures, formats)


def _pages(
    planned: Plan, store: Any, figures: Path | None = None, formats: tuple[str, ...] = ()
) -> None:
    from secateur.data.registry import load
    from secateur.report import build, page

    for part in planned.parts:
        known = getattr(part.fields, "dataset", None)
        try:
            data = load(known, download=False) if known else None
        except SecateurError:  # a report needs the store alone; it then shows no sample images
            data = None
        view = build.view(planned.study, part.fields, part.cells, store, data, part.command)
        folder = store.path.absolute()
        stem = part.name if folder.name == STORE else f"{folder.name}-{part.name}"
        written = page.write(view, folder.parent / f"{stem}.html")
        click.echo(f"page     {written}")
        if figures:
            from secateur.report.export import save_figures

            place = figures / part.name if len(planned.parts) > 1 else figures
            for path in save_figures(view, place, formats):
                click.echo(f"figure   {path}")


@main.command()
def studies() -> None:
    """The studies, their presets and fields."""
    from secateur.studies.plan import described

    for line in described():
        click.echo(line)


@main.command()
@click.option("--store", default=STORE, show_default=True, type=click.Path(path_type=Path))
def status(store: Path) -> None:
    """What the store holds, what failed, and how far the last runs are."""
    from secateur.lab.store import Store
    from secateur.studies.plan import progress

    for line in progress(Store(store, create=False)):
        click.echo(line)


@main.command()
@_chosen
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--curves", is_flag=True, help="One row a point of a curve instead of one a cell.")
def export(
    study: str,
    preset: str | None,
    seeds: int | None,
    first_seed: int,
    sets: tuple[str, ...],
    grids: tuple[str, ...],
    store: Path,
    path: Path,
    curves: bool,
) -> None:
    """Write the results of STUDY as a tidy table: PATH ends in .csv, .json or .parquet.

    Without --preset, --seeds, --set and --grid these are all its results in the store.
    """
    from secateur.lab.cells import closure
    from secateur.lab.export import export as write
    from secateur.lab.store import Store
    from secateur.studies.registry import study as known

    known(study)
    addresses = None
    if _narrowed(preset, seeds, first_seed, sets, grids):
        planned = _plan(study, preset, seeds, first_seed=first_seed, sets=sets, grids=grids)
        addresses = {cell.address for cell in closure(planned.cells)}
    rows = write(Store(store, create=False), study, path, curves, addresses)
    click.echo(f"{rows} rows in {path}")


@main.command()
@click.argument("method")
@click.option("--network", "name", default="lenet-300-100", show_default=True, help="By name.")
@click.option("--dataset", default="mnist5k", show_default=True, help="Scored on; its shape.")
@click.option("--density", type=float, required=True, help="Kept over prunable weights.")
@click.option("--scope", help="Where weights compete; the method's own without it.")
@click.option("--rounds", type=int, help="How many; the method's own without it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and draws.")
@click.option("--parity", help="The published code whose rules are followed.")
@click.option("--set", "sets", multiple=True, metavar="OPTION=VALUE", help="One of the method's.")
@click.option("--data-dir", help="Where data sets lie; a list, as in PATH.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("ticket.safetensors"),
              show_default=True)  # fmt: skip
def find(
    method: str,
    name: str,
    dataset: str,
    density: float,
    scope: str | None,
    rounds: int | None,
    seed: int,
    parity: str | None,
    sets: tuple[str, ...],
    data_dir: str | None,
    out: Path,
) -> None:
    """Prune a built-in network before training with METHOD; write the ticket and its health."""
    from secateur.data.registry import load
    from secateur.data.splits import split
    from secateur.lab.spec import values_of
    from secateur.networks.registry import network
    from secateur.prune.examine import examine as look
    from secateur.prune.find import begin
    from secateur.prune.find import find as search
    from secateur.prune.methods import option_types

    options = values_of(f"option of {method}", option_types(method), sets)
    data = load(dataset, data_dir)
    made = network(name, input_shape=data.train.images.shape[1:], outputs=len(data.classes))
    cut = split(data, validation=len(data.train) // 10)
    click.echo(f"pruning {name} with {method}; programs are compiled first", err=True)
    found = search(
        made, cut, method, density, scope=scope, rounds=rounds, seed=seed, parity=parity, **options
    )
    found.save(out)
    click.echo(str(look(made, found, params=begin(made, seed, None, None)[0])))
    click.echo(f"\nticket   {out.absolute()}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--network", default="", help="By name; the ticket's own without it.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw it: .svg, .pdf or .png.")
def examine(file: Path, network: str, figure: Path | None) -> None:
    """The health of the ticket in FILE before training: what is alive, what is dead."""
    from secateur.prune.examine import examine_file

    health = examine_file(file, network)
    click.echo(str(health))
    if figure:
        from secateur.report.export import save
        from secateur.report.health import draw

        save(draw(health), figure)
        click.echo(f"\nfigure   {figure.absolute()}")


@main.command()
@click.argument("name", required=False)
@click.option("--data-dir", help="Where data sets lie; a list, as in PATH.")
def data(name: str | None, data_dir: str | None) -> None:
    """The data sets and where they are; with NAME, fetch and check that one."""
    from secateur.data.registry import describe, load

    if name:
        found = load(name, data_dir)
        click.echo(
            f"{found.name}: {len(found.train.labels):,} training and {len(found.test.labels):,} "
            f"test examples, {found.source}; sha256 {found.sha256[:16]}"
        )
        return
    for row in describe(data_dir):
        lacking = "fetched when first used" if row["fetched"] else "to be put into --data-dir"
        where = row["where"] if row["found"] else f"not here: {lacking}"
        click.echo(f"{row['name']:<16}{row['bytes'] / 1e6:>8.1f} MB  {row['title']}; {where}")


if __name__ == "__main__":
    script()
