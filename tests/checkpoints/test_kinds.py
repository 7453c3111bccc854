"""Folders that people take for a model: one too high, of another kind, or of another tool."""

import os
import shutil
from pathlib import Path

import pytest

from mvlm_np.checkpoints.kinds import adapter_in
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.errors import CheckpointError, UserError
from tests.checkpoints.adapters import BASE, sound
from tests.checkpoints.gguf_models import pair, small_config
from tests.conftest import DATA


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value) and "download" not in str(caught.value)
    return str(caught.value)


def copy(folder: Path) -> Path:
    return shutil.copytree(BASE, folder)


@pytest.mark.parametrize("named", ["models--me--small", "models--me--small/snapshots"])
def test_a_folder_of_the_hubs_cache_stands_for_its_newest_model(tmp_path: Path, named: str) -> None:
    cache = tmp_path / "models--me--small"
    copy(cache / "snapshots/new")
    copy(cache / "snapshots/old")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("new")
    assert open_checkpoint(tmp_path / named).path == cache / "snapshots/new"


def test_the_folder_above_names_the_newest_of_its_models(tmp_path: Path) -> None:
    for step in (500, 1000):
        copy(tmp_path / f"checkpoint-{step}")
    assert refusal(tmp_path) == (
        f"{tmp_path}: is no model, but holds models: checkpoint-500, checkpoint-1000; "
        f"name one of them, such as {tmp_path}/checkpoint-1000"
    )


def test_models_further_down_are_found_and_not_too_far(tmp_path: Path) -> None:
    copy(tmp_path / "one/a/b/model")
    assert f"such as {tmp_path}/one/a/b/model" in refusal(tmp_path / "one")
    assert refusal(tmp_path).endswith(": holds no model, wanted config.json with weights, or a GGUF file")


def test_a_vision_tower_alone_is_told(tmp_path: Path) -> None:
    assert "clip: is a vision tower, wanted the folder of a model" in refusal(BASE / "clip")
    pair(tmp_path, small_config())
    (tmp_path / "model.gguf").unlink()
    assert "holds an mmproj, but no language model" in refusal(tmp_path)


def test_a_folder_with_one_gguf_and_its_mmproj_is_that_model(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    model = open_checkpoint(tmp_path)
    assert model.path == path and model.config.vision is not None


def test_a_folder_with_several_gguf_says_which(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    shutil.copy(path, tmp_path / "other.GGUF")
    assert refusal(tmp_path) == (
        f"{tmp_path}: holds GGUF files, model.gguf, other.GGUF, wanted one of them; name {path}"
    )


def test_an_adapter_says_how_it_becomes_a_model(tmp_path: Path) -> None:
    folder = sound().write(tmp_path / "lora")
    command = f"mvlm convert BASE TUNED --precision bf16 --lora {folder}"
    assert refusal(folder).endswith(command) and "is a LoRA adapter" in refusal(folder)
    shutil.copy(BASE / "config.json", folder)  # as upstream's training leaves it
    assert refusal(folder).endswith(command)
    assert "holds LoRA adapters: lora" in refusal(tmp_path)
    shutil.copy(BASE / "model.safetensors", folder)  # merged in place, with the adapter's files left over
    shutil.copytree(BASE / "clip", folder / "clip")
    assert open_checkpoint(folder).path == folder


def test_an_adapter_further_down_is_named(tmp_path: Path) -> None:
    sound().write(tmp_path / "style")
    with pytest.raises(CheckpointError, match=rf"holds some: style, .*; name {tmp_path}/style$"):
        adapter_in(tmp_path)
    assert adapter_in(tmp_path / "style") == tmp_path / "style"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: is no LoRA adapter, wanted a folder with adapter_"):
        adapter_in(tmp_path / "empty")


def test_metas_own_form_is_told(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    assert "in the form that Meta publishes" in refusal(tmp_path)


def test_weights_without_settings_are_told(tmp_path: Path) -> None:
    shutil.copy(BASE / "model.safetensors", tmp_path)
    shutil.copytree(BASE / "clip", tmp_path / "clip")
    assert "holds weights, but no config.json" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    (folder / "config.json").chmod(0)
    assert "config.json: cannot be read (Permission denied), wanted a JSON file; allow" in refusal(folder)
    folder.chmod(0)
    assert "Permission denied" in refusal(folder) and "Permission denied" in refusal(folder / "config.json")
    folder.chmod(0o700)


def test_a_gguf_is_known_by_its_content(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, small_config())
    mmproj = tmp_path / "mmproj-model-f16.gguf"
    named = [file.rename(file.with_name(f"sha256-{i}")) for i, file in enumerate((path, mmproj))]
    assert open_checkpoint(named[0], mmproj=named[1]).config.vision is not None


def test_a_byte_order_mark_before_json_changes_nothing(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    model = open_checkpoint(folder)
    assert model.config == open_checkpoint(BASE).config
    assert model.read_tokenizer().legacy == open_checkpoint(BASE).read_tokenizer().legacy


@pytest.mark.parametrize("given", ["file://{}", "file://localhost{}"])
def test_a_model_may_be_given_as_an_address(tmp_path: Path, given: str) -> None:
    copy(tmp_path / "a model")
    address = given.format(tmp_path / "a%20model")
    assert open_checkpoint(address).path == tmp_path / "a model"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copy(tmp_path / "model")
    tower = shutil.copytree(DATA / "golden/ldpv2/clip", tmp_path / "tower")
    found = open_checkpoint("~/model", vision_tower="~/tower")
    assert found.path == tmp_path / "model" and str(tower) in found.notes[0]
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/absent/x: does not exist, wanted a model"):
        open_checkpoint("~/absent/x")
