"""What is computed ahead is the same as what is computed when it is needed, errors included."""

import os
import threading

import pytest

from mvlm_np.ahead import Ahead


def test_it_is_computed_once_in_another_thread() -> None:
    seen: list[threading.Thread] = []

    def compute() -> int:
        seen.append(threading.current_thread())
        return len(seen)

    ahead = Ahead(compute)
    assert (ahead.result(), ahead.result()) == (1, 1)
    assert seen != [threading.current_thread()]


def test_none_is_a_result_too() -> None:
    calls: list[int] = []
    ahead: Ahead[None] = Ahead(lambda: calls.append(1))
    assert ahead.result() is None and ahead.result() is None and calls == [1]


def test_an_error_is_raised_where_the_result_is_asked_for_and_may_be_mended() -> None:
    files: list[str] = []

    def read() -> str:
        if not files:
            raise FileNotFoundError("none")
        return files[0]

    ahead = Ahead(read)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="none"):
            ahead.result()
    files.append("here")
    assert ahead.result() == "here"


def test_where_there_are_no_more_threads_it_is_computed_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert Ahead(lambda: 7).result() == 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_a_child_made_by_fork_meanwhile_has_the_result_too() -> None:
    parent, go_on = os.getpid(), threading.Event()

    def compute() -> int:
        if os.getpid() == parent:
            go_on.wait()
        return 7

    ahead = Ahead(compute)
    child = os.fork()
    if child == 0:
        os._exit(ahead.result())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go_on.set()
    assert (code, ahead.result()) == (7, 7)
