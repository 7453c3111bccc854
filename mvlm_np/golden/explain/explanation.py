"""Names the mistakes that reproduce what a candidate computed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from mvlm_np.checkpoints.record import sha256
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import Comparison, compare
from mvlm_np.golden.compare.tolerance import ADMITTED
from mvlm_np.golden.compare.verdict import MISPLACED
from mvlm_np.golden.explain.findings import Finding, Unseen
from mvlm_np.golden.explain.parts import Parts
from mvlm_np.golden.explain.scene import aligned, make_scene
from mvlm_np.golden.explain.search import Progress, Search
from mvlm_np.golden.format import Golden
from mvlm_np.golden.precision import PACKED, ROUNDINGS, rounded
from mvlm_np.loading import load
from mvlm_np.model import MobileVLM

ROOTS = ("pixel_values", "input_ids", "generated_ids")
WIDE = 1024  # from this width on the threads of a matrix product are worth it
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
    invisible: list[Unseen]
    notes: list[str]

    @property
    def right(self) -> bool:
        return self.comparison.right and not self.findings

    @property
    def main(self) -> Finding | None:
        """What was found at the first wrong stage, or else the first thing that was found."""
        first = self.comparison.first_wrong
        at = (f for f in self.findings if first is not None and f.stage == first.name.removesuffix(".tail"))
        return next(at, self.findings[0] if self.findings else None)


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
    # Two threads are slower than one where matrices are small: they wait for each other.
    with threadpool_limits(1 if model.config.decoder.hidden_size < WIDE else None):
        return _explain(model, golden, candidate, result, image, spare or {}, yardstick, progress)


def _explain(
    model: MobileVLM,
    golden: Golden,
    candidate: Candidate,
    result: Comparison,
    image: object,
    spare: Mapping[str, Any],
    yardstick: MobileVLM | None,
    progress: Progress,
) -> Explanation:
    roots = {name: golden.stages[name] for name in ROOTS if name in golden.stages}
    misplaced = [s.name for s in result.stages if s.verdict == MISPLACED]

    def look(positions_first: bool) -> tuple[Search, list[Finding]]:
        stages = aligned(golden, candidate, positions_first, misplaced)
        scene = make_scene(model, golden, stages, image, spare)
        in_class = Parts.of(yardstick, scene.parts.pixels, scene.parts.ids) if yardstick is not None else None
        search = Search(scene, roots, in_class, progress)
        return search, list(_half_once(f for f in search.findings() if _told(f, result)))

    search, findings = look(False)
    if not result.right and not any(f.exact and f.causes for f in findings) and _flat(golden, candidate):
        other = look(True)  # raw files may have their axes in another order, which a fault hides
        if any(f.exact and f.causes for f in other[1]):
            search, findings = other
    notes = []
    if search.scene.picture is None and model.vision is not None:
        notes.append(
            "The picture was not found beside the golden: mistakes in preparing it were not tried "
            "(--image gives it)."
        )
    elif not _same_picture(golden, image):
        notes.append(
            f"{image} is another file than the golden's picture {golden.metadata.get('image', '')!r}."
        )
    if search.ended:
        notes.append(
            f"The search ended with {search.ended}: it, and what is wrong before it, is like nothing that is "
            "known. Look whether these are the golden's weights, or mend the first fault and look again."
        )
    invisible = search.invisible() if result.right and not findings else []
    if search.scene.picture is None:
        invisible = [unseen for unseen in invisible if unseen.mistake.stage != "pixel_values"]
    if result.kind != "float32":  # whose class allows for it
        invisible = [unseen for unseen in invisible if unseen.id != "half-precision"]
    return Explanation(result, findings, invisible, notes)


def _told(f: Finding, result: Comparison) -> bool:
    """Whether a finding is told: that of a stage which is wrong, or one that is certain. Within the bounds a
    fault is certain if a mistake reproduces it to the last bits."""
    wrong = {s.name.removesuffix(".tail") for s in result.stages if s.failed or s is result.first_wrong}
    if f.stage in wrong:
        return True
    faults = [c for c in f.causes if c.variant.half not in ADMITTED[result.kind]]  # and not what the class is
    return f.exact and bool(faults) and f.error < f.before / SUBTLE


def _half_once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings without the types of 16 bits that an earlier one has named."""
    named = set[str]()
    for f in findings:
        causes = tuple(c for c in f.causes if c.variant.half not in named)
        named |= {c.variant.half for c in causes} - {""}
        if causes or not f.causes:
            yield replace(f, causes=causes)


def _flat(golden: Golden, candidate: Candidate) -> bool:
    """Whether a stage with several axes has come without a shape."""
    names = set(candidate.stages) & set(golden.names)
    return any(candidate.stages[name].ndim == 1 and len(golden.shape(name)) == 3 for name in names)


def _same_picture(golden: Golden, image: object) -> bool:
    """Whether a picture's file is the golden's; so it is assumed to be where that is not on record."""
    wanted = golden.metadata.get("image_sha256")
    return wanted is None or not isinstance(image, Path) or sha256(image) == wanted


def in_class(kind: str, model: MobileVLM, load_arguments: Mapping[str, Any]) -> MobileVLM | None:
    """The yardstick of a precision class for `explain`; None for float32."""
    if kind in ROUNDINGS:
        return rounded(model, ROUNDINGS[kind])
    return load(**{**load_arguments, "precision": PACKED[kind]}) if kind in PACKED else None


def find_picture(golden: Golden, *near: Path) -> Path | None:
    """The golden's picture: beside it or one folder up, beside one of the files `near`, or in the folder that
    one works in. If the golden has a fingerprint of it, a file that merely has its name is passed over."""
    name = golden.metadata.get("image")
    if golden.path is None or not name or Path(name).name != name:
        return None
    files = [path.absolute() for path in (golden.path, *near)]
    places = [
        files[0].parent,
        files[0].parent.parent,
        *(f if f.is_dir() else f.parent for f in files[1:]),
        Path(),
    ]
    there = [place / name for place in places if (place / name).is_file()]
    return next((path for path in there if _same_picture(golden, path)), None)
