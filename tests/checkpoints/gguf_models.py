"""Small random models, and GGUF files of them that the `gguf` package writes.

The package is llama.cpp's own; the conversion here follows what llama.cpp's two converters do, written
anew with other means than ours, so that reader and writer do not merely agree with each other.
"""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece

from mvlm_np.binder import VISION_TOWER, Manifest
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.loading import bind

VOCAB = 320
TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q5_0": gguf.GGMLQuantizationType.Q5_0,
}


class Array:
    """A weight that lies in memory, as `gguf_writer.Weight` has it."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, values.shape

    def float32(self) -> np.ndarray:
        return self.values


@cache
def tokenizer_model() -> bytes:
    """A SentencePiece model of LLaMA's kind, trained on the spot."""
    model = io.BytesIO()
    words = "the cat sat on a mat and saw what the photo shows in colour".split()
    text = (" ".join(words[i % 13] + words[i % 7] for i in range(j, j + 9)) for j in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return model.getvalue()


def small_config(
    projector: str = "ldpnetv2", kv_heads: int = 1, tied: bool = False, vision: bool = True
) -> Config:
    decoder = DecoderConfig(64, 96, 2, 2, kv_heads, VOCAB, 1e-5, 10000.0, 512, tied)
    if not vision:
        return Config(decoder)
    tower = VisionConfig(32, 64, 3, 2, image_size=56, patch_size=14)
    return Config(decoder, tower, ImageConfig(56, (56, 56), (0.5, 0.25, 0.4), (0.2, 0.3, 0.1)), projector)


def random_weights(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Every weight of the model by Hugging Face's name, float32.

    Rows of a matrix have length 1 or so, as in a trained model: with larger ones the softmax saturates, and
    the last bit of a sum decides what comes out.
    """
    rng = np.random.default_rng(seed)
    wanted = Manifest()
    bind(config, wanted)
    shapes = dict(wanted.shapes)
    if config.vision:
        shapes |= {f"{VISION_TOWER}vision_model.post_layernorm.{leaf}": (32,) for leaf in ("weight", "bias")}
    return {
        name: rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def as_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, Array]:
    return {name: Array(values) for name, values in arrays.items()}


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values after the way through a file, by the gguf package."""
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    return gguf.quants.dequantize(gguf.quants.quantize(values, TYPES[kind]), TYPES[kind]).reshape(
        values.shape
    )


def assert_stored(tensors: Mapping[str, Tensor], weights: Mapping[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        assert tensor.shape == weights[name].shape, name
        values = tensor.float32()
        assert values.dtype == np.float32 and values.shape == tensor.shape
        np.testing.assert_array_equal(values, as_stored(weights[name], tensor.dtype), err_msg=name)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What convert_hf_to_gguf.py does to q and k: row i + j d/2 of each head goes to 2i + j."""
    d = len(rows) // heads
    order = [head * d + j * (d // 2) + i for head in range(heads) for i in range(d // 2) for j in (0, 1)]
    return rows[order]


_BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip


def package_decoder(
    path: Path, config: Config, weights: Mapping[str, np.ndarray], kind: str = "F16", **settings: object
) -> Path:
    """A LLaMA GGUF as convert_hf_to_gguf.py writes it. `settings` replace those of the same name."""
    c, writer = config.decoder, gguf.GGUFWriter(path, "llama")
    _settings(writer, _tokenizer_settings() | {
        "llama.context_length": c.max_position_embeddings, "llama.embedding_length": c.hidden_size,
        "llama.block_count": c.num_hidden_layers, "llama.feed_forward_length": c.intermediate_size,
        "llama.rope.dimension_count": c.hidden_size // c.num_attention_heads,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "llama.rope.freq_base": c.rope_theta, "llama.vocab_size": c.vocab_size,
    } | {name.replace("__", "."): value for name, value in settings.items()})  # fmt: skip
    for name, values in weights.items():
        if not name.startswith(("model.layers", "model.embed", "model.norm", "lm_head")):
            continue
        theirs = name
        for ours, other in _BLOCK.items():
            theirs = theirs.replace(ours, other)
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, c.num_attention_heads if "q_proj" in name else c.num_key_value_heads)
        _add(writer, theirs, values, kind if values.ndim == 2 else "F32")
    return _finish(writer, path)


def package_mmproj(
    path: Path,
    config: Config,
    weights: Mapping[str, np.ndarray],
    swapped: bool = True,
    whole: bool = False,
    **settings: object,
) -> Path:
    """An mmproj as convert_image_encoder_to_gguf.py writes it.

    swapped  fc1 is called ffn_down, and fc2 ffn_up, as that converter does
    whole    the last layer and the norm after it are not dropped
    """
    c, writer = config.vision, gguf.GGUFWriter(path, "clip")
    assert c
    layers = c.num_hidden_layers if whole else c.num_hidden_layers - 1
    projector = {"ldpnetv2": "ldpv2", "ldpnet": "ldp", "mlp2x_gelu": "mlp"}[config.mm_projector_type]
    _settings(writer, {
        "clip.has_vision_encoder": True, "clip.projector_type": projector, "clip.use_gelu": False,
        "clip.vision.image_size": c.image_size, "clip.vision.patch_size": c.patch_size,
        "clip.vision.embedding_length": c.hidden_size, "clip.vision.feed_forward_length": c.intermediate_size,
        "clip.vision.attention.head_count": c.num_attention_heads, "clip.vision.block_count": layers,
        "clip.vision.attention.layer_norm_epsilon": c.layer_norm_eps,
        "clip.vision.image_mean": list(config.image.mean), "clip.vision.image_std": list(config.image.std),
    } | {name.replace("__", "."): value for name, value in settings.items()})  # fmt: skip
    fc1, fc2 = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    tower = (
        ("model.vision_tower.vision_tower.vision_model", "v"), ("encoder.layers", "blk"), ("embeddings.", ""),
        ("_proj.", "."), ("self_attn.", "attn_"), ("layer_norm", "ln"), ("layernorm", "ln"), ("mlp.fc1", fc1),
        ("mlp.fc2", fc2), ("embedding", "embd"), ("layrnorm", "ln"),
    )  # fmt: skip
    head = (("model.mm_projector", "mm"), ("mm.mlp.mlp", "mm.model.mlp"), ("mm.peg.peg", "mm.model.peg"))
    for name, values in weights.items():
        steps = tower if "vision_tower" in name else head if "mm_projector" in name else ()
        if not steps or f".layers.{layers}." in name or ("post_layernorm" in name and not whole):
            continue
        theirs = name
        for ours, other in steps:
            theirs = theirs.replace(ours, other)
        _add(writer, theirs, values.squeeze(), "F16" if values.ndim in (2, 4) else "F32")
    return _finish(writer, path)


def _tokenizer_settings() -> dict[str, object]:
    sp = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
    tests = ((sp.is_unknown, 2), (sp.is_control, 3), (sp.is_unused, 5), (sp.is_byte, 6))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [sp.id_to_piece(i) for i in range(VOCAB)],
        "tokenizer.ggml.scores": [sp.get_score(i) for i in range(VOCAB)],
        "tokenizer.ggml.token_type": [next((kind for is_, kind in tests if is_(i)), 1) for i in range(VOCAB)],
    }


def _settings(writer: gguf.GGUFWriter, settings: Mapping[str, object]) -> None:
    """Adds them with the kinds that the converters choose. None leaves one out."""
    for key, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    if TYPES[kind].value < 2:
        writer.add_tensor(name, values.astype(np.float32 if kind == "F32" else np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, TYPES[kind]), raw_dtype=TYPES[kind])


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(
    folder: Path, config: Config, kind: str = "F16", **mmproj: Any
) -> tuple[Path, dict[str, np.ndarray]]:
    """A model's two files by the gguf package, and the weights that went into them."""
    weights = random_weights(config)
    package_mmproj(folder / "mmproj-model-f16.gguf", config, weights, **mmproj)
    return package_decoder(folder / "model.gguf", config, weights, kind), weights
