"""Writes a checkpoint of any member of the MobileVLM family with random weights, as Hugging Face lays it out.

    python tools/make_checkpoint.py tiny tiny
    python tools/make_checkpoint.py MobileVLM_V2-1.7B V2-1.7B
    python tools/make_checkpoint.py MobileVLM-3B 3B-slice --layers 2 --format bin --shards 2

Sizes, names of tensors and config files are those of the published model, so speed, memory and agreement
at full size can be measured without a download; the answers are noise. The folder appears when it is whole.
Memory stays under 100 MB whatever the size, under 400 MB with --format bin, which needs torch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.cli.progress import bar
from mvlm_np.errors import UserError
from tools.parts.arguments import at_least_1
from tools.parts.family import NAMES
from tools.parts.random_checkpoint import STORED, make_checkpoint


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    top.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write")
    top.add_argument("--format", choices=("safetensors", "bin"), default="safetensors")
    top.add_argument("--dtype", choices=tuple(STORED), default="bfloat16")
    top.add_argument("--shards", type=at_least_1, default=1, metavar="N", help="weight files (default: 1)")
    top.add_argument("--layers", type=at_least_1, metavar="N", help="a slice: so many layers, at full width")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.model to copy")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with bar(f"write {args.name}", None, unit="B", unit_scale=True) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        try:
            make_checkpoint(
                args.name,
                args.folder,
                form=args.format,
                dtype=args.dtype,
                shards=args.shards,
                layers=args.layers,
                seed=args.seed,
                tokenizer=args.tokenizer,
                progress=progress,
            )
        except (UserError, OSError) as error:
            print(f"make_checkpoint: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
