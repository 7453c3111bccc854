"""A graph as an ONNX file, its weights written one after another, so that they need not fit in memory.

An ONNX file is a protobuf: fields, each a tag, the number of bytes that follow, and these bytes. The package
`onnx` writes everything but the weights; these are put behind it here. A protobuf ends at 2 GiB. What is
larger lies in a second file, "external data", which graphs may share.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

import mvlm_np
from mvlm_np.errors import UserError
from mvlm_np.export.graph import Finished, Node, Value, Weight

if TYPE_CHECKING:
    from onnx import TensorProto

LARGEST = 2**31 - 2**24  # bytes of weights in a protobuf; the rest is for the graph
PAGE = 4096  # external data begin on one, so that they can be mapped
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9  # numbers of fields

Count = Callable[[int], object]


def require_onnx() -> None:
    """UserError: the package is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        fix = "pip install 'mvlm-np[onnx]'"
        raise UserError("onnx", f"cannot be imported ({error})", "the package onnx", fix) from None


def write_weights(path: Path, graph: Finished, count: Count) -> dict[str, int]:
    """Writes the weights as external data, in order. {name: where it begins}"""
    offsets = {}
    with path.open("wb") as file:
        for name, weight in graph.weights.items():
            file.seek(-(-file.tell() // PAGE) * PAGE)
            offsets[name] = file.tell()
            write_values(file, weight, graph.dtype, count)
    return offsets


def write_graph(
    path: Path, graph: Finished, count: Count, external: tuple[str, Mapping[str, int]] | None = None
) -> None:
    """Writes the graph with its weights, or with what says where they lie.

    external  name of the file with the weights, in the same folder, and where in it each begins
    count     called with the number of bytes of each piece of the weights that is written
    """
    model = _model(graph)
    if external is not None:
        location, offsets = external
        for name, weight in graph.weights.items():
            place = {"location": location, "offset": offsets[name], "length": weight.nbytes(graph.dtype)}
            tensor = _tensor(name, weight, graph.dtype)
            tensor.data_location = tensor.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(tensor)
        path.write_bytes(model.SerializeToString())
        return
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = {}
    for name, weight in graph.weights.items():
        size = weight.nbytes(graph.dtype)
        head = _tensor(name, weight, graph.dtype).SerializeToString() + _field(TENSOR_RAW_DATA, size)
        heads[name] = _field(GRAPH_INITIALIZER, len(head) + size) + head
    size = len(body) + sum(map(len, heads.values())) + graph.weight_bytes
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _field(MODEL_GRAPH, size) + body)
        for name, weight in graph.weights.items():
            file.write(heads[name])
            write_values(file, weight, graph.dtype, count)


def _field(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a protobuf's field."""
    return bytes([number << 3 | 2, *_varint(size)])


def _varint(number: int) -> Iterator[int]:
    """A whole number in protobuf's bytes: 7 bits each, the lowest first, and whether another one follows."""
    while number >= 0x80:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number


def write_values(file: IO[bytes], weight: Weight, dtype: str, count: Count) -> None:
    """The values of a weight, one after another."""
    for values in weight.values(dtype):
        file.write(values.data)
        count(values.nbytes)


def _model(graph: Finished) -> Any:
    """The ModelProto without weights. Every value's shape is noted, for those that cannot infer it."""
    from onnx import helper, numpy_helper

    def type_of(dtype: str) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def value(value: Value) -> Any:
        return helper.make_tensor_value_info(value.name, type_of(value.dtype), value.shape)

    def node(node: Node) -> Any:
        attributes = dict(node.attributes)
        if node.op == "Cast":
            attributes["to"] = type_of(attributes["to"])
        return helper.make_node(node.op, node.inputs, [node.output], name=node.output, **attributes)

    body = helper.make_graph(
        [node(n) for n in graph.nodes],
        graph.name,
        [value(v) for v in graph.inputs],
        [value(v) for v in graph.outputs],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        value_info=[value(v) for v in graph.values],
    )
    opset = helper.make_opsetid("", graph.opset)
    version = helper.find_min_ir_version_for([opset])
    return helper.make_model(
        body,
        opset_imports=[opset],
        ir_version=version,
        producer_name="mvlm-np",
        producer_version=mvlm_np.__version__,
    )


def _tensor(name: str, weight: Weight, dtype: str) -> "TensorProto":
    """A TensorProto without its values."""
    from onnx import TensorProto, helper

    return TensorProto(
        name=name, dims=weight.shape, data_type=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    )
