"""Compiles every kernel for this CPU ahead of time, so that no answer has to wait for it.

Where there is a C compiler, a library of compiled kernels is built in the cache folder: from then on Numba is
not even imported. Elsewhere Numba keeps its machine code there; what is there already is only loaded. Exits
with 1 if nothing can be kept. Where the package has brought a library that fits there is nothing to do.

example:
  mvlm warmup
"""

import argparse
import sys
from time import perf_counter
from typing import Any


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print each kernel, and the seconds it took")


def run(args: argparse.Namespace) -> int:
    import json

    from mvlm_np import backend
    from mvlm_np.errors import UserError

    start, why = perf_counter(), None
    kernels = backend.all_kernels()
    rows: list[dict[str, Any]] = []
    library = backend.about_kernels()["library"]
    if library is None:
        try:
            library = str(_build([kernel.name for kernel in kernels], rows))
        except UserError as error:
            why = str(error)
            rows = _compile(kernels)
    cache = backend.about_kernels()["cache"]
    loaded = sum(row["loaded"] for row in rows)
    kept = library is not None or cache["writable"] or loaded == len(rows)
    folder = cache["folder"] if cache and kept else None
    seconds = perf_counter() - start
    result = {"kernels": rows, "seconds": seconds, "library": library, "no_library": why, "folder": folder}
    if args.json:
        json.dump(result, sys.stdout, indent=1)
        print()
    elif library and not rows:
        print(f"nothing to compile: {library} is in use")
    else:
        print(f"{len(rows) - loaded} kernels compiled, {loaded} loaded, in {seconds:.1f} s")
        if library:
            print(f"a library of them: {library}")
        else:
            print(f"kept in {folder}, for Numba to load" if kept else "not kept: `mvlm doctor` says why")
            print(f"no library: {why}")
    return 0 if kept else 1


def _build(names: list[str], rows: list[dict[str, Any]]) -> Any:
    """Builds the library; the rows grow as it does. UserError: it cannot be built."""
    from mvlm_np import backend
    from mvlm_np.cli.progress import bar

    with bar("compile", len(names)) as progress:
        began = perf_counter()

        def compiled(name: str) -> None:
            nonlocal began
            if name not in names:
                return  # what the threads run
            rows.append({"name": name, "loaded": False, "seconds": perf_counter() - began})
            began = perf_counter()
            progress.set_postfix_str(name, refresh=False)
            progress.update()

        return backend.build_library(names, compiled)


def _compile(kernels: list[Any]) -> list[dict[str, Any]]:
    """Lets Numba compile each kernel, or load it."""
    from mvlm_np.cli.progress import bar

    rows = []
    with bar("compile", len(kernels)) as progress:
        for kernel in kernels:
            progress.set_postfix_str(kernel.name, refresh=False)
            began = perf_counter()
            hits = sum(kernel.compiled.stats.cache_hits.values())
            rows.append({"name": kernel.name, "loaded": hits > 0, "seconds": perf_counter() - began})
            progress.update()
    return rows
