"""The same answer to the bit on every CPU: hashes of all stages of small packed models, written down.

They hold for every instruction set but "generic", which has no fused multiply-add. Where they change, answers
to the same question from the same packed file change with the release, and CHANGELOG.md has to say so. Then

    python -m tests.kernels.test_bits

prints what to write down here.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from math import prod
from zlib import crc32

import numpy as np
import pytest

from mvlm_np import backend, decoder, projector, vision
from mvlm_np.backend import Ops
from mvlm_np.binder import Binder
from mvlm_np.config import Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.generation import Settings
from mvlm_np.kernels import cpu, pack
from mvlm_np.linear import Linear, Quantized
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder
from tests.conftest import ROOT

# By projector, kind of the decoder's weights, and type of the cache: the stages up to the image tokens, the
# decoder's, and the ids of the answer with their logits.
WANTED = {
    ("ldpnetv2", "int4", "float16"): ("17a1336a1f72de35", "abffa6541dade9b9", "8c6294dd2826163c"),
    ("ldpnet", "int8", "int8"): ("5d56ce0acc22c5f5", "4fd1a81fcc40b12d", "71d1d9cb670390db"),
    ("mlp2x_gelu", "int4", "float32"): ("be0597e621f072c2", "df0b9e26d39f7594", "527a7c846a7c6846"),
    ("ldpnetv2", "uint4", "int8"): ("17a1336a1f72de35", "5c7aad032d4ac05d", "0459bb6b9fe31dd0"),
}
PROMPT, TOKENS = [1, 7, 30, -200, 5, 99, 64], 12


class Made(Binder):
    """Makes up packed weights, of whole numbers from a generator that is the same everywhere."""

    def __init__(self, kind: str, ops: Ops):
        super().__init__()
        self.kind, self.ops = kind, ops

    def integers(self, name: str, least: int, most: int, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(crc32(f"{self.prefix}{name}".encode()))
        return rng.integers(least, most + 1, shape)

    def array(self, name: str, *shape: int) -> np.ndarray:
        found = self.integers(name, -64, 64, *shape).astype(np.float32)
        if len(shape) == 1 and name.endswith("weight"):
            return 1 + found / 512  # a norm's gain
        return found / np.float32(64 * max(1.0, prod(shape[1:]) ** 0.5 / 2))

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        kind = self.kind if "layers." in self.prefix and "vision" not in self.prefix else "int8"
        groups, most = -(-K // 32), 127 if kind == "int8" else 7
        if kind == "uint4":
            w = self.integers(name, 0, 15, N, K).astype(np.uint8)
            scales = self.integers(f"{name}.scales", 0, 255, N, groups, 2).astype(np.uint8)
            tops = self.integers(f"{name}.tops", 20, 40, N, -(-groups // 8), 2) / (2048 * K**0.5)
            factors = [scales, (tops / (7, 1)).astype(np.float16)]
        else:
            w = self.integers(name, -most, most, N, K).astype(np.int8)
            scales = self.integers(f"{name}.scales", 20, 40, N, groups) / (16 * most * K**0.5)
            factors = [scales.astype(np.float16)]
        packed = pack.pack(kind, w, *factors)
        return Quantized(packed, self.array(f"{name}.bias", N) if bias else None, self.ops)

    conv1x1 = linear


def stages(projector_type: str, kind: str, cache: str) -> list[dict[str, np.ndarray]]:
    """Every array on the way from a picture to an answer: the picture's, the decoder's, the answer's."""
    tower = VisionConfig(
        hidden_size=32, intermediate_size=72, num_hidden_layers=3, num_attention_heads=2, image_size=56
    )
    text = DecoderConfig(
        hidden_size=64, intermediate_size=104, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=120,
    )  # fmt: skip
    config = Config(text, tower, ImageConfig(resize=56, crop=(56, 56)), projector_type)
    ops = backend.with_int8_attention(backend.choose("numba"))
    get = Made(kind, ops)
    weights = vision.bind(tower, get), projector.bind(config, get), decoder.bind(text, get)
    model = MobileVLM(config, *weights, ops, lambda: pytest.fail("no tokenizer"), cache=cache)

    picture, language = Recorder(), Recorder()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    x, ids = model.embed(PROMPT, [model.encode_image(pixels, watch=picture)])
    session = model.session()
    logits = session.prefill(x, ids, TOKENS, language)
    settings = Settings(max_new_tokens=TOKENS)
    answer = list(session.generate(logits, settings, lambda _: False, len(PROMPT), Recorder()))
    session.cache.length = len(ids)
    fed = [session.logits(np.array([token]), session.cache)[0] for token in answer]
    return [picture.arrays, language.arrays, {"ids": np.array(answer), "logits": np.array([logits, *fed])}]


def digest(arrays: dict[str, np.ndarray]) -> str:
    found = sha256()
    for name in sorted(arrays):
        assert arrays[name].size, name
        assert np.isfinite(arrays[name]).all(), name
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.skipif(cpu.INSTRUCTION_SET == "generic", reason="has no fused multiply-add")
@pytest.mark.parametrize("case", WANTED, ids=str)
def test_all_stages_have_the_bits_that_they_have_elsewhere(case: tuple[str, str, str]) -> None:
    assert tuple(map(digest, stages(*case))) == WANTED[case]


OTHERS = [
    name
    for name, needed in cpu.INSTRUCTION_SETS.items()
    if needed <= cpu.features() and name not in (cpu.INSTRUCTION_SET, "generic")
]


def test_so_they_have_with_every_instruction_set_of_this_cpu() -> None:
    for name in OTHERS:
        done = subprocess.run(
            [sys.executable, "-m", "tests.kernels.test_bits"],
            env={**os.environ, "MVLM_SIMD": name},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines() == lines(WANTED), f"{name}: {done.stderr}"


def lines(found: Mapping[tuple[str, str, str], tuple[str, ...]]) -> list[str]:
    return [f"    {case}: {digests},".replace("'", '"') for case, digests in found.items()]


if __name__ == "__main__":
    print(*lines({case: tuple(map(digest, stages(*case))) for case in WANTED}), sep="\n")
