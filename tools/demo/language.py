"""Stages 1 and 2, upstream's: captions, then instructions on many tasks, with the vision tower frozen.

Since the tower does not change, its features are computed once and kept on disk. All questions about a
picture are read behind one copy of it: each sees the picture and itself, and none sees another.
"""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from tools.demo.data import Pictures, numbers, path
from tools.demo.network import features, optimizer, pixel_values, to_device
from tools.demo.questions import TASKS, Question, questions
from tools.demo.scenes import WORDS, scene
from tools.training.loop import History, accelerator, fit

CAPTIONS = ("place", "about", "list", "describe")
IGNORED = -100
BLOCK = 96  # tokens; nearly every description fits into it


# ---------------------------------------------------------------- the tokenizer


def train_tokenizer(vocabulary: int) -> bytes:
    """A SentencePiece model with LLaMA's settings, learnt from the questions and the v1 prompt."""
    texts = [render("v1", "Is")] * 400  # most of what every prompt begins with becomes whole words
    for number in range(1500):
        picture = scene("train", number)
        for question in questions(picture, Random(number)):
            answer = " ".join(question.answer) if question.task == "label" else question.answer
            texts.append(f"\n{question.text} ASSISTANT: {answer}")
    texts += [" ".join("".join(WORDS))] * 3
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


# ---------------------------------------------------------------- a picture and its questions, one sequence


class Tail(NamedTuple):
    """What follows the picture: a question and its answer, or several turns."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...]  # the id that should follow each; IGNORED where the user speaks


class Prompts:
    """Turns conversations into ids, exactly as they are asked later on."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        ids = tokenize_prompt(render("v1", "?"), tokenizer)
        self.prefix = ids[: ids.index(IMAGE_TOKEN)]
        self.tail = lru_cache(maxsize=1 << 17)(self._tail)

    def _tail(self, *turns: tuple[str, str]) -> Tail:
        ids: list[int] = []
        wanted: list[int] = []
        for i, (question, answer) in enumerate(turns):
            prompt = self._after_image(question, turns[:i])
            whole = self._after_image(question, turns[:i], answer)
            assert whole[: len(prompt)] == prompt, (question, answer)
            wanted += [IGNORED] * (len(prompt) - len(wanted) - 1)
            wanted += [*whole[len(prompt) :], self.tokenizer.eos_id]
            ids = whole
        return Tail(tuple(ids), tuple(wanted))

    def _after_image(self, question: str, history: Sequence[tuple[str, str]], answer: str = "") -> list[int]:
        text = render("v1", question, history=history) + (f" {answer}" if answer else "")
        ids = tokenize_prompt(text, self.tokenizer)
        return ids[ids.index(IMAGE_TOKEN) + 1 :]


class Packed(NamedTuple):
    """Sequences of B pictures: prefix and picture, P tokens, then blocks of W tokens that hold whole tails.

    T = P + blocks * W. Each tail sees the prefix, the picture and itself.
    """

    ids: Tensor  # (B, T); 0 where the picture is
    wanted: Tensor  # (B, T)
    positions: Tensor  # (B, T); each tail goes on where the picture ended
    mask: Tensor  # (B * blocks, 1, W, P + W), True where a block's tokens may look
    at: list[list[slice]]  # where each tail of each picture lies


def pack(prompts: Prompts, tails: Sequence[Sequence[Tail]], image_tokens: int) -> Packed:
    B, P = len(tails), len(prompts.prefix) + image_tokens
    W = max(BLOCK, *(len(tail.ids) for of_one in tails for tail in of_one))
    at = [_places([len(tail.ids) for tail in of_one], P, W) for of_one in tails]
    blocks = max((here.stop - P - 1) // W + 1 for of_one in at for here in of_one)
    T = P + blocks * W
    ids, positions = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    wanted, part = np.full((B, T), IGNORED), np.zeros((B, T), np.int16)
    positions[:, :P], ids[:, : len(prompts.prefix)] = np.arange(P), prompts.prefix
    for b, of_one in enumerate(tails):
        for number, (tail, here) in enumerate(zip(of_one, at[b], strict=True), 1):
            ids[b, here], wanted[b, here], part[b, here] = tail.ids, tail.wanted, number
            positions[b, here] = P + np.arange(len(tail.ids))
    part = part[:, P:].reshape(B * blocks, W)
    own = (part[:, :, None] == part[:, None, :]) & np.tri(W, dtype=bool)
    sees = np.concatenate([np.ones((B * blocks, W, P), bool), own], axis=2)
    ids, wanted, positions, mask = to_device(ids, wanted, positions, sees[:, None])
    return Packed(ids, wanted, positions, mask, at)


def _places(lengths: Sequence[int], P: int, W: int) -> list[slice]:
    """Puts each tail into the first block that has room for it."""
    filled: list[int] = []
    places = []
    for length in lengths:
        block = next((i for i, used in enumerate(filled) if used + length <= W), len(filled))
        filled += [0] * (block == len(filled))
        start = P + block * W + filled[block]
        places.append(slice(start, start + length))
        filled[block] += length
    return places


def hidden(decoder: Any, projector: nn.Module, seen: Tensor, packed: Packed, before: int) -> Tensor:
    """The decoder's last hidden state (B, T, D). seen: the tower's features (B, patches, V), before: the
    length of the prefix."""
    image = projector(seen)
    x = decoder.get_input_embeddings()(packed.ids)
    x = torch.cat([x[:, :before], image.to(x.dtype), x[:, before + image.shape[1] :]], dim=1)
    out = decoder.get_decoder()(
        inputs_embeds=x, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    )
    return out.last_hidden_state


# ---------------------------------------------------------------- what the frozen tower sees


@torch.inference_mode()
def write_features(tower: Any, pictures: Pictures, shard: int, folder: Path) -> None:
    """Computes the features of a shard, float16 (SHARD, patches, V), into `folder`, unless they are there."""
    place = path(folder, pictures.split, shard, "features")
    if place.exists():
        return
    pixels, _ = pictures[shard]
    parts = []
    with accelerator().autocast():
        for start in range(0, len(pixels), 128):
            (x,) = to_device(pixels[start : start + 128])
            parts.append(features(tower, pixel_values(x)).to(torch.float16).cpu().numpy())
    partial = place.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.save(file, np.concatenate(parts))
    partial.replace(place)


class Seen:
    """The features of a split's pictures, and the questions about them."""

    def __init__(self, folder: Path, split: str, shards: int):
        self.split = split
        files = [path(folder, split, shard, "features") for shard in range(shards)]
        self.features = {s: np.load(file, mmap_mode="r") for s, file in enumerate(files) if file.exists()}

    def batch(
        self, step: int, part: int, size: int, seed: int, tasks: Sequence[str], each: int
    ) -> tuple[np.ndarray, list[list[tuple[Question, ...]]]]:
        """Features (size, patches, V) and conversations, one to three turns each, about every picture."""
        random = np.random.default_rng([seed, step, part])
        shard = [*self.features][random.integers(len(self.features))]
        chosen = np.sort(random.choice(len(self.features[shard]), size, replace=False))
        talks = []
        for i in chosen:
            number = numbers(shard)[i]
            picture, choose = scene(self.split, number), Random(f"{step}/{number}")
            asked = [loosely(q, choose) for q in questions(picture, choose, tasks, each)]
            choose.shuffle(asked)
            talks.append(list(_turns(asked, choose)))
        return np.asarray(self.features[shard][chosen], np.float32), talks


def _turns(asked: list[Question], random: Random) -> Any:
    """Most questions stand alone; some follow one or two others, as in a chat."""
    while asked:
        count = random.choice([2, 3]) if random.random() < 0.06 else 1
        yield tuple(asked[:count])
        asked = asked[count:]


def loosely(question: Question, random: Random) -> Question:
    """The question as people type it, now and then: without a capital, or without its mark."""
    text = question.text
    if random.random() < 0.1:
        text = text[0].lower() + text[1:]
    if random.random() < 0.1:
        text = text.rstrip("?.")
    return question._replace(text=text)


def train_language(
    name: str,
    folder: Path,
    tokenizer: Tokenizer,
    projector: nn.Module,
    decoder: Any,
    seen: Seen,
    image_tokens: int,
    *,
    tasks: Sequence[str] = TASKS,
    each: int,
    steps: int,
    size: int,
    rate: float,
    seed: int = 0,
    **options: Any,
) -> History:
    """Stage 1 or 2: trains projector and decoder on the questions of `tasks`; see `loop.fit`."""
    prompts, parts = Prompts(tokenizer), accelerator().num_processes
    learner = Learner(projector, decoder, len(prompts.prefix))

    def draw(step: int, part: int) -> tuple[Tensor, Packed]:
        x, talks = seen.batch(step, part, size // parts, seed, tasks, each)
        tails = [[prompts.tail(*((q.text, q.answer) for q in turns)) for turns in of_one] for of_one in talks]
        (features,) = to_device(x)
        return features, pack(prompts, tails, image_tokens)

    groups = optimizer(learner, rate)
    return fit(name, folder, learner, groups, draw, steps, micro_batches=parts, clip=1.0, **options)


class Learner(nn.Module):
    """The projector and the decoder, which give the loss of pictures with their questions."""

    def __init__(self, projector: nn.Module, decoder: Any, before: int):
        super().__init__()
        self.projector, self.decoder, self.before = projector, decoder, before

    def forward(self, batch: tuple[Tensor, Packed]) -> Tensor:
        seen, packed = batch
        h = hidden(self.decoder, self.projector, seen, packed, self.before)
        answers = packed.wanted != IGNORED
        return cross_entropy(self.decoder.lm_head(h[answers]).float(), packed.wanted[answers])


# ---------------------------------------------------------------- a quick look at how it does


def token_accuracy(
    prompts: Prompts, projector: nn.Module, decoder: Any, seen: Seen, image_tokens: int
) -> Mapping[str, float]:
    """The share of answers that are right in every token, each asked for after the right ones."""
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    for step in range(16):
        x, talks = seen.batch(step, 0, 16, 1234, TASKS, 1)
        single = [[q for turns in of_one for q in turns] for of_one in talks]
        tails = [[prompts.tail((q.text, q.answer)) for q in of_one] for of_one in single]
        packed = pack(prompts, tails, image_tokens)
        (features,), before = to_device(x), len(prompts.prefix)
        h = hidden(decoder, projector, features, packed, before)
        hit = (decoder.lm_head(h).argmax(-1) == packed.wanted) | (packed.wanted == IGNORED)
        for b, of_one in enumerate(single):
            for q, here in zip(of_one, packed.at[b], strict=True):
                right[q.task].append(bool(hit[b, here].all()))
    return {task: sum(r) / len(r) for task, r in right.items() if r}
