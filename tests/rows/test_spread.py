"""Rows answered by a Dask cluster: what one process answers, whatever dies, waits or is slow."""

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.errors import GenerationError, PromptError, UserError
from mvlm_np.rows import at_worker, spread
from mvlm_np.rows.answering import answer
from mvlm_np.rows.row import Answered, Row
from mvlm_np.rows.spread import MOST, ROWS, Spread, checked, tasks
from tests.rows import at_workers

distributed = pytest.importorskip("distributed")
pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("dask")  # one cluster at a time

LOAD = partial(at_worker.load, None, path_or_name=str(MODEL), precision="int4", threads=1)
PHOTOS = [str(PICTURES / f"{i}.png") for i in range(10)]
QUESTIONS = ["Is there a lamp?", "Describe it.", "How many lamps are on?"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    how = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, processes=True, host="127.0.0.1", **how) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster, set_as_default=False) as client:
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        until = time.monotonic() + 60  # one that is leaving answers nothing
        while len(client.scheduler_info()["workers"]) != 2 and time.monotonic() < until:
            time.sleep(0.05)
        yield client


def rows() -> Iterator[Row | Answered]:
    for photo in PHOTOS:
        for question in QUESTIONS:
            yield Row(f"{photo}#{question}", photo, question, max_new_tokens=6)
    yield Answered(Row("broken", None, ""), None, "rows.csv:3: is not UTF-8")
    yield Row("none", os.path.relpath("none/there.png"), "What?")
    yield Row("text", None, "Well?", max_new_tokens=2)
    yield Row("bytes", Path(PHOTOS[0]).read_bytes(), "Is there a lamp?", max_new_tokens=2)


def came(answered: list[Answered]) -> list[tuple[Any, ...]]:
    """All but the times."""
    return [(a.row, a.answer, a.error, a.tokens, a.probability) for a in answered]


@pytest.fixture(scope="module")
def wanted() -> list[tuple[Any, ...]]:
    return came(list(answer(LOAD(), rows())))


def test_the_result_is_that_of_one_process(client, wanted):
    config, notes = checked(client, LOAD, PHOTOS)
    assert config == LOAD().config and notes == []
    assert came(list(Spread(client, LOAD).answer(rows()))) == wanted


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_is_killed_loses_no_row_and_answers_none_twice(cluster, client, wanted, workers):
    cluster.scale(workers)
    client.wait_for_workers(workers, timeout=60)
    doomed, got = list(client.run(os.getpid).values()), list[Answered]()
    random.Random(workers).shuffle(doomed)
    for one in Spread(client, LOAD).answer(rows()):
        got.append(one)
        if len(got) in (3, 14):
            os.kill(doomed.pop(), signal.SIGKILL)
    assert came(got) == wanted


def test_a_worker_that_hangs_holds_nobody_up(client, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "answer_task", at_workers.hang)
    hangs, *_ = client.run(os.getpid).values()
    names = [Row(str(i), None, f"{i}?") for i in range(20 * ROWS)]
    there = Spread(client, LOAD)
    there.options = {"hangs": hangs, "until": tmp_path / "done"}
    got = list(there.answer(names))
    (tmp_path / "done").touch()
    assert [one.row for one in got] == names
    assert {one.answer for one in got} & {str(hangs)} == set()


def test_rows_of_which_workers_die_fail_and_the_others_go_on(cluster, client, monkeypatch):
    monkeypatch.setattr(spread, "answer_task", at_workers.die)
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    names = [Row(str(i), None, "die" if i == ROWS else f"{i}?") for i in range(3 * ROWS)]
    got = list(Spread(client, LOAD).answer(names))
    assert [one.row for one in got] == names
    failed = [one.error is not None for one in got]
    assert failed == [ROWS <= i < 2 * ROWS for i in range(3 * ROWS)]
    assert "KilledWorker" in str(got[ROWS].error)


def test_what_the_cluster_cannot_see_is_said_at_the_start(client, tmp_path):
    with pytest.raises(UserError, match=r"cannot load the model \(.*none: does not exist"):
        checked(client, partial(at_worker.load, None, path_or_name=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"does not see .*gone.jpg.* and 1 more"):
        checked(client, LOAD, [PHOTOS[0], str(tmp_path / "gone.jpg"), str(tmp_path / "away.jpg")])


def test_wrong_settings_are_said_before_any_row():
    for error, wrong in ((GenerationError, {"num_beams": 2}), (PromptError, {"conv_mode": "none"})):
        with pytest.raises(error):
            Spread(None, LOAD, **wrong)


def test_rows_of_a_picture_go_together():
    pictures = ["a"] * 3 + ["b"] * 20 + [None] * 10 + ["c"] * (2 * MOST + 5)
    items = [Row(str(i), picture, "What?") for i, picture in enumerate(pictures)]
    found = list(tasks(iter(items)))
    assert [row for task in found for row in task.items] == items
    sizes = [len(task.items) for task in found]
    assert sizes == [23, ROWS, MOST, MOST, 7]
    assert list(tasks([])) == []
