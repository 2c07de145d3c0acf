"""The figure of a mask's health as a file."""

from __future__ import annotations

import pytest

import secateur
from secateur.core.errors import SecateurError
from secateur.networks.mlp import mlp
from secateur.report.export import save
from secateur.report.health import draw


def test_health_is_drawn_into_a_file_by_its_ending(tmp_path):
    pytest.importorskip("vl_convert")
    net = mlp(6, input_shape=(4,), outputs=3)
    ticket = secateur.find(net, None, "magnitude", 0.5, progress=False)
    figure = draw(secateur.examine(net, ticket, ntk=False))
    save(figure, tmp_path / "health.svg")
    assert "dense_1" in (tmp_path / "health.svg").read_text()
    with pytest.raises(SecateurError, match="figure format"):
        save(figure, tmp_path / "health.jpg")
