"""`mvlm doctor`: what it finds on this machine, and what it calls a problem."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_np import cores, memory
from mvlm_np.checkpoints.config_files import model_config, vision_config
from mvlm_np.cli import main
from mvlm_np.config import FAMILY, ImageConfig
from tests.conftest import ROOT
from tools.parts.family import files


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = main(["doctor", "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return code, json.loads(out)


def problems(code: str, **environment: str) -> list[str]:
    """What a new interpreter, after `code`, calls a problem; it exits with 1 if there is any."""
    run = f"{code}\nfrom mvlm_np.cli import main\nraise SystemExit(main(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    found = json.loads(done.stdout)["problems"]
    assert done.returncode == bool(found), done.stderr
    return found


def test_it_tells_what_is_computed_with(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    code, found = report(capsys)
    assert code == 0 and found["problems"] == []
    assert found["kernels"]["instruction_set"] in found["kernels"]["instruction_sets"]
    assert Path(found["kernels"]["cache"]["folder"]).is_dir()
    assert (found["cores"]["cpus"], found["cores"]["why"]) == cores.usable()
    assert found["versions"]["python"] == sys.version.split()[0]
    assert set(found["models"]) == set(FAMILY)


def test_all_of_it_is_printed_for_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    _, found = report(capsys)
    for text in (found["processor"], found["cores"]["why"], found["kernels"]["instruction_set"], *FAMILY):
        assert text in printed
    assert not any(line.endswith(" ") for line in printed.splitlines() if "GB" not in line)


def test_what_does_not_fit_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2_000_000_000)
    code, found = report(capsys)
    assert code == 0
    assert [p for p, size in found["models"]["MobileVLM_V2-1.7B"].items() if size["fits"]] == [
        "int8",
        "int4",
        "int4-symmetric",
    ]
    assert not any(size["fits"] for size in found["models"]["MobileVLM_V2-7B"].values())
    main(["doctor"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "V2-1.7B" in line)
    assert row.count("!") == 1

    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    code, found = report(capsys)
    assert code == 1
    assert "no model" in found["problems"][0]


def test_nothing_known_about_memory_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    code, found = report(capsys)
    assert code == 0
    assert found["memory"]["available"] is None
    assert main(["doctor"]) == 0


def test_without_numba_it_says_so() -> None:
    (problem,) = problems("import sys; sys.modules['numba'] = None")
    assert "NumPy" in problem


def test_an_instruction_set_that_this_cpu_lacks_is_a_problem() -> None:
    pytest.importorskip("numba")
    (problem,) = problems("", MVLM_SIMD="mmx")
    assert "MVLM_SIMD" in problem


def test_machine_code_that_cannot_be_kept_is_a_problem(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "file").touch()  # under which no folder can be made, not even by root
    (problem,) = problems("", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "XDG_CACHE_HOME" in problem


@pytest.mark.parametrize("name", FAMILY)
def test_the_familys_sizes_are_the_published_ones(name: str) -> None:
    published = files(name)
    vision = vision_config(published.tower["config.json"], name)
    image = ImageConfig(aspect_ratio="pad")
    assert model_config(published.model["config.json"], name, vision, image) == FAMILY[name]
