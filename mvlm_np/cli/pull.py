"""Downloads what is needed of a model on the hub, the vision tower included, into the hub's own cache.

Stopped half-way, the same command goes on where it was. Afterwards the name stands for the model, offline
too. Where the hub cannot be reached, this says which files to put where instead, and exits with 1.

example:
  mvlm pull mtgv/MobileVLM_V2-1.7B
  mvlm ask photo.jpg "What does the sign say?" --model mtgv/MobileVLM_V2-1.7B
"""

import argparse
import sys
from collections.abc import Iterator

from mvlm_np import memory
from mvlm_np.config import OPENAI_CLIP
from mvlm_np.errors import UserError

# Bytes of their weights, for people who cannot ask the hub. Of CLIP there is no file without the text tower.
PUBLISHED = {
    "mtgv/MobileVLM-1.7B": 3_373_000_000,
    "mtgv/MobileVLM-3B": 6_068_000_000,
    "mtgv/MobileVLM_V2-1.7B": 3_348_000_000,
    "mtgv/MobileVLM_V2-3B": 6_029_000_000,
    "mtgv/MobileVLM_V2-7B": 14_126_000_000,
    OPENAI_CLIP: 1_712_000_000,
}


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="OWNER/NAME", help="the model's name on the hub")


def run(args: argparse.Namespace) -> int:
    from mvlm_np.checkpoints.download import HubUnreachable, download
    from mvlm_np.checkpoints.hub import find_cached, looks_like_name, name_in
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.checkpoints.tokenizer_files import read_folder
    from mvlm_np.inputs.tokenizer import make
    from mvlm_np.loading import bound_tensors, open_tokenizer

    name = name_in(args.name)
    if not looks_like_name(name):
        raise UserError(args.name, "is no name on the hub", "OWNER/NAME, such as mtgv/MobileVLM_V2-1.7B")
    unreachable = None
    try:
        download(
            name,
            lambda line: print(line, file=sys.stderr),
            lambda folder, decoder: make(read_folder(folder), decoder.vocab_size),
        )
    except HubUnreachable as error:
        unreachable = error
    try:
        checkpoint = open_checkpoint(name)
        folders = {tensor.file.path.parent for tensor in bound_tensors(checkpoint).values()}
        notes = open_tokenizer(checkpoint).notes()
    except UserError:
        if unreachable is None:
            raise
        print(f"mvlm: {unreachable}", file=sys.stderr)
        if find_cached(name):
            print("mvlm: the download broke off; the same command goes on with it", file=sys.stderr)
        else:
            print("\n".join(by_hand(name)))
        return 1
    if unreachable:
        notes.insert(0, f"{unreachable}, but all was here before")
    for note in [*notes, *checkpoint.notes]:
        print(f"mvlm: note: {note}", file=sys.stderr)
    for folder in [checkpoint.path, *sorted(folders - {checkpoint.path})]:
        print(folder)
    return 0


def by_hand(name: str) -> Iterator[str]:
    """Which files to download elsewhere, and where to put them."""
    from mvlm_np.checkpoints.download import SETTINGS

    size, folder = PUBLISHED.get(name), name.split("/")[1]
    yield "On a machine that reaches the hub, download these files, and put them here under the names shown:"
    weights = "pytorch_model.bin"
    if size is None:
        weights = "model.safetensors or pytorch_model.bin, or the index and the files that it names"
    elif name.endswith("V2-7B"):
        weights = "pytorch_model.bin.index.json, and the two files that it names"
    yield from _listed(name, (*SETTINGS[:5], weights))
    if size is None:
        yield "and, unless config.json says mm_projector_type ldpnetv2,"
    if size is None or "V2" not in name:
        yield from _listed(OPENAI_CLIP, ("config.json", "preprocessor_config.json", "pytorch_model.bin"))
    yield f"Then: mvlm ask PICTURE QUESTION --model {folder}"


def _listed(repository: str, files: tuple[str, ...]) -> Iterator[str]:
    """The files of a repository, of which the last one holds the weights."""
    from huggingface_hub.constants import ENDPOINT

    size, folder = PUBLISHED.get(repository), repository.split("/")[1]
    yield f"  {ENDPOINT}/{repository}"
    for file in files[:-1]:
        yield f"    {folder}/{file}"
    yield f"    {folder}/{files[-1]}" + (f" ({memory.text(size)})" if size else "")
