"""What we write is read back by the gguf package and by ourselves, and equals what llama.cpp writes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mvlm_np.checkpoints.gguf import read_gguf
from mvlm_np.checkpoints.gguf_blocks import encode
from mvlm_np.checkpoints.gguf_model import open_gguf
from mvlm_np.checkpoints.gguf_tokenizer import tokenizer_settings
from mvlm_np.checkpoints.gguf_writer import Entry, write_gguf, write_gguf_pair
from mvlm_np.checkpoints.packed import PackedTensor, packed
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config
from mvlm_np.errors import CheckpointError, ConfigError
from mvlm_np.kernels import pack
from mvlm_np.kernels.pack import Packed
from tests.checkpoints.gguf_models import (
    VOCAB,
    Array,
    as_weights,
    assert_stored,
    interleaved,
    package_decoder,
    package_mmproj,
    random_weights,
    small_config,
    tokenizer_model,
)
from tests.conftest import shared_path

PROJECTORS = ["ldpnetv2", "ldpnet", "mlp2x_gelu"]
NAMES = ["F16", "Q8_0", "Q4_0"]


def exported(
    folder: Path, config: Config, precision: str = "F16", **more: Any
) -> tuple[Path, dict[str, np.ndarray]]:
    weights = random_weights(config)
    path, *_ = write_gguf_pair(folder, as_weights(weights), config, tokenizer_model(), precision, **more)
    return path, weights


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """A file by the gguf package: settings, and type, sizes and bytes of each tensor."""
    reader = gguf.GGUFReader(path)
    settings = {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")}
    return settings, {
        t.name: (t.tensor_type.name, tuple(t.shape.tolist()), t.data.tobytes()) for t in reader.tensors
    }


@pytest.mark.parametrize("projector", PROJECTORS)
def test_the_f16_pair_is_what_llama_cpps_converters_write(tmp_path: Path, projector: str) -> None:
    config = small_config(projector)
    path, weights = exported(tmp_path, config)
    theirs = package_decoder(tmp_path / "theirs.gguf", config, weights)
    assert contents(path)[1] == contents(theirs)[1]
    assert contents(theirs)[0].items() <= contents(path)[0].items()
    theirs = package_mmproj(tmp_path / "theirs2.gguf", config, weights)
    assert contents(tmp_path / "mmproj-model-f16.gguf")[1] == contents(theirs)[1]
    assert contents(theirs)[0].items() <= contents(tmp_path / "mmproj-model-f16.gguf")[0].items()


@pytest.mark.parametrize("precision, file_type", [("F16", 1), ("Q8_0", 7), ("Q4_0", 2)])
def test_types_are_those_of_llama_cpps_quantiser(tmp_path: Path, precision: str, file_type: int) -> None:
    config = small_config()
    settings, tensors = contents(exported(tmp_path, config, precision)[0])
    assert settings["general.file_type"] == file_type
    assert settings.get("general.quantization_version") == (None if precision == "F16" else 2)
    for name, (kind, _, _) in tensors.items():
        expected = "F32" if "norm" in name else precision
        assert kind == ("Q8_0" if (precision, name) == ("Q4_0", "output.weight") else expected), name


def test_rows_that_blocks_do_not_divide_stay_f16(tmp_path: Path) -> None:
    config = small_config(vision=False)
    config = replace(config, decoder=replace(config.decoder, intermediate_size=100))
    tensors = contents(exported(tmp_path, config, "Q4_0")[0])[1]
    assert tensors["blk.0.ffn_down.weight"][0] == "F16"
    assert tensors["blk.0.ffn_up.weight"][0] == "Q4_0"


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_pair_reads_back_as_the_same_model(tmp_path: Path, precision: str, kv_heads: int) -> None:
    config = small_config(kv_heads=kv_heads)
    path, weights = exported(tmp_path, config, precision, legacy=False)
    model = open_gguf(path)
    assert config.vision
    shorter = replace(config.vision, num_hidden_layers=2)
    assert model.config == replace(config, vision=shorter, mm_vision_select_layer=-1)
    assert not model.read_tokenizer().legacy
    assert_stored(model.tensors, weights)


@pytest.mark.parametrize("precision", ["Q8_0", "Q4_0"])
def test_blocks_that_fit_are_copied_without_rounding_again(tmp_path: Path, precision: str) -> None:
    config = small_config()
    first, _ = exported(tmp_path / "1", config, precision)
    model = open_gguf(first)
    second, mmproj = write_gguf_pair(
        tmp_path / "2", model.tensors, model.config, tokenizer_model(), precision
    )
    assert second.read_bytes() == first.read_bytes()
    assert contents(mmproj)[1] == contents(tmp_path / "1" / "mmproj-model-f16.gguf")[1]


def as_tensor(tensor: Tensor, matrix: Packed) -> PackedTensor:
    """A matrix as if it lay packed in the file where the tensor is."""
    names = [*pack.parts(matrix.kind, matrix.N, matrix.K)]
    arrays = [
        Tensor(f"{tensor.name}.{part}", array.dtype.name, array.shape, tensor.file, 0, array)
        for part, array in zip(names, matrix.arrays, strict=True)
    ]
    return PackedTensor(
        tensor.name, matrix.kind, tensor.shape, tensor.file, 0, matrix.values, factors=tuple(arrays[1:])
    )


@pytest.mark.parametrize("blocks, kind", [("Q8_0", "int8"), ("Q4_0", "int4")])
def test_our_own_packed_weights_become_blocks_without_rounding_again(
    tmp_path: Path, blocks: str, kind: str
) -> None:
    config = small_config(vision=False)
    weights = random_weights(config)
    stored = open_gguf(package_decoder(tmp_path / "f32.gguf", config, weights, "F32")).tensors
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        tensors[name] = tensor
        if len(tensor.shape) == 2:
            tensors[name] = as_tensor(tensor, packed(tensor, kind)[0])
    path, *_ = write_gguf_pair(tmp_path / "out", tensors, config, tokenizer_model(), blocks)
    for name, tensor in open_gguf(path).tensors.items():
        assert tensor.dtype == ("float32" if len(tensor.shape) == 1 else blocks.lower())
        np.testing.assert_array_equal(tensor.float32(), tensors[name].float32())


def test_blocks_without_a_finite_scale_are_not_written(tmp_path: Path) -> None:
    config = small_config(vision=False)
    path = package_decoder(tmp_path / "m.gguf", config, random_weights(config), "Q4_0")
    offset = read_gguf(path).tensors["blk.1.ffn_up.weight"].offset
    data = bytearray(path.read_bytes())
    data[offset + 18 : offset + 20] = b"\x00\x7c"  # infinity
    path.write_bytes(data)
    model = open_gguf(path)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight: has scales that are not finite"):
        write_gguf_pair(tmp_path / "out", model.tensors, config, tokenizer_model(), "Q4_0")


def test_tied_embeddings_are_q8_0_in_a_q4_0_file_since_they_make_the_logits(tmp_path: Path) -> None:
    tensors = contents(exported(tmp_path, small_config(vision=False, tied=True), "Q4_0")[0])[1]
    assert tensors["token_embd.weight"][0] == "Q8_0"


def test_a_tower_that_ends_at_its_features_says_so_to_llama_cpp(tmp_path: Path) -> None:
    exported(tmp_path, small_config())
    settings, tensors = contents(tmp_path / "mmproj-model-f16.gguf")
    assert settings["clip.vision.block_count"] == 2
    assert settings["clip.vision.feature_layer"] == [2]
    field = gguf.GGUFReader(tmp_path / "mmproj-model-f16.gguf").fields["clip.vision.feature_layer"]
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]  # what llama.cpp's C++ demands
    assert "v.blk.1.ln1.weight" in tensors and "v.blk.2.ln1.weight" not in tensors


@pytest.mark.parametrize("select, layers", [(-1, 3), (-3, 1), (2, 2)])
def test_the_tower_is_cut_where_the_features_are_taken(tmp_path: Path, select: int, layers: int) -> None:
    path, _ = exported(tmp_path, replace(small_config(), mm_vision_select_layer=select))
    settings, _ = contents(tmp_path / "mmproj-model-f16.gguf")
    assert settings["clip.vision.block_count"] == layers
    assert settings["clip.vision.feature_layer"] == [layers]
    assert open_gguf(path).config.vision_layers == layers


def test_a_model_without_vision_is_one_file(tmp_path: Path) -> None:
    config = small_config(vision=False, tied=True)
    exported(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["model-F16.gguf"]
    assert open_gguf(tmp_path / "model-F16.gguf").config == config


def test_the_tokenizer_is_the_models_with_added_tokens(tmp_path: Path) -> None:
    config = small_config(vision=False)
    config = replace(config, decoder=replace(config.decoder, vocab_size=VOCAB + 2))
    path, _ = exported(tmp_path, config, added_tokens={"<pic>": VOCAB})
    expected = tokenizer_settings(tokenizer_model(), VOCAB + 2, {"<pic>": VOCAB})
    assert expected.items() <= contents(path)[0].items()


def test_progress_counts_every_byte_of_the_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    paths = [
        exported(tmp_path, small_config(), "Q4_0", progress=lambda *now: seen.append(now))[0],
        tmp_path / "mmproj-model-f16.gguf",
    ]
    total = sum(t.nbytes for path in paths for t in read_gguf(path).tensors.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("changes, message", [
    ({"mm_projector_type": "linear"}, "projector linear, wanted .*: ldpnetv2, ldpnet, mlp2x_gelu"),
    ({"mm_projector_type": "mlp3x_gelu"}, "projector mlp3x_gelu"),
    ({"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "cls_patch"}, "sees the class token"),
    ({"mm_vision_select_layer": 0}, "before the first layer"),
])  # fmt: skip
def test_models_that_llama_cpp_has_no_graph_for_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = replace(small_config(), **changes)
    with pytest.raises(ConfigError, match=message):
        write_gguf_pair(tmp_path, as_weights(random_weights(small_config())), config, tokenizer_model())
    assert not list(tmp_path.iterdir())


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision 'Q5_1', wanted F32 or F16 or Q4_0 or Q8_0 or Q4_K"):
        exported(tmp_path, small_config(), "Q5_1")


def test_missing_tensors_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    weights = as_weights(random_weights(small_config()))
    del weights["lm_head.weight"], weights["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"2 are missing: model\.norm\.weight, lm_head\.weight"):
        write_gguf_pair(tmp_path, weights, small_config(), tokenizer_model())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, file", [("lm_head.weight", "output"), ("model.mm_projector.peg.peg.0.bias", "mm.model")]
)
def test_a_failure_leaves_the_old_files_and_no_new_ones(tmp_path: Path, name: str, file: str) -> None:
    path, weights = exported(tmp_path, small_config())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    weights[name].flat[-1] = np.nan
    with pytest.raises(CheckpointError, match=re.escape(file) + ".*not finite"):
        write_gguf_pair(tmp_path, as_weights(weights), small_config(), tokenizer_model())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert path.name in before


def test_one_tensor_at_a_time_is_read(tmp_path: Path) -> None:
    # Each tensor is asked for its values when its turn to be written has come, not before.
    order: list[str] = []

    class Named(Array):
        def __init__(self, name: str, values: np.ndarray):
            super().__init__(values)
            self.name = name

        def float32(self) -> np.ndarray:
            order.append(self.name)
            return self.values

    weights = random_weights(small_config())
    events: list[int] = []

    def progress(done: int, total: int) -> None:
        events.append(len(order))

    write_gguf_pair(
        tmp_path,
        {n: Named(n, v) for n, v in weights.items()},
        small_config(),
        tokenizer_model(),
        progress=progress,
    )
    assert events == list(range(1, len(order) + 1))


def test_tensors_of_odd_sizes_begin_at_multiples_of_the_alignment(tmp_path: Path) -> None:
    values = {f"w{n}": np.arange(n, dtype=np.float32) for n in (1, 3, 8, 9, 17)}

    def entry(name: str) -> Entry:
        return Entry(
            name, values[name].shape, "float16", lambda: iter([encode("float16", values[name], name)])
        )

    with open(tmp_path / "a.gguf", "wb") as f:
        write_gguf(f, {"general.name": "odd"}, map(entry, values))
    for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        assert tensor.data_offset % 32 == 0
        np.testing.assert_array_equal(tensor.data, values[tensor.name])
    for name, mapped in read_gguf(tmp_path / "a.gguf").tensors.items():
        np.testing.assert_array_equal(mapped.float32(), values[name])


def test_large_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = exported(tmp_path / "1", small_config(), "Q8_0")
    monkeypatch.setattr("mvlm_np.checkpoints.gguf_writer.CHUNK", 96)
    pieces, _ = exported(tmp_path / "2", small_config(), "Q8_0")
    assert pieces.read_bytes() == whole.read_bytes()


# -- llama.cpp's own files --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, theirs", [("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0-pure")])
def test_the_goldens_files_are_reproduced_byte_for_byte(tmp_path: Path, precision: str, theirs: str) -> None:
    """All tensors of what llama.cpp made from the same checkpoint; Q4_0's output.weight is Q8_0 here."""
    gguf_folder = shared_path("goldens/v2-256/gguf")
    source = read_safetensors(shared_path("goldens/v2-256/model.safetensors"))
    config = open_gguf(gguf_folder / "llm-F16.gguf").config
    tokenizer = shared_path("goldens/v2-256/tokenizer.model").read_bytes()
    llm, mmproj = write_gguf_pair(tmp_path, source, config, tokenizer, precision)
    ours, expected = contents(llm), contents(gguf_folder / f"llm-{theirs}.gguf")
    if precision == "Q4_0":
        assert ours[1].pop("output.weight") == contents(gguf_folder / "llm-Q8_0.gguf")[1]["output.weight"]
        del expected[1]["output.weight"]
    assert ours[1] == expected[1]
    differing = {key for key, value in expected[0].items() if ours[0].get(key) != value}
    assert differing <= {"general.name", "general.size_label", "general.quantization_version"}
    assert contents(mmproj)[1] == contents(gguf_folder / "mmproj-model-f16.gguf")[1]


def test_interleaving_in_the_tests_is_the_converters_formula() -> None:
    rows = np.arange(2 * 8 * 3).reshape(16, 3)
    np.testing.assert_array_equal(
        interleaved(rows, 2), rows.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    )
