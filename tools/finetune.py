"""Teaches a MobileVLM your own pictures: the published training recipe, on one machine or many.

    python tools/finetune.py MODEL data.json --images photos -o run    # LoRA; gives run/adapter
    python tools/finetune.py MODEL data.json --images photos -o run --stage finetune    # gives run/model
    accelerate launch tools/finetune.py MODEL data.json --images photos -o run    # on all GPUs

MODEL is any folder that `mvlm ask` takes, with weights that are not rounded. The data are in upstream's
format; tools/make_data.py makes them of a folder and a table. Stopped or killed, the same command goes on
where it was. Beside the result, run/finetune.png shows how the loss falls, and that of the held-out part:
where the second rises again, the model learns the pictures by heart. docs/teach.md tells the whole story.

The stages are the published recipes; each number is an option. What a step does depends neither on how many
processes there are nor on how many samples are computed at once. It needs the extra "train".
"""

import argparse
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.cli.calls import Parser
from mvlm_np.errors import UserError

KINDS = ("lora", "finetune", "pretrain")
PRECISIONS = {
    "float32": "all in float32",
    "mixed": "what is trained in float32, what is frozen and the products of matrices in 16 bits",
    "bf16": "all in 16 bits, the optimizer's state too: the least memory, and small steps are lost",
}


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
    top.add_argument("--precision", choices=PRECISIONS, help=describe_precisions())
    top.add_argument(
        "--checkpointing", action="store_true", help="compute activations twice: less memory, a third slower"
    )
    top.add_argument(
        "--micro-batch",
        type=number(int, 1),
        default=8,
        metavar="N",
        help="samples that a process computes at once; a step's others follow by accumulation (8)",
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
        "--workers", type=number(int, 1), default=2, metavar="N", help="threads that read pictures (2)"
    )
    recipe = top.add_argument_group("numbers of the recipe, in place of the published ones")
    above, share = number(float, 0, open_=True), number(float, 0, 1)
    recipe.add_argument("--rate", type=above, metavar="X", help="highest learning rate")
    recipe.add_argument("--projector-rate", type=number(float, 0), metavar="X", help="its own; 0: frozen")
    recipe.add_argument("--batch", type=number(int, 1), metavar="N", help="samples of a step, all processes'")
    recipe.add_argument("--epochs", type=above, metavar="X", help="times that each record is seen")
    recipe.add_argument("--warmup", type=share, metavar="SHARE", help="of the steps, in which the rate rises")
    recipe.add_argument("--decay", type=number(float, 0), metavar="X", help="weight decay")
    recipe.add_argument("--betas", type=share, nargs=2, metavar="X", help="Adam's")
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


def describe_precisions() -> str:
    return "; ".join(f"{name}: {said}" for name, said in PRECISIONS.items())


def main(argv: Sequence[str] | None = None) -> int:
    try:
        logging.basicConfig(format="finetune: %(message)s")
        finetune(parser().parse_args(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def finetune(args: argparse.Namespace) -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import torch
    except ImportError as error:
        found = f"{error.name} is not installed"
        raise UserError("finetune", found, fix="pip install -e '.[train]'") from None
    from mvlm_np.inputs.tokenizer import make
    from tools.training.adapter import add_adapter
    from tools.training.batch import Batch, collate
    from tools.training.features import Features, fits
    from tools.training.lessons import hold_out, lessons
    from tools.training.loop import accelerator, fit
    from tools.training.network import load, open_for_training
    from tools.training.pictures import pixels
    from tools.training.records import Record, read_records
    from tools.training.saving import save
    from tools.training.scoring import score
    from tools.training.stages import parameter_groups, stage_for
    from tools.training.wording import sample

    source = {"vision_tower": args.vision_tower, "projector": args.projector}
    checkpoint = open_for_training(args.model, args.as_published, args.vision_tower, args.projector)
    stage = stage_for(args.stage, checkpoint.config)
    if args.rank and not args.alpha:
        args.alpha = 2.0 * args.rank
    names = {field.name for field in fields(stage)} & {*vars(args)} - {"name", "version", "trains"}
    stage = replace(stage, **{name: value for name in names if (value := getattr(args, name)) is not None})
    result = args.out / ("adapter" if stage.trains == "lora" else "model")
    prepare(args, result)

    records = read_records(args.data, args.images, as_published=args.as_published)
    held_out: list[Record] = []
    share = args.held_out if args.held_out is not None else 0.0 if args.as_published else 0.05
    if isinstance(share, Path):
        held_out = read_records(share, args.images)
    elif share:
        records, held_out = hold_out(records, share, stage.seed)

    for file, images in args.mix:
        records += read_records(file, images, as_published=args.as_published)

    precision, dtype = choose_precision(args.precision, stage.trains)
    run = accelerator(precision)
    tell: Callable[[str], object] = lambda line: run.print(f"finetune: {line}", file=sys.stderr)  # noqa: E731
    tokenizer = make(checkpoint.read_tokenizer(), checkpoint.config.decoder.vocab_size)
    plan = lessons(
        records,
        tokenizer,
        stage,
        args.micro_batch,
        run.num_processes,
        as_published=args.as_published,
        told=tell,
    )
    counted = f"{len(plan.records)} records, {len(held_out)} held out"
    tell(f"{stage.name}: {counted}; {plan.steps} steps of {plan.batch} samples, {plan.micro} at once")
    trainee = load(args.model, as_published=args.as_published, dtype=dtype, seed=stage.seed, **source)
    if args.checkpointing:
        trainee.checkpoint_activations()
    torch.manual_seed(stage.seed)
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    groups = parameter_groups(trainee, stage)
    if args.precision != "bf16":
        for group in groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
    trainee.to(run.device)
    optimizer = torch.optim.AdamW(groups, fused=True)

    image = replace(checkpoint.config.image, aspect_ratio=stage.aspect)
    kept = None
    if not args.as_published and not args.no_features:
        folder = args.features or args.out / "features"
        if args.features or fits(trainee, [*plan.records, *held_out], args.out):
            kept = Features(trainee, image, folder)
        else:
            tell("what the tower sees does not fit on the disk, so it is computed in every step")

    def batch(chosen: Sequence[Record]) -> Batch:
        samples = [
            sample(r, tokenizer, stage.version, stage.limit, as_published=args.as_published) for r in chosen
        ]
        seen = None
        if args.as_published or any(record.image for record in chosen):
            seen = torch.stack([kept[r] if kept else torch.from_numpy(pixels(r, image)) for r in chosen])
        found = collate(samples, seen, stage.limit, as_published=args.as_published)
        moved = {name: value.to(run.device) for name, value in vars(found).items() if value is not None}
        return replace(found, **moved)

    def check() -> dict[str, float]:
        parts = [held_out[i : i + plan.micro] for i in range(0, len(held_out), plan.micro)]
        return score(trainee, [lambda part=part: batch(part) for part in parts])

    settings = asdict(stage) | {
        "model": str(args.model.resolve()),
        "data": digest(args.data),
        "held-out": digest(share) if isinstance(share, Path) else share,
        "images": str(args.images.resolve()),
        "mix": [(digest(file), str(images.resolve())) for file, images in args.mix],
        "batch": plan.batch,
        "samples at once": plan.micro if args.as_published else None,
        "precision": args.precision or f"{precision}, {dtype}",
        "as published": args.as_published,
        **{name: value and str(value) for name, value in source.items()},
    }
    history = fit(
        "finetune",
        args.out,
        trainee,
        optimizer,
        lambda step, i: batch([plan.records[n] for n in plan.chosen(step, i)]),
        plan.steps,
        micro_batches=plan.batch // plan.micro,
        share=plan.share,
        warmup=stage.warmup,
        clip=stage.clip,
        seed=stage.seed,
        settings=settings,
        silent=args.as_published,
        check=check if held_out else None,
        check_every=args.check_every or max(1, plan.steps // 10),
        workers=args.workers,
    )
    if run.is_main_process:
        if not result.exists():
            save(trainee, result, stage)
        shutil.rmtree(args.out / "features", ignore_errors=True)
        for step, measured in history.checks[-1:]:
            known = f"loss {measured['loss']:.3f}, {100 * measured['exact']:.1f} % exact matches"
            tell(f"held-out part after step {step}: {known}")
        tell(f"how the loss went: {args.out / 'finetune.png'}")
        print(result)
    run.wait_for_everyone()


def prepare(args: argparse.Namespace, result: Path) -> None:
    """Makes the folders that are written to; says now what is in the way of the result."""
    for folder in filter(None, (args.out, args.features)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            found = f"cannot be made ({error.strerror})"
            raise UserError(folder, found, "a folder", "name another") from None
        if not os.access(folder, os.W_OK):
            raise UserError(folder, "cannot be written", "a folder that can", "name another")
    if args.model.exists() and args.out.samefile(args.model):
        raise UserError(args.out, "is MODEL itself", "a folder of its own", "name another for -o")
    if result.exists() and not (args.out / "finetune.pt").exists():
        raise UserError(result, "is there, and not of this run", "nothing", "name another folder for -o")


def choose_precision(wanted: str | None, trains: str) -> tuple[str, Any]:
    """What accelerate computes in, and the type of the weights as they are loaded."""
    import torch

    from tools.training.loop import quick_precision

    quick = quick_precision()
    wanted = wanted or ("float32" if quick == "no" else "mixed")
    if wanted == "float32":
        return "no", torch.float32
    if wanted == "bf16":
        return "no", torch.bfloat16
    half = "fp16" if quick == "fp16" else "bf16"
    return half, torch.float32 if trains == "all" else {"bf16": torch.bfloat16, "fp16": torch.float16}[half]


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
