"""What is trained, on what, and for how long; and the whole run from nothing to a model folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.errors import UserError, some
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.projector import LDPV2_GRID
from tools.demo.data import Pictures, start_rendering, write_shard
from tools.demo.folder import model_config, write_model
from tools.demo.language import (
    CAPTIONS,
    Prompts,
    Seen,
    token_accuracy,
    train_language,
    train_tokenizer,
    write_features,
)
from tools.demo.network import build_decoder, build_projector, device, to_device
from tools.demo.questions import TASKS, questions, record
from tools.demo.scenes import render, scene
from tools.demo.stage0 import train_tower
from tools.training.loop import accelerator

IMAGE_TOKENS = LDPV2_GRID**2
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Stage:
    steps: int
    size: int  # pictures a step
    rate: float
    each: int = 1  # questions of every task about a picture


@dataclass(frozen=True)
class Recipe:
    vision: dict[str, Any]
    decoder: dict[str, Any]
    stages: tuple[Stage, Stage, Stage]
    shards: int  # of data.SHARD pictures
    vocabulary: int = 640
    seed: int = 0
    check_every: int = 250


def _vision(width: int, layers: int) -> dict[str, Any]:
    """A tower of 8 x 8 patches of 16 pixels. Its last layer is never run: MobileVLM reads the one before."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers + 1,
        "num_attention_heads": width // 32,
        "image_size": 128,
        "patch_size": 16,
    }


def _decoder(width: int, intermediate: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


RECIPES = {
    "demo": Recipe(
        _vision(128, 5),
        _decoder(192, 384, 4),
        (Stage(8000, 32, 3e-3), Stage(1500, 8, 1.5e-3, 2), Stage(7000, 8, 1.5e-3)),
        shards=160,
    ),
    # A minute's worth, for the tests: it learns, but not much.
    "minute": Recipe(
        _vision(64, 2),
        _decoder(64, 128, 2),
        (Stage(60, 32, 3e-3), Stage(20, 8, 3e-3, 2), Stage(40, 8, 3e-3)),
        shards=1,
    ),
}


def sides(recipe: Recipe) -> tuple[int, int]:
    """Pixels and patches along a side of the picture."""
    side = recipe.vision["image_size"]
    return side, side // recipe.vision["patch_size"]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    pictures: Path | None = None,
    workers: int = 1,
    lora: int = 0,
    stop_at: Sequence[int | None] = (None, None, None),
) -> Path:
    """Runs all stages, or what is left of them; returns the model's folder.

    pictures  where the rendered pictures are kept; runs may share them. Default: in `folder`
    workers   processes that render, beside those that train
    lora      train stage 2 as an adapter of this rank, beside the model, which then is stage 1's
    stop_at   per stage, end after so many steps as a kill would
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = accelerator()
    kept, (side, grid) = pictures or folder / "pictures", sides(recipe)
    kept.mkdir(parents=True, exist_ok=True)
    training, validation = Pictures(kept, "train", recipe.shards), Pictures(kept, "validation", 1)
    tokenizer_file, rendering = folder / "tokenizer.model", []
    if run.is_main_process:
        rendering = start_rendering(kept, "train", recipe.shards, side, grid, workers)
        write_shard(kept, "validation", 0, side, grid)
        if not tokenizer_file.exists():
            tokenizer_file.write_bytes(train_tokenizer(recipe.vocabulary))
    run.wait_for_everyone()
    tokenizer = Tokenizer(StoredTokenizer(tokenizer_file.read_bytes()))
    config = model_config(recipe.vision, recipe.decoder, tokenizer.vocab_size)

    first, *later = recipe.stages
    tower, heads, history = train_tower(
        recipe.vision,
        folder,
        training,
        validation,
        steps=first.steps,
        size=first.size,
        rate=first.rate,
        seed=recipe.seed,
        stop_at=stop_at[0],
        check_every=recipe.check_every,
    )
    if len(history.losses) < first.steps:
        return folder
    for process in rendering:
        process.join()
    tower.eval()
    run.wait_for_everyone()
    for part in (training, validation):
        for shard in part.ready():
            if shard % run.num_processes == run.process_index:
                write_features(tower, part, shard, folder)
    run.wait_for_everyone()

    seen, held_out = (Seen(folder, p.split, p.shards) for p in (training, validation))
    (sample,) = to_device(held_out.features[0].astype(np.float32))
    torch.manual_seed(recipe.seed)
    projector = build_projector(recipe.vision, config, heads, sample).to(device())
    decoder = build_decoder(config).to(device())
    prompts = Prompts(tokenizer)

    def check() -> Mapping[str, float]:
        return token_accuracy(prompts, projector, decoder, held_out, IMAGE_TOKENS)

    def write() -> None:
        if not run.is_main_process:
            return
        tokenizer_bytes = tokenizer_file.read_bytes()
        write_model(folder / "model", recipe.vision, config, tokenizer_bytes, tower, projector, decoder)

    for number, stage in enumerate(later, 1):
        if number == 2 and lora:
            write()
            decoder = with_adapter(decoder, lora)
            projector.requires_grad_(False)
        history = train_language(
            f"stage{number}",
            folder,
            tokenizer,
            projector,
            decoder,
            seen,
            IMAGE_TOKENS,
            tasks=CAPTIONS if number == 1 else TASKS,
            each=stage.each,
            steps=stage.steps,
            size=stage.size,
            rate=stage.rate,
            seed=recipe.seed,
            stop_at=stop_at[number],
            check=check,
            check_every=recipe.check_every,
        )
        if len(history.losses) < stage.steps:
            return folder
    if lora and run.is_main_process:
        decoder.save_pretrained(folder / "adapter")
    if not lora:
        write()
    return folder / "model"


def with_adapter(decoder: Any, rank: int) -> Any:
    """The decoder with LoRA on its linear layers, as in upstream's recipe (alpha twice the rank)."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LORA_TARGETS)
    return get_peft_model(decoder, settings)


def write_pictures(folder: Path, count: int = 10, each: int = 4) -> None:
    """The pictures of `mvlm demo`, and `questions.json`: what is asked about each, and the right answers.

    Those of an earlier call are replaced. UserError: there are such pictures without a `questions.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    others = [name for name in names if (folder / name).exists()]
    if others and not (folder / "questions.json").exists():
        raise UserError(folder, f"has pictures of others: {some(others)}", "a new folder", "name another")
    entries = []
    for number, name in enumerate(names):
        shown = scene("demo", number)
        render(shown).save(folder / name, optimize=True)
        random = Random(shown.seed)
        asked = list(questions(shown, random))
        asked = sorted(random.sample(asked, min(each, len(asked))), key=asked.index)
        entries.append({"picture": name, "questions": {q.text: q.answer for q in asked}})
    (folder / "questions.json").write_text(json.dumps(entries, indent=1) + "\n")


def write_data(folder: Path, split: str, count: int, turns: int | None = None) -> None:
    """Pictures and conversations in upstream's format: `data.json` and one PNG for each scene.

    turns  questions of a conversation, at most, chosen at random; None: all there are about the scene

    The file comes last, when all its pictures are there. UserError: there is one already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.json"
    if data.exists():
        raise UserError(data, "is there already", "a new folder", "name another, or remove the file")
    records = []
    for number in range(count):
        shown = scene(split, number)
        name = f"{split}-{number}"
        render(shown).save(folder / f"{name}.png")
        asked = list(questions(shown, Random(shown.seed)))
        if turns is not None:
            asked = Random(f"{shown.seed}/turns").sample(asked, min(turns, len(asked)))
        records.append(record(name, asked))
    with open(data, "x", encoding="utf-8") as file:
        file.write(json.dumps(records, indent=1) + "\n")
