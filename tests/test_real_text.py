"""Models that were trained on English text: what they write, and what rounding does to them."""

import json
from pathlib import Path

import pytest

import mvlm_np
from tests.conftest import ROOT, shared_path
from tools.parts.real_text import BYTE_LEVEL, encode, manual
from tools.quality import compare, pieces_of_text, predictions


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_stories260k_tells_the_reference_story(backend: str) -> None:
    folder = shared_path("weights/stories260K")
    reference = json.loads((folder / "greedy_reference.json").read_text())
    model = mvlm_np.load(folder, backend=backend)
    wanted = reference["greedy_ids_fp32"]
    assert model.generate(reference["prompt_ids"], max_new_tokens=len(wanted)) == wanted
    assert len(wanted) == 120


MOVED = ROOT / ".cache" / "real" / "smollm2-moved"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The folder of SmolLM2-135M, its weights moved off their grid."""
    pytest.importorskip("tokenizers", reason="needs pip install 'mvlm-np[real]'")
    if not (MOVED / "config.json").is_file():
        pytest.skip(f"needs a real model: python tools/real_model.py {MOVED.relative_to(ROOT)} --off-grid")
    return MOVED


def test_a_trained_model_goes_on_as_one_expects(smollm2: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer, model = Tokenizer.from_file(str(smollm2 / BYTE_LEVEL)), mvlm_np.load(smollm2)
    for begun, end in (
        ("The capital of France is", " Paris"),
        ("One, two, three, four, five, six,", " seven"),
        ("Monday, Tuesday, Wednesday, Thursday,", " Friday"),
    ):
        new = model.generate(tokenizer.encode(begun).ids, max_new_tokens=1)
        assert tokenizer.decode(new) == end


def test_8_bits_change_little_of_a_trained_model(smollm2: Path) -> None:
    model = mvlm_np.load(smollm2)
    read = pieces_of_text(encode(smollm2, model, manual("evaluation")), 128, 128)
    true = [predictions(model, piece)[0] for piece in read]
    found = compare("int8", mvlm_np.load(smollm2, "int8"), read, true)
    assert found.kl < 0.02 and found.same_best > 0.9
