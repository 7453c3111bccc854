"""Pictures on disk, rendered by workers of their own, so that the training need not wait for them.

A shard is two files, `{split}-{number}.pixels.npy`, uint8 (SHARD, side, side, 3), as the model will see them,
and `.labels.npy`, int8 (SHARD, patches, heads). Which scenes they show follows from the shard's number.
"""

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from PIL import Image

from tools.demo import dense
from tools.demo.scenes import Scene, render, scene

SHARD = 256  # pictures
GREY = (122, 116, 104)  # upstream's padding


def numbers(shard: int) -> range:
    """The scenes of a shard."""
    return range(shard * SHARD, (shard + 1) * SHARD)


def as_seen(picture: Image.Image, side: int) -> np.ndarray:
    """Padded to a square and resized as upstream does it: uint8 (side, side, 3)."""
    longer = max(picture.size)
    square = Image.new("RGB", (longer, longer), GREY)
    square.paste(picture, ((longer - picture.width) // 2, (longer - picture.height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def picture_and_labels(scene: Scene, side: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = as_seen(render(scene), side)
    return pixels, dense.labels(scene, grid)


def path(folder: Path, split: str, shard: int, what: str) -> Path:
    return folder / f"{split}-{shard:04}.{what}.npy"


def write_shard(folder: Path, split: str, shard: int, side: int, grid: int) -> None:
    """Renders a shard, unless it is there. Both files appear when they are whole, the labels last."""
    if path(folder, split, shard, "labels").exists():
        return
    pairs = [picture_and_labels(scene(split, number), side, grid) for number in numbers(shard)]
    for what, arrays in zip(("pixels", "labels"), zip(*pairs, strict=True), strict=True):
        partial = folder / f"{split}-{shard}.{what}.{os.getpid()}.partial"
        with open(partial, "wb") as file:
            np.save(file, np.stack(arrays))
        partial.replace(path(folder, split, shard, what))


def _work(folder: Path, split: str, shards: list[int], side: int, grid: int) -> None:
    for shard in shards:
        write_shard(folder, split, shard, side, grid)


def start_rendering(
    folder: Path,
    split: str,
    shards: int,
    side: int,
    grid: int,
    workers: int = 1,
) -> list[BaseProcess]:
    """Processes that render whatever of the first `shards` is missing, and end with this one."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    started: list[BaseProcess] = []
    for worker in range(workers):
        arguments = (folder, split, list(range(worker, shards, workers)), side, grid)
        started.append(context.Process(target=_work, args=arguments, daemon=True))
        started[-1].start()
    return started


class Pictures:
    """The shards of a split that are there by now, memory-mapped."""

    def __init__(self, folder: Path, split: str, shards: int):
        self.folder, self.split, self.shards = folder, split, shards
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def ready(self) -> list[int]:
        return [s for s in range(self.shards) if path(self.folder, self.split, s, "labels").exists()]

    def __getitem__(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._open:
            files = (path(self.folder, self.split, shard, what) for what in ("pixels", "labels"))
            pixels, labels = (np.load(file, mmap_mode="r") for file in files)
            self._open[shard] = pixels, labels
        return self._open[shard]
