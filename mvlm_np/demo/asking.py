"""Asks the demo model about the demo pictures, and looks over its shoulder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from mvlm_np.demo import PICTURES
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.look.looking import looked_at
from mvlm_np.model import MobileVLM
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
    """Where the decoder looks as it begins its answer: `looked_at`. image: the picture's tokens (144, D)."""
    x, at = model.embed(tokenize_prompt(render("v1", question), model.tokenizer), [image])
    session = model.session()
    session.prefill(x, at, 0, Watch())
    (looked,) = looked_at(session, x[-1:])
    return looked
