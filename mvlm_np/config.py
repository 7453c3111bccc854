"""What a checkpoint's config files say, checked once and then trusted.

Field names are those of the files (Hugging Face's and upstream's), so that a reader can find them in
`config.json`. Every value that shapes memory is range-checked here: no later code meets a zero width,
a head count that does not divide, or a layer count of a billion.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from mvlm_np.errors import ConfigError

OPENAI_CLIP = "openai/clip-vit-large-patch14-336"


@dataclass(frozen=True)
class VisionConfig:
    """The CLIP vision tower; the defaults are those of openai/clip-vit-large-patch14-336."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes pixel values; the defaults are CLIP's."""

    resize: int = 336  # the shorter side, after resizing
    crop: tuple[int, int] = (336, 336)  # height, width
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    aspect_ratio: str | None = "pad"  # "pad" to a square first; anything else: crop the longer side


@dataclass(frozen=True)
class DecoderConfig:
    """MobileLLaMA, or any LLaMA of its shape."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 32000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Config:
    """A whole model. Without `vision` it is a plain LLaMA, which answers text only."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
    image: ImageConfig = field(default_factory=ImageConfig)
    mm_projector_type: str = "ldpnetv2"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_vision_tower: str = OPENAI_CLIP

    @property
    def vision_in_checkpoint(self) -> bool:
        """Upstream's rule: projectors named v2 keep their own CLIP weights, others load the tower anew."""
        return "v2" in self.mm_projector_type

    @property
    def vision_layers(self) -> int:
        """How many encoder blocks run before the features are taken."""
        assert self.vision is not None
        return self.mm_vision_select_layer % (self.vision.num_hidden_layers + 1)

    @property
    def patch_tokens(self) -> int:
        """Feature vectors that the encoder hands to the projector."""
        assert self.vision is not None
        return self.vision.grid**2 + (self.mm_vision_select_feature == "cls_patch")

    @property
    def image_tokens(self) -> int:
        """Positions that one picture takes up in the decoder."""
        assert self.vision is not None
        if self.mm_projector_type == "ldpnetv2":
            return 12 * 12
        if self.mm_projector_type == "ldpnet":
            return (-(-self.vision.grid // 2)) ** 2
        return self.patch_tokens


class Fields:
    """Reads values out of a parsed JSON file. ConfigErrors name the file and the key."""

    def __init__(self, values: object, where: object):
        if not isinstance(values, Mapping):
            raise ConfigError(where, f"found {_short(values)}", "a JSON object")
        self.values, self.where = values, where

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = 1 << 20) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self._refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, above: float = 0, most: float = 1e9) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            self._refuse(key, "a number")
        if not above < value <= most:
            self._refuse(key, f"a number above {above:g} and up to {most:g}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            self._refuse(key, "a text")
        return value

    def only(self, key: str, *accepted: object) -> None:
        """If the key is there, its value must be one of these: the engine computes nothing else."""
        if key in self.values and self.values[key] not in accepted:
            self._refuse(
                key, " or ".join(repr(a) for a in accepted), "this engine does not compute other models"
            )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(
                f"{self.where}: {key}", "is missing", fix="use the config.json of the checkpoint"
            )
        return value

    def _refuse(self, key: str, wanted: str, fix: str | None = None) -> None:
        raise ConfigError(f"{self.where}: {key}", f"found {_short(self.values.get(key))}", wanted, fix)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def decoder_config(values: object, where: object) -> DecoderConfig:
    """The decoder's part of a Hugging Face config.json (`llama` or `mobilevlm`)."""
    get = Fields(values, where)
    get.only("hidden_act", "silu")
    get.only("rope_scaling", None)
    get.only("attention_bias", False)
    get.only("mlp_bias", False)
    get.only("pretraining_tp", 1)
    config = DecoderConfig(
        hidden_size=get.whole("hidden_size", most=1 << 16),
        intermediate_size=get.whole("intermediate_size", most=1 << 18),
        num_hidden_layers=get.whole("num_hidden_layers", most=1024),
        num_attention_heads=(heads := get.whole("num_attention_heads", most=1 << 12)),
        num_key_value_heads=get.whole("num_key_value_heads", heads, most=1 << 12),
        vocab_size=get.whole("vocab_size", 32000),
        rms_norm_eps=get.number("rms_norm_eps", 1e-6, most=1),
        rope_theta=get.number("rope_theta", 10000.0),
        max_position_embeddings=get.whole("max_position_embeddings", 2048),
        tie_word_embeddings=bool(get.values.get("tie_word_embeddings", False)),
        bos_token_id=get.whole("bos_token_id", 1, least=0),
        eos_token_id=get.whole("eos_token_id", 2, least=0),
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


def vision_config(values: object, where: object) -> VisionConfig:
    """The vision part of a CLIP folder's config.json."""
    get = Fields(values, where)
    if "vision_config" in get.values:  # a whole CLIP model, text tower included
        get = Fields(get.values["vision_config"], f"{where}: vision_config")
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
            f"{where}: num_attention_heads",
            f"found {config.num_attention_heads}",
            f"a divisor of hidden_size {config.hidden_size}",
        )
    if config.patch_size > config.image_size or config.grid > 256:
        raise ConfigError(
            f"{where}: patch_size",
            f"found {config.patch_size} for image_size {config.image_size}",
            "between 1 and 256 patches a side",
        )
    return config


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model with a vision tower, or a decoder alone."""
    return values.get("mm_vision_tower") is not None


def model_config(values: object, where: object, vision: VisionConfig, image: ImageConfig) -> Config:
    """The whole of a MobileVLM config.json; `vision` and `image` come from the tower that it names."""
    get = Fields(values, where)
    get.only("mm_use_im_start_end", False, None)
    get.only("mm_use_im_patch_token", False, None)
    kind = get.text("mm_projector_type", "linear")
    if not re.fullmatch(r"ldpnetv2|ldpnet|linear|mlp[1-9]\d?x_gelu", kind):
        raise ConfigError(
            f"{where}: mm_projector_type", f"found {_short(kind)}", "ldpnetv2, ldpnet, linear or mlpNx_gelu"
        )
    feature = get.text("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ConfigError(
            f"{where}: mm_vision_select_feature", f"found {_short(feature)}", "patch or cls_patch"
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
    get.only("mm_hidden_size", vision.hidden_size)
    if config.image.crop != (vision.image_size, vision.image_size):
        raise ConfigError(
            f"{where}: mm_vision_tower",
            f"its preprocessor cuts pictures to {config.image.crop}",
            f"the tower's image_size {vision.image_size}",
        )
    return config
