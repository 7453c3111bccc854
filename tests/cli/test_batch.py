"""`mvlm batch`, with the model in the box: what it writes and says, and calls that are wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import mvlm_np
from mvlm_np.cli import main
from mvlm_np.demo import MODEL, PICTURES

pytestmark = pytest.mark.xdist_group("demo")
PHOTOS = [str(PICTURES / f"{i}.png") for i in range(3)]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVLM_MODEL", raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["batch", *args])
        return code, *capsys.readouterr()

    return run


def test_answers_are_those_of_ask_in_order_and_a_failure_is_told(run, tmp_path):
    table, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions = ["Is the lamp on?", "What does the label say?"]
    asked = [(photo, question) for photo in PHOTOS for question in questions]
    lines = [f'{photo},"{question}"' for photo, question in asked]
    table.write_text("\n".join(["picture,question", *lines[:3], "none.png,What?", *lines[3:]]))
    code, printed, said = run(str(table), "-o", str(out), "--max-new-tokens", "8")
    assert code == 1 and printed == ""
    assert "1 row holds no question to ask; the first: none.png: there is no such file" in said
    assert f'1 rows failed, see "error" in {out}' in said
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    model = mvlm_np.load(MODEL)
    wanted = [model.ask(*row, max_new_tokens=8) for row in asked]
    assert [record["answer"] for record in records] == [*wanted[:3], None, *wanted[3:]]
    assert (
        records[3]["error"].startswith("none.png: there is no such file") and records[3]["id"] == f"{table}:5"
    )
    assert all(0 < record["probability"] <= 1 and record["tokens"] for record in records if record["answer"])
    before = out.read_bytes()
    assert run(str(table), "-o", str(out), "--resume", "--max-new-tokens", "8")[0] == 1
    assert out.read_bytes() == before


def test_several_questions_go_to_standard_output_as_csv(run):
    code, printed, _ = run(*PHOTOS[:2], "--question", "Who?", "--question", "Why?", "--format", "csv")
    assert code == 0
    first, *rows = printed.splitlines()
    assert first == "id,picture,question,answer,error,tokens,probability,seconds"
    assert [row.split(",")[0] for row in rows] == [f"{photo}#{n}" for photo in PHOTOS[:2] for n in (1, 2)]


@pytest.mark.parametrize(
    "args, error",
    [
        (["none/", "What?"], "none/: there is no such file or folder"),
        ([PHOTOS[0], PHOTOS[1]], "the question: is missing"),
        ([PHOTOS[0]], "the question"),
        (["."], "the question: is missing: . stands last"),
        (["What?"], "the question: is missing: What? stands last"),
        ([".", PHOTOS[0]], "the question: is missing"),
        (["*.jpg", "What?"], "*.jpg: matches no file"),
        ([PHOTOS[0], "What?", "--resume"], "--resume: has no file to go on with"),
        ([PHOTOS[0], "What?", "-o", "none/out.jsonl"], "none/out.jsonl: cannot be written"),
        ([PHOTOS[0], "What?", "--temperature", "-1"], "temperature: found -1.0"),
        ([PHOTOS[0], "What?", "--together", "0"], "together: found 0"),
        ([PHOTOS[0], "What?", "--conv-mode", "none"], "none"),
        ([PHOTOS[0], "What?", "--num-beams", "2"], "unrecognized arguments: --num-beams"),
        ([PHOTOS[0], "What?", "--schema", "{"], "--schema: is not JSON"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(run, tmp_path, args, error):
    if "-o" not in args and "--resume" not in args:
        args = [*args, "-o", "out.jsonl"]
    code, printed, said = run(*args)
    assert (code, printed) == (2, "") and error in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
