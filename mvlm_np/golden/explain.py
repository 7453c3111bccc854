"""Names the mistakes that reproduce what a candidate computed. The search is in `search`, the mistakes are in
`mistakes`; here is what they need of a model and a golden, and what is said of the result."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from mvlm_np import vision
from mvlm_np.checkpoints.binding import Loader, Manifest
from mvlm_np.checkpoints.folder import Checkpoint, find_tower, has_weights, read_weights, tower_weights
from mvlm_np.checkpoints.names import VISION, hugging_face
from mvlm_np.errors import TokenizerError, UserError
from mvlm_np.golden import report
from mvlm_np.golden.candidates import Candidate
from mvlm_np.golden.compare import Comparison, compare
from mvlm_np.golden.format import Golden, order
from mvlm_np.golden.layout import arrangements
from mvlm_np.golden.mistakes.base import Mistake, Scene
from mvlm_np.golden.pictures import Picture
from mvlm_np.golden.precision import rounded
from mvlm_np.golden.prompts import Prompt
from mvlm_np.golden.record import ROUNDINGS
from mvlm_np.golden.replay import CannotReplay, Parts
from mvlm_np.golden.search import Cause, Finding, Progress, Search, decibels, relative_error
from mvlm_np.inputs.conversation import render
from mvlm_np.linear import Norm
from mvlm_np.loading import load
from mvlm_np.model import MobileVLM
from mvlm_np.vision import VisionWeights

ROOTS = ("pixel_values", "input_ids", "generated_ids")
SUBTLE = 3  # times closer a mistake must come where the candidate lies within the bounds
ROUNDED = 2.0**-9  # the error that a few roundings to float16 leave


@dataclass(frozen=True)
class Explanation:
    """comparison  with the golden
    findings    in the order of the stages; empty for a right candidate
    blind       for a right candidate: mistakes that the golden cannot show in the stages given
    notes       what a reader should know, a line each
    """

    comparison: Comparison
    findings: list[Finding]
    blind: list[Mistake]
    notes: list[str]

    @property
    def right(self) -> bool:
        return self.comparison.right and not self.findings


def explain(
    model: MobileVLM,
    golden: Golden,
    candidate: Candidate,
    kind: str = "float32",
    image: object = None,
    spare: Mapping[str, Any] | None = None,
    yardstick: MobileVLM | None = None,
    progress: Progress = lambda: None,
) -> Explanation:
    """Compares, and finds the mistakes that reproduce what is wrong.

    model      in float32, on the backend "numpy"
    image      the golden's picture: a path, or what else `open_image` takes; None: mistakes in preparing it
               are not tried
    spare      weights that the model does not use but a port may, as `spare_weights` gives them
    yardstick  the model in the candidate's precision class, where that is not float32
    """
    result = compare(golden, candidate, kind)
    there = scene(model, golden, aligned(golden, candidate), image, spare or {})
    roots = {name: golden.stages[name] for name in ROOTS if name in golden.stages}
    in_class = _in(there.parts, yardstick) if yardstick is not None else None
    search = Search(there, roots, in_class, progress)
    findings, notes = search.findings(), []
    if there.picture is None and model.vision is not None:
        notes.append(
            "The picture was not found beside the golden: mistakes in preparing it were not tried "
            "(--image gives it)."
        )
    if result.right:
        # Within the bounds a fault can still be certain: if a mistake reproduces it to the last bits.
        findings = [f for f in findings if f.exact and f.causes and f.error < f.before / SUBTLE]
    blind = search.blind() if result.right and not findings else []
    if there.picture is None:
        blind = [m for m in blind if m.stage != "pixel_values"]
    return Explanation(result, findings, blind, notes)


def aligned(golden: Golden, candidate: Candidate) -> dict[str, np.ndarray]:
    """The candidate's stages as the reference has them: no batch axis, axes in order, raw files in shape."""
    stages = {}
    for name in sorted(set(candidate.stages) & set(golden.names), key=order):
        array, shape = np.asarray(candidate.stages[name]), golden.shape(name)
        whole = name in golden.stages and golden.stages[name].dtype.kind == "i"
        while array.ndim > len(shape) and len(array) == 1:
            array = array[0]
        if array.shape != shape:
            ways = [way for _, way in arrangements(shape, array)]
            if name in golden.stages and len(ways) > 1:
                ways.sort(key=lambda way: relative_error(way, golden.stages[name]))
            array = ways[0] if ways else array
        if array.ndim == len(shape):
            stages[name] = array.astype(np.int64 if whole else np.float32)
    return stages


def scene(
    model: MobileVLM,
    golden: Golden,
    stages: Mapping[str, np.ndarray],
    image: object,
    spare: Mapping[str, Any],
) -> Scene:
    """What there is to make mistakes with: the model, the golden's question, the picture if there is one."""
    picture = Picture.open(image, model.config.image) if image is not None and model.vision else None
    question, text = golden.metadata.get("question"), golden.metadata.get("prompt")
    prompt = None
    if question is not None:
        text = text if text is not None else render("v1", question, int(model.vision is not None))
        with suppress(TokenizerError):
            prompt = Prompt(model.tokenizer, question, text)

    def no_picture() -> np.ndarray:
        raise CannotReplay("the picture is not here")

    def ids() -> list[int]:
        if "input_ids" not in golden.stages:
            raise CannotReplay("the prompt is not here")
        return golden.stages["input_ids"].tolist()

    parts = Parts(
        config=model.config,
        vision=model.vision,
        projector=model.projector,
        decoder=model.decoder,
        pixels=picture or no_picture,
        ids=prompt or ids,
        vision_ops=model.ops,
        projector_ops=model.ops,
        decoder_ops=model.ops,
    )
    return Scene(parts, picture, prompt, spare, stages)


def _in(parts: Parts, model: MobileVLM) -> Parts:
    """The same made of another model."""
    ops = model.ops
    return replace(
        parts,
        vision=model.vision,
        projector=model.projector,
        decoder=model.decoder,
        vision_ops=ops,
        projector_ops=ops,
        decoder_ops=ops,
    )


def in_class(kind: str, model: MobileVLM, load_arguments: Mapping[str, Any]) -> MobileVLM | None:
    """The yardstick of a precision class for `explain`; None for float32."""
    if kind in ROUNDINGS:
        return rounded(model, ROUNDINGS[kind])
    return load(**{**load_arguments, "precision": kind}) if kind in ("int8", "int4") else None


def find_picture(golden: Golden) -> Path | None:
    """The golden's picture, beside it or one folder up."""
    name = golden.metadata.get("image")
    if golden.path is None or not name or Path(name).name != name:
        return None
    places = (golden.path.parent, golden.path.absolute().parent.parent)
    return next((place / name for place in places if (place / name).is_file()), None)


# ---------------------------------------------------------------- spare weights


def spare_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Weights in a model's files that the model does not use but a port may: `Scene.spare`."""
    config = checkpoint.config
    if config.vision is None:
        return {}
    norm = [checkpoint.tensors.get(f"{VISION}vision_model.post_layernorm.{p}") for p in ("weight", "bias")]
    found: dict[str, Any] = {}
    if norm[0] is not None and norm[1] is not None:
        found["post_layernorm"] = Norm(norm[0].float32(), norm[1].float32())
    with suppress(UserError):
        if (tower := _other_tower(checkpoint)) is not None:
            found["other_tower"] = tower
    return found


def _other_tower(checkpoint: Checkpoint) -> VisionWeights | None:
    """The vision weights that upstream's rule passes over; None where there is only one set."""
    config, path = checkpoint.config, checkpoint.path
    if config.vision is None or not path.is_dir():
        return None
    if config.vision_in_checkpoint:
        folder = find_tower(path, config.mm_vision_tower)
        if folder is None or not has_weights(folder):
            return None
        tensors = tower_weights(folder)
    else:
        tensors = read_weights(path)
    wanted, spelling = Manifest(), hugging_face(config.mm_projector_type)
    vision.bind(config.vision, wanted.at("vision"))
    theirs = {name: tensors[spelling(name)] for name in wanted.shapes if spelling(name) in tensors}
    if {name: tensor.shape for name, tensor in theirs.items()} != wanted.shapes:
        return None
    return vision.bind(config.vision, Loader(theirs, "float32").at("vision"))


# ---------------------------------------------------------------- what is said


def as_text(e: Explanation) -> str:
    """The verdict, each finding with what to mend, and what could not be seen."""
    lines = [report.summary(e.comparison)]
    if e.comparison.right and e.findings:
        lines.append("But a mistake reproduces to the last bits what lies within the bounds:")
    for finding in e.findings:
        lines += ["", *_finding(finding, e.comparison)]
    if not e.findings and not e.comparison.right:
        lines += ["", "Every stage follows from the one before it. The fault is in what goes in, or in "
                  "stages that were not given."]  # fmt: skip
    if e.blind:
        lines += ["", "Not distinguishable by this golden, in the stages given:"]
        lines += [f"  {m.id}: {m.what}. It would show in {m.shown}, at {m.stage}." for m in e.blind]
    return "\n".join([*lines, *(f"- {note}" for note in e.notes)])


def _finding(f: Finding, comparison: Comparison) -> list[str]:
    if not f.causes:
        place = next((s.where for s in comparison.stages if s.name == f.stage and s.where), "")
        where = f", at {place}" if place else ""
        return [
            f"{f.stage}: no known mistake comes closer than the reference ({_reached(f.before, f.cosine)}).",
            f"  What goes into it is not the reason: the fault is made in this step{where}.",
        ]
    how = "reproduced by" if f.exact else "best, but not wholly, explained by"
    if not f.exact and f.error < ROUNDED:
        how = "reproduced, but for what rounding to float16 would leave, by"
    lines = [f"{f.stage}: {how} {' + '.join(c.mistake.id for c in f.causes)}"]
    lines.append(f"  {_reached(f.error, f.cosine)}; without it {decibels(f.before):.1f} dB")
    for c in f.causes:
        detail = f" ({c.variant.detail})" if c.variant.detail else ""
        lines += [f"  {c.mistake.id}: {c.mistake.what}{detail}", f"    to mend it: {c.mistake.mend}"]
    for other in f.alternatives:
        named = " + ".join(c.mistake.id for c in other)
        lines.append(f"  {named} would look the same; it shows in {other[0].mistake.shown}.")
    return lines


def _reached(error: float, cosine: float) -> str:
    snr = decibels(error)
    return f"cosine {cosine:.6f}, {f'{snr:.1f} dB' if isfinite(snr) else 'exactly'}"


def as_json(e: Explanation) -> dict[str, Any]:
    """Everything, ready for `json.dump`: numbers that are not finite are null."""

    def cause(c: Cause) -> dict[str, Any]:
        return {
            "id": c.mistake.id,
            "what": c.mistake.what,
            "mend": c.mistake.mend,
            "detail": c.variant.detail,
            "layer": c.variant.layer,
        }

    def finite(x: float) -> float | None:
        return x if isfinite(x) else None

    findings = [
        {
            "stage": f.stage,
            "mistakes": [cause(c) for c in f.causes],
            "reproduced": bool(f.causes) and (f.exact or f.error < ROUNDED),
            "cosine": f.cosine,
            "snr": finite(f.snr),
            "snr_of_the_reference": finite(decibels(f.before)),
            "alternatives": [[c.mistake.id for c in other] for other in f.alternatives],
        }
        for f in e.findings
    ]
    return {
        "right": e.right,
        "first_wrong": e.comparison.first_wrong.name if e.comparison.first_wrong else None,
        "mistakes": list(dict.fromkeys(c.mistake.id for f in e.findings if f.believed for c in f.causes)),
        "findings": findings,
        "not_distinguishable": [{"id": m.id, "shown_by": m.shown, "stage": m.stage} for m in e.blind],
        "notes": e.notes,
        "comparison": report.as_json(e.comparison),
    }
