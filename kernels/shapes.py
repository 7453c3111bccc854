"""What the kernels' code and the functions that call it must agree on. Some of it depends on the CPU."""

from mvlm_np.kernels.cpu import INSTRUCTION_SET, features

LANES = 16  # of a vector: rows of weights, or neighbouring floats

# Elements of one step of an activation. It is fixed so that an element is computed by the same
# instructions whatever the number of threads: LLVM treats the end of a loop differently from its body.
ACTIVATED = 4096
# Rows of a tile of float32: their sums, 16 lanes each, fill most registers of AVX-512, or AVX2's and NEON's.
FLOAT_ROWS = 12 if INSTRUCTION_SET == "avx512vnni" else 6
READ = 1 << 14  # floats of one step of `limits.read`: 64 kB

# Registers that a vector of 64 bytes takes in each instruction set.
REGISTERS = {
    "avx512vnni": 1,
    "avxvnni": 2,
    "avx2": 2,
    "neon_i8mm": 4,
    "neon_dotprod": 4,
    "neon": 4,
    "generic": 1,
}
PARTS = REGISTERS[INSTRUCTION_SET]

# Several tokens are multiplied in blocks: how many tokens a block has, and how many tiles of weights it takes
# side by side. Each token needs a register of sums and one of totals for each. There are 32 registers of 64
# bytes, 16 of 32 bytes, and on ARM 32 of 16 bytes. With AVX-512, AMD's cores load a word of activations for
# free with each product; Intel's are faster if two products share it, though totals then wait on the stack.
SHAPE = {
    "avx512vnni": (12, 1) if "sse4a" in features() else (8, 2),
    "avxvnni": (4, 1),
    "avx2": (4, 1),
    "neon_i8mm": (8, 1),
    "neon_dotprod": (8, 1),
    "neon": (8, 1),
    "generic": (4, 1),
}[INSTRUCTION_SET]
# The last block may have fewer tokens: at most the first number, or at most the second.
FEWER = (8, 4) if INSTRUCTION_SET == "avx512vnni" else (SHAPE[0] // 2, SHAPE[0] // 4)

# vpdpbusd takes one operand unsigned, so int8 weights are moved up by this much, and a sum starts from minus
# as many times the sum of its activations. int4 is stored with 8 added for every instruction set. uint4 has
# minima instead, which take minus that sum as a float, times its scale: they ask for it with MINIMA.
MINIMA = -1
OFFSET = {"int8": 128 if INSTRUCTION_SET.endswith("vnni") else 0, "int4": 8, "uint4": MINIMA}

# Rounded activations are int32 words. A token's group of 32 columns is 8 words of 4 int8, the start of its
# integer sums (or what minima are multiplied by, a float32), and its float32 scale. In a block of tokens, the
# first words of all stand first, then the second ones and so on. On ARM, where a product waits for its vector
# instructions and not for loads, two of them are saved: a start stands there 4 times, as a register wants it,
# and START is added to it. That is 3 * 2^22 as a float, so the bits of a sum are those of 3 * 2^22 + sum, and
# subtracting is converting.
_ARM = INSTRUCTION_SET.startswith("neon")
COPIES = 4 if _ARM else 1
START = 0x4B400000 if _ARM else 0
WORDS = 8 + COPIES + 1

# How attention is told where a sequence lies, in a row of int64: first that COUNT rows of q, k and v belong
# to it, from ROW on. Then, from SHARED on, about a beginning that it shares with others, and from OWN on
# about what it has for itself: the addresses of keys and of their scales, the same of values, for how many
# positions each head has room, and how many it holds.
ROW, COUNT, SHARED, OWN, PLACE = 0, 1, 2, 8, 14
KEYS, VALUES, CAPACITY, FILLED = 0, 2, 4, 5
