"""Every stage of a golden's question, computed by ONNX Runtime from what `mvlm export --dump` has written.

    mvlm export FOLDER graphs --dump
    python tools/ports/onnx_runtime.py graphs golden.safetensors -o dump.npz
    mvlm golden compare golden.safetensors dump.npz

It needs `pip install onnxruntime`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, when run as a script

import numpy as np
import onnxruntime

from mvlm_np.golden.format import Golden, read_golden
from tools.ports.feeding import Arrays, all_stages

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


class OnnxRuntime:
    """A graph in ONNX Runtime, with its optimiser or without."""

    def __init__(self, path: Path, optimise: bool = True):
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs: Arrays = {i.name: np.zeros(i.shape, TYPES[i.type]) for i in self.session.get_inputs()}
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(inputs)), strict=True))


def dump(folder: Path, golden: Golden, optimise: bool = True) -> dict[str, np.ndarray]:
    """Every stage that the graphs in a folder give for a golden's inputs."""
    return all_stages(lambda graph: OnnxRuntime(graph, optimise), folder, golden)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, help="folder that mvlm export --dump wrote")
    parser.add_argument("golden", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="npz file to write")
    parser.add_argument("--no-optimiser", action="store_true")
    args = parser.parse_args()
    stages: Any = dump(args.graphs, read_golden(args.golden), not args.no_optimiser)
    np.savez(args.output, **stages)


if __name__ == "__main__":
    main()
