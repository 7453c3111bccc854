"""Values in the JSON files of a model folder that are wrong or mean another model; see `hostile_folders`."""

from typing import Any

from tests.checkpoints.hostile_files import CLIP, CONFIG, GOOD, PREPROCESSOR, Case, Changes, as_json

NAN, INFINITY = float("nan"), float("inf")


def setting(key: str, value: Any, rule: str) -> Case:
    return {"config.json": as_json(CONFIG | {key: value})}, rf"config\.json: {key}: {rule}"


def tower(key: str, value: Any, rule: str) -> Case:
    return {"clip/config.json": as_json(CLIP | {key: value})}, rf"clip/config\.json: {key}: {rule}"


def preprocessor(key: str, value: Any, rule: str) -> Case:
    changes: Changes = {"clip/preprocessor_config.json": as_json(PREPROCESSOR | {key: value})}
    return changes, rf"clip/preprocessor_config\.json: {key}: {rule}"


def _largest(projector: str) -> Case:
    """Every size at its limit: the weights do not fit, and finding that out must not cost what they would."""
    decoder = {"hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 1024}
    more = {"vocab_size": 1 << 20, "mm_hidden_size": 1 << 14, "mm_projector_type": projector}
    vision = {"hidden_size": 1 << 14, "intermediate_size": 1 << 16, "num_hidden_layers": 256}
    picture = {"num_attention_heads": 256, "image_size": 4096, "patch_size": 16}
    changes: Changes = {
        "config.json": as_json(CONFIG | decoder | more),
        "clip/config.json": as_json(vision | picture),
        "clip/preprocessor_config.json": as_json({"size": 4096, "crop_size": 4096}),
    }
    return changes, r"the tensors do not fit config\.json: \d+ missing: .* and \d+ more"


SETTINGS: dict[str, Case] = {
    "size missing": setting("hidden_size", None, r"is missing"),
    "size zero": setting("hidden_size", 0, r"found 0, wanted a whole number from 1 to 65536"),
    "size negative": setting("intermediate_size", -12, r"found -12, wanted a whole number"),
    "size huge": setting("hidden_size", 1 << 40, r"found 1099511627776, wanted a whole number"),
    "size of 4000 digits": setting("hidden_size", 10**4000, r"found 10+\.\.\.0+, wanted a whole number"),
    "size a text": setting("hidden_size", "8", r"found '8', wanted a whole number"),
    "size a float": setting("hidden_size", 8.0, r"found 8\.0, wanted a whole number"),
    "size true": setting("num_hidden_layers", True, r"found True, wanted a whole number"),
    "size NaN": setting("num_hidden_layers", NAN, r"found nan, wanted a whole number"),
    "size infinite": setting("intermediate_size", INFINITY, r"found inf, wanted a whole number"),
    "size an object": setting("hidden_size", {"a": [1] * 1000}, r"found \{'a': \[1, 1, .*\.\.\.\]\}, wanted"),
    "layers a billion": setting(
        "num_hidden_layers", 10**9, r"found 1000000000, wanted a whole number from 1 to 1024"
    ),
    "vocabulary huge": setting(
        "vocab_size", 1 << 32, r"found 4294967296, wanted a whole number from 1 to 1048576"
    ),
    "context zero": setting("max_position_embeddings", 0, r"found 0, wanted a whole number"),
    "heads zero": setting("num_attention_heads", 0, r"found 0, wanted a whole number"),
    "heads that do not divide": setting(
        "num_attention_heads", 3, r"found 3 for hidden_size 8, wanted heads of equal"
    ),
    "heads of odd size": setting("num_attention_heads", 8, r"found 8 for hidden_size 8, wanted .* even size"),
    "more heads than width": setting(
        "num_attention_heads", 16, r"found 16 for hidden_size 8, wanted heads of equal"
    ),
    "KV heads that do not divide": setting("num_key_value_heads", 3, r"found 3, wanted a divisor of"),
    "more KV heads than heads": setting("num_key_value_heads", 8, r"found 8, wanted a divisor of"),
    "head size of its own": setting("head_dim", 4, r"found 4, wanted 2"),
    "eps zero": setting("rms_norm_eps", 0, r"found 0, wanted a number above 0"),
    "eps NaN": setting("rms_norm_eps", NAN, r"found nan, wanted a number above 0"),
    "eps huge": setting("rms_norm_eps", 10**400, r"found 10+\.\.\.0+, wanted a number above 0"),
    "eps a text": setting("rms_norm_eps", "1e-6", r"found '1e-6', wanted a number"),
    "theta infinite": setting("rope_theta", INFINITY, r"found inf, wanted a number"),
    "theta negative": setting("rope_theta", -1, r"found -1, wanted a number above 0"),
    "rope scaled": setting("rope_scaling", {"type": "linear", "factor": 2.0}, r"found \{.*\}, wanted none"),
    "rope of another kind": setting(
        "rope_parameters", {"rope_type": "llama3"}, r"rope_type: found 'llama3', wanted"
    ),
    "rope of a part": setting(
        "rope_parameters", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: found 0\.5"
    ),
    "rope a number": setting("rope_parameters", 1, r"found 1, wanted a JSON object"),
    "activation": setting("hidden_act", "gelu", r"found 'gelu', wanted 'silu'; this engine"),
    "another architecture": setting("model_type", "gemma", r"found 'gemma', wanted 'llama' or 'mobilevlm'"),
    "biases": setting("attention_bias", True, r"found True, wanted False"),
    "tensor parallel": setting("pretraining_tp", 2, r"found 2, wanted 1"),
    "tied, a text": setting("tie_word_embeddings", "false", r"found 'false', wanted true or false"),
    "end token past the vocabulary": setting(
        "bos_token_id", 640, r"found 640, wanted a whole number from 0 to 639"
    ),
    "several start tokens": setting("bos_token_id", [1, 2], r"found \[1, 2\], wanted a whole number"),
    "terminal escapes": setting("hidden_size", "\x1b[2J", r"found '\\x1b\[2J', wanted"),
    # The vision tower and the projector
    "image markers": setting("mm_use_im_start_end", True, r"found True, wanted False"),
    "patch markers": setting("mm_use_im_patch_token", True, r"found True, wanted False"),
    "projector unknown": setting(
        "mm_projector_type", "qformer", r"found 'qformer', wanted ldpnetv2, ldpnet, linear"
    ),
    "projector of 0 layers": setting("mm_projector_type", "mlp0x_gelu", r"found 'mlp0x_gelu', wanted"),
    "projector of 100 layers": setting("mm_projector_type", "mlp100x_gelu", r"found 'mlp100x_gelu', wanted"),
    "projector of foreign digits": setting("mm_projector_type", "mlp٢x_gelu", r"found 'mlp.x_gelu', wanted"),
    "projector a list": setting("mm_projector_type", ["linear"], r"found \['linear'\], wanted a text"),
    "layer past the last": setting(
        "mm_vision_select_layer", 3, r"found 3, wanted a whole number from -3 to 2"
    ),
    "layer before the first": setting(
        "mm_vision_select_layer", -4, r"found -4, wanted a whole number from -3 to 2"
    ),
    "layer a list": setting("mm_vision_select_layer", [-2, -5], r"found \[-2, -5\], wanted a whole number"),
    "feature unknown": setting("mm_vision_select_feature", "cls", r"found 'cls', wanted patch or cls_patch"),
    "class token with LDP": (
        {
            "config.json": as_json(
                CONFIG | {"mm_projector_type": "ldpnet", "mm_vision_select_feature": "cls_patch"}
            )
        },
        r"config\.json: mm_vision_select_feature: found cls_patch with the projector ldpnet, wanted patch",
    ),
    "vision width another": setting("mm_hidden_size", 1024, r"found 1024, wanted 6"),
    "tower of another kind": setting("vision_tower_type", "siglip", r"found 'siglip', wanted 'clip'"),
    "aspect a list": setting("image_aspect_ratio", ["pad"], r"found \['pad'\], wanted a text"),
    "tower a number": setting("mm_vision_tower", 7, r"found 7, wanted a text"),
    "tower absent": setting("mm_vision_tower", "elsewhere", r"there is no CLIP folder 'elsewhere'"),
    "tower far up": setting(
        "mm_vision_tower", "../../../../../../../../etc", r"there is no CLIP folder '\.\./"
    ),
    "tower a file": setting("mm_vision_tower", "/etc/passwd", r"there is no CLIP folder '/etc/passwd'"),
    "tower a device": setting("mm_vision_tower", "/dev/zero", r"there is no CLIP folder '/dev/zero'"),
    "end token unknown": (
        {"generation_config.json": as_json({"eos_token_id": 640})},
        r"generation_config\.json: eos_token_id: found 640, wanted a whole number from 0 to 639",
    ),
    "an end token of several unknown": (
        {"generation_config.json": as_json({"eos_token_id": [2, 640]})},
        r"generation_config\.json: eos_token_id: found 640, wanted a whole number from 0 to 639",
    ),
    "an end token of several null": (
        {"generation_config.json": as_json({"eos_token_id": [2, None]})},
        r"generation_config\.json: eos_token_id: is missing",
    ),
    "no end token at all": (
        {"generation_config.json": as_json({"eos_token_id": []})},
        r"generation_config\.json: eos_token_id: found 0 ids, wanted 1 to 64",
    ),
    "as large as allowed": _largest("mlp99x_gelu"),
    "as large as allowed, LDP": _largest("ldpnet"),
    "as large as allowed, LDPv2": _largest("ldpnetv2"),
}

TOWERS: dict[str, Case] = {
    "width zero": tower("hidden_size", 0, r"found 0, wanted a whole number from 1 to 16384"),
    "layers a billion": tower(
        "num_hidden_layers", 10**9, r"found 1000000000, wanted a whole number from 1 to 256"
    ),
    "heads that do not divide": tower(
        "num_attention_heads", 4, r"found 4, wanted a divisor of hidden_size 6"
    ),
    "picture of 2^40": tower(
        "image_size", 1 << 40, r"found 1099511627776, wanted a whole number from 1 to 4096"
    ),
    "patches of one pixel": (
        {"clip/config.json": as_json(CLIP | {"image_size": 4096, "patch_size": 1})},
        r"clip/config\.json: patch_size: found 1 for image_size 4096, wanted between 1 and 256",
    ),
    "patch larger than the picture": tower(
        "patch_size", 29, r"found 29 for image_size 28, wanted between 1 and 256"
    ),
    "four channels": tower("num_channels", 4, r"found 4, wanted a whole number from 3 to 3"),
    "activation": tower("hidden_act", "relu", r"found 'relu', wanted 'quick_gelu' or 'gelu'"),
    "eps infinite": tower("layer_norm_eps", INFINITY, r"found inf, wanted a number above 0 and up to 1"),
    "another architecture": tower(
        "model_type", "siglip", r"found 'siglip', wanted 'clip' or 'clip_vision_model'"
    ),
    "vision part a list": tower("vision_config", [], r"found \[\], wanted a JSON object"),
    "vision part missing": (
        {"clip/config.json": as_json(CLIP | {"model_type": "clip"})},
        r"clip/config\.json: vision_config: found None, wanted a JSON object",
    ),
    "resize to zero": preprocessor("size", 0, r"found 0, wanted a whole number from 1 to 4096"),
    "resize to 2^40": preprocessor(
        "size", {"shortest_edge": 1 << 40}, r"shortest_edge: found 1099511627776, wanted"
    ),
    "crop to another size": (
        {"clip/preprocessor_config.json": as_json({"size": 28, "crop_size": 224})},
        r"config\.json: mm_vision_tower: its preprocessor cuts pictures to \(224, 224\), wanted",
    ),
    "resize by another kernel": preprocessor("resample", 2, r"found 2, wanted 3"),
    "deviation zero": preprocessor("image_std", [0, 1, 1], r"found \[0, 1, 1\], wanted three numbers"),
    "mean NaN": preprocessor("image_mean", [NAN, 0, 0], r"found \[nan, 0, 0\], wanted three numbers"),
    "a step left out": preprocessor("do_normalize", False, r"found False, wanted True"),
    "weights of another tower": (
        {"clip/model.safetensors": GOOD["model.safetensors"]},
        r"missing: model\.vision_tower\.vision_tower\.vision_model\.",
    ),
}
