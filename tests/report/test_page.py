"""The page as text: what stands in it, what cannot, and that little data does not break it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import itertools
import json
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from fabricated import BRANCHES, CLAIMS, inputs_alive, view

from secateur.core.errors import SecateurError
from secateur.lab import verdicts
from secateur.report import claims, inside, numbers, page, png, series, trust
from secateur.report.view import View


class Outline(html.parser.HTMLParser):
    """Open elements, to see that each is closed, and every attribute that could fetch something."""

    VOID = frozenset(("meta", "img", "input", "link", "br", "line", "circle", "path"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images_without_alt = 0
        self.scripts = 0
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [str(found[name]) for name in ("src", "href", "data") if name in found]
        self.images_without_alt += tag == "img" and "alt" not in found
        self.scripts += tag == "script"
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return page.build(view())


def payload(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_page_is_whole_and_fetches_nothing(text: str) -> None:
    outline = Outline(text)
    assert outline.open == []
    assert outline.images_without_alt == 0
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)


def test_headings_leave_no_level_out(text: str) -> None:
    levels = Outline(text).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_page_is_small() -> None:
    """5 seeds x 18 levels x 4 branches stay below 3 MB, so that a page can be mailed."""
    assert len(page.build(view()).encode()) < 3_000_000


def test_same_view_same_page(text: str) -> None:
    assert page.build(view()) == text


def test_what_a_reader_without_script_finds(text: str) -> None:
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    made = view()
    for words in (made.title, made.data, made.command, "too few seeds to tell", "2,070 checks"):
        assert words in shown
    assert "all held" in shown
    assert shown.count("<article") == 20


# ---- nothing in the data can break out ---------------------------------------------------------


def test_hostile_words_stay_words() -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    made = view(
        seeds=1,
        levels=2,
        title=bad,
        sentence=bad,
        command=bad,
        citation=[bad],
        settings={bad: bad},
        notes=[bad],
        claims=[{**CLAIMS[0], "statement": bad, "note": bad, "id": bad}],
        branches=[dataclasses.replace(BRANCHES[0], label=bad, sentence=bad)],
    )
    text = page.build(made)
    clean = page.build(view(seeds=1, levels=2))
    assert Outline(text).scripts == Outline(clean).scripts
    assert "<img src=x" not in text
    assert payload(text)["branches"][0]["label"] == bad  # and arrives unharmed where it is data


def test_embedded_json_survives_the_round_trip() -> None:
    value = {"a": "</script> & \u2028 <!-- é", "b": [1, 2.5, None]}
    text = page.embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)


def test_nan_is_refused_rather_than_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        page.embedded({"a": float("nan")})


# ---- little data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        view(seeds=1, levels=3),
        view(seeds=2, levels=3, claims=()),
        view(seeds=2, levels=3, names=("none",)),
        view(seeds=2, levels=3, pictures=False),
        view(seeds=2, levels=3, figures=(), samples=(), sample_labels=()),
        view(seeds=1, levels=1, branches=()),
        View(study="lottery", title="Empty", sentence="", data="none", command="secateur"),
    ],
    ids=["one seed", "no claims", "one branch", "no maps", "no figures", "one cell", "empty"],
)
def test_little_data_makes_a_page(made: View) -> None:
    outline = Outline(page.build(made))
    assert outline.open == []


def test_a_run_that_stopped_early_shows_what_there_is() -> None:
    made = view(seeds=2, levels=4)
    kept = [k for k, row in enumerate(made.rows) if not (row["seed"] == 1 and row["level"] > 1)]
    part = dataclasses.replace(
        made, rows=[made.rows[k] for k in kept], images=[made.images[k] for k in kept]
    )
    runs = payload(page.build(part))["runs"]
    assert sorted(runs["none"]["0"]) == ["0", "1", "2", "3"]
    assert sorted(runs["none"]["1"]) == ["0", "1"]


def test_rows_with_nothing_but_their_place() -> None:
    rows = [{"branch": "a", "seed": 0, "level": level} for level in range(2)]
    made = view(seeds=1, levels=1, pictures=False, rows=rows, branches=())
    assert "nothing was checked" in page.build(made)


# ---- pictures and maps -------------------------------------------------------------------------


def decode(content: bytes) -> np.ndarray:
    """A PNG read by its definition: chunks, checksums, filter 0; the writer's opposite."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, parts = 8, {}
    while place < len(content):
        size, name = struct.unpack(">I4s", content[place : place + 8])
        body = content[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", content[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(name + body)
        parts[name] = body
        place += 12 + size
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, bits, kind, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (bits, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3}[kind]
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (5, 7, 1), (32, 16, 3)])
def test_png_round_trip(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode(png.encode(pixels)), pixels.reshape(*shape[:2], -1))


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_png_refuses_what_it_cannot_write(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        png.encode(pixels)


def unpacked(maps: dict) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(maps["packed"])), np.uint8)
    low, high = planes.reshape(2, -1).astype(np.uint16)
    return (low + 256 * high).reshape(maps["count"], maps["height"], maps["width"])


def test_every_map_arrives_exactly_and_equal_maps_once(text: str) -> None:
    made = view()
    maps = payload(text)["maps"]
    stack = unpacked(maps)
    for row, image in zip(made.rows, made.images, strict=True):
        index = maps["index"][row["branch"]][str(row["seed"])][str(row["level"])]
        assert np.array_equal(stack[index], image)
    assert maps["index"]["control"]["0"]["5"] == maps["index"]["rewind"]["0"]["5"]
    assert len({image.tobytes() for image in stack}) == maps["count"]


def test_density_table_is_alive_over_size() -> None:
    made = view(seeds=1, levels=4)
    row = made.rows[-1]
    density = [row["alive_by_layer"][k] / row["size_by_layer"][k] for k in row["size_by_layer"]]
    sent = payload(page.build(made))["runs"][row["branch"]]["0"]["3"]
    assert sent[0] == row["density"]
    assert sent[1] == pytest.approx(density, rel=1e-4)


def test_shade_grows_evenly_with_the_ratio() -> None:
    assert [inside.shade(d) for d in (1.0, 0.1, 0.01, 1e-3, 0.0, None)] == pytest.approx(
        [1, 2 / 3, 1 / 3, 0, 0, 0], abs=1e-3
    )


def test_images_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images for"):
        view(images=[inputs_alive(0, np.ones((28, 28)), np.random.default_rng(0))] * 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"widths": {}, "packed": {"dense_1/kernel": 512}}, "full size, survivors"),
        ({"widths": {"input": {"trained": 384}, "hidden 1": {"trained": 64}}}, "384–64"),
        ({"widths": {}}, "full size"),
        ({}, ""),
    ],
)
def test_trained_as(row: dict, words: str) -> None:
    assert inside.trained_as(row) == words


# ---- claims and trust --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 0.6, 0.55, 0.58], "yes"),
        ([-0.5, -0.6, -0.55, -0.58], "no"),
        ([0.5, -0.6, 0.1, 0.2], "open"),
        ([0.5], "open"),
    ],
)
def test_a_verdict_of_the_lab_becomes_a_line(values: list[float], kind: str) -> None:
    claim = verdicts.Claim("a", "Paper", "It helps.", "difference", paper=0.5, unit="points")
    line = claims.line(claims.judged(claim, verdicts.judge(claim, values, {})))
    assert (line["kind"], line["n"]) == (kind, len(values))
    assert line["ours"] == numbers.minus(f"{np.mean(values):+.2f}")
    assert "nan" not in str(line)
    assert "inf" not in str(line)
    assert bool(line["interval"]) == (len(values) > 1)


def test_no_seed_at_all_is_said() -> None:
    claim = verdicts.Claim("a", "Paper", "It helps.", "difference")
    line = claims.line(claims.judged(claim, verdicts.judge(claim, [], {})))
    assert (line["ours"], line["interval"], line["drawing"], line["n"]) == ("–", "", "", 0)


def test_lighter_settings_are_said() -> None:
    claim = verdicts.Claim("a", "P", "It.", "d", needs_settings={"steps": 50_000})
    note = claims.judged(claim, verdicts.judge(claim, [1.0, 1.1], {"steps": 400}))["note"]
    assert "400 of 50000" in note


def test_drawing_keeps_the_order_of_the_numbers() -> None:
    drawing = claims.drawing({"ours": 2.0, "low": 1.0, "high": 3.0, "paper": 4.0, "margin": 0.0})
    (at,) = re.findall(r'class="margin" x1="([\d.]+)"', drawing)
    ((low, high),) = re.findall(r'class="span" x1="([\d.]+)" x2="([\d.]+)"', drawing)
    (ours,) = re.findall(r'class="ours" cx="([\d.]+)"', drawing)
    (paper,) = re.findall(r'class="paper" d="M([\d.]+)', drawing)
    places = [float(x) for x in (at, low, ours, high, paper)]
    assert np.diff(places) == pytest.approx([(places[-1] - places[0]) / 4] * 4, abs=0.11)


def test_a_check_that_did_not_hold_is_said_everywhere() -> None:
    made = view(seeds=1, levels=3)
    bad = {**made.rows[-1], "checks": {**made.rows[-1]["checks"], "exact_counts": False}}
    made = dataclasses.replace(made, rows=[*made.rows[:-1], bad])
    assert trust.summary(made.rows)["failed"] == 1
    cards = {(run.branch): trust.card(run) for run in series.runs(made)}
    assert not cards["none"]["held"]
    assert cards["rewind"]["held"]
    shown = page.build(made)
    assert "1 of 54 checks did not hold" in shown
    assert "54 checks, all held" not in shown


def test_card_sums_time_and_shows_what_differs() -> None:
    made = view(seeds=1, levels=3, names=("rewind",))
    rows = [{**row, "made": {**row["made"], "threads": k}} for k, row in enumerate(made.rows)]
    (run,) = series.runs(dataclasses.replace(made, rows=rows))
    lines = dict(trust.card(run)["made"])
    assert lines["CPU time"] == numbers.seconds(sum(row["made"]["seconds_cpu"] for row in rows))
    assert lines["Threads"] == "0; 1; 2"
    assert lines["Device"] == "cpu"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100.0%"), (0.513, "51.3%"), (0.0228, "2.3%"), (0.0047, "0.47%"), (0.0, "0.0%")],
)
def test_percent(value: float, shown: str) -> None:
    assert numbers.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(59.96, "60.0 s"), (184.2, "3.1 min"), (13320.0, "3.7 h")]
)
def test_seconds(value: float, shown: str) -> None:
    assert numbers.seconds(value) == shown


# ---- writing -----------------------------------------------------------------------------------


def test_write_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lottery.html"
    made = view(seeds=1, levels=2)
    assert page.write(made, path) == path
    page.write(dataclasses.replace(made, title="Second"), path)
    assert "<h1>Second</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match="cannot write"):
        page.write(view(seeds=1, levels=1), tmp_path / "file" / "page.html")


def test_report_and_figure_declarations_import_neither_altair_nor_jax() -> None:
    import subprocess

    code = (
        "import sys, secateur.report, secateur.report.view, secateur.studies.figures;"
        "sys.exit(any(name in sys.modules for name in ('altair', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
