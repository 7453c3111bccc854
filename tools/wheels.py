"""Builds the wheels: one for each machine, with libraries of compiled kernels, and one for any, without.

    python tools/wheels.py dist
    python tools/wheels.py dist --machine aarch64
    python tools/wheels.py --library avx2              one library; prints its path. May be repeated
    python tools/wheels.py --library host              the one for this CPU

Everything is compiled on one machine: by Numba, for each instruction set of x86-64 and ARM, and linked by zig
(`pip install ziglang`). The same sources, Numba and zig give the same bytes, wherever and whenever a wheel is
built.

Libraries are kept in .cache/libraries, in a folder that is named for the sources that they are made of. Those
that are there are taken.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from mvlm_np.kernels.library import target
from mvlm_np.kernels.targets import TARGETS
from tools.parts.wheels import MACHINES, libraries, wheels


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", nargs="?", type=Path, help="where the wheels go")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="this one's and the plain one")
    parser.add_argument(
        "--library", action="append", choices=[*TARGETS, "host"], help="build this, and no wheel"
    )
    args = parser.parse_args(arguments)
    if (args.folder is None) == (args.library is None):
        parser.error("name either a folder for the wheels or a library")
    try:
        wanted = [target()[0] if name == "host" else name for name in args.library or []]
        machines = args.machine or MACHINES
        for path in libraries(wanted) if wanted else wheels(args.folder, machines):
            print(path)
    except UserError as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
