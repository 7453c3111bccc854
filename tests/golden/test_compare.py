"""What is said of a candidate that is another thing altogether, or only a part of one."""

from dataclasses import replace

import numpy as np
import pytest

from mvlm_np.errors import GoldenError
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.compare.report import as_text
from mvlm_np.golden.compare.verdict import MISSING, NOT_FINITE, RIGHT, UNJUDGED, WRONG
from mvlm_np.golden.record.recording import record
from mvlm_np.loading import load
from tests.conftest import ROOT
from tests.golden.recorded import OWN, against, recorded
from tests.golden_sets import SETS, cases
from tools.parts.random_checkpoint import make_checkpoint

FIRST = "vision.hidden_states.0"


def said(result: Comparison) -> str:
    return "\n".join(result.notes)


def test_the_golden_itself_is_right_to_the_bit() -> None:
    r = recorded()
    result = against(r.golden, r.stages)
    assert result.right and not result.notes
    assert {s.verdict for s in result.stages} == {RIGHT}
    assert {s.distance.rms for s in result.stages if s.distance} == {0}
    assert result.last_right and result.last_right.name == r.golden.names[-1]


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(
        GoldenError, match=r"found 'fp8', wanted float32, float16, bf16, int8, int4 or int8-static"
    ):
        against(recorded().golden, {"logits": np.zeros(1)}, "fp8")


# ---------------------------------------------------------------- another thing altogether


def test_another_picture() -> None:
    r = recorded()
    stages = record(r.model, replace(r.question, image=ROOT / "examples" / "chelsea.jpg"))
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == "pixel_values"
    assert "not the pixels of the golden's picture ('picture.png')" in said(result)
    del stages["pixel_values"]
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == FIRST
    assert "but not the class token" in result.first_wrong.where
    assert "another picture" in said(result) and "Dump pixel_values" in said(result)


def test_a_picture_prepared_in_another_way() -> None:
    r = recorded()
    stages = {"pixel_values": r.stages["pixel_values"] * np.float32(1.02)}
    assert "prepared in another way" in said(against(r.golden, stages))


def test_other_weights(tmp_path) -> None:
    r = recorded()
    make_checkpoint("golden-ldpv2", tmp_path / "other", seed=7)
    model = load(tmp_path / "other", "float32", "numpy")
    result = against(r.golden, record(model, r.question))
    assert result.first_wrong and result.first_wrong.name == FIRST
    assert "It has nothing in common with the golden's" in said(result)


def test_metadata_that_contradict_each_other() -> None:
    r = recorded()
    golden = replace(r.golden, metadata={"weights_sha256": "a" * 64, "model": "A", "image_sha256": "b" * 64})
    about = {"weights_sha256": "c" * 64, "model": "B", "image_sha256": "d" * 64}
    notes = said(compare(golden, Candidate(r.stages, metadata=about)))
    assert "Another weights than the golden's ('A' and 'B')" in notes.replace("Other", "Another")
    assert "picture than the golden's ('bbbbbbbbbbbb' and 'dddddddddddd')" in notes


def test_another_prompt() -> None:
    r = recorded()
    stages = record(r.model, replace(r.question, text="What is that over there?"))
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == "input_ids"
    assert "Another prompt, template or tokenizer" in said(result)
    del stages["input_ids"]
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == "inputs_embeds"
    assert "Dump input_ids too" in said(result)


# ---------------------------------------------------------------- parts


def test_missing_stages_widen_the_place_of_a_fault() -> None:
    r = recorded()
    stages = {n: r.stages[n].copy() for n in ("pixel_values", FIRST, "projector.output")}
    stages["projector.output"] += 1
    result = against(r.golden, stages)
    assert result.first_wrong and result.first_wrong.name == "projector.output"
    assert result.last_right and result.last_right.name == FIRST
    assert result.between == r.golden.names[2 : r.golden.names.index("projector.output")]
    assert f"After {FIRST}, which is right, vision.hidden_states.1" in said(result)
    assert sum(s.verdict == MISSING for s in result.stages) == len(r.golden.names) - 3


def test_a_fault_in_one_dump_only_is_the_dump_s() -> None:
    r = recorded()
    stages = dict(r.stages)
    stages["projector.dwn"] = stages["projector.dwn"] + 1
    assert "only this dump is not" in said(against(r.golden, stages))


def test_another_stage_s_numbers_are_recognised() -> None:
    r = recorded()
    stages = {"vision.hidden_states.1": r.stages["vision.hidden_states.2"]}
    assert "It is the golden's vision.hidden_states.2: a block too many" in said(against(r.golden, stages))


@pytest.mark.parametrize(("value", "says"), [(np.nan, "1 NaN of"), (np.inf, "1 infinite of")])
def test_what_is_not_finite_is_counted_and_placed(value: float, says: str) -> None:
    r = recorded()
    stages = dict(r.stages)
    stages["decoder.keys.1"] = stages["decoder.keys.1"].copy()
    stages["decoder.keys.1"][1, 2, 3] = value
    result = against(r.golden, stages)
    first = result.first_wrong
    assert first and (first.name, first.verdict) == ("decoder.keys.1", NOT_FINITE)
    assert says in first.note and first.note.endswith("the first at [1, 2, 3]")


def test_words_for_places_in_the_decoder() -> None:
    r = recorded()
    at = int(np.flatnonzero(r.stages["input_ids"] == -200)[0])
    for row, word in ((at + 5, "(image token 5)"), (at - 1, f"position {at - 1}")):
        stages = dict(r.stages)
        stages["decoder.hidden_states.1"] = stages["decoder.hidden_states.1"].copy()
        stages["decoder.hidden_states.1"][row, 3] += 1
        first = against(r.golden, stages).first_wrong
        assert first and first.where == f"channel 3; {first.where.split('; ')[1]}"
        assert word in first.where


# ---------------------------------------------------------------- generated tokens


def test_tokens_may_differ_where_two_are_as_likely() -> None:
    r = recorded()
    ids, logits = r.stages["generated_ids"], r.stages["decode.logits"].copy()
    second = int(np.argsort(logits[1])[-2])
    other = ids.copy()
    other[2] = second
    assert against(r.golden, dict(r.stages, generated_ids=other)).first_wrong is not None
    logits[1, second] = logits[1].max() * (1 - np.float32(1e-7))  # a tie, in golden and candidate
    tied = replace(r.golden, stages=dict(r.stages, **{"decode.logits": logits}))
    stages = dict(r.stages, generated_ids=other)
    stages["decode.logits"] = logits.copy()
    stages["decode.logits"][2:] = 0  # other tokens were fed
    stages["decode.hidden_states.1"] = stages["decode.hidden_states.1"].copy()
    stages["decode.hidden_states.1"][2:] = 0
    result = against(tied, stages)
    assert result.right, result.first_wrong
    verdicts = {s.name: s for s in result.stages}
    assert "within rounding both are as likely" in verdicts["generated_ids"].note
    assert verdicts["decode.logits"].note == f"the first 2 of {len(ids)} rows"
    stages["decode.logits"][1] = 0
    assert not against(tied, stages).right


def test_a_shorter_answer_is_compared_as_far_as_it_goes() -> None:
    r = recorded()
    stages = {n: a[:3] if n.startswith(("generated", "decode.")) else a for n, a in r.stages.items()}
    result = against(r.golden, stages)
    assert result.right
    del stages["generated_ids"]
    assert against(r.golden, stages).right


def test_other_tokens_from_the_first_on_leave_nothing_to_compare() -> None:
    r = recorded()
    stages = dict(r.stages, generated_ids=r.stages["generated_ids"][::-1])
    verdicts = {s.name: s.verdict for s in against(r.golden, stages).stages}
    assert verdicts["generated_ids"] == WRONG
    assert verdicts["decode.logits"] == UNJUDGED


@pytest.mark.parametrize("name", OWN)
def test_what_torch_computed_is_right(name: str) -> None:
    r = recorded(name)
    torch = {k: v for k, v in cases(name)[0].stages.items() if "beam" not in k}
    result = against(r.golden, torch)
    assert result.right, result.first_wrong


@pytest.mark.parametrize("name", [n for n in SETS if n.startswith("published")])
def test_every_published_golden_is_right_compared_with_itself(name: str) -> None:
    from mvlm_np.golden.compare.candidates import read_candidate
    from mvlm_np.golden.format import read_golden

    folder = cases(name)[0].folder
    for path in sorted(folder.glob("golden-*.safetensors")):
        golden = read_golden(path)
        result = compare(golden, read_candidate(path, golden.names))
        assert result.right and len([s for s in result.stages if s.verdict == RIGHT]) == len(golden.names)


def test_the_real_port_is_wrong() -> None:
    """llama.cpp's MobileVLM, as it was in October 2026."""
    from mvlm_np.golden.compare.candidates import read_candidate
    from mvlm_np.golden.format import read_golden

    folder = cases("published/v2-256")[0].folder
    golden = read_golden(folder / "golden-0.safetensors")
    candidate = read_candidate(folder / "llamacpp-embeddings.bin", golden.names)
    result = compare(golden, candidate, "float16")
    assert result.first_wrong and result.first_wrong.name == "projector.output"
    assert result.first_wrong.distance
    assert 0.70 < result.first_wrong.distance.cosine < 0.71
    undecided = compare(golden, candidate, "int4")  # of which a golden without floors knows too little
    assert not undecided.right and undecided.first_wrong is None
    assert "UNDECIDED" in as_text(undecided)
