"""`mvlm pull`, against a hub on this machine; the hub's package is the real one."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

import mvlm_np
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.cli import main
from mvlm_np.cli.pull import PUBLISHED
from mvlm_np.config import OPENAI_CLIP
from tests.cli.hub_server import REVISION, Hub
from tests.conftest import DATA, ROOT

Run = Callable[..., tuple[int, str, str]]
NAME = "mtgv/Small"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def model(kind: str, tower: str = OPENAI_CLIP) -> dict[str, bytes]:
    """The files of a small model as its repository has them, with another form of the weights beside them."""
    found = {
        k: v
        for k, v in files(DATA / "golden" / kind).items()
        if not k.startswith(("clip/", "golden", "cases"))
    }
    config = json.loads(found["config.json"]) | {"mm_vision_tower": tower}
    readme = {"README.md": b"# A model", "pytorch_model.bin": b"not read", "flax_model.msgpack": b"not read"}
    return found | readme | {"config.json": json.dumps(config).encode()}


def weights() -> dict[str, np.ndarray]:
    read = read_safetensors(DATA / "golden" / "ldpv2" / "model.safetensors")
    return {name: tensor.float32() for name, tensor in read.items()}


def files_of_clip(kind: str) -> dict[str, bytes]:
    return {f"clip/{k}": v for k, v in files(DATA / "golden" / kind / "clip").items()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({}) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def run(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mvlm ARGS` before that hub: exit code, standard output, standard error."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(args)
        return code, *capsys.readouterr()

    return run


def asked(hub: Hub) -> set[str]:
    return {path for path, _ in hub.asked}


def test_only_what_is_needed_is_downloaded_and_safetensors_come_first(
    run: Run, hub: Hub, cache: Path
) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    code, out, err = run("pull", NAME)
    assert code == 0
    assert "mtgv/Small: 4" in err  # kB
    folder = cache / "models--mtgv--Small" / "snapshots" / REVISION
    assert out == f"{folder}\n"
    settings = {"config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"}
    tower = {"clip/config.json", "clip/preprocessor_config.json"}
    expected = {"model.safetensors", "tokenizer.model"} | settings | tower
    assert asked(hub) == {f"{NAME}/{file}" for file in expected}
    assert set(files(folder)) == expected


def test_a_downloaded_model_is_loaded_by_its_name(run: Run, hub: Hub, cache: Path) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    run("pull", NAME)
    found = mvlm_np.load(NAME, backend="numpy")
    expected = mvlm_np.load(DATA / "golden" / "ldpv2", backend="numpy")
    ids = [1, 5, 9]
    assert found.generate(ids, max_new_tokens=4) == expected.generate(ids, max_new_tokens=4)
    assert run("inspect", NAME)[0] == 0


def test_the_first_generation_needs_clip_which_is_then_found_in_the_cache(
    run: Run, hub: Hub, cache: Path
) -> None:
    clip = files(DATA / "golden" / "ldp" / "clip")
    # The checkpoint's own copy is another one: what is loaded shows which of the two counts.
    hub.repositories = {NAME: model("ldp"), OPENAI_CLIP: clip | {"tf_model.h5": b"not read"}}
    code, out, err = run("pull", NAME)
    assert code == 0
    assert [Path(line).parts[-3] for line in out.splitlines()] == [
        "models--mtgv--Small",
        "models--openai--clip-vit-large-patch14-336",
    ]
    assert f"{OPENAI_CLIP}: " in err
    assert {path for path in asked(hub) if path.startswith("openai")} == {
        f"{OPENAI_CLIP}/{file}" for file in clip
    }
    found = mvlm_np.load(NAME, backend="numpy")
    expected = mvlm_np.load(DATA / "golden" / "ldp", backend="numpy")
    assert found.notes == []
    picture = np.zeros((30, 40, 3), np.uint8)
    np.testing.assert_array_equal(found.encode_image(picture), expected.encode_image(picture))


def test_the_second_generation_needs_no_clip_of_openai(run: Run, hub: Hub, cache: Path) -> None:
    # This small model is none of CLIP's size, so that the check at the end finds it unsound; all the same,
    # nothing was asked of another repository.
    hub.repositories = {NAME: model("ldpv2"), OPENAI_CLIP: files_of_clip("ldpv2")}
    code, _, err = run("pull", NAME)
    assert code == 2 and "mm_hidden_size: found 12" in err
    assert asked(hub) and all(path.startswith(NAME) for path in asked(hub))


def test_shards_are_those_that_the_index_names(run: Run, hub: Hub, cache: Path) -> None:
    found = model("ldpv2", "clip") | files_of_clip("ldpv2")
    del found["model.safetensors"], found["pytorch_model.bin"]
    tensors = weights()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:20], names[20:])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        found[shard] = save({name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    found["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    found["model-00001-of-00003.safetensors"] = b"of another upload"
    hub.repositories = {NAME: found}
    assert run("pull", NAME)[0] == 0
    assert f"{NAME}/model-00002-of-00002.safetensors" in asked(hub)
    assert f"{NAME}/model-00001-of-00003.safetensors" not in asked(hub)


def test_what_is_here_is_not_downloaded_again(run: Run, hub: Hub, cache: Path) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    run("pull", NAME)
    hub.asked.clear()
    assert run("pull", NAME)[0] == 0
    assert asked(hub) == set()


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path, hub: Hub) -> None:
    """In processes of their own, which know the hub by the environment alone."""
    found = model("ldpv2", "clip") | files_of_clip("ldpv2")
    tensors = weights()
    # A tensor that is passed over on loading. Content is written in pieces of some 10 MB.
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(6_000_000, np.float32)
    found["model.safetensors"] = save(tensors)
    hub.repositories = {NAME: found}
    hub.cut = 11_000_000
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "mvlm_np", "pull", NAME]

    def pull() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)

    first = pull()
    assert first.returncode == 1, first.stderr
    assert "the download broke off" in first.stderr and "the same command goes on" in first.stderr
    inspect = [sys.executable, "-m", "mvlm_np", "inspect", NAME]
    unfinished = subprocess.run(inspect, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert unfinished.returncode == 2
    assert f"{NAME}: is only partly downloaded" in unfinished.stderr
    assert f"go on with: mvlm pull {NAME}" in unfinished.stderr
    hub.cut, hub.broken = None, False
    hub.asked.clear()
    second = pull()
    assert second.returncode == 0, second.stderr
    assert "24.1 MB, of which 10.5 MB are here" in second.stderr
    starts = dict(hub.asked)
    assert starts[f"{NAME}/model.safetensors"] >= 10_000_000
    assert starts.get(f"{NAME}/tokenizer.model") is None  # had come over
    written = Path(second.stdout.strip()) / "model.safetensors"
    assert written.read_bytes() == found["model.safetensors"]


def test_what_comes_over_damaged_is_thrown_away(
    run: Run, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvlm_np.checkpoints.download.LARGE", 1000)
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    content = hub.repositories[NAME]["model.safetensors"]
    blobs = cache / "models--mtgv--Small" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    part.write_bytes(b"\0" * 500)  # as a power cut may leave it
    code, out, err = run("pull", NAME)
    assert (code, out) == (2, "")
    assert "mtgv/Small/model.safetensors: came over damaged; run the same command again" in err
    assert not part.exists()
    assert run("pull", NAME)[0] == 0


def test_two_downloads_of_a_file_do_not_mix(
    run: Run, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvlm_np.checkpoints.download.LARGE", 1000)
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    digest = hashlib.sha256(hub.repositories[NAME]["model.safetensors"]).hexdigest()
    blobs = cache / "models--mtgv--Small" / "blobs"
    blobs.mkdir(parents=True)
    with open(blobs / f"{digest}.incomplete", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = run("pull", NAME)
    assert code == 2
    assert "model.safetensors: is being downloaded by another process" in err


def test_a_disk_too_small_is_noticed_before_the_download(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr("mvlm_np.checkpoints.download.shutil.disk_usage", lambda path: usage)
    code, out, err = run("pull", NAME)
    assert (code, out) == (2, "")
    assert "has 5 kB left, wanted 38" in err  # kB: the weights, and two small files of the tower
    assert f"{NAME}/model.safetensors" not in asked(hub)


# -- Where it does not work ---------------------------------------------------------------------------


NOBODY = "http://127.0.0.1:1"  # listens there


@pytest.fixture
def unreachable(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    return run


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {OPENAI_CLIP}))
def test_without_the_hub_it_says_which_files_to_put_where(unreachable: Run, name: str) -> None:
    code, out, err = unreachable("pull", name)
    assert code == 1
    assert err.startswith("mvlm: the hub: cannot be reached (") and err.count("\n") == 1
    folder = name.split("/")[1]
    for file in ("config.json", "tokenizer.model", "tokenizer_config.json", "pytorch_model.bin"):
        assert f"{folder}/{file}" in out
    assert "GB)" in out
    assert ("clip-vit-large-patch14-336/pytorch_model.bin (1.71 GB)" in out) == ("V2" not in name)
    assert f"--model {folder}" in out


def test_files_put_as_it_says_are_a_model(unreachable: Run, tmp_path: Path) -> None:
    _, out, _ = unreachable("pull", "mtgv/MobileVLM-1.7B")
    named = {line.strip() for line in out.splitlines() if line.startswith("    ")}
    clip = files(DATA / "golden" / "ldp" / "clip")
    for folder, content in (("MobileVLM-1.7B", model("ldp")), (OPENAI_CLIP.split("/")[1], clip)):
        (tmp_path / folder).mkdir()
        for name, data in content.items():
            if f"{folder}/{name}" in named or name == "model.safetensors":  # as the small models have them
                (tmp_path / folder / name).write_bytes(data)
    found = mvlm_np.load(tmp_path / "MobileVLM-1.7B", backend="numpy")
    assert found.notes == []
    assert found.config.vision is not None and found.config.vision.hidden_size == 16


def test_without_the_hub_a_model_that_is_here_is_enough(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}
    _, places, _ = run("pull", NAME)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    code, out, err = run("pull", NAME)
    assert (code, out) == (0, places)
    assert "all was here before" in err


def test_offline_mode_is_like_no_hub(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, err = run("pull", "mtgv/MobileVLM_V2-3B")
    assert code == 1
    assert "MobileVLM_V2-3B/config.json" in out and "cannot be reached" in err


def test_an_answer_that_is_not_the_hubs_is_like_no_hub(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def portal(self: object) -> None:
        data = b"<html>Welcome to our hotel</html>"
        self._head(200, len(data), {"Content-Type": "text/html"})  # type: ignore[attr-defined]
        self.wfile.write(data)  # type: ignore[attr-defined]

    monkeypatch.setattr("tests.cli.hub_server._Reply.do_GET", portal)
    code, out, err = run("pull", "mtgv/MobileVLM_V2-3B")
    assert code == 1
    assert "MobileVLM_V2-3B/config.json" in out and "cannot be reached" in err


GGUFS = {"README.md": b"", "model.Q4_K.gguf": b"12", "model.F16.gguf": b"123", "model.mmproj-f16.gguf": b"1"}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("name, repository, message", [
    ("nobody/nothing", None, "nobody/nothing: is not on the hub, or not for everybody; check the name"),
    ("no-owner", None, "no-owner: is no name on the hub, wanted OWNER/NAME"),
    ("a/b/c", None, "a/b/c: is no name on the hub"),
    ("../etc/passwd", None, "is no name on the hub"),
    (NAME, {"README.md": b""}, "mtgv/Small: holds no config.json"),
    (NAME, GGUFS, "mtgv/Small: holds GGUF files, which mvlm runs as they are; download a model and its "
                  "mmproj: hf download mtgv/Small model.Q4_K.gguf model.mmproj-f16.gguf --local-dir DIR"),
    (NAME, {"adapter_config.json": b"{}", "config.json": b"{}", "adapter_model.safetensors": b""},
     "mtgv/Small: is a LoRA adapter, which changes a model, wanted the model; hf download mtgv/Small "),
    (NAME, {f"checkpoint-100/{name}": b"" for name in ("config.json", "clip/config.json", "model.safetensors",
                                                      "clip/model.safetensors")},
     "holds no model at its top, but in 'checkpoint-100'; hf download mtgv/Small --include 'checkpoint-100/"),
    (NAME, {"config.json": b'{"model_type": "t5"}'}, "config.json: model_type: found 't5'"),
    (NAME, {"config.json": json.dumps(LLAMA).encode()}, "mtgv/Small: holds no weights, wanted one of "),
])  # fmt: skip
def test_what_cannot_be_a_model_is_one_line_and_exit_code_2(
    run: Run, hub: Hub, name: str, repository: dict[str, bytes] | None, message: str
) -> None:
    hub.repositories = {NAME: repository} if repository else {}
    code, out, err = run("pull", name)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def with_settings(**settings: object) -> dict[str, bytes]:
    """A sound repository with other settings."""
    found = model("ldpv2", "clip") | files_of_clip("ldpv2")
    return found | {"config.json": json.dumps(json.loads(found["config.json"]) | settings).encode()}


def without(found: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name not in names}


UNFIT = {
    "a tower on the trainer's machine": (
        with_settings(mm_vision_tower="/mnt/data/clip-vit-base-patch16"),
        "its mm_vision_tower is '/mnt/data/clip-vit-base-patch16', a place on another machine",
    ),
    "quantised by another tool": (
        with_settings(quantization_config={"quant_method": "awq"}),
        "config.json: quantization_config: found 'awq'",
    ),
    "no tokenizer": (without(with_settings(), "tokenizer.model"), "tokenizer.model: is missing"),
    "an unsound tokenizer": (
        with_settings() | {"tokenizer.model": b"<html>"},
        "tokenizer.model: is not a SentencePiece model",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_asked_is_told_before_the_weights_come(run: Run, hub: Hub, kind: str) -> None:
    found, message = UNFIT[kind]
    hub.repositories = {NAME: found}
    code, out, err = run("pull", NAME)
    assert (code, out) == (2, "") and message in err.splitlines()[-1]
    assert f"{NAME}/model.safetensors" not in asked(hub)


@pytest.mark.parametrize("named", ["/mnt/clip", "/mnt/data/clip-vit-large-patch14-336"])
def test_a_tower_that_is_known_or_in_the_repository_comes_along(run: Run, hub: Hub, named: str) -> None:
    # This small model is none of that tower's size, which is found before its weights come.
    hub.repositories = {NAME: with_settings(mm_vision_tower=named)}
    code, _, err = run("pull", NAME)
    if named == "/mnt/clip":
        assert code == 0 and f"{NAME}/clip/config.json" in asked(hub)
    else:
        assert code == 2 and "mm_hidden_size: found 12, wanted 1024" in err
        assert f"{NAME}/model.safetensors" not in asked(hub)
        assert all(path.startswith(NAME) for path in asked(hub))


@pytest.mark.parametrize(
    "text", ["{}/", "https://hub.example/{}", "http://hub.example/models/{}/tree/main?x=1"]
)
def test_a_name_is_found_in_what_people_copy(run: Run, hub: Hub, text: str) -> None:
    hub.repositories = {NAME: with_settings()}
    assert run("pull", text.format(NAME))[0] == 0


def test_without_its_package_it_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, out, err = run("pull", NAME)
    assert (code, out) == (2, "")
    assert "huggingface_hub" in err and "pip install huggingface_hub" in err


def test_a_full_disk_is_not_the_hubs_fault(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories = {NAME: model("ldpv2", "clip") | files_of_clip("ldpv2")}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    code, out, err = run("pull", NAME)
    assert (code, out) == (2, "")
    assert "cannot be written (No space left on device)" in err
