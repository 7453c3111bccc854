"""Writing models anew: from every source, in every precision, whatever happens meanwhile."""

import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import mvlm_np
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.gguf import read_gguf
from mvlm_np.checkpoints.gguf_class_token import CLASS, POSITIONS
from mvlm_np.checkpoints.gguf_writer import write_gguf_pair
from mvlm_np.checkpoints.loader import kind
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.packed import LOSSLESS, PackedTensor, packed
from mvlm_np.checkpoints.record import verify
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.cli import main
from mvlm_np.converting import convert, convert_to_gguf
from mvlm_np.errors import CheckpointError, TokenizerError, UserError
from mvlm_np.kernels.pack import unpack
from mvlm_np.linear import Quantized
from mvlm_np.loading import bound_tensors, manifest
from mvlm_np.precisions import GGUF, LOADED, MEANING, PACKED
from mvlm_np.quantize import dequantize
from tests.checkpoints.gguf_models import as_weights, random_weights, small_config, tokenizer_model
from tests.conftest import DATA, ROOT, shared_path

GOLDEN = DATA / "golden"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def text_only(folder: Path) -> Path:
    """A decoder alone, in float32."""
    folder.mkdir()
    read = read_safetensors(GOLDEN / "ldp" / "model.safetensors")
    arrays = {k: t.float32() for k, t in read.items() if not k.startswith(("model.mm_", "model.vision"))}
    save_file(arrays, folder / "model.safetensors")
    config = json.loads((GOLDEN / "ldp" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": None}))
    for name in TOKENIZER:
        shutil.copyfile(GOLDEN / "ldp" / name, folder / name)
    return folder


def pickled(folder: Path) -> Path:
    """As upstream saves it: torch's bfloat16 in a .bin."""
    shutil.copytree(GOLDEN / "ldpv2", folder)
    read = read_safetensors(folder / "model.safetensors")
    state = {name: torch.tensor(tensor.float32()).bfloat16() for name, tensor in read.items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def in_gguf(precision: str, projector: str = "ldpnetv2") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        config = small_config(projector)
        arrays = as_weights({k: v / 4 for k, v in random_weights(config).items()})
        return write_gguf_pair(folder, arrays, config, tokenizer_model(), precision)[0]

    return write


def golden(kind: str) -> Callable[[Path], Path]:
    return lambda folder: GOLDEN / kind


SOURCES: dict[str, Callable[[Path], Path]] = {
    "ldpv2": golden("ldpv2"),
    "ldp with its CLIP": golden("ldp"),
    "mlp with its CLIP": golden("mlp"),
    "text only": text_only,
    "pickle": pickled,
    "F16": in_gguf("F16"),
    "F16 of the first generation": in_gguf("F16", "ldpnet"),
    "Q8_0": in_gguf("Q8_0"),
    "Q4_0": in_gguf("Q4_0"),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def source(name: str) -> Path:
        if name not in made:
            made[name] = SOURCES[name](tmp_path_factory.mktemp("source") / "model")
        return made[name]

    return source


def kept(checkpoint: Checkpoint, precision: str | None) -> dict[str, tuple[np.ndarray, ...]]:
    """What a loaded model works with, by our names: packed arrays, or float32."""
    matrices = manifest(checkpoint.config).matrices
    found: dict[str, tuple[np.ndarray, ...]] = {}
    for name, tensor in bound_tensors(checkpoint).items():
        packed_kind = kind(name, tensor, precision) if name in matrices else None
        found[name] = (*packed(tensor, packed_kind)[0].arrays,) if packed_kind else (tensor.float32(),)
    return found


def assert_same(
    found: dict[str, tuple[np.ndarray, ...]], expected: dict[str, tuple[np.ndarray, ...]]
) -> None:
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        for ours, theirs in zip(found[name], arrays, strict=True):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


# -- Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [None, *LOADED])
@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_holds_what_loading_with_that_precision_gives(
    sources: Callable[[str], Path], tmp_path: Path, name: str, precision: str | None
) -> None:
    source = open_checkpoint(sources(name))
    convert(source, tmp_path / "out", precision)
    written = open_checkpoint(tmp_path / "out")
    tower = "clip" if source.config.vision else source.config.mm_vision_tower
    assert written.config == replace(source.config, mm_vision_tower=tower)
    assert_same(kept(written, None), kept(source, precision))
    if precision == "float32":
        assert {tensor.dtype for tensor in bound_tensors(written).values()} == {"float32"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", SOURCES)
def test_bf16_is_torchs_rounding(sources: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    source = open_checkpoint(sources(name))
    convert(source, tmp_path / "out", "bf16")
    written = bound_tensors(open_checkpoint(tmp_path / "out"))
    for ours, tensor in bound_tensors(source).items():
        assert written[ours].dtype == "bfloat16"
        expected = torch.tensor(tensor.float32()).bfloat16().float().numpy()
        np.testing.assert_array_equal(written[ours].float32(), expected, err_msg=ours)


def test_bf16_rounds_half_to_even(tmp_path: Path) -> None:
    folder = text_only(tmp_path / "source")
    arrays = {k: t.float32() for k, t in read_safetensors(folder / "model.safetensors").items()}
    pattern = np.random.default_rng(0).integers(0, 1 << 16, arrays["lm_head.weight"].shape, np.uint32)
    ties = (pattern & 0x3FFF | 0x3C00) << 16 | 0x8000
    arrays["lm_head.weight"] = ties.view(np.float32)
    save_file(arrays, folder / "model.safetensors")
    convert(open_checkpoint(folder), tmp_path / "out", "bf16")
    found = read_safetensors(tmp_path / "out" / "model.safetensors")["lm_head.weight"].raw
    upper = ties >> 16
    np.testing.assert_array_equal(found, upper + (upper & 1))


@pytest.mark.parametrize("precision", [None, *LOADED])
@pytest.mark.parametrize("name", ["ldp with its CLIP", "text only", "Q4_0"])
def test_answers_are_those_of_the_source(
    sources: Callable[[str], Path], tmp_path: Path, name: str, precision: str | None
) -> None:
    path = sources(name)
    convert(open_checkpoint(path), tmp_path / "out", precision)
    source = mvlm_np.load(path, precision, backend="numpy")
    written = mvlm_np.load(tmp_path / "out", backend="numpy")
    prompt = "what is on the photo"
    assert written.tokenizer.encode(prompt) == source.tokenizer.encode(prompt)
    ids = written.tokenizer.encode(prompt)
    image = None if name == "text only" else np.full((20, 30, 3), 90, np.uint8)
    if image is not None:
        ids = [*ids[:1], -200, *ids[1:]]
    assert written.generate(ids, image, max_new_tokens=5) == source.generate(ids, image, max_new_tokens=5)


@pytest.mark.parametrize(
    "stored, precision", [("q4_0", "int4"), ("q4_0", "int4-symmetric"), ("q8_0", "int8")]
)
def test_ggufs_blocks_repack_without_loss(
    sources: Callable[[str], Path], tmp_path: Path, stored: str, precision: str
) -> None:
    path = sources(stored.upper())
    told: dict[str, float] = {}
    convert(
        open_checkpoint(path), tmp_path / "out", precision, told=lambda name, n, snr: told.update({name: snr})
    )
    written = open_checkpoint(tmp_path / "out").tensors
    blocks = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for theirs, ours in (
        ("ffn_up", "mlp.up_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        tensor = blocks[f"blk.0.{theirs}.weight"]
        assert tensor.tensor_type.name.lower() == stored
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = f"model.layers.0.{ours}.weight"
        assert written[name].dtype == LOSSLESS[stored]
        np.testing.assert_array_equal(written[name].float32(), expected)
        assert told[name] == float("inf")


def test_llama_cpps_q6_k_is_rounded_anew_and_its_loss_told(tmp_path: Path) -> None:
    source = open_checkpoint(shared_path("goldens/v2-256/gguf/llm-Q4_0.gguf"))
    told: dict[str, tuple[str | None, float]] = {}
    convert(source, tmp_path / "out", "int8", told=lambda name, n, snr: told.update({name: (n, snr)}))
    assert source.tensors["lm_head.weight"].dtype == "q6_k"
    kept_kind, snr = told["lm_head.weight"]
    assert kept_kind == "int8" and 40 < snr < 60


def test_the_loss_is_that_of_the_weights(tmp_path: Path) -> None:
    told: dict[str, float] = {}
    source = open_checkpoint(GOLDEN / "ldpv2")
    convert(source, tmp_path / "out", "int4", told=lambda name, n, snr: told.update({name: snr}))
    assert told.keys() == {t.name for t in bound_tensors(source).values()}
    record = json.loads((tmp_path / "out" / "mvlm.json").read_text())["rounding"]
    for name, tensor in open_checkpoint(tmp_path / "out").tensors.items():
        if not isinstance(tensor, PackedTensor):
            assert told[name] == float("inf") and name not in record
            continue
        before = source.tensors[name].float32().astype(np.float64)
        error = before - tensor.float32()
        expected = 10 * np.log10((before**2).sum() / (error**2).sum())
        assert told[name] == pytest.approx(expected, abs=1e-3)  # dB; summed in float32
        assert record[name] == {"kind": tensor.dtype, "signal_to_noise_db": told[name]}


@pytest.mark.parametrize("precision", PACKED)
def test_packed_weights_are_used_where_they_lie(tmp_path: Path, precision: str) -> None:
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "out", precision)
    model = mvlm_np.load(tmp_path / "out", backend="numpy")
    layer = model.decoder.layers[0]
    assert isinstance(layer.down_proj, Quantized)
    assert model.vision is not None
    for linear in (layer.down_proj, model.decoder.lm_head, model.vision.layers[0].fc1):
        assert isinstance(linear, Quantized)
        for array in linear.packed.arrays:
            assert lies_in_a_map(array) and not array.flags.writeable


def lies_in_a_map(array: Any) -> bool:
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array is not None


def test_packed_weights_lie_where_registers_load_fastest(tmp_path: Path) -> None:
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "out", "int4")
    for tensor in open_checkpoint(tmp_path / "out").tensors.values():
        if isinstance(tensor, PackedTensor):
            assert tensor.offset % 32 == 0
            assert all(factor.raw.ctypes.data % 32 == 0 for factor in tensor.factors)


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "out", "int4")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        ours = read_safetensors(tmp_path / "out" / "model.safetensors")
        for name, tensor in ours.items():
            if isinstance(tensor, PackedTensor):
                np.testing.assert_array_equal(file.get_tensor(f"{name}.values").numpy(), tensor.raw)
            else:
                np.testing.assert_array_equal(file.get_tensor(name).float().numpy(), tensor.float32())


def test_converting_a_second_time_changes_nothing(tmp_path: Path) -> None:
    convert(open_checkpoint(GOLDEN / "ldp"), tmp_path / "a", "int4")
    convert(open_checkpoint(tmp_path / "a"), tmp_path / "b", "int4")
    for file in sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()):
        if file.name != "mvlm.json":  # the second one had nothing to round
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.parametrize("precision", ["int4", "int4-symmetric"])
@pytest.mark.parametrize("stored", ["int4", "int4-symmetric"])
def test_either_kind_of_4_bits_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: str, precision: str
) -> None:
    """Files of both kinds stay valid whichever of them a precision makes; and it can be seen which it is."""
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "a", stored)
    convert(open_checkpoint(tmp_path / "a"), tmp_path / "b", precision)
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert before == after
    as_stored, asked = (mvlm_np.load(tmp_path / "a", p, "numba") for p in (None, precision))
    for one, other in zip(as_stored.decoder.linear, asked.decoder.linear, strict=True):
        assert isinstance(one, Quantized) and isinstance(other, Quantized)
        assert one.kind == other.kind
        for ours, theirs in zip(one.packed.arrays, other.packed.arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    found = [model.trace(None, "what is on the photo", 1)["logits"] for model in (as_stored, asked)]
    assert found[0].tobytes() == found[1].tobytes()
    assert main(["inspect", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.startswith("  model.layers.")]
    matrices = [line for line in lines if "proj.weight" in line[0]]
    assert {line[1] for line in matrices} == {PACKED[stored]} and len(matrices) == 14
    assert f"  14 in {PACKED[stored]}, {MEANING[PACKED[stored]]}\n" in printed
    assert MEANING[PACKED[stored]].endswith(f"precision {stored}")


@pytest.mark.parametrize("precision", [None, "int4", "int4-symmetric"])
def test_a_file_from_before_there_were_minima_is_what_it_was(tmp_path: Path, precision: str | None) -> None:
    folder = shutil.copytree(GOLDEN / "ldpv2", tmp_path / "model")
    shutil.copyfile(DATA / "packed" / "int4.safetensors", folder / "model.safetensors")
    tensors, digest = bound_tensors(open_checkpoint(folder)), sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.float32().tobytes())
    assert digest.hexdigest().startswith("843ea3be344c0e5c")
    model = mvlm_np.load(folder, precision, "numpy")
    names = [name for name, tensor in tensors.items() if tensor.dtype == "int4"]
    kept = [linear for linear in model.decoder.linear if linear.kind == "int4"]
    assert len(names) == len(kept) == 14
    for name, linear in zip(names, kept, strict=True):
        assert isinstance(linear, Quantized)
        np.testing.assert_array_equal(dequantize(*unpack(linear.packed)), tensors[name].float32())


def test_large_matrices_are_rounded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "whole", "int4")
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "bf16", "bf16")
    for module in ("converting", "checkpoints.packed", "checkpoints.tensors"):
        monkeypatch.setattr(f"mvlm_np.{module}.CHUNK", 70)
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "parts", "int4")
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "bf16 parts", "bf16")
    for one, other in (("whole", "parts"), ("bf16", "bf16 parts")):
        files = [tmp_path / folder / "model.safetensors" for folder in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


# -- GGUF ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", GGUF)
@pytest.mark.parametrize("name", ["ldpv2", "F16 of the first generation", "text only", "pickle", "Q4_0"])
def test_a_gguf_pair_holds_the_same_model(
    sources: Callable[[str], Path], tmp_path: Path, name: str, precision: str
) -> None:
    source = open_checkpoint(sources(name))
    convert_to_gguf(source, tmp_path / "out", precision)
    stem = f"model-{GGUF[precision]}.gguf"
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {stem, "mvlm.json"} | ({"mmproj-model-f16.gguf"} if source.config.vision else set())
    assert verify(tmp_path / "out") == []
    found = mvlm_np.load(tmp_path / "out" / stem, "float32", backend="numpy")
    expected = mvlm_np.load(sources(name), "float32", backend="numpy")
    assert found.config.decoder == expected.config.decoder
    prompt = "what is on the photo"
    ids = expected.tokenizer.encode(prompt)
    assert found.tokenizer.encode(prompt) == ids
    if precision == "float16" and name != "Q4_0":
        # float16 keeps 11 bits, and steps of 2^-24 below its normal numbers.
        written = with_class_token(bound_tensors(open_checkpoint(tmp_path / "out" / stem)))
        stored = with_class_token(bound_tensors(source))
        for key, values in written.items():
            np.testing.assert_allclose(values, stored[key], rtol=2**-11, atol=2**-25, err_msg=key)


def with_class_token(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The values, with the class embedding added to position 0: only the sum counts."""
    values = {name: tensor.float32() for name, tensor in tensors.items()}
    if CLASS in values:
        first = np.eye(len(values[POSITIONS]), 1, dtype=np.float32)
        values[POSITIONS] = values[POSITIONS] + first * values.pop(CLASS)
    return values


def test_at_quality_high_a_q4_0_holds_the_weights_of_our_folder(tmp_path: Path) -> None:
    path = in_gguf("F16")(tmp_path / "source")
    source = open_checkpoint(path)
    convert(source, tmp_path / "folder", "int4-symmetric")
    convert_to_gguf(source, tmp_path / "pair", "int4-symmetric")
    ours, theirs = (
        open_checkpoint(p).tensors for p in (tmp_path / "folder", tmp_path / "pair" / "model-Q4_0.gguf")
    )
    compared = 0
    for name, tensor in ours.items():
        if tensor.dtype == "int4":
            assert theirs[name].dtype == "q4_0"
            np.testing.assert_array_equal(theirs[name].float32(), tensor.float32(), err_msg=name)
            compared += 1
    assert compared == 14


def test_our_packed_weights_become_ggufs_blocks_without_loss(tmp_path: Path) -> None:
    convert(open_checkpoint(in_gguf("F16")(tmp_path / "source")), tmp_path / "folder", "int4-symmetric")
    folder = open_checkpoint(tmp_path / "folder")
    convert_to_gguf(folder, tmp_path / "pair", "int4-symmetric")
    theirs = open_checkpoint(tmp_path / "pair" / "model-Q4_0.gguf").tensors
    for name, tensor in folder.tensors.items():
        if name.startswith("model.layers") and isinstance(tensor, PackedTensor):
            np.testing.assert_array_equal(theirs[name].float32(), tensor.float32(), err_msg=name)


@pytest.mark.parametrize("precision", ["int4", "int4-symmetric"])
def test_rows_that_blocks_of_q4_k_do_not_divide_become_q8_0_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    """From floats only what was asked; from 4 bits with minima never the kind without."""
    folder, source = tmp_path / "folder", in_gguf("F16")(tmp_path / "source")
    convert(open_checkpoint(source), folder, "int4")
    for number, given in enumerate((source, folder)):
        pair = tmp_path / str(number)
        asked = ["convert", str(given), str(pair), "--to", "gguf", "--precision", precision]
        assert main(asked) == 0
        err = capsys.readouterr().err
        tensors = read_gguf(pair / f"model-{GGUF[precision]}.gguf").tensors
        kinds = {t.dtype for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2}
        if given == source and precision == "int4-symmetric":
            assert kinds == {"q4_0"} and err == ""
        else:
            assert kinds == {"q8_0"}
            assert re.search(r"note: blocks of Q4_\w do not divide the rows of 1[45] matr.* Q8_0$", err, re.M)


def test_quality_fast_is_llama_cpps_own_rounding(tmp_path: Path) -> None:
    source = open_checkpoint(in_gguf("F16")(tmp_path / "source"))
    convert_to_gguf(source, tmp_path / "pair", "int4-symmetric", "fast")
    written = read_gguf(tmp_path / "pair" / "model-Q4_0.gguf").tensors["blk.1.ffn_up.weight"]
    values = source.tensors["model.layers.1.mlp.up_proj.weight"].float32()
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(written.stored().reshape(expected.shape), expected)


def test_a_gguf_needs_a_tokenizer_and_a_folder_does_not(tmp_path: Path) -> None:
    folder = text_only(tmp_path / "source")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: is missing, and tokenizer.json is too"):
        convert_to_gguf(open_checkpoint(folder), tmp_path / "pair", "int8")
    convert(open_checkpoint(folder), tmp_path / "out", "int8")
    assert not (tmp_path / "pair").exists()


def test_added_tokens_go_into_a_gguf(tmp_path: Path) -> None:
    folder = text_only(tmp_path / "source")
    size = mvlm_np.load(folder, backend="numpy").tokenizer.vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<pic>": size}))
    arrays = {k: t.float32() for k, t in read_safetensors(folder / "model.safetensors").items()}
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        arrays[name] = np.concatenate([arrays[name][:size], arrays[name][:1]])
    save_file(arrays, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size + 1}))
    convert_to_gguf(open_checkpoint(folder), tmp_path / "pair", "float16")
    found = mvlm_np.load(tmp_path / "pair" / "model-F16.gguf", backend="numpy").tokenizer
    assert size in found.encode("what <pic> is")


# -- What can go wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    (("int3",), "precision: found 'int3', wanted float32 or bf16 or int8 or int4"),
    (("float16",), "precision: found 'float16'"),
    (("int4", "best"), "quality: found 'best', wanted high or fast"),
])  # fmt: skip
def test_unknown_precisions_are_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "out", *arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("write", [convert, convert_to_gguf])
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_there_is_not_written_over(
    tmp_path: Path, write: Callable[..., None], make: Callable[[Path], object]
) -> None:
    make(tmp_path / "out")
    with pytest.raises(
        UserError, match="out: exists already, wanted a new folder; name another, or remove it"
    ):
        write(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "out", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", [convert, convert_to_gguf])
@pytest.mark.parametrize(
    "place, reason", [("a file/out", "Not a directory"), ("x" * 250, "File name too long")]
)
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, write: Callable[..., None], place: str, reason: str
) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match=rf"cannot be written \({reason}\)"):
        write(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / place, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_parents_of_the_folder_are_made(tmp_path: Path) -> None:
    convert(open_checkpoint(GOLDEN / "ldpv2"), tmp_path / "a" / "b", "int8")
    assert verify(tmp_path / "a" / "b") == []


def command(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`mvlm convert ...` in a process that may write no file of more than `limit` bytes."""

    def prepare() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-B", "-m", "mvlm_np", "convert", *arguments],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=prepare,
    )  # fmt: skip


@pytest.mark.parametrize("to", ["folder", "gguf"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, to: str) -> None:
    # Not a full disk, but a limit that is reached in the midst of a write in the same way.
    arguments = (str(GOLDEN / "ldpv2"), str(tmp_path / "out"), "--precision", "int8", "--to", to)
    done = command(*arguments, limit=5000)
    assert done.returncode == 2
    assert done.stderr == f"mvlm: {tmp_path / 'out'}: cannot be written (File too large)\n"
    assert not any(tmp_path.iterdir())


def test_weights_that_are_not_numbers_leave_nothing(tmp_path: Path) -> None:
    folder = text_only(tmp_path / "source")
    arrays = {k: t.float32().copy() for k, t in read_safetensors(folder / "model.safetensors").items()}
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: holds NaN or infinity"
    ):
        convert(open_checkpoint(folder), tmp_path / "out", "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SLOW = """
import sys, time
from pathlib import Path
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.converting import convert
def told(*_):
    print(flush=True)
    time.sleep(0.002)
print(flush=True)
convert(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), "int4", told=told)
print("done", flush=True)
"""


def test_killed_at_any_moment_it_leaves_nothing_that_loads(tmp_path: Path) -> None:
    steps = len(manifest(open_checkpoint(GOLDEN / "ldp").config).shapes)
    rng = random.Random(0)
    for i, step in enumerate([1, 2, steps // 2, steps, *(rng.randrange(steps) for _ in range(4))]):
        destination = tmp_path / str(i)
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(GOLDEN / "ldp"), str(destination)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        for _ in range(step):
            process.stdout.readline()
        process.kill()
        process.wait()
        if destination.exists():  # the last step may have been the last of all
            assert verify(destination) == [] and step == steps
        else:
            with pytest.raises(CheckpointError, match="does not exist"):
                open_checkpoint(destination)
            left = [path.name for path in tmp_path.iterdir() if path.name.startswith(f"{i}.")]
            assert left in ([], [f"{i}.part-{process.pid}"])
            convert(open_checkpoint(GOLDEN / "ldp"), destination, "int4")  # nothing is in the way
        assert verify(destination) == []


# -- Checksums ----------------------------------------------------------------------------------------


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    convert(open_checkpoint(GOLDEN / "ldp"), tmp_path / "out", "int8")
    return tmp_path / "out"


def test_every_file_has_a_checksum(converted: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(converted, lambda done, total: seen.append((done, total))) == []
    files = {str(path.relative_to(converted)) for path in converted.rglob("*") if path.is_file()}
    record = json.loads((converted / "mvlm.json").read_text())
    assert record["files"].keys() == files - {"mvlm.json"}
    assert "clip/model.safetensors" in record["files"]
    assert seen[-1] == (sum(os.path.getsize(converted / name) for name in record["files"]),) * 2
    assert (record["source"], record["precision"]) == ("ldp", "int8")


def test_one_flipped_bit_is_noticed(converted: Path) -> None:
    for name in json.loads((converted / "mvlm.json").read_text())["files"]:
        content = (converted / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        (converted / name).write_bytes(flipped)
        assert verify(converted) == [f"'{name}' has changed"]
        (converted / name).write_bytes(content)
    assert verify(converted) == []


def test_a_lost_file_and_a_cut_one_are_noticed(converted: Path) -> None:
    (converted / "tokenizer.model").unlink()
    os.truncate(converted / "model.safetensors", 1000)
    assert verify(converted) == ["'tokenizer.model' is missing", "'model.safetensors' has changed"]


@pytest.mark.parametrize("record, message", [
    ("[]", r"found \[\], wanted a JSON object"),
    ("{}", "files: found None, wanted a JSON object"),
    ('{"files": {"config.json": 5}}', "config.json: found 5, wanted a text"),
    ("{", "cannot be read as JSON"),
])  # fmt: skip
def test_a_record_that_is_not_sound_is_refused(converted: Path, record: str, message: str) -> None:
    (converted / "mvlm.json").write_text(record)
    with pytest.raises(UserError, match=message):
        verify(converted)


def test_a_record_cannot_make_us_read_elsewhere(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (converted / "link").symlink_to(tmp_path / "secret")
    names = ["../secret", str(tmp_path / "secret"), "link", "\x1b[2J"]
    (converted / "mvlm.json").write_text(json.dumps({"files": dict.fromkeys(names, "0" * 64)}))
    problems = verify(converted)
    assert [problem.endswith("lies outside the folder") for problem in problems] == [True, True, True, False]
    assert all(problem.isprintable() for problem in problems)


def test_without_a_record_there_is_nothing_to_verify() -> None:
    with pytest.raises(
        CheckpointError, match=r"ldp: holds no checksums \(mvlm\.json\), wanted a model that mvlm"
    ):
        verify(GOLDEN / "ldp")
