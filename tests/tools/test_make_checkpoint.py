import json
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

import mvlm_np
from mvlm_np.checkpoints.folder import has_weights, read_weights
from tests.conftest import DATA, ROOT, shared_path
from tools.make_checkpoint import main
from tools.parts import random_checkpoint
from tools.parts.family import files
from tools.parts.random_checkpoint import random_values, shapes, to_bfloat16

# Tensors, values and bytes of config.json, as published.
PUBLISHED = {
    "MobileVLM-1.7B": (634, 1_686_742_016, 1123),
    "MobileVLM-3B": (706, 3_033_981_696, 1562),
    "MobileVLM_V2-1.7B": (616, 1_674_121_216, 1155),
    "MobileVLM_V2-3B": (688, 3_014_273_536, 1611),
    "MobileVLM_V2-7B": (688, 7_062_943_744, 1123),
}
PHOTO = ROOT / "examples" / "chelsea.jpg"
family = pytest.mark.parametrize("name", PUBLISHED)


def published_part(name: str) -> random_checkpoint.Shapes:
    """Names and shapes but for the inverse frequencies, which the lists of the 7B's tensors leave out."""
    return {k: shape for k, shape in shapes(name).items() if not k.endswith("inv_freq")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    assert main(["tiny", str(folder)]) == 0
    return folder


# ---------------------------------------------------------------- the published models


@family
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    listed = json.loads(shared_path(f"facts/keys/{name}.json").read_text())["tensors"]
    assert published_part(name) == {k: tuple(shape) for k, shape in listed.items()}


@family
def test_there_are_as_many_tensors_and_values_as_published(name: str) -> None:
    found = published_part(name)
    assert (len(found), sum(map(prod, found.values()))) == PUBLISHED[name][:2]


def test_the_7b_alone_holds_inverse_frequencies() -> None:
    with_frequencies = {name for name in PUBLISHED if shapes(name) != published_part(name)}
    assert with_frequencies == {"MobileVLM_V2-7B"}
    name = "model.layers.31.self_attn.rotary_emb.inv_freq"
    assert shapes("MobileVLM_V2-7B")[name] == (64,)
    (values,) = random_values(name, (64,), seed=0)
    np.testing.assert_allclose(values, 10000 ** (-np.arange(0, 128, 2) / 128), rtol=1e-6)


@family
def test_config_files_are_the_published_ones(name: str) -> None:
    folder = shared_path(f"facts/configs/{name}")
    assert files(name).model == {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    tower = shared_path("facts/configs/clip-vit-large-patch14-336")
    assert files(name).tower == {
        "config.json": json.loads((tower / "config.hub-style.json").read_text()),
        "preprocessor_config.json": json.loads((tower / "preprocessor_config.json").read_text()),
    }


@family
def test_the_config_is_as_long_as_the_published_one(name: str, tmp_path: Path) -> None:
    random_checkpoint.write_json(tmp_path, {"config.json": files(name).model["config.json"]})
    assert (tmp_path / "config.json").stat().st_size == PUBLISHED[name][2]


def test_a_slice_has_full_width_and_few_layers() -> None:
    whole, cut = shapes("MobileVLM-3B"), shapes("MobileVLM-3B", layers=2)
    assert cut.items() <= whole.items()
    layers = {k.split("layers.")[1].split(".")[0] for k in cut if "layers." in k}
    assert layers == {"0", "1"}
    settings = files("MobileVLM-3B", layers=2)
    assert settings.model["config.json"]["num_hidden_layers"] == 2
    assert settings.tower["config.json"]["vision_config"]["num_hidden_layers"] == 2


# ---------------------------------------------------------------- values


@given(hnp.arrays(np.float32, 8, elements=st.floats(width=32, allow_nan=False)))
def test_bfloat16_is_rounded_as_torch_rounds_it(values: np.ndarray) -> None:
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), theirs)


def test_halves_are_rounded_to_even() -> None:
    halves = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert to_bfloat16(halves).tolist() == [0x3F80, 0x3F82]


def test_a_tensor_is_made_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(random_values("a.weight", (7, 300), 0)))
    monkeypatch.setattr(random_checkpoint, "CHUNK", 1000)
    pieces = list(random_values("a.weight", (7, 300), 0))
    assert [len(piece) for piece in pieces] == [1000, 1000, 100]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_no_two_tensors_are_alike(tiny: Path) -> None:
    tensors = [t.float32().ravel() for t in read_weights(tiny).values()]
    assert not any(np.array_equal(a, b) for a, b in combinations(tensors, 2))


def test_a_seed_gives_the_same_checkpoint_again_and_another_one_another(tiny: Path, tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert main(["tiny", str(tmp_path / seed), "--seed", seed]) == 0
    same, other = ((tmp_path / seed / "model.safetensors").read_bytes() for seed in ("0", "1"))
    assert same == (tiny / "model.safetensors").read_bytes()
    assert len(other) == len(same) and other != same


def test_activations_stay_sane_through_many_layers(tmp_path: Path) -> None:
    assert main(["golden-ldpv2", str(tmp_path / "deep"), "--layers", "24"]) == 0
    model = mvlm_np.load(tmp_path / "deep", backend="numpy")
    stages = model.trace(PHOTO, "What?", max_new_tokens=1)
    largest = {name: np.abs(stage).max() for name, stage in stages.items() if "hidden_states" in name}
    assert len(largest) == 51
    assert all(1 < value < 1000 for value in largest.values())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_form_holds_the_same_values(form: str, dtype: str, shards: int, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    options = ["--format", form, "--dtype", dtype, "--shards", str(shards)]
    assert main(["golden-mlp", str(folder), *options]) == 0
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    written = sorted(path.name for path in folder.glob("*model*") if path.name != "tokenizer.model")
    parts = [f"{stem}-0000{i}-of-00003.{ending}" for i in (1, 2, 3)] + [f"{stem}.{ending}.index.json"]
    assert written == (parts if shards == 3 else [f"{stem}.{ending}"])

    read = load_file if form == "safetensors" else torch.load
    theirs = {k: v for path in folder.glob(f"{stem}*.{ending}") for k, v in read(path).items()}
    ours = read_weights(folder)
    assert theirs.keys() == ours.keys() == shapes("golden-mlp").keys()
    for name, shape in shapes("golden-mlp").items():
        values = torch.from_numpy(np.concatenate(list(random_values(name, shape, 0)))).reshape(shape)
        stored = values.to(getattr(torch, dtype))
        assert torch.equal(theirs[name], stored) and theirs[name].dtype == stored.dtype
        assert torch.equal(torch.from_numpy(ours[name].float32().copy()), stored.float())


def test_only_projectors_without_v2_have_a_tower_of_their_own(tiny: Path) -> None:
    assert not has_weights(tiny / "clip")
    folder = DATA / "golden" / "ldp"
    tower, copy = read_weights(folder / "clip"), read_weights(folder)
    prefix = "model.vision_tower.vision_tower."
    assert {prefix + name for name in tower} == {name for name in copy if name.startswith(prefix)}
    assert not any(np.array_equal(t.float32(), copy[prefix + name].float32()) for name, t in tower.items())


def test_the_model_answers(tiny: Path) -> None:
    answer = mvlm_np.load(tiny, backend="numpy").ask(PHOTO, "What is this?", max_new_tokens=5)
    assert answer


def test_a_tokenizer_can_be_given(tmp_path: Path) -> None:
    given = DATA / "tokenizer" / "tokenizer.model"
    assert main(["golden-mlp", str(tmp_path / "x"), "--tokenizer", str(given)]) == 0
    assert (tmp_path / "x" / "tokenizer.model").read_bytes() == given.read_bytes()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert main(["tiny", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert main(["golden-mlp", str(tmp_path)]) == 0
    assert has_weights(tmp_path)


def test_what_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(random_checkpoint, "write_weights", fail)
    assert main(["tiny", str(tmp_path / "x")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--shards", "--layers"])
def test_counts_begin_at_one(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["tiny", str(tmp_path / "x"), option, "0"])
