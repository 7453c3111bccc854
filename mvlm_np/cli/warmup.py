"""Compiles every kernel for this CPU ahead of time, so that no answer has to wait for it.

Machine code is kept in the cache folder; what is there already is only loaded. Exits with 1 if it cannot be
kept there.

example:
  mvlm warmup
"""

import argparse
import sys
from time import perf_counter


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print each kernel, and the seconds it took")


def run(args: argparse.Namespace) -> int:
    import json

    from mvlm_np import backend
    from mvlm_np.cli.progress import bar

    start, rows = perf_counter(), []
    kernels = backend.all_kernels()
    with bar("compile", len(kernels)) as progress:
        for kernel in kernels:
            progress.set_postfix_str(kernel.name, refresh=False)
            began = perf_counter()
            hits = sum(kernel.compiled.stats.cache_hits.values())
            rows.append({"name": kernel.name, "loaded": hits > 0, "seconds": perf_counter() - began})
            progress.update()
    cache = backend.about_kernels()["cache"]
    loaded = sum(row["loaded"] for row in rows)
    kept = cache["writable"] or loaded == len(rows)
    folder = cache["folder"] if kept else None
    result = {"kernels": rows, "seconds": perf_counter() - start, "folder": folder}
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    else:
        print(f"{len(rows) - loaded} kernels compiled, {loaded} loaded, in {result['seconds']:.1f} s")
        print(f"kept in {folder}" if kept else "not kept: `mvlm doctor` says why")
    return 0 if kept else 1
