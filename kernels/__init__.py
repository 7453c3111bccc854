"""The fast twins of the operations, compiled. Installed and imported as `mvlm_np.kernels`.

Their machine code comes from a library that fits this machine (`library`), else Numba compiles it (`code`).
"""

from collections.abc import Callable
from typing import Any


def operations() -> dict[str, Callable]:
    """The twins of functions in `ops`, `kv_store` and `pack`, by name.

    ImportError: there is neither a library that fits nor Numba.

    A twin takes and returns what its namesake does; what it is not made for (another type than float32,
    an odd shape) it passes on to it. Nothing is compiled before it is called.
    """
    from mvlm_np.kernels import (
        activations,
        attention,
        cached,
        dense,
        images,
        int8_attention,
        norms,
        quantized,
        rotary,
    )
    from mvlm_np.kernels.machine_code import require

    require()
    return {
        "layer_norm": norms.layer_norm,
        "rms_norm": norms.rms_norm,
        "quick_gelu": activations.quick_gelu,
        "silu": activations.silu,
        "swiglu": activations.swiglu,
        "gelu": activations.gelu,
        "softmax": attention.softmax,
        "attention": attention.attention,
        "int8_attention": int8_attention.int8_attention,
        "cached_attention": cached.cached_attention,
        "beam_attention": cached.beam_attention,
        "several_attention": cached.several_attention,
        "rope_angles": rotary.rope_angles,
        "rope": attention.rope,
        "matmul": dense.matmul,
        "depthwise_conv": images.depthwise_conv,
        "adaptive_avg_pool": images.adaptive_avg_pool,
        "packed_product": quantized.packed_product,
    }


def all_kernels() -> list[Any]:
    """Every kernel, with its `name` and, as `compiled`, its machine code. ImportError: there is none."""
    operations()
    from mvlm_np.kernels import limits  # noqa: F401 (it has kernels of its own)
    from mvlm_np.kernels.kernel import KERNELS

    return KERNELS


def about() -> dict[str, Any]:
    """Where the kernels' machine code comes from.

    library      the path of the library of compiled kernels that is in use, or None: then Numba compiles
    passed_over  {path: why it is not in use}, of other libraries that are there
    missing      why nothing can be compiled, or None
    cpu          for which CPU, by LLVM's name; None if nothing can be compiled
    cache        where Numba's machine code is kept; None where nothing is compiled
    """
    from mvlm_np.kernels import cpu, library
    from mvlm_np.kernels.targets import TARGETS

    chosen, passed_over = library.choice()
    features = cpu.features()
    found: dict[str, Any] = {
        "features": sorted(features),
        "instruction_set": cpu.INSTRUCTION_SET,
        "instruction_sets": {
            name: sorted(needed) for name, needed in cpu.INSTRUCTION_SETS.items() if needed <= features
        },
        "library": str(chosen.path) if chosen else None,
        "passed_over": passed_over,
        "missing": None,
        "cpu": TARGETS[chosen.target].cpu if chosen else None,
        "cache": None,
    }
    if not chosen:
        try:
            found |= _about_compiling()
        except ImportError as error:
            found["missing"] = str(error)
    return found


def _about_compiling() -> dict[str, Any]:
    from mvlm_np.kernels.code import code_cache, compile

    folder = code_cache.cache_folder()
    writable = compile.can_keep()  # which makes the folder
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder and folder.is_dir() else []
    cache = {
        "folder": str(folder) if writable or sizes else None,
        "writable": writable,
        "kernels": len(sizes),
        "bytes": sum(sizes),
    }
    return {"cpu": code_cache.target()[1], "cache": cache}
