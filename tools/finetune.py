"""Teaches a MobileVLM your own pictures: the published training recipe, on one machine or many.

    python tools/finetune.py MODEL data.json --images photos -o run    # LoRA; gives run/adapter
    python tools/finetune.py MODEL data.json --images photos -o run --stage finetune    # gives run/model
    accelerate launch tools/finetune.py MODEL data.json --images photos -o run    # on all GPUs

MODEL is any folder that `mvlm ask` takes, with weights that are not rounded. The data are in upstream's
format; tools/make_data.py makes them of a folder and a table. Stopped or killed, the same command goes on
where it was. Beside the result, run/finetune.png shows how the loss falls, and that of the held-out part:
where the second rises again, the model learns the pictures by heart. docs/teach.md tells the whole story.

The stages are the published recipes; each number is an option. Of few records, steps are smaller and epochs
more, which is said, unless --batch and --epochs are given. What a step does depends neither on how many
processes there are nor on how many samples are computed at once, but for what is drawn with --dropout. With
--multi_gpu --num_processes N, which needs no GPU, accelerate starts several on any machine, and see
`accelerate config` for many machines, which must share the folder OUT. If a process fails, accelerate adds a
long report of its own to the one line that begins with "finetune:" and says what is wrong. A checkpoint is
written each minute, or as often as a tenth of the time allows. It needs the extra "train".
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.cli.calls import Parser
from mvlm_np.errors import UserError

KINDS = ("lora", "finetune", "pretrain")
PRECISIONS = {
    "float32": "all in float32",
    "mixed": "what is trained in float32, what is frozen and the products of matrices in 16 bits",
    "bf16": "all but LoRA's matrices in 16 bits, the optimizer's state too: least memory, small steps lost",
}
PATIENCE = 5.0  # seconds in which the launcher ends the other processes, if the first has failed


def share_or_file(text: str) -> float | Path:
    try:
        value = float(text)
    except ValueError:
        return Path(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, wanted at least 0 and less than 1, or a file")
    return value


def number(kind: Callable[[str], Any], least: float, most: float = float("inf"), open_: bool = False) -> Any:
    """argparse's type of a number from `least`, or above it if `open_`, to `most`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (least < value if open_ else least <= value) or not value <= most or value == float("inf"):
            wanted = f"{'more than' if open_ else 'at least'} {least:g}"
            wanted += f" and at most {most:g}" if most < float("inf") else ""
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number, {wanted}")
        return value

    return read


def parser() -> argparse.ArgumentParser:
    top = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("model", type=Path, metavar="MODEL")
    top.add_argument("data", type=Path, metavar="DATA.json", help="records in upstream's format")
    top.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="where the pictures lie")
    top.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="folder for all that is made"
    )
    top.add_argument("--stage", choices=KINDS, default="lora", help="what is trained (lora)")
    top.add_argument(
        "--as-published",
        action="store_true",
        help="do also what the published code gets wrong, see docs/training-as-published.md",
    )
    top.add_argument(
        "--held-out",
        type=share_or_file,
        metavar="SHARE_OR_FILE",
        help="a share of the data, or another file, that is not trained with but scored as it goes (0.05)",
    )
    top.add_argument(
        "--mix",
        nargs=2,
        type=Path,
        action="append",
        default=[],
        metavar=("DATA.json", "FOLDER"),
        help="more records and their pictures, of what must not be forgotten; none is held out",
    )
    top.add_argument(
        "--check-every", type=number(int, 1), metavar="STEPS", help="score it so often (ten times in all)"
    )
    top.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="; ".join(f"{name}: {said}" for name, said in PRECISIONS.items()),
    )
    top.add_argument(
        "--checkpointing", action="store_true", help="compute activations twice: less memory, a third slower"
    )
    top.add_argument(
        "--micro-batch",
        type=number(int, 1),
        metavar="N",
        help="samples that a process computes at once, at most; a step's others follow by accumulation "
        "(8; as published 16, in pretraining 32)",
    )
    top.add_argument(
        "--features",
        type=Path,
        metavar="FOLDER",
        help="keep what the frozen tower sees here, for other runs too (in OUT, until the end, if it fits)",
    )
    top.add_argument("--no-features", action="store_true", help="do not keep it: run the tower in every step")
    top.add_argument("--vision-tower", type=Path, metavar="FOLDER", help="CLIP, if not where the config says")
    top.add_argument(
        "--projector",
        metavar="KIND",
        help="MODEL is a language model, which gets a new projector of this kind: ldpnetv2, ldpnet, ...",
    )
    top.add_argument(
        "--workers", type=number(int, 1, 64), default=2, metavar="N", help="threads that read pictures (2)"
    )
    recipe = top.add_argument_group("numbers of the recipe, in place of the published ones")
    above, share = number(float, 0, open_=True), number(float, 0, 1)
    recipe.add_argument("--rate", type=above, metavar="X", help="highest learning rate")
    recipe.add_argument("--projector-rate", type=number(float, 0), metavar="X", help="its own; 0: frozen")
    recipe.add_argument("--batch", type=number(int, 1), metavar="N", help="samples of a step, all processes'")
    recipe.add_argument(
        "--epochs",
        type=number(float, 0, 1000, open_=True),
        metavar="X",
        help="times that each record is seen",
    )
    recipe.add_argument("--warmup", type=share, metavar="SHARE", help="of the steps, in which the rate rises")
    recipe.add_argument("--decay", type=number(float, 0), metavar="X", help="weight decay")
    recipe.add_argument("--betas", type=number(float, 0, 1 - 1e-6), nargs=2, metavar="X", help="Adam's")
    recipe.add_argument("--epsilon", type=above, metavar="X", help="Adam's")
    recipe.add_argument("--clip", type=above, metavar="X", help="largest norm of the gradients")
    recipe.add_argument("--limit", type=number(int, 8), metavar="N", help="tokens of a sample")
    recipe.add_argument("--seed", type=number(int, 0, 2**31), metavar="N")
    recipe.add_argument("--rank", type=number(int, 1), metavar="N", help="LoRA's")
    recipe.add_argument("--alpha", type=above, metavar="X", help="LoRA's; by default twice the rank")
    recipe.add_argument("--dropout", type=share, metavar="SHARE", help="LoRA's")
    recipe.add_argument("--grouped", action=argparse.BooleanOptionalAction, help="batches of like length")
    recipe.add_argument("--aspect", choices=("pad", "square"), help="pictures are padded, or cropped")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes on this machine
    try:
        logging.basicConfig(format="finetune: %(message)s", level="WARNING" if first else "ERROR")
        run(parser().parse_args(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        if not first:
            time.sleep(PATIENCE)  # what the first finds, too, is said once
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("finetune: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> None:
    try:
        from tools.training.finetuning import finetune
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "peft", "accelerate"):
            raise
        raise UserError(error.name, "is not installed", fix="pip install -e '.[train]'") from None
    try:
        finetune(args)
    except OSError as error:
        raise UserError(error.filename or "finetune", error.strerror or error) from None
    except (MemoryError, RuntimeError) as error:
        # So torch says of a processor's memory, and of a GPU's.
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        fix = "take a smaller --micro-batch, --checkpointing, --precision bf16 or --stage lora"
        raise UserError("memory", "there is not enough", fix=fix) from None


if __name__ == "__main__":
    sys.exit(main())
