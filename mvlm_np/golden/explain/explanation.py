"""Names the mistakes that reproduce what a candidate computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.explain.findings import Finding
from mvlm_np.golden.explain.mistake import Mistake
from mvlm_np.golden.explain.parts import Parts
from mvlm_np.golden.explain.scene import aligned, make_scene
from mvlm_np.golden.explain.search import Progress, Search
from mvlm_np.golden.format import Golden
from mvlm_np.golden.precision import PACKED, ROUNDINGS, rounded
from mvlm_np.loading import load
from mvlm_np.model import MobileVLM

ROOTS = ("pixel_values", "input_ids", "generated_ids")
SUBTLE = 3  # times closer a mistake must come where the candidate lies within the bounds


@dataclass(frozen=True)
class Explanation:
    """What is wrong with a candidate, and why.

    comparison  with the golden
    findings    in the order of the stages; empty for a right candidate
    invisible   for a right candidate: mistakes that the golden cannot show in the stages given
    notes       what a reader should know, a line each
    """

    comparison: Comparison
    findings: list[Finding]
    invisible: list[Mistake]
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
    scene = make_scene(model, golden, aligned(golden, candidate), image, spare or {})
    roots = {name: golden.stages[name] for name in ROOTS if name in golden.stages}
    in_class = Parts.of(yardstick, scene.parts.pixels, scene.parts.ids) if yardstick is not None else None
    search = Search(scene, roots, in_class, progress)
    findings, notes = search.findings(), []
    if scene.picture is None and model.vision is not None:
        notes.append(
            "The picture was not found beside the golden: mistakes in preparing it were not tried "
            "(--image gives it)."
        )
    if result.right:
        # Within the bounds a fault can still be certain: if a mistake reproduces it to the last bits.
        findings = [f for f in findings if f.exact and f.causes and f.error < f.before / SUBTLE]
    invisible = search.invisible() if result.right and not findings else []
    if scene.picture is None:
        invisible = [m for m in invisible if m.stage != "pixel_values"]
    return Explanation(result, findings, invisible, notes)


def in_class(kind: str, model: MobileVLM, load_arguments: Mapping[str, Any]) -> MobileVLM | None:
    """The yardstick of a precision class for `explain`; None for float32."""
    if kind in ROUNDINGS:
        return rounded(model, ROUNDINGS[kind])
    return load(**{**load_arguments, "precision": PACKED[kind]}) if kind in PACKED else None


def find_picture(golden: Golden) -> Path | None:
    """The golden's picture, beside it or one folder up."""
    name = golden.metadata.get("image")
    if golden.path is None or not name or Path(name).name != name:
        return None
    places = (golden.path.parent, golden.path.absolute().parent.parent)
    return next((place / name for place in places if (place / name).is_file()), None)
