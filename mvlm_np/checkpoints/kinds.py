"""What a folder is that people take for a model: one folder too high or too low, or of another kind.

outputs/                      training's own folder; the models are outputs/checkpoint-500 ...
models--OWNER--NAME/          the hub's cache; the model is snapshots/REVISION
a folder with GGUF files      the model is one of them
a LoRA adapter                no model before it is merged
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mvlm_np.checkpoints.folder import has_weights
from mvlm_np.checkpoints.hub import newest_snapshot
from mvlm_np.errors import CheckpointError, some

ADAPTER = "adapter_config.json"
DEPTH, MOST = 3, 2000  # how far down models are looked for, and among how many folders


def model_in(folder: Path) -> Path:
    """The model folder or GGUF file that `folder` stands for: mostly itself.

    CheckpointError: it is neither, but says where one is, or what can be done with what is there.
    """
    if is_adapter(folder):
        raise CheckpointError(
            folder, "is a LoRA adapter, which changes a model", "the model", merging(folder)
        )
    if os.path.lexists(folder / "config.json") or not os.access(folder, os.R_OK | os.X_OK):
        return folder
    snapshot = newest_snapshot(folder.parent if folder.name == "snapshots" else folder)
    if snapshot is not None:
        return model_in(snapshot)
    models = [path for path in ggufs(folder) if "mmproj" not in path.name.lower()]
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            folder, f"holds GGUF files, {listed(models)}", "one of them", f"name {models[0]}"
        )
    if os.path.lexists(folder / "params.json"):
        found = "holds a LLaMA in the form that Meta publishes"
        raise CheckpointError(folder, found, "config.json and weights as transformers saves them")
    if has_weights(folder):
        fix = "copy it from the model that this one was trained from"
        raise CheckpointError(folder, "holds weights, but no config.json", "both", fix)
    inside = list(inner(folder))
    below = [path for path in inside if not is_adapter(path)] or inside
    if below:
        adapters = is_adapter(below[-1])
        found = f"is no model, but holds {'LoRA adapters' if adapters else 'models'}: {listed(below)}"
        fix = merging(below[-1]) if adapters else f"name one of them, such as {below[-1]}"
        raise CheckpointError(folder, found, fix=fix)
    found = "holds an mmproj, but no language model" if ggufs(folder) else "holds no model"
    raise CheckpointError(folder, found, "config.json with weights, or a GGUF file")


def ggufs(folder: Path) -> list[Path]:
    """The files in a folder that are called GGUF."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".gguf"]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model beside it."""
    return os.path.lexists(folder / ADAPTER) and not has_weights(folder)


def merging(adapter: Path) -> str:
    """How an adapter becomes a model."""
    return f"merge the two: mvlm convert BASE TUNED --precision bf16 --lora {adapter}"


def adapter_in(folder: Path) -> Path:
    """`folder`. CheckpointError: it is none; those that have names lie further down, where PEFT puts them."""
    if folder.is_dir() and not os.path.lexists(folder / ADAPTER) and os.access(folder, os.R_OK | os.X_OK):
        below = [path for path in inner(folder) if is_adapter(path)]
        found = f"is no LoRA adapter, but holds some: {listed(below)}" if below else "is no LoRA adapter"
        fix = f"name {below[-1]}" if below else None
        raise CheckpointError(folder, found, f"a folder with {ADAPTER}", fix)
    return folder


def inner(folder: Path) -> Iterator[Path]:
    """The models and adapters below a folder, the nearest first, checkpoint-1000 behind checkpoint-500."""
    level, looked_at = [folder], 0
    for _ in range(DEPTH):
        below = [path for parent in level for path in _folders(parent)]
        level = []
        for path in below[: MOST - looked_at]:
            if is_adapter(path) or _is_model(path):
                yield path
            else:
                level.append(path)
        looked_at += len(below)


def _is_model(folder: Path) -> bool:
    if os.path.lexists(folder / "config.json"):
        return has_weights(folder)
    return os.access(folder, os.R_OK) and bool(ggufs(folder))


def _folders(parent: Path) -> list[Path]:
    try:
        found = [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
    return sorted(found, key=_by_numbers)


def _by_numbers(path: Path) -> list[str | int]:
    """The texts and the numbers of a name in turn, so that numbers compare as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]{1,18})", path.name))]


def listed(paths: list[Path]) -> str:
    return some(ascii(path.name)[1:-1] for path in paths)
