"""Calibrated rounding: the decoder's forward pass over linear layers that round themselves.

When a linear layer is called, all that it reads lies before it, every position of every sequence. It adds
up the second moments of that, rounds its matrix with `gptq`, and computes its output with the rounded one:
what follows is calibrated on what it will really read. One decoder layer's weights are in memory at a time.

What is done lies in a work folder, which is no model: a file for each decoder layer, packed as in a model's
own file, and the hidden states behind the last of them. Files are complete or not there, so a calibration
that was stopped at any moment goes on with the next layer, to the same result.
"""

import fcntl
import gc
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import inf, log10
from pathlib import Path
from typing import Any, cast

import numpy as np

from mvlm_np import __version__, decoder, memory, quantize
from mvlm_np.backend import Ops
from mvlm_np.calibrating.gptq import best_rows, gptq, output_error
from mvlm_np.calibrating.reading import Sequences
from mvlm_np.checkpoints import packed
from mvlm_np.checkpoints.safetensors import Entry, read_safetensors, read_with_metadata, write_safetensors
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.decoder import DecoderLayer, DecoderWeights
from mvlm_np.errors import UserError
from mvlm_np.kernels import pack

TOKENS = 8192  # positions that are read at most: what a layer computes of them is in memory all at once
FEW = 2048  # positions, below which a warning is logged
CHUNK = 1024  # positions whose second moments are added up at a time
STATE = "hidden_states.safetensors"

LOG = logging.getLogger(__name__)  # of too little to read

# Of each matrix: how far the error of what it computes lies below that, in dB, and how far it would lie there
# if it were rounded to nearest.
Gains = dict[str, list[float]]
Progress = Callable[[float, float], object]  # called with the work done and all there is, in FLOP


def origin(config: Config, tensors: Mapping[str, Tensor], kind: str, whole: int, read: str) -> str:
    """A digest of all that a calibration's result depends on. Of each matrix, the first row counts.

    kind, whole  as in `calibrated`; read: the digest of what is read
    """
    digest = sha256(repr((__version__, TOKENS, config, kind, whole, read)).encode())
    for name, tensor in tensors.items():
        digest.update(repr((name, tensor.dtype, tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.rows(slice(0, 1))).data)
    return digest.hexdigest()


def taken(sequences: Sequences, room: int = TOKENS) -> list[np.ndarray]:
    """The first sequences, as many as there is room for; the last is cut to what is left."""
    found = list[np.ndarray]()
    for x in sequences:
        found.append(x[:room])
        if (room := room - len(x)) <= 0:
            break
    return found


@dataclass
class State:
    """How far a calibration is.

    done     decoder layers that are rounded
    lengths  of the sequences
    x        float32 (T, D): the hidden states of all sequences behind those layers, one after another
    gains    of the matrices that are rounded
    """

    done: int
    lengths: list[int]
    x: np.ndarray
    gains: Gains


class Work:
    """The work folder of a calibration.

    path    the folder
    origin  a digest of all that the result depends on
    """

    def __init__(self, path: Path, origin: str):
        self.path, self.origin = path, origin

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has this process alone use the folder. UserError: it is in use, or holds another calibration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(self.path, f"cannot be written ({error.strerror})") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(self.path, "is in use by another process", fix="wait until it ends") from None
            state = self.path / STATE
            if state.exists() and read_with_metadata(state)[1].get("origin") != self.origin:
                found = "holds the beginning of another calibration"
                wanted = "one of the same model, precision and pictures"
                raise UserError(self.path, found, wanted, "remove it, or name another destination")
            yield
        except OSError as error:
            raise UserError(self.path, f"cannot be written ({error.strerror})") from None
        finally:
            with suppress(OSError):
                os.rmdir(self.path)  # where nothing was begun
            os.close(lock)

    def read(self) -> State | None:
        """How far it is; None: nothing is there yet."""
        if not (self.path / STATE).exists():
            return None
        tensors, about = read_with_metadata(self.path / STATE)
        kept = {name: json.loads(about[name]) for name in ("done", "lengths", "gains")}
        return State(x=np.array(tensors["x"].float32()), **kept)

    def write(self, state: State) -> None:
        """Notes how far it is, in place of what was noted before."""
        about = {name: json.dumps(getattr(state, name)) for name in ("done", "lengths", "gains")}
        entry = Entry("x", "float32", state.x.shape, lambda: [state.x])
        write_safetensors(self.path / STATE, [entry], about | {"origin": self.origin})

    def layer(self, i: int) -> Path:
        """The file of decoder layer i."""
        return self.path / f"layer-{i}.safetensors"


def calibrated(
    tensors: Mapping[str, Tensor],
    config: DecoderConfig,
    kind: str,
    whole: int,
    ops: Ops,
    work: Work,
    begin: Callable[[], Sequences],
    progress: Progress = lambda done, total: None,
) -> tuple[dict[str, Tensor], Gains]:
    """The matrices of the decoder's layers, rounded, and what that has gained.

    tensors  of the model, by name
    kind     "int4" or "uint4", the latter with scales and minima up to `whole`, see `quantize`
    work     where what is done lies, held by the caller; the tensors that are returned lie there, too
    begin    gives what the decoder reads; not called where a calibration goes on
    """
    state = work.read()
    if state is None:
        sequences = taken(begin())
        gc.collect()  # the model that has read is large, and refers to itself
        memory.give_back()
        state = State(0, [len(x) for x in sequences], np.concatenate(sequences), {})
        work.write(state)
        if (T := sum(state.lengths)) < FEW:
            LOG.warning(
                "only %d positions were read; with fewer than %d, what is gained may be lost elsewhere: "
                "give more pictures or questions",
                T,
                FEW,
            )
    L = config.num_hidden_layers
    if state.done < L:
        layers = Layers(tensors, L, kind, whole, work, state, progress)
        weights = DecoderWeights(
            embed_tokens=lambda ids: state.x,
            layers=cast(Any, layers),
            norm=tensors["model.norm.weight"].float32(),
            lm_head=cast(Any, None),  # the forward pass ends before it
        )
        decoder.forward(state.x, weights, config, cast(Any, Apart(state.lengths)), ops, layers.seen)
    found: dict[str, Tensor] = {}
    for i in range(L):
        found |= read_safetensors(work.layer(i))
    assert found.keys() == state.gains.keys()
    return found, state.gains


class Layers:
    """The decoder's layers that are not done, one at a time; each is written when its output is there."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        count: int,
        kind: str,
        whole: int,
        work: Work,
        state: State,
        progress: Progress,
    ):
        self.tensors, self.count, self.kind, self.whole = tensors, count, kind, whole
        self.work, self.state, self.progress = work, state, progress
        self.first = state.done
        self._entries, self._about = list[Entry](), dict[str, str]()
        first = [tensor.shape for name, tensor in tensors.items() if name.startswith("model.layers.0.")]
        T = sum(state.lengths)
        self._total = count * sum(cost(T, *shape) for shape in first if len(shape) == 2)
        self._spent = self._total * self.first / count
        progress(self._spent, self._total)

    def __len__(self) -> int:
        return self.count - self.first

    def __iter__(self) -> Iterator[DecoderLayer]:
        for i in range(self.first, self.count):
            yield DecoderLayer(
                input_layernorm=self._vector(i, "input_layernorm"),
                qkv=cast(Any, self._together(i, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                o_proj=cast(Any, self._alone(i, "self_attn.o_proj")),
                post_attention_layernorm=self._vector(i, "post_attention_layernorm"),
                gate_up=cast(Any, self._together(i, "mlp.gate_proj", "mlp.up_proj")),
                down_proj=cast(Any, self._alone(i, "mlp.down_proj")),
            )

    def seen(self, name: str, x: np.ndarray) -> None:
        """The forward pass's trace: what is behind a layer shows that it is done."""
        part, _, number = name.rpartition(".")
        if part == "hidden_states" and number != "0":
            done = self.first + int(number)
            about = {packed.MARK: packed.VERSION, **self._about}
            write_safetensors(self.work.layer(done - 1), self._entries, about)
            self._entries, self._about = [], {}
            self.state.done, self.state.x = done, x
            self.work.write(self.state)

    def _vector(self, i: int, name: str) -> np.ndarray:
        return self.tensors[f"model.layers.{i}.{name}.weight"].float32()

    def _alone(self, i: int, name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda h: self._rounded([f"model.layers.{i}.{name}.weight"], h)[0]

    def _together(self, i: int, *names: str) -> Callable[[np.ndarray], list[np.ndarray]]:
        return lambda h: self._rounded([f"model.layers.{i}.{name}.weight" for name in names], h)

    def _rounded(self, names: Sequence[str], h: np.ndarray) -> list[np.ndarray]:
        """Rounds matrices with the same input h (T, K), and computes what each makes of it, (T, N)."""
        H, outputs = second_moments(h), []
        matrices = [self.tensors[name].float32() for name in names]
        damping = len(H) / len(h)  # the fewer positions, the less their moments say of others
        rounded = gptq(np.concatenate(matrices), H, self.kind, damping, ", ".join(names), self.whole)
        start = 0
        for name, w in zip(names, matrices, strict=True):
            rows = slice(start, start := start + len(w))
            near = quantize.quantize(w, self.kind, where=name, whole=self.whole)
            own = tuple(part[rows] for part in rounded)
            found, error, to_nearest = best_rows(w, H, own, near)
            signal = output_error(w, H).sum()
            noise = (error.sum(), to_nearest.sum())
            self.state.gains[name] = [10 * log10(signal / n) if n and signal else inf for n in noise]
            self._pack(name, *own)
            outputs.append(h @ found.T)
            self._spent += cost(len(h), *w.shape)
            self.progress(self._spent, self._total)
        return outputs

    def _pack(self, name: str, q: np.ndarray, *factors: np.ndarray) -> None:
        arrays = pack.pack(self.kind, q, *factors).arrays
        for (part, about), array in zip(pack.parts(self.kind, *q.shape).items(), arrays, strict=True):
            self._entries.append(Entry(f"{name}.{part}", *about, partial(list, [array])))
        self._about[name] = packed.describe(self.kind, q.shape)


class Apart:
    """The key-value cache of sequences that lie one after another and are read once: it keeps nothing."""

    def __init__(self, lengths: Sequence[int]):
        self.lengths = lengths

    def positions(self, T: int) -> np.ndarray:
        """Positions of all tokens, each in its own sequence."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Ops) -> np.ndarray:
        """Each sequence attends to itself: (H, T, d)."""
        found = np.empty_like(q, order="C")
        for end, length in zip(np.cumsum(self.lengths), self.lengths, strict=True):
            own = np.s_[:, end - length : end]
            one = [np.ascontiguousarray(a[own]) for a in (q, k, v)]
            found[own] = ops.attention(one[0], one[1], one[2], causal=True)
        return found

    def advance(self, T: int) -> None:
        """Nothing is kept."""


def second_moments(h: np.ndarray) -> np.ndarray:
    """float32 (T, K) -> the mean over T of h^T h, float64 (K, K), added up some rows at a time."""
    H = np.zeros((h.shape[1],) * 2)
    for start in range(0, len(h), CHUNK):
        part = h[start : start + CHUNK]
        H += part.T @ part
    return H / len(h)


def cost(T: int, N: int, K: int) -> float:
    """About what it takes to calibrate a matrix, in FLOP: moments, product, errors, GPTQ and its inverse."""
    return 2.0 * T * K * (N + K / 2) + 5.0 * N * K * K + K**3
