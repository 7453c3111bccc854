"""Answers a question, and shows how: where the model looked, and what it would have said at every depth.

Without --html and --json it prints the answer's tokens, each with its probability and the share of attention
that went to the picture.

example:
  mvlm look photo.jpg "What animal is this?" --html look.html --model mtgv/MobileVLM_V2-1.7B
  mvlm look panel.png "Is the lamp on?" --html look.html   # the embedded model, for drawn pictures
  mvlm look "Who are you?" --model MobileLLaMA-1.4B        # text alone
"""

import argparse
import sys
from pathlib import Path

from mvlm_np import demo
from mvlm_np.cli import options
from mvlm_np.cli.ask import require_question
from mvlm_np.cli.calls import place, whole


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="?", help="the picture; none for a question about text alone")
    parser.add_argument("question", help="comes last")
    parser.add_argument("--html", metavar="FILE", type=place, help="write one page that shows everything")
    parser.add_argument("--json", action="store_true", help="print the numbers")
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")
    group = parser.add_argument_group("answer")
    group.add_argument("--max-new-tokens", metavar="N", type=whole, default=64, help="at most this many (64)")
    group.add_argument("--conv-mode", metavar="NAME", default="v1", help="prompt template (v1)")


def run(args: argparse.Namespace) -> int:
    require_question([args.image] if args.image else [], args.question, "look")
    named = args.model
    arguments = options.model_arguments(args, or_demo=True)
    import json

    from mvlm_np import pages
    from mvlm_np.cli.progress import ProgressWatch, load_with_bar
    from mvlm_np.generation import Settings
    from mvlm_np.look.looking import look
    from mvlm_np.look.page import write_page
    from mvlm_np.look.report import report

    if args.html:
        pages.check(args.html)
    Settings(args.max_new_tokens)  # a bad setting shows before minutes of loading
    model = load_with_bar(**arguments)
    if not named:
        print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
    watch = ProgressWatch(args.max_new_tokens)
    try:
        found = look(
            model,
            args.image,
            args.question,
            max_new_tokens=args.max_new_tokens,
            conv_mode=args.conv_mode,
            watch=watch,
        )
    finally:
        watch.close()
    numbers = report(found, model, Path(named).resolve().name if named else "The demo model")
    if args.html:
        write_page(args.html, found, numbers)
        print(f"mvlm: wrote {args.html}", file=sys.stderr)
    if args.json:
        json.dump(numbers, sys.stdout, ensure_ascii=False)
        print()
        return 0
    print(numbers["answer"])
    if not args.html:
        print()
        for step in numbers["steps"]:
            line = f"{step['piece']!s:16} {step['probability']:7.1%}"
            if found.seen:
                line += f"   {sum(step['looked_at_picture']):6.1%} of attention to the picture"
            others = [f"{o['piece']} {o['probability']:.1%}" for o in step["likeliest"][1:3]]
            print(f"{line}   else {', '.join(others)}")
    return 0
