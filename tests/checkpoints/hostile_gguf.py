"""Malformed and malicious GGUF files: each breaks one rule, and its error must name that rule.

`CASES` is name -> (the file's bytes, a pattern that its error must match); `open_gguf` refuses them all, and
`read_gguf` those of `DAMAGED`. The first part of this file builds GGUF by hand, since no honest writer would.
"""

import struct
from collections.abc import Iterable

from mvlm_np.checkpoints.gguf import MAX_ELEMENTS, MAX_SETTINGS, MAX_TENSORS, MAX_TEXT

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8


def string(text: bytes | str, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def setting(key: bytes | str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return setting(key, UINT32, struct.pack("<I", value))


def f32(key: str, value: float) -> bytes:
    return setting(key, FLOAT32, struct.pack("<f", value))


def text(key: str, value: str) -> bytes:
    return setting(key, STRING, string(value))


def array(key: str, kind: int, values: Iterable[bytes], count: int | None = None) -> bytes:
    values = list(values)
    count = len(values) if count is None else count
    return setting(key, ARRAY, struct.pack("<IQ", kind, count) + b"".join(values))


def tensor(
    name: bytes | str,
    sizes: tuple[int, ...] = (32,),
    kind: int = F32,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    """An entry of the table; `sizes` are as the format has them, innermost first."""
    dims = len(sizes) if dims is None else dims
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", dims, *sizes, kind, offset)


def gguf(
    settings: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    settings, tensors = list(settings), list(tensors)
    counts = counts or (len(tensors), len(settings))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(settings) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


# -- Files that break the format --------------------------------------------------------------------------

FLOATS = bytes(128)  # of a tensor with 32 values
GOOD = gguf([u32("a", 1)], [tensor("w")], FLOATS)
HUGE = (1 << 64) - 1

DAMAGED: dict[str, tuple[bytes, str]] = {
    # What it is
    "empty": (b"", r"is empty"),
    "a web page": (b"<!DOCTYPE html><html>", r"is a web page"),
    "ggjt of 2023": (b"tjgg" + bytes(60), r"is of an unknown kind .*, wanted a GGUF file"),
    "magic alone": (b"GGUF", r"version: goes past the end"),
    "version 1": (gguf(version=1), r"version: is 1, wanted 2 or 3"),
    "version of the future": (gguf(version=4), r"version: is 4, wanted 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"version: is big-endian"),
    # Counts
    "cut in the header": (GOOD[:20], r"header: goes past the end"),
    "tensors without number": (gguf(counts=(HUGE, 0)), r"announces 18446744073709551615 tensors"),
    "a tensor too many": (gguf(counts=(MAX_TENSORS + 1, 0)), rf"announces {MAX_TENSORS + 1} tensors"),
    "settings without number": (gguf(counts=(0, HUGE)), r"announces 18446744073709551615 settings"),
    "a setting too many": (gguf(counts=(0, MAX_SETTINGS + 1)), rf"announces {MAX_SETTINGS + 1} settings"),
    "more settings than there are": (
        gguf(counts=(0, 3), alignment=1),
        r"key of setting 0: goes past the end",
    ),
    "more tensors than there are": (gguf(counts=(3, 0), alignment=1), r"name of tensor 0: goes past the end"),
    # Settings
    "key without a name": (gguf([u32("", 1)]), r"key of setting 0: is empty"),
    "key of 16 EB": (gguf([string("k", HUGE)]), r"key of setting 0: goes past the end"),
    "key too long": (
        gguf([u32("k" * 70_000, 1)]),
        r"key of setting 0: has 70000 bytes, wanted at most 65535",
    ),
    "key that is no text": (
        gguf([setting(b"\xff\xfe", UINT32, bytes(4))]),
        r"key of setting 0: is not UTF-8",
    ),
    "key twice": (gguf([u32("k", 1), text("k", "v")]), r"k: is set twice"),
    "kind unknown": (gguf([setting("k", 13, bytes(8))]), r"k: is of kind 13"),
    "truth value of 2": (gguf([setting("k", BOOL, b"\x02")]), r"k: is a truth value of 2, wanted 0 or 1"),
    "number cut off": (gguf([setting("k", UINT64, b"\0\0")], alignment=1), r"k: goes past the end"),
    "text that is no text": (gguf([setting("k", STRING, string(b"\xc3("))]), r"k: is not UTF-8 text"),
    "text of 4 GB": (gguf([setting("k", STRING, string("v", 1 << 32))]), r"k: goes past the end"),
    "text of 17 MB": (gguf([text("k", "v" * (MAX_TEXT + 1))]), r"k: has too long a text"),
    "texts of 17 MB together": (
        gguf([text(f"k{i}", "v" * (MAX_TEXT // 8)) for i in range(8)]),
        r"k7: has too long a text",
    ),
    "array unknown": (gguf([array("k", 13, [])]), r"k: is of kind 13"),
    "array of arrays": (gguf([array("k", ARRAY, [])]), r"k: is an array of arrays"),
    "array of 16 E": (gguf([array("k", UINT64, [], HUGE)]), r"k: has 18446744073709551615 elements"),
    "arrays too many": (
        gguf([array(f"k{i}", BOOL, [bytes(MAX_ELEMENTS // 2)], MAX_ELEMENTS // 2) for i in range(3)]),
        rf"k2: has {MAX_ELEMENTS // 2} elements, wanted at most {MAX_ELEMENTS} in all",
    ),
    "array cut off": (gguf([array("k", UINT32, [bytes(4)], 1000)]), r"k: goes past the end"),
    "texts cut off": (gguf([array("k", STRING, [string("v")], 1000)]), r"k: goes past the end"),
    "text in a list that is no text": (gguf([array("k", STRING, [string(b"\xff")])]), r"k: is not UTF-8"),
    # Alignment
    "alignment 0": (gguf([u32("general.alignment", 0)]), r"general\.alignment: is 0, wanted a power of two"),
    "alignment 24": (
        gguf([u32("general.alignment", 24)]),
        r"general\.alignment: is 24, wanted a power of two",
    ),
    "alignment of 2 GB": (gguf([u32("general.alignment", 1 << 31)]), r"general\.alignment: is 2147483648"),
    "alignment in words": (gguf([text("general.alignment", "32")]), r"general\.alignment: is 32, wanted"),
    "alignment true": (gguf([setting("general.alignment", BOOL, b"\1")]), r"general\.alignment: is True"),
    # Tensors
    "tensor's name too long": (gguf((), [tensor("n" * 64)], FLOATS), r"name of tensor 0: has 64 bytes"),
    "tensor's name no text": (gguf((), [tensor(b"\xff")], FLOATS), r"name of tensor 0: is not UTF-8"),
    "tensor twice": (gguf((), [tensor("w"), tensor("w", offset=128)], FLOATS * 2), r"w: is the name of two"),
    "no dimensions": (gguf((), [tensor("w", ())], FLOATS), r"w: has 0 dimensions, wanted 1 to 4"),
    "five dimensions": (gguf((), [tensor("w", (2,) * 5)], FLOATS), r"w: has 5 dimensions"),
    "dimensions without number": (
        gguf((), [tensor("w", (), dims=1 << 31)], FLOATS),
        r"w: has 2147483648 dim",
    ),
    "table cut off": (gguf((), [tensor("w")])[:50], r"w: goes past the end"),
    "a size of 0": (gguf((), [tensor("w", (32, 0))], FLOATS), r"w: has the shape \[0, 32\]"),
    "sizes that overflow": (
        gguf((), [tensor("w", (1 << 32, 1 << 31, 2))], FLOATS),
        r"w: its \d{20} bytes at",
    ),
    "sizes whose product is 0": (
        gguf((), [tensor("w", (1 << 32, 1 << 32))], FLOATS),
        r"w: its \d{20} bytes at",
    ),
    "type unknown": (gguf((), [tensor("w", kind=200)], FLOATS), r"w: is of type 200"),
    "type withdrawn": (gguf((), [tensor("w", kind=31)], FLOATS), r"w: is of type 31"),
    "rows that blocks do not divide": (
        gguf((), [tensor("w", (48, 2), Q4_0)], FLOATS),
        r"w: has rows of 48, wanted a multiple of 32 for q4_0",
    ),
    "offset not aligned": (
        gguf((), [tensor("w", offset=16)], FLOATS * 2),
        r"w: begins at 16, wanted a multiple",
    ),
    "offset past the end": (
        gguf((), [tensor("w", offset=1 << 20)], FLOATS),
        r"w: its 128 bytes at 1048640 end",
    ),
    "offset of 16 EB": (gguf((), [tensor("w", offset=HUGE - 31)], FLOATS), r"w: its 128 bytes at \d{20} end"),
    "data cut off": (GOOD[:-1], r"w: its 128 bytes at \d+ end after the file's \d+"),
    "tensors that overlap": (
        gguf((), [tensor("a", (64,)), tensor("b", offset=128)], FLOATS * 2),
        r"b: overlaps a",
    ),
    "tensor inside another": (
        gguf((), [tensor("a", (96,)), tensor("b", offset=128), tensor("c", offset=384)], FLOATS * 4),
        r"b: overlaps a",
    ),
    "terminal escapes": (gguf((), [tensor("\x1b[2J", kind=77)]), r"'\\x1b\[2J': is of type 77"),
}

# -- Sound files that are no LLaMA of ours ----------------------------------------------------------------

_WORDS = ["<unk>", "<s>", "</s>", "a"]
LLAMA = {
    "architecture": text("general.architecture", "llama"),
    "context": u32("llama.context_length", 16),
    "width": u32("llama.embedding_length", 32),
    "layers": u32("llama.block_count", 1),
    "inner": u32("llama.feed_forward_length", 32),
    "heads": u32("llama.attention.head_count", 2),
    "eps": f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
    "model": text("tokenizer.ggml.model", "llama"),
    "tokens": array("tokenizer.ggml.tokens", STRING, map(string, _WORDS)),
    "scores": array("tokenizer.ggml.scores", FLOAT32, [bytes(4)] * 4),
    "types": array("tokenizer.ggml.token_type", INT32, (struct.pack("<i", n) for n in (2, 3, 3, 1))),
}


def llama(tensors: Iterable[bytes] = (), data: bytes = b"", **changes: bytes) -> bytes:
    """A tiny LLaMA without weights, of which some settings are changed or added."""
    return gguf((LLAMA | changes).values(), tensors, data)


def tokens(*words: str | bytes) -> bytes:
    return array("tokenizer.ggml.tokens", STRING, map(string, words))


FOREIGN: dict[str, tuple[bytes, str]] = {
    "no architecture": (gguf(list(LLAMA.values())[1:]), r"general\.architecture: is missing"),
    "other architecture": (
        llama(architecture=text("general.architecture", "gemma3")),
        r"general\.architecture: found 'gemma3', wanted 'llama'",
    ),
    "mmproj as the model": (
        gguf([text("general.architecture", "clip")]),
        r"is an mmproj: .*; give the language model's file",
    ),
    "one file of several": (llama(split=u32("split.count", 3)), r"split\.count: found 3"),
    "no width": (llama(width=u32("x", 1)), r"llama\.embedding_length: is missing"),
    "width 0": (llama(width=u32("llama.embedding_length", 0)), r"llama\.embedding_length: found 0"),
    "width of 4 G": (
        llama(width=u32("llama.embedding_length", 4_000_000_000)),
        r"embedding_length: found 4000",
    ),
    "width in words": (llama(width=text("llama.embedding_length", "32")), r"embedding_length: found '32'"),
    "width of each layer": (
        llama(width=array("llama.embedding_length", UINT32, [bytes(4)] * 8)),
        r"llama\.embedding_length: found \[0, 0",
    ),
    "layers without number": (
        llama(layers=u32("llama.block_count", 1 << 30)),
        r"llama\.block_count: found 1073",
    ),
    "heads that do not divide": (
        llama(heads=u32("llama.attention.head_count", 3)),
        r"heads of equal and even",
    ),
    "no heads": (llama(heads=u32("llama.attention.head_count", 0)), r"llama\.attention\.head_count: found 0"),
    "eps not a number": (
        llama(eps=f32("llama.attention.layer_norm_rms_epsilon", float("nan"))),
        r"found nan",
    ),
    "rotary base of 0": (llama(rope=f32("llama.rope.freq_base", 0)), r"llama\.rope\.freq_base: found 0\.0"),
    "rotary scaling": (llama(rope=text("llama.rope.scaling.type", "yarn")), r"scaling\.type: found 'yarn'"),
    "partial rotation": (
        llama(rope=u32("llama.rope.dimension_count", 8)),
        r"dimension_count: found 8, wanted 16",
    ),
    "mixture of experts": (llama(experts=u32("llama.expert_count", 8)), r"llama\.expert_count: found 8"),
    "rotary factors": (
        llama([tensor("rope_freqs.weight", (8,))], bytes(32)),
        r"rope_freqs\.weight: scales the rotary angles",
    ),
    "end of text outside": (llama(eos=u32("tokenizer.ggml.eos_token_id", 4)), r"eos_token_id: found 4"),
    "vocabulary too small": (llama(vocab=u32("llama.vocab_size", 3)), r"llama\.vocab_size: found 3"),
    "tensor of another model": (
        llama([tensor("blk.0.attn_q_norm.weight")], FLOATS),
        r"no use for: blk\.0\.attn_q_norm\.weight",
    ),
    "terminal escapes among the tensors": (llama([tensor("\x1b[2J")], FLOATS), r"no use for: '\\x1b\[2J'"),
    # The tokenizer
    "tokenizer of another kind": (llama(model=text("tokenizer.ggml.model", "gpt2")), r"model: found 'gpt2'"),
    "scores missing": (llama(scores=u32("x", 1)), r"tokenizer\.ggml\.scores: is missing"),
    "scores that are whole": (
        llama(scores=array("tokenizer.ggml.scores", INT32, [bytes(4)] * 4)),
        r"tokenizer\.ggml\.scores: is not such a list",
    ),
    "scores too few": (
        llama(scores=array("tokenizer.ggml.scores", FLOAT32, [bytes(4)])),
        r"found 4 tokens, 1 scores and 4 types",
    ),
    "score not a number": (
        llama(scores=array("tokenizer.ggml.scores", FLOAT32, [struct.pack("<f", float("nan"))] * 4)),
        r"token 0: is '<unk>' with score nan",
    ),
    "token without text": (llama(tokens=tokens("<unk>", "<s>", "</s>", "")), r"token 3: is ''"),
    "token twice": (llama(tokens=tokens("<unk>", "a", "b", "a")), r"tokens: holds 'a' twice"),
    "type of token unknown": (
        llama(types=array("tokenizer.ggml.token_type", INT32, (struct.pack("<i", n) for n in (2, 3, 3, 9)))),
        r"token 3: is 'a' with score 0\.0 and type 9",
    ),
    "two unknown tokens": (
        llama(types=array("tokenizer.ggml.token_type", INT32, [struct.pack("<i", 2)] * 4)),
        r"found 4 pieces of type 2",
    ),
    "bytes that are not all there": (
        llama(types=array("tokenizer.ggml.token_type", INT32, (struct.pack("<i", n) for n in (2, 3, 3, 6)))),
        r"found 1 byte pieces",
    ),
    "flag that is a number": (llama(bos=u32("tokenizer.ggml.add_bos_token", 1)), r"add_bos_token: found '1'"),
}

CASES = DAMAGED | FOREIGN
