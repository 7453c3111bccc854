"""The beginning of every first question, computed once: its keys and values, kept beside a converted model.

A prompt begins with the template's system text, 35 positions that no question or picture changes. A session
that begins with their keys and values computes only the rest. Packed weights and compiled kernels give them
the same bits on every machine and however a prompt is cut, so nothing can tell a stored beginning from a
computed one. Where that does not hold, and where a file is damaged, or was made for other weights or by other
arithmetic, the beginning is computed as ever.

    prefix.safetensors   keys, values        (L, KV, T, d) in the type of the cache
                         keys.scales, values.scales   (L, KV, T, 1) float32, for int8
                         __metadata__: the template, its ids, what they were computed from and by, a checksum
"""

import json
import os
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from mvlm_np import backend, decoder
from mvlm_np.backend import Ops
from mvlm_np.checkpoints.safetensors import Entry, read_with_metadata, write_safetensors
from mvlm_np.config import DecoderConfig
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import UserError
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from mvlm_np.kv_store import Stored, part
from mvlm_np.linear import Quantized
from mvlm_np.session import Session
from mvlm_np.trace import Watch

NAME = "prefix.safetensors"
MARK = "mvlm_np.prefix"
TEMPLATE = "v1"  # the one that is taken where none is named
# To be counted up whenever a change of a kernel or of the decoder changes bits; a test notices that.
ARITHMETIC = 1


@dataclass(frozen=True)
class Prefix:
    """The first positions of a prompt.

    template      whose beginning this is
    ids           (T,) what stands at each position
    keys, values  Stored: numbers (L, KV, T, d)
    origin        what it was computed from and by, see `origin`
    """

    template: str
    ids: np.ndarray
    keys: Stored
    values: Stored
    origin: str

    def begin(self, session: Session) -> None:
        """Has an empty session stand behind these positions."""
        session.begin(self.ids, self.keys, self.values)


def is_exact(weights: DecoderWeights, config: DecoderConfig, ops: Ops) -> bool:
    """Whether keys and values come out the same to the bit on every machine, and however a prompt is cut."""
    return decoder.exact(weights, config, ops) and backend.is_exact(ops)


def compute(session: Session, template: str, tokenizer: Tokenizer, pictures: bool) -> Prefix:
    """The beginning that all first questions of a template share, as this empty session computes it.

    pictures  whether there is a picture, before which the beginning ends
    """
    ids = read_into(session, template, tokenizer, pictures)
    kept = np.s_[:, :, : len(ids)]
    keys, values = (part(stored, kept) for stored in (session.cache.keys, session.cache.values))
    return Prefix(template, ids, keys, values, origin(session.weights, session.config, ids))


def read_into(session: Session, template: str, tokenizer: Tokenizer, pictures: bool) -> np.ndarray:
    """Has an empty session, of any weights, read that beginning, and returns its ids (T,)."""
    one, other = (tokenize_prompt(render(template, text, pictures), tokenizer) for text in ("a", "b"))
    T = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b or a == IMAGE_TOKEN)
    ids = np.array(one[:T], np.int64)
    session.prefill(session.weights.embed_tokens(ids), ids, 0, Watch())
    return ids


def origin(weights: DecoderWeights, config: DecoderConfig, ids: np.ndarray) -> str:
    """A digest of all that the keys and values of these ids depend on, but for the type of the cache.

    Of a packed matrix, all scales and tops count, by their sums, and the values of its first rows: another
    training, adapter or way of rounding changes them. To read all values would take longer than to compute.
    """
    digest = sha256(repr((ARITHMETIC, config)).encode())
    digest.update(np.ascontiguousarray(weights.embed_tokens(ids)).data)
    for block in weights.layers:
        for layer in block.linear:
            assert isinstance(layer, Quantized)
            kind, N, K, values, *_ = layer.packed
            name = {"int8": 8, "int4": 4}.get(kind, kind)  # as it is in files that are there
            totals = [int(np.add.reduce(a.reshape(-1).view(np.uint64))) for a in layer.packed.arrays[1:]]
            digest.update(repr((name, N, K, *totals)).encode())
            digest.update(np.ascontiguousarray(values[0]).data)
            if layer.bias is not None:
                digest.update(layer.bias.data)
        for weight in vars(block).values():
            if isinstance(weight, np.ndarray):
                digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


# ---------------------------------------------------------------- the file


def write(path: Path, prefix: Prefix) -> None:
    """Writes the file `path`."""
    arrays = _arrays(prefix.keys, prefix.values)
    metadata = {
        MARK: prefix.template,
        "ids": json.dumps(prefix.ids.tolist()),
        "origin": prefix.origin,
        "sha256": _checksum(arrays),
    }
    entries = [
        Entry(name, str(array.dtype), array.shape, partial(lambda array: [array], array))
        for name, array in arrays.items()
    ]
    write_safetensors(path, entries, metadata)


def read(path: Path) -> Prefix:
    """The file `path`, whatever model it belongs to. UserError: it is damaged, or is something else."""
    tensors, metadata = read_with_metadata(path)
    try:
        ids = np.array(json.loads(metadata["ids"]), np.int64)
        found = {name: tensor.raw for name, tensor in tensors.items()}
        *rows, _ = found["keys"].shape
        scales = int(found["keys"].dtype == np.int8)  # for each row, or none
        none = np.empty((*rows, 0), np.float32)
        keys, values = (Stored(found[name], found.get(f"{name}.scales", none)) for name in ("keys", "values"))
        shapes = [array.shape for stored in (keys, values) for array in stored]
        sound = shapes == [keys.numbers.shape, (*rows, scales)] * 2 and (ids.ndim, len(rows)) == (1, 3)
        if not sound or rows[2] != len(ids) or metadata["sha256"] != _checksum(_arrays(keys, values)):
            raise ValueError
        return Prefix(metadata[MARK], ids, keys, values, metadata["origin"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        raise UserError(path, "is damaged", "what mvlm convert writes", "convert the model again") from None


def find(folder: Path, weights: DecoderWeights, config: DecoderConfig, ops: Ops, cache: str) -> Prefix | None:
    """The stored beginning of the model in a folder; None if there is none that this model may begin with."""
    path = folder / NAME
    if not os.path.isfile(path) or not is_exact(weights, config, ops):
        return None
    try:
        prefix = read(path)
    except UserError:
        return None
    return None if why_not(prefix, weights, config, cache) else prefix


def why_not(prefix: Prefix, weights: DecoderWeights, config: DecoderConfig, cache: str) -> str | None:
    """Why a model with a cache of this type cannot begin with these keys and values; None: it can."""
    layers, heads, d = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    if prefix.keys.numbers.shape != (layers, heads, len(prefix.ids), d):
        return "it is of a model of another shape"
    if prefix.keys.numbers.dtype != np.dtype(cache):
        return f"it is for a cache of {prefix.keys.numbers.dtype}"
    if not ((prefix.ids >= 0) & (prefix.ids < config.vocab_size)).all():
        return "it has ids that the model does not have"
    if prefix.origin != origin(weights, config, prefix.ids):
        return "it was computed from other weights, or by another version"
    return None


def _arrays(keys: Stored, values: Stored) -> dict[str, np.ndarray]:
    named = {"keys": keys.numbers, "values": values.numbers}
    scales = {"keys.scales": keys.scales, "values.scales": values.scales}
    return named | {name: array for name, array in scales.items() if array.size}


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
