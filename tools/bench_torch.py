"""Times the image encode against torch float32, in alternation: the encoder's blocks and the projector.

    python tools/make_checkpoint.py MobileVLM_V2-1.7B V2-1.7B
    python tools/bench_torch.py V2-1.7B --backend numpy

Prints the median of the rounds for each, and the ratio ours / torch. torch's modules have random weights of
the same shapes; it runs as many blocks as we do, with its own choice of attention.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import mvlm_np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--precision")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    model = mvlm_np.load(args.folder, backend=args.backend, precision=args.precision)
    config = model.config
    assert config.vision is not None, "a model without vision has nothing to encode"
    settings = asdict(config.vision) | {"num_hidden_layers": config.vision_layers}
    tower = CLIPVisionModel(CLIPVisionConfig(**settings)).eval()
    V, D = config.vision.hidden_size, config.decoder.hidden_size
    # LDPv2's two layers; its pooling and its convolution take next to nothing.
    projector = torch.nn.Sequential(torch.nn.Linear(V, D), torch.nn.GELU(), torch.nn.Linear(D, D))
    picture = np.zeros((336, 336, 3), np.uint8)
    pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size)

    def theirs() -> None:
        with torch.inference_mode():
            projector(tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:])

    works = {"ours": lambda: model.encode_image(picture), "torch": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for timed in [False] + [True] * args.rounds:
        for name, work in works.items():
            start = perf_counter()
            work()
            if timed:
                seconds[name].append(perf_counter() - start)
    ours, torchs = (median(seconds[name]) for name in works)
    threads = torch.get_num_threads()
    print(f"ours {ours:.3f} s, torch {torchs:.3f} s ({threads} threads), ours / torch {ours / torchs:.2f}")


if __name__ == "__main__":
    main()
