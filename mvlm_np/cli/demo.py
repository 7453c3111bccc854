"""Asks the embedded demo model about the embedded pictures: no download, no network, a few seconds.

example:
  mvlm demo
  mvlm demo --html demo.html      # with the pictures, and where the model looked
"""

import argparse
from time import perf_counter

from mvlm_np.cli import options
from mvlm_np.cli.calls import place
from mvlm_np.demo import MODEL


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", type=place, help="write one page with pictures and answers")
    parser.add_argument("--json", action="store_true", help="print questions, answers and times as JSON")
    options.add_model(parser, "the model in the box")
    parser.set_defaults(model=str(MODEL))


def run(args: argparse.Namespace) -> int:
    import json

    from mvlm_np import pages
    from mvlm_np.cli.progress import load_with_bar
    from mvlm_np.demo.asking import ask_all
    from mvlm_np.demo.page import write_page

    if args.html:
        pages.check(args.html)
    start = perf_counter()
    model = load_with_bar(**options.model_arguments(args))
    loaded, shown = perf_counter() - start, []
    for picture in ask_all(model, attention=args.html is not None):
        shown.append(picture)
        if not args.json:
            print(f"{picture.picture}  ({1000 * picture.seconds:.0f} ms to encode)")
            for asked in picture.asked:
                differs = "" if asked.answer == asked.expected else f"  [expected: {asked.expected}]"
                print(f"  {asked.question}  {asked.answer}{differs}  ({1000 * asked.seconds:.0f} ms)")
    if args.html:
        write_page(args.html, shown)
    every = [asked for picture in shown for asked in picture.asked]
    right = sum(asked.answer == asked.expected for asked in every)
    if args.json:
        keys = ("question", "expected", "answer", "seconds")
        pictures = [
            {
                "picture": picture.picture,
                "encode_seconds": picture.seconds,
                "asked": [{key: getattr(asked, key) for key in keys} for asked in picture.asked],
            }
            for picture in shown
        ]
        print(json.dumps({"load_seconds": loaded, "right": right, "of": len(every), "pictures": pictures}))
    else:
        print(f"{right} of {len(every)} as expected; loaded in {loaded:.2f} s")
    return 0
