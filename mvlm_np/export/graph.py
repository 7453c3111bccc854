"""A graph of ONNX operations, written down by running the forward pass on symbols in place of arrays.

A `Symbol` has the shape of the array that it stands for, and what is done to it becomes a node of its
`Graph`. A `Weight` stands for a tensor of the checkpoint, which is not read before the graph is written to a
file. In the graph every symbol has a batch axis of 1 in front, which its shape here leaves out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mvlm_np.checkpoints.tensors import CHUNK, Tensor
from mvlm_np.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the checkpoint, still in its file, as it is or transposed or in another shape."""

    tensor: Tensor
    shape: Shape
    transposed: bool = False

    @property
    def name(self) -> str:
        """The checkpoint's name, with .T behind it where it is transposed."""
        return self.tensor.name + (".T" if self.transposed else "")

    @property
    def T(self) -> "Weight":
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    def reshape(self, *shape: int) -> "Weight":
        assert not self.transposed
        return replace(self, shape=_resolved(shape, self.shape))

    def __getitem__(self, key: None) -> "Weight":
        return self.reshape(1, *self.shape)

    def nbytes(self, dtype: str) -> int:
        """Bytes of its values in this type."""
        return prod(self.shape) * np.dtype(dtype).itemsize

    def values(self, dtype: str) -> Iterator[np.ndarray]:
        """All values in order, some at a time. UserError: the type does not hold one of them."""
        if self.transposed:
            matrix = self.tensor.float32().reshape(self.shape[::-1]).T
            for start in range(0, len(matrix), step := max(1, CHUNK // matrix.shape[1])):
                yield self._converted(matrix[start : start + step], dtype)
        else:
            rows, width = self.tensor.shape[0], prod(self.tensor.shape[1:])
            for start in range(0, rows, step := max(1, CHUNK // max(1, width))):
                yield self._converted(self.tensor.rows(slice(start, start + step)), dtype)
        self.tensor.forget()

    def _converted(self, values: np.ndarray, dtype: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(values, dtype)
        if dtype == "float16" and not np.isfinite(converted).all():
            where, found = f"{self.tensor.file.path}: {self.tensor.name}", "holds what float16 cannot hold"
            raise UserError(where, found, f"finite values up to {np.finfo(np.float16).max:g}", "take float32")
        return converted


class Node(NamedTuple):
    """An operation: its name in ONNX, and the names of what it reads and of what it gives."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


class Symbol:
    """What an array of the forward pass is called in the graph.

    made  the operation that gives it and the symbol that goes into it, where it only moves values
    """

    def __init__(self, graph: "Graph", name: str, shape: Shape, dtype: str):
        self.graph, self.name, self.shape, self.dtype = graph, name, shape, dtype
        self.made: tuple[str, Symbol, Shape] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __add__(self, other: "Operand") -> "Symbol":
        return self.graph.elementwise("Add", self, other)

    def __sub__(self, other: "Operand") -> "Symbol":
        return self.graph.elementwise("Sub", self, other)

    def __mul__(self, other: "Operand") -> "Symbol":
        return self.graph.elementwise("Mul", self, other)

    def __truediv__(self, other: "Operand") -> "Symbol":
        return self.graph.elementwise("Div", self, other)

    def __matmul__(self, other: "Symbol | Weight") -> "Symbol":
        return self.graph.matmul(self, other)

    def reshape(self, *shape: int) -> "Symbol":
        """In another shape: one Reshape, however many follow each other."""
        shape = _resolved(shape, self.shape)
        source = self.made[1] if self.made and self.made[0] == "Reshape" else self
        if shape == source.shape:
            return source
        return self.graph.moved("Reshape", [source, np.array([1, *shape])], shape, shape)

    def transpose(self, *axes: int) -> "Symbol":
        """With its axes in another order: one Transpose, however many follow each other."""
        source = self
        if self.made and self.made[0] == "Transpose":
            _, source, before = self.made
            axes = tuple(before[axis] for axis in axes)
        if axes == tuple(range(len(axes))):
            return source
        shape = tuple(source.shape[axis] for axis in axes)
        perm = [0, *(axis + 1 for axis in axes)]
        return self.graph.moved("Transpose", [source], axes, shape, perm=perm)

    def part(self, start: int, stop: int, axis: int) -> "Symbol":
        """From start to stop - 1 along an axis."""
        axis %= len(self.shape)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        bounds = [np.array([number]) for number in (start, stop, axis + 1)]
        return self.graph.node("Slice", [self, *bounds], shape)

    def __getitem__(self, key: slice | None) -> "Symbol":
        if key is None:
            return self.reshape(1, *self.shape)
        start, stop, step = key.indices(len(self))
        assert step == 1
        return self.part(start, stop, axis=0)

    def __array_function__(self, function: Callable, types: object, args: Any, kwargs: Any) -> "Symbol":
        """np.concatenate of symbols and weights."""
        assert function is np.concatenate and not kwargs
        return self.graph.concatenate(args[0], axis=0)


# Numbers and arrays become constants of the graph. Their shapes have no batch axis.
Operand = Symbol | Weight | np.ndarray | float


class Graph:
    """Inputs, nodes, weights and constants, and which symbols are its outputs.

    dtype  "float32" or "float16": of all numbers with fractions, unless a node says otherwise
    opset  the version of ONNX's operations
    """

    def __init__(self, name: str, dtype: str, opset: int):
        self.name, self.dtype, self.opset = name, dtype, opset
        self.inputs: list[Symbol] = []
        self.outputs: dict[str, Symbol] = {}
        self.nodes: list[tuple[Node, Symbol]] = []
        self.weights: dict[str, Weight] = {}
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[object, Symbol] = {}

    def input(self, name: str, *shape: int, dtype: str | None = None) -> Symbol:
        """A new input of the graph."""
        self.inputs.append(symbol := Symbol(self, name, shape, dtype or self.dtype))
        return symbol

    def node(
        self, op: str, inputs: Sequence[Operand], shape: Shape, dtype: str | None = None, **attributes: Any
    ) -> Symbol:
        """What an operation gives: `shape`, of the first symbol's type unless `dtype` says otherwise.

        The same operation on the same inputs is one node.
        """
        first = next(i for i in inputs if isinstance(i, Symbol))
        names = tuple(self._name(i, dtype or first.dtype) for i in inputs)
        key = (op, names, repr(attributes))
        if key not in self._known:
            output = f"{op}_{len(self.nodes)}"
            self._known[key] = symbol = Symbol(self, output, shape, dtype or first.dtype)
            self.nodes.append((Node(op, names, output, attributes), symbol))
        return self._known[key]

    def moved(
        self, op: str, inputs: Sequence["Symbol | np.ndarray"], how: Shape, shape: Shape, **attributes: Any
    ) -> Symbol:
        """The first input's values in another order or shape."""
        symbol = self.node(op, inputs, shape, **attributes)
        assert isinstance(inputs[0], Symbol)
        symbol.made = (op, inputs[0], how)
        return symbol

    def elementwise(self, op: str, x: Symbol, *others: Operand, dtype: str | None = None) -> Symbol:
        """An operation on each number by itself, or on numbers in the same place."""
        shapes = [_shape(operand) for operand in (x, *others)]
        return self.node(op, [x, *others], np.broadcast_shapes(*shapes), dtype)

    def matmul(self, a: Operand, b: Operand) -> Symbol:
        """(..., M, K) and (..., K, N) -> (..., M, N)"""
        (*before, M, _), (*behind, _, N) = _shape(a), _shape(b)
        return self.node("MatMul", [a, b], (*np.broadcast_shapes(tuple(before), tuple(behind)), M, N))

    def concatenate(self, parts: Sequence[Symbol | Weight], axis: int) -> Symbol:
        """One behind the other along an axis; they are equally long along the others."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        with_batch = [part[None] if isinstance(part, Weight) else part for part in parts]
        return self.node("Concat", with_batch, tuple(shape), axis=axis + 1 if axis >= 0 else axis)

    def mean(self, x: Symbol, *axes: int) -> Symbol:
        """Means over some of the axes, which stay with length 1."""
        shape = np.array(x.shape)
        shape[[*axes]] = 1
        inside = [axis % len(shape) + 1 for axis in axes]
        if self.opset >= 18:
            return self.node("ReduceMean", [x, np.array(inside)], (*shape.tolist(),), keepdims=1)
        return self.node("ReduceMean", [x], (*shape.tolist(),), axes=inside, keepdims=1)

    def cast(self, x: Symbol, dtype: str) -> Symbol:
        """In another type."""
        if x.dtype == dtype:
            return x
        return self.node("Cast", [x], x.shape, dtype, to=dtype)

    def _name(self, operand: Operand, dtype: str) -> str:
        """What the graph calls an operand. Numbers take the type of what they are computed with."""
        if isinstance(operand, Symbol):
            return operand.name
        if isinstance(operand, Weight):
            first = self.weights.setdefault(operand.name, operand)
            assert first.shape == operand.shape, f"{operand.name} in two shapes"
            return operand.name
        array = np.asarray(operand)
        if array.dtype.kind == "f":
            array = array.astype(dtype)
        name = "_".join([str(array.dtype), "x".join(map(str, array.shape)) or "scalar"])
        for number in count():
            known = self.constants.setdefault(f"{name}_{number}", array)
            if known is array or np.array_equal(known, array):
                break
        return f"{name}_{number}"

    def finish(self) -> "Finished":
        """What the outputs depend on, and nothing else; what is an output is called so."""
        called = {symbol.name: symbol.name for symbol in self.inputs}
        nodes, values = list[Node](), dict[str, Value]()
        for name, symbol in self.outputs.items():
            if called.setdefault(symbol.name, name) != name:  # an input, or has a name already
                nodes.append(Node("Identity", (called[symbol.name],), name, {}))
        used = {symbol.name for symbol in self.outputs.values()}
        for node, symbol in reversed(self.nodes):
            if node.output in used:
                used.update(node.inputs)
                name, inputs = called.get(node.output, node.output), (called.get(i, i) for i in node.inputs)
                nodes.append(node._replace(inputs=tuple(inputs), output=name))
                values[name] = Value(name, symbol.dtype, (1, *symbol.shape))
        return Finished(
            self.name,
            self.dtype,
            self.opset,
            [Value(symbol.name, symbol.dtype, (1, *symbol.shape)) for symbol in self.inputs],
            [Value(name, symbol.dtype, (1, *symbol.shape)) for name, symbol in self.outputs.items()],
            nodes[::-1],
            [value for name, value in reversed(values.items()) if name not in self.outputs],
            {name: weight for name, weight in self.weights.items() if name in used},
            {name: array for name, array in self.constants.items() if name in used},
        )


class Value(NamedTuple):
    """An array in a finished graph; its shape has the batch axis."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Finished:
    """A graph that is complete. `values` are those that are neither inputs nor outputs."""

    name: str
    dtype: str
    opset: int
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    values: list[Value]
    weights: dict[str, Weight]
    constants: dict[str, np.ndarray]

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes(self.dtype) for weight in self.weights.values())


def _shape(operand: Operand) -> Shape:
    return () if isinstance(operand, float | int) else operand.shape


def _resolved(shape: Shape, old: Shape) -> Shape:
    """The shape with a number in place of -1."""
    rest = prod(old) // -prod(shape) if -1 in shape else 1
    new = tuple(rest if n == -1 else n for n in shape)
    assert prod(new) == prod(old), f"{old} -> {new}"
    return new
