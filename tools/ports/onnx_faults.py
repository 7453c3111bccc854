"""Graphs of `mvlm export --dump` with a fault that converters and their users make, for any runtime of ONNX.

    mvlm export FOLDER graphs --dump
    python tools/ports/onnx_faults.py graphs faulty --fault erf-by-tanh
    python tools/ports/onnx_runtime.py faulty golden.safetensors -o dump.npz

It needs `pip install onnx`.
"""

import argparse
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto as Graph
from onnx import helper, numpy_helper


def _constant(graph: Graph, name: str, value: object, dtype: type = np.float32) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def _nodes(graph: Graph, kind: str) -> Iterator[onnx.NodeProto]:
    return (node for node in list(graph.node) if node.op_type == kind)


def _change(graph: Graph, change: Callable[[np.ndarray], np.ndarray], name: str) -> None:
    """Other numbers in a constant."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


# ---------------------------------------------------------------- faults


def norm_eps(graph: Graph) -> None:
    """LayerNormalization with the eps that a framework has by default."""
    for node in _nodes(graph, "LayerNormalization"):
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 1e-3


def fused_silu(graph: Graph) -> None:
    """x * sigmoid(1.702 x) taken for SiLU: the factor is lost."""
    squashed = {n.input[0] for n in _nodes(graph, "Sigmoid")}
    factors = {n.input[1] for n in _nodes(graph, "Mul") if n.output[0] in squashed}
    for name in factors:
        _change(graph, np.ones_like, name)


def hard_sigmoid(graph: Graph) -> None:
    """HardSigmoid for the tower's Sigmoid."""
    for node in _nodes(graph, "Sigmoid"):
        node.op_type = "HardSigmoid"
        node.attribute.extend([helper.make_attribute("alpha", 1 / 6), helper.make_attribute("beta", 0.5)])


def erf_by_tanh(graph: Graph) -> None:
    """erf(u) as tanh(2 / sqrt(pi) * (u + 0.0894 u^3)), where Erf is missing."""
    third = _constant(graph, "fault.third", 2 * 0.044715)
    outer = _constant(graph, "fault.outer", 2 / math.sqrt(math.pi))
    for node in _nodes(graph, "Erf"):
        u, y = node.input[0], node.output[0]
        at = list(graph.node).index(node)
        new = [
            helper.make_node("Mul", [u, u], [f"{y}.square"]),
            helper.make_node("Mul", [f"{y}.square", u], [f"{y}.cube"]),
            helper.make_node("Mul", [f"{y}.cube", third], [f"{y}.small"]),
            helper.make_node("Add", [u, f"{y}.small"], [f"{y}.sum"]),
            helper.make_node("Mul", [f"{y}.sum", outer], [f"{y}.inner"]),
            helper.make_node("Tanh", [f"{y}.inner"], [y]),
        ]
        graph.node.remove(node)
        for i, one in enumerate(new):
            graph.node.insert(at + i, one)


def class_token_last(graph: Graph) -> None:
    """The class token behind the patches."""
    node = next(_nodes(graph, "Concat"))
    node.input[:] = list(node.input)[::-1]


def last_row_dropped(graph: Graph) -> None:
    """The last row of the encoder's output is dropped, not the first one."""
    start, end = _constant(graph, "fault.start", [0], np.int64), _constant(graph, "fault.end", [-1], np.int64)
    for node in _nodes(graph, "Slice"):
        if node.output[0] == "vision.features":
            node.input[1], node.input[2] = start, end


def residual_lost(graph: Graph) -> None:
    """PEG without its input added."""
    conv = next(n.output[0] for n in _nodes(graph, "Transpose") if n.input[0] == "projector.peg.peg")
    for node in _nodes(graph, "Add"):
        if conv in node.input:
            node.op_type = "Identity"
            node.input[:] = [conv]


def sines_negated(graph: Graph) -> None:
    """The rotary embedding turns the other way."""
    _, sines = (n.input[0] for n in _nodes(graph, "Gather"))
    _change(graph, np.negative, sines)


def gate_up_swapped(graph: Graph) -> None:
    """gate_proj's weights where up_proj's should be."""
    for node in _nodes(graph, "MatMul"):
        other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        for name, swapped in other.items():
            if f"mlp.{name}." in node.input[1]:
                node.input[1] = node.input[1].replace(name, swapped)
                break


def rms_eps(graph: Graph) -> None:
    """Another eps in every RMSNorm."""
    means = {n.output[0] for n in _nodes(graph, "ReduceMean")}
    eps = _constant(graph, "fault.eps", 1e-3)
    for node in _nodes(graph, "Add"):
        if node.input[0] in means:
            node.input[1] = eps


# fault -> the graphs that it is in, by the beginning of their names, and what makes it.
FAULTS: dict[str, tuple[str, Callable[[Graph], None]]] = {
    "norm-eps": ("vision", norm_eps),
    "fused-silu": ("vision", fused_silu),
    "hard-sigmoid": ("vision", hard_sigmoid),
    "erf-by-tanh": ("vision", erf_by_tanh),
    "class-token-last": ("vision", class_token_last),
    "last-row-dropped": ("vision", last_row_dropped),
    "residual-lost": ("vision", residual_lost),
    "sines-negated": ("decoder", sines_negated),
    "gate-up-swapped": ("decoder", gate_up_swapped),
    "rms-eps": ("decoder", rms_eps),
}


def make_faulty(graphs: Path, target: Path, fault: str) -> None:
    """A copy of a folder of graphs, with a fault."""
    part, change = FAULTS[fault]
    shutil.copytree(graphs, target)
    for path in target.glob(f"{part}*.onnx"):
        model = onnx.load(path)
        before = model.SerializeToString(deterministic=True)
        change(model.graph)
        if model.SerializeToString(deterministic=True) == before:
            raise SystemExit(f"{path}: there is nothing to make {fault} of")
        onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, help="folder that mvlm export --dump wrote")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--fault", choices=FAULTS, required=True)
    args = parser.parse_args()
    make_faulty(args.graphs, args.target, args.fault)


if __name__ == "__main__":
    main()
