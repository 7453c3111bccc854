"""`mvlm bench --serve`."""

import json
from pathlib import Path

import pytest

from mvlm_np.cli import main, served
from mvlm_np.cli.served import Heard, tokens_per_second
from mvlm_np.demo import MODEL
from mvlm_np.errors import UserError

WORDS = ["bench", "--serve", "--rounds", "1", "--new", "24"]


def test_tokens_count_where_all_answers_are_being_written() -> None:
    """From 2.0, when the second one begins, to 3.0, when the first one ends."""
    one = Heard(0.0, (1.0, 1.5, 2.0, 2.5, 3.0), 5)
    other = Heard(0.0, (2.0, 3.0, 4.0), 5)  # two tokens a piece
    assert tokens_per_second([one, other]) == pytest.approx((2 + 2) / 1.0)
    assert tokens_per_second([one]) == pytest.approx(4 / 2.0)
    assert one.first == 1.0


def test_answers_that_do_not_meet_are_no_measurement() -> None:
    with pytest.raises(UserError, match="--new: found an answer that ended before the others began"):
        tokens_per_second([Heard(0.0, (1.0, 2.0), 2), Heard(0.0, (2.0, 3.0), 2)])


def test_it_measures_a_real_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--json", "--model", str(MODEL)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {name: len(values) for name, values in figures["rounds"].items()} == dict.fromkeys(
        ["cold", "again", "one", "engine", "together", "engine together"], 1
    )
    assert figures["clients"] == served.CLIENTS
    # A new picture goes through tower and prompt, one that was asked about before through neither.
    assert figures["first_token_cold_seconds"] > figures["first_token_same_picture_seconds"] > 0
    assert figures["peak_memory_gb"] > figures["peak_memory_of_ask_gb"] / 2 > 0.01
    assert figures["peak_memory_gb"] > figures["own_memory_gb"] > 0.01
    served.show(figures)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[3].startswith("4 clients at once, in all")


def test_a_server_that_does_not_start_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--model", str(tmp_path)]) == 2
    assert str(tmp_path) in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert said.count("mvlm: ") == 1
    wanted = r"--serve: mvlm serve did not start: .*no-such-folder"
    with pytest.raises(UserError, match=wanted), served.serving(["--model=no-such-folder"]):
        pass


def test_what_a_server_refuses_is_said_and_no_key_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVLM_API_KEY", "a-key-of-some-length")
    with served.serving(["--model", str(MODEL)]) as server, pytest.raises(UserError, match="answers 400: "):
        served.ask(server.url, b"no picture", 4)
