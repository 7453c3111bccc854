"""The fast twins of the operations, compiled by Numba. Installed and imported as `mvlm_np.kernels`."""

from collections.abc import Callable
from typing import Any


def operations() -> dict[str, Callable]:
    """The twins of functions in `ops`, `kv_store` and `pack`, by name. ImportError if there is no Numba.

    A twin takes and returns what its namesake does; what it is not made for (another type than float32,
    an odd shape) it passes on to it. Nothing is compiled before it is called.
    """
    from mvlm_np.kernels import activations, attention, images, int8_attention, norms, quantized
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
        "cached_attention": attention.cached_attention,
        "beam_attention": attention.beam_attention,
        "rope": attention.rope,
        "depthwise_conv": images.depthwise_conv,
        "adaptive_avg_pool": images.adaptive_avg_pool,
        "packed_product": quantized.packed_product,
    }


def all_kernels() -> list[Any]:
    """Every kernel, with its `name` and, as `compiled`, its machine code. ImportError: no Numba."""
    operations()
    from mvlm_np.kernels import limits  # noqa: F401 (it has kernels of its own)
    from mvlm_np.kernels.kernel import KERNELS

    return KERNELS


def about() -> dict[str, Any]:
    """What the kernels are compiled for and where their machine code is kept. ImportError: no Numba."""
    from mvlm_np.kernels import cpu
    from mvlm_np.kernels.code import code_cache

    folder = code_cache.cache_folder()
    writable = code_cache.can_keep()  # which makes the folder
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder and folder.is_dir() else []
    features = cpu.features()
    return {
        "cpu": code_cache.target()[1],
        "features": sorted(features),
        "instruction_set": cpu.INSTRUCTION_SET,
        "instruction_sets": {
            name: sorted(needed) for name, needed in cpu.INSTRUCTION_SETS.items() if needed <= features
        },
        "cache": {
            "folder": str(folder) if writable or sizes else None,
            "writable": writable,
            "kernels": len(sizes),
            "bytes": sum(sizes),
        },
    }
