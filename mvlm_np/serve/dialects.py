"""What both dialects share: what a request asks for, and what a reply is made of.

A dialect (`openai`, `ollama`) makes a `Call` of a request's body, and replies of the engine's events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message
from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve.fields import Fields, clean, shown
from mvlm_np.serve.pictures import Link
from mvlm_np.serve.refused import Refused
from mvlm_np.serve.requests import ALTERNATIVES, STOPS, Finished, Piece, Request, TokenChance

MESSAGES, PICTURES = 64, 12  # in a request, at most; 13 pictures would leave no room for a chat
ANSWERS = 4  # to one request, at most
SEEDS = 1 << 63


@dataclass(frozen=True)
class Draft:
    """A message whose pictures are not decoded yet, or not even fetched."""

    role: str
    text: str
    pictures: tuple[Encoded | Link, ...] = ()


@dataclass(frozen=True)
class Call:
    """What a request asks for, in whatever dialect.

    messages  a system message first, if any; then user and assistant by turns, the user last
    answers   how many; their seeds follow each other; 0: nothing is asked, but that the model be there
    stream    the reply is sent as it comes
    usage     the stream's last chunk counts tokens
    unload    where nothing is asked: the model is not needed any more
    model     what the request calls the model
    The others are those of `requests.Request`.
    """

    messages: tuple[Draft, ...]
    settings: Settings
    model: str
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    drop_oldest: bool = False
    look: bool = False
    answers: int = 1
    stream: bool = False
    usage: bool = False
    unload: bool = False

    @property
    def pictures(self) -> list[Encoded | Link]:
        return [picture for message in self.messages for picture in message.pictures]

    def requests(self, pictures: Sequence[Any], **whose: Any) -> list[Request]:
        """One for each answer. pictures: those of `pictures`, decoded; whose: other fields of all of them."""
        rest = iter(pictures)
        messages = tuple(
            Message(m.role, m.text, tuple(next(rest) for _ in m.pictures)) for m in self.messages
        )
        seed = self.settings.seed
        return [
            Request(
                messages,
                self.settings if seed is None else replace(self.settings, seed=(seed + i) % SEEDS),
                self.stop,
                self.top_logprobs,
                self.schema,
                self.drop_oldest,
                self.look,
                **whose,
            )
            for i in range(self.answers)
        ]


def in_turns(messages: Sequence[Draft], name: str) -> tuple[Draft, ...]:
    """A chat as the model's template can write it: system texts in front, neighbours of one role joined.

    Refused: there are too many messages or pictures, or the last one is not the user's.
    """
    if len(messages) > MESSAGES:
        raise Refused(name, f"found {len(messages)}", f"at most {MESSAGES}", field=name)
    if (pictures := sum(len(message.pictures) for message in messages)) > PICTURES:
        raise Refused(name, f"found {pictures} pictures", f"at most {PICTURES}", field=name)
    turns: list[Draft] = []
    for message in sorted(messages, key=lambda message: message.role != "system"):  # the rest stays in order
        if turns and turns[-1].role == message.role:
            before = turns.pop()
            text = "\n".join(text for text in (before.text, message.text) if text)
            message = Draft(message.role, text, before.pictures + message.pictures)
        turns.append(message)
    if not turns or turns[-1].role != "user":
        found = "found no message" if not turns else f"the last is of {turns[-1].role}"
        raise Refused(name, found, "a last message of the user", field=name)
    if turns[turns[0].role == "system"].role == "assistant":
        raise Refused(name, "the first is of assistant", "a message of the user before it", field=name)
    return tuple(turns)


def stops(body: Fields, name: str = "stop") -> tuple[str, ...]:
    """Stop strings: none, one as text, or a list."""
    value = body.get(name)
    found = [value] if isinstance(value, str) else body.list(name)
    if len(found) > STOPS or not all(isinstance(text, str) and text for text in found):
        body.refuse(name, f"found {shown(value)}", f"text, or up to {STOPS} texts, none of them empty")
    return tuple(clean(text) for text in found)


def chances_wanted(body: Fields) -> int | None:
    """`logprobs` and `top_logprobs` as `Request.top_logprobs`."""
    top = body.whole("top_logprobs", 0, ALTERNATIVES)
    if body.flag("logprobs"):
        return top or 0
    if top:
        body.refuse("top_logprobs", f"found {top}", "logprobs: true beside it")
    return None


def sampling(body: Fields) -> dict[str, Any]:
    """The settings that both dialects spell alike, those that are there."""
    given = {
        "temperature": body.number("temperature", 0, 2),
        "top_p": body.number("top_p", 0, 1),
        "top_k": body.whole("top_k"),
        "frequency_penalty": body.number("frequency_penalty", -2, 2),
        "presence_penalty": body.number("presence_penalty", -2, 2),
        "repeat_penalty": body.number("repeat_penalty", 0, 10),
    }
    if given["top_p"] == 0:
        given["top_p"] = 1e-9  # the likeliest alone
    if (top_k := given["top_k"]) is not None and top_k < 0:
        given["top_k"] = 0  # all, as others write it
    if (seed := body.whole("seed")) is not None:
        given["seed"] = seed % SEEDS
    return {name: value for name, value in given.items() if value is not None}


def schema_in(body: Fields, name: str) -> Mapping[str, Any]:
    """A JSON schema. What stands in it is looked at when it is queued."""
    if name not in body:
        body.refuse(name, "is missing", "a JSON schema")
    return body.object(name).values


# ---------------------------------------------------------------- replies


@dataclass(frozen=True)
class Served:
    """The model that answers, as replies describe it.

    name         what clients call it
    context      positions of its context
    sees         whether it takes pictures
    max_tokens   of an answer, at most
    fingerprint  changes with this program's version and with the weights
    since        when it was loaded, in seconds since 1970
    size         of its files, in bytes
    parameters   such as "1.7B"; empty if unknown
    precision    of its weights, such as "int4"
    """

    name: str
    context: int
    sees: bool
    max_tokens: int = 512
    fingerprint: str = ""
    since: float = 0.0
    size: int = 0
    parameters: str = ""
    precision: str = ""


@dataclass
class Answer:
    """An answer as far as it has come."""

    text: str = ""
    chances: list[TokenChance] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Piece | Finished) -> None:
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.text += event.text
            self.chances += event.chances


class Reply(Protocol):
    """A reply in one dialect. Parts of streams are bytes for the wire; i is the answer's number."""

    @property
    def media_type(self) -> str:
        """Of streams."""
        ...

    @property
    def ping(self) -> bytes | None:
        """What may be sent while nothing comes."""
        ...

    def first(self, i: int, ahead: int) -> bytes:
        """ahead: how many requests are before this one."""
        ...

    def piece(self, i: int, piece: Piece) -> bytes: ...
    def last(self, i: int, finished: Finished) -> bytes: ...
    def end(self, finished: Sequence[Finished]) -> bytes: ...
    def failure(self, refused: Refused) -> bytes: ...
    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]: ...
    def nothing(self) -> dict[str, Any]:
        """Where nothing was asked."""
        ...


@dataclass(frozen=True)
class Dialect:
    """How a path's requests are read and answered."""

    read: Callable[[Fields, Served], Call]
    reply: Callable[[Call, Served], Reply]
