"""Rows answered by many processes, on one machine or on many, with Dask: the same answers in the same order.

    rows -> tasks: neighbours, of which those with one picture stay together
         -> up to two at each worker; where the picture has been before, if there is room
         -> answers, in the rows' order

Dask moves a dead worker's tasks to others. A worker that has nothing to do, as there are no more tasks or too
many wait for the first one, is given a task that another one has been at for longest. Whoever ends first
counts, so a slow worker holds nobody up, and every row is in the result once.
"""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import mvlm_np
from mvlm_np.config import Config
from mvlm_np.errors import UserError, some
from mvlm_np.paths import local
from mvlm_np.rows.answering import TOGETHER, check
from mvlm_np.rows.at_worker import About, Came, Load, answer_task, examine
from mvlm_np.rows.pictures import identity
from mvlm_np.rows.row import Answered, Row

if TYPE_CHECKING:
    from distributed import Client, Future

ROWS = 8  # of a task, unless more have one picture
MOST = 64  # of a task in any case
AT_WORKER = 2  # tasks: one that it works at, and one that waits there
AHEAD = 4  # tasks for each worker, that may be done while the first one is not
TRIES = 4  # times that a task is given out anew after it has failed as a whole
JOINING = 60.0  # seconds within which a first worker must be there, or another one if all have gone


def checked(client: "Client", load: Load, pictures: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The model as all workers have loaded it, and notes on what they compute with, a line each.

    pictures  some of those that will be asked about, on this machine

    UserError: there are no workers; or one has another version of this package, cannot load the model, has
    another one under its name, or does not see the pictures.
    """
    try:
        client.wait_for_workers(1, timeout=JOINING)
    except TimeoutError:
        fix = "start some: dask worker ADDRESS --nthreads 1 --memory-limit 0"
        raise UserError("the cluster", f"has had no worker for {JOINING:.0f} s", fix=fix) from None
    paths = [os.path.abspath(local(picture)) for picture in pictures]
    asked = {
        worker: client.submit(examine, load, paths, workers=[worker], pure=False)
        for worker in client.nthreads()
    }
    found = dict[str, About]()
    for worker, future in asked.items():
        while worker not in found:
            try:
                found[worker] = future.result(timeout=1)
            except TimeoutError:
                if worker not in client.nthreads():
                    fix = "take fewer workers, as memory may be short"
                    raise UserError(worker, "died while it loaded the model", fix=fix) from None
            except Exception as error:
                problem, fix = f"cannot work ({type(error).__name__}: {error})", "install mvlm-np there"
                raise UserError(worker, problem, fix=fix) from None
    first = next(iter(found.values()))
    for worker, about in found.items():
        if about.version != mvlm_np.__version__:
            raise UserError(worker, f"has mvlm-np {about.version}", mvlm_np.__version__)
        if about.model is None:
            fix = "give a path that leads to the model on every machine"
            raise UserError(worker, f"cannot load the model ({about.error})", fix=fix)
        if (about.model, about.files) != (first.model, first.files):
            raise UserError(worker, "has another model under this path", "the same files on every machine")
        if about.missing:
            problem = f"does not see {some(about.missing, 1)} pictures"
            raise UserError(worker, problem, "the same paths on every machine", "share their folder")
    machines = sorted({about.machine for about in found.values()})
    notes = []
    if len(machines) > 1:
        notes.append(f"workers compute with {', '.join(machines)}: answers may differ between these")
    assert first.model is not None
    return first.model, notes


@dataclass(eq=False)
class _Task:
    """Some rows that one worker answers.

    items      in their order; those that had failed before are `Answered`
    failed_at  workers that could not work at it
    came       what came of the rows among them
    """

    items: list[Row | Answered]
    futures: "list[Future]" = field(default_factory=list)
    failures: int = 0
    failed_at: set[str] = field(default_factory=set)
    came: list[Came] | None = None

    @property
    def rows(self) -> list[Row]:
        return [item for item in self.items if isinstance(item, Row)]

    def answers(self) -> Iterator[Answered]:
        assert self.came is not None
        came = iter(self.came)
        for item in self.items:
            if isinstance(item, Answered):
                yield item
            else:
                text, error, tokens, probability, seconds = next(came)
                path = _path(item)
                if path and error:
                    error = error.replace(os.path.abspath(path), path)  # as one process would say it
                yield Answered(item, text, error, tokens, probability, seconds)


def tasks(rows: Iterable[Row | Answered]) -> Iterator[_Task]:
    """Neighbours, at least ROWS of them, with all neighbours of the same picture."""
    items = list[Row | Answered]()
    for _, group in groupby(rows, lambda item: _picture(item) or object()):  # without one, each for itself
        if len(items) >= ROWS:
            yield _Task(items)
            items = []
        for item in group:
            items.append(item)
            if len(items) >= MOST:
                yield _Task(items)
                items = []
    if items:
        yield _Task(items)


def _picture(item: Row | Answered) -> object:
    return identity(item) if isinstance(item, Row) else None


def _path(row: Row) -> str | None:
    return local(row.picture) if isinstance(row.picture, str | os.PathLike) and row.picture else None


def _sent(row: Row) -> Row:
    """A row whose picture is found whatever folder a worker is in."""
    path = _path(row)
    return row if path is None else replace(row, picture=os.path.abspath(path))


class Spread:
    """Answers rows as `answering.answer` does, with the workers of a Dask client.

    load  a `functools.partial` of `at_worker.load` with its arguments, as every worker can call it

    The other arguments are those of `answering.answer`, and so are the errors.
    """

    def __init__(
        self,
        client: "Client",
        load: Load,
        *,
        together: int = TOGETHER,
        conv_mode: str = "v1",
        schema: object = None,
        **settings: Any,
    ):
        check(together, conv_mode, settings)
        self.client, self.load = client, load
        self.options = {"together": together, "conv_mode": conv_mode, "schema": schema} | settings
        self._tasks = deque[_Task]()  # from the first one that is not done
        self._running = dict["Future", tuple[_Task, str]]()  # and the worker that it was given to
        self._suspects = deque[_Task]()  # that workers have died of, or beside
        self._homes = dict[object, str]()  # where a picture has been

    def answer(self, rows: Iterable[Row | Answered]) -> Iterator[Answered]:
        """Answers rows, in their order. UserError: the scheduler has gone, or all workers have."""
        coming, more = tasks(rows), True
        try:
            while more or self._tasks:
                if self._tasks and self._tasks[0].came is not None:
                    yield from self._tasks.popleft().answers()
                    continue
                workers = self._workers()
                if self._suspects:
                    self._ask_alone(self._suspects[0], workers[0])
                elif (
                    more and len(self._tasks) < AHEAD * (len(workers) + 1) and self._free(workers, AT_WORKER)
                ):
                    task = next(coming, None)
                    if task is None:
                        more = False
                    else:
                        self._tasks.append(task)
                        self._give(task, self._best(task, workers))
                elif not self._give_again(self._free(workers, 1)):
                    self._wait()
        finally:
            with suppress(OSError):  # the scheduler may have gone
                self.client.cancel(list(self._running))
            self._running.clear()

    def _workers(self) -> list[str]:
        """All that are there; if none is, another one is waited for."""
        try:
            while not (workers := list(self.client.nthreads())):
                self.client.wait_for_workers(1, timeout=JOINING)
            return workers
        except TimeoutError:
            found = f"has lost all workers, and none has come for {JOINING:.0f} s"
            raise UserError("the cluster", found, fix="start some, then go on with --resume") from None
        except OSError:
            raise _gone() from None

    def _free(self, workers: Sequence[str], most: int) -> list[str]:
        """Workers with fewer than `most` tasks, those with the fewest first."""
        given = Counter(worker for _, worker in self._running.values())
        return sorted((worker for worker in workers if given[worker] < most), key=lambda w: given[w])

    def _best(self, task: _Task, workers: Sequence[str]) -> str:
        """A free worker, if possible one that has seen one of the task's pictures."""
        free, pictures = self._free(workers, AT_WORKER), {*map(_picture, task.items)} - {None}
        best = next((home for p in pictures if (home := self._homes.get(p)) in free), free[0])
        self._homes.update(dict.fromkeys(pictures, best))
        return best

    def _give(self, task: _Task, worker: str) -> None:
        rows = [_sent(row) for row in task.rows]
        if not rows:
            task.came = []
            return
        where = {"workers": [worker], "allow_other_workers": True, "pure": False}
        future = self.client.submit(answer_task, self.load, rows, self.options, **where)
        task.futures.append(future)
        self._running[future] = task, worker

    def _ask_alone(self, suspect: _Task, worker: str) -> None:
        """Finds out whether workers die of a task: while it is answered, no other one is."""
        if not self._running:
            self._give(suspect, worker)
        self._wait()
        if suspect.came is not None:
            self._suspects.popleft()

    def _give_again(self, idle: Sequence[str]) -> bool:
        """Gives the first task that one worker alone has to an idle one. False: there is no such pair."""
        for task in self._tasks:
            if task.came is None and len(task.futures) == 1:
                _, worker = self._running[task.futures[0]]
                if others := [other for other in idle if other != worker]:
                    self._give(task, others[0])
                    return True
        return False

    def _wait(self) -> None:
        """Takes in what has ended; waits for it for a second at most, as workers come and go meanwhile."""
        from distributed.client import FuturesCancelledError, wait

        try:
            with self.client.as_current():
                done = wait(list(self._running), timeout=1, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            return
        except (OSError, FuturesCancelledError):  # what is running is lost with the scheduler
            raise _gone() from None
        for future in done:
            if future in self._running and future.status != "lost":  # else Dask computes it again
                self._take_in(future)

    def _take_in(self, future: "Future") -> None:
        task, worker = self._running.pop(future)
        task.futures.remove(future)
        try:
            task.came = future.result()
        except Exception as problem:  # the task's, its workers', or somebody has cancelled it
            error = problem
        else:
            for other in task.futures:
                self._running.pop(other)
            self.client.cancel(task.futures)
            task.futures.clear()
            return
        if self.client.status != "running":
            raise _gone()
        task.failures += 1
        task.failed_at.add(worker)
        if task.futures:
            return  # another one is at it
        kills = type(error).__name__ == "KilledWorker"  # several workers have died that had it
        if kills and task not in self._suspects:
            self._suspects.append(task)
            return
        if not kills and task.failures < TRIES:
            workers = self._free(self._workers(), len(self._running) + 1)
            self._give(task, next((other for other in workers if other not in task.failed_at), worker))
            return
        text = " ".join(f"no worker can answer it ({type(error).__name__}: {error})".split())
        task.came = [(None, text, 0, 0.0, 0.0)] * len(task.rows)


def _gone() -> UserError:
    return UserError("the scheduler", "does not answer", fix="go on with --resume once it is back")
