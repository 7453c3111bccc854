"""Runs a checkpoint in torch and writes every stage of one question to a golden file.

    python tools/make_golden.py FOLDER IMAGE QUESTION OUT.safetensors

Every stage is float32 with a leading batch axis of 1; the names are those of `model.trace`. Picture,
question, prompt and answer stand in the file's metadata. It needs torch and transformers (the extra "test").
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from safetensors.numpy import save_file

from mvlm_np.errors import UserError
from tools.parts.torch_reference import run_with_bar


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, metavar="FOLDER", help="the checkpoint")
    top.add_argument("image", type=Path, metavar="IMAGE")
    top.add_argument("question", metavar="QUESTION")
    top.add_argument("out", type=Path, metavar="OUT", help="the golden file to write")
    top.add_argument("--cases", action="store_true", help="note the case in cases.json beside OUT")
    top.add_argument("--max-new-tokens", type=int, default=24, metavar="N", help="default: 24")
    top.add_argument("--beams", type=int, default=3, metavar="N", help="default: 3; 1 leaves them out")
    top.add_argument("--beam-tokens", type=int, default=12, metavar="N", help="default: 12")
    return top


def note_case(golden: Path, about: dict[str, str]) -> None:
    """Puts a golden file on the list of its folder, in the place of what stood there of the same name."""
    path = golden.parent / "cases.json"
    listed = json.loads(path.read_text()) if path.exists() else []
    cases = {case["golden"]: case for case in listed} | {golden.name: {"golden": golden.name} | about}
    path.write_text(json.dumps(list(cases.values()), indent=1, ensure_ascii=False) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        arrays, about = run_with_bar(
            args.folder,
            args.image,
            args.question,
            max_new_tokens=args.max_new_tokens,
            num_beams=args.beams,
            beam_tokens=args.beam_tokens,
        )
        save_file(arrays, args.out, metadata=about)
        if args.cases:
            note_case(args.out, about | {"image": os.path.relpath(args.image, args.out.parent)})
    except (UserError, OSError) as error:
        print(f"make_golden: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(arrays)} stages; answer: {about['text']!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
