"""Writes the model as Hugging Face lays it out, under upstream's names; from there it is any other model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tools.parts.family import CONFIG, V2, preprocessor
from tools.parts.torch_reference import PROJECTOR, TOWER

Json = dict[str, Any]
TOKENIZER: Json = {
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": True,
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def model_config(vision: Json, decoder: Json, vocabulary: int) -> Json:
    """config.json of a MobileVLM V2 of these sizes."""
    sizes = {"mm_hidden_size": vision["hidden_size"], "mm_vision_tower": "clip", "vocab_size": vocabulary}
    return CONFIG | V2 | sizes | decoder


def write_model(
    folder: Path, vision: Json, config: Json, tokenizer: bytes, tower: Any, projector: nn.Module, decoder: Any
) -> None:
    """The whole folder, weights in bfloat16."""
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name, values in {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": TOKENIZER,
        "clip/config.json": {"model_type": "clip_vision_model", **vision},
        "clip/preprocessor_config.json": preprocessor(vision["image_size"]),
    }.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)

    tensors = {f"{PROJECTOR}{name}": value for name, value in projector.state_dict().items()}
    tensors |= {name: value for name, value in decoder.state_dict().items() if "inv_freq" not in name}
    for name, value in tower.state_dict().items():
        if not name.endswith("position_ids"):
            tensors[f"{TOWER}vision_model.{name.removeprefix('vision_model.')}"] = value
    kept = {name: value.detach().cpu().to(torch.bfloat16).contiguous() for name, value in tensors.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
