"""torch's `pytorch_model.bin`, read without torch and without running anything.

Such a file is a zip archive: its record `data.pkl` is a pickle of {name: tensor}, in which every
tensor names a record `data/<key>` that holds its values. The archive is `torch_zip`'s matter, the
pickle `unpickle`'s; here stands what torch's names mean, and whether a tensor fits its record.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints.sniff import HEAD, show, what_is
from mvlm_np.checkpoints.tensors import PLAIN, MappedFile, Tensor
from mvlm_np.checkpoints.torch_zip import Record, read_records
from mvlm_np.checkpoints.unpickle import Global, kind, unpickle
from mvlm_np.errors import CheckpointError

MAX_PICKLE = 1 << 18  # bytes of data.pkl; the largest of the family, V2-3B, needs 148,000
MAX_DIMS = 8
MAX_SIZE = 1 << 40  # product of the other dimensions of an empty tensor

# torch's storage classes, and the type of their values as `tensors.PLAIN` names it.
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch state dict, by name, mapped from where they lie in the file.

    Takes what torch.save writes since 1.6 for a dict or OrderedDict of tensors and parameters of the
    types in `STORAGES`. (A module's `_metadata` is passed over.) Tensors may share a storage and lie
    in it with any offset and strides, but none may have more values than its storage.

    Raises CheckpointError, which names the file and the record, tensor or byte, for anything else.
    """
    file = MappedFile(path)
    head = file.bytes(0, min(HEAD, file.size)).tobytes()
    if not head.startswith(b"PK\x03\x04"):
        found, fix = what_is(head)
        raise CheckpointError(path, found, "a file that torch.save wrote (torch 1.6 or newer)", fix)
    records = read_records(file)
    if "data.pkl" not in records:
        raise CheckpointError(path, "is a zip archive without data.pkl", "a file that torch.save wrote")
    # torch before 2.1 does not say; it runs on little-endian machines, but for a very few.
    order = records.get("byteorder", Record(0, 0))
    if order.size and file.bytes(order.offset, min(order.size, 8)).tobytes() != b"little":
        raise CheckpointError(path, "says that its byteorder is not little", "little-endian values")
    pickle = records["data.pkl"]
    if pickle.size > MAX_PICKLE:
        raise CheckpointError(path, f"has a data.pkl of {pickle.size} bytes", f"at most {MAX_PICKLE}")
    state = unpickle(
        file.bytes(pickle.offset, pickle.size).tobytes(),
        f"{path}: data.pkl",
        names=dict.fromkeys(STORAGES) | CALLS,
        persistent=_storages(file, records),
    )
    return {name: _tensor(file, name, view) for name, view in _views(file, state).items()}


@dataclass(frozen=True, slots=True)
class _Storage:
    """A record that holds values of one type; its size has been compared with their number."""

    dtype: str
    offset: int  # in the file, in bytes
    count: int


@dataclass(frozen=True, slots=True)
class _TensorView:
    """A tensor as the pickle describes it, in values, not bytes; not yet compared with its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __str__(self) -> str:
        return f"offset {self.offset}, shape {self.shape} and strides {self.strides}"


# What a pickle may call. Each returns None where the arguments are not those that torch writes.


def _ordered_dict(arguments: tuple) -> dict | None:
    return {} if len(arguments) == 0 else None


def _rebuild_tensor(arguments: tuple) -> _TensorView | None:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)."""
    if _types(arguments) != (_Storage, int, tuple, tuple, bool, dict):
        return None
    storage, offset, shape, strides, _, _ = arguments
    if not len(shape) == len(strides) <= MAX_DIMS or not {int}.issuperset(map(type, shape + strides)):
        return None
    return _TensorView(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple) -> _TensorView | None:
    """torch._utils._rebuild_parameter(data, requires_grad, backward_hooks)."""
    return arguments[0] if _types(arguments) == (_TensorView, bool, dict) else None


def _rebuild_parameter_with_state(arguments: tuple) -> _TensorView | None:
    """torch._utils._rebuild_parameter_with_state(data, requires_grad, backward_hooks, state).

    A parameter with attributes, which are dropped.
    """
    return _rebuild_parameter(arguments[:3]) if len(arguments) == 4 and _is_state(arguments[3]) else None


def _rebuild_from_type(arguments: tuple) -> _TensorView | None:
    """torch._tensor._rebuild_from_type_v2(function, type, arguments, state): a tensor with attributes."""
    if _types(arguments)[:3] != (Global, Global, tuple) or len(arguments) != 4 or not _is_state(arguments[3]):
        return None
    function, kind, inner, _ = arguments
    action = REBUILD.get(function.name) if kind.name in TYPES else None
    return action(inner) if action else None


def _size(arguments: tuple) -> tuple | None:
    """torch.Size(sizes), as an attribute may be."""
    return arguments[0] if _types(arguments) == (tuple,) else None


def _is_state(state: Any) -> bool:
    """Attributes: a dict, or a pair of that and a dict of slots."""
    return type(state) is dict or (
        type(state) is tuple and len(state) == 2 and {type(part) for part in state} <= {dict, type(None)}
    )


def _types(values: tuple) -> tuple[type, ...]:
    """Types of the first few `values`: one more than any call has, however many there are."""
    return tuple(map(type, values[:8]))


TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
REBUILD: dict[str, Callable[[tuple], _TensorView | None]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
CALLS: dict[str, Callable[[tuple], Any] | None] = {
    "collections.OrderedDict": _ordered_dict,
    **REBUILD,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    **dict.fromkeys(TYPES),
    **dict.fromkeys(f"torch.{dtype}" for dtype in PLAIN),  # as attributes
}


def _storages(file: MappedFile, records: dict[str, Record]) -> Callable[[Any], _Storage]:
    """What a persistent id stands for: ("storage", class, key, device, count) is the record data/<key>."""
    known: dict[str, _Storage] = {}

    def refusal(key: str, found: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: storage {show(key)}", found, wanted)

    def storage(identity: Any) -> _Storage:
        if type(identity) is not tuple or _types(identity) != (str, Global, str, str, int):
            raise refusal("?", f"is identified by {kind(identity)}", "(tag, class, key, device, count)")
        tag, cls, key, _, count = identity
        if tag != "storage" or cls.name not in STORAGES:
            raise refusal(key, f"is a {show(tag)} of {cls.name}", "a 'storage' of one of torch's classes")
        dtype = STORAGES[cls.name]
        record = records.get(f"data/{key}")
        if record is None:
            raise refusal(key, "has no record in the archive", "one of the archive's storages")
        if count * PLAIN[dtype].itemsize != record.size:
            raise refusal(
                key, f"has {record.size} bytes", f"the {count} values of {dtype} that data.pkl says"
            )
        found = known.get(key)
        if found is None:
            found = known[key] = _Storage(dtype, record.offset, count)
        if found.dtype != dtype:
            raise refusal(key, f"is used as {found.dtype} and as {dtype}", "one type")
        return found

    return storage


def _views(file: MappedFile, state: Any) -> dict[str, _TensorView]:
    """`state` if it is a dict of tensors."""
    if type(state) is not dict:
        raise CheckpointError(file.path, f"holds {kind(state)}", "a state dict: a dict of tensors")
    for name, value in state.items():
        if type(value) is not _TensorView:
            keys = ", ".join(show(key) for key in list(state)[:4]) + (", ..." if len(state) > 4 else "")
            raise CheckpointError(
                f"{file.path}: {show(name)}",
                f"is {kind(value)} (the file's keys are {keys})",
                "a tensor, since the file should be a state dict",
                "with torch, save the state dict alone",
            )
    return state


def _tensor(file: MappedFile, name: str, view: _TensorView) -> Tensor:
    """`view`, compared with its storage and mapped."""
    storage, shape = view.storage, view.shape
    dtype = PLAIN[storage.dtype]

    def refusal(found: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: {show(name)}", found, wanted)

    if min(view.offset, *shape, *view.strides, 0) < 0:
        raise refusal(f"has {view}", "no negative numbers")
    if math.prod(shape) > storage.count:  # a stride of 0 makes any number of values out of one
        raise refusal(f"has shape {shape}", f"at most the {storage.count} values stored for it")
    if math.prod(size or 1 for size in shape) > max(storage.count, MAX_SIZE):
        raise refusal(f"has shape {shape}", f"sizes with a product of at most {MAX_SIZE}")
    # The stride of a dimension of size 1 (or of an empty tensor) is never used; it may be anything.
    steps = [stride if size > 1 else 1 for size, stride in zip(shape, view.strides, strict=True)]
    reach = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    end = view.offset + (0 if 0 in shape else 1 + reach)
    if end > storage.count:
        raise refusal(f"has {view}", f"an end before {end}, as its storage has {storage.count}")
    raw: np.ndarray = np.ndarray(
        shape,
        dtype,
        file.bytes(storage.offset, storage.count * dtype.itemsize),
        view.offset * dtype.itemsize,
        None if 0 in shape else [step * dtype.itemsize for step in steps],
    )
    return Tensor(name, storage.dtype, shape, file, storage.offset + view.offset * dtype.itemsize, raw)
