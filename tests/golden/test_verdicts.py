"""Verdicts on what ports in the wild have dumped: each was wrong once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.golden.compare.candidates import Candidate, read_candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.compare.tolerance import CLASSES
from mvlm_np.golden.compare.verdict import MISPLACED, RIGHT, WRONG
from mvlm_np.golden.explain.explanation import explain, find_picture
from mvlm_np.golden.explain.replay import Replay
from mvlm_np.golden.explain.report import as_text
from mvlm_np.golden.explain.scene import aligned, make_scene
from mvlm_np.golden.format import Golden, read_golden
from mvlm_np.golden.layout import axes
from mvlm_np.golden.measure import on_even_steps
from mvlm_np.golden.precision import ROUNDINGS, STATIC, rounded, rounding_recorder, to_bf16, to_even_steps
from mvlm_np.golden.record.recording import record
from mvlm_np.loading import load
from tests.conftest import DATA
from tests.golden.recorded import Stages, against, recorded
from tests.golden.test_explain import case
from tools.check_explain import named
from tools.parts.random_checkpoint import make_checkpoint


def dumped(folder: Path, golden: Golden, stages: Stages, form: str) -> Candidate:
    """The stages as a port writes them: raw, without shapes, or as .npy."""
    folder.mkdir()
    for name, array in stages.items():
        if form == "npy":
            np.save(folder / f"{name}.npy", array)
        else:
            array.astype("<f4").tofile(folder / f"{name}.f32")
    return read_candidate(folder, golden.names)


def verdicts(result: Comparison) -> dict[str, str]:
    return {s.name: s.verdict for s in result.stages}


# ---------------------------------------------------------------- fewer rows than the golden's


@pytest.mark.parametrize("form", ["raw", "npy"])
@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without ids"])
def test_a_shorter_answer_is_right_in_every_form(form: str, ids: bool, tmp_path: Path) -> None:
    r = recorded()
    stages = {n: a[:3] if n.startswith(("generated", "decode.")) else a for n, a in r.stages.items()}
    if not ids:
        del stages["generated_ids"]
    candidate = dumped(tmp_path / "dump", r.golden, stages, form)
    result = compare(r.golden, candidate)
    assert result.right, result.first_wrong
    notes = {s.name: s.note for s in result.stages}
    assert notes["decode.logits"] == f"the first 3 of {len(r.stages['generated_ids'])} rows"
    given = aligned(r.golden, candidate)
    assert given["decode.logits"].shape == stages["decode.logits"].shape


@pytest.mark.parametrize("form", ["raw", "npy"])
def test_a_wrong_row_of_a_shorter_answer_is_wrong_in_every_form(form: str, tmp_path: Path) -> None:
    r = recorded()
    logits = r.stages["decode.logits"][:3].copy()
    logits[2] = logits[1]
    result = compare(r.golden, dumped(tmp_path / "dump", r.golden, {"decode.logits": logits}, form))
    assert result.first_wrong and "generated token 2" in result.first_wrong.where


@pytest.mark.parametrize("form", ["raw", "npy"])
def test_ids_that_part_at_a_tie_leave_the_rows_before_it(form: str, tmp_path: Path) -> None:
    r = recorded()
    logits, ids = r.stages["decode.logits"].copy(), r.stages["generated_ids"].copy()
    second = int(np.argsort(logits[1])[-2])
    logits[1, second] = logits[1].max() * (1 - np.float32(1e-7))
    tied = Golden(dict(r.stages, **{"decode.logits": logits}), r.golden.metadata, r.golden.floors)
    ids[2] = second
    after = logits.copy()
    after[2:] = 0  # other tokens were fed
    stages = {"generated_ids": ids, "decode.logits": after}
    result = compare(tied, dumped(tmp_path / "dump", tied, stages, form))
    assert result.right, result.first_wrong
    assert verdicts(result)["decode.logits"] == RIGHT


def test_explain_feeds_as_many_ids_as_there_are_rows() -> None:
    """A port that does not feed its last id has a row less; one that stops early has fewer still."""
    c = case("ldpv2")
    for ids, rows in ((None, -1), (None, 3), (5, 3)):
        stages = {n: a[0] for n, a in c.faultless.items()}
        for name in ("decode.logits", "decode.hidden_states.1"):
            stages[name] = stages[name][:rows]
        if ids is None:
            del stages["generated_ids"]
        else:
            stages["generated_ids"] = stages["generated_ids"][:ids]
        e = c.explain(stages)
        assert e.right and not e.findings, e.findings


@pytest.mark.parametrize("form", ["raw", "npy"])
def test_logits_of_the_last_positions_only_are_compared_with_those(form: str, tmp_path: Path) -> None:
    r = recorded()
    whole = r.stages["logits"]
    for rows in (1, 16):
        candidate = dumped(tmp_path / f"dump{rows}", r.golden, {"logits": whole[-rows:]}, form)
        result = compare(r.golden, candidate)
        assert result.right, result.first_wrong
        note = {s.name: s.note for s in result.stages}["logits"]
        assert note == f"the last {rows} of {len(whole)} rows"
        wrong = compare(r.golden, Candidate({"logits": whole[-rows - 1 : -1]}))
        assert wrong.first_wrong and wrong.first_wrong.name == "logits"


def test_stages_of_the_last_positions_fit_whole_ones_by_name() -> None:
    r = recorded()
    tail = Golden({"logits.tail": r.stages["logits"][-16:]}, r.golden.metadata)
    assert against(tail, {"logits": r.stages["logits"]}).right
    assert against(tail, {"logits": r.stages["logits"][-1:]}).right
    assert against(r.golden, {"logits.tail": r.stages["logits"][-16:]}).right
    assert not against(r.golden, {"logits.tail": r.stages["logits"][:16]}).right


def test_the_logits_of_the_last_position_are_explained() -> None:
    c = case("ldpv2")
    logits = c.run({"final_norm": False})["logits"][0]
    e = c.explain({"logits": logits[-1:]})
    assert named(e) == {"no-final-norm"}
    assert c.explain({"logits": c.faultless["logits"][0, -1:]}).right


# ---------------------------------------------------------------- pixels


def from_pixels(pixels: np.ndarray) -> Stages:
    """What the model computes from other pixel values than the picture's."""
    r = recorded()
    roots = {n: r.stages[n] for n in ("input_ids", "generated_ids")}
    replay = Replay(make_scene(r.model, r.golden, {}, None, {}).parts, {"pixel_values": pixels, **roots})
    computed = [n for n in r.golden.names if n not in ("pixel_values", *roots)]
    return {"pixel_values": pixels, **roots, **{n: replay.compute(n) for n in computed}}


@pytest.mark.parametrize("floors", [True, False], ids=["floors", "house bounds"])
@pytest.mark.parametrize("every", [1, 3], ids=["all pixels", "every third"])
def test_no_class_excuses_pixels_that_are_a_grey_level_off(every: int, floors: bool) -> None:
    r = recorded()
    golden = r.golden if floors else r.plain
    pixels = r.stages["pixel_values"].copy()
    pixels.reshape(-1)[::every] += np.float32(1 / 255 / 0.27)
    stages = from_pixels(pixels)
    for kind in CLASSES:
        result = against(golden, stages, kind)
        assert result.first_wrong and result.first_wrong.name == "pixel_values", kind
        assert not any("--class" in note for note in result.notes), result.notes
        assert any("grey level" in note for note in result.notes), result.notes


@pytest.mark.parametrize("kind", ["float16", "bf16"])
def test_pixels_that_are_only_rounded_are_right(kind: str) -> None:
    r = recorded()
    for golden in (r.golden, r.plain):
        pixels = ROUNDINGS[kind](r.stages["pixel_values"])
        assert against(golden, {"pixel_values": pixels}, kind).right


def test_no_class_is_proposed_for_the_sake_of_one_stage() -> None:
    r = recorded()
    rounded = to_bf16(r.stages["projector.output"])
    noise = np.random.default_rng(0).standard_normal(rounded.shape).astype(np.float32)
    for array in (rounded, r.stages["projector.output"] + 2e-3 * noise):
        for golden in (r.golden, r.plain):
            assert not any("--class" in note for note in against(golden, {"projector.output": array}).notes)


def test_no_class_is_proposed_for_noise() -> None:
    r, rng = recorded(), np.random.default_rng(0)
    noise = {
        n: rng.standard_normal(a.shape).astype(np.float32) if a.dtype.kind == "f" else a
        for n, a in r.stages.items()
        if n != "pixel_values"
    }
    for golden in (r.golden, r.plain):
        result = against(golden, noise)
        assert not result.right and "--class" not in notes_of(result)


def test_generated_logits_are_explained_without_the_hidden_states_before_them() -> None:
    c = case("ldpv2")
    for faults, found in (({}, set()), ({"cache": 1}, {"cache-position"})):
        stages = c.run(faults)
        e = c.explain({n: a for n, a in stages.items() if n != "decode.hidden_states.1"})
        assert named(e) == found


# ---------------------------------------------------------------- static int8


def quantised() -> Stages:
    """What ONNX Runtime computes of the small golden, quantised by its own quantiser."""
    with np.load(DATA / "golden" / "ldpv2-static-int8.npz") as file:
        return dict(file)


@pytest.mark.parametrize("floors", [True, False], ids=["floors", "house bounds"])
def test_a_statically_quantised_port_is_right_in_its_class(floors: bool) -> None:
    r = recorded()
    golden, stages = r.golden if floors else r.plain, quantised()
    result = against(golden, stages, STATIC)
    assert result.right, result.first_wrong
    if floors:
        assert against(golden, stages, "int8").first_wrong == against(golden, stages, "int8").stages[1]
    for kind in ("float32", "int8") if floors else ("float32",):
        notes = " ".join(against(golden, stages, kind).notes)
        assert "256 even steps" in notes and f"--class {STATIC}" in notes


def test_faults_show_in_a_statically_quantised_port() -> None:
    r = recorded()
    for name, fault in (
        ("vision.hidden_states.0", lambda x: np.roll(x, -1, 0)),
        ("vision.hidden_states.2", lambda x: x * 1.3),
        ("projector.output", lambda x: x[::-1]),
        ("projector.output", lambda x: np.clip(x, x.min() / 3, x.max() / 3)),  # a range that is too small
    ):
        stages = quantised()
        stages[name] = fault(stages[name])
        first = against(r.golden, stages, STATIC).first_wrong
        assert first and first.name == name


def test_even_steps_are_recognised() -> None:
    x = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    assert on_even_steps(to_even_steps(x)) and on_even_steps(to_even_steps(np.maximum(x, 0)))
    assert not on_even_steps(x) and not on_even_steps(np.zeros_like(x)) and not on_even_steps(np.sign(x))
    assert not on_even_steps(to_bf16(x)) and not on_even_steps(recorded().stages["pixel_values"])
    assert on_even_steps(np.rint(x * 3))
    uneven = np.sort(x[0, :9])
    assert not on_even_steps(uneven[np.arange(900) % 9])
    nan = x.copy()
    nan[0, 0] = np.nan
    assert to_even_steps(nan) is nan and not to_even_steps(np.zeros(3, np.float32)).any()


# ---------------------------------------------------------------- raw files, which have no shape


RAW_FAULTS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "keys before RoPE": ({"rope": "none"}, "decoder.keys.0", {"rope-direction"}),
    "neighbours turned": ({"rope": "interleaved"}, "decoder.keys.0", {"rope-interleaved"}),
    "the encoder's GELU": ({"vision_act": "gelu"}, "vision.hidden_states.1", {"exact-gelu"}),
    "no bias in PEG": ({"projector_bias": ("peg",)}, "projector.peg.peg", {"missing-bias"}),
}


@pytest.mark.parametrize("order", ["golden's", "positions first"])
@pytest.mark.parametrize("fault", RAW_FAULTS)
def test_raw_files_hide_no_mistake(fault: str, order: str, tmp_path: Path) -> None:
    """Of whatever stage, in the golden's order or with positions first."""
    c = case("ldpv2")
    faults, first, found = RAW_FAULTS[fault]
    stages = {n: a[0] for n, a in c.run(faults).items()}
    for name, array in stages.items():
        if array.ndim == 3 and order == "positions first" and name != "pixel_values":
            stages[name] = array.transpose(axes(name, 3))
    candidate = dumped(tmp_path / "dump", c.golden, stages, "raw")
    e = explain(c.model, c.golden, candidate, image=c.image, spare=c.spare)
    assert named(e) == found
    assert e.comparison.first_wrong and e.comparison.first_wrong.name == first
    if order == "golden's":
        assert "read as" not in e.comparison.first_wrong.note


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_sound_raw_files_are_read_in_whatever_order_they_are(order: tuple, tmp_path: Path) -> None:
    r = recorded()
    keys = {f"decoder.keys.{i}": r.stages[f"decoder.keys.{i}"].transpose(order) for i in (0, 1)}
    assert compare(r.golden, dumped(tmp_path / "dump", r.golden, keys, "raw")).right


def test_a_stage_of_noise_is_read_in_the_golden_s_order(tmp_path: Path) -> None:
    r, rng = recorded(), np.random.default_rng(0)
    names = ("decoder.keys.0", "projector.peg.peg", "vision.features")
    noise = {n: rng.standard_normal(r.stages[n].shape).astype(np.float32) for n in names}
    result = compare(r.golden, dumped(tmp_path / "dump", r.golden, noise, "raw"))
    assert not any("read as" in s.note for s in result.stages)


# ---------------------------------------------------------------- dumps of another stage


def notes_of(result: Comparison) -> str:
    return "\n".join(result.notes)


def test_a_stage_that_was_computed_over_in_place_is_named_and_left_out() -> None:
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items()}
    stages["projector.mlp.mlp.0"] = stages["projector.mlp.mlp.1"]
    result = compare(c.golden, Candidate(stages))
    assert result.right
    assert verdicts(result)["projector.mlp.mlp.0"] == MISPLACED
    assert "projector.mlp.mlp.0: it is the golden's projector.mlp.mlp.1" in notes_of(result)
    e = c.explain(stages)
    assert e.right and not e.findings
    assert "projector.mlp.mlp.0" in as_text(e)


def test_the_search_goes_on_behind_a_dump_that_is_left_out() -> None:
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.run({"peg": "no residual"}).items()}
    stages["projector.mlp.mlp.0"] = stages["projector.mlp.mlp.1"]
    e = c.explain(stages)
    assert e.comparison.first_wrong and e.comparison.first_wrong.name == "projector.peg"
    assert named(e) == {"peg-no-residual"}


def test_names_that_are_off_by_one() -> None:
    c = case("ldpv2")
    for faults, found in (({}, set()), ({"projector_act": "tanh"}, {"tanh-gelu"})):
        stages = {n: a[0] for n, a in c.run(faults).items()}
        for i in range(3):
            stages[f"vision.hidden_states.{i}"] = stages[f"vision.hidden_states.{i + 1}"]
        del stages["vision.hidden_states.3"]
        result = compare(c.golden, Candidate(stages))
        assert [verdicts(result)[f"vision.hidden_states.{i}"] for i in range(3)] == [MISPLACED] * 3
        assert result.right == (not faults)
        assert named(c.explain(stages)) == found


def test_a_block_that_is_left_out_is_no_fault_of_the_dump() -> None:
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items()}
    given = {
        n: stages[n] for n in ("vision.hidden_states.0", "vision.hidden_states.1", "vision.hidden_states.2")
    }
    given["vision.hidden_states.2"] = given["vision.hidden_states.1"]
    result = compare(c.golden, Candidate(given))
    assert result.first_wrong and result.first_wrong.name == "vision.hidden_states.2"
    assert "It is the golden's vision.hidden_states.1" in notes_of(result)


@pytest.mark.parametrize("late", [1, -1])
def test_generated_rows_that_are_a_step_late(late: int) -> None:
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items()}
    for name, before in (("decode.logits", "logits"), ("decode.hidden_states.1", "decoder.hidden_states.1")):
        rows = np.concatenate([stages[before][-1:], stages[name][:-1]])
        stages[name] = rows if late > 0 else stages[name][1:]
    result = compare(c.golden, Candidate(stages))
    assert result.right, result.first_wrong
    assert verdicts(result)["decode.logits"] == MISPLACED
    assert f"one step {'late' if late > 0 else 'early'}" in notes_of(result)
    assert c.explain(stages).right


def test_stages_that_are_the_same_in_the_golden_are_not_each_other_s() -> None:
    """The last module of the projector is its output: a wrong output that resembles it is no mix-up."""
    r = recorded()
    rng = np.random.default_rng(0)
    output = r.stages["projector.output"]
    noise = rng.standard_normal(output.shape).astype(np.float32) * 0.25 * output.std()
    for kind in ("float32", "float16"):
        assert "It is the golden's" not in notes_of(
            against(r.plain, {"projector.output": output + noise}, kind)
        )


# ---------------------------------------------------------------- one story


def test_explain_is_silent_about_what_compare_calls_right() -> None:
    """A dump that is wrong alone: what is computed from it is not."""
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items()}
    stages["projector.dwn"] = stages["projector.dwn"] + 1
    e = c.explain(stages)
    assert {f.stage for f in e.findings} <= {"projector.dwn"}
    assert "only this dump is not" in as_text(e)


def test_nothing_given_after_the_prompt_s_logits_says_that_they_are_right() -> None:
    r = recorded()
    stages = {n: a.copy() for n, a in r.stages.items()}
    stages["logits"][:, 3] = np.nan
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == "logits"
    assert "only this dump is not" not in notes_of(result)


def test_explain_keeps_the_hints_that_compare_gave() -> None:
    r, c = recorded(), case("ldpv2")
    stages = record(rounded(r.model, to_bf16), r.question, None, rounding_recorder(to_bf16))
    candidate = Candidate({n: stages[n] for n in ("vision.hidden_states.0", "vision.hidden_states.1")})
    told = as_text(explain(c.model, r.golden, candidate, image=c.image, spare=c.spare))
    assert "--class bf16" in told


def test_an_input_that_was_not_dumped_is_not_called_right() -> None:
    c = case("ldpv2")
    rng = np.random.default_rng(0)
    noise = {
        n: rng.standard_normal(c.golden.shape(n)).astype(np.float32) for n in ("projector.mlp", "logits")
    }
    told = as_text(c.explain({"projector.mlp": noise["projector.mlp"]}))
    assert "All that goes into it is right" not in told
    assert "No earlier stage is known to be right." in told
    given = {"vision.features": c.faultless["vision.features"][0], "projector.mlp": noise["projector.mlp"]}
    told = as_text(c.explain(given))
    assert "The fault is made after vision.features: projector.mlp.mlp.0" in told
    sound = {n: a[0] for n, a in c.faultless.items() if n != "projector.mlp"}
    told = as_text(c.explain(sound | {"projector.mlp": noise["projector.mlp"]}))
    assert "Sound as far as projector.mlp.mlp.1." in told


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_stage_without_numbers_is_said_as_that(value: float) -> None:
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items()}
    stages["vision.hidden_states.2"] = np.full_like(stages["vision.hidden_states.2"], value)
    e = c.explain(stages)
    told = as_text(e)
    assert "vision.hidden_states.2 is wrong" in told
    assert ("every number is 0" if value == 0 else "NaN" if value != value else "infinite") in told
    assert "cosine" not in told and "exactly" not in told and " dB" not in told
    stages["vision.hidden_states.2"] = c.faultless["vision.hidden_states.2"][0].copy()
    stages["vision.hidden_states.2"][5:9] = value
    told = as_text(c.explain(stages))
    assert ("all 0 in patches 5 to 8" if value == 0 else "the first at [5, 0]") in told


def test_what_follows_takes_three_lines_at_most() -> None:
    c = case("ldpv2")
    faults = {
        "bgr": "start",
        "vision_act": "gelu",
        "peg": "no residual",
        "theta": 7777.0,
        "final_norm": False,
    }
    e = c.explain(c.run(faults))
    lines = as_text(e).splitlines()
    rest = [line for line in lines if line.startswith(("Then ", "and ", "More "))]
    assert 1 <= len(rest) <= 3
    assert "reproduced by bgr" in as_text(e)


def test_a_port_without_a_block_is_wrong_although_the_next_part_was_fed_the_goldens_numbers() -> None:
    """Without PEG its output is what the golden has before it; the decoder, fed by the golden, is right."""
    c = case("ldpv2")
    stages = {n: a[0] for n, a in c.faultless.items() if n != "projector.peg.peg"}
    stages |= dict.fromkeys(("projector.peg", "projector.output"), stages["projector.dwn"])
    result = against(c.golden, stages)
    assert result.first_wrong is not None and result.first_wrong.name == "projector.peg"
    layers = {n: a[0] for n, a in c.faultless.items()}
    layers["decoder.keys.1"] = layers["decoder.keys.0"]  # the wrong slot of a cache, beside right values
    only = {
        n: layers[n]
        for n in ("decoder.hidden_states.1", "decoder.keys.0", "decoder.keys.1", "decoder.values.1")
    }
    assert verdicts(against(c.golden, only))["decoder.keys.1"] == WRONG


def test_other_weights_are_the_last_thing_to_be_thought_of(tmp_path: Path) -> None:
    r, c = recorded(), case("ldpv2")
    grid = r.stages["projector.dwn.dwn"]  # (D, 12, 12), read as tokens without a transpose
    result = against(r.golden, {"projector.dwn": grid.reshape(-1, len(grid))})
    assert "these are other weights" not in notes_of(result)
    assert "these are other weights" not in as_text(c.explain(c.run({"grid": "before"})))
    for faults in ({"rope": "interleaved"}, {"rope": "none"}):
        told = as_text(c.explain(c.run(faults)))
        assert "other weights" not in told
    make_checkpoint("golden-ldpv2", tmp_path / "other", seed=7)
    stages = record(load(tmp_path / "other", "float32", "numpy"), r.question)
    few = {n: stages[n] for n in ("pixel_values", "vision.hidden_states.0")}
    assert "these are other weights" in as_text(c.explain(few))


# ---------------------------------------------------------------- words


def test_the_text_s_positions_are_words_for_the_decoder_only() -> None:
    r = recorded()
    for name in r.golden.names:
        if r.stages[name].dtype.kind != "f":
            continue
        changed = r.stages[name].copy()
        changed[..., :2, :] *= 1.5
        where = next(s.where for s in against(r.golden, {name: changed}).stages if s.name == name)
        assert "-" not in where.replace("pre-", ""), (name, where)
        if not name.startswith(("inputs_embeds", "decoder", "logits")):
            assert "text" not in where and "picture" not in where, (name, where)


def test_what_is_not_distinguishable_is_what_this_model_could_have() -> None:
    """Neither the mistakes of LDP for LDPv2, nor those of a square picture for one that is not square."""
    e = case("ldpv2").explain(case("ldpv2").faultless)
    unseen = {u.id: u.details for u in e.invisible}
    assert "exif-turned" in unseen
    absent = {"hardswish-as-silu", "squeeze-width", "residual-on-stride-2", "pad-not-wanted", "no-pad"}
    assert not absent & unseen.keys()
    assert not {"resize-before-pad", "pad-at-corner", "pad-colour"} & unseen.keys()


def test_ways_to_make_a_mistake_are_unseen_one_by_one() -> None:
    c = case("ldpv2")
    given = {"pixel_values": c.faultless["pixel_values"], "vision.features": c.faultless["vision.features"]}
    unseen = {u.id: u.details for u in c.explain(given).invisible}
    assert unseen["tanh-gelu"] == ("in the projector",)
    assert unseen["no-causal-mask"] == ()
    assert "bgr" not in unseen


def test_the_picture_may_lie_beside_the_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = case("ldpv2")
    (tmp_path / "a").mkdir()
    golden = tmp_path / "a" / "b" / "golden.safetensors"
    golden.parent.mkdir()
    golden.write_bytes((c.folder / "golden-0.safetensors").read_bytes())
    dump = tmp_path / "dump"
    dump.mkdir()
    assert find_picture(read_golden(golden), dump) is None
    (dump / "picture.png").write_bytes(c.image.read_bytes())
    assert find_picture(read_golden(golden), dump) == dump / "picture.png"
    known = replace(read_golden(golden), metadata={"image": "picture.png", "image_sha256": "a" * 64})
    assert find_picture(known, dump) is None
