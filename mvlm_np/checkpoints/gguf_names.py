"""How llama.cpp spells the names of MobileVLM's weights, beside Hugging Face's spelling.

A model is two files: the LLaMA decoder, and the "mmproj" with the CLIP encoder and the projector.
`*` is a layer's number. Sources: llama.cpp's convert_hf_to_gguf.py and convert_image_encoder_to_gguf.py.
"""

import re

from mvlm_np.binder import VISION_TOWER

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}

_CLIP = {
    "v.class_embd": "embeddings.class_embedding",  # the only one without .weight
    "v.patch_embd": "embeddings.patch_embedding",
    "v.position_embd": "embeddings.position_embedding",
    "v.pre_ln": "pre_layrnorm",
    "v.post_ln": "post_layernorm",
    "v.blk.*.ln1": "encoder.layers.*.layer_norm1",
    "v.blk.*.attn_q": "encoder.layers.*.self_attn.q_proj",
    "v.blk.*.attn_k": "encoder.layers.*.self_attn.k_proj",
    "v.blk.*.attn_v": "encoder.layers.*.self_attn.v_proj",
    "v.blk.*.attn_out": "encoder.layers.*.self_attn.out_proj",
    "v.blk.*.ln2": "encoder.layers.*.layer_norm2",
    "v.blk.*.ffn_up": "encoder.layers.*.mlp.fc1",
    "v.blk.*.ffn_down": "encoder.layers.*.mlp.fc2",
}

# The usual converter names the two halves of the MLP the wrong way round, and llama.cpp swaps them back
# when it loads. That is the spelling which every version of llama.cpp reads.
_SWAPPED = {"v.blk.*.ffn_up": "v.blk.*.ffn_down", "v.blk.*.ffn_down": "v.blk.*.ffn_up"}

# Beginnings of names; the rest is the same in both. By llama.cpp's name for the projector.
_PROJECTOR = {
    "ldpv2": {
        "mm.model.mlp.": "model.mm_projector.mlp.mlp.",
        "mm.model.peg.": "model.mm_projector.peg.peg.",
    },
    "ldp": {"mm.model.": "model.mm_projector.model."},
    "mlp": {"mm.": "model.mm_projector."},
}
PROJECTOR_TYPES = {"ldpv2": "ldpnetv2", "ldp": "ldpnet", "mlp": "mlp2x_gelu"}  # llama.cpp's name, upstream's

_BOTH = ("weight", "bias")
_LDP_BLOCK = ("0.0.weight", *(f"{m}.{leaf}" for m in ("0.1", "1.fc1", "1.fc2") for leaf in _BOTH),
              "2.0.weight", *(f"2.1.{leaf}" for leaf in _BOTH))  # fmt: skip
_PROJECTOR_NAMES = {
    "ldpv2": [f"mm.model.{m}.{leaf}" for m in ("mlp.0", "mlp.2", "peg.0") for leaf in _BOTH],
    "ldp": [f"mm.model.{m}.{leaf}" for m in ("mlp.1", "mlp.3") for leaf in _BOTH]
    + [f"mm.model.mb_block.{block}.block.{name}" for block in (1, 2) for name in _LDP_BLOCK],
    "mlp": [f"mm.{m}.{leaf}" for m in (0, 2) for leaf in _BOTH],
}

# Convolutions whose axes of size 1 the converter squeezes away, by the end of their Hugging Face name.
DEPTHWISE = re.compile(r"peg\.peg\.0\.weight|mb_block\.\d+\.block\.0\.0\.weight")  # (C, 1, 3, 3)
POINTWISE = re.compile(r"mb_block\.\d+\.block\.(1\.fc[12]|2\.0)\.weight")  # (N, C, 1, 1)


def decoder_name(name: str) -> str | None:
    """llama.cpp's name of a decoder tensor -> Hugging Face's; None for one that a LLaMA does not have."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    if re.fullmatch(r"blk\.\d+\.attn_rot_embd", module):  # what Hugging Face's older files hold as well
        return f"model.layers.{module.split('.')[1]}.self_attn.rotary_emb.inv_freq"
    return _translated(module, _LLAMA, leaf)


def mmproj_name(name: str, projector: str, swapped: bool) -> str | None:
    """llama.cpp's name of a tensor in an mmproj -> Hugging Face's; None for one that MobileVLM does not have.

    projector  "ldpv2", "ldp" or "mlp"
    swapped    whether ffn_up and ffn_down stand for each other
    """
    for theirs, ours in _PROJECTOR[projector].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    module, _, leaf = name.rpartition(".")
    if leaf not in _BOTH:
        module, leaf = name, ""
    spelled = _translated(module, _swap(_CLIP) if swapped else _CLIP, leaf)
    return f"{VISION_TOWER}vision_model.{spelled}" if spelled else None


def decoder_names(layers: int, tied: bool) -> dict[str, str]:
    """Every tensor of a decoder file: llama.cpp's name -> Hugging Face's."""
    modules = [m for m in _LLAMA if not (tied and m == "output")]
    names = [f"{module}.weight" for module in _each_layer(modules, layers)]
    return {name: str(decoder_name(name)) for name in names}


def mmproj_names(layers: int, projector: str) -> dict[str, str]:
    """Every tensor of an mmproj as the usual converter spells it: llama.cpp's name -> Hugging Face's."""
    names = list(_PROJECTOR_NAMES[projector])
    for module in _each_layer([m for m in _CLIP if m != "v.post_ln"], layers):
        if module == "v.class_embd":
            names.append(module)
        elif module in ("v.patch_embd", "v.position_embd"):
            names.append(f"{module}.weight")
        else:
            names += [f"{module}.{leaf}" for leaf in _BOTH]
    return {name: str(mmproj_name(name, projector, swapped=True)) for name in names}


def _translated(module: str, table: dict[str, str], leaf: str) -> str | None:
    number = re.search(r"blk\.(\d+)\.", module)
    theirs = table.get(re.sub(r"blk\.\d+\.", "blk.*.", module, count=1))
    if theirs is None:
        return None
    return (theirs.replace("*", number[1]) if number else theirs) + (f".{leaf}" if leaf else "")


def _swap(table: dict[str, str]) -> dict[str, str]:
    return {module: table[_SWAPPED.get(module, module)] for module in table}


def _each_layer(modules: list[str], layers: int) -> list[str]:
    """Modules outside the layers, then those of each layer in turn."""
    outside = [m for m in modules if "*" not in m]
    inside = [m for m in modules if "*" in m]
    return outside + [m.replace("*", str(i)) for i in range(layers) for m in inside]
