"""A file as llama.cpp's Q4_K_M, which mixes block types: loaded as stored, without the gguf package."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import mvlm_np
from mvlm_np import quantize
from mvlm_np.checkpoints import gguf_blocks
from mvlm_np.checkpoints.gguf import read_gguf
from mvlm_np.checkpoints.gguf_writer import write_gguf_pair
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.packed import PackedTensor
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.converting import convert, convert_to_gguf
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels import pack
from mvlm_np.linear import Quantized
from mvlm_np.model import MobileVLM
from tests.checkpoints.gguf_models import VOCAB, as_weights, random_weights, tokenizer_model
from tests.conftest import shared_path

CONFIG = Config(DecoderConfig(256, 512, 2, 2, 1, VOCAB, 1e-5, 10000.0, 512))
MIXED = {"attn_v": "q6_k", "ffn_down": "q6_k", "output": "q6_k", "attn_output": "q5_k"}


def blocks_of(name: str, w: np.ndarray) -> np.ndarray:
    """Blocks of a type near some weights, by means of their own: uint8 (N, bytes)."""
    N, K = w.shape
    if name == "q4_k":
        return gguf_blocks.join(name, *quantize.quantize(w, "uint4", whole=63)).reshape(N, -1)
    rng = np.random.default_rng(K)
    stored = gguf_blocks.TYPES_BY_NAME[name]
    blocks = rng.integers(0, 256, (N, K // 256, stored.nbytes), np.uint8)
    tops = np.full((N, K // 256, 1), 4e-5 if name == "q6_k" else 3e-4, np.float16)
    if name == "q6_k":
        blocks[..., 208:] = tops.view(np.uint8)
    else:
        blocks[..., :4] = np.repeat(tops * np.float16(1.0), 2, axis=2).view(np.uint8).reshape(N, K // 256, 4)
        blocks[..., 2:4] = (tops * np.float16(15)).view(np.uint8)
    return blocks.reshape(N, -1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the gguf package, from what our writer has as F16."""
    folder = tmp_path_factory.mktemp("q4_k")
    plain, *_ = write_gguf_pair(folder, as_weights(random_weights(CONFIG)), CONFIG, tokenizer_model(), "F16")
    reader, path = gguf.GGUFReader(plain), folder / "mixed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith(("llama.", "tokenizer.")):
            value, kind = field.contents(), field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, value, kind, of)
    for tensor in reader.tensors:
        shape = tensor.shape.tolist()[::-1]
        if len(shape) == 1:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        kind = MIXED.get(tensor.name.split(".")[-2], "q4_k")
        data = blocks_of(kind, np.asarray(tensor.data, np.float32).reshape(shape))
        writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_blocks.importlib.util, "find_spec", lambda name: None)


PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def packed_in(model: MobileVLM) -> Iterator[tuple[str, pack.Packed]]:
    """The decoder's matrices by llama.cpp's names."""
    names = [f"blk.{i}.{part}" for i in range(len(model.decoder.layers)) for part in PARTS]
    for name, linear in zip([*names, "output"], model.decoder.linear, strict=True):
        assert isinstance(linear, Quantized)
        yield name, linear.packed


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_it_runs_as_stored_without_the_package(mixed: Path, backend: str) -> None:
    model = mvlm_np.load(mixed, backend=backend)
    theirs = {t.name.removesuffix(".weight"): t for t in gguf.GGUFReader(mixed).tensors}
    for name, packed in packed_in(model):
        tensor = theirs[name]
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if "attn_q" in name or "attn_k" in name:  # llama.cpp's order of rows
            heads = 2 if "attn_q" in name else 1
            wanted = wanted.reshape(heads, -1, 2, 256).swapaxes(1, 2).reshape(wanted.shape)
        found = quantize.dequantize(*pack.unpack(packed))
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_K:
            assert packed.kind == "uint4"
            np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
        else:
            assert packed.kind == "int8"
            assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)
    told = [note for note in model.notes if "rounded anew" in note]
    assert [note.split()[3] for note in sorted(told)] == ["q5_k,", "q6_k,"]
    assert all("to int8" in note and "dB" in note for note in told)
    assert len(model.generate([1, 5, 9, 20], max_new_tokens=5)) <= 5


def test_logits_are_those_of_its_weights_but_for_rounded_activations(mixed: Path) -> None:
    def logits(backend: str, precision: str | None = None) -> np.ndarray:
        model = mvlm_np.load(mixed, precision, backend)
        return model.trace(None, "what is on the photo", 1)["logits"]

    exact = logits("numpy", "float32")
    for backend in ("numpy", "numba"):
        found = logits(backend)
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error < 0.05, backend


@pytest.mark.usefixtures("no_package")
def test_converted_as_stored_and_back_it_is_the_same_to_the_byte(mixed: Path, tmp_path: Path) -> None:
    convert(open_checkpoint(mixed), tmp_path / "folder", None)
    kept = open_checkpoint(tmp_path / "folder").tensors
    stored = open_checkpoint(mixed).tensors
    for name, tensor in stored.items():
        if tensor.dtype == "q4_k" and name != "model.embed_tokens.weight":
            assert isinstance(kept[name], PackedTensor) and kept[name].dtype == "uint4"
            np.testing.assert_array_equal(kept[name].float32(), tensor.float32())
    for number, source in enumerate((mixed, tmp_path / "folder")):
        convert_to_gguf(open_checkpoint(source), tmp_path / str(number), "int4", told=refuse)
        again = read_gguf(tmp_path / str(number) / "model-Q4_K.gguf").tensors
        for name, tensor in read_gguf(mixed).tensors.items():
            if tensor.dtype == "q4_k" and name != "token_embd.weight":
                assert again[name].dtype == "q4_k"
                np.testing.assert_array_equal(again[name].raw, tensor.raw)


def refuse(name: str, dtype: str, snr: float | None) -> None:
    raise AssertionError(name)


@pytest.mark.parametrize("quality", ["high", "fast"])
def test_our_own_uint4_is_rounded_again_to_6_bits_and_that_is_told(tmp_path: Path, quality: str) -> None:
    config = Config(DecoderConfig(64, 256, 1, 2, 1, VOCAB, 1e-5, 10000.0, 512))
    plain, *_ = write_gguf_pair(
        tmp_path / "plain", as_weights(random_weights(config)), config, tokenizer_model(), "F16"
    )
    convert(open_checkpoint(plain), tmp_path / "folder", "int4", quality)
    told = dict[str, tuple[str, float | None]]()
    convert_to_gguf(
        open_checkpoint(tmp_path / "folder"), tmp_path / "pair", "int4",
        told=lambda name, dtype, snr: told.update({name: (dtype, snr)}),
    )  # fmt: skip
    # The others have rows of 64, which blocks of Q4_K do not divide.
    divided = {name: snr for name, (_, snr) in told.items() if snr is not None}
    assert [*divided] == ["model.layers.0.mlp.down_proj.weight"]
    assert {dtype for name, (dtype, _) in told.items() if name not in divided} == {"q8_0"}
    kept, again = (
        open_checkpoint(path).tensors for path in (tmp_path / "folder", tmp_path / "pair" / "model-Q4_K.gguf")
    )
    for name, snr in divided.items():
        assert again[name].dtype == "q4_k"
        before, after = (tensors[name].float32().astype(np.float64) for tensors in (kept, again))
        loss = 10 * np.log10((before**2).sum() / ((before - after) ** 2).sum())
        assert loss == pytest.approx(snr, abs=1e-3) and 30 < loss < 60
    assert {again[f"model.layers.0.self_attn.{p}_proj.weight"].dtype for p in "qkv"} == {"q8_0"}


def test_scales_that_are_not_finite_are_refused(mixed: Path, tmp_path: Path) -> None:
    data = bytearray(mixed.read_bytes())
    at = read_gguf(mixed).tensors["blk.1.ffn_up.weight"].offset
    data[at + 2 : at + 4] = b"\x00\x7c"  # dmin
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight: holds NaN or infinity"):
        mvlm_np.load(tmp_path / "bad.gguf")


def test_llama_cpps_own_file_is_held_bit_for_bit() -> None:
    path = shared_path("goldens/v2-256/gguf/llm-Q4_K_S.gguf")
    model = mvlm_np.load(path, backend="numpy")
    theirs = {t.name.removesuffix(".weight"): t for t in gguf.GGUFReader(path).tensors}
    compared = 0
    for name, packed in packed_in(model):
        if theirs[name].tensor_type == gguf.GGMLQuantizationType.Q4_K and "attn_q" not in name:
            found = quantize.dequantize(*pack.unpack(packed))
            if "attn_k" not in name:
                wanted = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
                np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
                compared += 1
    assert compared >= 2
