"""Films played in a headless Chromium: one moment for all panels, controls that do their part."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from secateur.features.graphs import cosine_at
from secateur.report import page as report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

PIXELS = "name => document.querySelector(`#film-${name}`).toDataURL()"
SET = """([name, value]) => { const node = document.querySelector(`#film-${name}`);
  node.value = value; node.dispatchEvent(new Event('input', {bubbles: true}));
  node.dispatchEvent(new Event('change', {bubbles: true})); }"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="session")
def made(fabricated: Any) -> Any:
    """The module that makes films up."""
    path = Path(__file__).parents[1] / "report" / "fabricated_films.py"
    spec = importlib.util.spec_from_file_location("fabricated_films", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("fabricated_films", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, fabricated: Any, made: Any) -> Path:
    """Levels 1, 3, 5 of two branches and seeds; two layers, one of them without vectors."""
    view = fabricated.view(seeds=2, levels=6, films=made.films())
    return report.write(view, tmp_path_factory.mktemp("films") / "films.html")


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory, fabricated: Any, made: Any) -> Path:
    """One film of the plane."""
    view = fabricated.view(seeds=1, levels=3, films=[made.plane()])
    return report.write(view, tmp_path_factory.mktemp("films") / "plane.html")


@pytest.fixture
def watch(show: Callable[..., Any]) -> Callable[..., Any]:
    def open_page(path: Path, **how: Any) -> Any:
        opened = show(path=path, **how)
        opened.page.wait_for_selector("#films.ready", timeout=30_000)
        return opened

    return open_page


def chosen(page: Any) -> dict[str, str]:
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('#film-choices [data-place]')]
        .map(node => [node.dataset.place, node.value]))"""
    )


def pictures(page: Any, *names: str) -> list[str]:
    return [page.evaluate(PIXELS, name) for name in names]


PANELS = ("loss", "vectors", "graph", "gram-left", "gram-right", "apart")


def test_every_panel_follows_the_slider(watch: Any, played: Path) -> None:
    opened = watch(played)
    page = opened.page
    assert opened.text("#film-words") == "step 0 · frame 1 of 12"
    first = pictures(page, *PANELS)
    assert len(set(first)) == len(PANELS)
    page.evaluate(SET, ["frame", "7"])
    assert opened.text("#film-words") == "step 70 · frame 8 of 12"
    assert all(a != b for a, b in zip(first, pictures(page, *PANELS), strict=True))
    page.evaluate(SET, ["frame", "0"])
    assert pictures(page, *PANELS) == first  # no chance, and no memory of the way
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [played.as_uri()]


def test_keys_step_and_the_loss_can_be_dragged(watch: Any, played: Path) -> None:
    page = watch(played).page
    words = lambda: page.text_content("#film-words")
    page.focus("#film-frame")
    page.keyboard.press("ArrowRight")
    assert "frame 2 of" in words()
    page.focus("#film-loss")
    for key, frame in (("ArrowRight", 3), ("End", 12), ("ArrowLeft", 11), ("Home", 1)):
        page.keyboard.press(key)
        assert f"frame {frame} of" in words()
    assert page.get_attribute("#film-loss", "aria-valuenow") == "0"
    box = page.locator("#film-loss").bounding_box()
    left, right = box["x"] + 46, box["x"] + box["width"] - 14
    page.mouse.move(left + (right - left) * 5 / 11, box["y"] + 60)
    page.mouse.down()
    assert "step 50 " in words()
    page.mouse.move(left + (right - left) * 9.2 / 11, box["y"] + 60)
    page.mouse.up()
    assert "step 90 " in words()
    page.locator("#film-apart").scroll_into_view_if_needed()
    box = page.locator("#film-apart").bounding_box()
    page.mouse.click(left + (right - left) * 2 / 11, box["y"] + 60)
    assert "step 20 " in words()


def test_play_runs_to_the_end_and_begins_anew(watch: Any, played: Path) -> None:
    opened = watch(played)
    page = opened.page
    assert page.get_attribute("#film-play", "aria-pressed") == "false"  # nothing plays by itself
    page.select_option("#film-speed", "4")
    page.click("#film-play")
    page.wait_for_selector("#film-play[aria-pressed=false]", timeout=10_000)
    assert "frame 12 of 12" in opened.text("#film-words")
    page.select_option("#film-speed", "0.25")
    page.click("#film-play")
    assert "frame 1 of 12" in opened.text("#film-words")
    page.click("#film-play")
    assert page.get_attribute("#film-play", "aria-pressed") == "false"


def test_choices_and_the_pages_selection_follow_each_other(watch: Any, played: Path) -> None:
    opened = watch(played)
    page = opened.page
    settled = lambda want: page.wait_for_function(
        """want => Object.entries(want).every(([name, value]) => document.querySelector(
        `#film-choices [data-place=${name}]`).value === value)""",
        arg=want,
    )
    assert chosen(page) == {"branch": "rewind", "level": "5", "seed": "0"}
    page.select_option("[data-place=level]", "1")
    page.wait_for_function(
        "() => document.querySelector('#selected').textContent.includes('level 1')"
    )
    page.evaluate(
        """() => { const slider = document.querySelector('#level'); slider.value = 3;
        slider.dispatchEvent(new Event('input', {bubbles: true})); }"""
    )
    settled({"branch": "rewind", "level": "3", "seed": "0"})
    page.click("#branches [data-branch=none]")
    settled({"branch": "none", "level": "3", "seed": "0"})
    page.select_option("[data-place=seed]", "1")
    page.wait_for_function(
        "() => document.querySelector('#selected').textContent.includes('Not rewound, seed 1')"
    )
    page.evaluate(
        """() => { const slider = document.querySelector('#level'); slider.value = 2;
        slider.dispatchEvent(new Event('input', {bubbles: true})); }"""
    )
    page.wait_for_timeout(100)
    assert chosen(page) == {"branch": "none", "level": "3", "seed": "1"}  # level 2 has no film
    assert opened.said == []


def test_each_control_changes_its_panel_and_no_other(watch: Any, played: Path) -> None:
    page = watch(played).page
    page.evaluate(SET, ["frame", "6"])
    page.select_option("#film-layer", "dense_1/kernel")
    reach = {
        "x": ("2", {"vectors"}),
        "y": ("4", {"vectors"}),
        "lengths": ("log", {"vectors"}),
        "trails": ("0", {"vectors"}),
        "cutoff": ("0.8", {"graph"}),
        "spread": ("0.5", {"graph"}),
        "layout": ("projection", {"graph"}),
        "definition": ("text", {"graph"}),
        "across": ("frames", {"loss", "apart"}),
        "up": ("linear", {"loss"}),
        "entries": ("cosine", {"gram-left", "gram-right"}),
    }
    for name, (value, changed) in reach.items():
        before = dict(zip(PANELS, pictures(page, *PANELS), strict=True))
        page.evaluate(SET, [name, value])
        after = dict(zip(PANELS, pictures(page, *PANELS), strict=True))
        assert {panel for panel in PANELS if before[panel] != after[panel]} == changed, name
    before = pictures(page, "graph")
    page.check("#film-names")
    assert pictures(page, "graph") != before


def test_the_scale_of_grams_is_of_each_or_common(watch: Any, played: Path) -> None:
    page = watch(played).page
    grams = lambda: pictures(page, "gram-left", "gram-right")
    own = grams()
    page.evaluate(SET, ["scale", "pair"])
    pair = grams()
    assert pair[0] != own[0]  # the ticket's is the smaller one
    assert pair[1] == own[1]
    page.evaluate(SET, ["scale", "common"])
    assert grams()[0] != pair[0]
    page.evaluate(SET, ["entries", "cosine"])
    assert not page.locator("#film-scale").is_visible()


def test_controls_that_mean_nothing_are_hidden(watch: Any, played: Path, flat: Path) -> None:
    page = watch(played).page
    assert page.locator("#film-x").is_visible()
    assert not page.locator("#film-left").is_visible()  # two networks: nothing to choose
    assert page.text_content("#film-left-name") == "ticket"
    page.select_option("#film-layout", "projection")
    assert not page.locator("#film-spread").is_visible()
    page.select_option("#film-layer", "dense_2/kernel")
    assert not page.locator("#film-vectors").is_visible()
    assert page.locator("#film-left").is_visible()
    page.select_option("#film-right", "re-drawn")
    assert "G ticket − G re-drawn" in page.text_content("#film-distance")
    page.select_option("#film-left", "re-drawn")  # the other one gives way
    assert page.input_value("#film-right") != "re-drawn"

    page = watch(flat).page
    for name in ("x", "y", "layer", "gram-left", "apart"):
        assert not page.locator(f"#film-{name}").is_visible()
    assert page.locator("#film-choices select:visible").count() == 0
    assert page.input_value("#film-lengths") == "common"


def test_edges_and_components_are_those_of_the_vectors(watch: Any, flat: Path, made: Any) -> None:
    page = watch(flat).page
    v = made.plane().arrays["vectors:filters"].astype(float)
    size = np.linalg.norm(v, axis=-1, keepdims=True)
    u = v / np.where(size > 0, size, 1)
    x = np.clip(u @ u.swapaxes(1, 2), -1, 1)
    for definition, cutoff, frame in itertools.product(("code", "text"), (0.5, 0.9), (0, 4, 8)):
        d = (1 - x) / 2 if definition == "code" else np.sqrt(1 - x)
        s = np.mean(d * (1 - np.eye(8)))
        a = np.exp(-((d[frame] / s) ** 2))
        there = (size[frame, :, 0] > 0)[:, None] & (size[frame, :, 0] > 0)
        joined = np.triu((a >= cutoff) & there, 1)
        count, labels = connected_components(coo_matrix(joined), directed=False)
        for name, value in (("definition", definition), ("cutoff", cutoff), ("frame", frame)):
            page.evaluate(SET, [name, str(value)])
        words = page.text_content("#film-graph-words")
        assert words.startswith(f"{joined.sum()} of 28 pairs are joined: {count} component")
        assert f"{np.bincount(labels).max()} unit" in words
        shown = page.text_content("#film-cutoff-words").replace("−", "-")
        assert float(shown.rsplit(" ", 1)[1]) == pytest.approx(
            max(-1, cosine_at(cutoff, s, definition)), abs=0.0051
        )


def test_pointer_tells_of_units_and_entries(
    watch: Any, flat: Path, played: Path, made: Any
) -> None:
    opened = watch(flat)
    page = opened.page
    page.locator("#film-vectors").scroll_into_view_if_needed()
    box = page.locator("#film-vectors").bounding_box()
    v = made.plane().arrays["vectors:filters"].astype(float)
    tip = v[0, 1] / np.linalg.norm(v, axis=-1).max()  # of unit 1, the outer circle 1
    radius = box["width"] / 2 - 22
    page.mouse.move(
        box["x"] + box["width"] / 2 + radius * tip[0],
        box["y"] + box["height"] / 2 - radius * tip[1],
    )
    angle = np.degrees(np.arctan2(v[0, 1, 1], v[0, 1, 0]))
    words = opened.text(".tip").replace("−", "-")
    assert "Unit 1" in words
    assert float(words.split("Norm")[1].split("Side")[0]) == pytest.approx(
        np.linalg.norm(v[0, 1]), rel=5e-3
    )
    assert float(words.split("Angle")[1].split("°")[0]) == pytest.approx(angle, abs=0.06)
    opened = watch(played)
    page = opened.page
    page.locator("#film-gram-left").scroll_into_view_if_needed()
    box = page.locator("#film-gram-left").bounding_box()
    page.mouse.move(box["x"] + 24, box["y"] + 24)
    assert "Examples0 (a), 0 (a)" in opened.text(".tip")
    assert "Cosine1.00" in opened.text(".tip")


@pytest.mark.parametrize("width", [400, 768, 1200])
def test_films_are_not_wider_than_the_screen(watch: Any, played: Path, width: int) -> None:
    page = watch(played, width=width).page
    assert page.evaluate(OVERFLOW) == 0
    for name in ("vectors", "graph", "gram-left", "gram-right"):
        box = page.locator(f"#film-{name}").bounding_box()
        assert box["width"] == pytest.approx(box["height"], abs=1)
        assert box["width"] > 150


def test_pixels_turn_with_the_theme(watch: Any, played: Path) -> None:
    page = watch(played, scheme="dark").page
    dark = pictures(page, *PANELS)
    page.click("#theme")
    page.wait_for_timeout(50)
    assert all(a != b for a, b in zip(dark, pictures(page, *PANELS), strict=True))


def test_without_script_there_are_pictures_and_a_table(show: Any, played: Path) -> None:
    page = show(path=played, script=False).page
    assert page.locator("#films img:visible").count() == 6
    assert page.locator(".film-table:visible tbody tr").count() == 12
    assert page.locator("#films .needs-script:visible").count() == 0
