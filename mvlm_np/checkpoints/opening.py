"""Finds out what a path or a name stands for, and opens it."""

import os
from pathlib import Path

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.checkpoints.hub import cached_folder, is_unfinished, looks_like_name, owned
from mvlm_np.checkpoints.kinds import model_in
from mvlm_np.checkpoints.sniff import why_unreadable
from mvlm_np.errors import CheckpointError, UserError
from mvlm_np.paths import local

WANTED = "a model folder or a GGUF file"


def open_checkpoint(
    path_or_name: str | Path,
    vision_tower: str | Path | None = None,
    mmproj: str | Path | None = None,
) -> Checkpoint:
    """Opens a model folder, a GGUF file, or a model of that name in the hub's cache.

    Reads settings and tables of contents, no weights. Raises a UserError if there is no model, or
    something in it is not as it should be.
    """
    name = local(path_or_name, "model")
    tower = None if vision_tower is None else Path(local(vision_tower, "vision_tower"))
    second = None if mmproj is None else Path(local(mmproj, "mmproj"))
    if not os.path.lexists(name) and (whole := owned(name)):
        raise CheckpointError(name, "does not exist", WANTED, f"name it as it was downloaded: {whole}")
    if os.path.lexists(name) or not looks_like_name(name):
        return _open_path(Path(name), tower, second)
    try:
        return _open_path(cached_folder(name), tower, second)
    except UserError as error:
        if is_unfinished(name):
            found = f"is only partly downloaded ({error})"
            raise CheckpointError(name, found, fix=f"go on with: mvlm pull {name}") from None
        raise


def _open_path(path: Path, vision_tower: Path | None, mmproj: Path | None) -> Checkpoint:
    if os.path.isdir(path):
        path = model_in(path)
    if os.path.isdir(path):
        if mmproj is not None:
            found = "is a folder, which takes no mmproj"
            raise CheckpointError(path, found, "a GGUF file", "leave mmproj out")
        return open_folder(path, vision_tower)
    if not _is_gguf(path):
        fix = f"give its folder, {path.parent}" if (path.parent / "config.json").exists() else None
        raise CheckpointError(path, "is not a model", WANTED, fix)
    if vision_tower is not None:
        found = "is a GGUF, which takes no vision_tower"
        raise CheckpointError(path, found, "mmproj", "name its mmproj file")
    from mvlm_np.checkpoints.gguf_model import open_gguf

    return open_gguf(path, mmproj)


def _is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, or is called so; many stores of models name files by their content's hash."""
    if not os.path.lexists(path) and not _is_hidden(path):
        raise CheckpointError(path, "does not exist", WANTED)
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(path, "is neither", WANTED)
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"
    except OSError as error:
        found, fix = why_unreadable(path, error)
        raise CheckpointError(path, found, WANTED, fix) from None


def _is_hidden(path: Path) -> bool:
    """Whether a folder on the way to the path may not be searched, so that nobody can say what is there."""
    return any(os.path.isdir(parent) and not os.access(parent, os.X_OK) for parent in path.absolute().parents)
