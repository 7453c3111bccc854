"""Writes a model anew, in another precision or format, from whatever it comes in.

The new folder appears under its name when it is complete. For each rounded tensor a line says how far
the rounding error lies below the weights, in dB; the folder's mvlm.json keeps them.

examples:
  mvlm convert MobileVLM_V2-1.7B small --precision int4
  mvlm convert model.gguf folder --precision bf16
"""

import argparse
from pathlib import Path

PRECISIONS = ("float32", "bf16", "int8", "int4")


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model folder, GGUF file, or a name in the hub's cache")
    parser.add_argument("destination", help="folder to write; must not exist yet")
    parser.add_argument("--precision", choices=PRECISIONS, required=True, help="of the linear layers")
    parser.add_argument("--quality", choices=("high", "fast"), default="high", help="of int4 (high)")
    parser.add_argument("--vision-tower", metavar="PATH", help="folder of the CLIP model, if it is elsewhere")
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import bar
    from mvlm_np.converting import convert
    from mvlm_np.loading import manifest

    checkpoint = open_checkpoint(args.source, args.vision_tower, args.mmproj)
    with bar("convert", len(manifest(checkpoint.config).shapes), unit="tensor") as progress:

        def told(name: str, bits: int | None, snr: float) -> None:
            if bits:
                tqdm.write(f"{name:80} int{bits} {'lossless' if snr == float('inf') else f'{snr:5.1f} dB'}")
            progress.update()

        convert(checkpoint, Path(args.destination), args.precision, args.quality, told)
    print(f"wrote {args.destination}")
    return 0
