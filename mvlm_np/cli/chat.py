"""Talks about a picture, turn by turn. The picture is encoded once, and each turn reads only what is new.

An empty line, or the end of input (Ctrl-D), ends the conversation. One that fills the model's context goes on
without its oldest turns, and says so.

example:
  mvlm chat photo.jpg --model mtgv/MobileVLM_V2-1.7B
  mvlm chat panel.png                            # no model named: the embedded one, for drawn pictures
"""

import argparse
import os
import sys

from mvlm_np import demo
from mvlm_np.cli import options
from mvlm_np.errors import PromptError
from mvlm_np.paths import local


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="*", help="pictures; none for a conversation about text alone")
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")
    options.add_generation(parser)


def run(args: argparse.Namespace) -> int:
    named = args.model
    arguments = options.model_arguments(args, or_demo=True)
    from mvlm_np.cli.progress import ProgressWatch, load_with_bar
    from mvlm_np.generation import Settings

    for text in args.image:
        if text.split()[1:] and not os.path.exists(local(text)):
            fix = "a chat asks for the question when it has begun; mvlm ask takes it at once"
            raise PromptError(text, "there is no such picture", fix=fix)
    settings = options.settings(args)
    Settings(**settings)
    draft = options.draft(args)
    model = load_with_bar(**arguments)
    chat = model.chat(args.image or None, conv_mode=args.conv_mode, watch=ProgressWatch(), draft=draft)
    if not named:
        print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
    while question := _next_question():
        try:
            for piece in chat.stream(question, **settings):
                print(piece, end="", flush=True)
            print()
        except PromptError as error:  # too long, say: the conversation goes on without this question
            print(f"mvlm: {error}", file=sys.stderr)
    return 0


def _next_question() -> str:
    """The next line of input, or nothing at its end. A person gets a prompt; a pipe does not."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
