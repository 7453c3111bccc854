"""Finds models in the hub's cache on this machine, without the hub's own package and without a network.

The cache holds, for OWNER/NAME, the folder models--OWNER--NAME with refs/main, a file that names a
revision, and snapshots/REVISION, a model folder (of symbolic links into blobs/).
"""

import os
import re
from pathlib import Path

from mvlm_np.errors import CheckpointError


def looks_like_name(text: str) -> bool:
    """Whether this may be OWNER/NAME on the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text, re.ASCII) is not None


def cache_folder() -> Path:
    """Where the hub's package keeps its downloads, by the same environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def find_cached(name: str) -> Path | None:
    """The newest downloaded snapshot of OWNER/NAME, if there is one."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if re.fullmatch(r"[\w.-]+", revision) and snapshot.is_dir() else None


def cached_folder(name: str) -> Path:
    """The folder of a model that must be there. CheckpointError: it is neither a folder nor downloaded."""
    found = find_cached(name)
    if found is None:
        raise CheckpointError(
            name, "is neither a path here nor a model in the hub's cache", fix=f"download it: mvlm pull {name}"
        )
    return found
