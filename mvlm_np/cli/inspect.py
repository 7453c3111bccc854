"""Shows what a model on disk holds: its settings, its tensors, and the memory it needs. Reads no weights.

Exits with 1 if the tensors are not those that the settings ask for, or there is no sound tokenizer. With
--verify, everything is read instead: files of a model that `mvlm convert` wrote are compared with their
checksums, and of any other model the values are looked at; 1 if a file has changed, or weights are missing.

examples:
  mvlm inspect mtgv/MobileVLM_V2-1.7B
  mvlm inspect small --verify
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from mvlm_np import memory
from mvlm_np.precisions import MEANING


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="model folder or weight file")
    parser.add_argument("--vision-tower", metavar="PATH", help="folder of the CLIP model, if it is elsewhere")
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")
    parser.add_argument("--verify", action="store_true", help="read everything: checksums, or the values")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    if args.verify:
        return _verify(args)
    import json

    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.errors import UserError
    from mvlm_np.loading import bound_tensors, memory_needed, open_tokenizer
    from mvlm_np.precisions import LOADED

    checkpoint = open_checkpoint(args.path, args.vision_tower, args.mmproj)
    needed, problem, notes = {}, None, list(checkpoint.notes)
    try:
        tensors = bound_tensors(checkpoint)
        needed = {p or "as stored": memory_needed(checkpoint.config, tensors, p) for p in (None, *LOADED)}
        notes += open_tokenizer(checkpoint).notes()
    except UserError as error:
        problem = str(error)
    report = {
        "path": str(checkpoint.path),
        "config": asdict(checkpoint.config),
        "tensors": [
            {
                "name": t.name,
                "dtype": t.dtype,
                "shape": t.shape,
                "bytes": t.nbytes,
                "bits_per_value": 8 * t.nbytes / max(1, prod(t.shape)),
                "file": str(t.file.path),
            }
            for t in checkpoint.tensors.values()
        ],
        "memory": needed,
        "prefix": stored_prefix(checkpoint.path),
        "notes": notes,
        "problem": problem,
    }
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        _print(report)
    return 0 if problem is None else 1


def stored_prefix(path: Path) -> dict[str, Any] | None:
    """What a model folder's stored beginning of a prompt is, or what is wrong with it; None: it has none."""
    from mvlm_np import prefix
    from mvlm_np.errors import UserError

    file = path / prefix.NAME
    if not file.is_file():
        return None
    try:
        found = prefix.read(file)
    except UserError as error:
        return {"problem": f"{error} (it is not used)"}
    dtype, positions = str(found.keys.numbers.dtype), len(found.ids)
    return {"template": found.template, "positions": positions, "dtype": dtype, "bytes": file.stat().st_size}


def _verify(args: argparse.Namespace) -> int:
    import json

    from mvlm_np.checkpoints.record import NAME, verify
    from mvlm_np.cli.progress import counting_bytes
    from mvlm_np.paths import local

    path = Path(local(args.path))
    folder = path.parent if path.is_file() else path
    notes: list[str] = []
    with counting_bytes("verify") as count:
        if (folder / NAME).is_file():
            problems = verify(folder, count)
            sound = "every file is as it was written"
        else:
            tensors, problems, notes = examine_model(args.path, args.vision_tower, args.mmproj, count)
            sound = (
                f"there are no checksums, but all values of its {tensors} tensors are numbers, and not zeros"
            )
    if args.json:
        print(json.dumps({"path": args.path, "problems": problems, "notes": notes}))
    else:
        print("\n".join(problems) or f"{args.path}: {sound}")
        for note in notes:
            print(f"note: {note}")
    return 1 if problems else 0


def examine_model(
    path: str,
    vision_tower: str | None,
    mmproj: str | None,
    progress: Callable[[int, int], object],
) -> tuple[int, list[str], list[str]]:
    """Reads every value of a model: how many tensors it has, what is wrong with them, and notes on it.

    UserError: it cannot be loaded.
    """
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.checkpoints.soundness import examine
    from mvlm_np.loading import bound_tensors, open_tokenizer

    checkpoint = open_checkpoint(path, vision_tower, mmproj)
    tensors = bound_tensors(checkpoint)
    notes = open_tokenizer(checkpoint).notes()
    found = examine(tensors.values(), progress)
    return len(tensors), found.problems, [*checkpoint.notes, *notes, *found.notes]


def _print(report: dict[str, Any]) -> None:
    print(report["path"])
    for key, value in report["config"].items():
        if isinstance(value, dict):
            print(f"  {key}")
            for inner, v in value.items():
                print(f"    {inner:24} {v}")
        else:
            print(f"  {key:26} {value}")
    print("tensors")
    width = max((len(t["name"]) for t in report["tensors"]), default=0)
    for t in report["tensors"]:
        shape = " x ".join(map(str, t["shape"])) or "scalar"
        print(f"  {t['name']:{width}}  {t['dtype']:9} {t['bits_per_value']:6.3f} bits  {shape}")
    weights = sum(prod(t["shape"]) for t in report["tensors"])
    stored = sum(t["bytes"] for t in report["tensors"])
    each = f"{8 * stored / max(1, weights):.3f} bits each"
    print(f"  {len(report['tensors'])} tensors, {weights:,} values, {each}, {memory.text(stored)} on disk")
    for kind, count in Counter(t["dtype"] for t in report["tensors"]).items():
        if kind in MEANING:
            print(f"  {count} in {kind}, {MEANING[kind]}")
    print("memory of the weights, and of a conversation of 512 positions")
    for precision, size in report["memory"].items():
        print(f"  {precision:14} {memory.text(size)}")
    if prefix := report["prefix"]:
        about = (
            "{template}, {positions} positions in {dtype}, {size}" if "template" in prefix else "{problem}"
        )
        size = memory.text(prefix.get("bytes", 0))
        print(f"stored beginning of a prompt: {about.format(**prefix, size=size)}")
    for note in report["notes"]:
        print(f"note: {note}")
    if report["problem"]:
        print(f"problem: {report['problem']}")
