"""The same study on a local Ray of two workers, one of which is killed."""

from __future__ import annotations

import importlib.util

import pytest
from killing import numbers, tiny

from secateur.core.errors import SecateurError
from secateur.lab.executors import ray as ray_executor

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra 'ray')"
)


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_local_ray_with_a_killed_worker(tmp_path):
    tiny(trainings=2).finish(tmp_path / "whole")
    sabotage = f"rewind level 2, seed 1|after|{tmp_path / 'count'}|1"
    command = tiny("--executor", "ray", "--workers", "2", trainings=2)
    text = command.finish(tmp_path / "store", STANDIN_KILL=sabotage)
    assert (tmp_path / "count").stat().st_size == 1
    assert "rewind level 2, seed 1 was lost (WorkerCrashedError); trying again (1 of 2)" in text
    assert "Traceback" not in text
    assert numbers(tmp_path / "store") == numbers(tmp_path / "whole")


def test_without_ray_there_is_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[ray\]'"):
        ray_executor._import_ray()
