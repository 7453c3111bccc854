"""The reader of torch files: equal to torch.load on what torch writes, and closed to all else."""

import os
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvlm_np.checkpoints.pickles import MAX_PICKLE, read_pickle
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.checkpoints.torch_zip import IN_EXTRA, MAX_RECORDS
from mvlm_np.checkpoints.unpickle import ACTIONS, STOP
from mvlm_np.errors import CheckpointError, UserError
from tests.checkpoints.confine import MEMORY, read_confined
from tests.checkpoints.hostile_pickles import (
    CANARY,
    CASES,
    FLOATS,
    GOOD,
    ORDERED,
    PROTO,
    REBUILD,
    VALUES,
    Entry,
    archive,
    checkpoint,
    many,
    number,
    state,
    storage,
    tensor,
    text,
    zip64_end,
)
from tests.conftest import shared_path

READER = "mvlm_np.checkpoints.pickles:read_pickle"
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


def saved(path: Path, state: object, **options) -> Path:
    torch.save(state, path, **options)
    return path


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].name == name
        assert f"torch.{ours[name].dtype}" == str(value.dtype)
        assert ours[name].shape == tuple(value.shape)
        bits = value.detach().view(torch.uint16) if value.dtype == torch.bfloat16 else value.detach()
        assert ours[name].raw.tobytes() == bits.numpy().tobytes()


def assert_reads_as_torch_does(path: Path) -> None:
    assert_same_bits(read_pickle(path), torch.load(path, weights_only=True))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- What torch writes --------------------------------------------------------------------------------


def test_every_type_equals_torch(tmp_path):
    values = torch.randn(7, 5) * 100
    path = saved(tmp_path / "types.bin", {str(dtype): values.to(dtype) for dtype in TYPES})
    assert_reads_as_torch_does(path)


def test_float32_of_every_type_equals_torch(tmp_path):
    values = torch.randn(7, 5) * 100
    path = saved(tmp_path / "types.bin", {str(dtype): values.to(dtype) for dtype in TYPES})
    for name, value in torch.load(path, weights_only=True).items():
        assert np.array_equal(read_pickle(path)[name].float32(), value.to(torch.float32).numpy())


def test_views_of_one_storage_equal_torch(tmp_path):
    whole = torch.arange(120, dtype=torch.bfloat16).reshape(4, 5, 6)
    views = {
        "whole": whole,
        "transposed": whole.transpose(0, 2),
        "offset": whole[2, 3:],
        "strided": whole[::2, :, 1::3],
        "one of each": whole[:1, :1, :1],
        "diagonal": whole[0, :, :5].diagonal(),
        "expanded": whole[:1].expand(4, 5, 6),
        "overlapping windows": whole.reshape(-1)[:10].unfold(0, 3, 1),
    }
    path = saved(tmp_path / "views.bin", views)
    assert_reads_as_torch_does(path)
    ours = read_pickle(path)
    assert ours["offset"].offset - ours["whole"].offset == (2 * 30 + 3 * 6) * 2
    for name, view in views.items():
        assert np.array_equal(ours[name].float32(), view.float().numpy()), name


def test_empty_and_scalar_tensors_equal_torch(tmp_path):
    state = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0),
        "empty of a size": torch.zeros(3, 0, 1 << 20),
        "empty part": torch.zeros(6)[6:],
    }
    assert_reads_as_torch_does(saved(tmp_path / "small.bin", state))


def test_a_module_s_state_dict_with_metadata_equals_torch(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = module.state_dict()
    assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
    assert_reads_as_torch_does(saved(tmp_path / "module.bin", state))


def test_parameters_equal_torch(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, 2))
    frozen = torch.nn.Parameter(weight.detach()[1:], requires_grad=False)
    assert_reads_as_torch_does(saved(tmp_path / "parameters.bin", {"weight": weight, "frozen": frozen}))


def test_names_beyond_ascii_and_many_tensors_equal_torch(tmp_path):
    state = {f"слой.{i}.重み": torch.full((2,), i) for i in range(1200)}  # the pickle's dicts come in 1,000s
    assert_reads_as_torch_does(saved(tmp_path / "模型.bin", state))


def test_files_without_checksums_equal_torch(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "unchecked.bin", {"w": torch.randn(10)})
    finally:
        torch.serialization.set_crc32_options(before)
    assert_reads_as_torch_does(path)


def test_values_are_mapped_and_cannot_be_written(tmp_path):
    weight = torch.randn(64, 64)
    ours = read_pickle(saved(tmp_path / "w.bin", {"w": weight}))["w"]
    with open(tmp_path / "w.bin", "rb") as file:
        file.seek(ours.offset)
        assert file.read(ours.nbytes) == weight.numpy().tobytes()
    assert not ours.raw.flags.writeable and not ours.raw.flags.owndata


def test_values_that_are_not_aligned_are_read(tmp_path):
    for padding in range(8):
        data = archive(Entry(b"m/data.pkl", GOOD), Entry(b"m/x" + b"x" * padding), Entry(b"m/data/0", VALUES))
        ours = read_pickle(written(tmp_path / "odd.bin", data))["w0"]
        assert ours.float32().tolist() == [[1, 2], [3, 4]]


def test_an_archive_of_more_than_4_gb_is_read(tmp_path):
    """As torch writes it: sizes and offsets that do not fit stand in zip64 extras. The bulk is a hole."""
    bulk = 5 << 30
    code = state(tensor(storage(count=bulk // 4)), tensor(storage("1")))
    sizes = b"\1\0\x10\0" + bulk.to_bytes(8, "little") * 2
    before = [Entry(b"m/data.pkl", code), Entry(b"m/data/0", packed=IN_EXTRA, size=IN_EXTRA, extra=sizes)]
    hole = archive(*before).index(b"PK\1\2")  # where the values of storage 0 begin
    at = hole + bulk
    after = []
    for name, data in [(b"m/data/1", VALUES), (b"m/version", b"3\n")]:
        offset = b"\1\0\x08\0" + at.to_bytes(8, "little")
        after.append(Entry(name, data, header=IN_EXTRA, extra=offset))
        at += 30 + len(name) + len(data)
    data = archive(*before, *after)
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.write(data[:hole])
        file.seek(hole + bulk)
        file.write(data[hole:end] + zip64_end(4, end - directory, directory + bulk))
        file.write(data[end : end + 16] + b"\xff" * 4 + b"\0\0")
    ours = read_pickle(path)
    assert ours["w1"].raw.tolist() == [[1, 2], [3, 4]]
    assert ours["w1"].offset > bulk
    theirs = torch.load(path, weights_only=True, mmap=True)
    assert theirs["w1"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "name",
    [
        "v2-gqa/pytorch_model.bin",
        "v2-gqa/clip/pytorch_model.bin",
        "v2-256/clip/pytorch_model.bin",
        "v1-ldp/clip/pytorch_model.bin",
        "mlp-cls/clip/pytorch_model.bin",
    ],
)
def test_published_layouts_equal_torch(name):
    assert_reads_as_torch_does(shared_path(f"goldens/{name}"))


def test_other_types_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"'torch\.ComplexFloatStorage'"):
        read_pickle(saved(tmp_path / "complex.bin", {"w": torch.zeros(3, dtype=torch.complex64)}))
    with pytest.raises(CheckpointError, match=r"_rebuild_tensor_v3"):
        read_pickle(saved(tmp_path / "float8.bin", {"w": torch.zeros(3, dtype=torch.float8_e4m3fn)}))


def test_torch_s_old_format_is_named_with_the_way_out(tmp_path):
    path = saved(tmp_path / "old.bin", {"w": torch.zeros(3)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch before 1\.6.*torch\.save\(torch\.load\(OLD\), NEW\)"):
        read_pickle(path)


def test_a_whole_module_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear'"):
        read_pickle(saved(tmp_path / "module.bin", torch.nn.Linear(2, 2)))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.bin", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_pickle(path)


# -- What others write --------------------------------------------------------------------------------


def test_the_corpus_s_own_writer_is_honest_by_default(tmp_path):
    path = written(tmp_path / "good.bin", checkpoint())
    assert_reads_as_torch_does(path)
    assert read_pickle(path)["w0"].raw.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_refused_with_the_rule_they_break(tmp_path, name):
    data, rule = CASES[name]
    path = written(tmp_path / "hostile.bin", data)
    with pytest.raises(CheckpointError) as refusal:
        read_pickle(path)
    message = str(refusal.value)
    assert re.search(rule, message), message
    assert message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) * 3 + 400
    assert CANARY not in os.environ


def costly_files() -> dict[str, bytes]:
    """Files that do all that the limits allow, in each way there is; most break a rule only at their end."""
    loop = (MAX_PICKLE - 512) // 8
    identity = many(text("storage"), FLOATS, text("0"), text("cpu"), number(4)) + b"q\1"
    arguments = (
        many(storage(), number(0), many(*[number(1)] * 8), many(*[number(1)] * 8), b"\x89", b"}") + b"q\1"
    )
    same = b"".join(text(f"{i:x}") + b"h\1" for i in range(loop * 2 // 3))
    programs = {
        "tensors": b"}(" + text("w") + tensor() + b"q\1" + same + b"u",
        "storages": identity + b"h\1Q" * (loop * 8 // 3),
        "rebuilds": REBUILD + b"q\0" + arguments + b"h\0h\1R" * (loop * 8 // 5),
        "dicts": ORDERED + b"q\0" + b"h\0)R" * (loop * 2),
        "lists": b"]" + b"]a" * (loop * 4),
        "tuples": b")" + b"\x85" * (loop * 8),
        "strings": text("x" * loop * 8),
    }
    files = {name: checkpoint(PROTO + code + b".") for name, code in programs.items()}
    files["records"] = archive(*(Entry(b"m/" + b"%0510d" % i) for i in range(MAX_RECORDS)))
    return files


def test_no_file_costs_much_or_runs_anything(tmp_path):
    """1 s of CPU time and 200 MB at the very most, nothing imported, opened, compiled or started."""
    files = {name: data for name, (data, _) in CASES.items()} | costly_files()
    paths = [written(tmp_path / f"{i}.bin", data) for i, data in enumerate(files.values())]
    for name, outcome in zip(files, read_confined(READER, paths), strict=True):
        assert not outcome.signal, f"{name}: killed by signal {outcome.signal}"
        assert outcome.error is None or outcome.user_error, f"{name}: {outcome.error}: {outcome.message}"
        assert outcome.grown < MEMORY, f"{name}: {outcome.grown >> 20} MB"
        assert not outcome.events, f"{name}: {outcome.events}"
        assert name in CASES or not re.search("at most", outcome.message), f"{name} is over the limits"


def test_confinement_sees_what_a_trusting_reader_runs(tmp_path):
    """The harness itself: torch's own unpickler, told to trust the file, does execute it."""
    trusting = "tests.checkpoints.test_pickles:_trusting"
    paths = [
        written(tmp_path / f"{i}.bin", CASES[name][0])
        for i, name in enumerate(["pickle: eval", "other: nothing"])
    ]
    evaluated, spins = read_confined(trusting, paths)
    assert "exec" in evaluated.events
    assert spins.signal


def _trusting(path: Path) -> None:
    while not path.stat().st_size:
        pass
    torch.load(path, weights_only=False)


UNLISTED = [opcode for opcode in pickletools.opcodes if ord(opcode.code) not in (STOP, *ACTIONS)]


@pytest.mark.parametrize("opcode", UNLISTED, ids=lambda opcode: opcode.name)
def test_an_instruction_that_is_not_listed_ends_the_reading(tmp_path, opcode):
    path = written(
        tmp_path / "opcode.bin", checkpoint(PROTO + b"N" + opcode.code.encode("latin-1") + b"\n\n.")
    )
    with pytest.raises(CheckpointError, match=rf"byte 3: {opcode.name} is no instruction that torch\.save"):
        read_pickle(path)


def test_every_truncation_of_the_pickle_is_refused(tmp_path):
    path = tmp_path / "short.bin"
    for end in range(len(GOOD)):
        with pytest.raises(CheckpointError, match=r"data\.pkl, byte"):
            read_pickle(written(path, checkpoint(GOOD[:end])))


def test_every_truncation_of_the_file_is_refused(tmp_path):
    whole = saved(tmp_path / "whole.bin", {"w": torch.zeros(3)}).read_bytes()
    for end in range(4, len(whole)):
        with pytest.raises(CheckpointError, match="has no zip directory at its end: it is truncated"):
            read_pickle(written(tmp_path / "short.bin", whole[:end]))


def test_a_wrong_byte_is_refused_or_harmless(tmp_path):
    whole = checkpoint()
    path = tmp_path / "wrong.bin"
    for at in range(len(whole)):
        for value in (0, 1, 0x28, 0x52, 0x7F, 0xFF, whole[at] ^ 1):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                tensors = read_pickle(path)
            except UserError:
                continue
            assert all(value.float32().size <= 4 for value in tensors.values())


def test_attributes_of_parameters_and_tensors_are_dropped(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tensor, buffer = torch.ones(2, dtype=torch.bfloat16), torch.nn.Buffer(torch.full((3,), 7.0))
    kept: dict[str, Any] = {"a": [1, 2.5, None], "dtype": torch.float16, "size": torch.Size([2, 3])}
    parameter.tag, parameter.partition, tensor.note = "x", (1, True), kept
    torch.save({"p": parameter, "t": tensor, "b": buffer}, tmp_path / "m.bin")
    found = read_pickle(tmp_path / "m.bin")
    assert {name: read.dtype for name, read in found.items()} == {
        "p": "float32",
        "t": "bfloat16",
        "b": "float32",
    }
    for name, value in (("p", parameter), ("t", tensor), ("b", buffer)):
        np.testing.assert_array_equal(found[name].float32(), value.detach().float().numpy())


@pytest.mark.parametrize("what", [{1, 2}, Path("x"), print, b"x"], ids=["set", "path", "function", "bytes"])
def test_attributes_that_are_not_plain_values_are_refused(tmp_path: Path, what: object) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.tag = what
    torch.save({"p": parameter}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"data\.pkl, byte \d+: GLOBAL asks for"):
        read_pickle(tmp_path / "m.bin")
