"""The judge: every stage of the published code, one at a time and all together.

Each test of a stage feeds it the golden input, so that a failure names one stage. A plain NumPy script
stays under 2e-6 of a stage's largest magnitude, and under 1.4e-5 at the end of the whole chain: the
bounds leave room for other BLAS libraries, and for nothing else.
"""

from collections.abc import Iterator

import numpy as np
import pytest

import mvlm_np
from mvlm_np import projector, vision
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.model import MobileVLM
from mvlm_np.session import Session
from mvlm_np.trace import Watch
from tests.golden_sets import SETS, Case, cases, relative_error

STAGE = 5e-6
CHAIN = 5e-5

pytestmark = pytest.mark.xdist_group("goldens")


@pytest.fixture(
    params=[(name, backend) for name in SETS for backend in ("numpy", "numba")], ids="-".join, scope="module"
)
def loaded(request: pytest.FixtureRequest) -> tuple[MobileVLM, list[Case]]:
    name, backend = request.param
    found = cases(name)
    return mvlm_np.load(found[0].folder, backend=backend), found


@pytest.fixture
def model(loaded: tuple[MobileVLM, list[Case]]) -> MobileVLM:
    return loaded[0]


@pytest.fixture
def staged(loaded: tuple[MobileVLM, list[Case]]) -> list[Case]:
    """The cases that hold every stage; the long one holds the last positions only."""
    return [case for case in loaded[1] if "pixel_values" in case.stages]


class Teacher(Watch):
    """Compares each stage with the golden, then puts the golden in its place: the next stage starts right."""

    def __init__(self, stages: dict[str, np.ndarray]):
        super().__init__()
        self.stages, self.errors = stages, dict[str, float]()

    def __call__(self, name: str, array: np.ndarray) -> None:
        golden = self.stages[name]
        self.errors[name] = relative_error(array, golden)
        array[...] = golden

    def check(self, prefix: str) -> None:
        expected = {name for name in self.stages if name.startswith(prefix)}
        assert self.errors.keys() == expected
        wrong = {name: error for name, error in self.errors.items() if not error <= STAGE}
        assert not wrong


def test_pixel_values_are_within_one_rounding(model: MobileVLM, staged: list[Case]) -> None:
    for case in staged:
        found = preprocess(open_image(case.image, exif=False), model.config.image)
        golden = case.stages["pixel_values"]
        assert found.dtype == np.float32
        np.testing.assert_array_less(np.abs(found - golden), np.spacing(np.abs(golden)) * 1.5)


def test_each_vision_stage(model: MobileVLM, staged: list[Case]) -> None:
    assert model.vision and model.config.vision
    for case in staged:
        teacher = Teacher(case.stages)
        states = vision.hidden_states(
            case.stages["pixel_values"], model.vision, model.config.vision, model.ops
        )
        for i, state in enumerate(states):
            teacher(f"vision.hidden_states.{i}", state)
        teacher.check("vision.hidden_states.")


def test_each_projector_stage(model: MobileVLM, staged: list[Case]) -> None:
    assert model.projector
    for case in staged:
        teacher = Teacher(case.stages)
        features = np.array(case.stages["vision.features"])
        projector.project(features, model.projector, model.ops, teacher.within("projector"))
        teacher.check("projector.")


def test_each_decoder_stage(model: MobileVLM, staged: list[Case]) -> None:
    for case in staged:
        teacher = Teacher(case.stages)
        x = np.array(case.stages["inputs_embeds"])
        session = Session(model.decoder, model.config.decoder, model.ops)
        session.prefill(x, np.arange(len(x)), 0, teacher, chunk=len(x))
        teacher.check("decoder.")
        last = case.stages[f"decoder.hidden_states.{model.config.decoder.num_hidden_layers}"]
        assert relative_error(model.decoder.lm_head(last), case.stages["logits"]) <= STAGE


def test_embedding_puts_the_picture_in_its_place(model: MobileVLM, staged: list[Case]) -> None:
    for case in staged:
        x, _ = model.embed(case.stages["input_ids"].tolist(), [case.stages["projector.output"]])
        np.testing.assert_array_equal(x, case.stages["inputs_embeds"])


def test_the_whole_chain(loaded: tuple[MobileVLM, list[Case]]) -> None:
    """From the picture's file and the question to every stage, the same names and shapes, the same tokens."""
    model, all_cases = loaded
    for case in all_cases:
        traced = model.trace(case.image, case.question)
        traced |= _only_beams(model.trace(case.image, case.question, max_new_tokens=12, num_beams=3))
        for name, array in _last_positions(traced):
            traced[name] = array
        if "pixel_values" in case.stages:
            assert {name for name in traced if not name.endswith(".tail")} == case.stages.keys()
        for name, golden in case.stages.items():
            assert traced[name].dtype == golden.dtype, name
            if golden.dtype == np.int64:
                assert traced[name][0].tolist() == golden.tolist(), name
            else:
                assert relative_error(traced[name][0], golden) <= CHAIN, name


def _only_beams(traced: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in traced.items() if "_beam" in name}


def _last_positions(traced: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """`NAME.tail`: the last 16 positions of a decoder's stage."""
    for name in list(traced):
        if name == "logits" or name.startswith("decoder."):
            yield f"{name}.tail", traced[name][..., -16:, :]


def test_answers(loaded: tuple[MobileVLM, list[Case]]) -> None:
    model, all_cases = loaded
    for case in all_cases:
        pieces = list(model.stream(case.image, case.question, max_new_tokens=24))
        assert "".join(pieces) == case.text
        assert all(pieces)
