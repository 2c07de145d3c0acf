"""What runs in a worker process: takes cells from a pipe, sends back results.

Started as ``python -m secateur.lab.executors.worker FD`` with an environment made for it, so that
jax, imported here for the first time, sees one thread.
"""

from __future__ import annotations

import os
import pickle
import queue
import runpy
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from secateur.lab.checkpoints import Checkpoints
from secateur.lab.compute import Task, compute, failure, made
from secateur.lab.watch import CellWatch, Stopped

_TELL = 0.2  # seconds between reports of progress


def main(descriptor: int) -> None:
    """Serves until the driver says so, or is gone."""
    # Ctrl-C reaches every process of the terminal, and a batch system's SIGTERM every one of the
    # job; the driver decides what comes of it, and without the driver this process ends anyway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = Connection(descriptor)
    tasks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stopping = threading.Event()
    sending = threading.Lock()

    def listen() -> None:
        """Reads from the driver; where it is gone, this process has nobody to work for."""
        while True:
            try:
                kind, content = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            if kind == "stop":
                stopping.set()
            else:
                tasks.put(content if kind == "task" else None)

    def send(*message: Any) -> None:
        try:
            with sending:
                pipe.send(message)
        except OSError:
            os._exit(0)

    kind, setting = pipe.recv()
    assert kind == "setting"
    threading.Thread(target=listen, name="driver", daemon=True).start()
    try:
        work = prepare(setting)
    except Exception as error:
        send("unusable", failure(error))
        return
    publisher = Checkpoints(setting["store"])
    while (content := tasks.get()) is not None:
        task: Task = pickle.loads(content)
        address = task.cell.address
        watch = CellWatch(
            publisher,
            address,
            setting["interval"],
            tell=_seldom(lambda step, steps: send("tick", step, steps)),
            warn=lambda sentence: send("warn", sentence),
            stopping=stopping.is_set,
        )
        try:
            result = compute(work, task, watch, setting["trainer"])
            send("done", result, made(watch, setting["executor"]))
        except Stopped:
            send("stopped")
        except Exception as error:
            send("failed", failure(error))


def setting(work: Any, store: str, interval: float, trainer: str, executor: str) -> dict[str, Any]:
    """What a worker must know before its first cell."""
    main_module = sys.modules.get("__main__")
    return {
        "path": sys.path,
        # A function of the script that the user started is found by running that script anew,
        # under another name: `if __name__ == "__main__"` keeps it from running everything.
        "main": getattr(main_module, "__file__", None) if _of_main(work) else None,
        "work": pickle.dumps(work),
        "store": os.path.abspath(store),
        "interval": interval,
        "trainer": trainer,
        "executor": executor,
    }


def _of_main(work: Any) -> bool:
    return getattr(work, "__module__", None) == "__main__"


def prepare(setting: dict[str, Any]) -> Any:
    """The work function, its module imported as the driver has it."""
    sys.path[:] = setting["path"]
    if setting["main"]:
        names = runpy.run_path(setting["main"], run_name="__mp_main__")
        sys.modules["__main__"].__dict__.update(names)
    return pickle.loads(setting["work"])


def _seldom(tell: Any) -> Any:
    """`tell`, a few times a second at most."""
    last = [0.0]

    def told(step: int, steps: int) -> None:
        now = time.monotonic()
        if now - last[0] >= _TELL:
            last[0] = now
            tell(step, steps)

    return told


if __name__ == "__main__":
    main(int(sys.argv[1]))
