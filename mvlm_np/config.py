"""What a model is: its sizes and settings.

Field names are those of the files (Hugging Face's and upstream's), so that a reader can find them in
`config.json`. `checkpoints.config_files` and `checkpoints.gguf_model` fill them in and check them.
"""

from dataclasses import dataclass, field
from typing import Any

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
    eos_token_id: int | tuple[int, ...] = 2  # of several, each one ends an answer

    @property
    def head_dim(self) -> int:
        """Size of an attention head, d."""
        return self.hidden_size // self.num_attention_heads

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)


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


def _member(projector: str, sizes: tuple[int, int, int, int, int], **more: Any) -> Config:
    return Config(DecoderConfig(*sizes, **more), VisionConfig(), mm_projector_type=projector)


# The published models. Sizes: width, MLP width, layers, heads, key-value heads.
_1_7B, _3B, _7B = (2048, 5632, 24, 16, 16), (2560, 6912, 32, 32, 32), (4096, 11008, 32, 32, 32)
FAMILY = {
    "MobileVLM-1.7B": _member("ldpnet", _1_7B),
    "MobileVLM-3B": _member("ldpnet", _3B),
    "MobileVLM_V2-1.7B": _member("ldpnetv2", _1_7B),
    "MobileVLM_V2-3B": _member("ldpnetv2", _3B),
    "MobileVLM_V2-7B": _member("ldpnetv2", _7B, rms_norm_eps=1e-5, max_position_embeddings=4096),
}
