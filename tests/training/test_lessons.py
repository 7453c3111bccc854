"""What is taught in which step, and what is held out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mvlm_np import demo
from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import make
from tools.training.lessons import Lessons, hold_out, lessons
from tools.training.network import open_for_training
from tools.training.records import Record
from tools.training.stages import STAGES, Stage

STAGE, BOTH = STAGES["v2-lora"], ("batch", "epochs")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make(open_for_training(demo.MODEL, False, None, None).read_tokenizer())


def records(count: int, pictures: int = 0) -> list[Record]:
    """With and without pictures by turns, each with an answer of another length; or about few pictures."""
    return [
        Record(
            f"record {i}",
            Path(f"{i % pictures if pictures else i}.png") if pictures or i % 2 else None,
            (("human", "<image>\nWhat?"), ("gpt", "so " * (1 + i % 7))),
        )
        for i in range(count)
    ]


def plan(count: int, micro: int, processes: int, tokenizer: Any, **more: Any) -> tuple[Lessons, list[str]]:
    said: list[str] = []
    stage: Stage = more.pop("stage", STAGE)
    return lessons(records(count), tokenizer, stage, micro, processes, told=said.append, **more), said


def taught(found: Lessons, step: int) -> list[int]:
    """The records that count in a step, micro-batch by micro-batch."""
    numbers = [n for n in range(found.micro_batches) if found.share(step, n) > 0]
    return [i for n in numbers for i in found.chosen(step, n)]


@pytest.mark.parametrize(("micro", "processes"), [(1, 1), (8, 1), (7, 2), (16, 3), (99, 4)])
@pytest.mark.parametrize("batch", [20, 44, 128])
def test_an_epoch_has_each_record_once_however_a_step_is_cut(
    tokenizer: Any, batch: int, micro: int, processes: int
) -> None:
    """And its tokens all count the same."""
    stage = replace(STAGE, batch=batch, epochs=4.0)
    found, _ = plan(45, micro, processes, tokenizer, stage=stage)
    plain, _ = plan(45, 1, 1, tokenizer, stage=stage)
    assert found.batch == min(45, batch) and found.steps == plain.steps == 4 * -(-45 // batch)
    assert found.micro <= micro and found.micro_batches % processes == 0
    for epoch in range(4):
        steps = range(epoch * found.steps_of_epoch, (epoch + 1) * found.steps_of_epoch)
        assert sorted(i for step in steps for i in taught(found, step)) == [*range(45)]
    for step in range(found.steps):
        assert taught(found, step) == taught(plain, step)
        numbers = range(found.micro_batches)
        assert sum(found.share(step, n) for n in numbers) == pytest.approx(1)
        tokens = sum(found.learned[i] for i in taught(found, step))
        for n in numbers:
            chosen = found.chosen(step, n)
            assert 1 <= len(chosen) <= found.micro
            wanted = sum(found.learned[i] for i in chosen) / tokens
            assert found.share(step, n) in (0, pytest.approx(wanted))


def test_as_published_a_step_is_filled_up_and_its_parts_count_the_same(tokenizer: Any) -> None:
    found, said = plan(45, STAGE.micro, 8, tokenizer, as_published=True)
    assert (found.batch, found.micro, found.micro_batches, found.steps, said) == (128, 16, 8, 1, [])
    chosen = [i for n in range(8) for i in found.chosen(0, n)]
    assert len(chosen) == 128 and chosen[45:90] == chosen[:45] and {*chosen} == {*range(45)}
    assert {found.share(0, n) for n in range(8)} == {1 / 8}
    alone, _ = plan(45, STAGE.micro, 1, tokenizer, as_published=True)
    assert [alone.chosen(0, n) for n in range(8)] == [found.chosen(0, n) for n in range(8)]
    with pytest.raises(UserError, match=r"^the batch: 128 samples of a step, computed in 9 parts, wanted "):
        plan(45, STAGE.micro, 3, tokenizer, as_published=True)


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "steps"),
    [(5, 5, 10, 10), (47, 8, 10, 60), (400, 8, 2, 100), (1000, 10, 1, 100), (13000, 128, 1, 102)],
)
def test_few_records_are_taught_in_small_steps_and_several_times(
    count: int, batch: int, epochs: float, steps: int, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    from tools.training import lessons as module
    from tools.training.wording import sample

    same = sample(records(2)[1], tokenizer, "v1")
    monkeypatch.setattr(module, "sample", lambda *given, **more: same)
    found, said = plan(count, 8, 1, tokenizer, open_=BOTH)
    assert (found.batch, found.epochs, found.steps) == (batch, epochs, steps)
    assert len(said) == (count < 12_800)
    if said:
        assert said[0].startswith(f"{count} records are few: a step has {batch} samples, not 128")
        assert (f"there are {epochs} epochs, not 1" in said[0]) == (epochs > 1)


def test_what_is_asked_for_stays_and_too_few_steps_are_said(tokenizer: Any) -> None:
    """One whole step would be at a rate of 0: such a run is refused."""
    found, said = plan(47, 8, 1, tokenizer, stage=replace(STAGE, batch=10))
    assert (found.batch, found.epochs, found.steps) == (10, 1, 5)
    assert said == ["few steps (5), which teach little; take a smaller --batch or more --epochs"]
    found, _ = plan(47, 8, 1, tokenizer, open_=["epochs"])
    assert (found.batch, found.epochs) == (47, 10)
    with pytest.raises(UserError, match=r"^steps: one in all, whose learning rate is 0, wanted more; take"):
        plan(47, 8, 1, tokenizer)
    found, said = plan(47, 8, 1, tokenizer, stage=replace(STAGE, warmup=0.0))
    assert found.steps == 1 and "few steps (1)" in said[-1]
    assert plan(47, 8, 1, tokenizer, stage=replace(STAGE, batch=4, warmup=1.0))[0].steps == 12


def test_orders_are_made_when_they_are_needed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.training import lessons as module

    made: list[int] = []
    inner = module.epoch

    def spy(*given: Any, number: int, **more: Any) -> list[int]:
        made.append(number)
        return inner(*given, number=number, **more)

    monkeypatch.setattr(module, "epoch", spy)
    found, _ = plan(20, 4, 1, tokenizer, stage=replace(STAGE, batch=5, epochs=9.0))
    assert made == []
    for step in range(9, 13):
        taught(found, step)
    assert made == [2, 3]


# ---------------------------------------------------------------- what is held out


def test_no_picture_is_both_trained_with_and_held_out() -> None:
    turns = (("human", "a"), ("gpt", "b"))
    data = [Record(str(i), Path(f"{i % 7}.png") if i % 3 else None, turns) for i in range(60)]
    for share in (0.01, 0.3, 0.99):
        training, held = hold_out(data, share, 1)
        assert {*training} | {*held} == {*data} and len(training) + len(held) == 60
        assert training and held
        assert not {r.image for r in training if r.image} & {r.image for r in held if r.image}
    assert hold_out(data, 0.3, 1) == hold_out(data, 0.3, 1) != hold_out(data, 0.3, 2)


def test_one_picture_in_several_spellings_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    spellings = [tmp_path / "{}", tmp_path / ".." / tmp_path.name / "{}", tmp_path / "link" / "{}"]
    data = [
        Record("", Path(str(p).format(i)), (("human", "a"), ("gpt", "b")))
        for p in spellings
        for i in range(9)
    ]
    training, held = hold_out(data, 0.3, 1)
    assert held
    assert not {r.image.resolve() for r in training if r.image} & {r.image.resolve() for r in held if r.image}


@pytest.mark.parametrize(("pictures", "most"), [(1, 0), (2, 0), (15, 100), (400, 51), (1000, 50)])
def test_what_is_held_out_is_about_the_share(pictures: int, most: int) -> None:
    """A picture that is in most of the data is trained with; that nothing is left is said."""
    said: list[str] = []
    _, held = hold_out(records(1000, pictures), 0.05, 3, said.append)
    assert (most / 2 if pictures > 2 else 0) <= len(held) <= most
    wanted = ["none of 1000 records is held out: too many are about one picture; see --held-out"]
    assert said == ([] if held else wanted)
    assert hold_out(records(1000, pictures), 0, 3, said.append)[1] == []
    assert said == ([] if held else wanted)  # nothing more, as nothing was asked for
