"""MobileVLM in NumPy and Numba.

    import mvlm_np
    model = mvlm_np.load("path/to/MobileVLM_V2-1.7B")
    print(model.ask("photo.jpg", "What animal is this?"))

Importing this package loads nothing else: the model comes with the first use of `load`.
"""

TYPE_CHECKING = False  # as in `typing`, which would take a third of the time of `import mvlm_np`
if TYPE_CHECKING:
    from mvlm_np.loading import load
    from mvlm_np.model import MobileVLM

__version__ = "0.1.0"
__all__ = ["MobileVLM", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "load":
        from mvlm_np.loading import load

        return load
    if name == "MobileVLM":
        from mvlm_np.model import MobileVLM

        return MobileVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
