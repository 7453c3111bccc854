"""Feeds what a golden holds to the graphs of `mvlm export --dump` in any runtime, and collects the stages.

The vision graph gets the golden's pixel values, the decoder its embeddings, and then its generated ids one by
one: so each part is judged by itself.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from mvlm_np.golden.format import Golden

Arrays = Mapping[str, np.ndarray]


class Session(Protocol):
    """A graph that a runtime has loaded.

    inputs  {name: zeros of its shape and type}
    """

    inputs: Arrays

    def __call__(self, inputs: Arrays) -> Arrays: ...


def decoder_file(folder: Path) -> Path:
    """The decoder's graph with the most positions a call."""
    return max(folder.glob("decoder-*.onnx"), key=lambda path: int(path.stem.partition("-")[2]))


def vision_stages(session: Session, golden: Golden) -> dict[str, np.ndarray]:
    """From the pixel values to the picture's tokens, without batch axis."""
    (name,) = session.inputs
    if name != "pixel_values":
        raise SystemExit(f"the vision graph takes {name}; export it without --input uint8 for a dump")
    pixels = golden.stages["pixel_values"][None].astype(session.inputs[name].dtype)
    return {stage: array[0] for stage, array in session({name: pixels}).items()}


def decoder_stages(session: Session, golden: Golden, folder: Path) -> dict[str, np.ndarray]:
    """From the embeddings to the logits of the prompt, then of each generated id; without batch axis.

    folder  that of the graph, which holds embed_tokens.npy too
    """
    cache = {name: zeros.copy() for name, zeros in session.inputs.items() if name.startswith("past.")}
    x, ids = golden.stages["inputs_embeds"], golden.stages["generated_ids"]
    table = np.load(folder / "embed_tokens.npy", mmap_mode="r")
    stages = _forward(session, x, 0, cache)
    steps = [_forward(session, table[ids[k : k + 1]], len(x) + k, cache) for k in range(len(ids))]
    for name, stage in (
        ("decode.logits", "logits"),
        ("decode.hidden_states.1", "decoder.hidden_states.1"),
    ):
        stages[name] = np.concatenate([step[stage] for step in steps])
    return stages


def all_stages(run: Callable[[Path], Session], folder: Path, golden: Golden) -> dict[str, np.ndarray]:
    """Every stage that the graphs in a folder give for a golden's inputs.

    run  makes a runtime's session of a graph's file
    """
    vision, decoder = run(folder / "vision.onnx"), run(decoder_file(folder))
    return {**vision_stages(vision, golden), **decoder_stages(decoder, golden, folder)}


def _forward(
    session: Session, x: np.ndarray, position: int, cache: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The stages of the next T positions, x (T, D); the cache holds them afterwards."""
    filled = session.inputs["inputs_embeds"].copy()
    rows, parts = filled.shape[1], list[dict[str, np.ndarray]]()
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        filled[0, : len(part)] = part
        at = np.full_like(session.inputs["position"], position + start)
        found = session({"inputs_embeds": filled, "position": at, **cache})
        parts.append({name: array[0, ..., : len(part), :] for name, array in found.items()})
        for name, stored in cache.items():
            new = found[name.replace("past", "decoder")][:, :, : len(part)]
            stored[:, :, position + start : position + start + len(part)] = new
    return {name: np.concatenate([part[name] for part in parts], axis=-2) for name in parts[0]}
