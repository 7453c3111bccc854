"""Models in the hub's cache: found where the hub's own package puts them, whatever state they are in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_np.checkpoints import hub
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.config import OPENAI_CLIP
from mvlm_np.errors import CheckpointError
from tests.conftest import DATA

NAME = "mtgv/Small"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, name: str, source: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A snapshot of links into blobs/, as the hub's package makes it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for file in source.rglob("*"):
        if file.is_file():
            link = folder / "snapshots" / commit / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = folder / "blobs" / f"{commit[:3]}-{'-'.join(file.relative_to(source).parts)}"
            shutil.copyfile(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder


GOLDEN = DATA / "golden"


@pytest.mark.parametrize("environment", [
    {},
    {"HF_HOME": "/a/home"},
    {"HF_HOME": "~/b"},
    {"HF_HOME": "$MODELS/b", "MODELS": "/m"},
    {"XDG_CACHE_HOME": "/xdg"},
    {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/a/home"},
    {"HF_HUB_CACHE": "~/c", "HF_HOME": "/a/home"},
    {"HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"},
])  # fmt: skip
def test_the_cache_is_where_the_hubs_package_has_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    # Only this file of the package, which reads the environment as it is imported.
    code = (
        "import importlib.util, sys; spec = importlib.util.find_spec('huggingface_hub');"
        "sys.path.insert(0, spec.submodule_search_locations[0]);"
        "import types; package = types.ModuleType('huggingface_hub'); package.__path__ = sys.path[:1];"
        "sys.modules['huggingface_hub'] = package;"
        "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(hub.cache_folder()) == done.stdout.strip()


@pytest.mark.parametrize("text, expected", [
    ("mtgv/MobileVLM_V2-1.7B", True), ("a/b", True), ("a", False), ("a/b/c", False), ("/a/b", False),
    ("../a", False), ("a/..", False), ("./a", False), ("a/", False), ("a b/c", False), ("ä/b", False),
])  # fmt: skip
def test_names_are_owner_and_name(text: str, expected: bool) -> None:
    assert hub.looks_like_name(text) == expected


def test_a_snapshot_of_links_is_opened(cache: Path) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    checkpoint = open_checkpoint(NAME)
    assert checkpoint.path == folder / "snapshots" / COMMIT
    assert checkpoint.config == open_checkpoint(GOLDEN / "ldpv2").config


def test_a_folder_of_that_name_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, NAME, GOLDEN / "ldpv2")
    shutil.copytree(GOLDEN / "mlp", tmp_path / "mtgv" / "Small")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint(NAME).config.mm_projector_type == "mlp2x_gelu"


def test_of_several_revisions_main_counts(cache: Path) -> None:
    put(cache, NAME, GOLDEN / "mlp", OLDER, ref=None)
    put(cache, NAME, GOLDEN / "ldpv2")
    put(cache, NAME, GOLDEN / "mlp", "c" * 40, ref="v1.0")
    assert open_checkpoint(NAME).config.mm_projector_type == "ldpnetv2"


def test_without_main_the_only_revision_counts_and_of_several_none(cache: Path) -> None:
    put(cache, NAME, GOLDEN / "ldpv2", ref="v1.0")
    assert open_checkpoint(NAME).config.mm_projector_type == "ldpnetv2"
    put(cache, NAME, GOLDEN / "mlp", OLDER, ref=None)
    with pytest.raises(CheckpointError, match="neither a path here nor a model in the hub's cache"):
        open_checkpoint(NAME)


@pytest.mark.parametrize("ref", [b"", b"\xff\xfe", b"../../../etc", b"/etc", b"..", b"d" * 40, b"a\0b"])
def test_a_ref_that_leads_nowhere_is_no_model(cache: Path, ref: bytes) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    (folder / "refs" / "main").write_bytes(ref)
    with pytest.raises(CheckpointError, match=f"{NAME}: is neither .* mvlm pull {NAME}"):
        open_checkpoint(NAME)


def test_a_ref_may_end_in_a_newline(cache: Path) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    (folder / "refs" / "main").write_text(COMMIT + "\n")
    assert open_checkpoint(NAME).config.vision


def test_no_cache_at_all_is_no_model(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="download it: mvlm pull mtgv/Small"):
        open_checkpoint(NAME)


def test_a_download_that_stopped_is_to_be_gone_on_with(cache: Path) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    (folder / "snapshots" / COMMIT / "model.safetensors").unlink()
    (folder / "blobs" / "abc.incomplete").write_bytes(b"half")
    with pytest.raises(
        CheckpointError,
        match=r"Small: is only partly downloaded \(.* holds no weights.*go on with: mvlm pull",
    ):
        open_checkpoint(NAME)


def test_what_was_left_of_another_download_does_no_harm(cache: Path) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    (folder / "blobs" / "abc.incomplete").write_bytes(b"half")
    assert open_checkpoint(NAME).config.vision


def test_a_link_into_nothing_is_an_error_that_names_the_file(cache: Path) -> None:
    folder = put(cache, NAME, GOLDEN / "ldpv2")
    os.unlink((folder / "snapshots" / COMMIT / "model.safetensors").resolve())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a link to .*, which is not there"):
        open_checkpoint(NAME)


def first_generation(tmp_path: Path) -> Path:
    """A small model that names openai's CLIP, without the folder beside it."""
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "ldp", source)
    shutil.rmtree(source / "clip")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mm_vision_tower": OPENAI_CLIP}))
    return source


def test_clip_is_found_in_the_cache_too(cache: Path, tmp_path: Path) -> None:
    put(cache, NAME, first_generation(tmp_path))
    tower = put(cache, OPENAI_CLIP, GOLDEN / "ldp" / "clip", OLDER)
    checkpoint = open_checkpoint(NAME)
    used = {t.file.path.parent for n, t in checkpoint.tensors.items() if ".vision_tower." in n}
    assert used == {tower / "snapshots" / OLDER}
    assert checkpoint.notes == []


def test_clip_that_lies_beside_the_model_comes_before_the_cache(cache: Path, tmp_path: Path) -> None:
    source = first_generation(tmp_path)
    put(cache, OPENAI_CLIP, GOLDEN / "ldp" / "clip", OLDER)
    beside = source.parent / OPENAI_CLIP.split("/")[1]
    shutil.copytree(GOLDEN / "ldp" / "clip", beside)
    used = {t.file.path.parent for n, t in open_checkpoint(source).tensors.items() if ".vision_tower." in n}
    assert used == {beside}


def test_a_name_without_its_owner_is_told_with_it(cache: Path) -> None:
    put(cache, NAME, GOLDEN / "ldpv2")
    with pytest.raises(CheckpointError, match=f"^Small: does not exist, .*; name it as it was .*: {NAME}$"):
        open_checkpoint("Small")
    put(cache, "another/Small", GOLDEN / "ldpv2")
    with pytest.raises(CheckpointError, match=r"wanted a model folder or a GGUF file$"):
        open_checkpoint("Small")
