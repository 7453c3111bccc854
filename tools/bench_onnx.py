"""How fast ONNX Runtime encodes a picture, by the graph that `mvlm export` has written, beside this engine.

    mvlm export FOLDER graphs --part vision
    python tools/bench_onnx.py FOLDER graphs --precision float32 int8 --rounds 3

All take the same picture in turns, on as many threads. It prints the median of each in seconds, its ratio to
the first, and how far the result is from the first's. It needs onnxruntime (the extra "test").
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np
import onnxruntime

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.model import MobileVLM


def ours(model: MobileVLM, pixels: np.ndarray) -> np.ndarray:
    *_, tokens = model.encoding(pixels)
    return tokens


def theirs(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    return session.run(["projector.output"], {"pixel_values": pixels[None].astype(dtype)})[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("graphs", type=Path, nargs="+", help="folders that mvlm export wrote")
    parser.add_argument("--image", type=Path, default=Path("examples/chelsea.jpg"))
    parser.add_argument("--precision", nargs="+", default=["float32"], help="of this engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    pixels = preprocess(open_image(args.image, exif=True), open_checkpoint(args.model).config.image)
    ways = dict[str, Callable[[], np.ndarray]]()
    for precision in args.precision:
        model = mvlm_np.load(args.model, precision, "numba", args.threads)
        ways[f"mvlm-np {precision}"] = partial(ours, model, pixels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    for folder in args.graphs:
        session = onnxruntime.InferenceSession(folder / "vision.onnx", options)
        ways[f"ONNX Runtime, {folder.name}"] = partial(theirs, session, pixels)
    results = {name: way() for name, way in ways.items()}  # warm
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = perf_counter()
            way()
            seconds[name].append(perf_counter() - start)
    first = next(iter(ways))
    for name, result in results.items():
        took, beside = median(seconds[name]), median(seconds[first])
        off = np.abs(result - results[first]).max() / np.abs(results[first]).max()
        print(f"{name:32} {took:6.2f} s   {took / beside:5.2f} x {first}   off by {off:.1e}")


if __name__ == "__main__":
    main()
