"""The page as a person meets it, in a headless Chromium: it opens, answers, fits and is legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.report import page as report

pytestmark = [
    pytest.mark.browser,
    # Chromium's driver leaves sockets to the garbage collector when it stops.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

MAPS = """() => [...document.querySelectorAll('#maps canvas')].map(canvas => canvas.toDataURL())"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_opens_without_a_word_and_asks_for_nothing_but_itself(show: Any, file: Path) -> None:
    for scheme in ("light", "dark"):
        opened = show(scheme=scheme)
        opened.page.wait_for_timeout(200)
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith("data:")] == [file.as_uri()]


def test_the_policy_stops_what_would_leave_the_page(show: Any) -> None:
    """The page's own policy forbids requests, whatever a later change puts into it."""
    opened = show()
    fetched = opened.page.evaluate(
        "() => fetch('https://example.org/x').then(() => 'went', () => 'stopped')"
    )
    assert fetched == "stopped"
    assert not any("example.org" in url for url in opened.asked)


def test_figures_are_drawn(show: Any) -> None:
    opened = show()
    charts = opened.page.query_selector_all(".chart svg")
    assert len(charts) == 3
    for chart in charts:
        box = chart.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 200


def test_slider_moves_the_masks_and_the_table(show: Any, fabricated: Any) -> None:
    opened = show()
    page = opened.page
    page.wait_for_selector("#maps canvas")
    last = page.evaluate(MAPS)
    page.evaluate(
        """() => { const slider = document.querySelector('#level'); slider.value = 2;
        slider.dispatchEvent(new Event('input', {bubbles: true})); }"""
    )
    second = page.evaluate(MAPS)
    assert len(last) == len(second) == 4
    assert all(before != after for before, after in zip(last, second, strict=True))
    assert second[0] == second[1] != second[2]  # the control wears the ticket's mask
    assert page.get_attribute("#heat tr.here", "data-level") == "2"
    made = fabricated.view(seeds=3, levels=6)
    live = next(
        int((image > 0).sum())
        for row, image in zip(made.rows, made.images, strict=True)
        if (row["branch"], row["seed"], row["level"]) == ("rewind", 0, 2)
    )
    assert opened.text("#maps figure .live") == f"{live} of 784 inputs live"


def test_slider_answers_to_the_keyboard(show: Any) -> None:
    opened = show()
    opened.page.focus("#level")
    opened.page.keyboard.press("ArrowLeft")
    assert "level 4" in opened.text("#selected")
    assert "level 4" in opened.page.get_attribute("#level", "aria-valuetext")
    opened.page.keyboard.press("Home")
    assert "level 0 (100.0% of weights)" in opened.text("#selected")


def test_play_runs_through_the_levels_and_stops(show: Any) -> None:
    opened = show()
    opened.page.evaluate(
        """() => { const slider = document.querySelector('#level'); slider.value = 4;
        slider.dispatchEvent(new Event('input', {bubbles: true})); }"""
    )
    opened.page.click("#play")
    assert opened.page.get_attribute("#play", "aria-pressed") == "true"
    opened.page.wait_for_selector("#play[aria-pressed=false]", timeout=5000)
    assert "level 5" in opened.text("#selected")


def where(page: Any, branch: str, level: int, figure: str = "figure-accuracy") -> tuple[int, int]:
    """Where on the screen the mean of a branch at a level is drawn."""
    page.locator(f"#{figure}").scroll_into_view_if_needed()
    found = page.evaluate(
        """([figure, branch, level]) => {
          for (const node of document.querySelectorAll(`#${figure} svg path`)) {
            const item = node.__data__, datum = item && item.datum;
            if (datum && datum.branch === branch && datum.level === level && datum.n) {
              const box = node.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }
          }
        }""",
        [figure, branch, level],
    )
    return tuple(found)


@pytest.mark.parametrize("figure", ["figure-accuracy", "figure-step"])
def test_click_on_a_curve_selects_its_run(show: Any, figure: str) -> None:
    opened = show()
    page = opened.page
    assert "Rewound to initialisation, seed 0, level 5" in opened.text("#selected")
    page.mouse.click(*where(page, "control", 5, figure))
    assert "Ticket, re-initialised, seed 0, level 5" in opened.text("#selected")
    assert page.get_attribute("#branches [aria-pressed=true]", "data-branch") == "control"
    assert page.locator(".card:visible").get_attribute("id") == "run-control-0"
    assert opened.text("#table-where") == "Ticket, re-initialised, seed 0"


def test_click_between_points_selects_the_branch_and_keeps_the_level(show: Any) -> None:
    opened = show()
    page = opened.page
    (x4, y4), (x5, y5) = where(page, "chain", 4), where(page, "chain", 5)
    page.mouse.click((x4 + x5) / 2, (y4 + y5) / 2)
    assert "Re-initialised at each level, seed 0, level 5" in opened.text("#selected")


def test_legend_seed_and_trust_table_select_too(show: Any) -> None:
    opened = show()
    page = opened.page
    page.click("#branches [data-branch=none]")
    page.click("#seeds [data-seed='2']")
    assert "Not rewound, seed 2" in opened.text("#selected")
    assert page.locator(".card:visible").get_attribute("id") == "run-none-2"
    page.click(".runs a[data-branch=chain][data-seed='1']")
    assert "Re-initialised at each level, seed 1" in opened.text("#selected")


def test_pointer_on_a_point_tells_its_numbers(show: Any) -> None:
    opened = show()
    page = opened.page
    page.mouse.move(*where(page, "none", 3))
    page.wait_for_selector(".tip:not([hidden])")
    words = opened.text(".tip")
    for part in ("Not rewound", "51.28%", "95% interval", "Seeds"):
        assert part in words


@pytest.mark.parametrize("width", [400, 768, 1200])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_nothing_is_wider_than_the_screen(show: Any, width: int, script: bool) -> None:
    opened = show(width=width, script=script)
    if script:  # with every table open, too
        assert opened.page.evaluate(OVERFLOW) == 0
        opened.page.evaluate(
            "() => document.querySelectorAll('details').forEach(d => d.open = true)"
        )
    size = opened.page.evaluate(OVERFLOW) if script else overflow_without_script(opened.page)
    assert size == 0


def overflow_without_script(page: Any) -> int:
    """The scroll width as the browser reports it to its driver, which needs no script."""
    metrics = page.context.new_cdp_session(page).send("Page.getLayoutMetrics")
    return int(metrics["cssContentSize"]["width"] - metrics["cssLayoutViewport"]["clientWidth"])


def test_without_script_all_cards_and_tables_are_there(show: Any) -> None:
    opened = show(script=False)
    assert opened.page.locator(".card:visible").count() == 12
    assert opened.page.locator("#heat:visible tbody tr").count() == 6
    assert opened.page.locator("#maps img:visible").count() == 4
    assert opened.page.locator(".needs-script:visible").count() == 0


CONTRAST = """() => {
  const parse = colour => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
    const context = canvas.getContext('2d');
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const bad = [];
  let n = 0;
  for (const node of document.querySelectorAll('body *')) {
    const words = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!words || !node.checkVisibility() || node.closest('script, noscript, .unseen')) continue;
    const style = getComputedStyle(node);
    const inChart = node instanceof SVGElement;
    const ink = parse(inChart ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(node))].sort((x, y) => y - x);
    n += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([node.tagName, node.className.baseVal ?? node.className,
      node.textContent.trim().slice(0, 40), ratio]);
  }
  return {n, bad};
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(show: Any, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every piece of text, those in the figures included."""
    found = show(scheme=scheme).page.evaluate(CONTRAST)
    assert found["n"] > 200
    assert found["bad"] == []


def ground(page: Any) -> list[int]:
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return [int(float(part)) for part in colour.split("(")[1].rstrip(")").split(",")[:3]]


def test_dark_is_dark_and_the_button_turns_it(show: Any) -> None:
    page = show(scheme="dark").page
    before = page.evaluate(MAPS)
    assert max(ground(page)) < 40
    page.click("#theme")
    assert min(ground(page)) > 240
    assert page.evaluate(MAPS) != before  # pixels follow, not only styles
    page.click("#theme")
    assert max(ground(page)) < 40


def test_paper_is_light_and_shows_figures_and_maps(show: Any) -> None:
    page = show(scheme="dark").page
    dark = page.evaluate(MAPS)
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert min(ground(page)) > 240
    assert page.evaluate(MAPS) != dark
    assert page.pdf(format="A4").startswith(b"%PDF-")
    page.emulate_media(media="screen")
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert max(ground(page)) < 40


def test_command_can_be_copied(show: Any, browser: Any) -> None:
    opened = show()
    opened.page.click("#again .copy >> nth=0")
    opened.page.wait_for_function("() => document.querySelector('.copy').textContent === 'Copied'")


def test_little_data_opens_in_silence(show: Any, fabricated: Any, tmp_path: Path) -> None:
    made = fabricated.view(seeds=1, levels=1, claims=(), pictures=False, names=("none",))
    path = report.write(made, tmp_path / "small.html")
    opened = show(path=path)
    assert opened.said == []
    assert "Not rewound, seed 0, level 0" in opened.text("#selected")


def test_hostile_words_do_nothing(show: Any, fabricated: Any, tmp_path: Path) -> None:
    bad = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    branches = [fabricated.Branch("rewind", bad, bad), *fabricated.BRANCHES[1:]]
    made = fabricated.view(seeds=1, levels=3, title=bad, command=bad, branches=branches)
    opened = show(path=report.write(made, tmp_path / "bad.html"))
    opened.page.mouse.move(*where(opened.page, "rewind", 2))
    opened.page.wait_for_timeout(150)
    assert opened.said == []
    assert opened.page.evaluate("() => window.broken") is None
    assert bad in opened.text("#selected")
