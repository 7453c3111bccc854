"""`mvlm convert` and `mvlm inspect --verify`, as a user sees them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import mvlm_np
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.lora import merged
from mvlm_np.cli import main
from mvlm_np.loading import bound_tensors
from mvlm_np.projector import image_tokens
from tests.checkpoints.adapters import BASE, sound

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def test_what_rounding_cost_stands_in_a_table_on_stdout(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", BASE, tmp_path / "out", "--precision", "int4")
    assert (code, err) == (0, "")
    *rows, meaning, last = out.splitlines()
    assert meaning == "uint4 is 4 bits with minima: precision int4"
    assert last == f"wrote {tmp_path / 'out'}"
    rounding = json.loads((tmp_path / "out" / "mvlm.json").read_text())["rounding"]
    assert [row.split()[0] for row in rows] == list(rounding)
    assert len({len(row) for row in rows}) == 1  # columns in line
    for row in rows:
        name, kept, loss, unit = row.split()
        assert kept == ("uint4" if name.startswith("model.layers") else "int8") and unit == "dB"
        assert float(loss) == round(rounding[name]["signal_to_noise_db"], 1)


def test_what_costs_nothing_is_lossless(run: Run, tmp_path: Path) -> None:
    run("convert", BASE, tmp_path / "a", "--precision", "int8")
    _, out, _ = run("convert", tmp_path / "a", tmp_path / "b", "--precision", "int8")
    assert {line.split()[-1] for line in out.splitlines()[:-1]} == {"lossless"}


def test_without_a_precision_everything_stays_as_it_is_stored(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("convert", BASE, tmp_path / "a", "--precision", "int4-symmetric")
    assert code == 0 and " int4 " in out and "int4 is 4 bits without minima: precision int4-symmetric" in out
    code, out, err = run("convert", tmp_path / "a", tmp_path / "b")
    assert (code, err) == (0, "")
    assert {line.split()[-1] for line in out.splitlines()[:-2]} == {"lossless"}
    before, after = (tmp_path / name / "model.safetensors" for name in "ab")
    assert before.read_bytes() == after.read_bytes()
    code, _, err = run("convert", BASE, tmp_path / "c", "--to", "gguf")
    wanted = "--precision: found none, wanted float16, int8, int4, int4-symmetric in a gguf"
    assert code == 2 and wanted in err


def test_without_rounding_there_is_no_table(run: Run, tmp_path: Path) -> None:
    assert run("convert", BASE, tmp_path / "out", "--precision", "bf16")[1] == f"wrote {tmp_path / 'out'}\n"


def test_the_bar_is_alone_on_stderr_and_the_table_on_stdout(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvlm_np.cli.progress.DELAY", 0)
    for to in ("folder", "gguf"):
        _, out, err = run("convert", BASE, tmp_path / to, "--to", to, "--precision", "int8")
        assert "convert: " in err
        assert "dB" not in err and "%|" not in out
        assert ("dB" in out) == (to == "folder")


def test_a_gguf_is_named_with_its_two_files(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", BASE, tmp_path / "out", "--to", "gguf", "--precision", "int8")
    note = "blocks of Q8_0 do not divide the rows of 16 matrices; these are written as F16"
    assert (code, err) == (0, f"mvlm: note: {note}\n")
    files = [tmp_path / "out" / name for name in ("model-Q8_0.gguf", "mmproj-model-f16.gguf")]
    assert out == "".join(f"wrote {file}\n" for file in files)
    found = mvlm_np.load(files[0], backend="numpy")
    expected = mvlm_np.load(BASE, backend="numpy")
    assert image_tokens(found.config) == image_tokens(expected.config)


@pytest.mark.parametrize("to, precision, message", [
    ("folder", "float16", "--precision: found float16, wanted float32, bf16, int8, int4, int4-"),
    ("gguf", "bf16", "--precision: found bf16, wanted float16, int8, int4, int4-symmetric in a gguf"),
    ("gguf", "float32", "--precision: found float32"),
])  # fmt: skip
def test_each_format_has_its_precisions(
    run: Run, tmp_path: Path, to: str, precision: str, message: str
) -> None:
    code, out, err = run("convert", BASE, tmp_path / "out", "--to", to, "--precision", precision)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_a_gguf_of_a_model_without_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("convert", BASE, source, "--precision", "float32")
    (source / "tokenizer.model").unlink()
    code, out, err = run("convert", source, tmp_path / "out", "--to", "gguf", "--precision", "int8")
    assert (code, out) == (2, "")
    assert "tokenizer.model: is missing, and tokenizer.json is too, wanted one of them; copy it" in err


def test_an_adapter_is_merged_on_the_way(run: Run, tmp_path: Path) -> None:
    adapter = sound().write(tmp_path / "tuned")
    code, _, err = run("convert", BASE, tmp_path / "out", "--lora", adapter, "--precision", "float32")
    assert code == 0
    assert err == "mvlm: note: merged with tuned: 4 matrices changed, 1 tensors replaced\n"
    expected = bound_tensors(merged(open_folder(BASE), adapter))
    for name, tensor in bound_tensors(open_folder(tmp_path / "out")).items():
        np.testing.assert_array_equal(tensor.float32(), expected[name].float32(), err_msg=name)
    code, *_ = run(
        "convert", BASE, tmp_path / "pair", "--lora", adapter, "--to", "gguf", "--precision", "int4"
    )
    assert code == 0


def test_a_part_of_an_adapter_is_merged(run: Run, tmp_path: Path) -> None:
    adapter, BA = sound().write(tmp_path / "tuned"), {}
    options = ("--lora", adapter, "--precision", "float32")
    code, _, err = run("convert", BASE, tmp_path / "out", *options, "--lora-scale", 0.25)
    assert code == 0
    assert (
        err
        == "mvlm: note: merged with tuned: 4 matrices changed by 0.25 of what it says, 1 tensors replaced\n"
    )
    before, whole, part = (
        bound_tensors(model)
        for model in (open_folder(BASE), merged(open_folder(BASE), adapter), open_folder(tmp_path / "out"))
    )
    for name, tensor in part.items():
        BA[name] = whole[name].float32() - before[name].float32()
        if name.endswith(("q_proj.weight", "down_proj.weight")) and BA[name].any():
            expected = before[name].float32() + 0.25 * BA[name]
            np.testing.assert_allclose(tensor.float32(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        else:
            np.testing.assert_array_equal(tensor.float32(), whole[name].float32(), err_msg=name)
    assert sum(change.any() for change in BA.values()) == 5


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "3", "some"])
def test_a_part_that_is_none_is_one_line(run: Run, tmp_path: Path, scale: str) -> None:
    adapter = sound().write(tmp_path / "tuned")
    code, out, err = run("convert", BASE, tmp_path / "out", "--lora", adapter, "--lora-scale", scale)
    assert (code, out) == (2, "") and "--lora-scale" in err and err.count("\n") == 1


def test_a_part_of_no_adapter_is_refused(run: Run, tmp_path: Path) -> None:
    code, out, err = run("convert", BASE, tmp_path / "out", "--lora-scale", "0.5")
    assert (code, out) == (2, "") and "found no --lora" in err and err.count("\n") == 1


@pytest.mark.parametrize("lora", ["/nowhere", __file__])
def test_an_adapter_that_is_none_is_one_line(run: Run, tmp_path: Path, lora: str) -> None:
    code, out, err = run("convert", BASE, tmp_path / "out", "--lora", lora, "--precision", "int8")
    assert (code, out) == (2, "")
    assert err.startswith(f"mvlm: {lora}/adapter_config.json: cannot be read") and err.count("\n") == 1


# -- Verifying ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["folder", "gguf"])
def test_a_converted_model_is_verified(run: Run, tmp_path: Path, to: str) -> None:
    run("convert", BASE, tmp_path / "out", "--to", to, "--precision", "int8")
    weights = "model.safetensors" if to == "folder" else "model-Q8_0.gguf"
    named = tmp_path / "out" if to == "folder" else tmp_path / "out" / weights
    assert run("inspect", named, "--verify") == (0, f"{named}: every file is as it was written\n", "")
    with open(tmp_path / "out" / weights, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    assert run("inspect", named, "--verify") == (1, f"'{weights}' has changed\n", "")
    code, out, _ = run("inspect", named, "--verify", "--json")
    assert code == 1
    assert json.loads(out) == {"path": str(named), "problems": [f"'{weights}' has changed"], "notes": []}


def test_of_a_model_without_checksums_the_values_are_read(run: Run) -> None:
    code, out, err = run("inspect", BASE, "--verify")
    assert (code, err) == (0, "")
    tensors = len(bound_tensors(open_folder(BASE)))
    assert f"{BASE}: there are no checksums, but all values of its {tensors} tensors" in out


def test_zeros_where_weights_should_be_are_found(run: Run, tmp_path: Path) -> None:
    """As a download leaves them that was cut off inside a file of the full size."""
    folder = shutil.copytree(BASE, tmp_path / "cut")
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))
    code, out, _ = run("inspect", folder, "--verify")
    assert code == 1
    assert re.search(r"^\S+ is zeros throughout$", out, re.MULTILINE)
    assert re.search(r"^\S+ ends in \d+ rows of zeros, of \d+$", out, re.MULTILINE)
    assert run("inspect", folder)[0] == 0  # which reads no values
    code, out, _ = run("doctor", "--model", folder)
    assert code == 1 and f"problem: {folder}: " in out and "is zeros throughout" in out
    start = 8 + int.from_bytes(raw[:8], "little")
    weights.write_bytes(raw[:start] + bytes(len(raw) - start))
    code, out, err = run("ask", "Hello?", "--model", folder)
    assert code == 2 and "mvlm inspect --verify" in err and not out.strip()


def test_a_tensor_of_one_value_is_a_note(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(BASE, tmp_path / "flat")
    tensors = load_file(BASE / "model.safetensors")
    tensors["model.norm.weight"][:] = 1
    save_file(tensors, folder / "model.safetensors")
    code, out, _ = run("inspect", folder, "--verify")
    assert code == 0 and "note: model.norm.weight is 1 throughout" in out
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    code, out, _ = run("inspect", folder, "--verify")
    assert (code, out) == (1, "model.norm.weight holds NaN or infinity\n")


def test_sizes_are_told_in_fitting_units(run: Run) -> None:
    _, out, _ = run("inspect", BASE)
    assert " kB on disk" in out
    assert "0.00 GB" not in out
