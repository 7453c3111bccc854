"""From questions and answers to the text that the model continues.

A template is a system text, two roles and separators. Those in `TEMPLATES` are the published code's
(Meituan-AutoML/MobileVLM, Apache-2.0), which has them from LLaVA. The released models want "v1".
"""

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mvlm_np.errors import PromptError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_MARK = "<image>"  # stands for a whole picture in a prompt
HIDDEN = "\uffff"  # in no mark and no token: Unicode has promised never to make a character of it
ROLES = ("system", "user", "assistant")

History = Sequence[tuple[str, str]] | Sequence[Mapping[str, Any]]  # see `pairs`


@dataclass(frozen=True)
class Text:
    """A stretch of a prompt that is text, whatever stands in it: `<image>` is no picture, `</s>` no token."""

    text: str


# What a prompt is made of. In a plain string `<image>` stands for a picture, and `</s>` for the token.
Stretch = str | Text


@dataclass(frozen=True)
class Message:
    """One message of a chat. Its text is text, whatever stands in it.

    role      "system", "user" or "assistant"
    pictures  of mode RGB, as `image.open_image` gives them; they stand before the text of their message
    """

    role: str
    text: str
    pictures: "tuple[Image.Image, ...]" = ()


@dataclass(frozen=True)
class Template:
    """How a conversation is written down.

    roles      who asks, who answers
    sep_style  a key of `STYLES`
    sep, sep2  end a question and an answer; without `sep2`, `sep` ends both
    messages   questions and answers, by turns, that stand before the user's own
    """

    system: str
    roles: tuple[str, str]
    sep_style: str
    sep: str
    sep2: str | None = None
    messages: tuple[str, ...] = ()


def render(template_name: str, question: str, n_images: int = 1, history: History = ()) -> str:
    """The prompt, up to the point where the answer begins.

    question  may be empty, except in style LLAMA_2, which cannot write an empty turn
    n_images  how many pictures the conversation is about
    history   earlier turns, as `pairs` takes them

    Each picture is announced by a line `<image>` before the first question. If the conversation holds
    `<image>` exactly `n_images` times already, the pictures go there instead.

    Raises PromptError for an unknown template, for what is not text, for any other number of `<image>`,
    and for turns that the template cannot write.
    """
    template = _template(template_name)
    if not isinstance(question, str):
        raise PromptError("question", f"found {reprlib.repr(question)}", "text")
    turns = [turn for pair in pairs(history) for turn in pair] + [question]
    marks = sum(turn.count(IMAGE_MARK) for turn in turns)
    if marks not in (0, n_images):
        wanted = (
            f"none or {n_images}, as many as there are pictures" if n_images else "none without a picture"
        )
        raise PromptError("the conversation", f"{marks} of {IMAGE_MARK} in its text", wanted)
    if not marks:
        turns[0] = f"{IMAGE_MARK}\n" * n_images + turns[0]
    prompt = _write(template, template.system, [[turn] if turn else [] for turn in turns])
    return "".join(stretch for stretch in prompt if isinstance(stretch, str))


def render_messages(template_name: str, messages: Sequence[Message]) -> list[Stretch]:
    """The prompt of a chat, up to the point where the answer begins, in stretches.

    What stands in a message is text. Pictures stand before the text of their message, each on a line of its
    own, as published prompts have them in the first one. Neighbouring messages of one role are one, with a
    line break between them; the texts of `system`, wherever they stand, take the place of the template's.

    Raises PromptError for an unknown template or role, for what is not text, for pictures of which the user
    does not ask, for a last message that is not the user's, and for turns that the template cannot write.
    """
    template = _template(template_name)
    system, turns = joined(messages)
    prompt = _write(
        template,
        Text(system) if system else template.system,
        [[IMAGE_MARK + "\n"] * len(turn.pictures) + [Text(turn.text)] * bool(turn.text) for turn in turns],
    )
    return [stretch for stretch in prompt if stretch]


def joined(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """What the system says in all, and the other messages by turns: the user's first and last.

    Raises PromptError as `render_messages` does.
    """
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise PromptError(
                f"messages[{i}]", f"found role {reprlib.repr(message.role)}", f"one of {', '.join(ROLES)}"
            )
        if not isinstance(message.text, str):
            raise PromptError(f"messages[{i}]", f"found {reprlib.repr(message.text)}", "text")
        if message.pictures and message.role != "user":
            raise PromptError(
                f"messages[{i}]", f"a picture in a message of {message.role}", "pictures of the user"
            )
    spoken = [message for message in messages if message.role != "system"]
    if not spoken or spoken[-1].role != "user":
        raise PromptError("messages", "the last one is not the user's", "a question to answer")
    turns = [] if spoken[0].role == "user" else [Message("user", "")]
    for role, group in groupby(spoken, lambda message: message.role):
        turns.append(_one(role, list(group)))
    return _one("system", [message for message in messages if message.role == "system"]).text, turns


def _one(role: str, messages: Sequence[Message]) -> Message:
    """Several messages of one role as one."""
    pictures = tuple(picture for message in messages for picture in message.pictures)
    return Message(role, "\n".join(message.text for message in messages if message.text), pictures)


def spelled(prompt: Sequence[Stretch]) -> tuple[str, str]:
    """A prompt's text, and the same with HIDDEN in place of each character that is in no mark or token."""
    text = "".join(stretch if isinstance(stretch, str) else stretch.text for stretch in prompt)
    seen = (stretch if isinstance(stretch, str) else HIDDEN * len(stretch.text) for stretch in prompt)
    return text, "".join(seen)


def around_pictures(prompt: str | Sequence[Stretch]) -> Iterator[tuple[str, str]]:
    """What stands before, between and behind the pictures of a prompt, each as `spelled`."""
    text, seen = spelled([prompt] if isinstance(prompt, str) else prompt)
    start = 0
    for piece in seen.split(IMAGE_MARK):
        yield text[start : start + len(piece)], piece
        start += len(piece) + len(IMAGE_MARK)


def pairs(history: object) -> list[tuple[str, str]]:
    """Earlier turns, oldest first: (question, answer) pairs, or chat messages as other programs keep them.

    Messages are {"role": "user", "content": text} and {"role": "assistant", "content": text}, by turns.
    PromptError: it is neither.
    """
    wanted = "pairs (question, answer), oldest first, or messages of user and assistant by turns"
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        raise PromptError("history", f"found {reprlib.repr(history)}", wanted)
    turns = list(history)
    if turns and all(isinstance(turn, Mapping) for turn in turns):
        if [turn.get("role") for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
            found = f"found messages of {reprlib.repr([turn.get('role') for turn in turns])}"
            raise PromptError(
                "history", found, "user and assistant by turns", "ask the last one as the question"
            )
        texts = [turn.get("content") for turn in turns]
        turns = list(zip(texts[::2], texts[1::2], strict=True))
    for i, turn in enumerate(turns):
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(t, str) for t in turn):
            raise PromptError(f"history: turn {i}", f"found {reprlib.repr(turn)}", wanted)
    return [(asked, answered) for asked, answered in turns]


def stop_string(template_name: str) -> str:
    """The text with which the model ends its answer, by the published code's rule: `sep2` in style
    TWO, else `sep`."""
    template = _template(template_name)
    return template.sep2 if template.sep_style == "TWO" and template.sep2 else template.sep


def as_jinja(template_name: str) -> str:
    """The template as GGUF files carry theirs, in Jinja. Styles SINGLE and TWO, without turns of their own.

    A first message of the role `system` takes the place of the template's. (llama.cpp runs Jinja only when
    told so; else it looks for "USER: " and "ASSISTANT: ", and takes Vicuna's prompt, which is close.)
    """
    template = _template(template_name)
    assert STYLES[template.sep_style] is _named and not template.messages
    system, sep, end = (json.dumps(t) for t in (template.system, template.sep, template.sep2 or template.sep))
    asks, answers = (json.dumps(f"{role}: ") for role in template.roles)
    return (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        f"{{% else %}}{{{{ {system} }}}}{{% endif %}}{{{{ {sep} }}}}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {asks} + message['content'] + {sep} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {answers} + message['content'] + {end} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {json.dumps(template.roles[1] + ':')} }}}}{{% endif %}}"
    )


def _template(name: str) -> Template:
    if not isinstance(name, str) or name not in TEMPLATES:
        found = f"no template is called {reprlib.repr(name)}"
        raise PromptError("conv_mode", found, f"one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


# Styles: turns are question, answer, ..., question, each in stretches. What a turn without any gives is the
# published code's doing.
Turns = Sequence[Sequence[Stretch]]


def _write(template: Template, system: Stretch, turns: Turns) -> list[Stretch]:
    """The prompt with the template's own turns before the user's."""
    return STYLES[template.sep_style](template, system, [*([text] for text in template.messages), *turns])


def _named(template: Template, system: Stretch, turns: Turns) -> list[Stretch]:
    """`system sep USER: question sep ASSISTANT: answer sep2 ... ASSISTANT:`"""
    ends = template.sep, template.sep2 or template.sep
    prompt = [system, template.sep]
    for i, turn in enumerate([*turns, []]):
        role, end = template.roles[i % 2], ends[i % 2]
        prompt += [f"{role}: ", *turn, end] if turn else [f"{role}:"]
    return prompt


def _llama_2(template: Template, system: Stretch, turns: Turns) -> list[Stretch]:
    """`[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] ... [/INST]`"""
    if not all(turns[0::2]):
        raise PromptError(
            "the conversation", "an empty question", "text, which this conv_mode cannot do without"
        )
    prompt = ["[INST] <<SYS>>\n", system, "\n<</SYS>>\n\n", *turns[0], " [/INST]"]
    for answer, question in zip(turns[1::2], turns[2::2], strict=True):
        prompt += [" ", *answer, f" {template.sep2}"] if answer else []
        prompt += [f"{template.sep}[INST] ", *question, " [/INST]"]
    return prompt


def _plain(template: Template, system: Stretch, turns: Turns) -> list[Stretch]:
    """`question sep`: a picture and its caption, as in the first stage of training."""
    if len(turns) > 1:
        raise PromptError("the conversation", "several turns", "one, since this conv_mode has no roles")
    return [system, *turns[0], template.sep] if turns[0] else [system]


STYLES: dict[str, Callable[[Template, Stretch, Turns], list[Stretch]]] = {
    "SINGLE": _named,
    "TWO": _named,
    "LLAMA_2": _llama_2,
    "PLAIN": _plain,
}

_VICUNA = Template(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    roles=("USER", "ASSISTANT"),
    sep_style="TWO",
    sep=" ",
    sep2="</s>",
)

TEMPLATES: dict[str, Template] = {
    "default": Template(
        system=(
            "A chat between a curious human and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the human's questions."
        ),
        roles=("Human", "Assistant"),
        sep_style="SINGLE",
        sep="###",
        messages=(
            "What are the key differences between renewable and non-renewable energy sources?",
            "Renewable energy sources are those that can be replenished naturally in a relatively short "
            "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
            "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, "
            "and natural gas. Here are some key differences between renewable and non-renewable energy "
            "sources:\n"
            "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
            "energy sources are finite and will eventually run out.\n"
            "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
            "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
            "emissions, and other negative effects.\n"
            "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
            "typically have lower operational costs than non-renewable sources.\n"
            "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
            "remote locations than non-renewable sources.\n"
            "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
            "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
            "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
            "non-renewable sources are not, and their depletion can lead to economic and social "
            "instability.\n",
        ),
    ),
    "llama_2": Template(
        system=(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
            "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
            "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
            "unbiased and positive in nature.\n\n"
            "If a question does not make any sense, or is not factually coherent, explain why instead of "
            "answering something not correct. If you don't know the answer to a question, please don't "
            "share false information."
        ),
        roles=("USER", "ASSISTANT"),
        sep_style="LLAMA_2",
        sep="<s>",
        sep2="</s>",
    ),
    "plain": Template(system="", roles=("", ""), sep_style="PLAIN", sep="\n"),
    "llava_llama_2": Template(
        system=(
            "You are a helpful language and vision assistant. You are able to understand the visual "
            "content that the user provides, and assist the user with a variety of tasks using natural "
            "language."
        ),
        roles=("USER", "ASSISTANT"),
        sep_style="LLAMA_2",
        sep="<s>",
        sep2="</s>",
    ),
    "v1": _VICUNA,
    "vicuna_v1": _VICUNA,
}
