"""From stored tensors to a model's weights, strictly: nothing is guessed, filled in or skipped."""

import re
from collections.abc import Callable, Mapping
from math import inf

import numpy as np

from mvlm_np.backend import Ops
from mvlm_np.binder import Binder
from mvlm_np.checkpoints.packed import LOSSLESS, PackedTensor, packed, require_finite
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import CheckpointError, some
from mvlm_np.kernels.pack import KINDS
from mvlm_np.linear import Dense, Embedding, Linear, Quantized
from mvlm_np.precisions import FOUR_BIT_KINDS, PACKED

# Tensors that some writers save and no output depends on.
_UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq"  # recomputed from rope_theta
    r"|.*\.position_ids"  # 0, 1, 2, ...
    r"|.*vision_model\.post_layernorm\..*"  # the features are taken before it
)


class Loader(Binder):
    """Reads what is asked for. `tensors` have passed `check`.

    precision  of the linear layers: None (as stored) or one of `precisions.LOADED`; see `kind`
    ops        the backend, for packed layers
    progress   called with the bytes of each tensor that is read
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        precision: str | None = None,
        ops: Ops | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ):
        super().__init__()
        self.tensors, self.precision, self.ops, self.progress = tensors, precision, ops, progress
        self._counted: set[str] = set()  # a tied table of embeddings is asked for twice
        self._packed: list[PackedTensor] = []
        self._rounded: dict[tuple[str, str], list[float]] = {}  # SNR in dB, by stored type and kind

    def array(self, name: str, *shape: int) -> np.ndarray:
        return self._take(name).float32()

    def embedding(self, name: str, N: int, D: int) -> Embedding:
        return self._take(f"{name}.weight").rows

    def linear(self, name: str, N: int, K: int, bias: bool = True) -> Linear:
        tensor = self._take(f"{name}.weight")
        b = self.array(f"{name}.bias", N) if bias else None
        kept = kind(f"{self.prefix}{name}.weight", tensor, self.precision)
        if kept is None:
            return Dense(tensor.float32().reshape(N, K), b)
        if isinstance(tensor, PackedTensor) and tensor.dtype == kept:
            self._packed.append(tensor)
        matrix, snr = packed(tensor, kept)
        if snr < inf:
            self._rounded.setdefault((tensor.dtype, kept), []).append(snr)
        assert self.ops is not None
        return Quantized(matrix, b, self.ops)

    conv1x1 = linear

    def finish(self) -> None:
        """To be called behind the last weight. CheckpointError: one of them, used as it lies, is damaged."""
        require_finite(self._packed)

    def notes(self) -> list[str]:
        """What rounding has cost, a line for each type that matrices were stored in."""
        return [
            f"matrices stored as {stored}, {len(ratios)} in all, were rounded anew to {kept}, "
            f"with a signal-to-noise ratio of {min(ratios):.1f} dB or more"
            for (stored, kept), ratios in self._rounded.items()
        ]

    def _take(self, name: str) -> Tensor:
        tensor = self.tensors[self.prefix + name]
        if self.prefix + name not in self._counted:
            self._counted.add(self.prefix + name)
            self.progress(tensor.nbytes)
        return tensor


def kind(name: str, tensor: Tensor, precision: str | None) -> str | None:
    """In which packed kind the matrix `name` of a linear layer is kept; None for float32.

    As stored (precision None), GGUF's Q4_0 is kept in int4, Q4_K in uint4, every other block type in int8.
    4 bits are for the decoder's blocks: the vision tower, the projector and lm_head, to which the answer is
    more sensitive and which are smaller, are kept in int8. What is stored in 4 bits of either kind stays so.
    """
    stored = tensor.dtype if tensor.dtype in KINDS else None
    if tensor.decode:
        stored = LOSSLESS.get(tensor.dtype, "int8")
    if precision is None:
        return stored
    wanted = PACKED.get(precision)
    if wanted in FOUR_BIT_KINDS:
        if stored in FOUR_BIT_KINDS:
            return stored
        return wanted if name.startswith("model.layers.") else "int8"
    return wanted


def check(
    where: object,
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    tied: bool = False,
) -> dict[str, Tensor]:
    """The wanted tensors, or one error that lists all that is missing, extra and misshapen.

    tied  lm_head is the table of embeddings, whatever the file holds for it (torch saves it twice)
    """
    missing = [name for name in wanted if name not in tensors]
    extra = [
        show(name)
        for name in tensors
        if name not in wanted and not unused(name) and not (tied and name == "lm_head.weight")
    ]
    misshapen = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (("missing", missing), ("not known", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            where,
            "the tensors do not fit config.json: " + "; ".join(problems),
            fix="use the config.json that belongs to these weights, or download the checkpoint again",
        )
    return {name: tensors[name] for name in wanted}


def unused(name: str) -> bool:
    """Whether a checkpoint may hold this tensor although the model does not read it."""
    return _UNUSED.fullmatch(name) is not None
