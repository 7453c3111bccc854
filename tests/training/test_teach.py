"""docs/teach.md: its commands run as they stand there, with smaller numbers, on the model in the box."""

import json
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from mvlm_np import cli
from tests.conftest import ROOT

QUESTION = "Is the valve open or shut?"
PAGE = ROOT / "docs" / "teach.md"
# The one difference between the page and this test: how much, and so how fast. "--option": its value here.
SMALLER = {
    "--pictures": "8",
    "--write-data": "1",
    "--epochs": "16",
    "--rate": "1e-2",
    "--questions": "4",
}


def commands() -> list[str]:
    """Every line of the page's blocks of commands, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def smaller(words: list[str]) -> list[str]:
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run(command: str) -> int:
    """In this process, which has loaded torch once."""
    program, *words = smaller(shlex.split(command))
    if program == "mvlm":
        return cli.main(words)
    assert program == "python", command
    return import_module(words[0].removesuffix(".py").replace("/", ".")).main(words[1:])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command has printed, all of them run in a folder that looks like the checkout."""
    folder = tmp_path_factory.mktemp("teach")
    for name in ("tools", "mvlm_np"):
        (folder / name).symlink_to(ROOT / name)
    before, printed = Path.cwd(), {}
    os.chdir(folder)
    try:
        for number, command in enumerate(commands()):
            with open(f"{number}.out", "w+", encoding="utf-8") as out, pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdout", out)
                patch.setattr(sys, "stderr", out)
                code = run(command)
                out.seek(0)
                printed[command] = out.read()
            assert code == 0, f"{command}\n{printed[command]}"
        printed["folder"] = str(folder)
        return printed
    finally:
        os.chdir(before)


def of(said: dict[str, str], program: str) -> list[str]:
    found = [text for command, text in said.items() if program in command]
    assert found, f"the page no longer calls {program}"
    return found


def test_every_command_of_the_page_runs(said: dict[str, str]) -> None:
    assert len(said) == 1 + len(commands()) == 1 + len(set(commands()))
    words = {word for command in commands() for word in command.split()}
    assert words >= SMALLER.keys()  # a number that the page no longer has would hide that this test is slow


def test_what_the_model_learns_is_seen_before_and_after(said: dict[str, str]) -> None:
    scores = of(said, "tools/score_answers.py")
    assert all("a guess from the questions alone: 50.0%" in text for text in scores)
    assert all(re.search(r"^all +8 ", text, re.M) for text in scores)
    assert re.search(r"^all +8 +0\.0%", scores[0], re.M)  # it has never said open or shut
    assert "points (" in scores[-1]
    (taught,) = of(said, "tools/finetune.py")
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", taught)]
    assert losses[-1] < losses[0] / 2  # of what is held out; right answers come later


def test_the_curve_and_the_model_for_the_board_are_there(said: dict[str, str]) -> None:
    folder = Path(said["folder"]) / "teach"
    with Image.open(folder / "run" / "finetune.png") as curve:
        assert curve.size[0] > 300
    size = {name: (folder / name / "model.safetensors").stat().st_size for name in ("tuned", "board")}
    assert size["board"] < 0.75 * size["tuned"]
    first = json.loads((folder / "board.jsonl").read_text("utf-8").splitlines()[0])
    assert (Path(first["picture"]).name, first["question"]) == ("valve-held-out-0000.png", QUESTION)
    (asked,) = of(said, "mvlm ask")
    assert asked.splitlines()[-1] == first["answer"]
