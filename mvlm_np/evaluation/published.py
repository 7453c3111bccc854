"""The scores that MobileVLM's README gives (commit 688fdec), by model and benchmark."""

import re

from mvlm_np.config import FAMILY, Config

_ORDER = ("gqa", "sqa", "textvqa", "pope", "mme", "mmbench")
PUBLISHED = {
    name: dict(zip(_ORDER, scores, strict=True))
    for name, scores in {
        "MobileVLM-1.7B": (56.1, 57.3, 41.5, 84.5, 1196.2, 53.2),
        "MobileVLM_V2-1.7B": (59.3, 66.7, 52.1, 84.3, 1302.8, 57.7),
        "MobileVLM-3B": (59.0, 61.2, 47.5, 84.9, 1288.9, 59.6),
        "MobileVLM_V2-3B": (61.1, 70.0, 57.5, 84.7, 1440.5, 63.2),
        "MobileVLM_V2-7B": (62.6, 74.8, 62.3, 85.3, 1560.7, 69.2),
    }.items()
}


def by_config(config: Config) -> str | None:
    """Which published model has this shape. One that was fine-tuned has it too."""
    for name, member in FAMILY.items():
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        same = all(getattr(config.decoder, size) == getattr(member.decoder, size) for size in sizes)
        if same and config.mm_projector_type == member.mm_projector_type and config.vision is not None:
            return name
    return None


def by_name(model: str) -> str | None:
    """Which published model a name means, as answers files have it: "mobilevlm_v2-1.7b", and the like."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9.]", "", text.lower())

    return next((name for name in PUBLISHED if plain(name) in plain(model)), None)
