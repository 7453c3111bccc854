"""Answers one question as `model.ask` does, and keeps what the model looked at on the way.

Attention is computed a second time for keeping, from the queries and keys that the model used: its own
operations, fast or not, never hand their weights out. At full size the tower alone has 500 MB of it in
float32, so it is kept block by block, in 8 bits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from mvlm_np import decoder, memory
from mvlm_np.answer import Answer, ends_answer
from mvlm_np.backend import Ops, replaced
from mvlm_np.config import ImageConfig
from mvlm_np.errors import GenerationError
from mvlm_np.generation import Settings, generate, probabilities, top
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.image import Picture, open_image
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.kv_store import Stored, dequantize, part
from mvlm_np.model import MobileVLM
from mvlm_np.ops import softmax
from mvlm_np.prompt_limits import within_context
from mvlm_np.session import Session
from mvlm_np.trace import Watch, ignore

LIKELIEST = 5  # tokens that are kept of each step's choice

See = Callable[[np.ndarray], None]  # gets what one attention weighs with: float32 (H, T, S)


@dataclass(frozen=True)
class Attention:
    """Rows of attention in 8 bits: weight = peak * (level / 255)^2.

    The square keeps small weights: in a row whose peak is 0.9, a weight of 0.002 is still right within 5 %.
    levels uint8 (..., S), peaks float32 (..., 1), the largest weight of each row.
    """

    levels: np.ndarray
    peaks: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray) -> "Attention":
        """The nearest that 8 bits have to weights (..., S)."""
        peaks = weights.max(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # NaN, in a damaged model, which is refused at its first token
            return cls(np.rint(255 * np.sqrt(weights / peaks)).astype(np.uint8), peaks)

    def weights(self) -> np.ndarray:
        """float32 (..., S)"""
        return self.peaks * np.square(self.levels / np.float32(255))


def stacked(kept: Sequence[Attention]) -> Attention:
    """Attention of the same shape as one, with an axis in front."""
    return Attention(np.stack([a.levels for a in kept]), np.stack([a.peaks for a in kept]))


@dataclass(frozen=True)
class Seen:
    """A picture on its way through tower and projector.

    size    width and height of the picture as it came, turned upright
    pixels  uint8 (h, w, 3), as the model sees it: padded or cropped, and scaled
    mean    the tower's attention, mean over the heads: (L, T, T), the class token before the patches.
            L counts the blocks that were computed: no answer depends on those after them
    heads   the same head by head: (L, H, T, T)
    tokens  float32 (N, D), what the projector made of it for the decoder
    """

    size: tuple[int, int]
    pixels: np.ndarray
    mean: Attention
    heads: Attention
    tokens: np.ndarray


class Likely(NamedTuple):
    """Tokens and their probabilities, both (n,)."""

    ids: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Step:
    """How one token of the answer came about, at the position before it.

    token        its id
    probability  what the model gave it
    likeliest    the five likeliest tokens, likeliest first
    lens         the likeliest token, had the decoder ended after 0, 1, ... L blocks: final norm and lm_head
                 on every hidden state (the logit lens); the last one is the model's own choice
    lens_token   the probability of `token` in each of these, (L + 1,)
    attention    float32 (L, S): what the position looked at, itself included; mean over heads
    heads        the same head by head: (L, H, S)
    """

    token: int
    probability: float
    likeliest: Likely
    lens: Likely
    lens_token: np.ndarray
    attention: np.ndarray
    heads: Attention


@dataclass(frozen=True)
class Answered:
    """The decoder's part: `at` (T,) says what stands at each position of the prompt, an id or -1 for the
    picture; `text` is what `model.ask` returns; `cache_bytes` what keys and values took in the end."""

    at: np.ndarray
    steps: list[Step]
    text: str
    cache_bytes: int


class Stage(NamedTuple):
    """A part of the run: seconds without the recording's own, and the bytes of the weights it reads."""

    name: str
    seconds: float
    weight_bytes: int


@dataclass(frozen=True)
class Look:
    """One question, and all that is shown of it. `peak` is the most memory the process took, or None."""

    question: str
    seen: Seen | None
    answered: Answered
    stages: list[Stage]
    peak: int | None


def look(
    model: MobileVLM,
    image: Picture | None,
    question: str,
    *,
    max_new_tokens: int = 64,
    conv_mode: str = "v1",
    exif: bool = True,
    watch: Watch | None = None,
) -> Look:
    """Asks about one picture, or none, and keeps what is worth seeing. The answer is greedy, as `ask`'s is.

    Arguments are those of `model.ask`, which raises the same errors.
    """
    record = Record(watch)
    seen = None if image is None else see(model, image, record, exif)
    images = [] if seen is None else [seen.tokens]
    answered = answer(model, images, question, record, max_new_tokens, conv_mode)
    return Look(question, seen, answered, stages(model, record.seconds), memory.peak())


def see(model: MobileVLM, image: Picture, record: "Record", exif: bool = True) -> Seen:
    """Takes a picture through tower and projector."""
    means: list[Attention] = []
    heads: list[Attention] = []

    def keep(weights: np.ndarray) -> None:
        means.append(Attention.of(weights.mean(axis=0)))
        heads.append(Attention.of(weights))

    with record.phase("preprocess"):
        picture = open_image(image, exif, adapt=exif)
    (tokens,) = watching(model, record, keep).encode_images(picture, exif=False, watch=record)
    pixels = as_picture(record.pixels, model.config.image)
    return Seen(picture.size, pixels, stacked(means), stacked(heads), tokens)


def answer(
    model: MobileVLM,
    images: Sequence[np.ndarray],
    question: str,
    record: "Record",
    max_new_tokens: int = 64,
    conv_mode: str = "v1",
) -> Answered:
    """Answers a question about pictures that are tokens already, each (N, D)."""
    prompt_ids = tokenize_prompt(render(conv_mode, question, len(images)), model.tokenizer)
    x, at = model.embed(prompt_ids, images)
    settings = within_context(len(at), Settings(max_new_tokens), model.config)
    if settings.max_new_tokens < 1:
        raise GenerationError("max_new_tokens", f"found {max_new_tokens}", "at least 1")
    stop = stop_string(conv_mode)
    ended = ends_answer(model.tokenizer, stop, model.config.decoder.end_tokens)

    rows: list[np.ndarray] = []  # (H, 1, S) of each block, of the last position so far
    session = watching(model, record, rows.append).session()
    text, steps = Answer(model.tokenizer, stop), []
    decoding = _Decoding(session, record, model.tokenizer.vocab_size)
    decoding.logits = session.prefill(x, at, settings.max_new_tokens, record)[: decoding.known]
    for token in generate(decoding.logits, decoding, settings, ended, len(prompt_ids)):
        with record.beside():
            text.push(token)
            weights = np.stack(rows[-len(model.decoder.layers) :])[:, :, 0]  # (L, H, S)
            rows.clear()
            steps.append(_step(model, token, decoding.logits, record.hidden, weights))
    text.finish()
    return Answered(at, steps, text.text, session.cache.length * session.cache.bytes_per_position)


def as_picture(pixel_values: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Pixel values (3, h, w) as colours again: uint8 (h, w, 3)."""
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (config.mean, config.std))
    return (255 * (pixel_values * std + mean)).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


# ---------------------------------------------------------------- recording


class Record(Watch):
    """Keeps the pixel values, and the hidden states of the last position that went through the decoder.

    What recording costs is left out of the phases' seconds. `watch` sees all that this one sees.
    """

    def __init__(self, watch: Watch | None = None):
        super().__init__()
        self.pixels = np.empty((3, 0, 0), np.float32)
        self.hidden: dict[str, np.ndarray] = {}  # (D,) by "decoder.hidden_states.i"
        self._watch, self._beside = watch or Watch(), 0.0

    def __call__(self, name: str, array: np.ndarray) -> None:
        self._watch(name, array)
        if name == "pixel_values":
            self.pixels = array.copy()
        elif name.startswith("decoder.hidden_states."):
            self.hidden[name] = array[-1].copy()

    @contextmanager
    def phase(self, name: str, steps: int | None = None) -> Iterator[None]:
        before = self._beside
        with super().phase(name, steps), self._watch.phase(name, steps):
            yield
        self.seconds[name] -= self._beside - before

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Around what the model does not do itself."""
        start = perf_counter()
        try:
            yield
        finally:
            self._beside += perf_counter() - start


def watching(model: MobileVLM, record: Record, see: See) -> MobileVLM:
    """The same model, and `see` gets what each of its attentions weighs with; see `watched`."""
    watcher = copy(model)
    watcher.ops = watched(model.ops, see, record.beside)
    return watcher


def watched(ops: Ops, see: See, beside: Callable[[], AbstractContextManager] = nullcontext) -> Ops:
    """The same operations, and `see` gets what each attention weighs with: float32 (H, T, S).

    In the decoder T is 1: of the positions that go through it together only the last one is kept, since only
    that one chooses a token. `beside` is entered around what is done for `see`.
    """

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
        assert not causal, "the tower's is the only one"
        with beside():
            see(attention_weights(q, k))
        return ops.attention(q, k, v, causal)

    def cached_attention(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: Stored, values: Stored, past: int
    ) -> np.ndarray:
        out = ops.cached_attention(q, k, v, keys, values, past)  # stores k, rounded as the cache is
        with beside():
            stored = part(keys, np.s_[:, : past + q.shape[1]])
            see(attention_weights(q[:, -1:], dequantize(stored)))
        return out

    return replaced(ops, attention=attention, cached_attention=cached_attention)


def attention_weights(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)), what `ops.attention` multiplies values with, no position hidden.

    q (H, T, d), k (K, S, d) -> (H, T, S)
    """
    (heads, T, d), (kv_heads, S, _) = q.shape, k.shape
    scores = (q * d**-0.5).reshape(kv_heads, -1, d) @ k.transpose(0, 2, 1)  # (K, G*T, S)
    return softmax(scores).reshape(heads, T, S)


class _Decoding:
    """`generation.Model` for one continuation, whose hidden states and logits are kept."""

    logits: np.ndarray  # (known,), of the ids that the tokenizer has: the next token is one of them

    def __init__(self, session: Session, record: Record, known: int):
        self.session, self.record, self.known = session, record, known

    def step(self, tokens: np.ndarray) -> np.ndarray:
        weights = self.session.weights
        with self.record.phase("decode"):
            logits = weights.lm_head(self.session.forward(weights.embed_tokens(tokens), self.record))
        self.logits = logits[0, : self.known]
        return self.logits[None]

    def reorder(self, parents: np.ndarray) -> None:
        raise AssertionError("there is only one continuation")


def _step(
    model: MobileVLM, token: int, logits: np.ndarray, hidden: dict[str, np.ndarray], weights: np.ndarray
) -> Step:
    states = np.stack([hidden[f"decoder.hidden_states.{i}"] for i in range(len(model.decoder.layers))])
    states = model.ops.rms_norm(states, model.decoder.norm, model.config.decoder.rms_norm_eps)  # (L, D)
    depths = model.decoder.lm_head(states)[:, : len(logits)]
    lens = probabilities(np.concatenate([depths, logits[None]]))  # (L + 1, known)
    ids = lens.argmax(axis=-1)
    best = top(logits, LIKELIEST)
    return Step(
        token=token,
        probability=float(lens[-1, token]),
        likeliest=Likely(best, lens[-1, best]),
        lens=Likely(ids, np.take_along_axis(lens, ids[:, None], axis=-1)[:, 0]),
        lens_token=lens[:, token],
        attention=weights.mean(axis=1),
        heads=Attention.of(weights),
    )


def looked_at(session: Session, x: np.ndarray) -> list[np.ndarray]:
    """Where in its pictures the model looks as it begins its answer.

    The last position of a prompt, which the session has just read, attends to the pictures: the mean over
    heads, then over blocks; what goes to the text is left out. For each picture in their order float32
    (12, 12), rows of the padded picture from the top; nothing if a picture's tokens are no square.

    x (1, D): what stands at that position. It goes through the decoder once more, and leaves no trace there.
    """
    places = np.flatnonzero(session.ids[: session.cache.length] < 0)
    pictures = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)  # there is text between any two
    sides = [round(len(picture) ** 0.5) for picture in pictures]
    if not len(places) or any(side**2 != len(p) for side, p in zip(sides, pictures, strict=True)):
        return []
    weights = last_attention(session, x).mean(axis=1).mean(axis=0)  # (L, H, T) -> (T,)
    return [weights[p].reshape(side, side) for side, p in zip(sides, pictures, strict=True)]


def last_attention(session: Session, x: np.ndarray) -> np.ndarray:
    """What the last position of a session attends to, itself included: float32 (L, H, T).

    x (1, D): what stands at that position. It is computed once more; the session is left as it was.
    """
    rows, cache = list[np.ndarray](), session.cache
    last = [array[:, :, cache.length - 1] for array in (*cache.keys, *cache.values)]
    before = [array.copy() for array in last]
    cache.length -= 1
    try:
        ops = watched(session.ops, rows.append)
        decoder.forward(x, session.weights, session.config, cache, ops, ignore)
    finally:  # BLAS may have rounded otherwise than when more positions were computed with this one
        for array, was in zip(last, before, strict=True):
            array[...] = was
    return np.stack(rows)[:, :, 0]


# ---------------------------------------------------------------- time and memory


def stages(model: MobileVLM, seconds: dict[str, float]) -> list[Stage]:
    """The phases of a run in their order, each with the weights that it reads."""
    reads: dict[str, list[Any]] = {"preprocess": []}
    if model.vision is not None:
        tower = vars(model.vision) | {"layers": model.vision.layers[: model.config.vision_layers]}
        reads |= {"encode": list(tower.values()), "project": [model.projector]}
    reads |= {"prefill": [model.decoder], "decode": [model.decoder]}
    return [Stage(name, seconds[name], nbytes(reads[name])) for name in reads if name in seconds]


def nbytes(weights: object) -> int:
    """Bytes of all arrays and linear layers in a box of weights; not of the table of embeddings, of which a
    token reads one row."""
    if hasattr(weights, "nbytes"):
        return int(weights.nbytes)
    if is_dataclass(weights):
        return sum(nbytes(getattr(weights, field.name)) for field in fields(weights))
    return sum(map(nbytes, weights)) if isinstance(weights, list | tuple) else 0
