"""The command line: what it prints, where, and with which exit code."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm_np.cli import VERBS, main
from mvlm_np.demo import PICTURES
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
    assert run("bench")[0] == 2
    monkeypatch.setenv("MVLM_MODEL", folder)
    assert run("ask", "Hello?", *common(folder)[2:])[0] == 0


def test_without_a_model_a_chat_is_with_the_one_in_the_box(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Describe the yellow lamp.\n"))
    code, out, err = run("chat", str(PICTURES / "0.png"))
    assert (code, "lamp" in out, "the demo model" in err) == (0, True, True)


def test_an_empty_question_is_asked_as_it_is(run: Callable[..., tuple[int, str, str]], folder: str) -> None:
    code, out, err = run("ask", CAT, "", *common(folder))
    assert (code, err) == (0, "") and out


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
    assert {"name", "dtype", "shape", "bytes", "bits_per_value", "file"} == report["tensors"][0].keys()
    assert {t["bits_per_value"] for t in report["tensors"]} <= {16, 32}
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
    (weights,) = figures.pop("bits_per_weight").values()
    assert weights["bits"] == 32 and weights["matrices"] % 7 == 1
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
    own = {"import", "load", "image encode", "prompt of 8", "decode", "peak memory"}
    assert set(lines) == own | {"uint4", "int8"}
    assert lines["uint4"].endswith("4 bits with minima: precision int4")
    assert "bits a weight, 1 matrix" in lines["int8"]
    assert "% of multiplying bytes in registers" in lines["prompt of 8"]
    assert "% of reading memory" in lines["decode"]


def test_bench_measures_beside_a_busy_neighbour(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    small = ["--rounds", "1", "--prompt", "8", "--new", "3", "--model", folder, "--backend", "numpy"]
    code, out, _ = run("bench", "--neighbour", "--json", *small)
    assert code == 0
    beside = json.loads(out)["neighbour"]
    assert beside.keys() == {"encode_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"}
    assert all(value > 0 for value in beside.values())
    code, out, _ = run("bench", "--neighbour", *small)
    names = [line[:24].strip() for line in out.splitlines()]
    for name in ("image encode", "prompt of 8", "decode"):
        assert names[names.index(name) + 1] == "with a busy neighbour"


def test_bench_decodes_several_sequences_together(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    small = ["--rounds", "1", "--prompt", "8", "--new", "3", "--model", folder, "--backend", "numpy"]
    code, out, _ = run("bench", "--json", *small, "--together")
    assert code == 0
    together = json.loads(out)["together"]
    assert list(together) == ["1", "4", "8"]
    assert all(value > 0 for value in together.values())
    code, out, _ = run("bench", *small, "--together", "2", "3")
    lines = [line for line in out.splitlines() if "together" in line]
    assert [line[:24].strip() for line in lines] == ["decode, 2 together", "decode, 3 together"]
    assert lines[0].endswith("1.00 ×")


BAD = {
    "no model": (["bench"], "--model"),
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
    "together": (["bench", "--together", "1", "99"], "--together"),
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


CALLS = {
    "no verb": ([], "VERB; see mvlm --help"),
    "no such verb": (["sing"], "sing: is no verb, wanted one of demo, ask,"),
    "a picture for a verb": ([CAT, "What is it?"], f"; mvlm ask {CAT} 'What is it?'"),
    "a question to chat": (
        ["chat", CAT, "What is it?", "--model", "m"],
        "What is it?: there is no such picture",
    ),
    "an empty path": (["demo", "--html", ""], "--html: "),
    "nothing to ask": (["ask"], "question; see mvlm ask --help"),
    "a word for a number": (
        ["ask", "hi", "--max-new-tokens", "many"],
        "--max-new-tokens: found 'many', wanted a whole",
    ),
    "half a token": (
        ["ask", "hi", "--max-new-tokens", "1.5"],
        "--max-new-tokens: found '1.5', wanted a whole number",
    ),
    "a word for a temperature": (
        ["chat", "--temperature", "warm"],
        "--temperature: found 'warm', wanted a number",
    ),
    "an option without value": (
        ["ask", "hi", "--model"],
        "--model: expected one argument; see mvlm ask --help",
    ),
    "an empty model": (["ask", "hi", "--model", ""], "--model: is empty"),
    "an unknown option": (
        ["ask", CAT, "--bogus", "hi"],
        "unrecognized arguments: --bogus; see mvlm ask --help",
    ),
    "too many arguments": (["inspect", "a", "b"], "unrecognized arguments: b; see mvlm inspect --help"),
    "several lines": (["warmup", "a\nb"], "unrecognized arguments: a b"),
    "no sub-verb": (["golden"], "see mvlm golden --help"),
    "no candidate": (["golden", "compare", "g.safetensors"], "CANDIDATE; see mvlm golden compare --help"),
    "no question to record": (
        ["golden", "record", "m", "-o", "g"],
        "--question; see mvlm golden record --help",
    ),
    "a word for threads": (
        ["golden", "explain", "m", "g", "c", "--threads", "x"],
        "--threads: found 'x', wanted a whole number; see mvlm golden explain --help",
    ),
    "no choice": (["convert", "a", "b", "--precision", "int3"], "'int3'"),
    "an address on another machine": (["demo", "--html", "file://server/a.html"], "'server'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_one_line_too(name: str, run: Callable[..., tuple[int, str, str]]) -> None:
    args, mentioned = CALLS[name]
    code, out, err = run(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("mvlm: ")
    assert mentioned in err


def test_options_may_stand_anywhere(run: Callable[..., tuple[int, str, str]], folder: str) -> None:
    few = ["--backend", "numpy", "--max-new-tokens", "6"]
    expected = run("ask", CAT, "What is it?", "--model", folder, *few)
    assert expected[0] == 0
    for call in (
        ["ask", CAT, "--model", folder, "What is it?", *few],
        ["ask", "--model", folder, CAT, *few, "What is it?"],
        ["ask", *few, f"--model={folder}", CAT, "What is it?"],
        ["ask", *few, CAT, "--model", folder, "--", "What is it?"],
        ["ask", *few, "--model", folder, "--", CAT, "What is it?"],
    ):
        assert run(*call) == expected, call
    two = ["ask", CAT, "--json", CAT, "--model", folder, "Same?", *few]
    assert json.loads(run(*two)[1])["image_tokens"] == 2 * 144


def test_behind_two_dashes_nothing_is_an_option(
    run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    code, out, err = run("ask", *common(folder), "--", "--json")
    assert (code, err) == (0, "")
    assert "{" not in out


def test_options_may_stand_between_what_sub_verbs_take(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("golden", "compare", "nowhere.safetensors", "--class", "int8", "other.npz", "--json")
    assert code == 2
    assert "nowhere.safetensors" in err


@pytest.mark.parametrize("address", [True, False])
def test_a_picture_may_be_an_address_or_lie_at_home(
    address: bool,
    run: Callable[..., tuple[int, str, str]],
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my cat.jpg").write_bytes(Path(CAT).read_bytes())
    given = f"file://{tmp_path}/my%20cat.jpg" if address else "~/my cat.jpg"
    assert run("ask", given, "What is it?", *common(folder)) == run(
        "ask", CAT, "What is it?", *common(folder)
    )


@pytest.mark.parametrize(
    "given",
    [[CAT], [CAT, CAT], [f"file://{CAT}"], ["photo.jpg"], ["nowhere/photo.PNG"], [__file__], [str(ROOT)]],
    ids=["a picture", "pictures", "an address", "a name", "a path", "any file", "a folder"],
)
def test_a_question_that_was_forgotten_is_missed(
    given: list[str], run: Callable[..., tuple[int, str, str]], folder: str
) -> None:
    code, out, err = run("ask", *given, "--model", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mvlm: the question: is missing, for {given[-1]} is a file's name; mvlm ask ")


@pytest.mark.parametrize("question", ["What is this?", "What?"])
def test_a_question_before_its_picture_is_told_its_place(
    question: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = run("ask", question, CAT)
    assert (code, err) == (2, f"mvlm: {question}: stands before a picture, wanted the question last\n")


def test_forgotten_quotes_are_missed(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("ask", CAT, "Describe", "the", "lamp")
    assert code == 2
    assert err.endswith(f"wanted a question of several words in quotes; mvlm ask {CAT} 'Describe the lamp'\n")


def test_an_option_before_the_verb_is_told_its_place(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("--json", "ask", CAT, "What?")
    assert (code, err.startswith("mvlm: --json: stands before the verb, wanted it behind")) == (2, True)


def test_a_question_may_speak_of_a_file(run: Callable[..., tuple[int, str, str]], folder: str) -> None:
    assert run("ask", "Is this photo.jpg", *common(folder))[0] == 0
    assert run("ask", "tests", *common(folder))[0] == 0  # the name of a folder here


@pytest.mark.parametrize("module", ["argparse", "mvlm_np.loading", "numpy"])
def test_ctrl_c_while_it_starts_is_quiet(module: str, folder: str) -> None:
    """Within an import, where it would otherwise become another error, or be taken for a missing library."""
    code = f"""
import signal, sys
from mvlm_np.cli import main
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("as NumPy makes of it")
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Finder())
sys.exit(main(["ask", "hi", "--model", {folder!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_later_is_quiet_and_leaves_the_callers_handler(
    run: Callable[..., tuple[int, str, str]], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("mvlm_np.model.MobileVLM.chat", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert run("ask", "hi", *common(folder)) == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is before


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
