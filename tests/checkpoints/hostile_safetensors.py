"""Malformed and malicious safetensors files: each breaks one rule, and its error must name that rule.

`CASES` is name -> (the file's bytes, a pattern that its error must match); `PLACES` is name -> (what puts
something other than a file at a path, a pattern).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints.json_files import MAX_JSON

DATA = bytes(range(16))  # the tensors' bytes of most files: four float32


def file(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    """A safetensors file; `header` is an object or the bytes to write; `length` is what it says of them."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(
    begin: Any = 0, end: Any = 16, shape: Any = (2, 2), dtype: Any = "F32", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def one(*args: Any, **more: Any) -> bytes:
    """A file with the one tensor `entry(...)`, called w."""
    return file({"w": entry(*args, **more)})


def raw(text: str) -> bytes:
    """A file whose header is this text."""
    return file(text.encode())


GOOD = one()
_ENTRY = json.dumps(entry())
_DEEP = 100_000

HEADERS = {
    "header of 4 GB": (
        file({"w": entry()}, length=4 << 30),
        r"has a header of 4294967296 bytes, wanted at most",
    ),
    "header of 2^64": (
        file({"w": entry()}, length=(1 << 64) - 1),
        r"has a header of 18446744073709551615 bytes",
    ),
    "header of 100 MB": (
        (100 << 20).to_bytes(8, "little") + b"{" + b" " * (1 << 16),
        rf"has a header of 104857600 bytes, wanted at most {MAX_JSON}",
    ),
    "header cut off": (GOOD[:40], r"has 40 bytes, which ends within its header of 57"),
    "header one byte too long": (
        file({"w": entry()}, b"", length=58),
        r"has 65 bytes, which ends within its header of 58",
    ),
    "header one byte too short": (
        file({"w": entry()}, length=56),
        r"header: cannot be read as JSON: Expecting ',' delimiter",
    ),
    "header of nothing": (file(b"", b"{"), r"header: cannot be read as JSON: Expecting value"),
    "header not JSON": (raw("{dtype: F32}"), r"header: cannot be read as JSON: Expecting property name"),
    "header a list": (file([entry()]), r"is of an unknown kind"),
    "header after a blank": (raw(' {"w": ' + _ENTRY + "}"), r"is of an unknown kind"),
    "header and more": (raw('{"w": ' + _ENTRY + "} {}"), r"header: cannot be read as JSON: Extra data"),
    "header in UTF-16": (
        file(json.dumps({"w": entry()}).encode("utf-16-le")),
        r"header: cannot be read as JSON: (Expecting|Invalid)",
    ),
    "header not UTF-8": (
        file(b'{"\xff": ' + _ENTRY.encode() + b"}"),
        r"'utf-8' codec can't decode byte 0xff",
    ),
    "deep lists": (raw('{"w": ' + "[" * _DEEP + "]" * _DEEP + "}"), r"header: .* it is nested too deeply"),
    "deep objects": (raw('{"w": ' * _DEEP + "1" + "}" * _DEEP), r"header: .* it is nested too deeply"),
    "deep and open": (raw('{"w": ' + "[" * (MAX_JSON - 10)), r"header: .* more than 400000 lists"),
    "name twice": (raw(f'{{"w": {_ENTRY}, "w": {_ENTRY}}}'), r"header: .* the key 'w' is there twice"),
    "name twice by escape": (raw(f'{{"w": {_ENTRY}, "\\u0077": {_ENTRY}}}'), r"the key 'w' is there twice"),
    "last of many names twice": (
        raw("{" + "".join(f'"{i}": 0, ' for i in range(80_000)) + '"79999": 0}'),
        r"the key '79999' is there twice",
    ),
    "key of an entry twice": (
        raw('{"w": {"dtype": "F32", "dtype": "F16", "shape": [4], "data_offsets": [0, 16]}}'),
        r"the key 'dtype' is there twice",
    ),
    "number of 5000 digits": (raw('{"w": ' + "9" * 5000 + "}"), r"header: .* Exceeds the limit"),
}

ENTRIES = {
    # Offsets
    "begin negative": (one(-16, 0), r"'w': has the data_offsets \[-16, 0\], wanted a begin and an end"),
    "end negative": (one(0, -16), r"'w': has the data_offsets \[0, -16\], wanted"),
    "end before begin": (one(16, 0), r"'w': has the data_offsets \[16, 0\], wanted"),
    "offsets floats": (one(0.0, 16.0), r"'w': has the data_offsets \[0\.0, 16\.0\], wanted"),
    "offsets texts": (one("0", "16"), r"'w': has the data_offsets \['0', '16'\], wanted"),
    "offset true": (one(False, True), r"'w': has the data_offsets \[False, True\], wanted"),
    "offset NaN": (one(0, float("nan")), r"'w': has the data_offsets \[0, nan\], wanted"),
    "offset infinite": (one(0, float("inf")), r"'w': has the data_offsets \[0, inf\], wanted"),
    "offset 2^64": (one(0, 1 << 64), r"'w': has the data_offsets \[0, 18446744073709551616\], wanted"),
    "offset of 4000 digits": (one(0, 10**4000), r"'w': has the data_offsets \[0, 1000+\.\.\.0+\], wanted"),
    "three offsets": (
        file({"w": entry() | {"data_offsets": [0, 8, 16]}}),
        r"'w': has the data_offsets \[0, 8, 16\], wanted",
    ),
    "offsets an object": (
        file({"w": entry() | {"data_offsets": {"begin": 0}}}),
        r"'w': has the data_offsets \{'begin': 0\}, wanted",
    ),
    "end past the file": (one(0, 20, (5,)), r"'w': ends at byte 20, wanted at most the 16 that the file has"),
    "end at 2^61": (
        one(0, 1 << 61, (1 << 59,)),
        r"'w': ends at byte 2305843009213693952, wanted at most the 16",
    ),
    # Sizes
    "wrong size for the shape": (one(shape=(5,)), r"'w': has 16 bytes, wanted 20 for F32 \[5\]"),
    "wrong size for the type": (one(dtype="F16"), r"'w': has 16 bytes, wanted 8 for F16 \[2, 2\]"),
    "shape overflows to 16 bytes": (
        one(shape=((1 << 32) + 1, (1 << 32) + 1, 4)),
        r"'w': has 16 bytes, wanted 29514790\d+ for F32",
    ),
    "shape overflows to 0 bytes": (
        one(0, 0, (1 << 32, 1 << 32)),
        r"'w': has 0 bytes, wanted 73786976294838206464",
    ),
    "shape negative": (one(shape=(-2, -2)), r"'w': has the shape \[-2, -2\], wanted up to 8 whole numbers"),
    "shape a float": (one(shape=(4.0,)), r"'w': has the shape \[4\.0\], wanted"),
    "shape true": (one(0, 4, (True,)), r"'w': has the shape \[True\], wanted"),
    "shape a number": (one(shape=4), r"'w': has the shape 4, wanted"),
    "shape null": (one(shape=None), r"'w': has the shape None, wanted"),
    "shape of 10,000 dimensions": (
        one(shape=(1,) * 10_000),
        r"'w': has the shape \[1, 1, .*\.\.\.\], wanted up to 8",
    ),
    "empty of 2^61": (
        one(0, 0, (0, 1 << 61)),
        r"'w': has the shape .*, wanted sizes with a product of at most",
    ),
    # Types and other keys
    "type unknown": (one(dtype="F31"), r"'w': has the dtype 'F31', wanted one of F64, F32"),
    "type float8": (one(dtype="F8_E4M3"), r"'w': has the dtype 'F8_E4M3', .* save the weights in float32"),
    "type of 4 bits": (one(dtype="F4"), r"'w': has the dtype 'F4', wanted one of"),
    "type null": (one(dtype=None), r"'w': has the dtype None, wanted one of"),
    "type a list": (one(dtype=["F32"]), r"'w': has the dtype \['F32'\], wanted one of"),
    "key too many": (
        one(strides=[1, 2]),
        r"'w': is described by \{.*\}, wanted dtype, shape and data_offsets alone",
    ),
    "key missing": (
        file({"w": {"dtype": "F32", "shape": []}}),
        r"'w': is described by \{'dtype': 'F32', 'shape': ",
    ),
    "entry a list": (
        file({"w": ["F32", [2, 2], [0, 16]]}),
        r"'w': is described by \['F32', \[2, 2\], \[0, 16\]\]",
    ),
    "entry null": (file({"w": None}), r"'w': is described by None, wanted"),
    "terminal escapes": (file({"\x1b[2J\n": None}), r"'\\x1b\[2J\\n': is described by None"),
    "name half a surrogate": (file({"\ud800": None}), r"'\\ud800': is described by None"),
    "name of 100 kB": (file({"w" * 100_000: None}), r"'w{79}\.\.\.': is described by None"),
    "metadata a number": (
        file({"__metadata__": {"format": 1}}, b""),
        r"__metadata__: found \{'format': 1\}, wanted",
    ),
    "metadata a list": (file({"__metadata__": []}, b""), r"__metadata__: found \[\], wanted texts by name"),
    "metadata nested": (
        file({"__metadata__": {"a": {"b": "c"}}}, b""),
        r"__metadata__: found \{'a': \{'b': 'c'\}\}, wanted texts",
    ),
}

_F16 = {"shape": [4], "dtype": "F16"}

LAYOUTS = {
    "overlap": (
        file({"a": entry(0, 8, [4], "F16"), "b": entry(4, 16, [3])}),
        r"'b': overlaps 'a', wanted tensors end to end",
    ),
    "same bytes twice": (file({"a": entry(), "b": entry()}), r"'b': overlaps 'a'"),
    "one inside another": (file({"a": entry(), "b": entry(4, 8, [1])}), r"'b': overlaps 'a'"),
    "hole": (
        file({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])}),
        r"'b': leaves a hole behind 'a', wanted tensors end to end",
    ),
    "hole at the start": (one(4, 16, (3,)), r"'w': leaves a hole behind the header"),
    "empty tensor inside another": (file({"a": entry(), "b": entry(8, 8, [0])}), r"'b': overlaps 'a'"),
    "trailing bytes": (GOOD + b"\0", r"holds 1 bytes behind 'w', wanted none"),
    "no tensors, but bytes": (file({}), r"holds 16 bytes behind the header, wanted none"),
    "cut off": (
        GOOD[:-1],
        r"'w': ends at byte 16, wanted at most the 15 that the file has; download it again",
    ),
    "a second file appended": (GOOD + GOOD, r"holds 81 bytes behind 'w'"),
}

_VALUES = {"w.values": entry(0, 512, [1, 1, 8, 64], "I8"), "w.scales": entry(512, 544, [1, 1, 16], "F16")}

_MINIMA = {"w.values": entry(0, 256, [1, 1, 4, 64], "U8"), "w.scales": entry(256, 288, [1, 1, 2, 16], "U8")}


def packed(
    description: str, tensors: Any = _VALUES, size: int = 544, more: dict[str, str] | None = None
) -> bytes:
    """A file of our own with one matrix w (16, 32) in int8, as its metadata describe it."""
    metadata = {"mvlm_np.packed": "1", "w": description} | (more or {})
    return file({"__metadata__": metadata, **tensors}, bytes(size))


_SHAPES = r"wanted int8 or int4 or uint4 and a shape"

PACKED = {
    "version of the future": (
        packed("int8 16 32", more={"mvlm_np.packed": "2"}),
        r"packed: found version '2', wanted 1",
    ),
    "of another type": (packed("int3 16 32"), rf"'w': found 'int3 16 32', {_SHAPES}"),
    "without a shape": (packed("int8"), rf"'w': found 'int8', {_SHAPES}"),
    "described by nothing": (packed(""), rf"'w': found '', {_SHAPES}"),
    "negative": (packed("int8 -16 32"), rf"'w': found 'int8 -16 32', {_SHAPES}"),
    "of no rows": (packed("int8 0 32"), rf"'w': found 'int8 0 32', {_SHAPES}"),
    "of 100,000 dimensions": (
        packed("int8" + " 999999999" * 100_000),
        rf"'w': found 'int8 999.*\.\.\.', {_SHAPES}",
    ),
    "in other digits": (packed("int8 １６ 32"), rf"'w': found 'int8 .*', {_SHAPES}"),
    "larger than stored": (
        packed("int8 17 32"),
        r"'w': its values are int8 \[1, 1, 8, 64\], wanted int8 \[2, 1, 8, 64\]",
    ),
    "of other bits than stored": (
        packed("int4 16 32"),
        r"'w': its values are int8 \[1, 1, 8, 64\], wanted uint8 \[1, 1, 4",
    ),
    "without values": (
        packed("int8 16 32", {}, 0),
        r"'w': its values are missing, wanted int8 \[1, 1, 8, 64\]",
    ),
    "without scales": (
        packed("int8 16 32", {"w.values": _VALUES["w.values"]}, 512),
        r"'w': its scales are missing, wanted float16 \[1, 1, 16\]",
    ),
    "uint4 without tops": (
        packed("uint4 16 32", _MINIMA, 288),
        r"'w': its tops are missing, wanted float16 \[1, 1, 2, 16\]",
    ),
    "uint4 with scales of another kind": (
        packed("uint4 16 32", _MINIMA | {"w.scales": entry(256, 288, [1, 1, 16], "F16")}, 288),
        r"'w': its scales are float16 \[1, 1, 16\], wanted uint8 \[1, 1, 2, 16\] for uint4 16 32",
    ),
    "uint4 with tops for more super-blocks": (
        packed("uint4 16 32", {**_MINIMA, "w.tops": entry(288, 416, [1, 2, 2, 16], "F16")}, 416),
        r"'w': its tops are float16 \[1, 2, 2, 16\], wanted float16 \[1, 1, 2, 16\]",
    ),
    "and as it is": (
        packed("int8 16 32", {**_VALUES, "w": entry(544, 544, [0])}),
        r"'w': is there packed and as it is, wanted one of the two",
    ),
    "by an escaped name": (packed("int8 16 32", more={"\x1b[2J": ""}), rf"'\\x1b\[2J': found '', {_SHAPES}"),
}

OTHERS = {
    "nothing": (b"", r"is empty"),
    "eight bytes": (bytes(8), r"begins with zeros, as an unfinished download may"),
    "zeros": (bytes(4096), r"begins with zeros"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        r"is a Git LFS pointer.*git lfs pull",
    ),
    "web page": (
        b"\n<!DOCTYPE html><title>404</title>",
        r"is a web page, wanted a safetensors file; download the file again",
    ),
    "text": (b"Entry not found", r"is a text that begins 'Entry not found', wanted a safetensors file"),
    "pickle": (b"PK\x03\x04" + bytes(60), r"is a zip archive, as torch\.save writes.*\.bin"),
    "GGUF": (b"GGUF\x03" + bytes(60), r"is a GGUF file.*\.gguf"),
    "noise": (
        b"\x93\x01\xff\xfe" * 9,
        r"is of an unknown kind \(its first bytes are 93 01 ff fe 93 01 ff fe\)",
    ),
}

CASES: dict[str, tuple[bytes, str]] = {
    **{f"header: {name}": case for name, case in HEADERS.items()},
    **{f"entry: {name}": case for name, case in ENTRIES.items()},
    **{f"layout: {name}": case for name, case in LAYOUTS.items()},
    **{f"packed: {name}": case for name, case in PACKED.items()},
    **{f"other: {name}": case for name, case in OTHERS.items()},
}

PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, r"cannot be read \(not a regular file\)"),
    "a pipe": (os.mkfifo, r"cannot be read \(not a regular file\)"),
    "link to a device": (
        lambda path: path.symlink_to("/dev/zero"),
        r"cannot be read \(not a regular file\)",
    ),
    "link to nowhere": (
        lambda path: path.symlink_to("absent"),
        r"is a link to 'absent', which is not there",
    ),
    "link to itself": (lambda path: path.symlink_to(path), r"cannot be read \(Too many levels"),
    "sparse file of 1 TB": (lambda path: _sparse(path, 1 << 40), r"holds 1099511627.* bytes behind 'w'"),
}


def _sparse(path: Path, size: int) -> None:
    path.write_bytes(GOOD)
    os.truncate(path, size)
