"""From a record to the ids that the model reads, and to the labels that it learns.

`plain` is the first stage's wording: a picture, then its caption. `v1` is a conversation, as it is asked
later on. `plain` and `v1` teach whatever can be taught: their ids are those that `mvlm_np` makes of the same
question, and what is learned of them is what it would have to answer. `published_plain` and `published_v1`
do what the published code does (commit 688fdec), which teaches nothing of many a record, without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from mvlm_np.errors import UserError, some
from mvlm_np.inputs.conversation import IMAGE_MARK, TEMPLATES, Stretch, Text
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from tools.training.records import GPT, HUMAN, Record

IGNORED = -100  # the label of what is not learned
PAD = 0  # the id behind a shorter row's end, which is that of <unk>
V1, PLAIN = TEMPLATES["v1"], TEMPLATES["plain"]
END = V1.sep2 or V1.sep
STOPS = "the published code stops here; without --as-published it can be taught"
Turns = Sequence[tuple[str, str]]  # "human" or "gpt", and a text


@dataclass(frozen=True)
class Sample:
    """A record as the model sees it.

    ids     with IMAGE_TOKEN in place of the picture
    labels  of the same length: the id, or IGNORED where nothing is learned
    silent  why it teaches nothing; None if it does
    notes   what else of the record is not taught, or otherwise than written
    """

    ids: list[int]
    labels: list[int]
    silent: str | None = None
    notes: tuple[str, ...] = ()


def sample(
    record: Record, tokenizer: Tokenizer, version: str, limit: int = 2048, *, as_published: bool = False
) -> Sample:
    """A record in the wording `version`, "plain" or "v1"; of more than `limit` ids the rest is cut off.

    With `as_published` the ids of a record with a picture are not cut here but in the batch, and a record at
    which the published code stops is a UserError.
    """
    if version not in VERSIONS:
        raise UserError("the wording", f"found {version!r}", f"one of {', '.join(VERSIONS)}")
    taught, published = VERSIONS[version]
    if as_published:
        return published(record, tokenizer, limit)
    return _cut(taught(record, tokenizer), limit)


def report(records: Sequence[Record], samples: Sequence[Sample]) -> list[str]:
    """What is not taught, a line for each reason: how many records, and which come first."""
    found: dict[str, list[str]] = {}
    for record, one in zip(records, samples, strict=True):
        for reason in (*([f"teaches nothing: {one.silent}"] if one.silent else []), *one.notes):
            found.setdefault(reason, []).append(record.where)
    return [
        f"{len(where)} of {len(records)} records: {reason} ({some(where, 3)})"
        for reason, where in found.items()
    ]


# ---------------------------------------------------------------- what can be taught


def plain(record: Record, tokenizer: Tokenizer) -> Sample:
    """BOS, picture, caption, line break; the caption and its line break are learned.

    The caption is the first answer. The question is not used. There is no `</s>`, as in the published code.
    """
    captions = [text for speaker, text in record.turns if speaker == GPT]
    if record.image is None or not captions:
        reason = "it has no picture" if record.image is None else "it has no answer"
        return Sample([tokenizer.bos_id], [IGNORED], f"{reason}, and plain teaches captions of pictures")
    ids = tokenize_prompt([IMAGE_MARK, Text(captions[0]), PLAIN.sep], tokenizer)
    start = ids.index(IMAGE_TOKEN) + 1
    notes = ("plain teaches its first answer alone",) if len(captions) > 1 else ()
    return Sample(ids, [IGNORED] * start + ids[start:], notes=notes)


def v1(record: Record, tokenizer: Tokenizer) -> Sample:
    """`system USER: question ASSISTANT: answer</s>USER: ...`; each answer and its `</s>` are learned.

    Learned is what follows the prompt with which the answer is asked for, which ends in "ASSISTANT:".
    """
    rounds, notes = _rounds(record)
    user, assistant = V1.roles
    ids, labels = list[int](), list[int]()
    before: Stretch = V1.system + V1.sep
    skip = 0  # a round is tokenized behind the `</s>` of the one before, which is then left out
    for question, answer in rounds:
        asked = [before, f"{user}: ", *question, V1.sep] if question else [before, f"{user}:"]
        asked.append(f"{assistant}:")
        whole = [*asked, " ", Text(answer), END] if answer else [*asked, END]
        prompt, said = (tokenize_prompt(stretches, tokenizer)[skip:] for stretches in (asked, whole))
        start = _common(prompt, said)
        ids += said
        labels += [IGNORED] * start + said[start:]
        before, skip = END, len(tokenize_prompt(END, tokenizer))
    if not rounds:
        return Sample([], [], "it has no question with an answer")
    return Sample(ids, labels, notes=notes)


def _rounds(record: Record) -> tuple[list[tuple[list[Stretch], str]], tuple[str, ...]]:
    """Questions, in stretches, with their answers; and what is not as in the record.

    The picture stands before the first question that has a tag, or before the first of all.
    """
    notes = list[str]()
    turns = [
        (speaker, "\n".join(text for _, text in group))
        for speaker, group in groupby(record.turns, lambda turn: turn[0])
    ]
    if len(turns) < len(record.turns):
        notes.append("neighbouring turns of one speaker are joined by a line break")
    if turns[0][0] == GPT:
        notes.append("an answer that comes first has no question and is left out")
        turns = turns[1:]
    if len(turns) % 2:
        notes.append("the last question has no answer and is left out")
        turns = turns[:-1]
    questions, answers = ([text for _, text in turns[i::2]] for i in (0, 1))
    has_picture = record.image is not None
    tagged = [i for i, question in enumerate(questions) if has_picture and IMAGE_MARK in question]
    if has_picture and questions and not tagged:
        notes.append(f"has a picture and no {IMAGE_MARK}: the picture stands before the first question")
    if len(tagged) > 1:
        notes.append(f"has one picture and {IMAGE_MARK} in several questions: the first counts")
    shown = min(tagged, default=0) if has_picture else None
    rounds = list[tuple[list[Stretch], str]]()
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text = _untagged(question) if i in tagged else question
        stretches: list[Stretch] = [Text(text)] if text else []
        if i == shown:
            stretches = [IMAGE_MARK + "\n" * bool(text), *stretches]
        rounds.append((stretches, answer))
    return rounds, tuple(notes)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _cut(whole: Sample, limit: int) -> Sample:
    if len(whole.ids) <= limit:
        return whole
    ids, labels = whole.ids[:limit], whole.labels[:limit]
    if not _learned(labels):
        return Sample(ids, labels, whole.silent or f"its answer lies behind the {limit}th token")
    note = f"is longer than {limit} tokens, and what follows is cut off"
    return Sample(ids, labels, notes=(*whole.notes, note))


def _learned(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels)


# ---------------------------------------------------------------- what the published code teaches


def published_plain(record: Record, tokenizer: Tokenizer, limit: int) -> Sample:
    turns = _tidied(record)
    if len(turns) != 2 or IMAGE_MARK not in turns[0][1]:
        found = f"has {len(turns)} turns" if len(turns) != 2 else f"has no {IMAGE_MARK} in its first turn"
        raise UserError(record.where, found, f"two turns, {IMAGE_MARK} in the first", STOPS)
    ids = tokenize_prompt(IMAGE_MARK + turns[1][1] + PLAIN.sep, tokenizer)
    return _published(ids, [IGNORED] * 2 + ids[2:], limit)


def published_v1(record: Record, tokenizer: Tokenizer, limit: int) -> Sample:
    """Walks through the text by counting tokens; where the count is wrong at the end, nothing is learned."""
    has_picture, text = record.image is not None, _published_text(record)
    encode = partial(tokenize_prompt, tokenizer=tokenizer) if has_picture else tokenizer.encode
    ids = encode(text) if has_picture else encode(text)[:limit]
    labels, cursor = [IGNORED] * len(ids), int(tokenizer.add_bos)
    for said in text.split(END):
        parts = said.split(f" {V1.roles[1]}: ")
        if len(parts) != 2:
            break
        # Without BOS, and without the blank at the end, which is part of the answer's first token.
        start = cursor + len(encode(f"{parts[0]} {V1.roles[1]}: ")) - 2
        end = cursor + len(encode(said))  # its BOS stands for the </s> that is split off
        labels[start:end] = ids[start:end]
        cursor = end
    counted = sum(i != PAD for i in ids)
    if cursor < limit and cursor != counted:
        labels = [IGNORED] * len(ids)
        return _published(ids, labels, limit, f"tokenization mismatch: {cursor} vs. {counted}")
    return _published(ids, labels, limit)


def _published(ids: list[int], labels: list[int], limit: int, mismatch: str | None = None) -> Sample:
    silent = None if _learned(labels[:limit]) else mismatch or f"no token up to the {limit}th is learned"
    several = ids[:limit].count(IMAGE_TOKEN) > 1
    notes = (f"has {IMAGE_MARK} in several turns: the published code stops at any batch with it",) * several
    return Sample(ids, labels, silent, notes)


def _tidied(record: Record) -> Turns:
    """With a picture, each turn that has tags gets one in their place, in front."""
    if record.image is None:
        return record.turns
    return [
        (speaker, f"{IMAGE_MARK}\n{_untagged(text)}".strip() if IMAGE_MARK in text else text)
        for speaker, text in record.turns
    ]


def _untagged(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()


def _published_text(record: Record) -> str:
    turns = _tidied(record)
    if turns[0][0] != HUMAN:
        turns = turns[1:]
    text, ends = V1.system + V1.sep, (V1.sep, END)
    for i, (speaker, said) in enumerate(turns):
        if speaker != (HUMAN, GPT)[i % 2]:
            raise UserError(record.where, f"turn {i + 1} is of {speaker}", "human and gpt by turns", STOPS)
        text += V1.roles[i % 2] + (f": {said}{ends[i % 2]}" if said else ":")
    return text


VERSIONS = {"plain": (plain, published_plain), "v1": (v1, published_v1)}
