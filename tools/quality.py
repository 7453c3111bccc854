"""How far rounded models are from the model they were made of, token by token.

    python tools/quality.py SMALL... --against FOLDER                 # English text that is on any machine
    python tools/quality.py SMALL --against FOLDER --text prose.txt
    python tools/quality.py SMALL --against FOLDER --pictures PHOTOS  # answers about the pictures in a folder
    python tools/quality.py mvlm_np/demo/model@int4 --against mvlm_np/demo/model --questions 4000

A model is a folder or a GGUF file; PATH@float32, PATH@int8 and PATH@int4 say how it is loaded. Rounded
weights loaded in float32 show what the weights alone cost; as stored, activations are rounded too.

All models read the same ids. KL is the Kullback-Leibler divergence of a model's next token from that of
--against, in nats: its mean, with the 95 % interval of that mean, and the 99th percentile. Perplexity is
that of the text; with pictures, of the answers that --against gives. --questions asks what
tools/evaluate_demo.py asks, and compares the scores question by question; that is for the model in the box.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.chat import Chat
from mvlm_np.cli.progress import bar, load_with_bar
from mvlm_np.errors import UserError
from mvlm_np.evaluation.scores import Judged
from mvlm_np.evaluation.statistics import difference
from mvlm_np.model import MobileVLM
from mvlm_np.precisions import LOADED
from tools.demo.evaluation import compared, evaluate
from tools.parts.arguments import at_least_1
from tools.parts.predictions import Quality, Reading, compare, pieces_of_text, predictions
from tools.parts.real_text import encode, manual

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
QUESTION = "Describe the picture."


def load(name: str, args: argparse.Namespace) -> MobileVLM:
    """A model by PATH or PATH@PRECISION."""
    path, precision = split(name)
    return load_with_bar(path_or_name=path, precision=precision, backend=args.backend, threads=args.threads)


def split(name: str) -> tuple[str, str | None]:
    """PATH@PRECISION -> PATH, PRECISION; None: as stored."""
    path, at, precision = name.rpartition("@")
    return (path, precision) if at and precision in LOADED else (name, None)


# ---------------------------------------------------------------- what is read


def answers_about(folder: Path, question: str, model: MobileVLM, tokens: int) -> Iterator[Reading]:
    """The model's own answers about a folder's pictures, up to so many tokens of them."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise UserError(folder, "holds no pictures", f"files that end in {', '.join(SUFFIXES)}")
    for picture in pictures:
        chat = Chat(model, picture)
        chat.ask(question, max_new_tokens=min(128, tokens))
        prompt, answer = chat.prompt_ids, chat.answer_ids
        # The token before the answer predicts its first; a picture is one id, but many positions.
        yield Reading(prompt + answer, picture, len(prompt) + len(chat.images[0]) - 2)
        if (tokens := tokens - len(answer)) <= 0:
            return


def sequences(args: argparse.Namespace, model: MobileVLM) -> list[Reading]:
    """What all models read, as the command line asks for."""
    if args.pictures:
        if not args.pictures.is_dir():
            raise UserError(args.pictures, "is no folder", "a folder of pictures")
        return list(answers_about(args.pictures, args.question, model, args.tokens))
    try:
        text = args.text.read_text("utf-8") if args.text else manual("evaluation")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(args.text, error, "a text in UTF-8") from None
    ids = encode(Path(split(args.against)[0]), model, text)
    if not 0 <= min(ids, default=-1) <= max(ids, default=0) < model.config.decoder.vocab_size or len(ids) < 2:
        raise UserError(args.text or "text", "gives no ids that this model has", "a longer text")
    return pieces_of_text(ids, args.tokens, args.window)


def print_table(rows: Sequence[Quality]) -> None:
    width = max(len(row.model) for row in rows)
    print(f"{'model':{width}} tokens perplexity     KL       ±  KL 99 %  same best")
    for row in rows:
        print(
            f"{row.model:{width}} {row.tokens:6} {row.perplexity:10.3f} {row.kl:6.4f} "
            f" {row.kl_interval:6.4f} {row.kl_99:8.3f} {row.same_best:10.1%}"
        )


# ---------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("models", metavar="MODEL", nargs="+", help="PATH, or PATH@PRECISION")
    top.add_argument("--against", metavar="MODEL", required=True, help="the model before rounding")
    source = top.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="FILE", type=Path, help="default: a half of Python's manual")
    source.add_argument("--pictures", metavar="FOLDER", type=Path, help="answers about these, not a text")
    source.add_argument(
        "--questions",
        metavar="N",
        type=at_least_1,
        help="scores of so many questions about scenes, not a text",
    )
    top.add_argument("--question", default=QUESTION, help=f"with --pictures ({QUESTION})")
    top.add_argument("--tokens", metavar="N", type=at_least_1, default=2048, help="at most so many (2048)")
    top.add_argument("--window", metavar="N", type=at_least_1, default=512, help="tokens read together (512)")
    top.add_argument("--backend", metavar="B", default="auto", help="auto, numba or numpy")
    top.add_argument("--threads", metavar="N", type=at_least_1)
    top.add_argument("--json", action="store_true", help="print the figures as JSON")
    return top


def by_predictions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of KL and perplexity, printed unless --json asks for figures alone."""
    reference = load(args.against, args)
    read = sequences(args, reference)
    with bar("predict", len(read) * (len(args.models) + 1)) as shown:
        true = []
        for sequence in read:
            true.append(predictions(reference, sequence)[0])
            shown.update()
        rows = [compare(args.against, reference, read, true)]
        del reference
        for name in args.models:
            rows.append(compare(name, load(name, args), read, true, shown.update))
    if not args.json:
        print_table(rows)
    return [asdict(row) for row in rows]


def by_questions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The paired scores, printed unless --json asks for figures alone."""
    answers: dict[str, list[Judged]] = {}
    with bar("questions", args.questions * (len(args.models) + 1)) as shown:
        for name in (args.against, *args.models):
            answers[name] = evaluate(load(name, args), count=args.questions, progress=shown.update)
    rows = []
    for name in args.models:
        found = difference("demo", answers[name], answers[args.against])
        rows.append({"model": name} | asdict(found))
        if not args.json:
            print(f"{name} against {args.against}: {compared(found)}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        rows = by_questions(args) if args.questions else by_predictions(args)
    except UserError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"against": args.against, "models": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
