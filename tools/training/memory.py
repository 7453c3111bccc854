"""How much memory training takes, told from settings and tables of contents before a weight is read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from accelerate.utils.environment import get_cpu_distributed_information

from mvlm_np import memory
from mvlm_np.binder import VISION_TOWER
from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.errors import MemoryNeeded
from mvlm_np.loading import manifest
from mvlm_np.projector import image_tokens
from tools.training.loop import quick_precision
from tools.training.stages import Stage

LIBRARIES = 650_000_000  # torch, transformers and PEFT, before anything is loaded
PRECISIONS = {"float32": (4, 4), "mixed": (4, 2), "bf16": (2, 2)}  # bytes: of what is trained, and the rest


@dataclass(frozen=True)
class Run:
    """What of a run its memory depends on.

    precision      a key of PRECISIONS
    samples        that are computed at once, on one device
    ids            of the longest sample, its picture counted as one
    checkpointing  whether activations are computed twice instead of kept
    """

    checkpoint: Checkpoint
    stage: Stage
    precision: str = "float32"
    samples: int = 1
    ids: int = 2048
    checkpointing: bool = False

    def parts(self) -> dict[str, int]:
        """Bytes of each kind, when most of them is needed."""
        trained, frozen = self.counts()
        wide, narrow = PRECISIONS[self.precision]
        if self.stage.trains == "lora":
            wide = 4
        step = 3 * wide * trained
        copies = narrow * trained if self.precision == "mixed" else 0  # autocast's, in 16 bits
        if self.precision == "bf16" and quick_precision() == "no":  # see products.py
            decoder = self.checkpoint.config.decoder
            # The largest matrix and its gradient in float32, and what the allocator keeps of them.
            copies = 3 * 4 * decoder.vocab_size * decoder.hidden_size
        return {
            "weights": wide * trained + narrow * frozen + copies,
            "gradients and the optimizer's two averages": step,
            "activations": self.activations(),
            "libraries": LIBRARIES,
        }

    @property
    def bytes(self) -> int:
        return sum(self.parts().values())

    def counts(self) -> tuple[int, int]:
        """Numbers that are trained, and those that are not."""
        shapes, trains = manifest(self.checkpoint.config).shapes, self.stage.trains
        projector = sum(prod(s) for name, s in shapes.items() if "mm_projector" in name)
        tower = sum(prod(s) for name, s in shapes.items() if name.startswith(VISION_TOWER))
        decoder = sum(map(prod, shapes.values())) - projector - tower
        if trains == "all":
            return projector + decoder, tower
        if trains == "projector":
            return projector, tower + decoder
        linear = [
            s for name, s in shapes.items() if "_proj.weight" in name and name.startswith("model.layers.")
        ]
        return projector + sum(self.stage.rank * (N + K) for N, K in linear), tower + decoder

    def activations(self) -> int:
        """What the backward pass needs of the decoder, and the logits of as many positions as there are ids.

        Of a layer that is: two norms' inputs, in float32 and before, what goes into its products of matrices
        and comes out of them, and, with LoRA, what dropout leaves of the former. With checkpointing, it is
        each layer's input, and all of one layer.
        """
        config = self.checkpoint.config.decoder
        D, I, KV = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
        positions = self.samples * (self.ids - 1 + image_tokens(self.checkpoint.config))
        size = 4 if self.precision == "float32" else 2
        layer = 2 * D * (4 + 4 + size) + size * (6 * D + 4 * KV + 4 * I)
        if self.stage.trains == "lora" and self.stage.dropout:
            layer += (4 + 1) * (6 * D + I)  # in the adapter's float32, and the mask
        layers = config.num_hidden_layers
        kept = layer + layers * D * size if self.checkpointing else layer * layers
        logits = 3 * 4 * config.vocab_size * self.samples * self.ids
        return positions * kept + logits

    def smaller(self) -> Iterator[tuple[str, "Run"]]:
        """Ways to need less, the mildest first, and what to say for each."""
        halves = self
        while halves.samples > 1:
            halves = replace(halves, samples=halves.samples // 2)
            yield f"--micro-batch {halves.samples}", halves
        one = replace(self, samples=1)
        small = "--micro-batch 1 " if self.samples > 1 else ""
        if not self.checkpointing:
            yield f"{small}--checkpointing", replace(one, checkpointing=True)
        one, small = replace(one, checkpointing=True), f"{small}--checkpointing "
        if self.stage.trains == "all":
            lora = replace(one, stage=replace(self.stage, trains="lora"))
            yield f"{small}--stage lora", lora
            yield f"{small}--stage lora --precision bf16", replace(lora, precision="bf16")
        if self.precision != "bf16":
            yield f"{small}--precision bf16", replace(one, precision="bf16")


def require(run: Run, there: int | None = None) -> str:
    """One line on what the run needs, of which device's memory.

    there  bytes that are free; None: as this machine says

    MemoryNeeded: it is more than there is; the message names what would fit.
    """
    there = available() if there is None else there
    parts = ", ".join(f"{name} {memory.text(size)}" for name, size in run.parts().items())
    if there is None or run.bytes <= there:
        return f"needs {memory.text(run.bytes)} of memory: {parts}"
    fitting = next(((what, other) for what, other in run.smaller() if other.bytes <= there), None)
    least = min((other.bytes for _, other in run.smaller()), default=run.bytes)
    raise MemoryNeeded(
        run.checkpoint.path,
        f"training needs {memory.text(run.bytes)} of memory ({parts})",
        f"no more than the {memory.text(there)} that are free for each process",
        f"with {fitting[0]} it would take {memory.text(fitting[1].bytes)}"
        if fitting
        else f"the least that it can do with is {memory.text(least)}",
    )


def available() -> int | None:
    """Bytes that are free for this process: of its GPU, if there is one, else its part of this machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    there, processes = memory.available(), get_cpu_distributed_information().local_world_size
    return there and there // processes
