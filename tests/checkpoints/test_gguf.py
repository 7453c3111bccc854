"""The GGUF reader: what the format says, and what hostile files do to it."""

import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.checkpoints.gguf import MAX_ELEMENTS, MAX_SETTINGS, MAX_TENSORS, MAX_TEXT, read_gguf
from mvlm_np.errors import CheckpointError, UserError
from tests.checkpoints import hostile_gguf as hostile
from tests.checkpoints.confine import MEMORY, read_confined
from tests.checkpoints.gguf_models import package_decoder, package_mmproj, random_weights, small_config
from tests.conftest import shared_path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each hostile file in a folder of its own, where no other file can be taken for its mmproj."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for i, (name, (data, _)) in enumerate(hostile.CASES.items()):
        (folder / str(i)).mkdir()
        paths[name] = written(folder / str(i) / "model.gguf", data)
    return paths


def test_there_are_many_hostile_files_and_each_breaks_another_rule() -> None:
    assert len(hostile.CASES) >= 20
    assert len({pattern for _, pattern in hostile.CASES.values()}) > len(hostile.CASES) * 0.8


@pytest.mark.parametrize("reader, cases", [
    ("mvlm_np.checkpoints.gguf:read_gguf", hostile.DAMAGED),
    ("mvlm_np.checkpoints.gguf_model:open_gguf", hostile.CASES),
])  # fmt: skip
def test_hostile_files_are_refused_by_name_and_reason_within_limits(
    reader: str, cases: dict[str, tuple[bytes, str]], corpus: dict[str, Path]
) -> None:
    outcomes = read_confined(reader, [corpus[name] for name in cases])
    for (name, (_, pattern)), outcome in zip(cases.items(), outcomes, strict=True):
        assert outcome.signal == 0, f"{name}: killed"
        assert outcome.user_error, f"{name}: {outcome}"
        assert str(corpus[name]) in outcome.message
        assert re.search(pattern, outcome.message), f"{name}: {outcome.message}"
        assert "\n" not in outcome.message and len(outcome.message) < 500 and outcome.message.isprintable()
        assert outcome.grown < MEMORY


def test_the_largest_file_within_the_limits_is_read_within_1_s_and_200_mb(tmp_path: Path) -> None:
    words = MAX_ELEMENTS // 2
    each = (MAX_TEXT - 32 * MAX_SETTINGS - 32 * MAX_TENSORS) // words
    word = hostile.string("😀" + "a" * (each - 4))  # one emoji makes Python keep 4 bytes a letter
    data = hostile.gguf(
        [hostile.array("words", hostile.STRING, [word * words], words)]
        + [hostile.array("numbers", hostile.UINT64, [bytes(8 * words)], words)]
        + [hostile.u32(f"k{i}", i) for i in range(MAX_SETTINGS - 2)],
        [hostile.tensor(f"t{i}", (1,), offset=32 * i) for i in range(MAX_TENSORS)],
        bytes(32 * MAX_TENSORS),
    )
    (outcome,) = read_confined("mvlm_np.checkpoints.gguf:read_gguf", [written(tmp_path / "a.gguf", data)])
    assert (outcome.signal, outcome.error) == (0, None)
    assert outcome.grown < MEMORY


@given(st.data())
def test_any_damage_is_a_checkpoint_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = bytearray(hostile.llama([hostile.tensor("output_norm.weight")], hostile.FLOATS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 9))
        patch = data.draw(
            st.sampled_from([b"\xff" * 8, bytes(8), b"\x00", b"\x09", b"\xff"]) | st.binary(max_size=8)
        )
        good[at : at + len(patch)] = patch
    path = written(
        tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(good[: data.draw(st.integers(0, len(good)))])
    )
    try:
        for tensor in read_gguf(path).tensors.values():
            tensor.float32()
    except UserError as error:
        assert isinstance(error, CheckpointError)


# -- What the gguf package writes ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_settings_and_tensors_are_those_that_the_package_reads(tmp_path: Path, kind: str) -> None:
    config = small_config()
    weights = random_weights(config)
    for path in (
        package_decoder(tmp_path / "a.gguf", config, weights, kind),
        package_mmproj(tmp_path / "b.gguf", config, weights),
    ):
        same_as_package(path)


def test_every_golden_file_reads_as_the_package_reads_it() -> None:
    paths = [*shared_path("goldens/v2-256/gguf").glob("*.gguf"), shared_path("weights/stories260K_f16.gguf")]
    assert len(paths) == 8
    for path in paths:
        same_as_package(path)


def same_as_package(path: Path) -> None:
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    settings = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == settings
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(tensor.shape.tolist()[::-1])
        assert mine.raw.tobytes() == tensor.data.tobytes()
        values = mine.float32()
        assert values.dtype == np.float32
        np.testing.assert_array_equal(
            values.ravel(), gguf.quants.dequantize(tensor.data, tensor.tensor_type).ravel()
        )


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_read_alike(tmp_path: Path, version: int) -> None:
    data = hostile.gguf(
        [hostile.u32("a", 1)], [hostile.tensor("w", (16, 2))], hostile.FLOATS, version=version
    )
    file = read_gguf(written(tmp_path / "a.gguf", data))
    assert file.metadata == {"a": 1}
    assert file.tensors["w"].shape == (2, 16)  # outermost first


def test_all_kinds_of_settings_become_plain_python_values(tmp_path: Path) -> None:
    kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    settings = [hostile.setting(code, kind, struct.pack(f"<{code}", 1)) for kind, code in kinds.items()]
    settings += [
        hostile.array(code * 2, kind, [struct.pack(f"<2{code}", 0, 1)], 2) for kind, code in kinds.items()
    ]
    settings += [hostile.text("s", "é"), hostile.array("ss", hostile.STRING, []), hostile.text("", "")[:0]]
    metadata = read_gguf(written(tmp_path / "a.gguf", hostile.gguf(filter(None, settings)))).metadata
    for code in kinds.values():
        assert (metadata[code], metadata[code * 2]) == (1, [0, 1])
        assert (
            type(metadata[code])
            is type(metadata[code * 2][0])
            is {"f": float, "d": float, "?": bool}.get(code, int)
        )
    assert (metadata["s"], metadata["ss"]) == ("é", [])


def test_alignment_moves_the_data(tmp_path: Path) -> None:
    values = np.arange(32, dtype=np.float32)
    data = hostile.gguf(
        [hostile.u32("general.alignment", 256)],
        [hostile.tensor("w", offset=256)],
        bytes(256) + values.tobytes(),
        alignment=256,
    )
    np.testing.assert_array_equal(
        read_gguf(written(tmp_path / "a.gguf", data)).tensors["w"].float32(), values
    )


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_gguf(path)
