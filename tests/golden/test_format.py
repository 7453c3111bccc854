"""The golden file: what is written is read, and what is damaged is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mvlm_np.errors import UserError
from mvlm_np.golden.compact import sample, signs, sketch, sums
from mvlm_np.golden.compare.verdict import RIGHT
from mvlm_np.golden.format import Golden, read_golden, write_golden
from mvlm_np.golden.layout import matrix
from mvlm_np.golden.record.recording import record
from mvlm_np.golden.stages import order
from tests.golden.recorded import Stages, against, recorded, with_matrix


def written(path: Path, golden: Golden, compact: bool = False) -> Golden:
    write_golden(path, golden.stages, golden.metadata, golden.floors, compact)
    return read_golden(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    r = recorded()
    read = written(tmp_path / "g.safetensors", r.golden)
    assert list(read.stages) == r.golden.names
    for name, array in r.stages.items():
        assert read.stages[name].dtype == array.dtype
        np.testing.assert_array_equal(read.stages[name], array)
    assert read.metadata["question"] == r.question.text
    assert read.metadata["format"] == "mvlm-golden 1"
    for kind, floors in r.golden.floors.items():
        for name, pair in floors.items():
            np.testing.assert_allclose(read.floors[kind][name], pair, rtol=0.01)


@pytest.mark.parametrize("name", ["own/ldpv2", "own/ldp", "own/mlp"])
def test_stages_come_in_the_order_in_which_they_are_computed(name: str) -> None:
    seen: list[str] = []

    from mvlm_np.trace import Recorder

    class Listing(Recorder):
        def __call__(self, name: str, array: np.ndarray) -> None:
            seen.append(name)
            super().__call__(name, array)

    r = recorded(name)
    record(r.model, r.question, recorder=Listing)
    prompt = list(dict.fromkeys(seen))
    features = prompt.index("vision.features")  # the encoder goes on to its end only because it is watched
    assert sorted(prompt, key=order) == prompt
    assert prompt[features - 1].startswith("vision.hidden_states.")


# ---------------------------------------------------------------- compact goldens


SHAPES_1_7B = {
    "pixel_values": (3, 336, 336),
    **{f"vision.hidden_states.{i}": (577, 1024) for i in range(25)},
    "vision.features": (576, 1024),
    **{f"projector.{n}": (576, 2048) for n in ("mlp.mlp.0", "mlp.mlp.1", "mlp")},
    **{f"projector.{n}": (2048, 12, 12) for n in ("dwn.dwn", "peg.peg")},
    **{f"projector.{n}": (144, 2048) for n in ("dwn", "peg", "output")},
    "inputs_embeds": (220, 2048),
    **{f"decoder.hidden_states.{i}": (220, 2048) for i in range(25)},
    **{f"decoder.{n}.{i}": (16, 220, 128) for n in ("keys", "values") for i in range(24)},
    "logits": (220, 32000),
    "decode.hidden_states.1": (24, 2048),
    "decode.logits": (24, 32000),
}


def test_a_compact_golden_of_full_size_fits_in_2_mb(tmp_path: Path) -> None:
    one = np.float32(1)
    ids: Stages = {"input_ids": np.arange(60), "generated_ids": np.arange(24)}
    stages = {name: np.broadcast_to(one, shape) for name, shape in SHAPES_1_7B.items()} | ids
    floors = dict.fromkeys(
        ("float32", "float16", "bf16", "int8", "int4"), dict.fromkeys(SHAPES_1_7B, (1e-7, 1e-7))
    )
    write_golden(tmp_path / "g.safetensors", stages, {}, floors, compact=True)
    assert (tmp_path / "g.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("name", ["own/ldpv2", "own/ldp", "own/mlp"])
def test_a_compact_golden_knows_its_own_and_localises_a_fault(name: str, tmp_path: Path) -> None:
    r = recorded(name)
    golden = written(tmp_path / "g.safetensors", r.golden, compact=True)
    assert not {n for n in golden.stages if not n.endswith("ids")}
    assert golden.names == r.golden.names
    result = against(golden, r.stages)
    assert result.right and {s.distance.rms for s in result.stages if s.distance} == {0}
    torch = record(r.model, r.question, follow=None)
    torch = {n: a * np.float32(1 + 1e-7) if a.dtype.kind == "f" else a for n, a in torch.items()}
    assert against(golden, torch).right

    def turn_one(w: np.ndarray) -> None:
        w[5, 3] = -w[5, 3]

    first = against(golden, record(with_matrix(r.model, 1, "fc2", turn_one), r.question)).first_wrong
    assert first and first.name == "vision.hidden_states.2" and first.where.startswith("channel 5")


def test_a_single_wrong_number_is_found_in_a_sketch(tmp_path: Path) -> None:
    r = recorded()
    golden = written(tmp_path / "g.safetensors", r.golden, compact=True)
    stages = dict(r.stages)
    stages["decoder.keys.0"] = stages["decoder.keys.0"].copy()
    stages["decoder.keys.0"][1, 40, 2] += 0.1
    first = against(golden, stages).first_wrong
    assert first and first.name == "decoder.keys.0"
    assert first.where.startswith("head 1, element 2; position 40")


def test_the_norm_of_a_sketch_s_difference_is_that_of_the_stage_s() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        e = rng.standard_normal((60, 50)) * rng.uniform(0, 3, 60)[:, None]
        ratios += [np.linalg.norm(part) / np.linalg.norm(e) for part in sums(e)]
    assert 0.9 < np.mean(ratios) < 1.1
    assert min(ratios) > 0.5 and max(ratios) < 1.5


def test_signs_are_splitmix64_s_top_bits() -> None:
    def splitmix64(n: int) -> int:
        z = (n + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published generator's first number from the seed 0
    assert signs(1000).tolist() == [1.0 if splitmix64(n) >> 63 else -1.0 for n in range(1000)]


def test_a_long_axis_is_summed_in_bins() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5000)).astype(np.float32)
    kept = sketch("logits", x)
    assert (kept.rows.shape, kept.columns.shape, kept.sample.shape) == ((3,), (2048,), (3, 128))
    s, t = signs(5000), signs(3)
    np.testing.assert_allclose(kept.rows, t * (x @ s), rtol=1e-5)
    np.testing.assert_allclose(kept.columns.sum(), s @ (t @ x), rtol=1e-4)
    np.testing.assert_array_equal(sample(matrix("logits", x))[:, [0, -1]], x[:, [0, -1]])


# ---------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("floors", "[1"),
        ("floors", "3"),
        ("floors", '{"float32": 3}'),
        ("floors", '{"float32": {"logits": [1]}}'),
        ("floors", '{"float32": {"logits": ["a", "b"]}}'),
        ("sketches", '{"logits": [[3, 4], 1, 1, "a"]}'),
        ("sketches", '{"logits": 1}'),
    ],
)
def test_damaged_metadata_is_refused_in_one_line(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_file({"logits": np.zeros((1, 3, 4), np.float32)}, path, {key: value})
    with pytest.raises(UserError) as error:
        read_golden(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_sketches_that_do_not_fit_their_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    parts = {"rows": (3,), "columns": (5,), "sample": (3, 4)}
    arrays = {f"{part}/logits": np.zeros(shape, np.float32) for part, shape in parts.items()}
    save_file(arrays, path, {"sketches": json.dumps({"logits": [[3, 4], 1, 1, "a"]})})
    with pytest.raises(UserError, match="does not fit its shape"):
        read_golden(path)


def test_a_file_without_stages_is_no_golden(tmp_path: Path) -> None:
    for arrays in ({}, {"model.embed_tokens.weight": np.ones((2, 3), np.float32)}):
        save_file(arrays, tmp_path / "g.safetensors")
        with pytest.raises(UserError, match="holds no stages"):
            read_golden(tmp_path / "g.safetensors")


def test_a_tail_is_compared_like_the_stage(tmp_path: Path) -> None:
    r = recorded()
    tail = {f"{n}.tail": r.stages[n][..., -4:, :] for n in ("decoder.keys.0", "logits")}
    golden = written(tmp_path / "g.safetensors", Golden(tail))
    assert [s.verdict for s in against(golden, tail).stages] == [RIGHT, RIGHT]
