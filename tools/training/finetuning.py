"""A whole run, from a model and data to what it has learned: what tools/finetune.py's options mean."""

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.config import ImageConfig
from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import Tokenizer, make
from tools.training.adapter import add_adapter
from tools.training.batch import Batch, collate
from tools.training.features import Features, fits
from tools.training.lessons import hold_out, lessons
from tools.training.loop import accelerator, fit, quick_precision
from tools.training.memory import Run, require
from tools.training.network import Trainee, load, open_for_training
from tools.training.pictures import pixels
from tools.training.products import compute_in_float32
from tools.training.records import Record, read_records
from tools.training.saving import save
from tools.training.scoring import score
from tools.training.stages import Stage, parameter_groups, stage_for
from tools.training.wording import report, sample

NAME = "finetune"  # of the checkpoint and the curve
FEATURES = ".finetune-features"  # in OUT, where nobody keeps a folder of his own under this name
HELD_OUT = 0.05
MICRO_BATCH = 8
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def finetune(args: argparse.Namespace) -> None:
    """Trains as the options say; writes all to `args.out`, and prints where the result is."""
    source = {"vision_tower": args.vision_tower, "projector": args.projector}
    checkpoint = open_for_training(args.model, args.as_published, **source)
    stage = recipe(args, checkpoint)
    result = args.out / ("adapter" if stage.trains == "lora" else "model")
    make_folders(args, result)
    args.precision = args.precision or ("float32" if quick_precision() == "no" else "mixed")
    computed, stored = precision(args.precision, stage)
    run = accelerator(computed)
    records, held_out = read_data(args, stage)
    tokenizer = make(checkpoint.read_tokenizer(), checkpoint.config.decoder.vocab_size)
    held_out = with_answers(held_out, tokenizer, stage)
    plan = lessons(
        records,
        tokenizer,
        stage,
        args.micro_batch or (stage.micro if args.as_published else MICRO_BATCH),
        run.num_processes,
        open_=[name for name in ("batch", "epochs") if getattr(args, name) is None],
        as_published=args.as_published,
        told=tell,
    )
    counted = f"{len(plan.records)} records, {len(held_out)} held out"
    tell(f"{stage.name}: {counted}; {plan.steps} steps of {plan.batch} samples, {plan.micro} at once")

    needed = Run(checkpoint, stage, args.precision, plan.micro, plan.longest, args.checkpointing)
    tell(require(needed))
    run.wait_for_everyone()  # before any process takes of the memory that the others count
    trainee = load(args.model, as_published=args.as_published, dtype=stored, seed=stage.seed, **source)
    optimizer = ready(trainee, stage, args)
    image = replace(checkpoint.config.image, aspect_ratio=stage.aspect)
    kept = keep_features(args, trainee, image, [*plan.records, *held_out])
    read = Reader(tokenizer, stage, image, kept, args.as_published)

    def check() -> dict[str, float]:
        parts = [held_out[i : i + plan.micro] for i in range(0, len(held_out), plan.micro)]
        return score(trainee, [lambda part=part: read(part) for part in parts])

    drops = stage.trains == "lora" and stage.dropout > 0
    settings = asdict(stage) | {
        "model": f"{args.model.resolve()} (sha256 {digest_of_model(checkpoint)})",
        "data": digest(args.data),
        "held-out": digest(args.held_out) if isinstance(args.held_out, Path) else args.held_out,
        "images": str(args.images.resolve()),
        "mix": [(digest(file), str(images.resolve())) for file, images in args.mix],
        "batch": plan.batch,
        "epochs": plan.epochs,
        # Else it does not matter how a step is cut.
        "micro-batches": plan.micro_batches if args.as_published or drops else None,
        "precision": f"{computed}, {stored}",
        "as published": args.as_published,
        **{name: value and str(value) for name, value in source.items()},
    }
    history = fit(
        NAME,
        args.out,
        trainee,
        optimizer,
        lambda step, i: read([plan.records[n] for n in plan.chosen(step, i)]),
        plan.steps,
        micro_batches=plan.micro_batches,
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
    if run.is_main_process and not result.exists():
        save(trainee, result, stage)
    if run.is_main_process:
        if not args.features:
            shutil.rmtree(args.out / FEATURES, ignore_errors=True)
        for step, found in history.checks[-1:]:
            known = f"loss {found['loss']:.3f}, {100 * found['exact']:.1f} % exact matches"
            tell(f"held-out part after step {step}: {known}")
        tell(f"how the loss went: {args.out / NAME}.png")
        print(result)
    run.wait_for_everyone()


def tell(line: str) -> None:
    accelerator().print(f"{NAME}: {line}", file=sys.stderr)


# ---------------------------------------------------------------- what is asked for


def recipe(args: argparse.Namespace, checkpoint: Checkpoint) -> Stage:
    """The published recipe with the numbers that the options put in place of its own."""
    if args.rank and not args.alpha:
        args.alpha = 2.0 * args.rank
    stage = stage_for(args.stage, checkpoint.config)
    given = {field.name: getattr(args, field.name, None) for field in fields(stage)}
    if stage.trains == "lora" and args.projector and checkpoint.config.vision_in_checkpoint:
        found = f"a new {args.projector} with --stage lora, whose adapter would hold no vision tower"
        fix = "make a model with --stage pretrain first, and give that to --stage lora"
        raise UserError("--projector", found, "a projector that is part of MODEL", fix)
    if args.projector and args.projector_rate == 0:
        raise UserError("--projector-rate", "0 for a new projector", "more, as it has learned nothing yet")
    return replace(stage, **{name: value for name, value in given.items() if value is not None})


def make_folders(args: argparse.Namespace, result: Path) -> None:
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
    if result.exists() and not (args.out / f"{NAME}.pt").exists():
        raise UserError(result, "is there, and not of this run", "nothing", "name another folder for -o")


def read_data(args: argparse.Namespace, stage: Stage) -> tuple[list[Record], list[Record]]:
    """The records to train with, and those to score by."""
    if args.held_out is None:
        args.held_out = 0.0 if args.as_published else HELD_OUT
    records = read_records(args.data, args.images, as_published=args.as_published)
    if isinstance(args.held_out, Path):
        held_out = read_records(args.held_out, args.images)
    else:
        records, held_out = hold_out(records, args.held_out, stage.seed, tell)
    for file, images in args.mix:
        records += read_records(file, images, as_published=args.as_published)
    known, asked = ({r.image.resolve() for r in part if r.image} for part in (records, held_out))
    if both := known & asked:
        tell(f"the held-out part says too much: {len(both)} of its pictures are trained with, too")
    return records, held_out


def with_answers(held_out: Sequence[Record], tokenizer: Tokenizer, stage: Stage) -> list[Record]:
    """The records that can be scored by; says which cannot."""
    samples = [sample(record, tokenizer, stage.version, stage.limit) for record in held_out]
    for line in report(held_out, samples):
        tell(f"held-out part: {line}")
    found = [record for record, one in zip(held_out, samples, strict=True) if not one.silent]
    if held_out and not found:
        tell("held-out part: nothing is left of it, so nothing is scored")
    return found


def precision(wanted: str, stage: Stage) -> tuple[str, torch.dtype]:
    """What accelerate computes in, and the type of the weights as they are loaded."""
    if wanted != "mixed":
        return "no", {"float32": torch.float32, "bf16": torch.bfloat16}[wanted]
    half = "fp16" if quick_precision() == "fp16" else "bf16"
    return half, torch.float32 if stage.trains == "all" else HALF[half]


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def digest_of_model(checkpoint: Checkpoint) -> str:
    """Of all that a model is: settings, tokenizer and weights."""
    found = hashlib.sha256(repr(checkpoint.config).encode())
    for file in checkpoint.read_tokenizer().files.values():
        found.update(digest(file).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        found.update(np.ascontiguousarray(tensor.raw).data)
        tensor.forget()
    return found.hexdigest()[:16]


# ---------------------------------------------------------------- what is made of it


def ready(trainee: Trainee, stage: Stage, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Puts the model in the state in which it is trained, on its device."""
    if args.checkpointing:
        trainee.checkpoint_activations()
    if stage.trains == "lora":
        torch.manual_seed(stage.seed)
        add_adapter(trainee, stage)
    groups = parameter_groups(trainee, stage)
    if args.precision != "bf16":  # what moves in small steps needs float32
        for parameter in trainee.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainee.to(accelerator().device)
    if quick_precision() == "no":
        compute_in_float32(trainee)
    return torch.optim.AdamW(groups, fused=True)


def keep_features(
    args: argparse.Namespace, trainee: Trainee, image: ImageConfig, records: Sequence[Record]
) -> Features | None:
    """Where the frozen tower's features are kept; None if the tower is run in every step."""
    if args.as_published or args.no_features:
        return None
    if args.features or fits(trainee, records, args.out):
        return Features(trainee, image, args.features or args.out / FEATURES)
    tell("what the tower sees does not fit on the disk, so it is computed in every step")
    return None


@dataclass(frozen=True)
class Reader:
    """Makes batches of records, on the accelerator's device."""

    tokenizer: Tokenizer
    stage: Stage
    image: ImageConfig
    kept: Features | None
    as_published: bool

    def __call__(self, records: Sequence[Record]) -> Batch:
        stage, seen = self.stage, None
        samples = [
            sample(record, self.tokenizer, stage.version, stage.limit, as_published=self.as_published)
            for record in records
        ]
        if self.as_published or any(record.image for record in records):
            seen = torch.stack([self.look(record) for record in records])
        found = collate(samples, seen, stage.limit, as_published=self.as_published)
        there = {name: value for name, value in vars(found).items() if value is not None}
        return replace(found, **{name: value.to(accelerator().device) for name, value in there.items()})

    def look(self, record: Record) -> torch.Tensor:
        if self.kept:
            return self.kept[record]
        return torch.from_numpy(pixels(record, self.image, as_published=self.as_published))
