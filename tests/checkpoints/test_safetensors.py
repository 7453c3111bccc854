"""The reader of safetensors files: equal to the safetensors package on what it writes, closed to all else."""

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from mvlm_np.checkpoints.json_files import MAX_JSON
from mvlm_np.checkpoints.safetensors import DTYPES, read_safetensors, read_with_metadata
from mvlm_np.errors import CheckpointError, UserError
from tests.checkpoints.confine import MEMORY, read_confined
from tests.checkpoints.hostile_safetensors import CASES, DATA, GOOD, PLACES, entry, file

READER = "mvlm_np.checkpoints.safetensors:read_safetensors"
TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- What the package writes --------------------------------------------------------------------------


def test_every_type_equals_the_package(tmp_path: Path) -> None:
    values = torch.randn(7, 5) * 100
    path = tmp_path / "types.safetensors"
    save_file({str(dtype): values.to(dtype) for dtype in TYPES}, path)
    theirs, ours = load_file(path), read_safetensors(path)
    assert ours.keys() == theirs.keys() and len(ours) == len(DTYPES)
    for name, value in theirs.items():
        assert ours[name].name == name == f"torch.{ours[name].dtype}"
        assert ours[name].shape == (7, 5)
        bits = value.view(torch.uint16) if value.dtype == torch.bfloat16 else value
        assert ours[name].raw.tobytes() == bits.numpy().tobytes()
        assert np.array_equal(ours[name].float32(), value.to(torch.float32).numpy())


def test_shapes_and_metadata_equal_the_package(tmp_path: Path) -> None:
    path = tmp_path / "shapes.safetensors"
    shapes = [(), (1,), (0,), (3, 0, 2), (2, 3, 4, 5)]
    save_file({str(shape): torch.randn(shape).half() for shape in shapes}, path, metadata={"格式": "pt"})
    ours, metadata = read_with_metadata(path)
    assert metadata == {"格式": "pt"}
    for shape in shapes:
        assert ours[str(shape)].shape == ours[str(shape)].raw.shape == shape
        assert np.array_equal(ours[str(shape)].float32(), load_file(path)[str(shape)].float().numpy())


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    assert read_safetensors(tmp_path / "none.safetensors") == {}


def test_values_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.randn(64, 64)}, path)
    ours = read_safetensors(path)["w"]
    assert path.read_bytes()[ours.offset :][: ours.nbytes] == ours.raw.tobytes()
    assert not ours.raw.flags.writeable and not ours.raw.flags.owndata
    assert np.shares_memory(ours.raw, ours.float32())


def test_values_that_are_not_aligned_are_copied_to_where_they_are(tmp_path: Path) -> None:
    """BLAS and compiled code want aligned arrays; other writers than the package do not always align."""
    for padding in range(8):
        header = {"w": entry()} | {"__metadata__": {"": "x" * padding}}
        ours = read_safetensors(written(tmp_path / "odd.safetensors", file(header)))["w"]
        assert ours.float32().flags.aligned
        assert ours.float32().tobytes() == DATA


def test_the_number_of_tensors_that_a_large_model_has_fits_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    names = [
        f"model.vision_tower.vision_tower.vision_model.encoder.layers.{i}.mlp.fc1.bias" for i in range(5000)
    ]
    save_file({name: torch.zeros(1) for name in names}, path)
    assert len(read_safetensors(path)) == 5000


# -- What others write --------------------------------------------------------------------------------


def test_the_corpus_s_own_writer_is_honest_by_default(tmp_path: Path) -> None:
    path = written(tmp_path / "good.safetensors", GOOD)
    assert load_file(path)["w"].numpy().tobytes() == read_safetensors(path)["w"].raw.tobytes() == DATA


def assert_refused(path: Path, rule: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read_safetensors(path)
    message = str(refusal.value)
    assert re.search(rule, message), message
    assert message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) * 3 + 400


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_refused_with_the_rule_they_break(tmp_path: Path, name: str) -> None:
    data, rule = CASES[name]
    assert_refused(written(tmp_path / "hostile.safetensors", data), rule)


@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_a_plain_file_is_refused(tmp_path: Path, name: str) -> None:
    put, rule = PLACES[name]
    put(path := tmp_path / "hostile.safetensors")
    assert_refused(path, rule)


# The package takes these: JSON that readers may understand differently.
STRICTER = {
    "header: header after a blank",
    "header: name twice",
    "header: name twice by escape",
    "entry: key too many",
    "entry: entry a list",
}


def test_the_package_refuses_nearly_all_of_them_too(tmp_path: Path) -> None:
    accepted = set()
    for name, (data, _) in CASES.items():
        path = written(tmp_path / "hostile.safetensors", data)
        try:
            with safetensors.safe_open(path, "np") as opened:
                opened.keys()
        except safetensors.SafetensorError:
            continue
        accepted.add(name)
    assert accepted == STRICTER | {name for name in CASES if name.startswith("packed:")}


def test_no_file_costs_much_or_runs_anything(tmp_path: Path) -> None:
    """1 s of CPU time and 200 MB at the very most, nothing imported, opened, compiled or started."""
    files = {name: data for name, (data, _) in CASES.items()} | costly_files()
    paths = {
        name: written(tmp_path / f"{i}.safetensors", data) for i, (name, data) in enumerate(files.items())
    }
    for name, (put, _) in PLACES.items():
        put(path := tmp_path / f"{len(paths)}.safetensors")
        paths[name] = path
    for name, outcome in zip(paths, read_confined(READER, list(paths.values())), strict=True):
        assert not outcome.signal, f"{name}: killed by signal {outcome.signal}"
        assert outcome.error is None or outcome.user_error, f"{name}: {outcome.error}: {outcome.message}"
        assert outcome.grown < MEMORY, f"{name}: {outcome.grown >> 20} MB"
        assert not outcome.events, f"{name}: {outcome.events}"


def costly_files() -> dict[str, bytes]:
    """Files that do all that the limits allow, in each way there is."""

    def full(start: str, part: str, end: str) -> bytes:
        parts: list[str] = []
        size = 0
        while size < MAX_JSON - 100:
            parts.append(part.replace("#", f"{len(parts):x}"))
            size += len(parts[-1]) + 1
        return file((start + ",".join(parts) + end).encode(), b"")

    return {
        "tensors": full("{", '"#":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', "}"),
        "dimensions": full("{", '"#":{"dtype":"U8","shape":[0,1,1,1,1,1,1,1],"data_offsets":[0,0]}', "}"),
        "lists": full('{"w":[', "[]", "]}"),
        "objects": full('{"w":{', '"#":{}', "}}"),
        "numbers": full('{"w":[', "9" * 4000, "]}"),
        "metadata": full('{"__metadata__":{', '"#":""', "}}"),
    }


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for end in range(len(GOOD)):
        with pytest.raises(CheckpointError):
            read_safetensors(written(tmp_path / "short.safetensors", GOOD[:end]))


def test_a_wrong_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    for at in range(len(GOOD) - len(DATA)):
        for value in (0, 0x20, 0x22, 0x30, 0x39, 0x5D, 0x7D, 0xFF, GOOD[at] ^ 1):
            path.write_bytes(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])
            try:
                tensors = read_safetensors(path)
            except UserError:
                continue
            for tensor in tensors.values():
                assert tensor.float32().nbytes <= 4 * len(DATA)
