"""The readers of weights and tokenizers, for `tests.fuzz`."""

import json
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from mvlm_np.checkpoints.tensors import Tensor
from tests.fuzz_target import Target


def _pickle(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.pickles import read_pickle

    return read_pickle(path).values()


def _safetensors(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.safetensors import read_safetensors

    return read_safetensors(path).values()


def _gguf(path: Path) -> Iterable[Tensor]:
    from mvlm_np.checkpoints.gguf import read_gguf

    return read_gguf(path).tensors.values()


def _tokenizer_json(path: Path) -> list[int]:
    """Ids of a text by this tokenizer; decoding must give the same text at once and piece by piece."""
    from mvlm_np.checkpoints.checkpoint import StoredTokenizer
    from mvlm_np.checkpoints.tokenizer_json import read_tokenizer_json
    from mvlm_np.inputs.tokenizer import make

    tokenizer = make(StoredTokenizer(read_tokenizer_json(path), where=path))
    ids = tokenizer.encode("ab a  b\n<x> \u00e9abcd </s>e\u2581 <x>\U0001f600 cd" * 3)
    stream = tokenizer.stream()
    assert "".join([stream.push(i) for i in ids]) + stream.finish() == tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size), skip_special_tokens=False)
    return ids


def _tokenizer_jsons() -> list[bytes]:
    from tests.tokenizer_jsons import VARIANTS, small, variant

    return [json.dumps(variant(small(), name, more)).encode() for more in range(8) for name in VARIANTS]


def _torch_file() -> bytes:
    import torch

    out = BytesIO()
    values = torch.arange(6).reshape(2, 3)
    state = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    parameter, tagged = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    tagged.tag, tagged.sizes = ["a"], torch.Size([2])
    torch.save(state | {"view": values.T, "parameter": parameter, "tagged": tagged}, out)
    return out.getvalue()


def _torch_files() -> list[bytes]:
    from tests.checkpoints.hostile_pickles import CASES, checkpoint

    return [_torch_file(), checkpoint(), *(data for data, _ in CASES.values())]


def _torch_programs() -> list[bytes]:
    import zipfile

    from tests.checkpoints.hostile_pickles import GOOD

    archive = zipfile.ZipFile(BytesIO(_torch_file()))
    return [GOOD, *(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))]


def _with_storages(program: bytes) -> bytes:
    from tests.checkpoints.hostile_pickles import Entry, checkpoint

    return checkpoint(program, *(Entry(b"m/data/%d" % key, bytes(24)) for key in range(1, 4)))


def _safetensors_files() -> list[bytes]:
    import numpy as np
    from safetensors.numpy import save

    from tests.checkpoints.hostile_safetensors import CASES, packed

    values = np.arange(6).reshape(2, 3)
    kinds = ("float32", "float16", "int8", "int64", "bool")
    good = [
        save({kind: values.astype(kind) for kind in kinds}, {"format": "np"}),
        packed("int8 16 32"),
        save({}),
    ]
    return good + [data for data, _ in CASES.values()]


def _safetensors_headers() -> list[bytes]:
    return [file[8 : 8 + int.from_bytes(file[:8], "little")] for file in _safetensors_files()]


def _with_data(header: bytes) -> bytes:
    """A file of the header's length, with as many bytes of data as the largest number in the header."""
    size = max(map(int, re.findall(rb"\d{1,4}", header)), default=0)
    return len(header).to_bytes(8, "little") + header + bytes(size)


def _gguf_files() -> list[bytes]:
    from tests.checkpoints.hostile_gguf import CASES, GOOD

    return [GOOD, *(data for data, _ in CASES.values())]


_JSON = (
    *(b'"dtype":"F32"', b'"BF16"', b'"shape":[', b'"data_offsets":[', b'"__metadata__":{', b"1e999", b"NaN"),
    *(b'"mvlm_np.packed":"1"', b"int4 16 32"),
)
TARGETS = {
    "pickle": Target(_pickle, _torch_files, words=(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 4)),
    "pickle-program": Target(
        _pickle,
        _torch_programs,
        _with_storages,
        (
            b"ctorch\nFloatStorage\n",
            b"ccollections\nOrderedDict\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch._tensor\n_rebuild_from_type_v2\n",
            b"\x8a\x08",
        ),
    ),
    "safetensors": Target(_safetensors, _safetensors_files, words=_JSON),
    "safetensors-header": Target(_safetensors, _safetensors_headers, _with_data, _JSON),
    "tokenizer.json": Target(
        _tokenizer_json,
        _tokenizer_jsons,
        words=(b'"id":5,"content":"a"', b'"normalized":true', b'{"type":"Prepend","prepend":"a"}', b"null"),
    ),
    "gguf": Target(_gguf, _gguf_files, words=(b"GGUF", b"general.alignment", b"\xff" * 8)),
}
