"""MobileVLM in NumPy and Numba.

    import mvlm_np
    model = mvlm_np.load("path/to/MobileVLM_V2-1.7B")
    print(model.ask("photo.jpg", "What animal is this?"))

Importing this package loads nothing else: the model comes with the first use of `load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM, load

__version__ = "0.1.0"
__all__ = ["MobileVLM", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mvlm_np import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
