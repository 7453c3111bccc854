"""The two graphs of a model: from a picture to its tokens, and from embeddings to logits.

Both are the model's own forward pass (`vision`, `projector`, `decoder`), run on symbols. So a graph computes
what the model computes, and its outputs have the names of the stages in a golden.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mvlm_np import decoder, projector, vision
from mvlm_np.binder import Binder
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.export.graph import Finished, Graph, Symbol, Weight
from mvlm_np.export.operations import Operations, Positions
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Watch

# Added to the scores of positions that must not be seen: exp makes 0 of it. float16 holds it.
UNSEEN = -30000.0


@dataclass(frozen=True)
class Form:
    """How the graphs are written.

    opset       version of ONNX's operations
    dtype       of all weights and numbers: "float32" or "float16"
    gelu        "erf", "op" or "tanh", see `Operations`
    layer_norm  "op" or "steps", see `Operations`
    input       of the picture: "float", normalised planes; or "uint8", 8-bit RGB, pixel by pixel
    dump        whether every stage is an output
    """

    opset: int = 17
    dtype: str = "float32"
    gelu: str = "erf"
    layer_norm: str = "op"
    input: str = "float"
    dump: bool = False

    def begin(self, name: str) -> tuple[Graph, Any]:
        """An empty graph, and the operations that write to it."""
        graph = Graph(name, self.dtype, self.opset)
        return graph, Operations(graph, self.gelu, self.layer_norm)


class Symbolic(Binder):
    """Hands out weights as symbols."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.tensors = tensors

    def array(self, name: str, *shape: int) -> np.ndarray:
        """A `Weight`, which is all of an array that the forward pass needs."""
        return cast(np.ndarray, Weight(self.tensors[self.prefix + name], shape))


class Outputs(Watch):
    """Makes stages outputs of the graph: those that are wanted, or all."""

    def __init__(self, graph: Graph, wanted: Collection[str], everything: bool):
        super().__init__()
        self.graph, self.wanted, self.everything = graph, wanted, everything

    def __call__(self, name: str, array: np.ndarray) -> None:
        if self.everything or name in self.wanted:
            self.graph.outputs[name] = cast(Symbol, array)


def tower(config: Config, tensors: Mapping[str, Tensor], form: Form) -> Finished:
    """Vision tower and projector.

    pixel_values (1, 3, s, s), or picture (1, s, s, 3) in uint8 -> projector.output (1, tokens, D)
    """
    assert config.vision is not None
    graph, ops = form.begin("vision")
    watch, side = Outputs(graph, ["projector.output"], form.dump), config.vision.image_size
    if form.input == "uint8":
        picture = graph.input("picture", side, side, 3, dtype="uint8")
        levels = graph.cast(picture, "float32") * (1 / 255)
        normal = (levels - np.array(config.image.mean)) / np.array(config.image.std)
        pixels = graph.cast(normal, form.dtype).transpose(2, 0, 1)
        watch("pixel_values", cast(Any, pixels))
    else:
        pixels = graph.input("pixel_values", 3, side, side)
    get, none = Symbolic(tensors), cast(Any, None)
    weights = vision.bind(config.vision, get), projector.bind(config, get)
    model = MobileVLM(config, *weights, decoder=none, ops=ops, open_tokenizer=none)
    for _ in model.encoding(cast(Any, pixels), watch):
        pass  # `watch` has it
    return graph.finish()


def language_model(
    config: DecoderConfig, tensors: Mapping[str, Tensor], form: Form, rows: int, capacity: int
) -> Finished:
    """The decoder for `rows` positions a call, behind up to `capacity` earlier ones.

    inputs_embeds (1, rows, D), position (1, 1): how many positions came before; past.keys.i, past.values.i
    (1, KV, capacity, d) -> logits (1, rows, vocabulary), decoder.keys.i, decoder.values.i (1, KV, rows, d)
    """
    graph, ops = form.begin("decoder")
    layers = range(config.num_hidden_layers)
    stored = [f"decoder.{what}.{i}" for i in layers for what in ("keys", "values")]
    watch = Outputs(graph, ["logits", *stored], form.dump)
    x = graph.input("inputs_embeds", rows, config.hidden_size)
    cache = FixedCache(graph, config, rows, capacity)
    weights = decoder.bind(config, Symbolic(tensors))
    h = decoder.forward(cast(Any, x), weights, config, cast(Any, cache), ops, watch.within("decoder"))
    watch("logits", weights.lm_head(h))
    return graph.finish()


class FixedCache:
    """A key-value cache that lies outside the graph, with a fixed number of places.

    The caller stores what a call gives of keys and values behind what it has. Places that are not filled yet
    are not seen; they must hold finite numbers.
    """

    def __init__(self, graph: Graph, config: DecoderConfig, rows: int, capacity: int):
        self.graph, self.rows, self.capacity = graph, rows, capacity
        self.position = graph.input("position", 1, dtype="int64")
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        self.past = [
            [graph.input(f"past.{what}.{i}", *shape) for what in ("keys", "values")]
            for i in range(config.num_hidden_layers)
        ]

    def positions(self, T: int) -> Positions:
        """Positions of the rows, also of those that only fill up a last call, behind the capacity's end."""
        return Positions(self.position + np.arange(T), self.capacity + T)

    def attend(self, i: int, q: Symbol, k: Symbol, v: Symbol, ops: Operations) -> Symbol:
        """Attention of the new rows to what layer i has stored, and to each other: (H, T, d)."""
        keys, values = self.past[i]
        (H, T, d), KV = q.shape, k.shape[0]
        q = (q * d**-0.5).reshape(KV, -1, d)  # (KV, G*T, d): one product per kv head
        before = q @ keys.transpose(0, 2, 1) + self._unfilled()  # (KV, G*T, capacity)
        among = q @ k.transpose(0, 2, 1) + self._later(H // KV)  # (KV, G*T, T)
        weights = ops.softmax(self.graph.concatenate([before, among], axis=-1))
        seen, S = weights.shape[-1], self.capacity
        out = weights.part(0, S, axis=-1) @ values + weights.part(S, seen, axis=-1) @ v
        return out.reshape(H, T, d)

    def _unfilled(self) -> Symbol:
        """For each place of the cache: 0, or what hides it."""
        filled = self.graph.elementwise("Greater", self.position, np.arange(self.capacity), dtype="bool")
        return self.graph.elementwise("Where", filled, 0.0, UNSEEN, dtype=self.graph.dtype)

    def _later(self, group: int) -> np.ndarray:
        """For each row and each other one: 0, or what hides later ones. (G*T, T)"""
        return np.tile(np.triu(np.full((self.rows, self.rows), UNSEEN), 1), (group, 1))

    def advance(self, T: int) -> None:
        """The caller does that."""
