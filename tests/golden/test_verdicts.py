"""Verdicts on what ports in the wild have dumped: each was wrong once."""

from pathlib import Path

import numpy as np
import pytest

from mvlm_np.golden.compare.candidates import Candidate, read_candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.compare.tolerance import CLASSES
from mvlm_np.golden.compare.verdict import RIGHT
from mvlm_np.golden.explain.replay import Replay
from mvlm_np.golden.explain.scene import aligned, make_scene
from mvlm_np.golden.format import Golden
from mvlm_np.golden.measure import on_even_steps
from mvlm_np.golden.precision import ROUNDINGS, STATIC, to_bf16, to_even_steps
from tests.conftest import DATA
from tests.golden.recorded import Stages, against, recorded
from tests.golden.test_explain import case
from tools.check_explain import named


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
