"""Mistakes with the type that numbers are computed in."""

from collections.abc import Iterator

from mvlm_np.golden.explain.changes import everything_in, products_in
from mvlm_np.golden.explain.mistake import Variant, mistake
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.precision import HALVES, to_bf16, to_float16, to_tf32

NAMES = {"bf16": "bfloat16", "float16": "float16"}
# What matrices are multiplied with -> rounding to it, and the class that it is in. TF32 has float16's digits.
PRODUCTS = {
    "bfloat16": (to_bf16, "bf16"),
    "float16": (to_float16, "float16"),
    "TF32": (to_tf32, "float16"),
}
OF_VISION = ("pixels", "embed", "block", "project")


@mistake(
    stage="vision.hidden_states.0",
    what="numbers are computed, or dumped, in 16 bits",
    mend="if the port is to compute so, compare with --class bf16 or float16; else ask the runtime for "
    "float32: many take less where the chip has it, and do not say so",
)
def half_precision(scene: Scene) -> Iterator[Variant]:
    seen = OF_VISION if scene.parts.vision else ()
    for name, to in HALVES.items():
        for step in (*seen, "embeds", "layer", "logits", "decode"):
            detail = f"everything in {NAMES[name]}"
            yield Variant(step, everything_in(to), detail, rounds=True, half=name)
    for name, (to, half) in PRODUCTS.items():
        for step in (*seen[1:], "layer", "logits", "decode"):
            detail = f"what matrices are multiplied with in {name}"
            yield Variant(step, products_in(to), detail, rounds=True, half=half)
