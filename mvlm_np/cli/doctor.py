"""Shows what this machine computes with: CPU, cores, machine code, memory, versions, and what fits.

Exits with 1 if something stands in the way of full speed, and says what. Of the model that --model or
MVLM_MODEL names, every byte is read, and missing weights are told.

examples:
  mvlm doctor
  mvlm doctor --model mtgv/MobileVLM_V2-1.7B
"""

import argparse
import os
import platform
import sys
from typing import Any


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="PATH",
        default=os.environ.get("MVLM_MODEL"),
        help="read a model too (default: $MVLM_MODEL)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    report = examine()
    if args.model:
        report["model"] = _model(args.model)
        report["problems"] += report["model"]["problems"]
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        _print(report)
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """All that `mvlm doctor` prints."""
    from threadpoolctl import threadpool_info

    from mvlm_np import backend, cores, memory
    from mvlm_np.errors import UserError

    problems = []
    kernels: dict[str, Any] | None = None
    try:
        kernels = backend.about_kernels()
        if kernels["missing"]:
            problems.append(
                f"there is no Numba ({kernels['missing']}) and no library of compiled kernels that fits: "
                "only the slow NumPy backend can be used"
            )
        elif kernels["cache"] and kernels["cache"]["folder"] is None:
            problems.append(
                "machine code can be kept neither under $XDG_CACHE_HOME nor under ~/.cache, so every start "
                "compiles anew; name a folder on a disk with room that can be written"
            )
    except UserError as error:
        problems.append(str(error))
    available = memory.available()
    fits = _fits(available)
    if not any(fitting for sizes in fits.values() for _, fitting in sizes.values()):
        problems.append("no model of the family fits into the memory that is available")
    chosen, reason = cores.usable()
    blas = [b for b in threadpool_info() if b["user_api"] == "blas"]
    return {
        "versions": _versions(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor(),
        "kernels": kernels,
        "cores": {"cpus": chosen, "of": os.cpu_count(), "why": reason},
        "blas": [
            {"name": b["internal_api"], "version": b["version"], "threads": b["num_threads"]} for b in blas
        ],
        "memory": {"available": available, "in all": memory.total()},
        "models": {
            name: {p: {"bytes": size, "fits": fitting} for p, (size, fitting) in sizes.items()}
            for name, sizes in fits.items()
        },
        "problems": problems,
    }


def _model(path: str) -> dict[str, Any]:
    """What all values of a model show."""
    from mvlm_np.cli.inspect import examine_model
    from mvlm_np.cli.progress import counting_bytes
    from mvlm_np.errors import UserError

    try:
        with counting_bytes("read") as count:
            tensors, problems, notes = examine_model(path, None, None, count)
    except UserError as error:
        return {"path": path, "tensors": None, "problems": [str(error)], "notes": []}
    return {"path": path, "tensors": tensors, "problems": [f"{path}: {p}" for p in problems], "notes": notes}


def _versions() -> dict[str, str | None]:
    """Of this package, of Python, and of all that is imported; None for what is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    import mvlm_np

    found: dict[str, str | None] = {"mvlm-np": mvlm_np.__version__, "python": platform.python_version()}
    for name in ("numpy", "numba", "llvmlite", "safetensors", "sentencepiece", "pillow", "tqdm",
                 "threadpoolctl", "gguf", "huggingface_hub"):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    """The CPU's name, as far as the system knows one; ARM's cores go by numbers."""
    try:
        with open("/proc/cpuinfo") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:
        fields = {}
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    board = fields.get("model name") or fields.get("Model")
    return board or platform.processor() or "unknown"


def _fits(available: int | None) -> dict[str, dict[str, tuple[int, bool]]]:
    """Each published model in each precision: the bytes it works with, and whether they are there."""
    from types import SimpleNamespace

    from mvlm_np.config import FAMILY
    from mvlm_np.loading import manifest, memory_needed
    from mvlm_np.precisions import LOADED

    table = {}
    for name, config in FAMILY.items():
        shapes = manifest(config).shapes
        published: Any = {
            tensor: SimpleNamespace(dtype="bfloat16", decode=None, shape=shape)
            for tensor, shape in shapes.items()
        }
        sizes = {p: memory_needed(config, published, p) for p in LOADED}
        table[name] = {p: (size, available is None or size <= available) for p, size in sizes.items()}
    return table


def _print(report: dict[str, Any]) -> None:
    from mvlm_np.memory import text

    def line(name: str, *values: str) -> None:
        print(f"{name:14} {' '.join(values)}".rstrip())

    versions = report["versions"]
    line("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if absent := [name for name, version in versions.items() if not version]:
        line("", "not installed:", ", ".join(absent))
    line("system", report["system"])
    line("processor", report["processor"])
    if kernels := report["kernels"]:
        asked = set().union(*kernels["instruction_sets"].values())
        if kernels["cpu"]:
            line("", "compiled for", kernels["cpu"], "with", ", ".join(sorted(asked)) or "nothing special")
        others = [name for name in kernels["instruction_sets"] if name != kernels["instruction_set"]]
        line(
            "products",
            kernels["instruction_set"],
            f"(MVLM_SIMD may name {', '.join(others)})" if others else "",
        )
        if kernels["library"]:
            line("kernels", "compiled before, in", kernels["library"])
        elif cache := kernels["cache"]:
            held = f"compiled here by Numba: {cache['kernels']}, {text(cache['bytes'])}"
            held += f" in {cache['folder']}" + ("" if cache["writable"] else ", which takes no more")
            line("kernels", held if cache["folder"] else "compiled here by Numba, and not kept")
        for path, reason in kernels["passed_over"].items():
            line("", f"not used: {path}: {reason}")
    cores = report["cores"]
    line("cores", f"{len(cores['cpus'])} of {cores['of']}:", ", ".join(map(str, cores["cpus"])))
    line("", cores["why"])
    for blas in report["blas"]:
        line("BLAS", f"{blas['name']} {blas['version']}, {blas['threads']} threads")
    known = {name: text(size) for name, size in report["memory"].items() if size is not None}
    line("memory", ", ".join(f"{size} {name}" for name, size in known.items()) or "unknown")
    print("\nmemory that a model and a conversation of 512 positions take; ! is more than is available")
    precisions = list(next(iter(report["models"].values())))
    print(f"  {'':18}" + "".join(f"{p:>12}" for p in precisions))
    for name, sizes in report["models"].items():
        cells = [f"{text(size['bytes'])}{' ' if size['fits'] else '!'}" for size in sizes.values()]
        print(f"  {name:18}" + "".join(f"{cell:>12}" for cell in cells))
    if model := report.get("model"):
        print()
        line("model", model["path"])
        line("", f"{model['tensors']} tensors, every byte read" if model["tensors"] else "cannot be loaded")
        for note in model["notes"]:
            line("", f"note: {note}")
    for problem in report["problems"]:
        print(f"\nproblem: {problem}")
