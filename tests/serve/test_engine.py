"""The engine without threads: whoever comes, leaves, fails or does not listen, answers are as if alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mvlm_np import decoder
from mvlm_np.errors import GenerationError, MemoryNeeded, PromptError, PromptTooLong, SchemaError
from mvlm_np.generation import Settings, log_probabilities
from mvlm_np.inputs.conversation import Message
from mvlm_np.serve import engine
from mvlm_np.serve.engine import Engine
from mvlm_np.serve.job import Job, Taken, chance
from mvlm_np.serve.prompts import prompt_of
from mvlm_np.serve.requests import (
    Busy,
    Event,
    Failed,
    Finished,
    NotRead,
    Piece,
    Request,
    Stopping,
    WaitedTooLong,
)
from tests.serve.fakes import BLOCKS, CONTEXT, TOKENIZER, FakeModel, fake, forward, picture

__all__ = ["fake"]


@dataclass
class Listener:
    """Hears events, and reads them when it likes to.

    slow    reads nothing by itself
    breaks  after so many events it is gone
    """

    slow: bool = False
    breaks: int | None = None
    events: list[Event] = field(default_factory=list)
    read: int = 0

    def __call__(self, event: Event) -> None:
        if len(self.events) == self.breaks:
            raise BrokenPipeError
        self.events.append(event)

    def unread(self) -> int:
        return len(self.events) - self.read if self.slow else 0

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def end(self) -> Finished | Failed | None:
        last = self.events[-1] if self.events else None
        return None if isinstance(last, Piece) else last


class Clock:
    """Tells the time that it is told."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def made(model: FakeModel, **options: Any) -> Engine:
    options = {"clock": Clock()} | options
    ours = Engine(model, **options)
    ours.start()
    return ours


def run(ours: Engine, most: int = 3000) -> None:
    """Until nothing is left to do."""
    for _ in range(most):
        if not ours.step():
            return
    pytest.fail("the engine does not come to an end")


def ask(ours: Engine, request: Request) -> Listener:
    listener = Listener()
    ours.submit(request, listener)
    run(ours)
    return listener


def question(text: str = "What is this?", *shades: int, **options: Any) -> Request:
    new = options.pop("new", 8)
    pictures = tuple(map(picture, shades))
    return Request((Message("user", text, pictures),), Settings(new), **options)


# ---------------------------------------------------------------- any interleaving

SHADES = [9, 80, 160, 240]


@st.composite
def requests(draw: Any) -> Request:
    messages = []
    for role in ("user", "assistant") * draw(st.integers(0, 2)):
        messages.append((role, draw(st.sampled_from(["Hi", "a", "the lamp"]))))
    odd = draw(st.sampled_from(["", "", "", "", "\u2620", "\U0001f4a3"]))
    messages.append(("user", draw(st.sampled_from(["What?", "Where is it?", "</s> <image>", ""])) + odd))
    if draw(st.booleans()):
        messages.insert(0, ("system", draw(st.sampled_from(["Be brief.", "Be kind."]))))
    shades = st.lists(st.sampled_from([*SHADES, *SHADES, 0]), max_size=2)
    how = Settings(
        draw(st.integers(0, 12)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 2)),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
    )
    return Request(
        tuple(
            Message(role, text, tuple(map(picture, draw(shades))) if role == "user" else ())
            for role, text in messages
        ),
        how,
        tuple(draw(st.lists(st.sampled_from(["e", "\ufffd", "ab", "c"]), max_size=2))),
        draw(st.sampled_from([None, 0, 2])),
        client=draw(st.sampled_from("abc")),
        low_priority=draw(st.sampled_from([False, False, True])),
    )


def outcome(listener: Listener) -> tuple[Any, ...]:
    """All of an answer that does not depend on who else is there."""
    end = listener.end
    chances = [chance for event in listener.events if isinstance(event, Piece) for chance in event.chances]
    if isinstance(end, Finished):
        return listener.text, chances, end.reason, end.prompt_tokens, end.completion_tokens
    assert isinstance(end, Failed)
    return listener.text, chances, type(end.error), str(end.error)


def alone(request: Request) -> tuple[Any, ...]:
    """The outcome of a request to which an engine without caches belongs."""
    return outcome(ask(made(FakeModel(), prefixes=0, pictures=0), request))


@dataclass
class Asked:
    """A request that was put to the engine."""

    request: Request
    listener: Listener
    job: Job
    came: float
    left: bool = False


class Household(RuleBasedStateMachine):
    """Requests come, go on, are given up, are not listened to, or wait too long, as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.engine = made(FakeModel(), places=3, queue=4, wait=50, slow=20, prefixes=20000, clock=self.clock)
        self.asked = list[Asked]()

    @property
    def open(self) -> list[Asked]:
        return [each for each in self.asked if not each.left and each.listener.end is None]

    @rule(request=requests(), kind=st.sampled_from(["good"] * 6 + ["slow"] * 2 + ["breaks"]))
    def come(self, request: Request, kind: str) -> None:
        listener = Listener(slow=kind == "slow", breaks=2 if kind == "breaks" else None)
        before = self.engine.status()
        try:
            job = self.engine.submit(request, listener, listener.unread)
        except Busy as busy:
            assert busy.ahead == before.running + before.queued == 7
            return
        assert job.ahead == before.running + before.queued < 7
        self.asked.append(Asked(request, listener, job, self.clock.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        each = data.draw(st.sampled_from(self.open))
        each.left = True
        self.engine.cancel(each.job)
        heard = len(each.listener.events)
        self.engine.step()
        assert len(each.listener.events) == heard

    @rule(count=st.integers(1, 30))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(seconds=st.sampled_from([1, 5, 30]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def read(self) -> None:
        for each in self.asked:
            each.listener.read = len(each.listener.events)

    @rule()
    def end(self) -> None:
        """Nobody comes any more, and everybody reads."""
        for _ in range(3000):
            if not self.engine.step() and not self.engine.is_busy:
                break
            self.read()
            self.clock.now += 0.01
        status = self.engine.status()
        assert status.running == status.queued == 0
        assert not self.engine._batch.members
        assert not self.engine._prefixes._used
        for each in self.asked:
            self.check(each)
        self.asked = []
        counts = status.counts
        ends = ("finished", "failed", "cancelled")
        assert counts.get("requests", 0) == sum(counts.get(how, 0) for how in ends)

    def check(self, each: Asked) -> None:
        wanted, end = alone(each.request), each.listener.end
        if each.left or (each.listener.breaks is not None and end is None):
            assert wanted[0].startswith(each.listener.text)
        elif isinstance(end, Failed) and isinstance(end.error, WaitedTooLong | NotRead):
            assert each.listener.slow or isinstance(end.error, WaitedTooLong)
            assert wanted[0].startswith(each.listener.text)
        else:
            assert outcome(each.listener) == wanted

    @invariant()
    def everything_is_bounded(self) -> None:
        status = self.engine.status()
        assert status.running <= 3
        assert status.queued <= 7
        assert status.running + status.queued <= 7
        assert status.prefixes.bytes <= status.prefixes.budget
        assert status.pictures.bytes <= status.pictures.budget
        members = {id(member) for member in self.engine._batch.members}
        assert members <= {id(job.member) for job in self.engine._placed}

    def teardown(self) -> None:
        self.end()


def test_every_answer_is_what_it_is_alone_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "forward", forward)
    monkeypatch.setattr(engine, "UNREAD", 3)
    monkeypatch.setattr(engine, "PIECE", 5)
    case = Household.TestCase
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    case().runTest()


# ---------------------------------------------------------------- slices, places, turns


def placed(ours: Engine, count: int = 1, **options: Any) -> list[tuple[Listener, Job]]:
    """Long answers that have begun."""
    found = []
    for _ in range(count):
        listener = Listener()
        found.append((listener, ours.submit(endless(**options), listener)))
    for _ in range(100):
        if all(job.first for _, job in found):
            return found
        ours.step()
    raise AssertionError


def endless(text: str = "Go on", *shades: int, **options: Any) -> Request:
    """A request whose answer takes 100 tokens."""
    return question(f"{text} \u221e", *shades, new=100, **options)


def rows_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows of each pass through the decoder from here on."""
    rows, real = list[int](), decoder.forward

    def counted(x: np.ndarray, *rest: Any) -> np.ndarray:
        rows.append(len(x))
        return real(x, *rest)

    monkeypatch.setattr(decoder, "forward", counted)
    return rows


def test_a_step_is_a_block_of_the_tower_and_a_pass_through_the_decoder(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = made(fake, prefixes=0)
    ((_, job),) = placed(ours)
    assert job.reply
    rows = rows_of_passes(monkeypatch)
    ours.submit(question("What? " * 20, 10, 20), Listener())
    for block in range(1, 2 * (BLOCKS + 1) + 1):
        before = len(job.reply.tokens)
        ours.step()
        assert fake.encoded == block
        assert rows == [1] * block
        assert len(job.reply.tokens) == before + 1
    rows.clear()
    ours.step()
    ours.step()
    assert rows[0] == 1 + engine.PIECE > rows[1] > 1


def test_text_does_not_wait_for_pictures_of_others(fake: FakeModel) -> None:
    ours, slow, quick = made(fake), Listener(), Listener()
    ours.submit(question("What?", 10, 20, 30), slow)
    ours.submit(question("Hi", new=1), quick)
    ours.step()
    ours.step()
    assert isinstance(quick.end, Finished)
    assert not slow.events


@pytest.mark.parametrize("state", ["queued", "encoding", "reading", "answering", "paused"])
def test_a_request_is_given_up_within_a_slice(
    fake: FakeModel, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PIECE", 4)
    monkeypatch.setattr(engine, "UNREAD", 2)
    ours = made(fake, places=2)
    others = placed(ours, 2 if state == "queued" else 1)
    listener = Listener(slow=state == "paused")
    job = ours.submit(endless("Say", 10), listener, listener.unread)
    at = {
        "queued": lambda: job in ours._queued,
        "encoding": lambda: job.encoding is not None and job.member is None,
        "reading": lambda: job.member is not None,
        "answering": lambda: len(listener.events) > 1,
        "paused": lambda: job.paused is not None,
    }[state]
    for _ in range(200):
        if at():
            break
        ours.step()
    assert at()
    heard, encoded = len(listener.events), fake.encoded
    ours.cancel(job)
    ours.step()
    assert (len(listener.events), fake.encoded) == (heard, encoded)
    assert job not in [*ours._queued, *ours._placed]
    assert not job.pixels
    assert (job.encoding, job.member) == (None, None)
    assert ours.status().counts["cancelled"] == 1
    run(ours)
    for other, _ in others:
        assert outcome(other) == alone(endless())


def telling(name: str, ended: list[str]) -> Callable[[Event], None]:
    """A listener that notes the end."""

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            ended.append(name)

    return listen


def test_who_comes_first_is_served_first(fake: FakeModel) -> None:
    ours, ended = made(fake, places=1), list[str]()
    for name in "abcdef":
        ours.submit(question(name), telling(name, ended))
    run(ours)
    assert ended == [*"abcdef"]


def test_nobody_has_more_than_half_of_the_places_while_somebody_else_waits(fake: FakeModel) -> None:
    ours = made(fake)
    jobs = [ours.submit(endless(client=client), Listener()) for client in "aaaaabb"]
    ours.step()
    assert [job.request.client for job in ours._placed] == [*"aabb"]
    ours.cancel(jobs[-1])
    ours.step()  # nobody else waits
    assert [job.request.client for job in ours._placed] == [*"aaba"]
    alone = made(fake)
    for _ in range(6):
        alone.submit(endless(client="a"), Listener())
    alone.step()
    assert len(alone._placed) == 4


def test_low_priority_waits_for_all_others(fake: FakeModel) -> None:
    ours, ended = made(fake, places=1), list[str]()
    for name in "LMabLc":
        ours.submit(question(name, low_priority=name in "LM", client=name), telling(name, ended))
    run(ours)
    assert ended == [*"abcLML"]


def test_low_priority_waits_no_longer_than_half_of_what_it_may(fake: FakeModel) -> None:
    """Although others never cease to come."""
    clock = Clock()
    ours, low, steps = made(fake, places=1, wait=100, clock=clock), Listener(), 0
    asked = clock.now
    ours.submit(question("Low", low_priority=True), low)
    while not low.end:
        for _ in range(3 - ours.status().queued):
            ours.submit(question("High", client="others"), Listener())
        ours.step()
        clock.now += 1
        assert (steps := steps + 1) < 200
    assert isinstance(low.end, Finished) and 50 < clock.now - asked < 80


def test_what_was_computed_for_one_owner_is_of_use_to_no_other(fake: FakeModel) -> None:
    ours = made(fake)

    def cached(owner: str) -> tuple[int, int]:
        before = fake.encoded
        end = ask(ours, question("What is this?", 9, owner=owner)).end
        assert isinstance(end, Finished)
        return end.cached_tokens, fake.encoded - before

    template = len(ours._prefixes._kept[0].ids)
    for owner in ("anna", "ben", ""):
        assert cached(owner) == (template, BLOCKS + 1)
        again, computed = cached(owner)
        assert again > template and computed == 0


def test_a_long_prompt_is_read_in_short_slices_whoever_waits(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = made(fake, prefixes=0)
    rows = rows_of_passes(monkeypatch)
    end = ask(ours, question("a " * 190, new=1)).end
    assert isinstance(end, Finished)
    assert max(rows) == engine.PIECE and sum(rows) == end.prompt_tokens - end.cached_tokens > 150


def test_a_full_queue_says_how_many_are_before_and_how_long_it_may_take(fake: FakeModel) -> None:
    ours = made(fake, places=2, queue=3)
    jobs = [ours.submit(question(str(i)), Listener()) for i in range(5)]
    assert [job.ahead for job in jobs] == [0, 1, 2, 3, 4]
    with pytest.raises(Busy, match=r"^server: busy, with 5 requests before this one") as refused:
        ours.submit(question(), Listener())
    assert refused.value.ahead == 5
    assert refused.value.seconds > 0
    assert ours.status().counts["refused"] == 1
    run(ours)
    ours.submit(question(), Listener())


def test_a_request_waits_no_longer_than_it_may(fake: FakeModel) -> None:
    clock = Clock()
    ours, late = made(fake, places=1, wait=10, clock=clock), Listener()
    ((busy, _),) = placed(ours)
    ours.submit(question(), late)
    clock.now += 11
    ours.step()
    assert isinstance(late.end, Failed)
    assert isinstance(late.end.error, WaitedTooLong)
    assert "busy: the request waited 11 s" in str(late.end.error)
    assert busy.end is None  # which has a place, and may take as long as it takes
    run(ours)
    assert outcome(busy) == alone(endless())


def test_who_does_not_read_stalls_nobody_else_and_is_given_up(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "UNREAD", 4)
    clock = Clock()
    ours, listener, other = made(fake, slow=30, clock=clock), Listener(slow=True), Listener()
    request = endless()
    ours.submit(request, listener, listener.unread)
    run(ours)
    assert len(listener.events) == 4
    assert ours.is_busy
    ours.submit(question(), other)
    run(ours)
    assert outcome(other) == alone(question())
    listener.read = 1  # not yet half of them
    assert not ours.step()
    clock.now += 29
    listener.read = 2
    run(ours)
    assert len(listener.events) == 6
    clock.now += 29
    assert not ours.step()
    listener.read = 6
    ours.step()
    listener.slow = False
    run(ours)
    assert outcome(listener) == alone(request)

    gone = Listener(slow=True)
    ours.submit(request, gone, gone.unread)
    run(ours)
    clock.now += 31
    run(ours)
    assert isinstance(gone.end, Failed)
    assert str(gone.end.error) == "answer: nobody read on for 31 s; ask again"
    assert not ours.is_busy


def test_a_stopped_engine_ends_everything_and_takes_nothing(fake: FakeModel) -> None:
    ours, waiting = made(fake, places=1), Listener()
    ((busy, _),) = placed(ours)
    ours.submit(question(), waiting)
    ours.stop()
    assert not ours.stopped
    ours.step()
    assert ours.stopped
    for listener in (busy, waiting):
        assert isinstance(listener.end, Failed)
        assert isinstance(listener.end.error, Stopping)
    with pytest.raises(Stopping):
        ours.submit(question(), waiting)


def test_status_tells_when_its_owner_was_there_last(fake: FakeModel) -> None:
    clock = Clock()
    ours = made(fake, clock=clock)
    ours.step()
    clock.now += 7
    assert 7 < ours.status().idle_seconds < 7.1
    ours.step()
    assert ours.status().idle_seconds < 0.1


# ---------------------------------------------------------------- what goes wrong


def test_a_bug_in_a_slice_ends_what_was_there_and_nothing_else(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, broken, after = made(fake), Listener(), Listener()
    ours.submit(question(), broken)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_decode", lambda self: 1 // 0)
        assert ours.step()
    assert isinstance(broken.end, Failed)
    assert isinstance(broken.end.error, ZeroDivisionError)
    assert not ours.step()
    ours.submit(question(), after)
    run(ours)
    assert outcome(after) == alone(question())


def test_what_cannot_be_read_as_a_picture_fails_alone_and_is_not_kept(fake: FakeModel) -> None:
    ours, bad, good = made(fake), Listener(), Listener()
    ours.submit(question("What?", 0), bad)
    ours.submit(question("What?", 40), good)
    run(ours)
    assert isinstance(bad.end, Failed)
    assert str(bad.end.error).startswith("picture: the model computed NaN")
    assert isinstance(good.end, Finished)
    assert ours.status().pictures.entries == 1


def test_requests_that_cannot_be_are_refused_at_once(fake: FakeModel) -> None:
    ours = made(fake)
    with pytest.raises(PromptTooLong) as long:
        ours.submit(question("What? " * 100), Listener())
    assert (long.value.context, long.value.positions > CONTEXT) == (CONTEXT, True)
    with pytest.raises(PromptError, match=r"^messages: the last one is not the user's"):
        ours.submit(Request((Message("assistant", "Hi"),)), Listener())
    with pytest.raises(SchemaError, match=r"^schema\.pattern: is not supported"):
        ours.submit(question(schema={"type": "string", "pattern": "a"}), Listener())
    with pytest.raises(GenerationError, match=r"^stop: cannot stand beside a schema; leave it out"):
        ours.submit(question(schema={}, stop=("a",)), Listener())
    with pytest.raises(GenerationError, match=r"^max_new_tokens: found 8, wanted at least 52, which"):
        ours.submit(question(schema={"type": "string", "minLength": 50}), Listener())
    fake.vision = None
    with pytest.raises(PromptError, match=r"^image: this model reads text only"):
        ours.submit(question("What?", 9), Listener())
    for options, error in (
        ({"stop": ("a",) * 5}, "^stop: found"),
        ({"stop": ("",)}, "^stop: found"),
        ({"top_logprobs": 21}, "^top_logprobs: found 21, wanted a whole number from 0 to 20"),
    ):
        with pytest.raises(GenerationError, match=error):
            question(**options)
    with pytest.raises(GenerationError, match=r"^num_beams: found 2"):
        Request((Message("user", "Hi"),), Settings(num_beams=2))
    assert not ours.is_busy
    assert ours.status().counts.get("requests", 0) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_that_fit_a_schema_fit_beside_others(fake: FakeModel, temperature: float) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"lamp": {"enum": ["on", "off"]}, "what": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["lamp", "what", "n"],
    }
    ours, how = made(fake), Settings(60, temperature, seed=1)
    asked = [
        replace(question("What?", 40), schema=schema, settings=how, top_logprobs=1),
        question("Where?", 40),
        replace(question("Who?"), schema={"type": "object"}, settings=how),
        replace(question("How many?"), schema={"type": "integer", "minimum": 10, "maximum": 99}),
    ]
    listeners = [Listener() for _ in asked]
    for request, listener in zip(asked, listeners, strict=True):
        ours.submit(request, listener)
    run(ours)
    for request, listener in zip(asked, listeners, strict=True):
        assert outcome(listener) == alone(request)
        assert isinstance(listener.end, Finished)
        if request.schema is not None:
            assert listener.end.reason == "stop"
            jsonschema.validate(json.loads(listener.text), request.schema)


def test_memory_is_looked_at_before_it_is_taken(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept makes room; else a request waits for others, and fails if there are none."""
    free = 10**9
    monkeypatch.setattr(engine.memory, "available", lambda: free)
    ours, listeners = made(fake, prefixes=10**6), [Listener() for _ in range(3)]
    for _ in range(2):
        ask(ours, question("What?", 9))
    assert ours.status().prefixes.bytes > 0
    jobs = [ours.submit(endless(), listener) for listener in listeners]
    free = engine.RESERVE + jobs[0].positions * ours._position_bytes * 5 // 4
    ours.step()
    assert ours.status().prefixes.bytes == 0
    assert (len(ours._placed), len(ours._queued)) == (1, 2)
    free = 10**9
    run(ours)
    assert all(outcome(listener) == outcome(listeners[0]) for listener in listeners)
    free = engine.RESERVE - 10**6
    failed = ask(ours, question(new=100))
    assert isinstance(failed.end, Failed)
    assert isinstance(failed.end.error, MemoryNeeded)
    assert str(failed.end.error).startswith("memory: the request takes ")


# ---------------------------------------------------------------- answers


@given(request=requests(), count=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_log_probabilities_are_those_of_the_models_logits(request: Request, count: int) -> None:
    """Of all tokens, whatever penalties and temperature make of them; they do not change the answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "forward", forward)
        given_logits = list[np.ndarray]()
        take = Taken.take

        def spied(self: Taken, logits: np.ndarray, *rest: Any) -> int:
            given_logits.append(logits.copy())
            return take(self, logits, *rest)

        patch.setattr(Taken, "take", spied)
        plain = ask(made(FakeModel()), replace(request, top_logprobs=None))
        given_logits.clear()
        listener = ask(made(FakeModel()), replace(request, top_logprobs=count))
    assert listener.text == plain.text
    if not isinstance(listener.end, Finished):
        return
    chances = [chance for event in listener.events if isinstance(event, Piece) for chance in event.chances]
    assert len(chances) == listener.end.completion_tokens == len(given_logits)
    for one, logits in zip(chances, given_logits, strict=True):
        logs = log_probabilities(logits)
        assert len(one.top) == count
        assert [other.logprob for other in one.top] == sorted(logs, reverse=True)[:count]
        assert one.logprob in logs
        assert all(one.logprob == other.logprob for other in one.top if other.raw == one.raw != b"")


def test_tokens_tell_their_text_and_their_bytes(fake: FakeModel) -> None:
    logits = np.zeros(640, np.float32)
    logits[TOKENIZER.eos_id] = 3
    logits[3 + 0xC3] = 2
    the = chance(TOKENIZER, logits, TOKENIZER.piece_to_id("\u2581the"), 2)
    assert (the.token, the.raw) == (" the", b" the")
    assert [(other.token, other.raw) for other in the.top] == [("</s>", b""), ("\ufffd", b"\xc3")]


def test_a_finished_answer_says_what_it_took(fake: FakeModel) -> None:
    ours = made(fake)
    request = question("What?", 9, 9, new=5)
    for again in range(3):
        end = ask(ours, request).end
        assert isinstance(end, Finished)
        ids = len(TOKENIZER.encode("A")) and end.prompt_tokens
        assert end.completion_tokens <= 5
        assert list(end.seconds) == ["queued", "encode", "prefill", "decode"]
        assert all(spent >= 0 for spent in end.seconds.values())
        assert end.cached_tokens == (ids - 1 if again else 33) or not again
    assert isinstance(end, Finished)
    status = ours.status()
    assert status.counts["prompt_tokens"] == 3 * end.prompt_tokens
    assert status.counts["finished"] == status.counts["requests"] == 3
    nothing = ask(ours, question(new=0))
    assert isinstance(nothing.end, Finished)
    assert (nothing.text, nothing.end.reason, nothing.end.completion_tokens) == ("", "length", 0)


def test_stop_strings_end_an_answer_and_are_not_shown(fake: FakeModel) -> None:
    request = endless()
    whole = outcome(ask(made(fake), request))[0]
    stop = whole[7:9]
    found = ask(made(fake), replace(request, stop=("no such text", stop)))
    assert found.text == whole[: whole.index(stop)].strip()
    assert isinstance(found.end, Finished)
    assert found.end.reason == "stop"
    assert found.end.completion_tokens < 100


# ---------------------------------------------------------------- over-long chats


def chat_of(turns: int, *pictures_in: int) -> tuple[Message, ...]:
    words = "the lamp"
    messages = [Message("system", "Be brief.")]
    for i in range(turns):
        shown = (picture(50 + i),) if i in pictures_in else ()
        messages += [Message("user", f"{i} {words}", shown), Message("assistant", words)]
    return (*messages, Message("user", "And now?", (picture(200),)))


def test_an_over_long_chat_loses_its_oldest_turns_where_that_is_wanted(
    fake: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    ours = made(fake)
    with pytest.raises(PromptTooLong):
        ours.submit(Request(chat_of(20, 0, 19)), Listener())
    ours.submit(Request(chat_of(20, 0, 19), drop_oldest=True), Listener())
    prompt = prompt_of(Request(chat_of(20, 0, 19), drop_oldest=True), "v1", TOKENIZER, fake.config)
    assert 1 < prompt.turns < 20
    assert prompt.length <= CONTEXT - 75
    assert prompt.pictures == (picture(50), picture(69), picture(200))
    text = TOKENIZER.decode([i for i in prompt.ids if i >= 0])
    assert text.startswith("Be brief. USER:")
    assert text.endswith("And now? ASSISTANT:")
    assert "oldest turns and 0 pictures are forgotten" in caplog.text
    run(ours)
    short = ours.submit(Request(chat_of(1, 0), drop_oldest=True), Listener())
    assert short.prompt.turns == 2  # which fits as it is


def test_prompts_of_a_growing_chat_mostly_begin_like_the_one_before(fake: FakeModel) -> None:
    """What has been read stays of use, though each request brings the whole chat."""
    same, before, chat = 0, list[int](), list[Message]()
    for i in range(40):
        shown = (picture(9 + i),) if i % 8 == 0 else ()
        request = Request((*chat, Message("user", f"{i}?", shown)), Settings(20), drop_oldest=True)
        prompt = prompt_of(request, "v1", TOKENIZER, fake.config)
        assert prompt.length <= CONTEXT - 20
        assert len(prompt.pictures) == 1 + i // 8
        same += prompt.ids[: len(before)] == before
        before = prompt.ids[:-3]  # all but the answer's beginning
        chat += [request.messages[-1], Message("assistant", "the lamp on the left")]
    assert prompt.turns > 3
    assert same >= 32


def test_of_an_over_long_chat_the_last_questions_own_pictures_stay(fake: FakeModel) -> None:
    many = tuple(picture(i) for i in range(1, 20))
    earlier = Message("user", "See", tuple(picture(100 + i) for i in range(40)))
    chat = (earlier, Message("assistant", "Yes"), Message("user", "And these?", many))
    prompt = prompt_of(Request(chat, drop_oldest=True), "v1", TOKENIZER, fake.config)
    assert prompt.turns == 1
    assert prompt.pictures[-len(many) :] == many
    assert len(many) <= len(prompt.pictures) < len(many) + 40
    with pytest.raises(PromptTooLong):
        prompt_of(Request((Message("user", "?", many * 3),), drop_oldest=True), "v1", TOKENIZER, fake.config)
