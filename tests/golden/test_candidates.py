"""Every form in which a port may dump its stages, and every way in which it may get that wrong."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mvlm_np.checkpoints.tensors import float32_to_bfloat16
from mvlm_np.errors import GoldenError, UserError
from mvlm_np.golden.compare.candidates import expand, read_candidate, read_names
from tests.conftest import DATA
from tests.golden.recorded import against, recorded

NAMES = ("vision.hidden_states.0", "projector.output", "input_ids")
Stages = dict[str, np.ndarray]


def save_npz(folder: Path, stages: Stages) -> Path:
    np.savez(folder / "c.npz", **stages)  # type: ignore[arg-type]
    return folder / "c.npz"


def save_safetensors(folder: Path, stages: Stages) -> Path:
    save_file({n: a[None].copy() for n, a in stages.items()}, folder / "c.safetensors")
    return folder / "c.safetensors"


def save_npy(folder: Path, stages: Stages) -> Path:
    for name, array in stages.items():
        np.save(folder / f"{name}.npy", array[None, None])
    return folder


def save_nested(folder: Path, stages: Stages) -> Path:
    for name, array in stages.items():
        first, *rest = name.split(".")
        inner = folder / first if rest else folder
        inner.mkdir(exist_ok=True)
        np.save(inner / f"{'.'.join(rest) or first}.npy", array.astype(">f4" if rest else ">i8"))
    return folder


def save_raw(folder: Path, stages: Stages) -> Path:
    for name, array in stages.items():
        array.tofile(folder / f"{name}.{'i64' if array.dtype == np.int64 else 'f32'}")
    return folder


@pytest.mark.parametrize("save", [save_npz, save_safetensors, save_npy, save_nested, save_raw])
def test_every_form_gives_the_same_stages(save: Callable[[Path, Stages], Path], tmp_path: Path) -> None:
    r = recorded()
    candidate = read_candidate(save(tmp_path, {n: r.stages[n] for n in NAMES}), r.golden.names)
    assert candidate.stages.keys() == set(NAMES)
    assert candidate.unknown == ()
    result = against(r.golden, candidate.stages)
    assert result.right
    compared = [s for s in result.stages if s.verdict == "right"]
    assert [s.name for s in compared] == sorted(NAMES, key=r.golden.names.index)
    assert [s.distance.rms for s in compared if s.distance] == [0, 0]


@pytest.mark.parametrize("kind", ["float16", "bfloat16 in uint16", "bfloat16 of ml_dtypes"])
def test_half_precision_is_widened(kind: str, tmp_path: Path) -> None:
    r = recorded()
    array = r.stages["projector.output"]
    if kind == "float16":
        array = array.astype(np.float16)
    else:
        array = float32_to_bfloat16(array)
        if "ml_dtypes" in kind:
            array = array.view("V2")
    save_npz(tmp_path, {"projector.output": array})
    stages = read_candidate(tmp_path / "c.npz", r.golden.names).stages
    assert stages["projector.output"].dtype == np.float32
    assert not against(r.golden, stages).right
    assert against(r.golden, stages, "float16" if kind == "float16" else "bf16").right


def test_the_dump_of_llama_cpp_is_the_picture_for_the_decoder(tmp_path: Path) -> None:
    r = recorded()
    stage = r.stages["projector.output"]
    with open(tmp_path / "embeddings.bin", "wb") as f:
        f.write(np.array(stage.shape, "<i4").tobytes() + stage.tobytes())
    candidate = read_candidate(tmp_path / "embeddings.bin", r.golden.names)
    np.testing.assert_array_equal(candidate.stages["projector.output"], stage)


# ---------------------------------------------------------------- names


def test_a_name_map_with_numbers(tmp_path: Path) -> None:
    r = recorded()
    stages = {f"block{i}": r.stages[f"vision.hidden_states.{i}"] for i in range(3)}
    save_npz(tmp_path, {**stages, "image_embeds": r.stages["projector.output"], "other": np.zeros(3)})
    toml = tmp_path / "names.toml"
    toml.write_text(
        '[stages]\n"vision.hidden_states.{i}" = "block{i}"\n"projector.output" = "image_embeds"\nlogits = "l"'
    )
    candidate = read_candidate(tmp_path / "c.npz", r.golden.names, read_names(toml))
    assert len(candidate.stages) == 4
    assert candidate.unknown == ("other",)
    assert candidate.absent == ("block3", "l")
    assert against(r.golden, candidate.stages).right


def test_numbers_stand_for_what_the_golden_has() -> None:
    names = {"a.{i}.b": "x/{i}", "c": "y"}
    assert expand(names, ["a.0.b", "a.12.b", "a.b", "c"]) == {"a.0.b": "x/0", "a.12.b": "x/12", "c": "y"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[stages", "is not TOML"),
        ("", "has nothing"),
        ("[names]\na = 'b'", "names"),
        ("[stages]\nprojector.output = 'x'", "put both names in quotes"),
        ("[stages]\nlogits = 3", "found int"),
    ],
)
def test_a_name_map_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "names.toml"
    path.write_text(text)
    with pytest.raises(GoldenError, match=says) as error:
        read_names(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_name_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="cannot be read"):
        read_names(tmp_path / "names.toml")


# ---------------------------------------------------------------- what is none


def pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npz", None),
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello, this is not a candidate"),
        ("broken.npz", b"PK\x03\x04 and then nothing"),
        ("projector.output.npy", b"\x93NUMPY\x01\x00 and then nothing"),
        ("projector.output.npy", pickled()),
        ("projector.output.f32", b"12345"),
        ("projector.output.f32", b""),
        ("unknown.f32", b"1234"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(name: str, content: bytes | None, tmp_path: Path) -> None:
    r = recorded()
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        against(r.golden, read_candidate(path, r.golden.names).stages)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_stages_is_refused() -> None:
    with pytest.raises(GoldenError, match="holds no .npy file".replace(".", r"\.")):
        read_candidate(DATA / "golden" / "ldpv2" / "clip", ["logits"])


def test_names_that_fit_nothing_are_listed_with_what_was_wanted(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(GoldenError, match=r"has 'a', 'b'.*pixel_values.*name map") as error:
        read_candidate(tmp_path / "c.npz", recorded().golden.names)
    assert "\n" not in str(error.value)
