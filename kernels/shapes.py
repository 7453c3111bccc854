"""What the kernels' code and the functions that call it must agree on. Some of it depends on the CPU."""

from mvlm_np.kernels.cpu import INSTRUCTION_SET, features

LANES = 16  # of a vector: rows of weights, or neighbouring floats

# Elements of one step of an activation. It is fixed so that an element is computed by the same
# instructions whatever the number of threads: LLVM treats the end of a loop differently from its body.
ACTIVATED = 4096
# Rows of a tile of float32: their sums, 16 lanes each, fill most registers of AVX-512, or AVX2's and NEON's.
FLOAT_ROWS = 12 if INSTRUCTION_SET == "avx512vnni" else 6
READ = 1 << 14  # floats of one step of `limits.read`: 64 kB

# Tokens of a tile, and columns of 16 rows, when there are many tokens. A row of sums for each token and
# column has to stay in registers: there are 32 of 64 bytes, 16 of 32 bytes, and on ARM 32 of 16 bytes. AMD's
# cores load a word of activations for free with each product; Intel's are faster if two products share it.
# AVX2's and plain NEON's products take registers of their own.
_AMD = "sse4a" in features()
SHAPE = {"avx512vnni": (12, 1) if _AMD else (8, 2), "avx2": (3, 1), "neon": (3, 1)}.get(
    INSTRUCTION_SET, (4, 1)
)
FEW = {"avx2": 2, "neon": 3}.get(INSTRUCTION_SET, 4)  # tokens of a tile when there are few

# vpdpbusd takes one operand unsigned, so int8 weights are moved up by this much, and a sum starts from minus
# as many times the sum of its activations. Nibbles are stored with 8 added for every instruction set.
OFFSET = {8: 128 if INSTRUCTION_SET.endswith("vnni") else 0, 4: 8}

TILES = tuple(dict.fromkeys([(FEW, 1), SHAPE]))  # that several tokens are multiplied with
