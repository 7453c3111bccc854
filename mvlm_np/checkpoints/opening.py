"""Finds out what a path or a name stands for, and opens it."""

from pathlib import Path

from mvlm_np.checkpoints.folder import Checkpoint, open_folder
from mvlm_np.errors import CheckpointError


def open_checkpoint(
    path_or_name: str | Path,
    vision_tower: str | Path | None = None,
    mmproj: str | Path | None = None,
) -> Checkpoint:
    """Opens a model folder or a GGUF file; reads settings and tables of contents, no weights."""
    path = Path(path_or_name)
    if path.is_dir():
        return open_folder(path, Path(vision_tower) if vision_tower is not None else None)
    if path.exists():
        raise CheckpointError(path, "is not a model", "a model folder")
    raise CheckpointError(path, "there is no such folder", "a model folder")
