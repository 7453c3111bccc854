"""Compares mvlm_np with torch and transformers on a checkpoint of any size, stage by stage.

    python tools/make_checkpoint.py MobileVLM_V2-1.7B V2-1.7B
    python tools/compare_torch.py V2-1.7B examples/chelsea.jpg "What animal is this?"

Both compute in float32, and each is in memory alone: torch first, then mvlm_np on each backend asked for.
An error is the largest difference within a stage, as a part of the stage's largest magnitude:

    alone   each stage is fed what torch's stage was fed, so an error is that stage's own
    chain   from picture and prompt to the end, each stage fed by the one before

A `decode` step runs through all layers on torch's cache, so it is a chain in either case. Exit code 1:
a stage alone is off by more than 5e-6, a chain by more than 5e-5, or a token differs.
It needs torch and transformers (the extra "test").
"""

import argparse
import gc
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np

from mvlm_np.cli.progress import ProgressWatch, load_with_bar
from mvlm_np.errors import UserError
from mvlm_np.model import MobileVLM
from mvlm_np.session import Session
from mvlm_np.trace import Recorder
from tools.parts.torch_reference import Arrays, run_with_bar

BOUNDS = {"alone": 5e-6, "chain": 5e-5}
Errors = dict[str, float]  # a stage's name -> its error


class Comparison(ProgressWatch):
    """Sees a run of mvlm_np and compares it with torch's stages.

    alone  put torch's numbers in the place of ours once they are compared: the next stage starts right
    """

    everything = True

    def __init__(self, reference: Arrays, alone: bool):
        super().__init__()
        self.reference, self.alone = reference, alone
        self.errors: Errors = {}
        self.latest = np.empty(0, np.float32)

    def __call__(self, name: str, array: np.ndarray) -> None:
        super().__call__(name, array)
        theirs = self.reference[name][0]
        self.errors[name] = float(np.abs(array - theirs).max() / np.abs(theirs).max())
        if self.alone:
            array[...] = theirs
        self.latest = array


def compare(model: MobileVLM, image: Path, reference: Arrays, alone: bool) -> tuple[Errors, int]:
    """The error of every stage, and how many of torch's greedy tokens are ours too."""
    watch, decoder = Comparison(reference, alone), model.decoder
    tokens = model.encode_image(image, exif=False, watch=watch)
    x, keys = model.embed(reference["input_ids"][0].tolist(), [tokens])
    watch("inputs_embeds", x)

    generated = reference["generated_ids"][0]
    session = Session(decoder, model.config.decoder, model.ops)
    first = session.prefill(x, keys, len(generated), watch, chunk=len(x))
    watch("logits", decoder.lm_head(watch.latest))
    hidden, logits = [], []
    for i in range(len(generated)):
        step = Recorder()
        with watch.phase("decode"):
            logits.append(decoder.lm_head(session.forward(decoder.embed_tokens(generated[i : i + 1]), step)))
        hidden.append(step.arrays["decoder.hidden_states.1"])
    watch("decode.hidden_states.1", np.concatenate(hidden))
    watch("decode.logits", rows := np.concatenate(logits))
    ours = np.array([first.argmax(), *rows[:-1].argmax(axis=1)])
    return watch.errors, int((ours == generated).sum())


def table(results: Mapping[str, Errors]) -> str:
    """A column for each run, a row for each group of stages with the worst error among them."""
    runs = [worst_of_groups(errors) for errors in results.values()]
    lines = [row(group, [f"{worst[group]:.1e}" for worst in runs]) for group in runs[0]]
    return "\n".join([row("stages", results), *lines])


def worst_of_groups(errors: Errors) -> Errors:
    """One group are stages whose names differ only in a number, and all stages of the projector."""
    groups: Errors = {}
    for name, error in errors.items():
        group = "projector" if name.startswith("projector.") else re.sub(r"\.\d+$", "", name)
        groups[group] = max(error, groups.get(group, 0.0))
    return groups


def row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>15}" for cell in cells)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, metavar="FOLDER", help="the checkpoint")
    top.add_argument("image", type=Path, metavar="IMAGE")
    top.add_argument("question", metavar="QUESTION")
    top.add_argument(
        "--backend", action="append", choices=("numpy", "numba"), help="may be repeated; default: numpy"
    )
    top.add_argument("--max-new-tokens", type=int, default=8, metavar="N", help="default: 8")
    top.add_argument("--json", action="store_true", help="every stage's error instead of the table")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        reference, _ = run_with_bar(
            args.folder, args.image, args.question, max_new_tokens=args.max_new_tokens, num_beams=1
        )
        gc.collect()  # torch's part; transformers' modules refer to themselves
        results, same = {}, {}
        for backend in args.backend or ["numpy"]:
            model = load_with_bar(path_or_name=args.folder, precision="float32", backend=backend)
            for kind in BOUNDS:
                run = f"{backend} {kind}"
                results[run], same[run] = compare(model, args.image, reference, kind == "alone")
            del model
    except (UserError, OSError) as error:
        print(f"compare_torch: {error}", file=sys.stderr)
        return 2
    total = reference["generated_ids"].size
    if args.json:
        print(json.dumps({"errors": results, "same_tokens": same, "tokens": total}, indent=2))
    else:
        print(table(results))
        print(row("tokens that agree", [f"{n} of {total}" for n in same.values()]))
    close = all(within_bounds(errors, run.endswith("alone")) for run, errors in results.items())
    return 0 if close and set(same.values()) == {total} else 1


def within_bounds(errors: Errors, alone: bool) -> bool:
    return all(
        error <= BOUNDS["alone" if alone and not name.startswith("decode.") else "chain"]
        for name, error in errors.items()
    )


if __name__ == "__main__":
    sys.exit(main())
