"""One optimizer step on any model folder: how long it takes, and how much memory, beside what was foretold.

    python tools/bench_training.py MODEL --stage lora --precision bf16 --checkpointing
    python tools/bench_training.py MODEL --stage finetune --precision bf16 --checkpointing

The sample is made up: one picture of noise, and ids drawn at random, half of which are learned. Nothing is
written. It needs the extra "train".
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np import memory
from tools.parts.arguments import at_least_1
from tools.parts.command import ended

KINDS = ("lora", "finetune", "pretrain")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("model", type=Path, metavar="MODEL")
    top.add_argument("--stage", choices=KINDS, default="lora")
    top.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    top.add_argument("--checkpointing", action="store_true", help="compute activations twice")
    top.add_argument("--samples", type=at_least_1, default=1, metavar="N", help="computed at once (1)")
    top.add_argument("--ids", type=at_least_1, default=256, metavar="N", help="of a sample (256)")
    top.add_argument("--steps", type=at_least_1, default=1, metavar="N", help="(1)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ended("bench_training", lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    import torch

    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
    from tools.training.adapter import add_adapter
    from tools.training.batch import Batch
    from tools.training.loop import quick_precision
    from tools.training.memory import Run, require
    from tools.training.network import load
    from tools.training.products import compute_in_float32
    from tools.training.stages import parameter_groups, stage_for
    from tools.training.wording import IGNORED

    checkpoint = open_checkpoint(args.model)
    stage = stage_for(args.stage, checkpoint.config)
    foretold = Run(checkpoint, stage, args.precision, args.samples, args.ids, args.checkpointing)
    print(f"{stage.name}: {require(foretold)}")

    began = time.perf_counter()
    trainee = load(args.model, dtype=torch.bfloat16 if args.precision == "bf16" else torch.float32)
    if args.checkpointing:
        trainee.checkpoint_activations()
    torch.manual_seed(stage.seed)
    if stage.trains == "lora":
        add_adapter(trainee, stage)
    optimizer = torch.optim.AdamW(parameter_groups(trainee, stage), fused=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainee.to(device).train()
    if quick_precision() == "no":
        compute_in_float32(trainee)
    print(
        f"loaded in {time.perf_counter() - began:.0f} s, peak {memory.text(memory.peak() or 0)}", flush=True
    )

    vision = checkpoint.config.vision
    assert vision is not None, "open_checkpoint gave a language model"
    ids = torch.randint(3, checkpoint.config.decoder.vocab_size, (args.samples, args.ids))
    labels = ids.clone()
    labels[:, : args.ids // 2] = IGNORED
    ids[:, 1] = IMAGE_TOKEN
    pixels = torch.randn(args.samples, 3, vision.image_size, vision.image_size)
    batch = Batch(
        *(part.to(device) for part in (ids, labels, torch.ones_like(ids, dtype=torch.bool), pixels))
    )
    for step in range(args.steps):
        began = time.perf_counter()
        loss = trainee(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken = time.perf_counter() - began
        print(f"step {step + 1}: loss {loss.item():.3f}, {taken:.0f} s, {peak(device)}", flush=True)


def peak(device: "torch.device") -> str:  # type: ignore[name-defined]  # noqa: F821
    import torch

    if device.type == "cuda":
        return f"peak {memory.text(torch.cuda.max_memory_allocated())} on the GPU"
    return f"peak {memory.text(memory.peak() or 0)}"


if __name__ == "__main__":
    sys.exit(main())
