"""Brings models from the hub into its cache on this machine: what `load` reads of them, and nothing else.

Transport and the cache's layout are the huggingface_hub package's, the extra [hub].
"""

import errno
import fcntl
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mvlm_np import memory
from mvlm_np.checkpoints.config_files import decoder_config, is_multimodal
from mvlm_np.checkpoints.folder import WEIGHTS
from mvlm_np.checkpoints.hub import cache_folder, looks_like_name, model_folder
from mvlm_np.checkpoints.json_files import Fields, read_json
from mvlm_np.checkpoints.record import sha256
from mvlm_np.config import OPENAI_CLIP, Config
from mvlm_np.errors import UserError

SETTINGS = (
    "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json", "mvlm.json",
)  # fmt: skip
LARGE = 10_000_000  # bytes of a file from which it pays to go on where its download stopped
DISK = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.ENOTDIR, errno.EROFS)  # not the network's


class HubUnreachable(UserError):
    """The hub does not answer, or what answers is not the hub."""


def download(name: str, told: Callable[[str], object] = lambda line: None) -> None:
    """Downloads the model OWNER/NAME and, where upstream's rule takes CLIP from elsewhere, that too.

    told  is called with a line about each of the two: how much it is, and how much is here already

    What was stopped goes on where it was. HubUnreachable: see there; whatever came over stays. UserError:
    there is no such model, this engine has no use for it, or the disk is full.
    """
    try:
        import huggingface_hub as hub
        import huggingface_hub.errors
    except ImportError:
        found = "needs the huggingface_hub package, which is not installed"
        raise UserError("mvlm pull", found, fix="pip install 'mvlm-np[hub]'") from None
    # Errors of the HTTP client, whichever the package uses; ValueError: an answer in another form.
    network = (OSError, hub.errors.HfHubHTTPError.__bases__[0], ValueError)
    try:
        _download(hub, name, told)
    except UserError:
        raise
    except network as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise UserError(cache_folder(), f"cannot be written ({error.strerror})") from None
        reason = str(error)[:200] or type(error).__name__
        raise HubUnreachable("the hub", f"cannot be reached ({reason})") from None


def _download(hub: Any, name: str, told: Callable[[str], object]) -> None:
    model = Repository(hub, name)
    where = model.fetch(SETTINGS) / "config.json"
    get = Fields(read_json(where), where)
    decoder = decoder_config(get.values, where)  # what is no LLaMA shows before gigabytes of it are here
    wanted = {model: model.needed()}
    if is_multimodal(get.values):
        tower, kind = get.text("mm_vision_tower"), get.text("mm_projector_type", "linear")
        elsewhere = not Config(decoder, mm_projector_type=kind).vision_in_checkpoint
        if not looks_like_name(tower):
            wanted[model] += model.needed(f"{tower}/", weights=elsewhere)
        elif elsewhere or tower != OPENAI_CLIP:  # whose settings are known
            clip = Repository(hub, tower)
            wanted[clip] = clip.needed(weights=elsewhere)
    missing = 0
    for repository, files in wanted.items():
        total, here = repository.sizes(files)
        told(f"{repository.name}: {memory.text(total)}, of which {memory.text(here)} are here")
        missing += total - here
    free = shutil.disk_usage(where).free
    if missing > free:
        found, fix = f"has {memory.text(free)} left", "make room, or set HF_HOME to a folder on another disk"
        raise UserError(cache_folder(), found, memory.text(missing), fix)
    for repository, files in wanted.items():
        repository.fetch(files)


class Repository:
    """A model on the hub: its files, and what is to be fetched of them."""

    def __init__(self, hub: Any, name: str):
        self.hub, self.name, self.folder = hub, name, model_folder(name)
        try:
            info = hub.HfApi().model_info(name, files_metadata=True)
        except hub.errors.RepositoryNotFoundError:
            raise UserError(name, "is not on the hub, or not for everybody", fix="check the name") from None
        self.revision: str = info.sha
        self.files: dict[str, int] = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if "config.json" not in self.files:
            raise UserError(name, "holds no config.json", "a model as transformers saves it")

    def needed(self, folder: str = "", weights: bool = True) -> list[str]:
        """The files that a loader would read in a folder: settings, and weights in one of their forms."""
        settings = [folder + name for name in SETTINGS]
        if not weights:
            return settings
        first = next((folder + name for name in WEIGHTS if folder + name in self.files), None)
        if first is None:
            where = f"{self.name}/{folder}".rstrip("/")
            raise UserError(where, "holds no weights", f"one of {', '.join(WEIGHTS)}")
        if not first.endswith(".json"):
            return [*settings, first]
        index = self.fetch([first]) / first
        shards = Fields(read_json(index), index).inner("weight_map").values.values()
        return [*settings, first, *{f"{folder}{shard}" for shard in shards}]

    def sizes(self, files: Collection[str]) -> tuple[int, int]:
        """Bytes of these files, in all and of those that are here, wholly or in part."""
        snapshot = self.folder / "snapshots" / self.revision
        sizes = {name: self.files[name] for name in files if name in self.files}
        here = sum(size for name, size in sizes.items() if (snapshot / name).exists())
        parts = sum(part.stat().st_size for part in self.folder.glob("blobs/*.incomplete"))
        return sum(sizes.values()), min(here + parts, sum(sizes.values()))

    def fetch(self, files: Collection[str]) -> Path:
        """Downloads what there is of these files and not yet here; the snapshot's folder."""
        there = [name for name in files if name in self.files]
        for name in there:
            if self.files[name] >= LARGE:
                self._fetch_blob(name)
        return Path(self.hub.snapshot_download(self.name, allow_patterns=there))

    def _fetch_blob(self, name: str) -> None:
        """Puts a file where the hub's package looks for it: left to itself, that would not go on with one."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = self.hub.hf_hub_url(self.name, name, revision=self.revision)
        about = self.hub.get_hf_file_metadata(url)
        blob = self.folder / "blobs" / about.etag
        if blob.exists():
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(f"{blob.name}.incomplete")
        with open(part, "ab") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.name}/{name}", "is being downloaded by another process") from None
            if f.tell() < about.size:
                http_get(url, f, resume_size=f.tell(), headers=build_hf_headers(), expected_size=about.size)
        # What the hub keeps apart from Git, as it does with all large files, is named by its SHA-256.
        if len(about.etag) == 64 and sha256(part) != about.etag:
            part.unlink()
            raise UserError(f"{self.name}/{name}", "came over damaged", fix="run the same command again")
        part.replace(blob)
