"""The command line: what it prints, where, and with which exit code."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm_np.cli import VERBS, main
from tests.conftest import ROOT

CAT = str(ROOT / "examples" / "chelsea.jpg")


@pytest.fixture
def folder(tiny: Path) -> str:
    return str(tiny)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: str) -> Callable[..., tuple[int, str, str]]:
    """Runs `mvlm ARGS` on the small model: exit code, standard output, standard error."""

    def run(*args: str) -> tuple[int, str, str]:
        try:
            code = main(args)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def common(folder: str) -> list[str]:
    return ["--model", folder, "--backend", "numpy", "--max-new-tokens", "6"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"mvlm {verb}" in out.split("example", 1)[1]


def test_ask_prints_the_answer_alone(run: Callable[..., tuple[int, str, str]], folder: str) -> None:
    code, out, err = run("ask", CAT, "What is it?", *common(folder))
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    assert json.loads(run("ask", CAT, "What is it?", "--json", *common(folder))[1])["text"] + "\n" == out


def test_ask_as_json_counts_tokens_and_times_every_phase(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    code, out, _ = run("ask", CAT, CAT, "Same?", "--json", *common(folder))
    result = json.loads(out)
    assert code == 0
    assert result["new_tokens"] == len(result["ids"]) == 6
    assert result["image_tokens"] == 2 * 144
    phases = {"load", "preprocess", "encode", "project", "prefill", "decode"}
    assert result["seconds"].keys() == phases
    assert all(seconds > 0 for seconds in result["seconds"].values())


def test_ask_takes_text_alone(run: Callable[..., tuple[int, str, str]], folder: str) -> None:
    code, out, _ = run("ask", "Hello?", "--json", *common(folder))
    assert code == 0
    assert json.loads(out)["image_tokens"] == 0


def test_the_model_may_come_from_the_environment(
    run: Callable[..., tuple[int, str, str]], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("chat", CAT)[0] == 2
    monkeypatch.setenv("MVLM_MODEL", folder)
    assert run("ask", "Hello?", *common(folder)[2:])[0] == 0


def test_chat_answers_line_by_line_until_an_empty_one(
    run: Callable[..., tuple[int, str, str]], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nAnd now?\n\nNot read.\n"))
    code, out, err = run("chat", CAT, *common(folder))
    assert (code, err) == (0, "")
    first = run("ask", CAT, "What is it?", *common(folder))[1]
    assert out.startswith(first)
    assert len(out) > len(first)


def test_a_turn_that_is_too_long_does_not_end_the_chat(
    run: Callable[..., tuple[int, str, str]], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 5000 + "\nWhat?\n"))
    code, out, err = run("chat", *common(folder))
    assert code == 0
    assert "positions" in err
    assert out == run("ask", "What?", *common(folder))[1]


def test_inspect_tells_settings_tensors_and_memory(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    code, out, _ = run("inspect", folder, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["config"]["decoder"]["hidden_size"] > 0
    assert {"name", "dtype", "shape", "bytes", "file"} == report["tensors"][0].keys()
    assert report["memory"]["float32"] > report["memory"]["int8"] > report["memory"]["int4"] > 0
    assert run("inspect", folder)[0] == 0


def test_inspect_says_no_when_the_weights_do_not_fit_the_settings(
    run: Callable[..., tuple[int, str, str]], folder: str, tmp_path: Path
) -> None:
    for path in Path(folder).rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 99}))
    code, out, _ = run("inspect", str(tmp_path))
    assert code == 1
    assert "missing" in out


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_bench_measures_everything(
    run: Callable[..., tuple[int, str, str]], folder: str, backend: str
) -> None:
    pytest.importorskip(backend)
    small = ["--rounds", "1", "--prompt", "8", "--new", "3", "--model", folder, "--backend", backend]
    code, out, _ = run("bench", "--json", *small)
    figures = json.loads(out)
    assert code == 0
    limits_of = figures.pop("limits_of")
    assert all(value > 0 for value in figures.values())
    assert {"load_seconds", "encode_seconds", "peak_memory_gb", "read_gb_per_second"} <= figures.keys()
    assert limits_of == {"encode": "sgemm", "prefill": "sgemm", "decode": "read"}
    for work in limits_of:
        assert f"{work}_limit" in figures


def test_bench_prints_each_figure_beside_its_limit(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    pytest.importorskip("numba")
    small = ["--rounds", "1", "--prompt", "8", "--new", "3", "--model", folder, "--precision", "int4"]
    code, out, _ = run("bench", *small, "--backend", "numba")
    assert code == 0
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert set(lines) == {"import", "load", "image encode", "prompt of 8", "decode", "peak memory"}
    assert "% of multiplying bytes in registers" in lines["prompt of 8"]
    assert "% of reading memory" in lines["decode"]


BAD = {
    "no model": (["chat", CAT], "--model"),
    "no such model": (["ask", "hi", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    "no such picture": (["ask", "/nowhere.jpg", "hi"], "/nowhere.jpg"),
    "a picture that is none": (["ask", __file__, "hi"], "test_cli.py"),
    "temperature": (["ask", "hi", "--temperature", "-1"], "temperature"),
    "top_p": (["ask", "hi", "--top-p", "2"], "top_p"),
    "template": (["ask", "hi", "--conv-mode", "v9"], "v9"),
    "backend": (["ask", "hi", "--backend", "cuda"], "cuda"),
    "precision": (["ask", "hi", "--precision", "int3"], "int3"),
    "threads": (["ask", "hi", "--threads", "0"], "threads"),
    "too long": (["ask", "word " * 5000], "positions"),
    "rounds": (["bench", "--rounds", "0"], "--rounds"),
    "inspect": (["inspect", "/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, run: Callable[..., tuple[int, str, str]], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, mentioned = BAD[name]
    if name != "no model":
        monkeypatch.setenv("MVLM_MODEL", folder)
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("mvlm: ")
    assert mentioned in err


@pytest.mark.parametrize("args", [[], ["sing"], ["ask"], ["ask", "hi", "--max-new-tokens", "many"]])
def test_a_bad_call_shows_how_to_call(args: list[str], run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run(*args)
    assert code == 2
    assert "usage: mvlm" in err


def test_a_reader_that_goes_away_is_no_error(folder: str) -> None:
    command = f"{sys.executable} -m mvlm_np inspect {folder} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [(">/dev/full", (2, "mvlm: the output cannot be written (No space left on device)\n")), (">&-", (0, ""))],
)
def test_output_that_cannot_be_written_is_no_traceback(
    redirection: str, expected: tuple[int, str], folder: str
) -> None:
    command = f"{sys.executable} -m mvlm_np inspect {folder} {redirection}"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == expected
