"""The specifications: valid, with the right numbers in them, the same figure on page and paper."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import altair
import pytest
from fabricated import ACCURACY, STEP, TOTAL, view

from secateur.core.errors import SecateurError
from secateur.report import charts, export, page
from secateur.report.series import Single, means, singles
from secateur.report.view import View


@pytest.mark.parametrize("theme", [charts.PAGE, charts.PRINT], ids=["page", "print"])
@pytest.mark.parametrize("curves", [ACCURACY, STEP, TOTAL], ids=lambda curves: curves.name)
def test_specification_is_valid_and_holds_the_numbers(curves, theme) -> None:
    made = view(seeds=3, levels=4)
    spec = charts.draw(made, curves, theme)
    altair.LayerChart.from_dict(spec, validate=True)
    expected = means(singles(made, curves))
    assert len(spec["datasets"]["means"]) == len(expected) == 16
    for point, drawn in zip(expected, spec["datasets"]["means"], strict=True):
        assert (drawn["branch"], drawn["level"]) == (point.branch, point.level)
        numbers = [drawn[name] for name in ("x", "y", "low", "high")]
        assert numbers == pytest.approx([point.x, point.y, point.low, point.high], rel=1e-5)
    assert len(spec["datasets"]["seeds"]) == 48


def test_two_seeds_do_not_press_the_curves_into_a_line() -> None:
    """t(0.975, 1) = 12.7: the axis follows the seeds, the band is cut and the page says so."""
    made = view(seeds=2, levels=6)
    every = singles(made, ACCURACY)
    middle = means(every)
    low, high = charts.frame(every, middle)
    ys = [point.y for point in every]
    assert high - low <= 2 * (max(ys) - min(ys)) + 1e-12
    assert low <= min(ys) < max(ys) <= high
    assert charts.cut(every, middle)
    assert "wider than is shown" in page.figure(made, ACCURACY)["spread"]


def test_no_room_for_what_cannot_be() -> None:
    every = [Single("a", seed, 0, 1.0, y) for seed, y in enumerate((0.01, 0.99))]
    assert charts.frame(every, means(every), percent=True) == (0.0, 1.0)
    assert charts.frame(every, means(every))[1] > 1.4


def test_narrow_bands_are_shown_whole() -> None:
    made = view(seeds=5)
    every = singles(made, ACCURACY)
    middle = means(every)
    low, high = charts.frame(every, middle)
    assert all(low <= point.low and point.high <= high for point in middle)
    assert not charts.cut(every, middle)


def scales(spec: dict, channel: str) -> list[dict]:
    return [
        layer["encoding"][channel]["scale"]
        for layer in spec["layer"]
        if channel in layer["encoding"]
    ]


def test_dense_is_at_the_left_on_a_log_axis() -> None:
    spec = charts.draw(view(seeds=2, levels=3), ACCURACY)
    assert all(s["type"] == "log" and s["reverse"] for s in scales(spec, "x"))


@pytest.mark.parametrize("channel", ["color", "strokeDash", "shape"])
def test_branches_differ_in_colour_dash_and_marker(channel: str) -> None:
    for scale in scales(charts.draw(view(seeds=1, levels=2), ACCURACY), channel):
        assert scale["domain"] == ["rewind", "control", "chain", "none"]
        assert len({str(value) for value in scale["range"]}) == 4


def test_page_colours_are_the_variables_of_the_style_sheet_and_print_has_the_light_ones() -> None:
    css = (Path(charts.__file__).parent / "assets" / "page.css").read_text()
    light = dict(re.findall(r"--(c\d): light-dark\((#\w+),", css))
    assert tuple(light[f"c{place}"] for place in range(8)) == charts.PALETTE
    used = set(re.findall(r"var\(--(\w+)\)", str(charts.draw(view(seeds=1, levels=2), ACCURACY))))
    assert used <= set(re.findall(r"--(\w+):", css))


def test_nothing_but_numbers_in_print(tmp_path: Path) -> None:
    spec = charts.draw(view(seeds=2, levels=2), ACCURACY, charts.PRINT)
    assert "var(" not in str(spec)


def test_log_ticks_lie_inside_and_are_round() -> None:
    assert charts.log_ticks(0.022, 1.0) == [0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    assert charts.log_ticks(0.0009, 1.0)[:3] == [0.001, 0.002, 0.005]


@pytest.mark.parametrize(
    "made",
    [
        view(seeds=1, levels=1),
        view(seeds=1, levels=3, names=("none",)),
        dataclasses.replace(view(), rows=(), images=()),
    ],
    ids=["one point", "one branch", "no rows"],
)
def test_little_data_is_drawn_too(made: View) -> None:
    for curves in made.figures:
        altair.LayerChart.from_dict(charts.draw(made, curves), validate=True)


def test_figures_as_files(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    made = view(seeds=2, levels=4)
    paths = export.save_figures(made, tmp_path / "figures")
    assert [path.name for path in paths][:3] == [
        f"lottery-accuracy.{ending}" for ending in ("svg", "pdf", "png")
    ]
    assert len(paths) == 9
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".svg":
            text = "".join(ElementTree.fromstring(content).itertext())
            assert "Rewound to initialisation" in text
        elif path.suffix == ".pdf":
            assert content.startswith(b"%PDF-")
            assert b"%%EOF" in content[-32:]
        else:
            assert content.startswith(b"\x89PNG\r\n\x1a\n")


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="svg"):
        export.save_figures(view(seeds=1, levels=1), tmp_path, ("svgg",))


def test_without_vl_convert_one_sentence_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[figures\]'"):
        export.save_figures(view(seeds=1, levels=1), tmp_path)


def test_bundle_is_the_one_that_draws_this_version_of_vega_lite() -> None:
    """altair writes schema vX.Y.Z; a bundle of another X.Y might not know all of it."""
    assets = Path(charts.__file__).parent / "assets"
    minor = re.search(r"/v(\d+\.\d+)", altair.SCHEMA_URL)
    assert minor
    wanted, has = minor[1], (assets / "vega.versions.txt").read_text()
    major = wanted.split(".")[0]
    assert f"Vega-Lite {major}." in has, f"run scripts/vega_bundle.py: {has} for {wanted}"
    for name in ("vega", "vega-lite", "vega-embed"):
        assert "Redistribution and use" in (assets / f"LICENSE.{name}.txt").read_text()


def test_a_logarithmic_frame_leaves_out_what_has_no_logarithm():
    every = [Single("a", seed, 1, 1.0, y) for seed, y in enumerate((0.1, 10.0))]
    low, high = charts.frame(every, means(every), log=True)
    assert 0 < low < 0.1
    assert 10 < high <= 10 * 10 + 1e-9  # half of the seeds' own range, in decades
    assert charts.cut(every, means(every), log=True)
