"""What a look shows is what was computed: attention, tokens, probabilities, and the order of the prompt."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import projector
from mvlm_np.backend import replaced
from mvlm_np.errors import GenerationError, PromptError
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.kv_store import dequantize, part
from mvlm_np.look import looking
from mvlm_np.look.looking import Attention, Record, answer, as_picture, look, looked_at, see, watching
from mvlm_np.look.report import PARTS, parts, prompt
from mvlm_np.model import MobileVLM
from tests.conftest import ROOT
from tests.golden_sets import cases
from tests.look.looked import BACKENDS, FOLDERS, NEW, looked, model, numbers, picture, question

every = pytest.mark.parametrize("name", FOLDERS)
both = pytest.mark.parametrize("backend", BACKENDS)


def spied(model: MobileVLM) -> tuple[MobileVLM, list[tuple[np.ndarray, np.ndarray]]]:
    """The same model, and what each attention multiplied and made: values (K, S, d), output (H, T, d)."""
    calls, ops = [], model.ops

    def attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
        out = ops.attention(q, k, v, causal)
        calls.append((v.copy(), out.copy()))
        return out

    def cached_attention(q: Any, k: Any, v: Any, keys: Any, values: Any, past: int) -> Any:
        out = ops.cached_attention(q, k, v, keys, values, past)
        stored = dequantize(part(values, np.s_[:, : past + q.shape[1]]))
        calls.append((stored.copy(), out[:, -1:].copy()))
        return out

    watcher = copy(model)
    watcher.ops = replaced(ops, attention=attention, cached_attention=cached_attention)
    return watcher, calls


@both
@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
@every
def test_attention_is_what_the_model_multiplied_its_values_with(name: str, cache: str, backend: str) -> None:
    """Rows sum to 1, and times the values they are what attention gave: neither is so by chance."""
    spy, calls = spied(model(name, backend, cache))
    seen: list[np.ndarray] = []
    tokens = watching(spy, Record(), seen.append).encode_images(picture(name))
    x, at = spy.embed([1, 5, -200, 9, 4], tokens)
    session = watching(spy, Record(), seen.append).session()
    session.prefill(x, at, 2, Record())
    session.forward(x[:1])
    layers = model(name).config.decoder.num_hidden_layers
    chunks = -(-len(x) // 512)
    assert len(seen) == len(calls) == model(name).config.vision_layers + layers * (chunks + 1)
    for weights, (values, out) in zip(seen, calls, strict=True):
        assert weights.dtype == np.float32 and weights.shape == (*out.shape[:2], values.shape[1])
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        again = weights @ np.repeat(values, len(out) // len(values), axis=0)
        # Both round sums of up to 700 products; 5e-6 of the largest is what stages may differ by anywhere.
        assert np.abs(again - out).max() <= 5e-6 * np.abs(out).max()


@every
def test_what_is_kept_is_that_attention_in_8_bits(name: str) -> None:
    weights: list[np.ndarray] = []
    watching(model(name), Record(), weights.append).encode_images(picture(name), exif=False)
    seen = looked(name).seen
    assert seen is not None
    wanted = Attention.of(np.stack(weights))  # (L, H, T, T)
    np.testing.assert_array_equal(seen.heads.levels, wanted.levels)
    np.testing.assert_array_equal(seen.heads.peaks, wanted.peaks)
    np.testing.assert_array_equal(seen.mean.levels, Attention.of(np.stack(weights).mean(axis=1)).levels)
    vision = model(name).config.vision
    assert vision is not None
    assert weights[0].shape == (vision.num_attention_heads, vision.grid**2 + 1, vision.grid**2 + 1)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).filter(lambda row: max(row) > 1e-6))
def test_8_bits_are_as_near_as_they_say(row: list[float]) -> None:
    weights = np.array([row], np.float32)
    kept = Attention.of(weights)
    peak = weights.max()
    # A level is right within a half: (l + 1/2)^2 - l^2 = l + 1/4, in units of peak / 255^2.
    bound = np.sqrt(weights * peak) / 255 + peak / (4 * 255**2)
    assert kept.levels.dtype == np.uint8 and kept.peaks.dtype == np.float32
    assert (np.abs(kept.weights() - weights) <= bound * (1 + 1e-4)).all()
    assert kept.weights().max() == peak


@both
@every
def test_the_answer_is_the_one_that_ask_gives(name: str, backend: str) -> None:
    found = looked(name, backend).answered
    chat = model(name, backend).chat(picture(name), exif=False)
    assert chat.ask(question(name), max_new_tokens=NEW) == found.text
    assert [step.token for step in found.steps] == chat.answer_ids
    assert [e.get("id", -200) for e in prompt(found.at, model(name).tokenizer)] == chat.prompt_ids


@both
@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
@every
def test_where_an_answer_begins_to_look_is_known_without_recording(
    name: str, cache: str, backend: str
) -> None:
    """Of a session that has read the prompt, one position is computed again, and nothing changes."""
    own = model(name, backend, cache)
    (tokens,) = own.encode_images(picture(name))
    ids = [1, -200, 5, 9, -200, 4]
    x, at = own.embed(ids, [tokens, tokens[::-1]])
    rows: list[np.ndarray] = []
    recorded = watching(own, Record(), rows.append).session()
    recorded.prefill(x, at, 0, Record())
    wanted = np.stack(rows[-len(own.decoder.layers) :])[:, :, 0].mean(axis=(0, 1))

    session = own.session()
    session.prefill(x, at, 0, Record())
    before = [array.copy() for array in (*session.cache.keys, *session.cache.values)]
    found = looked_at(session, x[-1:])
    for array, was in zip((*session.cache.keys, *session.cache.values), before, strict=True):
        np.testing.assert_array_equal(array, was)
    assert session.cache.length == len(at)
    side = round(len(tokens) ** 0.5)
    if side**2 != len(tokens):  # with the class token there is no square
        assert found == []
        return
    assert len(found) == 2
    for i, each in enumerate(found, 1):
        assert each.dtype == np.float32 and each.shape == (side, side)
        # One row alone may be rounded otherwise than with others: 5e-6 of the largest, as stages anywhere.
        np.testing.assert_allclose(each.reshape(-1), wanted[at == -i], atol=5e-6 * wanted.max(), rtol=0)
    session.prefill(*own.embed([1, 5], []), 0, Record())
    assert looked_at(session, x[:1]) == []


@both
@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "demo"])
def test_the_answer_is_the_goldens(name: str, backend: str) -> None:
    (case,) = cases(f"own/{name}")
    found = looked(name, backend).answered
    assert [step.token for step in found.steps] == case.stages["generated_ids"].tolist()
    assert found.text == case.text


@both
@every
def test_probabilities_and_lens_are_those_of_the_traced_logits(name: str, backend: str) -> None:
    m = model(name, backend)
    found = looked(name, backend).answered
    stages = m.trace(picture(name), question(name), NEW)
    logits = np.concatenate([stages["logits"][0, -1:], stages["decode.logits"][0]])
    rows = np.exp(logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    rows /= rows.sum(axis=-1, keepdims=True)
    for step, row in zip(found.steps, rows, strict=False):
        # Logits may differ by the rounding of the whole chain, 5e-5 of the largest, which is about 20 here.
        np.testing.assert_allclose(step.likeliest.probabilities, row[step.likeliest.ids], rtol=2e-3)
        np.testing.assert_allclose(step.likeliest.probabilities, np.sort(row)[:-6:-1], rtol=2e-3)
        assert step.likeliest.ids[0] == step.lens.ids[-1] == step.token == row.argmax()
        assert step.probability == step.lens.probabilities[-1] == step.lens_token[-1]
    first = found.steps[0]
    layers = m.config.decoder.num_hidden_layers
    for i in range(layers):
        state = stages[f"decoder.hidden_states.{i}"][0, -1:]
        state = m.ops.rms_norm(state, m.decoder.norm, m.config.decoder.rms_norm_eps)
        row = m.ops.softmax(m.decoder.lm_head(state))[0]
        np.testing.assert_allclose(first.lens.probabilities[i], row.max(), rtol=2e-3)
        np.testing.assert_allclose(first.lens.probabilities[i], row[first.lens.ids[i]], rtol=2e-3)
        np.testing.assert_allclose(first.lens_token[i], row[first.token], rtol=2e-3)
    assert len(first.lens.ids) == layers + 1


@every
def test_a_steps_attention_covers_all_positions_so_far(name: str) -> None:
    found = looked(name).answered
    decoder = model(name).config.decoder
    for i, step in enumerate(found.steps):
        assert step.attention.shape == (decoder.num_hidden_layers, len(found.at) + i)
        assert step.heads.levels.shape[1] == decoder.num_attention_heads
        np.testing.assert_allclose(step.attention.sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(step.heads.weights().mean(axis=1), step.attention, atol=1 / 255)


@every
def test_shares_of_attention_are_of_the_parts_and_add_up(name: str) -> None:
    found = looked(name).answered
    positions = len(found.steps[-1].attention[0])
    masks = parts(found.at, positions)
    assert tuple(masks) == PARTS
    np.testing.assert_array_equal(np.sum([*masks.values()], axis=0), 1)
    np.testing.assert_array_equal(np.flatnonzero(masks["picture"]), np.flatnonzero(found.at < 0))
    for step in numbers(name)["steps"]:
        np.testing.assert_allclose(np.sum([*step["looked"].values()], axis=0), 1, rtol=1e-5)
        share = np.mean(step["looked"]["picture"])
        np.testing.assert_allclose(share, sum(step["looked_at_picture"]), rtol=1e-5)


@every
def test_the_prompts_positions_are_in_order(name: str) -> None:
    at = looked(name).answered.at
    entries = numbers(name)["prompt"]
    tokens = projector.image_tokens(model(name).config)
    (image,) = [entry for entry in entries if "picture" in entry]
    assert image["picture"] == tokens
    assert (at[image["position"] : image["position"] + tokens] < 0).all()
    lengths = [entry.get("picture", 1) for entry in entries]
    assert [e["position"] for e in entries] == np.cumsum([0, *lengths[:-1]]).tolist()
    texts = [entry["id"] for entry in entries if "id" in entry]
    assert texts == at[at >= 0].tolist()


@every
def test_the_picture_is_the_one_that_the_tower_sees(name: str) -> None:
    seen, m = looked(name).seen, model(name)
    assert seen is not None
    image = open_image(picture(name))
    assert seen.size == image.size
    pixels = preprocess(image, m.config.image)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (m.config.image.mean, m.config.image.std))
    again = (seen.pixels.transpose(2, 0, 1) / np.float32(255) - mean) / std
    np.testing.assert_allclose(again, pixels, atol=1e-5)  # a step of 8 bits is 0.015
    np.testing.assert_allclose(seen.tokens, m.encode_image(picture(name)), atol=1e-5)


def test_a_picture_that_needs_no_change_is_shown_as_it_is() -> None:
    image = open_image(ROOT / "examples" / "chelsea.jpg").crop((0, 0, 128, 128))
    config = model("demo").config.image
    np.testing.assert_array_equal(as_picture(preprocess(image, config), config), np.asarray(image))


def test_text_alone_has_no_picture() -> None:
    found = looked("demo", with_picture=False)
    assert found.seen is None and (found.answered.at >= 0).all()
    assert found.answered.text == model("demo").ask(None, question("demo"), max_new_tokens=NEW)
    assert numbers("demo", with_picture=False)["picture"] is None
    assert all(not any(step["looked"]["picture"]) for step in numbers("demo", with_picture=False)["steps"])


def test_a_model_without_a_tower_answers_text_and_refuses_pictures() -> None:
    text = copy(model("demo"))
    text.config, text.vision, text.projector = replace(text.config, vision=None), None, None
    found = look(text, None, "Hello?", max_new_tokens=3)
    assert [stage.name for stage in found.stages] == ["prefill", "decode"]
    with pytest.raises(PromptError, match="reads text only"):
        look(text, picture("demo"), "Hello?")


def test_looking_changes_nothing_in_the_model() -> None:
    m = model("demo")
    before = dict(vars(m))
    look(m, picture("demo"), question("demo"), max_new_tokens=2)
    assert vars(m) == before


def test_questions_about_one_picture_need_it_only_once() -> None:
    m, record = model("demo"), Record()
    tokens = see(m, picture("demo"), record, exif=False).tokens
    found = answer(m, [tokens], question("demo"), record, NEW)
    assert found.text == looked("demo").answered.text


def test_stages_name_their_weights_and_leave_out_what_is_not_read() -> None:
    stages = {stage.name: stage for stage in looked("demo").stages}
    assert list(stages) == ["preprocess", "encode", "project", "prefill", "decode"]
    m = model("demo")
    assert m.vision is not None
    block = looking.nbytes(m.vision.layers[0])
    assert stages["encode"].weight_bytes == looking.nbytes(m.vision) - block  # the last one is not computed
    matrices = sum(layer.nbytes for layer in vars(m.vision.layers[0]).values() if hasattr(layer, "nbytes"))
    assert 0 < matrices < block
    assert stages["preprocess"].weight_bytes == 0 < stages["project"].weight_bytes
    assert stages["prefill"].weight_bytes == stages["decode"].weight_bytes > m.decoder.lm_head.nbytes
    assert all(stage.seconds > 0 for stage in stages.values())


def test_what_recording_costs_is_left_out_of_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    for module in ("mvlm_np.trace", "mvlm_np.look.looking"):
        monkeypatch.setattr(f"{module}.perf_counter", lambda: clock[0])
    record = Record()
    with record.phase("encode"):
        clock[0] += 2
        with record.beside():
            clock[0] += 5
        clock[0] += 1
    assert record.seconds == {"encode": 3}


def test_another_watch_sees_the_same_run() -> None:
    outer = Record()
    look(model("demo"), picture("demo"), question("demo"), max_new_tokens=2, watch=outer)
    assert outer.pixels.size == 3 * 128 * 128 and outer.hidden
    assert outer.seconds.keys() == {"preprocess", "encode", "project", "prefill", "decode"}


def test_a_damaged_model_is_refused_as_ask_refuses_it() -> None:
    damaged = copy(model("demo"))
    assert damaged.vision is not None
    nothing = np.full_like(damaged.vision.class_embedding, np.nan)
    damaged.vision = replace(damaged.vision, class_embedding=nothing)
    with pytest.raises(GenerationError, match="NaN"):
        look(damaged, picture("demo"), "What?")


@pytest.mark.parametrize("wrong", [0, -1, 2.5])
def test_at_least_one_token_is_asked_for(wrong: Any) -> None:
    with pytest.raises(GenerationError, match="max_new_tokens"):
        look(model("demo"), None, "What?", max_new_tokens=wrong)
