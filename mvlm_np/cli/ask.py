"""Asks a question about one picture or several; the answer appears as it is generated.

example:
  mvlm ask photo.jpg "What does the sign say?" --model mtgv/MobileVLM_V2-1.7B
  mvlm ask panel.png "Is the lamp on the left on?"  # no model named: the embedded one, for drawn pictures
  mvlm ask bill.jpg "What was paid?" --schema schema.json  # JSON that fits, for a script
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from time import perf_counter

from mvlm_np import demo
from mvlm_np.cli import options


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="*", default=[], help="pictures; none for a question about text alone")
    parser.add_argument("question", help="comes last")
    parser.add_argument(
        "--schema", metavar="S", help="a JSON schema, or its file: the answer is JSON that fits it"
    )
    parser.add_argument("--json", action="store_true", help="print text, ids, token counts and times")
    options.add_model(parser, "$MVLM_MODEL, else the model in the box")
    options.add_generation(parser)


def run(args: argparse.Namespace) -> int:
    require_question(args.image, args.question)
    named = args.model
    arguments = options.model_arguments(args, or_demo=True)
    import json

    from mvlm_np.cli.progress import ProgressWatch, load_with_bar
    from mvlm_np.generation import Settings

    settings = options.settings(args)
    Settings(**settings)  # a bad setting shows before minutes of loading, and so do a bad schema and draft
    schema = None if args.schema is None else read_schema(args.schema)
    draft = options.draft(args)
    start = perf_counter()
    model = load_with_bar(**arguments)
    loaded = perf_counter() - start
    shown = not args.json and args.num_beams == 1
    watch = ProgressWatch(None if shown else args.max_new_tokens)
    try:
        chat = model.chat(args.image or None, conv_mode=args.conv_mode, watch=watch, draft=draft)
        if not named:
            print(f"mvlm: note: {demo.NOTE}", file=sys.stderr)
        text = ""
        for piece in chat.stream(args.question, schema=schema, **settings):
            text += piece
            if not args.json:
                print(piece, end="", flush=True)
    finally:
        watch.close()
    if not args.json:
        print()
        return 0
    result = {
        "text": text,
        "ids": chat.answer_ids,
        "prompt_tokens": len(chat.prompt_ids),
        "image_tokens": sum(len(image) for image in chat.images),
        "new_tokens": len(chat.answer_ids),
        **{f"{what}_tokens": watch.counts.get(what, 0) for what in ("drafted", "accepted")},
        "seconds": {"load": loaded, **watch.seconds},
    }
    json.dump(result, sys.stdout, ensure_ascii=False)
    print()
    return 0


def read_schema(given: str) -> object:
    """The schema that is given, as text or by its file. SchemaError: it is none, or none that can be kept."""
    import json

    from mvlm_np.checkpoints.sniff import why_unreadable
    from mvlm_np.constrained.schema import compile
    from mvlm_np.errors import SchemaError
    from mvlm_np.paths import local

    where, text = "--schema", given.encode(errors="surrogateescape")
    if not given.lstrip().startswith("{"):
        where = local(given, "--schema")
        try:
            with open(where, "rb") as file:
                text = file.read()
        except OSError as reason:
            found, fix = why_unreadable(Path(where), reason)
            raise SchemaError(where, found, "a JSON schema or its file", fix) from None
    try:
        schema = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise SchemaError(where, f"is not JSON: {error}") from None
    compile(schema)
    return schema


def require_question(pictures: list[str], question: str, verb: str = "ask") -> None:
    """PromptError: the question was forgotten, stands before a picture, or lacks its quotes."""
    if not question:
        return  # is asked as it is
    from mvlm_np.errors import PromptError

    # A path that leads nowhere is told as that, when pictures are read.
    words = [t for t in pictures if not _is_file(t) and (t.split()[1:] or not {".", os.sep} & {*t})]
    if _is_file(question):
        if words:
            raise PromptError(words[0], "stands before a picture", "the question last")
        fix = f'mvlm {verb} {shlex.join([*pictures, question])} "What is this?"'
        raise PromptError("the question", f"is missing, for {question} is a file's name", fix=fix)
    if words:
        rest = [text for text in pictures if text not in words]
        fix = f"mvlm {verb} {shlex.join([*rest, ' '.join([*words, question])])}"
        raise PromptError(words[0], "there is no such picture", "a question of several words in quotes", fix)


def _is_file(text: str) -> bool:
    """Whether an argument is a file or folder, or is called as a picture that is not there would be."""
    from mvlm_np.paths import local

    path = local(text)
    if text.split()[1:]:  # no question is taken for a name because of how it ends
        return os.path.isfile(path)
    named = text.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".gif"))
    return named or os.path.isfile(path) or (os.sep in path and os.path.isdir(path))
