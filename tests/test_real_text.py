"""Models that were trained on English text: what they write, and what rounding does to them."""

import json
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mvlm_np
from mvlm_np.backend import choose
from mvlm_np.calibrating.layers import Work, calibrated
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.linear import Dense, Joined
from mvlm_np.loading import bound_tensors
from mvlm_np.model import MobileVLM
from mvlm_np.quantize import WHOLE, dequantize, quantize
from tests.conftest import ROOT, shared_path
from tools.parts.predictions import Reading, compare, pieces_of_text, predictions
from tools.parts.real_text import BYTE_LEVEL, encode, manual


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


@pytest.fixture(scope="module")
def model(smollm2: Path) -> MobileVLM:
    return mvlm_np.load(smollm2)


@pytest.fixture(scope="module")
def read(smollm2: Path, model: MobileVLM) -> list[Reading]:
    """A piece of the manual's half that is not for calibration."""
    return pieces_of_text(encode(smollm2, model, manual("evaluation")[:4000]), 128, 128)


@pytest.fixture(scope="module")
def true(model: MobileVLM, read: list[Reading]) -> list[np.ndarray]:
    return [predictions(model, piece)[0] for piece in read]


def test_a_trained_model_goes_on_as_one_expects(smollm2: Path, model: MobileVLM) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2 / BYTE_LEVEL))
    for begun, end in (
        ("The capital of France is", " Paris"),
        ("One, two, three, four, five, six,", " seven"),
        ("Monday, Tuesday, Wednesday, Thursday,", " Friday"),
    ):
        new = model.generate(tokenizer.encode(begun).ids, max_new_tokens=1)
        assert tokenizer.decode(new) == end


def test_8_bits_change_little_of_a_trained_model(
    smollm2: Path, read: list[Reading], true: list[np.ndarray]
) -> None:
    found = compare("int8", mvlm_np.load(smollm2, "int8"), read, true)
    assert found.kl < 0.02 and found.same_best > 0.9


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_calibrated_4_bits_cost_less(
    smollm2: Path, model: MobileVLM, read: list[Reading], true: list[np.ndarray], tmp_path: Path, kind: str
) -> None:
    """Of the first layer; calibrated on one half of a manual, judged by the other."""
    source = open_checkpoint(smollm2)
    config, tensors = replace(source.config.decoder, num_hidden_layers=1), bound_tensors(source)
    ids = encode(smollm2, model, manual("calibration")[:20_000])[:2048]
    assert len(ids) == 2048
    pieces = [model.decoder.embed_tokens(np.array(ids[i : i + 256])) for i in range(0, 2048, 256)]
    work = Work(tmp_path / "work", "")
    with work.held():
        found, _ = calibrated(tensors, config, kind, WHOLE, choose(), work, lambda: iter(pieces))

    def kl(rounded: dict[str, np.ndarray]) -> float:
        """With this layer, all others as they are."""
        first, *others = model.decoder.layers
        of = {name.split(".")[-2]: w for name, w in rounded.items()}
        first = replace(
            first,
            qkv=Joined(*(Dense(of[f"{name}_proj"]) for name in "qkv")),
            o_proj=Dense(of["o_proj"]),
            gate_up=Joined(Dense(of["gate_proj"]), Dense(of["up_proj"])),
            down_proj=Dense(of["down_proj"]),
        )
        other = copy(model)
        other.decoder = replace(model.decoder, layers=[first, *others])
        return compare(kind, other, read, true).kl

    nearest = kl({name: dequantize(*quantize(tensors[name].float32(), kind)) for name in found})
    calibrated_kl = kl({name: tensor.float32() for name, tensor in found.items()})
    assert calibrated_kl < 0.9 * nearest
