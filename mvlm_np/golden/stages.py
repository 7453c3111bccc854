"""The stages of the model by name: the order in which they are computed, and their arrays in a file."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from mvlm_np.checkpoints.tensors import Tensor, bfloat16_to_float32

Stages = Mapping[str, np.ndarray]


# ---------------------------------------------------------------- their order

# Stages, and parts of a projector, in the order in which they are computed.
_PARTS = ("pixel_values vision projector input_ids inputs_embeds decoder logits generated_ids decode").split()
_MODULES = "mlp dwn mb_block peg avgpool fc1 activation fc2 scale_activation".split()


def order(name: str) -> tuple:
    """Sort key: a stage comes after all that it is computed from. A module comes after what is inside it."""
    parts = name.removesuffix(".tail").split(".")
    if parts[0] == "decoder" and len(parts) == 3 and parts[2].isdigit():
        kinds = ["hidden_states", "keys", "values"]  # the block's input, then what the block computes
        return (_PARTS.index("decoder"), int(parts[2]), kinds.index(parts[1]) if parts[1] in kinds else 3)
    first = parts[0].partition("_beam")[0]
    head = _PARTS.index(first) if first in _PARTS else len(_PARTS)
    rest = tuple(_rank(part) for part in parts[1:])
    return (head, *rest, (9, 0, "")) if head == _PARTS.index("projector") else (head, *rest, (0, 0, name))


def is_stage(name: str) -> bool:
    """Whether a stage of the model may have this name."""
    return order(name)[0] < len(_PARTS)


def _rank(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 0, int(part), ""
    if part in _MODULES:
        return 1, _MODULES.index(part), ""
    return (3, 0, part) if part in ("output", "features") else (2, 0, part)


# ---------------------------------------------------------------- their arrays


class StoredStages(Mapping[str, np.ndarray]):
    """Arrays by stage name, each read when it is asked for: a full-size golden has hundreds of megabytes.

    read    {name: what reads the array}
    forget  called with a name when its array is no longer needed
    """

    def __init__(
        self,
        read: Mapping[str, Callable[[], np.ndarray]],
        forget: Callable[[str], object] = lambda name: None,
    ):
        self._read, self.forget = dict(read), forget

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor's values: float32, float64 and integers as they are, float16 and bfloat16 in float32."""
    if tensor.dtype == "bfloat16":
        return bfloat16_to_float32(tensor.stored())
    return tensor.stored().astype(np.float32) if tensor.dtype == "float16" else tensor.stored()


def stored_stages(
    tensors: Mapping[str, Tensor], read: Callable[[Tensor], np.ndarray] = numbers
) -> StoredStages:
    """The tensors of a file as stages, each as `read` gives it."""

    def forget(name: str) -> None:
        tensor = tensors[name]
        tensor.file.forget(tensor.offset, tensor.nbytes)

    return StoredStages({name: partial(read, tensor) for name, tensor in tensors.items()}, forget)


def without_leading_axes(array: np.ndarray, ndim: int) -> np.ndarray:
    """An array without its leading axes of length 1, as far as it has more than `ndim` axes."""
    while array.ndim > ndim and len(array) == 1:
        array = array[0]
    return array
