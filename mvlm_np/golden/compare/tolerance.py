"""How far a healthy candidate may lie from the golden, stage by stage and precision class by class.

An error is measured twice: as `rms`, the Euclidean norm of the difference over that of the golden's stage,
and as `relative`, the largest difference over the golden's largest magnitude. The first is steady, since it
averages over thousands of roundings; the second sees a fault that is confined to one number.

**With a rounding floor.** A golden recorded with --float64 knows for each stage how far the float32 run lies
from the float64 run of the same weights. That floor carries the network's own amplification of rounding,
which differs from model to model and from stage to stage, so no assumption about depth is needed. Another
sound float32 implementation differs from the golden by more than the floor for two reasons. Its errors and
the golden's are independent and add up: sqrt(2). And it may sum in another order: the rms error of a plain
loop over K products grows like sqrt(K), that of a BLAS which sums in blocks does not; measured, the loop is 2
times as far off at K = 1024, 4 times at 5632 and 5.4 times at 11008, the longest sum of the family.
sqrt(1 + 5.4^2) = 5.5; `MARGIN` is 8. Some positions are far more sensitive than others, so a stage of few
positions (a decode step has one) is less steady: of T positions, the margin is 1 + `SPREAD` / sqrt(T) times
as wide.

**Precision classes.** The golden holds the distance of such runs as well: every weight and every result
rounded to float16 or bf16, with sums in float32; matrices in int8 or int4 with activations in int8, as
`mvlm convert` makes them. Implementations of a class differ in where they round and how they choose scales
(max/7 or max/8 for int4, say, or activations left in float), by less than a factor of 2 in either direction;
`CLASS_MARGIN` is 4. The largest difference, an extreme value, is less steady, and has `MARGIN` here too. A
class admits everything that a finer one does: an int4 port with a float16 vision tower is in the class int4.
int4 is 4 bits in groups of 32, with minima (Q4_K) or without (Q4_0). Of the two the golden holds the second,
which is the coarser: with minima a run is off by 0.82 to 0.89 times as much.

int8-static is what compilers for NPUs make: every weight and every result of an operation on 256 even steps,
one scale and zero point for a whole tensor, ranges known beforehand from calibration. Pixels and the patch
embedding are quantised too, which int8 above leaves as they are. The golden's run takes the ranges of its own
tensors. ONNX Runtime's quantiser, weights per tensor, was 0.6 to 3 times as far off as that run on three
models.

**Without such runs** a class's floor is the float32 floor times `FACTORS`. float16 has 2^13 times the unit
roundoff of float32, but rounds a value that comes out of a product only about 3 times (weight, activation,
result), sqrt(3) in rms, where a float32 sum of blocks accumulates about 7 roundings' worth: 2^13 sqrt(3) / 7
= 2^11. bf16 has 2^3 times float16's unit. Rounding weights and activations to int8 in groups of 32 changes a
product by 1.4 %, against 4e-7 in float32: 2^15. int4 has steps 16 times as wide, in weights alone:
2^15 * 16 / sqrt(2), about 2^18. Static int8 was 2 to 4 times as far off as int8 in groups: 2^17.

**Without any floor** (goldens that were not recorded with --float64) the house bounds hold: 5e-5 for a chain
as a whole, and within it no stage's rms may be more than `GROWTH` times the error that it was handed, plus
2e-6, what one stage adds by itself. The largest growth from one stage to the next, measured on all goldens,
is 3.5. Models that amplify rounding more than the goldens do need floors: of 200 random models 5 did.

**Pixels** are no matter of precision: no class excuses a picture that was prepared in another way. Whatever
the class, its pixel values lie within `PIXEL_RMS` and `PIXEL_WORST` grey levels of the golden's. Rounding to
bf16 moves one by 0.53 levels at most, 256 even steps over the range of normalised pixels by 0.55; a picture
that is a grey level off somewhere is beyond that.

A bound of 1 or more in rms says that rounding alone may leave nothing of the stage: it is not judged, unless
it happens to be near.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod, sqrt

import numpy as np

from mvlm_np.golden.format import Floors, Golden
from mvlm_np.golden.layout import rows
from mvlm_np.golden.measure import TINY
from mvlm_np.golden.precision import STATIC

CLASSES = ("float32", "float16", "bf16", "int8", "int4", STATIC)
ADMITTED = {kind: CLASSES[: i + 1] for i, kind in enumerate(CLASSES)}  # whatever those before it do
ADMITTED[STATIC] = ("float32", "float16", "bf16", "int8", STATIC)
FACTORS = {"float32": 1, "float16": 2**11, "bf16": 2**14, "int8": 2**15, "int4": 2**18, STATIC: 2**17}

PIXELS = "pixel_values"
CLIP_LEVEL = 1 / 255 / 0.26130258  # of green, whose deviation is the smallest, so its level is the largest
MARGIN, CLASS_MARGIN, SPREAD = 8, 4, 4
U = 2.0**-24  # unit roundoff of float32
LAST = (4 * U, 16 * U)  # rms, relative: of a stage's last operations, where the floor happens to be low
PIXEL_RMS, PIXEL_WORST = 0.4, 0.75  # grey levels
CHAIN = 5e-5
ALONE = 2e-6  # rms: what one stage adds by itself
GROWTH = 4  # of an error from one stage to the next, at most
ALIKE = 0.6  # rms below which two stages are the same thing, if a noisy one: a cosine of 0.8


@dataclass(frozen=True)
class Bound:
    """What a healthy stage stays under: see `Distance` for the two measures.

    own_rms  without a floor: what the stage may add to `GROWTH` times the error before it
    """

    rms: float
    relative: float
    own_rms: float = inf

    @property
    def judges(self) -> bool:
        """Whether a sound candidate is sure to resemble the golden at all."""
        return self.rms < 1

    def admits(self, rms: float, relative: float) -> bool:
        """Whether a candidate with these errors is right. Whatever the bound, it must resemble the golden."""
        return rms <= min(self.rms, ALIKE) and relative <= self.relative

    def grown_from(self, rms: float, steps: int = 1) -> "Bound":
        """The bound for a candidate that had this error so many stages before this one."""
        for _ in range(steps):
            rms = min(self.rms, GROWTH * rms + self.own_rms)
        return Bound(rms, self.relative)


def bounds(golden: Golden, kind: str = "float32") -> Mapping[str, Bound]:
    """The bound of every stage for candidates of a class (one of `CLASSES`)."""
    found = {name: bound(golden.floors, name, kind, rows(name, golden.shape(name))) for name in golden.names}
    if PIXELS in found:
        found[PIXELS] = _in_grey_levels(golden, found[PIXELS])
    return found


def _in_grey_levels(golden: Golden, bound: Bound) -> Bound:
    """No wider than rounding moves pixels."""
    level = grey_level(golden)
    if (kept := golden.sketches.get(PIXELS)) is not None:
        size, peak = kept.norm / sqrt(prod(kept.shape)), kept.peak
    else:
        pixels = golden.stages[PIXELS]
        size, peak = float(np.sqrt(np.square(pixels, dtype=np.float64).mean())), float(np.abs(pixels).max())
    rms, relative = PIXEL_RMS * level / max(size, TINY), PIXEL_WORST * level / max(peak, TINY)
    return Bound(min(bound.rms, rms), min(bound.relative, relative), min(bound.own_rms, rms))


def grey_level(golden: Golden) -> float:
    """How far two neighbours of the 256 values of a pixel lie apart, normalised: the least distance between
    different values of a channel, or CLIP's where the picture has no neighbours."""
    if PIXELS not in golden.stages:
        return CLIP_LEVEL
    steps = [np.diff(np.unique(channel)) for channel in golden.stages[PIXELS]]
    return min([CLIP_LEVEL, *(float(s[s > CLIP_LEVEL / 100].min(initial=CLIP_LEVEL)) for s in steps)])


def bound(floors: Floors, name: str, kind: str, T: int) -> Bound:
    """The bound of one stage, which has T positions."""
    if kind == "int4" and not name.startswith(("decode", "logits")):
        kind = "int8"  # what the class keeps the vision tower and the projector in
    factor = FACTORS[kind]
    base = floors.get("float32", {}).get(name)
    if base is None:
        return Bound(CHAIN * factor, CHAIN * factor, ALONE * factor)
    rms, relative = 0.0, 0.0
    for finer in ADMITTED[kind]:
        recorded, scale = floors.get(finer, {}).get(name), FACTORS[finer]
        margin = float(MARGIN if finer == "float32" else CLASS_MARGIN)
        last = scale if finer in ("float32", "float16", "bf16") else 0
        if recorded is None:
            recorded, margin = (scale * base[0], scale * base[1]), float(MARGIN)
        spread = 1 + SPREAD / sqrt(T)
        rms = max(rms, spread * margin * recorded[0] + last * LAST[0])
        relative = max(relative, spread * MARGIN * recorded[1] + last * LAST[1])
    return Bound(rms, relative)
