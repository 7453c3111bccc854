"""Looks for false alarms: sound candidates of random models that `mvlm golden compare` would call wrong.

    python tools/check_golden.py --models 200

For each model a golden is recorded with --float64, and again without its floors. Candidates are torch in
float32, float16 and bfloat16, and mvlm_np on either backend, with one thread, and in every packed kind. Each
is compared in its class. A line for each model says how near the nearest stage came to its bound; the end,
how near in all, by candidate. Exit code 1: there was a false alarm. It needs torch and transformers.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np
import torch
from PIL import Image

from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import compare
from mvlm_np.golden.format import Golden
from mvlm_np.golden.precision import STATIC
from mvlm_np.golden.record.floors import measure_floors
from mvlm_np.golden.record.recording import Question, record
from mvlm_np.loading import load
from mvlm_np.precisions import FOUR_BITS, PACKED
from mvlm_np.quantize import dequantize, quantize
from tools.parts import family, torch_reference
from tools.parts.random_checkpoint import make_checkpoint
from tools.parts.torch_reference import Reference

Stages = dict[str, np.ndarray]
QUESTION = "What is it?"


def random_member(rng: np.random.Generator) -> None:
    """Puts a random small model on the list of the family, under the name "random"."""

    def of(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    heads, kv = of((1, 1), (2, 1), (2, 2), (4, 2), (3, 1), (4, 4))
    head = int(of(4, 8, 16, 32))
    vision_heads = int(of(1, 2, 3))
    layers = int(rng.integers(1, 6))
    member = family.small(
        of("ldpnetv2", "ldpnetv2", "ldpnet", "mlp2x_gelu", "linear"),
        family.llama(heads * head, int(rng.integers(8, 200)), int(rng.integers(1, 6)), heads, kv),
        int(rng.integers(64, 512)),
        (vision_heads * int(of(4, 6, 8, 16)), int(rng.integers(8, 160)), layers, vision_heads),
        of((28, 4), (35, 5), (40, 8), (48, 4), (56, 7), (84, 14)),
        mm_vision_select_feature=of("patch", "patch", "cls_patch"),
        image_aspect_ratio=of("pad", "square"),
        rms_norm_eps=of(1e-6, 1e-5),
        mm_vision_select_layer=-int(rng.integers(1, layers + 1)),
    )
    if member[0]["mm_projector_type"].startswith("ldp"):
        member[0]["mm_vision_select_feature"] = "patch"
    family.MEMBERS["random"] = member


def scaled(folder: Path, rng: np.random.Generator) -> None:
    """Multiplies the matrices of a checkpoint by a factor of the model's: attention is even, or sharp."""
    from safetensors.numpy import load_file, save_file

    factor = 2.0 ** rng.uniform(-1, 0.5)
    for path in folder.rglob("*.safetensors"):
        tensors = load_file(path)
        for name, w in tensors.items():
            if w.ndim > 1 and "embed" not in name:
                tensors[name] = (w * np.float32(factor)).astype(np.float32)
        save_file(tensors, path)


def in_torch(
    folder: Path,
    image: Path,
    dtype: torch.dtype = torch.float32,
    kind: str | None = None,
    question: str = QUESTION,
    static: bool = False,
) -> Stages:
    """Every stage as torch computes it in a type, or in float32 with matrices that were rounded to `kind`, or
    with the result of every module on 256 even steps."""

    class Changed(Reference):
        def state(self, part: str) -> dict[str, torch.Tensor]:
            found = super().state(part)
            return {name: fewer_bits(name, w, kind) if kind else w for name, w in found.items()}

    plain = torch_reference.pretrained, torch_reference.build_projector, torch_reference.to_numpy
    if static:
        torch_reference.pretrained = lambda *a: quantised(plain[0](*a))
        torch_reference.build_projector = lambda *a: quantised(plain[1](*a))
    if dtype != torch.float32:
        torch_reference.pretrained = lambda *a: cast(plain[0](*a), dtype)
        torch_reference.build_projector = lambda *a: cast(plain[1](*a), dtype)
        torch_reference.to_numpy = lambda tensors: plain[2]({n: t.float() for n, t in tensors.items()})
    try:
        arrays, _ = Changed(folder).run(image, question, 8, 1)
    finally:
        torch_reference.pretrained, torch_reference.build_projector, torch_reference.to_numpy = plain
    return {name: array[0] for name, array in arrays.items()}


def fewer_bits(name: str, w: torch.Tensor, kind: str) -> torch.Tensor:
    """A linear layer's matrix rounded to a packed kind; 4 bits are for the decoder's blocks only, as ours."""
    if w.ndim != 2 or "embed" in name:
        return w
    kept = kind if name.startswith("model.layers.") else "int8"
    return torch.from_numpy(dequantize(*quantize(w.numpy(), kept, "fast")))


def quantised(module: Any) -> Any:
    """The module with the result of each of its innermost modules quantised, one range for a whole tensor."""

    def after(module: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return output
        low, high = min(output.min().item(), 0.0), max(output.max().item(), 0.0)
        scale = (high - low) / 255 or 1.0
        return torch.fake_quantize_per_tensor_affine(output, scale, round(-low / scale), 0, 255)

    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(after)
    return module


def cast(module: Any, dtype: torch.dtype) -> Any:
    """The module computing in `dtype` on float32 inputs, with float32 results."""

    def to(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        return tuple(to(v, dtype) for v in value) if isinstance(value, tuple | list) else value

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return to(args, dtype), {key: to(value, dtype) for key, value in kwargs.items()}

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output.float()
        for key in list(output.keys()):
            output[key] = to(output[key], torch.float32)
        return output

    for parameter in module.parameters():  # and no buffers: the rotary frequencies stay float32
        parameter.data = parameter.data.to(dtype)
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, with_kwargs=True)
    return module


def candidates(
    folder: Path, image: Path, question: Question
) -> Iterator[tuple[str, str, Callable[[], Stages]]]:
    """(what it is, its class, what computes it)"""
    yield "torch", "float32", lambda: in_torch(folder, image)
    yield "torch float16", "float16", lambda: in_torch(folder, image, torch.float16)
    yield "torch bfloat16", "bf16", lambda: in_torch(folder, image, torch.bfloat16)
    yield "torch, static int8", STATIC, partial(in_torch, folder, image, kind="int8", static=True)
    for precision, kind in PACKED.items():
        yield f"torch, {precision}", class_of(precision), partial(in_torch, folder, image, kind=kind)

    def ours(precision: str, backend: str, threads: int | None = None) -> Callable[[], Stages]:
        def run() -> Stages:
            return record(load(folder, precision, backend, threads), question)

        return run

    yield "numba", "float32", ours("float32", "numba")
    yield "numba, 1 thread", "float32", ours("float32", "numba", 1)
    yield "numpy, 1 thread", "float32", ours("float32", "numpy", 1)
    for precision in PACKED:
        yield precision, class_of(precision), ours(precision, "numba")


def class_of(precision: str) -> str:
    """The golden class: both kinds of 4 bits are in one."""
    return "int4" if precision in FOUR_BITS else precision


def nearest(result: Any) -> tuple[float, str]:
    """How near the nearest stage came to its bound, 1 being there."""
    measured = [
        (s, s.distance, s.bound)
        for s in result.stages
        if s.distance and s.bound and s.verdict != "not judged"
    ]
    return max(
        ((max(d.rms / b.rms, d.relative / b.relative), s.name) for s, d, b in measured), default=(0.0, "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--models", type=int, default=20, metavar="N", help="how many (20)")
    top.add_argument("--seed", type=int, default=0, metavar="N", help="of the first (0)")
    args = top.parse_args(argv)
    torch.set_num_threads(1)
    alarms, worst = 0, dict[tuple[str, str], float]()
    for seed in range(args.seed, args.seed + args.models):
        rng = np.random.default_rng(seed)
        with TemporaryDirectory() as temporary:
            folder, image = Path(temporary) / "model", Path(temporary) / "picture.png"
            random_member(rng)
            make_checkpoint("random", folder, seed=seed, dtype="float32")
            scaled(folder, rng)
            pixels = rng.integers(0, 256, (int(rng.integers(8, 30)), int(rng.integers(8, 30)), 3), np.uint8)
            Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(image)
            question = Question(QUESTION, image, max_new_tokens=8)
            model = load(folder, "float32", "numpy")
            stages = record(model, question)
            floors = measure_floors(folder, model, question, stages)
            goldens = {"floors": Golden(stages, {}, floors), "house bounds": Golden(stages)}
            line = []
            for what, kind, compute in candidates(folder, image, question):
                found = Candidate(compute())
                for known, golden in goldens.items():
                    result = compare(golden, found, kind)
                    near, name = nearest(result)
                    worst[what, known] = max(worst.get((what, known), 0.0), near)
                    line.append(f"{near:.2f}")
                    if not result.right:
                        alarms += 1
                        first = result.first_wrong
                        print(f"seed {seed}: FALSE ALARM, {what}, {known}: {near:.2f} {name} {first}")
            print(f"seed {seed} {model.config.mm_projector_type}: {' '.join(line)}", flush=True)
    print(f"{alarms} false alarms; the nearest to a bound:")
    for (what, known), near in worst.items():
        print(f"  {what:20} {known:14} {near:.2f}")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
