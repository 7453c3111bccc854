"""A checkpoint of any member of the MobileVLM family with random weights, as Hugging Face lays it out.

Memory stays under 100 MB whatever the size, under 400 MB for torch's pickles, which need torch.
"""

import json
import mmap
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.config_files import model_config, vision_config
from mvlm_np.config import Config, ImageConfig
from mvlm_np.errors import CheckpointError
from mvlm_np.loading import manifest
from tools.parts.family import files
from tools.parts.made_up_tokenizer import tokenizer_model

CHUNK = 1 << 17  # values made at a time; few enough to stay in the processor's cache
Shapes = dict[str, tuple[int, ...]]
Count = Callable[[int], object]  # called with the bytes just written


def make_checkpoint(
    name: str,
    folder: Path,
    *,
    form: str = "safetensors",
    dtype: str = "bfloat16",
    shards: int = 1,
    layers: int | None = None,
    seed: int = 0,
    tokenizer: Path | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Writes the folder `folder`, which must not exist or be empty.

    form       "safetensors", or "bin" for torch's pickles
    dtype      "bfloat16" (as published), "float16" or "float32"
    shards     number of weight files; more than one have an index beside them
    layers     so many in decoder and vision tower, instead of all: a slice at full width
    tokenizer  the tokenizer.model to copy; without it one is made up
    progress   called with the bytes written and the bytes in all
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(folder, "is there already", "a new folder", "remove it, or name another one")
    settings, wanted = files(name, layers), shapes(name, layers)
    settings.model["config.json"]["torch_dtype"] = dtype
    config = settings.model["config.json"]
    tower = tower_shapes(wanted) if config["mm_projector_type"] != "ldpnetv2" else {}

    done, total = 0, STORED[dtype].itemsize * sum(map(prod, [*wanted.values(), *tower.values()]))

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
    clip = partial / Path(config["mm_vision_tower"]).name
    clip.mkdir(parents=True)
    try:
        write_json(partial, settings.model)
        write_json(clip, settings.tower)
        model = tokenizer.read_bytes() if tokenizer else tokenizer_model(config["vocab_size"])
        (partial / "tokenizer.model").write_bytes(model)
        write_weights(partial, wanted, form, dtype, shards, seed, count)
        if tower:
            # Other values than the checkpoint's own copy, so that it shows which of them is used.
            write_weights(clip, tower, form, dtype, 1, seed + 1, count)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ---------------------------------------------------------------- what there is to write


def shapes(name: str, layers: int | None = None) -> Shapes:
    """Hugging Face's name and the shape of every tensor of the published file."""
    settings = files(name, layers)
    values = settings.model["config.json"]
    vision = vision_config(settings.tower["config.json"], name)
    image = ImageConfig(vision.image_size, (vision.image_size, vision.image_size))
    config = model_config(values, name, vision, image)
    wanted = dict(manifest(config).shapes)
    return wanted | unread(name, config)


def unread(name: str, config: Config) -> Shapes:
    """Tensors that the published files hold and no answer depends on."""
    assert config.vision is not None
    found: Shapes = {
        f"{VISION_TOWER}vision_model.post_layernorm.{part}": (config.vision.hidden_size,)
        for part in ("weight", "bias")
    }
    if name == "MobileVLM_V2-7B":
        for i in range(config.decoder.num_hidden_layers):
            found[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = (config.decoder.head_dim // 2,)
    return found


def tower_shapes(wanted: Shapes) -> Shapes:
    """The vision tower's tensors as its own folder spells them."""
    return {name.removeprefix(VISION_TOWER): s for name, s in wanted.items() if name.startswith(VISION_TOWER)}


# ---------------------------------------------------------------- random values


def random_values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """The values of one tensor in order, float32 (n,) at a time; the same for the same name and seed.

    Normal, of a size that keeps activations sane through any number of layers: a matrix or convolution
    of K inputs has a deviation of 1.5/sqrt(K) (with less, attention is so even that the decoder repeats
    itself), embeddings of 1; gains lie around 1 and biases around 0, off them by 0.1, so that forgetting
    one shows.
    """
    if name.endswith("inv_freq"):
        yield (10000.0 ** -(np.arange(shape[0]) / shape[0])).astype(np.float32)
        return
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    mean, deviation = 0.0, 1.0
    if name.endswith(".bias"):
        deviation = 0.1
    elif len(shape) == 1 and name.endswith(".weight"):
        mean, deviation = 1.0, 0.1
    elif "embed_tokens" not in name and "_embedding" not in name.removesuffix("patch_embedding.weight"):
        deviation = 1.5 / sqrt(prod(shape[1:]))
    for start in range(0, prod(shape), CHUNK):
        values = rng.standard_normal(min(CHUNK, prod(shape) - start), np.float32)
        values *= deviation
        values += mean
        yield values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bit patterns (uint16) of the nearest bfloat16, halves to even."""
    bits = values.view(np.uint32)
    bits = bits + 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16).astype(np.uint16)


class Stored(NamedTuple):
    code: str  # what safetensors calls the type
    itemsize: int
    encode: Callable[[np.ndarray], np.ndarray]  # from float32


STORED = {
    "bfloat16": Stored("BF16", 2, to_bfloat16),
    "float16": Stored("F16", 2, lambda values: values.astype(np.float16)),
    "float32": Stored("F32", 4, lambda values: values),
}


# ---------------------------------------------------------------- files


def write_json(folder: Path, contents: Mapping[str, object]) -> None:
    for name, values in contents.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def write_weights(
    folder: Path, wanted: Shapes, form: str, dtype: str, shards: int, seed: int, count: Count
) -> None:
    """All tensors, in one file or in shards with an index."""
    stem, ending = ("model", ".safetensors") if form == "safetensors" else ("pytorch_model", ".bin")
    parts = split(wanted, shards)
    of_all = [f"-{i:05}-of-{len(parts):05}" for i in range(1, len(parts) + 1)] if len(parts) > 1 else [""]
    for part, number in zip(parts, of_all, strict=True):
        path = folder / f"{stem}{number}{ending}"
        offsets = write_safetensors(path.with_suffix(".safetensors"), part, dtype, seed, count)
        if form == "bin":
            to_pickle(path.with_suffix(".safetensors"), path, part, dtype, offsets)
    if len(parts) > 1:
        weight_map = {
            name: f"{stem}{number}{ending}"
            for part, number in zip(parts, of_all, strict=True)
            for name in part
        }
        size = STORED[dtype].itemsize * sum(map(prod, wanted.values()))
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder, {f"{stem}{ending}.index.json": index})


def split(wanted: Shapes, shards: int) -> list[Shapes]:
    """The tensors in order, cut into at most `shards` parts of about the same number of values."""
    total, before, parts = sum(map(prod, wanted.values())), 0, [Shapes() for _ in range(shards)]
    for name, shape in wanted.items():
        parts[before * shards // total][name] = shape
        before += prod(shape)
    return [part for part in parts if part]


def write_safetensors(path: Path, wanted: Shapes, dtype: str, seed: int, count: Count) -> dict[str, int]:
    """Writes a file front to back; returns where each tensor begins in it."""
    code, itemsize, encode = STORED[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin, begins = 0, {}
    for name, shape in wanted.items():
        begins[name], end = begin, begin + prod(shape) * itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in wanted.items():
            for values in random_values(name, shape, seed):
                count(file.write(encode(values).data))
    return {name: 8 + len(text) + begin for name, begin in begins.items()}


def to_pickle(source: Path, path: Path, wanted: Shapes, dtype: str, offsets: Mapping[str, int]) -> None:
    """Turns a safetensors file into what torch.save writes, and removes it."""
    import torch

    with open(source, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch asks for writable memory
    source.unlink()

    class Forgetting(FileIO):
        """Gives back the mapped pages once they are written, or they would all count as memory in use."""

        def write(self, data: Any) -> int:
            written = super().write(data)
            mapped.madvise(mmap.MADV_DONTNEED)
            return written

    tensors = {
        name: torch.frombuffer(
            mapped, dtype=getattr(torch, dtype), count=prod(shape), offset=offsets[name]
        ).reshape(shape)
        for name, shape in wanted.items()
    }
    with Forgetting(path, "wb") as out:
        torch.save(tensors, out)
