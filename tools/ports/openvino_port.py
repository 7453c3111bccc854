"""Every stage of a golden's question, computed by OpenVINO from what `mvlm export --dump` has written.

    mvlm export FOLDER graphs --dump
    python tools/ports/openvino_port.py graphs golden.safetensors -o dump.npz
    mvlm golden compare golden.safetensors dump.npz

It computes in float32. Left alone (`--precision default`), OpenVINO may choose bf16 or f16 where a processor
has them, and says nothing of it. It needs `pip install openvino`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, when run as a script

import numpy as np
import openvino

from mvlm_np.golden.format import Golden, read_golden
from tools.ports.feeding import Arrays, all_stages


class OpenVINO:
    """A graph on the CPU. precision: "f32", "bf16", "f16", or "default", which is OpenVINO's choice."""

    def __init__(self, path: Path, precision: str = "f32"):
        hints = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}
        self.model = openvino.Core().compile_model(path, "CPU", hints)
        self.inputs: Arrays = {
            port.any_name: np.zeros(port.shape, port.element_type.to_dtype()) for port in self.model.inputs
        }

    def __call__(self, inputs: Arrays) -> Arrays:
        found = self.model(dict(inputs))
        return {name: array for port, array in found.items() for name in port.names}


def dump(folder: Path, golden: Golden, precision: str = "f32") -> dict[str, np.ndarray]:
    """Every stage that the graphs in a folder give for a golden's inputs."""
    return all_stages(lambda graph: OpenVINO(graph, precision), folder, golden)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, help="folder that mvlm export --dump wrote")
    parser.add_argument("golden", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="npz file to write")
    parser.add_argument("--precision", choices=("f32", "bf16", "f16", "default"), default="f32")
    args = parser.parse_args()
    stages: Any = dump(args.graphs, read_golden(args.golden), args.precision)
    np.savez(args.output, **stages)


if __name__ == "__main__":
    main()
