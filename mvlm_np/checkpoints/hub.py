"""Finds models in the hub's cache on this machine, without the hub's own package and without a network.

The cache holds, for OWNER/NAME, the folder models--OWNER--NAME with refs/main, a file that names a
revision, and snapshots/REVISION, a model folder (of symbolic links into blobs/). A file that is still
being downloaded, or was until somebody stopped it, is blobs/*.incomplete.
"""

import os
import re
from pathlib import Path

from mvlm_np.errors import CheckpointError


def looks_like_name(text: str) -> bool:
    """Whether this may be OWNER/NAME on the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text, re.ASCII) is not None


def name_in(text: str) -> str:
    """OWNER/NAME in what people copy: a name, perhaps with a slash behind it, or the address of its page."""
    address = re.fullmatch(r"https?://[^/]+/(?:models/)?([^/]+/[^/?#]+)(?:[/?#].*)?", text.strip())
    return address[1] if address else text.strip().rstrip("/")


def cache_folder() -> Path:
    """Where the hub's package keeps its downloads, by the same environment variables."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(base, "huggingface"))
    default = os.path.join(home, "hub")
    named = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", default))
    return Path(os.path.expandvars(os.path.expanduser(named)))


def find_cached(name: str) -> Path | None:
    """The newest downloaded snapshot of OWNER/NAME; where no branch was asked for, the only snapshot."""
    return newest_snapshot(model_folder(name))


def newest_snapshot(folder: Path) -> Path | None:
    """The same of a model's folder in the cache, models--OWNER--NAME."""
    snapshots = folder / "snapshots"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return None
    except OSError:
        found = list(snapshots.iterdir()) if snapshots.is_dir() else []
        return found[0] if len(found) == 1 and found[0].is_dir() else None
    snapshot = snapshots / revision
    return snapshot if re.fullmatch(r"\w[\w.-]*", revision) and snapshot.is_dir() else None


def owned(name: str) -> str | None:
    """OWNER/NAME of the downloaded model that is called NAME, if there is just one."""
    if "/" in name or not looks_like_name(f"owner/{name}"):
        return None
    found = [path.name.split("--", 2)[1] for path in cache_folder().glob(f"models--*--{name}")]
    return f"{found[0]}/{name}" if len(found) == 1 else None


def is_unfinished(name: str) -> bool:
    """Whether a download of OWNER/NAME has begun and not ended."""
    return any((model_folder(name) / "blobs").glob("*.incomplete"))


def cached_folder(name: str) -> Path:
    """The folder of a model that must be there. CheckpointError: it is neither a folder nor downloaded."""
    found = find_cached(name)
    if found is None:
        raise CheckpointError(
            name,
            "is neither a path here nor a model in the hub's cache",
            fix=f"download it: mvlm pull {name}",
        )
    return found


def model_folder(name: str) -> Path:
    """Where the cache keeps OWNER/NAME, if it does."""
    return cache_folder() / f"models--{name.replace('/', '--')}"
