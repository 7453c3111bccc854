"""What the frozen tower makes of pictures, computed once and kept on disk."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from torch import Tensor

from mvlm_np.config import ImageConfig
from tools.training.loop import accelerator
from tools.training.network import Trainee
from tools.training.pictures import pixels
from tools.training.records import Record

SHARE_OF_DISK = 0.5  # of what is free; more is not taken


class Features:
    """The tower's features of records' pictures, (patches, V) each, as files of plain float16 in a folder.

    A file is named after what it follows from: the picture, how it is made square, and the tower. One that
    has not the right size is made anew.
    """

    def __init__(self, trainee: Trainee, image: ImageConfig, folder: Path):
        self.trainee, self.image, self.folder = trainee, image, folder
        digest = hashlib.sha256(f"{image} {accelerator().mixed_precision}".encode())
        for name, tensor in trainee.tower.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        self.tower = digest.hexdigest()
        self.shape = _shape(trainee)
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, record: Record) -> Tensor:
        """(patches, V), on the CPU; always what a file holds, so that a resumed run sees the same."""
        place = self.folder / f"{self._key(record)}.float16"
        if place.is_file() and place.stat().st_size == 2 * prod(self.shape):
            return torch.from_numpy(np.fromfile(place, np.float16).reshape(self.shape))
        x = torch.from_numpy(pixels(record, self.image, as_published=False))[None].to(accelerator().device)
        with torch.inference_mode(), accelerator().autocast():
            found = self.trainee.features(x)[0].to("cpu", torch.float16)
        with NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
            try:
                file.write(found.numpy().tobytes())
                file.close()
                os.replace(file.name, place)  # whoever else computes it at the same time writes the same
            except BaseException:
                os.unlink(file.name)
                raise
        return found.clone()

    def _key(self, record: Record) -> str:
        seen = "no picture"
        if record.image is not None:
            about = record.image.stat()
            seen = f"{record.image.resolve()} {about.st_size} {about.st_mtime_ns}"
        return hashlib.sha256(f"{self.tower} {seen}".encode()).hexdigest()[:32]


def fits(trainee: Trainee, records: Iterable[Record], folder: Path) -> bool:
    """Whether the features of all pictures take no more than a share of the disk's free space."""
    size = 2 * prod(_shape(trainee)) * len({record.image for record in records})
    return size <= SHARE_OF_DISK * shutil.disk_usage(folder).free


def _shape(trainee: Trainee) -> tuple[int, int]:
    assert trainee.config.vision is not None
    return trainee.config.patch_tokens, trainee.config.vision.hidden_size
