"""What a model reads while it is calibrated: pictures, questions and its own answers, or text.

    reading_of(FOLDER, ...)  pictures of the user's; about each are asked the questions in the text beside it
                             (photo.txt for photo.jpg), else those in questions.txt, else a few general ones
    drawn(FOLDER)            the pictures in the package
    Reading()                what a model without a vision tower writes itself, begun with nothing

Such a model reads the texts in a user's folder. No data set is needed.
"""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from mvlm_np.backend import Ops, with_int8_attention
from mvlm_np.batch import Batch
from mvlm_np.chat import Chat
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.loader import Loader
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import UserError
from mvlm_np.generation import Choice, Settings
from mvlm_np.loading import bind, open_tokenizer
from mvlm_np.model import MobileVLM

QUESTIONS = ("Describe the picture.", "What do you see?", "Which colours are in the picture?")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ANSWER = 64  # tokens of an answer, at most
TEXTS, LENGTH = 16, 384  # how many texts a model writes itself, and their tokens
SEED = 0

# The embeddings that the decoder reads: float32 (T, D) for each sequence.
Sequences = Iterator[np.ndarray]
Progress = Callable[[int, int], object]  # called with how much is read, and how much there is


@dataclass(frozen=True)
class Reading:
    """Pictures with the questions about each, or texts; nothing at all: what a model writes itself."""

    pictures: tuple[tuple[Path, tuple[str, ...]], ...] = ()
    texts: tuple[Path, ...] = ()

    def digest(self) -> str:
        """Of all that is read."""
        found = sha256(repr((ANSWER, TEXTS, LENGTH, SEED, [asked for _, asked in self.pictures])).encode())
        for path in (*(picture for picture, _ in self.pictures), *self.texts):
            found.update(sha256(path.read_bytes()).digest())
        return found.hexdigest()

    def sequences(self, model: MobileVLM, progress: Progress = lambda done, total: None) -> Sequences:
        """What `model` makes of it, in an order that is drawn with a seed; no more is read than is taken.

        Its answers are greedy; texts of its own are drawn, each with a seed.
        """
        if self.pictures:
            return _answers(model, self.pictures, progress)
        return _texts(model, self.texts) if self.texts else _own_texts(model, progress)


def reading_of(folder: Path, pictures: bool) -> Reading:
    """What there is to read in a user's folder. pictures: whether the model sees any.

    UserError: the folder has nothing that this model can read.
    """
    if not folder.is_dir():
        raise UserError(folder, "is no folder", "a folder of pictures" if pictures else "a folder of texts")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    texts = tuple(path for path in files if path.suffix.lower() == ".txt")
    if not pictures:
        if not texts:
            raise UserError(folder, "holds no .txt files", "texts, which a model without pictures reads")
        return Reading(texts=texts)
    shown = [path for path in files if path.suffix.lower() in PICTURES]
    if not shown:
        raise UserError(folder, "holds no pictures", f"files that end in {', '.join(PICTURES)}")
    general = _lines(folder / "questions.txt") or QUESTIONS
    return Reading(tuple((path, _lines(path.with_suffix(".txt")) or general) for path in shown))


def drawn(folder: Path) -> Reading:
    """The pictures in the package, in this folder of it: each with its questions, and to be described."""
    entries = json.loads((folder / "questions.json").read_text("utf-8"))
    return Reading(tuple((folder / one["picture"], (*one["questions"], QUESTIONS[0])) for one in entries))


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a text that are not empty; none, where there is no such file."""
    if not path.is_file():
        return ()
    return tuple(line for line in map(str.strip, _text(path).splitlines()) if line)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error})", "a text in UTF-8") from None


def _answers(
    model: MobileVLM, pictures: Sequence[tuple[Path, tuple[str, ...]]], progress: Progress
) -> Sequences:
    """Each question with the model's answer, picture after picture."""
    for done, i in enumerate(np.random.default_rng(SEED).permutation(len(pictures))):
        progress(done, len(pictures))
        yield from _answers_about(model, *pictures[i])
        gc.collect()  # a chat that joined a batch refers to itself, and its cache is large


def _answers_about(model: MobileVLM, picture: Path, questions: Sequence[str]) -> list[np.ndarray]:
    """The questions about a picture, answered together."""
    chat, batch = Chat(model, picture), Batch()
    chats = [chat.fork() for _ in questions]
    for one, question in zip(chats, questions, strict=True):
        one.join(batch, question, max_new_tokens=ANSWER)
    members = list(batch.members)
    while batch.members:
        batch.step()
    for member in members:
        if member.error is not None:
            raise member.error
    return [model.embed(one.prompt_ids + one.answer_ids, one.images)[0] for one in chats]


def _texts(model: MobileVLM, paths: Sequence[Path]) -> Sequences:
    """Texts in pieces of `LENGTH` tokens."""
    pieces = list[list[int]]()
    for path in paths:
        ids = model.tokenizer.encode(_text(path))
        pieces += [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
    for i in np.random.default_rng(SEED).permutation(len(pieces)):
        yield model.embed(pieces[i], [])[0]


def _own_texts(model: MobileVLM, progress: Progress) -> Sequences:
    """What the model writes, begun with the token that begins every text; drawn from all tokens."""
    config = model.config.decoder
    length = min(LENGTH, config.max_position_embeddings - 1)
    begin = [config.bos_token_id]
    batch, choices = Batch(), list[Choice]()
    x, at = model.embed(begin, [])
    for seed in range(TEXTS):
        settings = Settings(length, temperature=1.0, top_k=None, seed=SEED + seed)
        choices.append(Choice(settings, lambda tokens: tokens[-1] in config.end_tokens))
        batch.join(model.session(), x, at, choices[-1], length)
    members, steps = list(batch.members), 0
    while batch.members:
        batch.step()
        progress(steps := steps + 1, length)
    for member in members:
        if member.error is not None:
            raise member.error
    yield from (model.embed(begin + choice.tokens, [])[0] for choice in choices)


def reader(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], ops: Ops) -> MobileVLM:
    """The checkpoint's model in int8, which answers almost as in floating point and takes less memory.

    Its vision tower is the one that goes with a decoder in int4.
    """
    loader = Loader(tensors, "int8", ops)
    weights = bind(checkpoint.config, loader)
    loader.finish()
    if checkpoint.config.vision:
        ops = with_int8_attention(ops)
    return MobileVLM(checkpoint.config, *weights, ops, lambda: open_tokenizer(checkpoint), cache="float16")
