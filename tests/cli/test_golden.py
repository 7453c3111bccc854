"""`mvlm golden record` and `compare`, as a user sees them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvlm_np.cli import main
from mvlm_np.golden.format import read_golden
from tests.conftest import ROOT
from tests.golden_sets import cases

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = cases("own/ldpv2")[0]
    out = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    asked = ["--image", str(case.image), "--question", case.question]
    assert main(["golden", "record", str(case.folder), *asked, "--float64", "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize("verb", ["record", "compare"])
def test_each_has_help_with_an_example(verb: str, run: Run) -> None:
    code, out, _ = run("golden", verb, "--help")
    assert code == 0
    assert f"mvlm golden {verb}" in out.split("example", 1)[1]


def test_what_was_recorded_is_what_torch_computed(golden: Path, run: Run) -> None:
    case = cases("own/ldpv2")[0]
    assert read_golden(golden).metadata["text"] == case.text
    code, out, err = run("golden", "compare", golden, case.folder / "golden-0.safetensors")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2].startswith("RIGHT: ")
    assert "generated_ids_beam3" in out.splitlines()[-1]  # which was not recorded


def test_a_file_of_another_kind_is_no_damaged_candidate(golden: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for file, kind in ((ROOT / "README.md", "is a text that begins"), (tmp_path / "empty", "is empty")):
        code, out, err = run("golden", "compare", golden, file)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{file}: {kind}" in err and "wanted a safetensors or npz file" in err
        assert "download" not in err


def test_a_wrong_candidate_ends_with_1_and_names_the_stage(golden: Path, run: Run, tmp_path: Path) -> None:
    stages = dict(read_golden(golden).stages)
    stages["vision.features"] = stages["vision.features"][:, ::-1]
    np.savez(tmp_path / "c.npz", **stages)  # type: ignore[arg-type]
    code, out, err = run("golden", "compare", golden, tmp_path / "c.npz", "--html", tmp_path / "page.html")
    assert (code, err) == (1, f"wrote {tmp_path / 'page.html'}\n")
    marked = [line for line in out.splitlines() if line.startswith(">")]
    assert len(marked) == 1 and marked[0].split()[1:3] == ["vision.features", "reordered"]
    assert "WRONG from vision.features on" in out
    assert (tmp_path / "page.html").stat().st_size > 10_000

    code, out, _ = run("golden", "compare", golden, tmp_path / "c.npz", "--json")
    report = json.loads(out)
    assert (code, report["right"], report["first_wrong"]) == (1, False, "vision.features")
    stage = next(s for s in report["stages"] if s["name"] == "vision.features")
    assert stage["verdict"] == "reordered" and stage["rms"] > stage["bound"]["rms"]
    exact = next(s for s in report["stages"] if s["name"] == "logits")
    assert (exact["rms"], exact["snr"]) == (0, None)


def test_stages_that_were_not_given_are_listed_on_request(golden: Path, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", logits=read_golden(golden).stages["logits"])
    assert "vision" not in run("golden", "compare", golden, tmp_path / "c.npz")[1]
    assert "vision.features" in run("golden", "compare", golden, tmp_path / "c.npz", "--all")[1]


def test_a_compact_golden_and_an_int4_candidate(run: Run, tmp_path: Path) -> None:
    case = cases("own/ldpv2")[0]
    asked = [case.folder, "--image", case.image, "--question", case.question]
    code, out, _ = run("golden", "record", *asked, "--float64", "--compact", "-o", tmp_path / "g.safetensors")
    assert code == 0 and out.startswith(f"wrote {tmp_path / 'g.safetensors'}: 27 stages")
    assert run("golden", "record", *asked, "--precision", "int4", "-o", tmp_path / "c.safetensors")[0] == 0
    found = tmp_path / "g.safetensors", tmp_path / "c.safetensors"
    assert run("golden", "compare", *found)[0] == 1
    assert run("golden", "compare", *found, "--class", "int4")[0] == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["compare", "missing.safetensors", "x.npz"], "missing.safetensors"),
        (["compare", "{golden}", "missing.npz"], "missing.npz"),
        (
            ["compare", "{golden}", "{golden}", "--class", "fp8"],
            "wanted float32, float16, bf16, int8, int4 or int8-static",
        ),
        (["compare", "{golden}", "{golden}", "--names", "missing.toml"], "missing.toml"),
        (["compare", "{golden}", "{golden}", "--html", "missing/page.html"], "missing/page.html"),
        (["record", "missing", "--question", "q", "-o", "g"], "missing"),
        (["record", "{model}", "--question", "q", "-o", "missing/g"], "missing/g"),
        (["record", "{model}", "--image", "missing.png", "--question", "q", "-o", "g"], "missing.png"),
        (
            ["record", "{model}", "--question", "q", "--precision", "int8", "--float64", "-o", "g"],
            "--float64",
        ),
    ],
)
def test_bad_input_is_one_line_and_2(
    args: list[str], says: str, golden: Path, run: Run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = cases("own/ldpv2")[0].folder
    code, _, err = run("golden", *[a.format(golden=golden, model=model) for a in args])
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("mvlm: ")]
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "g").exists()
