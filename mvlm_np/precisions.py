"""What a user names, and what matrices are then kept in: the one table of both.

A precision is asked for: `load(precision=...)`, `--precision`. A kind (see `kernels.pack`) or a block type of
GGUF lies in a file, and keeps its name there whatever the precisions mean. `int4` is the better of the two
kinds with 4 bits; what is stored in either of them stays as it is when 4 bits are asked for.
"""

PACKED = {"int8": "int8", "int4": "uint4", "int4-symmetric": "int4"}  # precision -> kind
FLOATS = {"float32": "float32", "bf16": "bfloat16"}  # precision -> type of every tensor
GGUF = {"float16": "F16", "int8": "Q8_0", "int4": "Q4_K", "int4-symmetric": "Q4_0"}  # precision -> block type

LOADED = ("float32", *PACKED)  # what a model can be loaded in
FOLDER = (*FLOATS, *PACKED)  # what a folder can be written in

FOUR_BITS = ("int4", "int4-symmetric")
FOUR_BIT_KINDS = tuple(PACKED[precision] for precision in FOUR_BITS)

MEANING = {  # of the kinds with 4 bits, for people who asked for a precision
    "uint4": "4 bits with minima: precision int4",
    "int4": "4 bits without minima: precision int4-symmetric",
}
