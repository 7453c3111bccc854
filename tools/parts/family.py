"""The MobileVLM family: what the config files of the published models say, and a few small relatives.

Of the published models every value is the published one, leftovers such as the 3B's `n_head` included
(Apache-2.0 repositories mtgv/MobileVLM*, and openai/clip-vit-large-patch14-336). The small ones are
the same models with other sizes.
"""

from typing import Any, NamedTuple

from mvlm_np.config import OPENAI_CLIP

Json = dict[str, Any]

CONFIG: Json = {
    "architectures": ["MobileLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "mm_hidden_size": 1024,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": OPENAI_CLIP,
    "model_type": "mobilevlm",
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
    "vision_tower_type": "clip",
    "vocab_size": 32000,
}
V1: Json = {"mm_projector_type": "ldpnet"}
V2: Json = {"mm_projector_type": "ldpnetv2", "mm_projector_lr": None}


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Json:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_1_7B = llama(2048, 5632, 24, 16, 16) | {"max_sequence_length": 2048}
_3B = llama(2560, 6912, 32, 32, 32) | {
    "_mlp_class": "LLaMAMLP",
    "_norm_class": "RMSNorm",
    "bias": False,
    "block_size": 2048,
    "gelu_approximate": "none",
    "lm_head_bias": False,
    "n_embd": 2560,
    "n_head": 16,
    "n_layer": 32,
    "n_query_groups": 16,
    "name": "huggy_llama_3b",
    "norm_eps": 1e-06,
    "padded_vocab_size": 32000,
    "padding_multiple": 64,
    "parallel_residual": False,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rotary_percentage": 1.0,
    "shared_attention_norm": False,
}
_7B = llama(4096, 11008, 32, 32, 32) | {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "transformers_version": "4.31.0",
}

_CLIP_VISION: Json = {
    "dropout": 0.0,
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
_CLIP_TEXT: Json = {
    "dropout": 0.0,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def small(
    projector: str,
    llama: Json,
    vocabulary: int,
    vision: tuple[int, int, int, int],
    image: tuple[int, int] = (336, 14),
    **more: Any,
) -> tuple[Json, Json]:
    """Changes of config.json and of the vision tower; vision: width, MLP width, layers, heads."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = llama | {"vocab_size": vocabulary, "mm_projector_type": projector, "mm_vision_tower": "clip"}
    tower = dict(zip(keys, vision, strict=True)) | dict(zip(("image_size", "patch_size"), image, strict=True))
    return config | {"mm_hidden_size": vision[0]} | more, tower


# name -> changes of config.json, changes of the vision tower
MEMBERS: dict[str, tuple[Json, Json]] = {
    "MobileVLM-1.7B": (V1 | _1_7B, {}),
    "MobileVLM-3B": (V1 | _3B, {}),
    "MobileVLM_V2-1.7B": (V2 | _1_7B, {}),
    "MobileVLM_V2-3B": (V2 | _3B | {"org": "meta"}, {}),
    "MobileVLM_V2-7B": (V2 | _7B, {}),
    "tiny": small("ldpnetv2", llama(64, 128, 2, 4, 2), 512, (32, 64, 3, 2)),
    "tiny-ldp": small("ldpnet", llama(64, 128, 2, 4, 2), 512, (32, 64, 3, 2)),
    "tiny-mlp": small("mlp2x_gelu", llama(64, 128, 2, 4, 2), 512, (32, 64, 3, 2)),
    # For the golden files in tests/data, as small as they can be: grids that do not halve, a squeeze width
    # that is rounded up, shared key-value heads, the class token kept, a picture that is cropped.
    "golden-ldpv2": small("ldpnetv2", llama(16, 24, 2, 4, 2), 72, (12, 20, 3, 2), (52, 4)),
    "golden-ldp": small("ldpnet", llama(36, 28, 2, 2, 1), 68, (16, 36, 3, 4), (35, 5)),
    "golden-mlp": small(
        "mlp2x_gelu",
        llama(24, 32, 2, 4, 1),
        64,
        (18, 28, 2, 3),
        (40, 8),
        mm_vision_select_feature="cls_patch",
        image_aspect_ratio="square",
    ),
}
NAMES = tuple(MEMBERS)


class Files(NamedTuple):
    """The JSON files of a model folder and of the folder of its vision tower, by file name."""

    model: dict[str, Json]
    tower: dict[str, Json]


def files(name: str, layers: int | None = None) -> Files:
    """What the config files of a family member say; with `layers` that many in decoder and vision tower."""
    changes, vision = MEMBERS[name]
    config = CONFIG | changes
    if name.startswith("MobileVLM"):
        config["_name_or_path"] = f"mtgv/{name}"
    vision = _CLIP_VISION | vision
    if layers is not None:
        config["num_hidden_layers"] = vision["num_hidden_layers"] = layers
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    model = {
        "config.json": config,
        "generation_config.json": {"_from_model_config": True} | {key: config[key] for key in kept},
    }
    tower = {
        "config.json": _clip_config(vision),
        "preprocessor_config.json": preprocessor(vision["image_size"]),
    }
    return Files(model | _tokenizer_files(legacy=name != "MobileVLM_V2-7B"), tower)


def _tokenizer_files(legacy: bool) -> dict[str, Json]:
    """tokenizer_config.json and special_tokens_map.json; the 1.7B and 3B are `legacy`, the V2-7B is not."""

    def token(content: str) -> Json:
        return {
            "content": content, "lstrip": False, "normalized": legacy, "rstrip": False, "single_word": False
        }  # fmt: skip

    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "special_tokens_map.json": {role: token(text) for role, text in roles.items()}
        | {"pad_token": "<unk>"},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": legacy,
            "model_max_length": 2048,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "spaces_between_special_tokens": False,
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": True,
        }
        | {role: {"__type": "AddedToken"} | token(text) for role, text in roles.items()},
    }


def _clip_config(vision: Json) -> Json:
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": _CLIP_TEXT,
        "vision_config": vision,
    }


def preprocessor(size: int) -> Json:
    return {
        "crop_size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": size,
    }
