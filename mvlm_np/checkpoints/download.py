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
from mvlm_np.checkpoints import tokenizer_files
from mvlm_np.checkpoints.config_files import (
    decoder_config,
    is_multimodal,
    model_config,
    quantised_by,
    refuse_quantised,
)
from mvlm_np.checkpoints.folder import WEIGHTS, is_openai_clip
from mvlm_np.checkpoints.hub import cache_folder, looks_like_name, model_folder
from mvlm_np.checkpoints.json_files import Fields, read_json, short
from mvlm_np.checkpoints.kinds import ADAPTER
from mvlm_np.checkpoints.record import sha256
from mvlm_np.checkpoints.sniff import show
from mvlm_np.config import OPENAI_CLIP, Config, DecoderConfig, ImageConfig, VisionConfig
from mvlm_np.errors import UserError

SETTINGS = (
    "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json", "mvlm.json",
)  # fmt: skip
LARGE = 10_000_000  # bytes of a file from which it pays to go on where its download stopped
DISK = (errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.ENOTDIR, errno.EROFS)  # not the network's


Told = Callable[[str], object]
Check = Callable[[Path, DecoderConfig], object]


class HubUnreachable(UserError):
    """The hub does not answer, or what answers is not the hub."""


def download(name: str, told: Told = lambda line: None, check: Check = lambda folder, decoder: None) -> None:
    """Downloads the model OWNER/NAME and, where upstream's rule takes CLIP from elsewhere, that too.

    told   is called with a line about each of the two: how much it is, and how much is here already
    check  is called with the folder and the decoder's settings once all small files are in it, and raises
           if the rest need not come

    What was stopped goes on where it was. HubUnreachable: see there; whatever came over stays. UserError:
    there is no such model, this engine has no use for it, or the disk is full.
    """
    try:
        import huggingface_hub as hub
        import huggingface_hub.errors
    except ImportError:
        found = "needs the huggingface_hub package, which is not installed"
        raise UserError("mvlm pull", found, fix="pip install huggingface_hub") from None
    # Errors of the HTTP client, whichever the package uses; ValueError: an answer in another form.
    network = (OSError, hub.errors.HfHubHTTPError.__bases__[0], ValueError)
    try:
        _download(hub, name, told, check)
    except UserError:
        raise
    except network as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise UserError(cache_folder(), f"cannot be written ({error.strerror})") from None
        reason = str(error)[:200] or type(error).__name__
        raise HubUnreachable("the hub", f"cannot be reached ({reason})") from None


def _download(hub: Any, name: str, told: Told, check: Check) -> None:
    model = Repository(hub, name)
    # What cannot be used shows in a few small files, before gigabytes are here.
    folder = model.fetch([*SETTINGS, *model.tokenizer()])
    where = folder / "config.json"
    get = Fields(read_json(where), where)
    decoder = decoder_config(get.values, where)
    if tool := quantised_by(get.values):
        refuse_quantised(tool, where)
    wanted = {model: [*model.needed(), *model.tokenizer()]}
    check(folder, decoder)
    if is_multimodal(get.values):
        tower, kind = get.text("mm_vision_tower"), get.text("mm_projector_type", "linear")
        elsewhere = not Config(decoder, mm_projector_type=kind).vision_in_checkpoint
        places = (tower, Path(tower).name)
        inside = next((place for place in places if f"{place}/config.json" in model.files), None)
        if is_openai_clip(tower):
            tower = OPENAI_CLIP
        if inside is not None:
            wanted[model] += model.needed(f"{inside}/", weights=elsewhere)
        elif not looks_like_name(tower):
            found = f"its mm_vision_tower is {short(tower)}, a place on another machine"
            fix = "ask its author for the name of that CLIP model, or for the folder"
            raise UserError(name, found, "a CLIP model on the hub, or in the repository", fix)
        elif elsewhere or tower != OPENAI_CLIP:
            clip = Repository(hub, tower)
            wanted[clip] = clip.needed(weights=elsewhere)
        else:  # of that tower the settings are known, so that they can be compared at once
            model_config(get.values, where, VisionConfig(), ImageConfig())
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
        holds_weights = not self.files.keys().isdisjoint(WEIGHTS)
        if "config.json" not in self.files or (ADAPTER in self.files and not holds_weights):
            raise self._refusal()

    def _refusal(self) -> UserError:
        """What a repository is that holds no model folder at its top."""
        if ADAPTER in self.files:
            found = "is a LoRA adapter, which changes a model"
            fix = f"hf download {self.name} --local-dir ADAPTER; then mvlm convert BASE TUNED --lora ADAPTER"
            return UserError(self.name, found, "the model", f"{fix} --precision bf16")
        ggufs = [name for name in self.files if name.lower().endswith(".gguf")]
        if ggufs:
            models = [name for name in ggufs if "mmproj" not in name.lower()] or ggufs
            second = [name for name in ggufs if "mmproj" in name.lower()][:1]
            files = " ".join([min(models, key=lambda name: self.files[name]), *second])
            fix = f"download a model and its mmproj: hf download {self.name} {files} --local-dir DIR"
            return UserError(self.name, "holds GGUF files, which mvlm runs as they are", None, fix)
        folders = [name.rpartition("/")[0] for name in self.files if name.endswith("/config.json")]
        inside = [f for f in folders if any(f"{f}/{weights}" in self.files for weights in WEIGHTS)]
        inside = [f for f in inside if f.rpartition("/")[0] not in inside]  # no vision tower of a model
        if inside:
            found = f"holds no model at its top, but in {', '.join(map(show, inside[:4]))}"
            fix = f"hf download {self.name} --include '{inside[-1]}/*' --local-dir DIR; then name that folder"
            return UserError(self.name, found, None, fix)
        return UserError(self.name, "holds no config.json", "a model as transformers saves it")

    def tokenizer(self) -> list[str]:
        """The file of the tokenizer beside `SETTINGS`, if those do not hold it."""
        return [] if tokenizer_files.MODEL in self.files else [tokenizer_files.JSON]

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
