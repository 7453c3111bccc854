"""What the JSON files of a model folder say, checked once and then trusted.

config.json of the model and of its CLIP tower, and the tower's preprocessor_config.json. Every value
that shapes memory is range-checked here: no later code meets a zero width, a head count that does not
divide, or a layer count of a billion. A setting under which this engine would compute another model
than the one that was trained is refused; keys that it does not know are left alone.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from mvlm_np.checkpoints.json_files import Fields, short
from mvlm_np.checkpoints.sniff import show
from mvlm_np.config import Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.errors import ConfigError

STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")  # what `inputs.image` computes
NO_EFFECT = ("do_convert_rgb",)  # every picture is RGB by the time it gets there


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model with a vision tower, or a decoder alone."""
    return values.get("mm_vision_tower") is not None


def quantised_by(values: Mapping[str, Any]) -> str | None:
    """The tool by which weights are quantised, if config.json says so: gptq, awq, bitsandbytes ..."""
    settings = values.get("quantization_config")
    if settings is None:
        return None
    kind = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return kind if isinstance(kind, str) else short(settings)


def refuse_quantised(kind: str, where: object) -> NoReturn:
    raise ConfigError(
        f"{where}: quantization_config",
        f"found {show(kind)}, whose way to keep weights this engine does not read",
        "weights in float32, float16 or bfloat16",
        "take the model before that, and quantise it with mvlm convert --precision int4",
    )


def decoder_config(values: object, where: object) -> DecoderConfig:
    """The decoder's part of a Hugging Face config.json (`llama` or `mobilevlm`)."""
    get = Fields(values, where)
    get.only("model_type", "llama", "mobilevlm", None)
    get.only("hidden_act", "silu")
    get.only("attention_bias", False)
    get.only("mlp_bias", False)
    get.only("pretraining_tp", 1)
    config = DecoderConfig(
        hidden_size=get.whole("hidden_size", most=1 << 16),
        intermediate_size=get.whole("intermediate_size", most=1 << 18),
        num_hidden_layers=get.whole("num_hidden_layers", most=1024),
        num_attention_heads=(heads := get.whole("num_attention_heads", most=1 << 12)),
        num_key_value_heads=get.whole("num_key_value_heads", heads, most=1 << 12),
        vocab_size=(vocabulary := get.whole("vocab_size", 32000)),
        rms_norm_eps=get.number("rms_norm_eps", 1e-6, most=1),
        rope_theta=_rope_theta(get),
        max_position_embeddings=get.whole("max_position_embeddings", 2048),
        tie_word_embeddings=get.flag("tie_word_embeddings", False),
        bos_token_id=token_id(get, "bos_token_id", 1, vocabulary),
        eos_token_id=end_tokens(get, 2, vocabulary),
    )
    if config.hidden_size % heads or config.head_dim % 2:
        raise ConfigError(
            f"{where}: num_attention_heads",
            f"found {heads} for hidden_size {config.hidden_size}",
            "heads of equal and even size",
        )
    get.only("head_dim", None, config.head_dim)
    if heads % config.num_key_value_heads:
        raise ConfigError(
            f"{where}: num_key_value_heads",
            f"found {config.num_key_value_heads}",
            f"a divisor of num_attention_heads {heads}",
        )
    return config


def token_id(get: Fields, key: str, default: int, vocabulary: int) -> int:
    """An id, or a list of just one."""
    value = get.values.get(key)
    if isinstance(value, list) and len(value) == 1:
        get = Fields({key: value[0]}, get.where)
    return get.whole(key, default, least=0, most=vocabulary - 1)


def end_tokens(get: Fields, default: int | tuple[int, ...], vocabulary: int) -> int | tuple[int, ...]:
    """`eos_token_id`: an id, or a list of several, each of which ends an answer."""
    value = get.values.get("eos_token_id")
    if value is None:
        return default
    if not isinstance(value, list) or len(value) == 1:
        return token_id(get, "eos_token_id", 2, vocabulary)
    if not 1 < len(value) <= 64:
        raise ConfigError(f"{get.where}: eos_token_id", f"found {len(value)} ids", "1 to 64")
    each = (Fields({"eos_token_id": one}, get.where) for one in value)
    return tuple(one.whole("eos_token_id", least=0, most=vocabulary - 1) for one in each)


def _rope_theta(get: Fields) -> float:
    """The base of the rotary angles; transformers 5 has moved it into an object of its own."""
    if get.values.get("rope_scaling") is not None:
        scaling = get.inner("rope_scaling")
        kind = scaling.values.get("rope_type", scaling.values.get("type"))
        if kind != "default" and not (kind == "linear" and scaling.values.get("factor") == 1):
            get.only("rope_scaling", None)
    theta = get.number("rope_theta", 10000.0)
    if get.values.get("rope_parameters") is None:
        return theta
    inner = get.inner("rope_parameters")
    inner.only("rope_type", "default")
    inner.only("partial_rotary_factor", 1.0)
    return inner.number("rope_theta", theta)


def vision_config(values: object, where: object) -> VisionConfig:
    """The vision part of a CLIP folder's config.json, whether the text tower is in it or not."""
    get = Fields(values, where)
    get.only("model_type", "clip", "clip_vision_model")
    if get.values.get("model_type") == "clip" or "vision_config" in get.values:
        get = get.inner("vision_config")
    get.only("hidden_act", "quick_gelu", "gelu")
    # The defaults are those of transformers' CLIPVisionConfig, which are the B/32 model's.
    config = VisionConfig(
        hidden_size=get.whole("hidden_size", 768, most=1 << 14),
        intermediate_size=get.whole("intermediate_size", 3072, most=1 << 16),
        num_hidden_layers=get.whole("num_hidden_layers", 12, most=256),
        num_attention_heads=get.whole("num_attention_heads", 12, most=256),
        image_size=get.whole("image_size", 224, most=4096),
        patch_size=get.whole("patch_size", 32, most=4096),
        num_channels=get.whole("num_channels", 3, least=3, most=3),
        hidden_act=get.text("hidden_act", "quick_gelu"),
        layer_norm_eps=get.number("layer_norm_eps", 1e-5, most=1),
    )
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"{get.where}: num_attention_heads",
            f"found {config.num_attention_heads}",
            f"a divisor of hidden_size {config.hidden_size}",
        )
    if config.patch_size > config.image_size or config.grid > 256:
        raise ConfigError(
            f"{get.where}: patch_size",
            f"found {config.patch_size} for image_size {config.image_size}",
            "between 1 and 256 patches a side",
        )
    return config


def image_config(values: object, aspect_ratio: str | None, where: object) -> ImageConfig:
    """The parsed preprocessor_config.json, in the hub's style or as transformers saves it again.

    Sizes are whole numbers (hub) or {"shortest_edge": n} and {"height": n, "width": n} (saved
    again). A value that the file leaves out is the default of transformers' CLIPImageProcessor.
    `aspect_ratio` is `image_aspect_ratio` of the model's config.json; None where it has none.

    ConfigError: a value is out of range, or asks for a step that `inputs.image` does not compute.
    """
    get = Fields(values, where)
    for key in ("image_processor_type", "feature_extractor_type"):
        get.only(key, "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor")
    for key in STEPS:
        get.only(key, True)
    for key in get.values:
        if key.startswith("do_") and key not in STEPS + NO_EFFECT:
            get.only(key, False, None)
    get.only("resample", 3)  # Pillow's number for bicubic
    get.only("rescale_factor", 1 / 255)
    (resize,) = _size(get, "size", ("shortest_edge",))
    height, width = _size(get, "crop_size", ("height", "width"))
    return ImageConfig(
        resize=resize,
        crop=(height, width),
        mean=_triple(get, "image_mean", ImageConfig.mean, 0, 1),
        std=_triple(get, "image_std", ImageConfig.std, 0.001, 1000),
        aspect_ratio=aspect_ratio,
    )


def _size(get: Fields, key: str, names: tuple[str, ...]) -> list[int]:
    """The values of `names`, written as one number for all of them or as an object with just these keys."""
    value = get.values.get(key)
    if not isinstance(value, dict):
        return [get.whole(key, 224, most=4096)] * len(names)
    if set(value) != set(names):
        raise ConfigError(
            f"{get.where}: {key}",
            f"found {short(value)}",
            f"a whole number or an object with {' and '.join(names)}",
        )
    inner = get.inner(key)
    return [inner.whole(name, most=4096) for name in names]


def _triple(
    get: Fields, key: str, default: tuple[float, float, float], least: float, most: float
) -> tuple[float, float, float]:
    """One number for each of red, green and blue."""
    value = get.values.get(key, default)
    numbers = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 3 or not all(least <= v <= most for v in value):
        raise ConfigError(
            f"{get.where}: {key}",
            f"found {short(value)}",
            f"three numbers from {least} to {most}, for red, green and blue",
        )
    red, green, blue = map(float, value)
    return red, green, blue


def model_config(values: object, where: object, vision: VisionConfig, image: ImageConfig) -> Config:
    """The whole of a MobileVLM config.json; `vision` and `image` come from the tower that it names."""
    get = Fields(values, where)
    get.only("mm_use_im_start_end", False, None)
    get.only("mm_use_im_patch_token", False, None)
    get.only("vision_tower_type", "clip", None)
    kind = get.text("mm_projector_type", "linear")
    if not re.fullmatch(r"ldpnetv2|ldpnet|linear|mlp[1-9][0-9]?x_gelu", kind):
        raise ConfigError(
            f"{where}: mm_projector_type", f"found {short(kind)}", "ldpnetv2, ldpnet, linear or mlpNx_gelu"
        )
    feature = get.text("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ConfigError(
            f"{where}: mm_vision_select_feature", f"found {short(feature)}", "patch or cls_patch"
        )
    states = vision.num_hidden_layers + 1
    config = Config(
        decoder=decoder_config(values, where),
        vision=vision,
        image=image,
        mm_projector_type=kind,
        mm_vision_select_layer=get.whole("mm_vision_select_layer", -2, least=-states, most=states - 1),
        mm_vision_select_feature=feature,
        mm_vision_tower=get.text("mm_vision_tower"),
    )
    if kind.startswith("ldp") and feature == "cls_patch":
        raise ConfigError(
            f"{where}: mm_vision_select_feature",
            f"found cls_patch with the projector {kind}",
            "patch: LDP reads the patches as a square picture",
        )
    if get.values.get("mm_hidden_size") not in (None, vision.hidden_size):
        raise ConfigError(
            f"{where}: mm_hidden_size",
            f"found {short(get.values['mm_hidden_size'])}",
            f"{vision.hidden_size}, as the vision tower {short(config.mm_vision_tower)} has it",
            "name the tower that the model was trained with",
        )
    if config.image.crop != (vision.image_size, vision.image_size):
        raise ConfigError(
            f"{where}: mm_vision_tower",
            f"its preprocessor cuts pictures to {config.image.crop}",
            f"the tower's image_size {vision.image_size}",
        )
    return config
