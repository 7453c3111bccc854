"""Products with int8 and int4 weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of tokens,
k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side.
Then a product walks over tiles of weights and blocks of tokens. A token's result depends neither on the other
tokens nor on threads.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np

from mvlm_np.errors import GenerationError
from mvlm_np.kernels.arrays import FLOAT32, rows_contiguous
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.pack import ROWS, Packed
from mvlm_np.kernels.shapes import FEWER, OFFSET, SHAPE, WORDS
from mvlm_np.ops import GROUP

CACHED = 1 << 18  # bytes of activations that stay in a core's cache while all weights pass by
NO_BIAS = np.zeros(0, np.float32)

_rounded = Kernel("quantized.rounded")
ONE_TOKEN = {bits: Kernel(f"quantized.int{bits}_1x1") for bits in (8, 4)}
TALL, COLUMNS = SHAPE
TOKENS = {bits: Kernel(f"quantized.int{bits}_{TALL}x{COLUMNS}") for bits in (8, 4)}


def packed_product(
    matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """`pack.packed_product`: the integers are the same, their weighted sums up to rounding."""
    return Product(matrices, biases)


class Product:
    """The product with some matrices. What does not change from call to call is found out once:

    places   int64 (3, 3): addresses of a matrix's values and scales, and its tiles; zeros where there is none
    tiles    of all matrices
    columns  of the product that belong to each
    bias     float32 (16 * tiles,), or empty
    """

    def __init__(self, matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]):
        self.matrices = tuple(matrices)  # keeps what `places` points to
        self.bits, self.K = matrices[0].bits, matrices[0].K
        self.places, self.columns, self.tiles = np.zeros((3, 3), np.int64), list[slice](), 0
        for place, (_, values, scales, N, _) in zip(self.places, matrices, strict=False):
            assert values.flags.c_contiguous and scales.flags.c_contiguous
            place[:] = values.ctypes.data, scales.ctypes.data, len(values)
            self.columns.append(slice(self.tiles * ROWS, self.tiles * ROWS + N))
            self.tiles += len(values)
        self.bias = NO_BIAS
        if any(bias is not None for bias in biases):
            # An odd tile at the end may be computed twice, hence one more.
            self.bias = np.zeros((self.tiles + 1) * ROWS, np.float32)
            for columns, bias in zip(self.columns, biases, strict=True):
                self.bias[columns] = 0 if bias is None else bias

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        x = rows_contiguous(x)
        M, K = x.shape
        if x.dtype != FLOAT32 or M == 0:
            raise GenerationError(
                "activations", f"found {x.dtype} {x.shape}", "float32 with at least one row"
            )
        assert self.K == K, (self.K, K)
        y = self._one_token(x) if M == 1 else self._tokens(x)
        if not (isfinite(y[0, 0]) if M == 1 else np.isfinite(y[:M, 0]).all()):
            # A scale that is not finite leaves no sum finite.
            raise GenerationError(
                "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
            )
        return [y[:M, columns] for columns in self.columns]

    def _one_token(self, x: np.ndarray) -> np.ndarray:
        y = np.empty((1, self.tiles * ROWS), np.float32)
        cost = ROWS * self.K / 20  # 20 weights a nanosecond come from memory
        ONE_TOKEN[self.bits](self.tiles, cost, x, OFFSET[self.bits], self.places, self.bias, y)
        return y

    def _tokens(self, x: np.ndarray) -> np.ndarray:
        (M, K), bits = x.shape, self.bits
        padded = in_blocks(M)
        acts = np.empty(padded * -(-K // GROUP) * WORDS, np.int32)
        _rounded(padded, K, x, OFFSET[bits], TALL, acts)
        stripes = -(-self.tiles // COLUMNS)
        y = np.empty((padded, stripes * COLUMNS * ROWS), np.float32)
        span = max(1, CACHED // (TALL * K)) * TALL
        cost = COLUMNS * ROWS * K * min(span, M) / 200  # 200 products a nanosecond
        TOKENS[bits](stripes * -(-M // span), cost, self.places, acts, self.bias, span, y)
        return y


def in_blocks(tokens: int) -> int:
    """The tokens with those that fill up the last block, which is the least one that holds what is left."""
    left = (tokens - 1) % TALL + 1
    return tokens - left + min(rows for rows in (TALL, *FEWER) if rows >= left)
