"""The page of a look: whole by itself, no larger than it may be, and its maps those that were recorded."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from mvlm_np.look.looking import Attention
from mvlm_np.look.maps import coarse, colour, likeness, maps, on_picture, padded
from mvlm_np.look.page import page
from tests.look.looked import FOLDERS, looked, model, numbers

VOID = {"meta", "img", "br", "input"}
MODELS = pytest.mark.parametrize("name", FOLDERS)


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps attributes, and the text of each element with an id."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id", tag)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, id in self.open:
            self.texts[id] = self.texts.get(id, "") + data


def made(name: str, **options) -> str:
    return page(looked(name, with_picture=options.pop("with_picture", True)), numbers(name), **options)


def blocks(text: str) -> Iterator[tuple[str, Attention]]:
    """The maps of a page, by name."""
    block = re.compile(r'<script type="text/plain" id="([\w-]+)" data-shape="([\d,]+)">([^<]+)</script>')
    found = block.findall(text)
    for name, shape, packed in found:
        raw, sizes = zlib.decompress(base64.b64decode(packed)), [*map(int, shape.split(","))]
        rows = int(np.prod(sizes[:-1])) if name != "likeness" else 0
        peaks = np.frombuffer(raw, "<f4", rows)
        levels = np.frombuffer(raw, np.uint8, offset=4 * rows).reshape(sizes)
        yield name, Attention(levels, peaks.reshape(*sizes[:-1], 1) if rows else peaks)


@MODELS
def test_the_page_needs_nothing_but_itself(name: str) -> None:
    text = made(name)
    read = Reader(text)
    sources = [value for _, key, value in read.attributes if key in ("src", "href", "action", "data")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:|\bfetch\(|XMLHttpRequest|innerHTML|\beval\(", text)
    assert ("meta", "content", "width=device-width, initial-scale=1") in read.attributes
    assert not [key for _, key, _ in read.attributes if key.startswith("on") or key == "style"]


def test_its_policy_allows_its_own_script_and_style_alone() -> None:
    read = Reader(made("demo"))
    (policy,) = [v for _, key, v in read.attributes if key == "content" and v.startswith("default-src")]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(read.texts[element].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_words_of_files_and_models_are_text() -> None:
    evil = "</script><script>alert(1)</script>$picture"
    told = numbers("demo") | {"model": evil, "question": evil}
    told["steps"] = [step | {"piece": evil} for step in told["steps"]]
    read = Reader(page(looked("demo"), told))
    assert "alert(1)" not in read.texts["script"]
    assert json.loads(read.texts["numbers"])["steps"][0]["piece"] == evil
    assert evil in read.texts["main"]


@MODELS
def test_its_numbers_are_the_reports(name: str) -> None:
    shown = json.loads(Reader(made(name)).texts["numbers"])
    told = json.loads(json.dumps(numbers(name)))
    for step in told["steps"]:
        del step["looked_at_picture"]  # the page has the maps
    assert shown == told


@MODELS
def test_its_maps_are_those_that_were_recorded(name: str) -> None:
    look = looked(name)
    assert look.seen is not None
    found = dict(blocks(made(name)))
    steps = look.answered.steps
    for i, step in enumerate(steps):
        length = step.attention.shape[1]
        np.testing.assert_array_equal(found["answer-heads"].levels[i, ..., :length], step.heads.levels)
        np.testing.assert_array_equal(found["answer-heads"].peaks[i], step.heads.peaks)
        means = found["answer-mean"].weights()[i, ..., :length]
        np.testing.assert_allclose(means, step.attention, atol=1 / 255)
        assert not found["answer-mean"].levels[i, ..., length:].any()
    np.testing.assert_array_equal(found["tower-mean"].levels, look.seen.mean.levels)
    np.testing.assert_array_equal(found["tower-heads"].levels, look.seen.heads.levels)
    np.testing.assert_array_equal(found["tower-heads"].peaks, look.seen.heads.peaks)


def test_the_demo_models_page_is_small() -> None:
    assert len(made("demo").encode()) < 3_000_000


def test_text_alone_makes_a_page_without_the_pictures_parts() -> None:
    text = page(looked("demo", with_picture=False), numbers("demo", with_picture=False))
    read = Reader(text)
    ids = {value for _, key, value in read.attributes if key == "id"}
    assert {"prompt", "steps", "lens"} <= ids
    assert not {"picture", "patches", "tokens", "looked-picture"} & ids
    assert [name for name, _ in blocks(text)] == ["answer-mean", "answer-heads"]


@pytest.mark.parametrize("cut", [0.1, 0.2, 0.4, 0.8])
def test_a_page_keeps_to_its_size_and_says_what_it_leaves_out(cut: float) -> None:
    whole = made("demo")
    room = len(whole) - int(cut * sum(map(len, maps(looked("demo"), 10_000_000)[0])))
    small = made("demo", largest=room)
    assert "Left out" not in whole
    assert len(small) <= room + 1000  # the notes
    notes, found = unescape("".join(re.findall(r"<li>(Left out[^<]+)", small))), dict(blocks(small))
    for name, what in (
        ("tower-mean", "mean of the tower's heads"),
        ("tower-heads", "single heads of the tower"),
    ):
        cells = round((found[name].levels.shape[-1] - 1) ** 0.5) if name in found else 0
        assert (what in notes) == (cells < 8)
        assert not 0 < cells < 8 or f"{what} look from and at {cells} × {cells} squares" in notes
    assert ("answer-heads" in found) != ("head by head" in notes)
    assert ("answer-mean" in found) and len(found["answer-mean"].levels) == len(looked("demo").answered.steps)


def test_a_page_without_room_for_maps_has_none() -> None:
    small = made("demo", largest=1000)
    assert dict(blocks(small)).keys() == {"likeness"}
    assert small.count("<li>Left out") == 4


def test_an_answer_that_is_too_long_keeps_the_maps_of_its_beginning() -> None:
    blocks, notes = maps(looked("ldpv2", with_picture=False), room=8000)
    shown = int(re.findall(r'id="answer-mean" data-shape="(\d+),', "".join(blocks))[0])
    assert 0 < shown < 24
    assert f"the tokens after the first {shown} looked" in notes[0]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_coarse_attention_is_still_attention(size: int) -> None:
    seen = looked("demo").seen
    assert seen is not None
    fine, rough = seen.heads.weights(), coarse(seen.heads, size)
    cells = -(-8 // size)
    assert rough.levels.shape == (*fine.shape[:2], cells**2 + 1, cells**2 + 1)
    np.testing.assert_allclose(rough.weights()[..., 0, 0], fine[..., 0, 0], atol=1 / 255)
    # From the square at the bottom right to the one at the top left: a mean over that one, a sum over this.
    last = [8 * r + c + 1 for r in range((cells - 1) * size, 8) for c in range((cells - 1) * size, 8)]
    first = [8 * r + c + 1 for r in range(min(size, 8)) for c in range(min(size, 8))]
    wanted = fine[:, :, last][..., first].sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(rough.weights()[..., -1, 1], wanted, atol=1 / 255)
    # A sum of up to 65 weights, each off by at most sqrt(w peak) / 255.
    np.testing.assert_allclose(rough.weights().sum(axis=-1), 1, atol=0.03)


def test_steps_of_different_lengths_are_padded_with_nothing() -> None:
    steps = [Attention.of(np.full((2, n), 1 / n, np.float32)) for n in (3, 5)]
    both = padded(steps)
    assert both.levels.shape == (2, 2, 5)
    np.testing.assert_allclose(both.weights()[0], [[1 / 3] * 3 + [0] * 2] * 2, rtol=1e-6)


@MODELS
def test_image_tokens_lie_on_the_picture(name: str) -> None:
    seen = looked(name).seen
    assert seen is not None
    grid = on_picture(seen)
    side = {"mlp": 5, "ldp": 4}.get(name, 12)
    assert grid.shape[:2] == (side, side)
    np.testing.assert_array_equal(grid[-1, -1], seen.tokens[-1])
    assert len(seen.tokens) - side**2 == (name == "mlp")  # its class token is in front
    assert colour(grid).shape == (side, side, 3)


def test_like_tokens_have_like_colours_and_a_cosine_of_1() -> None:
    tokens = np.random.default_rng(0).standard_normal((4, 4, 9)).astype(np.float32)
    tokens[3, 3] = tokens[0, 1]
    colours, cosines = colour(tokens), likeness(tokens)
    np.testing.assert_array_equal(colours[3, 3], colours[0, 1])
    assert cosines.shape == (16, 16) and cosines[15, 1] == 255 and (cosines.diagonal() == 255).all()
    centred = tokens.reshape(16, 9) - tokens.reshape(16, 9).mean(axis=0)
    wanted = centred[0] @ centred[5] / np.linalg.norm(centred[0]) / np.linalg.norm(centred[5])
    assert abs(cosines[0, 5] / 255 - max(wanted, 0)) <= 0.51 / 255


def test_tokens_that_are_all_alike_have_a_page_too() -> None:
    same = np.ones((2, 2, 5), np.float32)
    assert np.ptp(colour(same)) <= 170 and likeness(same).shape == (4, 4)
    assert colour(np.ones((1, 1, 5), np.float32)).shape == (1, 1, 3)


def test_a_token_beyond_the_tokenizer_has_a_name() -> None:
    from mvlm_np.look.report import piece

    tokenizer = model("demo").tokenizer
    assert piece(tokenizer.vocab_size, tokenizer) == f"[{tokenizer.vocab_size}]"
    assert piece(2, tokenizer) == "</s>"
