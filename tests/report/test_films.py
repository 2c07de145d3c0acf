"""Films on their way to the page: packed and read back, thinned, compared, and shown."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import zlib
from typing import Any

import numpy as np
import pytest
from fabricated import view
from fabricated_films import films, gathered, plane
from test_page import Outline

from secateur.features.grams import gram_distance
from secateur.features.graphs import alignment_graph
from secateur.report import films as module
from secateur.report import page, stills
from secateur.studies.films import film


def opened(told: dict[str, Any]) -> dict[str, np.ndarray]:
    """A packed film's blocks by their path, read by the definition of the packing."""
    content = zlib.decompress(base64.b64decode(told["packed"]))
    at = 0
    found = {}
    paths = [(f"{n}/{b}", v) for n, t in told["layers"].items() for b, v in t["blocks"].items()]
    for n, t in told["grams"].items():
        paths += [(f"{n}/{k}/{b}", v) for k, v2 in t["blocks"].items() for b, v in v2.items()]
    for path, block in paths:
        count = math.prod(block["shape"])
        whole = np.frombuffer(content, np.uint8, count, at).astype(np.int64)
        at += count
        bits = 8
        if block["kind"] != "gram cosine":
            whole = whole + 256 * np.frombuffer(content, np.uint8, count, at).astype(np.int64)
            at += count
            bits = 16
        q = np.cumsum(whole.reshape(block["shape"]), axis=0) % 2**bits
        if block["kind"] == "length":
            value = block["low"] * np.exp((q - 1) / 65_534 * block["span"])
            found[path] = np.where(q > 0, value, 0)
        else:
            step = {"direction": 32_767, "cosine": 1_000, "gram cosine": 127}[block["kind"]]
            found[path] = (q - 2**bits * (q >= 2 ** (bits - 1))) / step
    assert at == len(content)
    return found


def above(matrices: np.ndarray) -> np.ndarray:
    n = matrices.shape[-1]
    return np.stack([[m[i, j] for i in range(n) for j in range(i + 1, n)] for m in matrices])


def test_a_film_arrives_as_exactly_as_stated() -> None:
    [one] = films(seeds=(0,), places=[("rewind", 1)])
    found = opened(module.packed(one, np.arange(one.frames)))
    norms = one.arrays["norms:dense_1/kernel"].astype(float)
    span = math.log(norms.max() / norms.min())
    np.testing.assert_allclose(found["dense_1/kernel/norms"], norms, rtol=span / 65_534)
    direction = one.arrays["vectors:dense_1/kernel"] / norms[..., None]
    np.testing.assert_allclose(
        found["dense_1/kernel/directions"], direction, rtol=0, atol=0.51 / 32_767
    )
    cosines = above(one.arrays["cosines:dense_1/kernel"].astype(float))
    np.testing.assert_allclose(found["dense_1/kernel/cosines"], cosines, rtol=0, atol=0.501e-3)
    gram = one.arrays["gram:dense_2/kernel:ticket"].astype(float)
    root = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    np.testing.assert_allclose(found["dense_2/kernel/ticket/norms"], root, rtol=1e-3)
    over = above(gram / (root[:, :, None] * root[:, None, :]))
    np.testing.assert_allclose(
        found["dense_2/kernel/ticket/cosines"], over, rtol=0, atol=0.501 / 127
    )


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_lengths_keep_their_digits_over_ten_decades(size: float) -> None:
    lengths = size * np.array([[1.0, 0.0, 3e-7], [0.0, 1e-10, 0.5]])
    body: list[bytes] = []
    told = module.block("length", lengths, body)
    film = {"layers": {"a": {"blocks": {"norms": told}}}, "grams": {}}
    packed = {**film, "packed": base64.b64encode(zlib.compress(b"".join(body))).decode()}
    found = opened(packed)["a/norms"]
    np.testing.assert_allclose(found, lengths, rtol=5e-4)
    assert (found == 0).tolist() == (lengths == 0).tolist()


def test_vectors_of_the_plane_need_no_cosines_and_units_of_0_have_no_direction() -> None:
    one = plane()
    told = module.packed(one, np.arange(one.frames))
    found = opened(told)
    assert sorted(found) == ["filters/directions", "filters/norms"]
    assert told["layers"]["filters"]["exact"]
    assert told["layers"]["filters"]["signs"] == [1] * 4 + [-1] * 4
    assert not found["filters/directions"][:, 7].any()
    v = one.arrays["vectors:filters"].astype(float)
    again = found["filters/norms"][..., None] * found["filters/directions"]
    np.testing.assert_allclose(again, v, rtol=0, atol=2e-4 * np.abs(v).max())
    assert told["row"] == {"level": 2, "seed": 0}


def test_a_films_row_is_that_of_its_place_unless_it_says_so() -> None:
    [one] = films(seeds=(3,), places=[("none", 5)])
    assert module.packed(one, np.arange(2))["row"] == {"branch": "none", "level": 5, "seed": 3}


@pytest.mark.parametrize("definition", ["code", "text"])
@pytest.mark.parametrize("weights", [2, 9])
def test_the_graphs_scale_is_that_of_the_weights(definition: str, weights: int) -> None:
    kernels = gathered(4, 7, weights, np.random.default_rng(1))
    [one] = module.read(
        {"films": [{}]}, film(0, range(4), {"loss": range(4)}, vectors={"a": kernels}), 0
    )
    told = module.packed(one, np.arange(4))["layers"]["a"]["scale"][definition]
    assert told == pytest.approx(alignment_graph(kernels, definition=definition).scale, rel=2e-3)


def test_units_that_all_point_the_same_way_still_have_a_scale() -> None:
    assert module.scale(np.ones((2, 3, 3)), "code") == 0.5


def test_distances_are_those_of_the_measures() -> None:
    [one] = films(seeds=(0,), places=[("rewind", 1)])
    told = module.packed(one, np.arange(one.frames))["grams"]["dense_2/kernel"]["distances"]
    assert len(told) == 6
    for pair in told:
        a, b = (one.arrays[f"gram:dense_2/kernel:{pair[end]}"] for end in ("of", "to"))
        for t in range(one.frames):
            found = gram_distance(a[t], b[t])
            five = {"rel": 5.01e-5}  # five significant digits are sent
            assert pair["relative"][t] == pytest.approx(found.relative, **five)
            assert pair["alignment"][t] == pytest.approx(found.alignment, **five)


def test_a_gram_of_0_has_no_distance() -> None:
    found = module.distances(np.eye(2)[None], np.zeros((1, 2, 2)))
    assert found == {"relative": [None], "alignment": [None]}


@pytest.mark.parametrize(("frames", "kept"), [(61, 8), (61, 60), (9, 9), (1, 8), (2, 2)])
def test_thinned_frames_are_even_and_keep_both_ends(frames: int, kept: int) -> None:
    at = module.evenly(frames, kept)
    assert (at[0], at[-1]) == (0, frames - 1)
    assert len(at) == min(frames, kept)
    gaps = np.diff(at)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_films_share_the_room_and_say_what_is_missing() -> None:
    every = films(frames=30)
    whole = module.pack(every, module.LIMIT)
    assert (whole.thinned, whole.left_out) == ((360, 360), 0)
    size = sum(len(m["packed"]) for m in whole.films)
    half = module.pack(every, size // 2)
    assert sum(len(m["packed"]) for m in half.films) <= size // 2
    assert half.left_out == 0
    assert 130 < half.thinned[0] < 181
    for one in half.films:
        assert (one["steps"][0], one["steps"][-1]) == (0, 290)
        assert len(one["losses"]["dense"]) == len(one["steps"])
    few = module.pack(every, size // 20)
    assert {len(m["steps"]) for m in few.films} == {module.FEWEST}
    assert few.left_out == 12 - len(few.films) > 0
    assert [m["place"]["seed"] for m in few.films] == sorted(m["place"]["seed"] for m in few.films)


def test_a_film_larger_than_all_room_is_shown_alone() -> None:
    found = module.pack(films(), 10)
    assert (len(found.films), found.left_out) == (1, 11)


def test_a_cells_place_is_part_of_its_films() -> None:
    arrays = film(0, [0], {"loss": [1.0]})
    two = [
        module.read({"films": [{"place": {"network": "a"}}]}, arrays, 0, {"alpha": alpha})[0]
        for alpha in (4.0, 0.5)
    ]
    assert two[0].place == {"alpha": 4.0, "network": "a"}
    assert module.pack(two, module.LIMIT).controls == [{"name": "alpha", "values": [0.5, 4.0]}]


def test_two_names_for_one_thing_are_one_control() -> None:
    told = [{"place": {"rate": 10.0**-k, "level": k, "seed": s}} for k in (1, 2) for s in (0, 1)]
    assert [c["name"] for c in module.controls(told)] == ["rate", "seed"]


def test_the_order_that_the_store_forgets_is_a_readers() -> None:
    names = ["conv10:ticket", "conv2:dense", "conv2:ticket", "conv10:dense", "conv2:new weights"]
    ordered = ["conv2:new weights", "conv2:ticket", "conv10:ticket", "conv2:dense", "conv10:dense"]
    assert sorted(names, key=module.natural) == ordered


def test_there_is_a_control_for_what_tells_films_apart() -> None:
    told = {c["name"]: c["values"] for c in module.pack(films(), module.LIMIT).controls}
    assert told == {"branch": ["rewind", "none"], "level": [1, 3, 5], "seed": [0, 1]}
    assert module.pack(
        films(seeds=(0,), places=[("none", 2), ("none", 1)]), module.LIMIT
    ).controls == [{"name": "level", "values": [1, 2]}]
    assert module.pack([plane()], module.LIMIT).controls == []


# ---- the page ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> str:
    return page.build(view(seeds=2, levels=6, figures=(), films=films()))


def test_without_films_there_is_no_section() -> None:
    text = page.build(view(seeds=1, levels=2, figures=()))
    assert "film" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "secateurFilms" not in text


def test_the_section_is_whole_and_fetches_nothing(text: str) -> None:
    outline = Outline(text)
    assert outline.open == []
    assert outline.images_without_alt == 0
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert '<a href="#films">' in text
    assert text.index('id="claims"') < text.index('id="films"') < text.index('id="inside"')
    for name in ("branch", "level", "seed"):
        assert f'data-place="{name}"' in text
    named = re.findall(r'find\("([\w-]+)"\)', page.asset("films.js").decode())
    assert len(set(named)) > 25
    for name in set(named):
        assert f'id="film-{name}"' in text, name


def test_every_control_has_a_label(text: str) -> None:
    section = text[text.index('<section id="films">') : text.index('<section id="inside">')]
    controls = re.findall(r"<(?:select|input)\b[^>]*>", section)
    assert len(controls) >= 16
    for control in controls:
        before = section[: section.index(control)]
        inside = before.count("<label") - before.count("</label>")
        assert inside == 1 or "aria-label=" in control, control


def test_what_was_thinned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = view(seeds=1, levels=2, figures=(), films=films(frames=20, seeds=(0,)))
    assert "To keep the page small" not in page.build(made)
    monkeypatch.setattr(module, "LIMIT", 30_000)
    assert "frames that the study kept are here" in page.build(made)


def test_a_reader_without_script_finds_pictures_and_a_table(text: str) -> None:
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    assert shown.count('<div class="film-stills">') == 2
    assert "Weight vectors of dense_1/kernel, first two coordinates, step 110" in shown
    assert "Gram matrix of dense_1/kernel, ticket, step 0" in shown
    assert shown.count("branch rewind, level 3, seed 1") == 1
    assert "0 to 110" in shown


def test_stills_draw_vectors_where_they_point() -> None:
    picture = stills.plane(np.array([[1.0, 0.0], [0.0, -0.5]]), np.array([1, -1]), side=41)
    blue = np.argwhere((picture == stills.BLUE).all(axis=-1))
    orange = np.argwhere((picture == stills.ORANGE).all(axis=-1))
    assert blue[:, 1].max() >= 37
    assert orange[:, 0].max() == pytest.approx(
        20 + 17 / 2 + 2, abs=1
    )  # half as long, and downwards
    assert orange[:, 0].min() >= 19


def test_hostile_words_in_films_stay_words() -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    one = dataclasses.replace(plane(), place={bad: bad}, classes=[bad])
    other = dataclasses.replace(plane(), place={bad: 2})
    text = page.build(view(seeds=1, levels=2, figures=(), films=[one, other]))
    assert "<img src=x" not in text
    found = re.search(r'<script type="application/json" id="film-data">(.*?)</script>', text, re.S)
    assert found
    assert json.loads(found[1])["films"][0]["place"][bad] == bad
