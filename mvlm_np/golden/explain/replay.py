"""The reference step by step: any stage from whatever earlier stages are given, with any part of it replaced.

The forward pass is the model's own. What is added here is where it starts, where it stops, and what it is
made of: a changed copy of `Parts` is another implementation. The values that the candidate itself computed
can stand in for the stages before the one that is looked at, so that each step is judged alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mvlm_np import decoder
from mvlm_np.backend import Ops
from mvlm_np.decoder import DecoderWeights
from mvlm_np.golden.explain.parts import Change, Parts
from mvlm_np.golden.explain.steps import STEPS, CannotReplay, Place, independent, layer_of, step_of
from mvlm_np.golden.stages import Stages
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from mvlm_np.kv_cache import KVCache
from mvlm_np.model import MobileVLM


class Replay:
    """Computes stages under some changes.

    given    stages that are taken as they are, the candidate's own; the one that is asked of `compute` and
             those after it do not count
    known    stages under these changes that need not be computed anew
    changes  (change, step, layer) each; with a layer, only that block of the vision tower (step "block") or
             layer of the decoder is changed
    dtype    float64 for the yardstick of rounding
    trail    {stage: (step, layer) of all that it was computed by, from what is given on}
    """

    def __init__(
        self,
        parts: Parts,
        given: Stages,
        known: Stages | None = None,
        changes: Sequence[tuple[Change, str, int | None]] = (),
        dtype: type = np.float32,
    ):
        self.reference, self.given, self.found = parts, given, dict(known or {})
        self.changes, self.dtype = list(changes), dtype
        self.trail: dict[str, set[Place]] = {name: {(step_of(name), None)} for name in self.found}
        self._open: list[set[Place]] = []
        self._parts: dict[tuple[str, int | None], Parts] = {}

    def child(self, change: Change, step: str, layer: int | None = None) -> "Replay":
        """The same with one more change; what does not depend on it is kept."""
        kept = {name: value for name, value in self.found.items() if independent(name, step, layer)}
        changes = [*self.changes, (change, step, layer)]
        new = Replay(self.reference, self.given, kept, changes, self.dtype)
        new.trail |= {name: self.trail[name] for name in kept}
        return new

    def parts(self, step: str, layer: int | None = None) -> Parts:
        """What the implementation consists of at this step of this layer."""
        if (step, layer) not in self._parts:
            parts = self.reference
            for change, first, only in self.changes:
                acts = STEPS.index(first) <= STEPS.index(step) and (first == "ids") <= (step == "ids")
                if acts and (only is None or only == layer or layer is None):
                    try:
                        parts = change(parts)
                    except (
                        AttributeError,
                        TypeError,
                    ):  # weights that are packed, or rounded as they are used
                        raise CannotReplay("a change of weights of another kind") from None
            self._parts[step, layer] = parts
        return self._parts[step, layer]

    def __getitem__(self, name: str) -> np.ndarray:
        """A stage that a later one is computed from: given, known, or computed."""
        if name in self.given:
            value = self.given[name]
            return value if value.dtype.kind == "i" else value.astype(self.dtype)
        return self.compute(name)

    def compute(self, name: str) -> np.ndarray:
        """A stage from those before it. CannotReplay: it does not follow from them."""
        if name.endswith(".tail"):
            raise CannotReplay(name)
        if name not in self.found:
            self._open.append({(step_of(name), layer_of(name))})
            try:
                self._compute(name)
            except (ValueError, IndexError, KeyError) as error:
                raise CannotReplay(f"{name}: {error}") from None
            finally:
                self.trail[name] = self._open.pop()
        if name not in self.found:
            raise CannotReplay(f"{name}: there is no such stage")
        if self._open:
            self._open[-1] |= self.trail[name]
        return self.found[name]

    # ------------------------------------------------------------ the steps

    def _compute(self, name: str) -> None:
        step, layer = step_of(name), layer_of(name)
        parts, cast = self.parts(step, layer), self.dtype
        match step:
            case "pixels":
                self._keep(name, parts.pixels().astype(cast))
            case "embed":
                assert parts.vision and parts.config.vision
                pixels = self["pixel_values"]
                self._keep(name, parts.embed(pixels, parts.vision, parts.config.vision, parts.vision_ops))
            case "block":
                assert parts.vision and parts.config.vision and layer is not None
                x, weights = self[f"vision.hidden_states.{layer}"], parts.vision.layers[layer]
                self._keep(name, parts.block(x, weights, parts.config.vision, parts.vision_ops))
            case "features":
                states = self[f"vision.hidden_states.{parts.config.vision_layers}"]
                patch = parts.config.mm_vision_select_feature == "patch"
                self._keep(name, states[1:] if patch else states)
            case "project":
                watch = Follower(self, "projector.", name, parts)
                # A copy: stages may be views of it, and are written to.
                self._until(watch, parts.project, self["vision.features"].copy(), parts.projector,
                            parts.projector_ops, watch)  # fmt: skip
            case "ids":
                self._keep(name, np.array(parts.ids(), np.int64))
            case "embeds" if name == "inputs_embeds":
                self._keep(name, self._embeds(self["input_ids"], parts).astype(cast))
            case "embeds":
                self._keep(name, self["inputs_embeds"])
            case "layer":
                assert layer is not None
                self._layer(layer, self[f"decoder.hidden_states.{layer}"], name, parts)
            case "logits":
                x = self[f"decoder.hidden_states.{parts.config.decoder.num_hidden_layers}"]
                self._keep(name, parts.decoder.lm_head(x))
            case "decode":
                self._decode(name, parts)

    def _keep(self, name: str, value: np.ndarray) -> None:
        parts = self.parts(step_of(name), layer_of(name))
        self.found[name] = parts.edits[name](value, self.found) if name in parts.edits else value

    def _until(self, watch: "Follower", run: Callable[..., Any], *args: Any) -> None:
        try:
            run(*args)
        except _Reached:
            return
        raise CannotReplay(f"{watch.target}: there is no such stage")

    def _embeds(self, ids: np.ndarray, parts: Parts) -> np.ndarray:
        """Of several pictures only the last one's stages are on record: what they embed to is not known."""
        count = int((ids == IMAGE_TOKEN).sum())
        if count > 1:
            raise CannotReplay("inputs_embeds: several pictures")
        model = MobileVLM(
            parts.config, parts.vision, parts.projector, parts.decoder, parts.decoder_ops, _no_tokenizer
        )
        return model.embed(ids.tolist(), [self["projector.output"]] * count)[0]

    def _layer(self, i: int, x: np.ndarray, name: str, parts: Parts) -> None:
        cache = Cache(parts, len(x), len(x), self.dtype)
        watch = Follower(self, "decoder.", name, parts, shift=i)
        self._until(watch, decoder.forward, x, _only(parts.decoder, i), parts.config.decoder, cache,
                    parts.decoder_ops, watch)  # fmt: skip

    def _decode(self, name: str, parts: Parts) -> None:
        """Generated ids through the cache, one at a time, layer by layer; the prompt is in the cache."""
        ids = parts.feed(self)
        extra = len(ids) - len(self["generated_ids"])
        x: np.ndarray = parts.decoder.embed_tokens(ids).astype(self.dtype)  # (n, D)
        layers = len(parts.decoder.layers)
        for i in range(1 if name == "decode.hidden_states.1" else layers):
            own = self.parts("decode", i)
            keys, values = self[f"decoder.keys.{i}"], self[f"decoder.values.{i}"]
            T = keys.shape[1]
            cache = Cache(own, T + len(x), T, self.dtype)
            cache.keys.numbers[0, :, :T], cache.values.numbers[0, :, :T], cache.length = keys, values, T
            rows = []
            for row in x:
                watch = Follower(None, "", f"hidden_states.{i + 1}", own, shift=i)
                self._until(watch, decoder.forward, row[None], _only(own.decoder, i), own.config.decoder,
                            cache, own.decoder_ops, watch)  # fmt: skip
                rows.append(watch.value)
                cache.length = T + len(rows)  # the run has stopped before it would say so
            x = np.concatenate(rows)
            if i == 0 and layers > 1:
                self._keep("decode.hidden_states.1", x[extra:])
                self.trail["decode.hidden_states.1"] = set(self._open[-1])
                x = np.concatenate([x[:extra], self["decode.hidden_states.1"]])
        x = x[extra:]
        if layers == 1 and name == "decode.hidden_states.1":
            self._keep(name, x)
        elif name == "decode.logits":
            self._keep(name, parts.decoder.lm_head(x))


class _Reached(Exception):
    """The stage that was asked for has been computed."""


class Follower:
    """Watches the forward pass from inside: makes the edits of `parts`, puts given stages in the place of
    computed ones, and stops the run at the target. A layer of the decoder, run on its own, calls itself
    layer 0: `shift` is its number.
    """

    def __init__(self, replay: Replay | None, prefix: str, target: str, parts: Parts, shift: int = 0):
        self.replay, self.prefix, self.target, self.parts, self.shift = replay, prefix, target, parts, shift
        self.value = np.empty(0, np.float32)

    def __call__(self, name: str, array: np.ndarray) -> None:
        if self.shift or self.prefix != "projector.":
            kind, _, number = name.rpartition(".")
            name = f"{kind}.{int(number) + self.shift}"
        name = self.prefix + name
        if self.replay is not None and not (name.startswith("decoder.hidden") and name != self.target):
            if name in self.parts.edits:
                array[...] = self.parts.edits[name](np.array(array), self.replay.found)
            self.replay.found[name] = np.array(array)
            self.replay.trail[name] = set(self.replay._open[-1])
        if name == self.target:
            self.value = np.array(array)
            raise _Reached
        if self.replay is not None and name in self.replay.given:
            given = self.replay.given[name]
            if given.shape != array.shape:
                raise CannotReplay(f"{name}: {given.shape} where {array.shape} is computed")
            array[...] = given


class Cache(KVCache):
    """The cache of one layer, with the positions of `parts`, in float64 where that is asked for."""

    def __init__(self, parts: Parts, capacity: int, prompt: int, dtype: type):
        super().__init__(replace(parts.config.decoder, num_hidden_layers=1), capacity, dtype)
        self._positions, self.prompt = parts.positions, prompt

    def positions(self, T: int) -> np.ndarray:
        return self._positions(self.length, T, self.prompt)

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Ops) -> np.ndarray:
        """By `ops.attention`, which mistakes may replace."""
        stop = self.length + q.shape[1]
        keys, values = self.keys.numbers[i], self.values.numbers[i]
        keys[:, self.length : stop], values[:, self.length : stop] = k, v
        return ops.attention(q, keys[:, :stop], values[:, :stop], causal=True)


def _only(weights: DecoderWeights, i: int) -> DecoderWeights:
    """The decoder's layer i alone. The last one is followed by the final norm; any other one by a layer that
    is not reached, whose input is what counts."""
    layer = weights.layers[i]
    last = i == len(weights.layers) - 1
    return replace(weights, layers=[layer] if last else [layer, layer])


def _no_tokenizer() -> Any:
    raise CannotReplay("there is no tokenizer here")
