"""Predicts how fast a Raspberry Pi 5 runs the products, from their machine code and LLVM's model of its core.

    python tools/mca.py              the table of docs/measurements.md

The loops of the products are compiled for the Cortex-A76 (see `parts/product_loops`). llvm-mca of LLVM 19
then counts their cycles on the Neoverse N1: the A76's core, and the nearest that LLVM has a model of (asked
for cortex-a76, it takes the older A57). It assumes that all data are in the first-level cache. So this is a
prediction, and a bound: it leaves out attention, norms, and all waiting for memory but the plain reading of
the weights.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from mvlm_np.ops import GROUP
from tools.parts.assembly import Instruction
from tools.parts.random_checkpoint import shapes

# Raspberry Pi 5 (BCM2712): four Cortex-A76 of 2.4 GHz, LPDDR4X-4267 on a bus of 32 bits, says its maker.
CORES, CLOCK, PEAK = 4, 2.4e9, 4267e6 * 4
# What a decoder was seen to read there: the size of the weights times llama.cpp's tokens per second, on four
# cores, lay between 9.8 and 10.6 GB/s for five quantisations (issue 26484 of ggml-org/llama.cpp).
READ = 10e9

ROOT = Path(__file__).resolve().parents[1]
MODEL = "MobileVLM_V2-1.7B"
SDOT = 16  # products of one sdot
# The products of one token, and of a block of tokens.
DECODE, PROMPT, ENCODE = "int4_1x1", "int4_8x1", "int8_8x1"
PRODUCTS = (DECODE, "uint4_1x1", "int8_1x1", PROMPT, "uint4 with floats_8x1", ENCODE)


def rates(mca: str) -> dict[str, float]:
    """Multiply-adds per cycle of each product, on one core."""
    command = [sys.executable, "-m", "tools.parts.product_loops", "neon_dotprod"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError("the products", done.stderr.strip().splitlines()[-1])
    loops = json.loads(done.stdout)
    found = {}
    for name in PRODUCTS:
        loop = [Instruction(*pair) for pair in loops[name]]
        found[name] = SDOT * sum(i.op == "sdot" for i in loop) / cycles(loop, mca)
    return found


def cycles(trace: list[Instruction], mca: str) -> float:
    """How long the core takes for these instructions, again and again."""
    times = 100
    command = [mca, "-mtriple=aarch64-linux-gnu", "-mcpu=neoverse-n1", f"-iterations={times}", "-json"]
    text = "\n".join(map(str, trace))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]["TotalCycles"]) / times


def predictions(rates: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Lines of the table: what, and how fast."""
    wanted = shapes(MODEL)

    def weights(pattern: str) -> int:
        return sum(prod(s) for name, s in wanted.items() if re.match(pattern, name) and len(s) == 2)

    layers = weights(r"model\.layers\.")  # of a prompt, the last token alone meets lm_head
    all_weights = layers + weights("lm_head")
    nbytes = all_weights * (4 / 8 + 2 / GROUP)  # nibbles, and a float16 for each group
    # 23 of the tower's 24 layers are used, on 576 patches and the class token; not so the projector.
    tower = weights(r".*\.encoder\.layers\.(?!23\.)")
    encode = 577 * tower + 576 * weights(r".*\.mm_projector\.mlp")
    machine = CORES * CLOCK
    yield (
        "decode, int4-symmetric, tokens/s: as fast as weights are read",
        f"{READ / nbytes:.0f} to {PEAK / nbytes:.0f}",
    )
    yield (
        "decode, int4-symmetric, tokens/s: as fast as they are multiplied",
        f"{machine * rates[DECODE] / all_weights:.0f}",
    )
    yield "prompt, int4-symmetric, tokens/s", f"{machine * rates[PROMPT] / layers:.0f}"
    yield "image encode, int8, s", f"{encode / (machine * rates[ENCODE]):.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llvm-mca", default="llvm-mca-19", help="the program, of LLVM 19 (llvm-mca-19)")
    args = parser.parse_args(arguments)
    try:
        if not (mca := shutil.which(args.llvm_mca)):
            fix = "on Debian and Ubuntu: apt-get install llvm-19"
            raise UserError(args.llvm_mca, "is not installed", fix=fix)
        found = rates(mca)
    except UserError as error:
        print(f"mca: {error}", file=sys.stderr)
        return 2
    print("| product | multiply-adds a cycle, of 32 at most |\n| --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {value:.1f} |")
    print("\n| prediction for a Raspberry Pi 5 | |\n| --- | --- |")
    for what, figure in predictions(found):
        print(f"| {what} | {figure} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
