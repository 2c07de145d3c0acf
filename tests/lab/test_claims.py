"""One owner a cell; the dead and the silent lose theirs; several commands share one store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import standin_study
from killing import numbers, tiny

from secateur.lab import owner
from secateur.lab.claims import Claims
from secateur.lab.store import Store

ADDRESS = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path).path


def dead_token() -> str:
    """The token of a process that has ended."""
    code = "from secateur.lab import owner; print(owner.token())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip() + "-00000000"


def claim_of(store, token: str, age: float = 0.0) -> None:
    path = store / "claims" / f"{ADDRESS}.json"
    path.write_text(json.dumps({"owner": token, "pid": 1, "host": "argon"}))
    os.utime(path, (time.time() - age,) * 2)


def test_one_owner_at_a_time(store):
    first, second = Claims(store), Claims(store)
    assert first.take(ADDRESS)
    assert not second.take(ADDRESS)
    assert second.holder(ADDRESS).startswith(f"process {os.getpid()} on ")
    first.release(ADDRESS)
    assert second.take(ADDRESS)
    first.release(ADDRESS)  # not ours any more: nothing happens
    assert not first.take(ADDRESS)
    second.close()
    assert first.take(ADDRESS)
    first.close()
    assert os.listdir(store / "claims") == []
    assert os.listdir(store / "partial") == []


def test_many_at_once_have_one_winner(store):
    for round_ in range(20):
        address = f"{round_:064x}"
        rivals, won = [Claims(store) for _ in range(8)], []
        start = threading.Barrier(8)

        def rush(one, won=won, start=start, address=address):
            start.wait()
            if one.take(address):
                won.append(one)

        threads = [threading.Thread(target=rush, args=(one,)) for one in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].close()


def test_a_void_claim_is_taken_over_by_one(store):
    gone = dead_token()
    for _ in range(10):
        claim_of(store, gone)
        rivals, won = [Claims(store) for _ in range(8)], []
        start = threading.Barrier(8)

        def rush(one, won=won, start=start):
            start.wait()
            if one.take(ADDRESS):
                won.append(one)

        threads = [threading.Thread(target=rush, args=(one,)) for one in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].close()


def test_the_living_keep_theirs_however_silent(store):
    claim_of(store, owner.token() + "-0", age=1e6)
    assert not Claims(store).take(ADDRESS)


@pytest.mark.parametrize(("age", "taken"), [(0.0, False), (100.0, False), (130.0, True)])
def test_other_machines_are_judged_by_their_heartbeat(store, age, taken):
    claim_of(store, "00000000-1-1-0", age=age)
    claims = Claims(store)
    assert claims.take(ADDRESS) is taken
    claims.close()


def test_a_broken_claim_is_void_after_a_while(store):
    (store / "claims" / f"{ADDRESS}.json").write_text("{")
    assert not Claims(store).take(ADDRESS)
    claims = Claims(store, silent=-1)
    assert claims.take(ADDRESS)
    claims.close()


def test_a_held_claim_beats(store):
    claims = Claims(store, beat=0.02)
    claims.take(ADDRESS)
    os.utime(claims.path(ADDRESS), (0, 0))
    end = time.monotonic() + 5
    while claims.path(ADDRESS).stat().st_mtime < 1e6 and time.monotonic() < end:
        time.sleep(0.01)
    assert claims.path(ADDRESS).stat().st_mtime > 1e6
    claims.close()


def test_no_hard_links_are_needed(store, monkeypatch):
    def link(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("secateur.lab.claims.os.link", link)
    first, second = Claims(store), Claims(store)
    assert first.take(ADDRESS)
    assert not second.take(ADDRESS)
    first.close()


def test_a_process_is_told_from_its_pid_s_next_owner():
    assert owner.alive(owner.token()) is True
    machine, pid, started = owner.token().split("-")
    assert owner.alive(f"{machine}-{pid}-{int(started) + 1}") is (started == "0")
    assert owner.alive(f"{machine}-999999999-1") is False
    assert owner.alive(f"00000000-{pid}-{started}") is None
    assert owner.alive("nonsense") is None


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_two_commands_share_one_store(tmp_path, executor):
    """Each cell is computed once, by one or the other; both end with all of them."""
    command = tiny("--executor", executor, "--workers", "1")
    command.finish(tmp_path / "alone")
    # Slow enough for the second to come in time, on a busy machine too.
    both = [command.start(tmp_path / "store", STANDIN_PAUSE="0.04") for _ in range(2)]
    texts = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    told = [text.split("computed ")[1].split() for text in texts]
    computed = [int(words[0]) for words in told]
    cells = len(standin_study.cells())
    assert sum(computed) == cells, "a cell was computed twice, or not at all"
    assert min(computed) > 0, "one of them did nothing"
    assert numbers(tmp_path / "store") == numbers(tmp_path / "alone")
