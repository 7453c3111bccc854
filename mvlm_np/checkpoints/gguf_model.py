"""A LLaMA GGUF and its mmproj, presented as if they were one Hugging Face checkpoint.

Three things are undone. llama.cpp rotates neighbouring pairs (2i, 2i + 1) where Hugging Face's LLaMA rotates
(i, i + d/2), so its converter reorders the rows of every q and k; whole rows move, so blocks stay as they are
stored. Convolutions lose their axes of size 1. And an mmproj mostly holds 23 of CLIP's 24 layers, since the
features are taken before the last: select_layer then counts from that shorter end.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np.checkpoints import gguf_names
from mvlm_np.checkpoints.checkpoint import Checkpoint, StoredTokenizer
from mvlm_np.checkpoints.config_files import decoder_config, model_config, vision_config
from mvlm_np.checkpoints.gguf import GGUFFile, read_gguf, show
from mvlm_np.checkpoints.gguf_blocks import need_package
from mvlm_np.checkpoints.gguf_tokenizer import MODEL, read_tokenizer
from mvlm_np.checkpoints.json_files import Fields
from mvlm_np.checkpoints.kinds import ggufs
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.checkpoints.tokenizer_files import read_folder
from mvlm_np.config import OPENAI_CLIP, Config, ImageConfig
from mvlm_np.errors import CheckpointError, ConfigError, some

NO_MMPROJ = (
    "for pictures a GGUF needs its mmproj, and none lies beside it: name it with --mmproj (mmproj= in Python)"
)


def open_gguf(path: Path, mmproj: Path | None = None) -> Checkpoint:
    """The model in `path` and `mmproj`; without the latter, in the one `mmproj*.gguf` beside it, if any.

    Raises CheckpointError for damaged or foreign files, ConfigError for settings that are missing, out of
    range, or mean something that this engine does not compute, TokenizerError for an unsound vocabulary.
    """
    path = Path(path)
    llm = read_gguf(path)
    get = _Settings(llm)
    if get.text("general.architecture") == "clip":
        raise CheckpointError(
            path, "is an mmproj: a vision tower without a language model", "a LLaMA GGUF",
            "give the language model's file; this one goes with it as mmproj",
        )  # fmt: skip
    get.only("general.architecture", "llama")
    get.only("split.count", 0, 1)
    need_package(tensor.dtype for tensor in llm.tensors.values())
    values = _decoder_values(llm, get)
    decoder = decoder_config(values, path)
    tensors = _decoder_tensors(llm, decoder.num_attention_heads, decoder.num_key_value_heads)
    _check_rope_factors(llm, decoder.head_dim)
    tokenizer = _tokenizer(llm)
    mmproj = find_mmproj(path) if mmproj is None else Path(mmproj)
    if mmproj is None:
        return Checkpoint(path, Config(decoder), tensors, tokenizer, no_vision=NO_MMPROJ)
    tower = read_gguf(mmproj)
    need_package(tensor.dtype for tensor in tower.tensors.values())
    config, more = _with_vision(tower, values)
    return Checkpoint(path, config, tensors | more, tokenizer)


def _tokenizer(llm: GGUFFile) -> Callable[[], StoredTokenizer]:
    """A tokenizer.model beside the GGUF counts; else the GGUF's own, which is read at once if it has one."""
    path = llm.file.path
    if (path.parent / "tokenizer.model").exists():
        return partial(read_folder, path.parent)
    if MODEL not in llm.metadata:
        return partial(read_tokenizer, llm.metadata, path)  # which says that there is none
    stored = read_tokenizer(llm.metadata, path)
    return lambda: stored


def find_mmproj(path: Path) -> Path | None:
    """The mmproj that lies beside a model's GGUF: a file with "mmproj" in its name, wherever that stands.

    Of several, the one that is called like the model counts, as in MODEL.Q4_0.gguf and MODEL-mmproj-f16.gguf.
    If that is not one, a CheckpointError lists them.
    """
    beside = [other for other in ggufs(path.parent) if "mmproj" in other.name.lower() and other != path]
    alike = [other for other in beside if _stem(other) and path.name.lower().startswith(_stem(other))]
    found = alike or beside
    if len(found) > 1:
        names = ", ".join(other.name for other in found)
        fix = "choose with --mmproj (mmproj= in Python)"
        raise CheckpointError(path, f"has several mmproj beside it: {names}", "one", fix)
    return found[0] if found else None


def _stem(mmproj: Path) -> str:
    """What stands before "mmproj" in a file's name: the model's name, or nothing."""
    return mmproj.name.lower().partition("mmproj")[0].rstrip(".-_")


class _Settings(Fields):
    """A GGUF's settings. Its float32 numbers read as the decimals that they were made from: 1e-05."""

    def __init__(self, gguf: GGUFFile):
        super().__init__(gguf.metadata, gguf.file.path)

    def number(self, key: str, default: float | None = None, above: float = 0, most: float = 1e9) -> float:
        return float(str(np.float32(super().number(key, default, above, most))))

    def colour(self, key: str) -> tuple[float, float, float]:
        value = self._get(key, None)
        if not isinstance(value, list) or [type(v) is float and 0 < v <= 1 for v in value[:4]] != [True] * 3:
            self._refuse(key, "three numbers above 0 and up to 1")
        r, g, b = (float(str(np.float32(v))) for v in value)
        return r, g, b

    def _get(self, key: str, default: Any) -> Any:
        if key not in self.values and default is None:
            raise ConfigError(f"{self.where}: {key}", "is missing", fix="convert the model again")
        return self.values.get(key, default)


# -- The language model -----------------------------------------------------------------------------------


def _decoder_values(llm: GGUFFile, get: _Settings) -> dict[str, Any]:
    """The settings under the names that config.json has for them."""
    get.only("llama.expert_count", 0)
    get.only("llama.rope.scaling.type", "none")
    get.only("llama.rope.scaling.factor", 0.0, 1.0)
    get.only("llama.rope.scale_linear", 1.0)
    get.only("llama.attention.causal", True)
    path, tokens = llm.file.path, llm.metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) and tokens else None
    vocab = get.whole("llama.vocab_size", count)
    end = get.whole("tokenizer.ggml.eos_token_id", 2, least=0, most=vocab - 1)
    turn = get.whole("tokenizer.ggml.eot_token_id", end, least=0, most=vocab - 1)
    values = {
        "hidden_size": (width := get.whole("llama.embedding_length", most=1 << 16)),
        "intermediate_size": get.whole("llama.feed_forward_length", most=1 << 18),
        "num_hidden_layers": get.whole("llama.block_count", most=1024),
        "num_attention_heads": (heads := get.whole("llama.attention.head_count", most=1 << 12)),
        "num_key_value_heads": get.whole("llama.attention.head_count_kv", heads, most=1 << 12),
        "vocab_size": vocab,
        "rms_norm_eps": get.number("llama.attention.layer_norm_rms_epsilon", most=1),
        "rope_theta": get.number("llama.rope.freq_base", 10000.0),
        "max_position_embeddings": get.whole("llama.context_length"),
        "tie_word_embeddings": "output.weight" not in llm.tensors,
        "bos_token_id": get.whole("tokenizer.ggml.bos_token_id", 1, least=0, most=vocab - 1),
        "eos_token_id": [end] if turn == end else [end, turn],
    }
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        get.only(f"llama.{key}", width // heads)
    if count and count > vocab:
        raise ConfigError(f"{path}: llama.vocab_size", f"found {vocab}", f"at least the tokenizer's {count}")
    return values


def _decoder_tensors(llm: GGUFFile, heads: int, kv_heads: int) -> dict[str, Tensor]:
    tensors = _renamed(llm, gguf_names.decoder_name, ignored="rope_freqs.weight")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = half_split(tensor, heads if name.endswith("q_proj.weight") else kv_heads)
    return tensors


def half_split(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a q or k matrix from llama.cpp's order, pairs side by side, to two halves a head.

    Row 2i + j of each head becomes row i + j d/2. The bytes stay where they are: only `raw` has new strides.
    """
    rows = tensor.shape[0]
    if rows % (2 * heads):  # misshapen; binding says so together with all else
        return tensor
    row = (-1, tensor.raw.shape[-1]) if tensor.decode else tensor.shape[1:]
    return replace(tensor, raw=tensor.raw.reshape(heads, rows // heads // 2, 2, *row).swapaxes(1, 2))


def _check_rope_factors(llm: GGUFFile, head_dim: int) -> None:
    """`rope_freqs.weight` divides the angles of long-context models; only factors of 1 change nothing."""
    factors = llm.tensors.get("rope_freqs.weight")
    if factors is not None and not (factors.shape == (head_dim // 2,) and (factors.float32() == 1).all()):
        raise ConfigError(
            f"{llm.file.path}: rope_freqs.weight", "scales the rotary angles", "none, or factors of 1",
            "this engine does not compute other models",
        )  # fmt: skip


# -- The vision tower and the projector -------------------------------------------------------------------


def _with_vision(tower: GGUFFile, decoder_values: Mapping[str, Any]) -> tuple[Config, dict[str, Tensor]]:
    get, path = _Settings(tower), tower.file.path
    architecture = tower.metadata.get("general.architecture")
    if architecture != "clip" or tower.metadata.get("clip.has_vision_encoder") is False:
        raise CheckpointError(
            path, f"has the architecture {str(architecture)[:40]!r}", "an mmproj with a vision tower"
        )
    projector = get.text("clip.projector_type")
    get.only("clip.projector_type", *gguf_names.PROJECTOR_TYPES)
    get.only("clip.use_silu", False)
    get.only("clip.vision.mm_patch_merge_type", "flat")
    get.only("clip.vision.image_grid_pinpoints", [])
    width = get.whole("clip.vision.embedding_length", most=1 << 14)
    vision = vision_config(
        {
            "hidden_size": width,
            "intermediate_size": get.whole("clip.vision.feed_forward_length", most=1 << 16),
            "num_hidden_layers": (layers := get.whole("clip.vision.block_count", most=256)),
            "num_attention_heads": get.whole("clip.vision.attention.head_count", most=256),
            "image_size": (size := get.whole("clip.vision.image_size", most=4096)),
            "patch_size": get.whole("clip.vision.patch_size", most=4096),
            "hidden_act": "gelu" if tower.metadata.get("clip.use_gelu") is True else "quick_gelu",
            "layer_norm_eps": get.number("clip.vision.attention.layer_norm_epsilon", most=1),
        },
        path,
    )
    image = ImageConfig(
        resize=size,
        crop=(size, size),
        mean=get.colour("clip.vision.image_mean"),
        std=get.colour("clip.vision.image_std"),
        aspect_ratio=get.text("clip.vision.image_aspect_ratio", "pad"),
    )
    values = {
        "mm_projector_type": gguf_names.PROJECTOR_TYPES[projector],
        "mm_vision_select_layer": _select_layer(tower, get, layers),
        "mm_vision_tower": OPENAI_CLIP,
    }
    config = model_config({**decoder_values, **values}, path, vision, image)
    return config, _mmproj_tensors(tower, projector, width)


def _select_layer(tower: GGUFFile, get: _Settings, layers: int) -> int:
    """Which hidden state holds the features, counted from the end: -1 is after the last layer in the file.

    A file that does not say is a LLaVA mmproj, whose features are those before CLIP's last layer. The usual
    converter drops that layer together with the norm after it; where the norm is, the layer is too.
    """
    key = "clip.vision.feature_layer"
    if key not in tower.metadata:
        return -2 if "v.post_ln.weight" in tower.tensors else -1
    get.only(key, *([layer] for layer in range(layers + 1)))
    return tower.metadata[key][0] - (layers + 1)


def _mmproj_tensors(tower: GGUFFile, projector: str, width: int) -> dict[str, Tensor]:
    down = tower.tensors.get("v.blk.0.ffn_down.weight")
    swapped = down is not None and down.shape[-1] == width  # it reads the width: the MLP's first half

    def name(theirs: str) -> str | None:
        return gguf_names.mmproj_name(theirs, projector, swapped)

    return {ours: _unsqueezed(tensor, ours) for ours, tensor in _renamed(tower, name).items()}


def _unsqueezed(tensor: Tensor, name: str) -> Tensor:
    """A convolution's weight with the axes of size 1 that the converter dropped."""
    shape = tensor.shape
    if gguf_names.DEPTHWISE.search(name) and len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    elif gguf_names.POINTWISE.search(name) and len(shape) == 2:
        shape = (*shape, 1, 1)
    return replace(tensor, shape=shape, raw=tensor.raw if tensor.decode else tensor.raw.reshape(shape))


def _renamed(gguf: GGUFFile, name: Callable[[str], str | None], ignored: str = "") -> dict[str, Tensor]:
    unknown = [show(theirs) for theirs in gguf.tensors if name(theirs) is None and theirs != ignored]
    if unknown:
        raise CheckpointError(
            gguf.file.path, f"holds tensors that this engine has no use for: {some(unknown, 6)}",
            "a MobileVLM or a plain LLaMA",
        )  # fmt: skip
    return {ours: tensor for theirs, tensor in gguf.tensors.items() if (ours := name(theirs))}
