"""When a watch asks, and what it hands on: with a clock that stands still between two looks."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import count, repeat
from typing import Any

import pytest

from mvlm_np.errors import ImageError, UserError
from mvlm_np.watch import readings
from mvlm_np.watch.asking import NotNow, Reply
from mvlm_np.watch.gate import Gate
from mvlm_np.watch.loop import Loop, Pace
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.stopping import Stopped, Stopper
from tests.watch.camera import FakeClock, FakeSource, Kept, jpeg, scene

ROOM, GUEST = jpeg(scene()), jpeg(scene(at=(30, 40)))


class FakeModel:
    """Answers, or raises what is in the list instead; each answer takes its time."""

    def __init__(self, clock: FakeClock, answers: Iterable[Any] = repeat("A room"), seconds: float = 2.0):
        self.clock, self.answers, self.seconds = clock, iter(answers), seconds
        self.asked: list[tuple[float, bytes]] = []

    def ask(self, data: bytes) -> Reply:
        self.asked.append((self.clock.now() - 1000.0, data))
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        self.clock.sleep(self.seconds)
        text, p = answer if isinstance(answer, tuple) else (answer, 0.91234567)
        return Reply(text, 3, p)


def camera(
    *spans: tuple[float, float, bytes | str], rate: float = 4.0
) -> Iterator[tuple[float, bytes | str]]:
    """Pictures for FakeSource: in each span of seconds, what is seen."""
    for begin, end, seen in spans:
        for i in range(round((end - begin) * rate)):
            yield begin + i / rate, seen


def watch(
    frames: Iterable[tuple[float, bytes | str]],
    answers: Iterable[Any] = repeat("A room"),
    *,
    live: bool = True,
    gate: Gate | None = None,
    pace: Pace = Pace(),  # noqa: B008
    reader: readings.Reader = readings.text,
    model_seconds: float = 2.0,
    **options: Any,
) -> tuple[Kept, FakeModel]:
    clock = FakeClock()
    kept, model = Kept(), FakeModel(clock, answers, model_seconds)
    gate = gate or (Gate() if live else Gate(0, 0))
    common = {"clock": clock, "stopper": Stopper(), "notes": Notes(clock), **options}
    Loop(FakeSource(clock, frames, live), gate, model, reader, [kept], pace, **common).run()
    return kept, model


def times(model: FakeModel) -> list[float]:
    return [round(now, 1) for now, _ in model.asked]


def test_a_change_is_asked_about_and_handed_on() -> None:
    kept, model = watch(camera((0, 20, ROOM), (20, 60, GUEST)))
    assert times(model) == [1.0, 21.0]
    assert [picture for _, picture in model.asked] == kept.pictures == [ROOM, GUEST]
    first, second = kept.events
    assert json.loads(second.json()) == {
        "time": "2026-11-01T12:00:21+00:00",
        "source": "camera",
        "changed": True,
        "answer": "A room",
        "p": 0.9123,
        "tokens": 3,
        "seconds": 2.0,
        "file": None,
    }
    assert first.time == "2026-11-01T12:00:01+00:00"


def test_no_question_comes_sooner_than_wanted() -> None:
    """The scene changes every two seconds; what is there when the next question may come is asked about."""
    seen = [(2.0 * i, 2.0 * i + 2, (ROOM, GUEST)[i % 2]) for i in range(15)]
    _, model = watch(camera(*seen), gate=Gate(settle=0.0), pace=Pace(at_most=7.0), model_seconds=0.5)
    gaps = [b - a for a, b in zip(times(model), times(model)[1:], strict=False)]
    assert len(gaps) >= 3 and min(gaps) >= 7


def test_an_answer_that_takes_long_delays_the_next_question_by_no_more() -> None:
    seen = [(8.0 * i, 8.0 * i + 8, (ROOM, GUEST)[i % 2]) for i in range(5)]
    _, model = watch(camera(*seen), gate=Gate(settle=0.0), pace=Pace(at_most=5.0), model_seconds=11.0)
    assert times(model)[:3] == [0.0, 11.0, 22.0]


def test_a_question_is_asked_at_least_so_often() -> None:
    kept, model = watch(camera((0, 100, ROOM), rate=1), pace=Pace(at_least=30.0))
    assert times(model) == [1.0, 31.0, 61.0, 91.0]
    assert [event.changed for event in kept.events] == [True, False, False, False]


def test_it_ends_after_so_many_questions() -> None:
    kept, _ = watch(camera((0, 100, ROOM)), gate=Gate(change=0), pace=Pace(at_most=2.0, count=3))
    assert len(kept.events) == 3


def test_each_file_is_asked_about_and_none_is_lost_while_the_pace_forbids() -> None:
    files = [(0.0, ROOM), (1.0, GUEST), (30.0, ROOM)]
    _, model = watch(files, live=False)
    assert model.asked == [(0.0, ROOM), (5.0, GUEST), (30.0, ROOM)]


def test_a_single_picture_from_a_pipe_is_asked_about() -> None:
    _, model = watch([(0.0, ROOM)])
    assert [picture for _, picture in model.asked] == [ROOM]


def test_the_last_picture_of_a_pipe_is_asked_about_if_it_differs() -> None:
    _, model = watch([*camera((0, 3, ROOM)), (3.0, GUEST)])
    assert model.asked == [(1.0, ROOM), (6.0, GUEST)]
    assert len(watch([*camera((0, 3, ROOM)), (3.0, ROOM)])[1].asked) == 1


def test_only_answers_that_change() -> None:
    answers = ["yes", "yes", "no", "no", "yes"]
    kept, model = watch(
        camera((0, 100, ROOM)), answers, gate=Gate(change=0), pace=Pace(count=5), only_changes=True
    )
    assert [event.answer for event in kept.events] == ["yes", "no", "yes"]
    assert len(model.asked) == 5


def test_numbers_that_are_not_believed_are_null_with_the_reason() -> None:
    kept, _ = watch(
        camera((0, 100, ROOM)),
        ["It shows 20.", "21", "900", "nothing", ("22", 0.3)],
        gate=Gate(change=0),
        pace=Pace(count=5),
        reader=readings.Number(most=100),
        sure=0.5,
    )
    lines = [json.loads(event.json()) for event in kept.events]
    assert [line["answer"] for line in lines] == [20, 21, None, None, None]
    assert [line.get("text") for line in lines] == ["It shows 20.", None, "900", "nothing", "22"]
    assert [line.get("reason") for line in lines] == [
        None, None, "900 is more than 100", "there is no number in the answer: 'nothing'",
        "p 0.30 is less than 0.5",
    ]  # fmt: skip


def test_a_camera_that_goes_is_waited_for_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    kept, model = watch(camera((0, 10, ROOM), (10, 400, "unplugged"), (400, 410, GUEST), rate=1))
    assert times(model) == [1.0, 401.0]
    assert kept.presence == [False, True]
    notes = [
        "mvlm: note: camera: unplugged; waiting for it",
        "mvlm: note: camera: is there again",
    ]
    assert capsys.readouterr().err.splitlines() == notes


def test_damaged_pictures_are_passed_over_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, model = watch(camera((0, 10, b"no picture"), (10, 20, ROOM)))
    assert times(model) == [11.0]
    said, again = capsys.readouterr().err.splitlines()
    assert "is no picture" in said and again == "mvlm: note: pictures: can be read again"


def test_a_picture_that_only_the_model_cannot_read_is_passed_over() -> None:
    error = ImageError("the picture", "is damaged")
    kept, model = watch(camera((0, 10, ROOM)), [error, "A room"])
    assert times(model) == [1.0, 1.2] and len(kept.events) == 1


@pytest.mark.parametrize("live", [True, False])
def test_a_server_that_is_away_is_asked_again_later(live: bool, capsys: pytest.CaptureFixture[str]) -> None:
    frames = camera((0, 30, ROOM)) if live else iter([(1.0, ROOM)])
    kept, model = watch(
        frames, [NotNow("is away"), NotNow("is away"), NotNow("is busy"), "A room"], live=live
    )
    assert times(model)[0] == 1.0 and len(model.asked) == 4 and len(kept.events) == 1
    waits = [b - a for a, b in zip(times(model), times(model)[1:], strict=False)]
    assert [round(wait) for wait in waits] == [1, 2, 4]
    assert capsys.readouterr().err.splitlines() == [
        "mvlm: note: the answer: is away; trying again",
        "mvlm: note: the answer: is busy; trying again",
        "mvlm: note: the answer: comes again",
    ]


def test_an_error_that_waiting_does_not_mend_ends_it() -> None:
    with pytest.raises(UserError, match="wrong key"):
        watch(camera((0, 10, ROOM)), [UserError("server", "wrong key")])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_where_it_waits_and_lets_a_line_be_written(number: signal.Signals) -> None:
    done: list[str] = []

    class Slow(Kept):
        def put(self, event: Any, picture: bytes) -> None:
            signal.raise_signal(number)
            done.append("written")

    clock, stopper = FakeClock(), Stopper()
    source, before = FakeSource(clock, camera((0, 10, ROOM))), signal.getsignal(number)
    common: dict[str, Any] = {"clock": clock, "stopper": stopper, "notes": Notes(clock)}
    loop = Loop(source, Gate(), FakeModel(clock), readings.text, [Slow()], Pace(), **common)
    with stopper.listening(), pytest.raises(Stopped):
        loop.run()
    assert done == ["written"] and stopper.signal == number and signal.getsignal(number) is before


@pytest.mark.parametrize("where", ["the source", "the model"])
def test_a_signal_ends_what_takes_long(where: str) -> None:
    clock, stopper = FakeClock(), Stopper()

    def interrupted(then: Callable[..., Any], after: int) -> Callable[..., Any]:
        calls = count()

        def call(*args: Any) -> Any:
            if next(calls) == after:
                signal.raise_signal(signal.SIGTERM)
                raise AssertionError("went on")
            return then(*args)

        return call

    source, model, kept = FakeSource(clock, camera((0, 10, ROOM))), FakeModel(clock), Kept()
    if where == "the source":
        source.next = interrupted(source.next, 2)  # type: ignore[method-assign]
    else:
        model.ask = interrupted(model.ask, 0)  # type: ignore[method-assign]
    common: dict[str, Any] = {"clock": clock, "stopper": stopper, "notes": Notes(clock)}
    with stopper.listening(), pytest.raises(Stopped):
        Loop(source, Gate(), model, readings.text, [kept], Pace(), **common).run()
    assert not kept.events


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopper().listening():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_note_is_one_line_without_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    notes = Notes(clock)
    notes.say("cam", "rtsp://me:secret@cam/s?pwd=secret&x=1\nfailed \x1b[31m")
    assert capsys.readouterr().err == "mvlm: note: cam: rtsp://cam/s?pwd=...&x=1 failed  [31m\n"


def test_what_goes_wrong_all_the_time_is_said_every_ten_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    notes = Notes(clock)
    for i in range(3600):
        notes.say("cam", f"has ended after {i} bytes")
        notes.say("cam", "", well="is there again")
        clock.sleep(1.0)
    said = capsys.readouterr().err.splitlines()
    assert said[::2] == [f"mvlm: note: cam: has ended after {i} bytes" for i in range(0, 3600, 600)]
    assert said[1::2] == ["mvlm: note: cam: is there again"] * 6
    notes.say("cam", "cannot be started")
    assert capsys.readouterr().err == "mvlm: note: cam: cannot be started\n"
