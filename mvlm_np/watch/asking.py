"""Who answers: a model in this process, or a server that others use too."""

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from math import exp
from typing import TYPE_CHECKING, Any, Protocol
from urllib import request
from urllib.error import HTTPError

import numpy as np

from mvlm_np.answer import Answer, ends_answer
from mvlm_np.batch import Batch
from mvlm_np.errors import UserError
from mvlm_np.generation import Choice, Drafted, Settings, log_probabilities
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.prompt_limits import within_context
from mvlm_np.watch.pictures import as_jpeg, encoded
from mvlm_np.watch.process import printable
from mvlm_np.watch.readings import first_word

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

TIMEOUT = 600.0  # seconds for a server's answer, which others may be waiting for too
SENT = 8 << 20  # bytes of a picture that is sent as it is; servers have limits
LARGEST = 4 << 20  # bytes of a server's reply


@dataclass(frozen=True)
class Reply:
    """An answer.

    tokens  how many
    p       the probability that the model gave to it; see `probability`
    """

    text: str
    tokens: int
    p: float | None


class Asker(Protocol):
    """Answers one question about any number of pictures."""

    def ask(self, data: bytes) -> Reply:
        """About a picture's file.

        ImageError: it is none, or damaged. NotNow: later, perhaps. UserError: never.
        """


class NotNow(Exception):
    """There is no answer at present; its text says why."""


def probability(text: str, chances: Sequence[tuple[str, float]]) -> float | None:
    """Of an answer: the product of its tokens' probabilities. Where it begins with yes or no: of that word.

    chances  (what a token adds to the text, the logarithm of its probability), token by token
    """
    first = first_word(text)
    wanted = text.lower().index(first) + len(first) if first in ("yes", "no") else len(text)
    total, said = 0.0, ""
    for piece, logarithm in chances:
        if len(said.lstrip()) >= wanted:
            break
        said += piece
        total += logarithm
    return exp(min(total, 0.0)) if chances else None


# ---------------------------------------------------------------- in this process


class Local:
    """A loaded model. What it has seen in the last picture is kept, in case that comes again."""

    def __init__(self, model: "MobileVLM", question: str, settings: Settings, conv_mode: str = "v1"):
        """PromptError: the question does not fit the model."""
        self.model, self.settings = model, settings
        self._stop = stop_string(conv_mode)
        self._ids = tokenize_prompt(render(conv_mode, question, 1), model.tokenizer)
        self._seen: tuple[bytes, np.ndarray] | None = None

    def ask(self, data: bytes) -> Reply:
        """See `Asker`."""
        model, tokenizer = self.model, self.model.tokenizer
        x, at = model.embed(self._ids, [self._picture(data)])
        settings = within_context(len(at), self.settings, model.config)
        session, batch = model.session(), Batch()
        if prefix := model.prefix:
            prefix.begin(session)
        choice = Scored(settings, ends_answer(tokenizer, self._stop, model.config.decoder.end_tokens))
        member = batch.join(session, x, at, choice, settings.max_new_tokens, tokenizer.vocab_size)
        while batch.members:
            batch.step()
        if member.error:
            raise member.error
        answer, pieces = Answer(tokenizer, self._stop), tokenizer.stream()
        for token in choice.tokens:
            answer.push(token)
        answer.finish()
        chances = [(pieces.push(t), log) for t, log in zip(choice.tokens, choice.logarithms, strict=True)]
        return Reply(answer.text, len(choice.tokens), probability(answer.text, chances))

    def _picture(self, data: bytes) -> np.ndarray:
        """The picture's tokens (144, D)."""
        if self._seen is None or self._seen[0] != data:
            self._seen = data, self.model.encode_images(encoded(data))[0]
        return self._seen[1]


class Scored(Choice):
    """A choice that notes the logarithm of each token's probability, by the logits as the model gave them."""

    def __init__(self, settings: Settings, stop: Any):
        super().__init__(settings, stop)
        self.logarithms: list[float] = []

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """See `Choice`."""
        token = super().take(logits, drafted)
        self.logarithms.append(float(log_probabilities(logits)[token]))
        return token


# ---------------------------------------------------------------- a server


class Server:
    """A server that speaks OpenAI's dialect, such as `mvlm serve`; its key is $MVLM_API_KEY.

    address  http://HOST:PORT, with /v1 or without
    """

    def __init__(self, address: str, question: str, max_tokens: int):
        self.name = printable(address)
        root = address.rstrip("/").removesuffix("/v1")
        if not root.startswith(("http://", "https://")):
            raise UserError("--server", f"found {self.name!r}", "its address: http://127.0.0.1:8080")
        self._url, self._question, self._max_tokens = f"{root}/v1/chat/completions", question, max_tokens

    def ask(self, data: bytes) -> Reply:
        """See `Asker`."""
        if len(data) > SENT:
            data = as_jpeg(data, 2048)
        kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"  # every server looks for itself
        picture = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        body = {
            "model": "mvlm",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": picture}},
                        {"type": "text", "text": self._question},
                    ],
                }
            ],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "logprobs": True,
        }
        headers = {"Content-Type": "application/json", "X-Priority": "low"}  # people go first
        if key := os.environ.get("MVLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        asked = request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with request.urlopen(asked, timeout=TIMEOUT) as response:
                reply = response.read(LARGEST)
        except HTTPError as error:
            with error:
                raise self._refused(error.code, error.read(LARGEST)) from None
        except (OSError, HTTPException) as error:
            raise NotNow(f"does not answer ({getattr(error, 'reason', None) or error})") from None
        try:
            return _read(json.loads(reply))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                self.name, "answered with something else", "a reply in OpenAI's dialect", "check --server"
            ) from None

    def _refused(self, code: int, body: bytes) -> Exception:
        try:
            said = str(json.loads(body)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            said = "without a reason"
        if code in (408, 409, 425, 429) or code >= 500:
            return NotNow(f"answers {code} ({said[:200]})")
        fix = "set MVLM_API_KEY to the server's key" if code in (401, 403) else None
        return UserError(self.name, f"answers {code}: {said[:300]}", fix=fix)


def _read(reply: Any) -> Reply:
    """A chat completion -> what it says."""
    choice = reply["choices"][0]
    text = str(choice["message"]["content"] or "").strip()
    listed = (choice.get("logprobs") or {}).get("content") or []
    chances = [(str(one["token"]), float(one["logprob"])) for one in listed]
    return Reply(text, int(reply["usage"]["completion_tokens"]), probability(text, chances))
