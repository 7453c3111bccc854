"""The only place that knows how checkpoints spell the names of weights.

Ours on the left, Hugging Face's (as upstream saves them) on the right; `*` is a layer's number.
"""

import re
from collections.abc import Callable

VISION = "model.vision_tower.vision_tower."  # where upstream keeps the CLIP tower inside its checkpoint

_DECODER = {
    "decoder.embed_tokens": "model.embed_tokens",
    "decoder.layers.*.norm1": "model.layers.*.input_layernorm",
    "decoder.layers.*.attention.q": "model.layers.*.self_attn.q_proj",
    "decoder.layers.*.attention.k": "model.layers.*.self_attn.k_proj",
    "decoder.layers.*.attention.v": "model.layers.*.self_attn.v_proj",
    "decoder.layers.*.attention.out": "model.layers.*.self_attn.o_proj",
    "decoder.layers.*.norm2": "model.layers.*.post_attention_layernorm",
    "decoder.layers.*.mlp.gate": "model.layers.*.mlp.gate_proj",
    "decoder.layers.*.mlp.up": "model.layers.*.mlp.up_proj",
    "decoder.layers.*.mlp.down": "model.layers.*.mlp.down_proj",
    "decoder.norm": "model.norm",
    "decoder.lm_head": "lm_head",
}

_VISION = {
    f"vision.{ours}": f"{VISION}vision_model.{theirs}"
    for ours, theirs in {
        "patch_embedding": "embeddings.patch_embedding",
        "position_embedding": "embeddings.position_embedding",
        "pre_norm": "pre_layrnorm",  # the misspelling is CLIP's
        "layers.*.norm1": "encoder.layers.*.layer_norm1",
        "layers.*.attention.q": "encoder.layers.*.self_attn.q_proj",
        "layers.*.attention.k": "encoder.layers.*.self_attn.k_proj",
        "layers.*.attention.v": "encoder.layers.*.self_attn.v_proj",
        "layers.*.attention.out": "encoder.layers.*.self_attn.out_proj",
        "layers.*.norm2": "encoder.layers.*.layer_norm2",
        "layers.*.mlp.fc1": "encoder.layers.*.mlp.fc1",
        "layers.*.mlp.fc2": "encoder.layers.*.mlp.fc2",
    }.items()
} | {"vision.class_embedding": f"{VISION}vision_model.embeddings.class_embedding"}

_LDP_BLOCKS = {
    f"projector.blocks.{ours}.{part}": f"model.mm_projector.model.mb_block.{theirs}.block.{module}"
    for ours, theirs in (("0", "1"), ("1", "2"))
    for part, module in {
        "depthwise": "0.0",
        "norm1": "0.1",
        "squeeze": "1.fc1",
        "excite": "1.fc2",
        "pointwise": "2.0",
        "norm2": "2.1",
    }.items()
}

_PROJECTOR = {
    "ldpnetv2": {
        "projector.fc1": "model.mm_projector.mlp.mlp.0",
        "projector.fc2": "model.mm_projector.mlp.mlp.2",
        "projector.peg": "model.mm_projector.peg.peg.0",
    },
    "ldpnet": {
        "projector.fc1": "model.mm_projector.model.mlp.1",
        "projector.fc2": "model.mm_projector.model.mlp.3",
    }
    | _LDP_BLOCKS,
    "linear": {"projector.fc": "model.mm_projector"},
    "mlp": {f"projector.fc{i}": f"model.mm_projector.{2 * (i - 1)}" for i in range(1, 100)},
}

# Tensors that some writers save and no output depends on.
_UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq"  # recomputed from rope_theta
    r"|.*\.position_ids"  # 0, 1, 2, ...
    r"|.*vision_model\.post_layernorm\..*"  # the features are taken before it
)


def hugging_face(projector_type: str) -> Callable[[str], str]:
    """Our name -> Hugging Face's, for a model with this projector ("mlp2x_gelu" and its like included)."""
    family = "mlp" if projector_type.startswith("mlp") else projector_type
    modules = _DECODER | _VISION | _PROJECTOR[family]

    def spelling(name: str) -> str:
        number = re.search(r"layers\.(\d+)\.", name)
        general = re.sub(r"layers\.\d+\.", "layers.*.", name)
        if general in modules:  # a bare parameter, not a module's weight or bias
            return modules[general]
        module, leaf = general.rsplit(".", 1)
        theirs = f"{modules[module]}.{leaf}"
        return theirs.replace("*", number[1]) if number else theirs

    return spelling


def unused(name: str) -> bool:
    """Whether a checkpoint may hold this tensor although the model does not read it."""
    return _UNUSED.fullmatch(name) is not None
