"""mvlm.json: what `mvlm convert` notes of a model that it writes, with the SHA-256 of every file."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints.json_files import Fields, read_json
from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import CheckpointError

NAME = "mvlm.json"


def write_record(folder: Path, notes: Mapping[str, Any]) -> None:
    """Writes `notes`, and the digests of all files that lie in the folder by now."""
    files = {str(f.relative_to(folder)): sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    write_json(folder / NAME, {"format": 1, **notes, "files": files})


def verify(folder: Path, progress: Callable[[int, int], object] = lambda done, total: None) -> list[str]:
    """What is wrong with the files that the record lists; nothing, if all are as they were written.

    progress  is called with the bytes read so far and the bytes in all
    CheckpointError: there is no record, or it is not sound.
    """
    where = folder / NAME
    if not os.path.lexists(where):
        raise CheckpointError(folder, f"holds no checksums ({NAME})", "a model that mvlm convert wrote")
    digests = Fields(read_json(where, CheckpointError), where).inner("files")
    problems, there = [], {}
    for name in digests.values:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{show(name)} lies outside the folder")
        elif not path.is_file():
            problems.append(f"{show(name)} is missing")
        else:
            there[name] = path
    done, total = 0, sum(path.stat().st_size for path in there.values())

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    for name, path in there.items():
        if sha256(path, count) != digests.text(name):
            problems.append(f"{show(name)} has changed")
    return problems


def sha256(path: Path, count: Callable[[int], object] = lambda nbytes: None) -> str:
    """The digest of a file's content; `count` is called with the size of each piece that was read."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
            count(len(piece))
    return digest.hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
