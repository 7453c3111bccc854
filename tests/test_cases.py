"""Inputs from public bug reports, each a program in ../shared/cases that prints what becomes of them.

`expected.txt` beside each says in words what is right; the checks here say the same in code. Every rule has
a smaller twin in the other tests.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHARED

CASES = SHARED / "cases"
RIGHT = "ufainjaorgllama"  # how the reference model's answer begins
# With the names of common.py in place, which not every program imports.
START = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import common
runpy.run_path(sys.argv[2], init_globals=vars(common), run_name="__main__")
"""
RUN = re.compile(
    r"^## (?P<label>.*)\n   rc=(?P<code>-?\d+) out=(?P<q>['\x22])(?P<out>.*)(?P=q)\n   err=(?P<err>.*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Run:
    """One call of `mvlm`, as a case prints it."""

    label: str
    code: int
    out: str
    err: str

    @property
    def answered(self) -> bool:
        return self.code == 0 and self.out.startswith(RIGHT)

    def refused(self, *mentioned: str) -> bool:
        return self.code == 2 and self.out == "" and all(text in self.err for text in mentioned)


Check = Callable[[list[Run], str], None]
CHECKS: dict[str, Check] = {}


def case(name: str) -> Callable[[Check], Check]:
    """The check of ../shared/cases/NAME: of its calls of `mvlm`, and of all that it printed."""
    return lambda check: CHECKS.setdefault(name, check)


@case("01-options-between-picture-and-question")
def _(runs: list[Run], printed: str) -> None:
    first, second, two, last = runs
    assert first.answered and second.answered and last.answered
    assert first.out.startswith(last.out) and second.out == last.out
    assert two.code == 0 and two.out


@case("02-tower-is-a-path-of-the-trainer")
def _(runs: list[Run], printed: str) -> None:
    assert [run.refused("mm_hidden_size") for run in runs] == [True] * 4  # so the tower was recognised


@case("03-only-tokenizer.json")
def _(runs: list[Run], printed: str) -> None:
    asked, inspected = runs
    assert asked.answered
    assert inspected.code == 0


@case("04-history-in-openai-format")
def _(runs: list[Run], printed: str) -> None:
    understood = "USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: What colour is it? ASSISTANT:"
    assert understood in printed
    assert printed.count("-> refused: history") == 3


@case("05-question-forgotten")
def _(runs: list[Run], printed: str) -> None:
    assert [run.refused("the question: is missing", "chelsea.png") for run in runs] == [True] * 2


@case("06-no-mmproj-found")
def _(runs: list[Run], printed: str) -> None:
    assert [run.answered for run in runs] == [True, True, False, False, True]
    assert runs[2].refused("mmproj") and runs[3].refused("mmproj")


@case("07-folder-of-another-kind")
def _(runs: list[Run], printed: str) -> None:
    pair, hub, snapshots, training, adapter, trained, nested = runs
    assert pair.answered or pair.refused("ggml-model-q8_0.gguf")
    for run in (hub, snapshots):
        assert run.answered or run.refused("snapshots/abc")
    assert training.answered or training.refused("checkpoint-500")
    for run in (adapter, trained):
        assert run.refused("LoRA adapter", "mvlm convert", "--lora")
    assert nested.refused("named/style")


@case("08-gguf-without-its-suffix")
def _(runs: list[Run], printed: str) -> None:
    assert [run.answered for run in runs] == [True] * 2


@case("10-vocabulary-padded-beyond-the-tokenizer")
def _(runs: list[Run], printed: str) -> None:
    assert runs[0].answered
    assert [run.code for run in runs] == [0] * 5


@case("11-photo-of-108-megapixels")
def _(runs: list[Run], printed: str) -> None:
    for run in runs:
        assert run.code == 0 or run.refused("memory"), run


@case("13-sixteen-bit-grey-and-float")
def _(runs: list[Run], printed: str) -> None:
    means = [float(text) for text in re.findall(r"sees ([\d.]+), of the picture 119\.5", printed)]
    scaled = len(means) == 4 and all(abs(mean - 119.5) < 1.5 for mean in means)
    assert scaled or "16" in runs[0].err
    assert runs[0].code == 0


@case("14-too-many-pictures-said-late")
def _(runs: list[Run], printed: str) -> None:
    assert runs[0].refused("60", "13")


@case("15-lora-with-resized-vocabulary")
def _(runs: list[Run], printed: str) -> None:
    assert runs[0].code == 0


@case("16-added-token-beyond-the-model")
def _(runs: list[Run], printed: str) -> None:
    asked, containing, gguf, int4 = runs
    assert asked.answered
    assert containing.code == 0 or containing.refused("<pad>", "added_tokens.json")
    assert gguf.code == int4.code == 0
    assert "<pad>" in gguf.err


@case("17-control-groups-of-version-1")
def _(runs: list[Run], printed: str) -> None:
    assert [line[2:] for line in printed.splitlines()] == [" -> bytes available: 2147483648  CPUs: 1.5"] * 2


@case("19-cache-on-a-full-disk")
def _(runs: list[Run], printed: str) -> None:
    assert re.findall(r"^run \d: (\d+) empty", printed, re.MULTILINE) == ["0"] * 3
    assert "mvlm: compiling" in printed and "later starts" not in printed


@case("21-chat-at-the-end-of-its-context")
def _(runs: list[Run], printed: str) -> None:
    assert printed.startswith("exit 0 ")
    assert "shorten" not in printed
    assert "turns are forgotten" in printed


@case("23-two-streams-of-one-chat")
def _(runs: list[Run], printed: str) -> None:
    alone, said, history, streams = printed.splitlines()
    alone, said = (line.split(": ", 1)[1].strip() for line in (alone, said))
    assert alone[1:].startswith(said[1:-1])
    assert history.startswith("history: [('two', ") and history.count("(") == 1
    assert streams == "two model.stream at once: True True"


@case("24-python-types")
def _(runs: list[Run], printed: str) -> None:
    assert len(re.findall(r" UserError: question: found .*, wanted text$", printed, re.MULTILINE)) == 4


@case("26-file-urls-and-tildes")
def _(runs: list[Run], printed: str) -> None:
    address, model, picture = runs
    assert address.answered
    assert model.refused(str(Path("~/models/x").expanduser()))
    assert picture.refused(str(Path("~/photo.png").expanduser()))


@case("27-pull")
def _(runs: list[Run], printed: str) -> None:
    pulled = {
        name: (int(code), err)
        for name, code, err in re.findall(r"^--- (\S+) rc (\d+) \n  out .*?\n  err (.*?)(?=\n---|\nComp|\Z)",
                                          printed, re.MULTILINE | re.DOTALL)
    }  # fmt: skip
    assert pulled["me/good"][0] == 0
    assert "GGUF" in pulled["ZiangWu/MobileVLM_V2-1.7B-GGUF"][1]
    assert "LoRA adapter" in pulled["me/adapter"][1]
    assert pulled["me/tf5"][0] != 0 and "tokenizer.json" in pulled["me/tf5"][1]  # it is empty
    assert "clip-vit-large-patch14-336" in pulled["me/abs"][1]
    assert next(code for name, (code, _) in pulled.items() if name.startswith("https://")) == 0
    for name in ("me/sub", "me/llava", "me/qwen", "me/nothere"):
        assert pulled[name][0] in (1, 2)


def _missing(name: str) -> str | None:
    """Why this machine cannot run a case, if it cannot."""
    if name.startswith("19-"):
        pytest.importorskip("numba")
        mounts = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
        if subprocess.run(mounts, capture_output=True).returncode:
            return "needs the right to mount a file system"
    if name.startswith("27-"):
        pytest.importorskip("huggingface_hub")
    return None


def test_every_case_has_its_check() -> None:
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases, which is not part of the repository")
    assert {path.parent.name for path in CASES.glob("*/run.py")} == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_case(name: str, tmp_path: Path) -> None:
    program = CASES / name / "run.py"
    if not program.is_file():
        pytest.skip(f"needs ../shared/cases/{name}, which is not part of the repository")
    if reason := _missing(name):
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", START, str(CASES), str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        env=_environment(tmp_path),
    )
    printed = done.stdout
    assert done.returncode == 0, printed + done.stderr
    assert "Traceback" not in printed, printed
    runs = [Run(m["label"], int(m["code"]), m["out"], m["err"]) for m in RUN.finditer(printed)]
    try:
        CHECKS[name](runs, printed)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{printed}") from None


def _environment(folder: Path) -> dict[str, str]:
    """A user's who has set nothing, with the cases' folders of copies in one that goes away."""
    ours = ("MVLM_MODEL", "XDG_CACHE_HOME")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"TMPDIR": str(folder)}
