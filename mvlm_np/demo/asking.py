"""Asks the demo model about the demo pictures, and looks over its shoulder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from mvlm_np.backend import replaced
from mvlm_np.demo import PICTURES
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.model import MobileVLM
from mvlm_np.session import Session
from mvlm_np.trace import Watch


@dataclass(frozen=True)
class Asked:
    """A question about a picture, as it went; seconds are those from question to answer."""

    question: str
    expected: str
    answer: str
    seconds: float
    attention: np.ndarray = field(repr=False)  # float32 (12, 12), empty where nobody asked for it


@dataclass(frozen=True)
class Shown:
    """One picture; seconds are those of encoding it."""

    picture: str  # its file's name
    seconds: float
    asked: list[Asked]


def ask_all(model: MobileVLM, attention: bool = False) -> Iterator[Shown]:
    """All pictures and their questions, each on its own. attention: say too where the model looked."""
    for entry in json.loads((PICTURES / "questions.json").read_text("utf-8")):
        start = perf_counter()
        chat = model.chat(PICTURES / entry["picture"])
        encoded, asked = perf_counter() - start, []
        for question, expected in entry["questions"].items():
            chat.history.clear()
            start = perf_counter()
            answer = chat.ask(question)
            seconds = perf_counter() - start
            looked = looks(model, chat.images[0], question) if attention else np.empty((0, 0), np.float32)
            asked.append(Asked(question, expected, answer, seconds, looked))
        yield Shown(entry["picture"], encoded, asked)


def looks(model: MobileVLM, image: np.ndarray, question: str) -> np.ndarray:
    """Where the decoder looks as it begins its answer: the prompt's last position attends to the picture.

    image: the picture's tokens (144, D). The mean over heads, then over layers; what goes to the text is
    left out. float32 (12, 12), rows of the padded picture from the top.
    """
    layers: list[np.ndarray] = []

    def watched(q: np.ndarray, k: np.ndarray, v: np.ndarray, *cache: Any) -> np.ndarray:
        group, d = len(q) // len(k), q.shape[-1]
        scores = np.einsum("kgd,ksd->kgs", q[:, -1].reshape(len(k), group, d), k) * np.float32(d**-0.5)
        layers.append(model.ops.softmax(scores).mean(axis=(0, 1)))  # (S,)
        return model.ops.cached_attention(q, k, v, *cache)

    ids = tokenize_prompt(render("v1", question), model.tokenizer)
    x, at = model.embed(ids, [image])
    ops = replaced(model.ops, cached_attention=watched)
    session = Session(model.decoder, model.config.decoder, ops)
    session.prefill(x, at, 0, Watch(), chunk=len(x))
    side = round(len(image) ** 0.5)
    return np.mean(layers, axis=0)[at < 0].reshape(side, side)
