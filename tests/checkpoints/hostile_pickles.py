"""Malformed and malicious torch files: each breaks one rule, and its error must name that rule.

`CASES` is name -> (the file's bytes, a pattern that its error must match). The first half of this
file builds zip archives and pickles by hand, since no honest writer would.
"""

import io
import pickle
import struct
import tarfile
import zlib
from dataclasses import dataclass

from mvlm_np.checkpoints.pickles import MAX_PICKLE
from mvlm_np.checkpoints.torch_zip import IN_EXTRA, MAX_NAME, MAX_RECORDS

# -- Zip archives -------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A record as the central directory has it. What is None is what an honest writer would put there."""

    name: bytes
    data: bytes = b""
    flags: int = 0
    method: int = 0
    packed: int | None = None
    size: int | None = None
    header: int | None = None
    disk: int = 0
    extra: bytes = b""
    local: bytes | None = None  # the whole local header
    local_name: bytes | None = None
    local_method: int | None = None
    local_size: int | None = None


def archive(
    *entries: Entry,
    count: int | None = None,
    start: int | None = None,
    disk: int = 0,
    comment: bytes = b"",
    between: bytes = b"",
) -> bytes:
    """A zip of `entries`; the keywords change what its end says. `between` stands before the end record."""
    body, directory = bytearray(), bytearray()
    for e in entries:
        packed = len(e.data) if e.packed is None else e.packed
        size = len(e.data) if e.size is None else e.size
        header = len(body) if e.header is None else e.header
        directory += b"PK\x01\x02" + struct.pack("<HHHHHHLLL", 0, 0, e.flags, e.method, 0, 0, 0, packed, size)
        directory += (
            struct.pack("<HHHHHLL", len(e.name), len(e.extra), 0, e.disk, 0, 0, header) + e.name + e.extra
        )
        name = e.name if e.local_name is None else e.local_name
        method = e.method if e.local_method is None else e.local_method
        local = min(size, IN_EXTRA) if e.local_size is None else e.local_size
        made = b"PK\x03\x04" + struct.pack(
            "<HHHHHLLLHH", 0, e.flags, method, 0, 0, 0, local, local, len(name), 0
        )
        body += (made + name if e.local is None else e.local) + e.data
    count = len(entries) if count is None else count
    start = len(body) if start is None else start
    end = struct.pack("<HHHHLLH", disk, disk, count, count, len(directory), start, len(comment))
    return bytes(body + directory) + between + b"PK\x05\x06" + end + comment


def zip64_end(
    count: int, size: int, start: int, end: int | None = None, signature: bytes = b"PK\x06\x06"
) -> bytes:
    """The two records that stand between a directory and its end in a large archive."""
    large = signature + struct.pack("<QHHLLQQQQ", 44, 0, 0, 0, 0, count, count, size, start)
    return large + b"PK\x06\x07" + struct.pack("<LQL", 0, start + size if end is None else end, 1)


# -- Pickles ------------------------------------------------------------------------------------------

PROTO = b"\x80\x02"
FLOATS = b"ctorch\nFloatStorage\n"
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def many(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def mapping(*pairs: bytes) -> bytes:
    """A dict of keys and values in turn."""
    return b"}(" + b"".join(pairs) + b"u"


def storage(key: str = "0", count: int = 4, kind: bytes = FLOATS, tag: str = "storage") -> bytes:
    return many(text(tag), kind, text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    stored: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 2),
    strides: tuple[int, ...] = (2, 1),
) -> bytes:
    sizes, steps = many(*map(number, shape)), many(*map(number, strides))
    return REBUILD + many(stored or storage(), number(offset), sizes, steps, b"\x89", b"}") + b"R"


def state(*values: bytes) -> bytes:
    """A whole pickle of a state dict with the tensors `values`."""
    return PROTO + mapping(*(text(f"w{i}") + value for i, value in enumerate(values))) + b"."


GOOD = state(tensor())
VALUES = struct.pack("<4f", 1, 2, 3, 4)


def checkpoint(code: bytes = GOOD, *more: Entry, values: bytes = VALUES) -> bytes:
    """A torch file with one storage of four float32 and whatever `more` adds."""
    return archive(Entry(b"m/data.pkl", code), Entry(b"m/data/0", values), Entry(b"m/version", b"3\n"), *more)


def run(code: bytes) -> bytes:
    """A torch file whose pickle is `code` between PROTO and STOP."""
    return checkpoint(PROTO + code + b".")


def calls(function: bytes, *arguments: bytes) -> bytes:
    return run(function + many(*arguments) + b"R")


def deflated(name: bytes, data: bytes) -> Entry:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return Entry(name, packer.compress(data) + packer.flush(), method=8, size=len(data))


# -- The corpus ---------------------------------------------------------------------------------------

CANARY = "MVLM_NP_CANARY"  # what the malicious ones would set in the environment
_PYTHON = text(f"__import__('os').environ['{CANARY}'] = 'dead'")
_SHELL = text("exit 1")
_FULL = MAX_PICKLE - 16  # as long as a program may be, with some bytes to spare
_LAUGHS = b"]q\x00" + b"".join(b"](" + b"h%c" % (i % 256) * 10 + b"eq%c" % (i % 256 + 1) for i in range(100))


def _instruction(opcode: str, operands: bytes = b"") -> tuple[bytes, str]:
    """A file that uses an instruction which torch.save never writes."""
    code = next(pickle_code for name, pickle_code in vars(pickle).items() if name == opcode)
    return run(code + operands), rf"byte \d+: {opcode} is no instruction that torch.save writes"


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


_NAMES = r"GLOBAL asks for '{}', wanted only what"

PROGRAMS: dict[str, tuple[bytes, str]] = {
    # What it asks for and calls
    "os.system": (calls(b"cos\nsystem\n", _SHELL), _NAMES.format(r"os\.system")),
    "eval": (calls(b"c__builtin__\neval\n", _PYTHON), _NAMES.format(r"__builtin__\.eval")),
    "getattr chain": (
        calls(b"cbuiltins\ngetattr\n", FLOATS, text("mro")),
        _NAMES.format(r"builtins\.getattr"),
    ),
    "dotted name": (
        calls(b"ctorch\nFloatStorage.os.system\n", _SHELL),
        r"asks for 'torch\.FloatStorage\.os\.system'",
    ),
    "torch.load": (calls(b"ctorch\nload\n", text("/etc/passwd")), _NAMES.format(r"torch\.load")),
    "unlisted storage": (run(b"ctorch\nQInt8Storage\n"), _NAMES.format(r"torch\.QInt8Storage")),
    "other rebuild": (
        run(b"ctorch._utils\n_rebuild_tensor_v3\n"),
        r"asks for 'torch\._utils\._rebuild_tensor_v3'",
    ),
    "terminal escapes": (run(b"cos\n\x1b[2Jsystem\n"), r"asks for 'os\.\\x1b\[2Jsystem'"),
    "endless name": (run(b"c" + b"a" * 100_000), r"GLOBAL has a name without an end"),
    "name in two": (run(b"ctorch\nFloatStorage"), r"GLOBAL has a name without an end"),
    "INST": _instruction("INST", b"os\nsystem\n"),
    "OBJ": _instruction("OBJ"),
    "NEWOBJ": _instruction("NEWOBJ"),
    "STACK_GLOBAL": _instruction("STACK_GLOBAL"),
    "EXT1": _instruction("EXT1", b"\x01"),
    "PERSID": _instruction("PERSID", b"storage\n"),
    "BINUNICODE8 of 16 EB": _instruction("BINUNICODE8", b"\xff" * 8),
    "LONG4 of 2 GB": _instruction("LONG4", b"\xff\xff\xff\x7f"),
    "LONG of many digits": _instruction("LONG", b"9" * 200_000 + b"L\n"),
    "second PROTO": (run(PROTO + b"N"), r"byte 2: PROTO is no instruction"),
    "no opcode": (run(b"\xff"), r"byte 2: 0xff is no instruction"),
    "OrderedDict of pairs": (
        calls(ORDERED, b"]"),
        r"calls collections\.OrderedDict with a value of type list",
    ),
    "call of a storage class": (calls(FLOATS, number(1 << 40)), r"REDUCE calls torch\.FloatStorage with"),
    "call of a string": (calls(text("os.system"), _SHELL), r"REDUCE calls a value of type str with"),
    "call of a tensor": (calls(tensor()), r"REDUCE calls a value of type TensorView with"),
    "call without a tuple": (
        run(ORDERED + b"]R"),
        r"REDUCE calls collections\.OrderedDict with a value of type list",
    ),
    "tensor without arguments": (calls(REBUILD), r"_rebuild_tensor_v2 with nothing"),
    "tensor of a string": (
        calls(REBUILD, _SHELL, number(0), b")", b")", b"\x89", b"}"),
        r"_v2 with a value of type str",
    ),
    "tensor, size a list": (
        calls(REBUILD, storage(), number(0), b"]", b"]", b"\x89", b"}"),
        r"list, a value of type list",
    ),
    "tensor, sizes text": (
        calls(REBUILD, storage(), number(0), many(text("9")), many(text("9")), b"\x89", b"}"),
        r"wanted the arguments that torch writes",
    ),
    "tensor, 9 dimensions": (
        run(mapping(text("w"), tensor(shape=(1,) * 9, strides=(1,) * 9))),
        r"the arguments that torch",
    ),
    "tensor, lengths differ": (
        run(mapping(text("w"), tensor(strides=(1,)))),
        r"the arguments that torch writes",
    ),
    "parameter of text": (
        calls(b"ctorch._utils\n_rebuild_parameter\n", _SHELL, b"\x89", b"}"),
        r"_rebuild_parameter with",
    ),
    "BUILD on a tensor": (run(tensor() + b"}b"), r"BUILD fills a value of type TensorView, wanted a dict"),
    "BUILD on a class": (run(ORDERED + b"}b"), r"BUILD fills collections\.OrderedDict, wanted a dict"),
    "BUILD with slots": (
        run(ORDERED + b")R" + many(b"N", b"}") + b"b"),
        r"BUILD has as attributes a value of type tuple",
    ),
    "BUILD with text": (run(b"}" + text("__class__") + b"b"), r"BUILD has as attributes a value of type str"),
    # What it costs
    "deep lists": (
        run(b"]" * (_FULL // 2) + b"a" * (_FULL // 2 - 1)),
        r"holds a value of type list, wanted a state dict",
    ),
    "deep tuples": (run(b")" + b"\x85" * _FULL), r"holds a value of type tuple, wanted a state dict"),
    "deep tuple as a key": (
        run(b"}(" + b")" + b"\x85" * (_FULL - 8) + b"Nu"),
        r"has as a key a value of type tuple",
    ),
    "deep persistent id": (
        run(b")" + b"\x85" * (_FULL - 8) + b"Q"),
        r"storage '\?': is identified by a value of type tuple",
    ),
    "deep value": (run(mapping(text("w"), b")" + b"\x85" * (_FULL - 32))), r"'w': is a value of type tuple"),
    "a million dicts": (run(b"}" * _FULL), r"STOP leaves \d+ values"),
    "a million marks": (run(b"(" * _FULL), r"STOP leaves 0 values and \d+ marks"),
    "memo bomb": (
        run(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(_FULL // 5))),
        r"holds None",
    ),
    "memo at the far end": (run(b"Nr\xff\xff\xff\xffNj\xff\xff\xff\xff"), r"STOP leaves 3 values"),
    "billion laughs": (run(_LAUGHS), r"STOP leaves \d+ values"),
    "dict that holds itself": (run(b"}q\0" + text("w") + b"h\0s"), r"'w': is a value of type dict"),
    "string of 4 GB": (run(b"X\xff\xff\xff\xff"), r"BINUNICODE reaches \d+ bytes past the program's end"),
    "number of 255 bytes": (run(b"\x8a\xff" + b"\x7f" * 255), r"LONG1 has a whole number of 255 bytes"),
    "program too long": (
        run(b"N" * MAX_PICKLE),
        rf"has a data\.pkl of \d+ bytes, wanted at most {MAX_PICKLE}",
    ),
    # How it is written
    "protocol 4": (checkpoint(pickle.dumps({}, 4)), r"PROTO starts a pickle of another protocol"),
    "protocol 0": (checkpoint(pickle.dumps({}, 0)), r"byte 0: MARK starts a pickle of another protocol"),
    "empty program": (checkpoint(b""), r"reaches 2 bytes past the program's end"),
    "no STOP": (checkpoint(PROTO + b"}"), r"byte 3: ends, wanted STOP before that"),
    "nothing on the stack": (run(b""), r"STOP leaves 0 values"),
    "second program": (checkpoint(GOOD + GOOD), r"STOP is followed by \d+ bytes"),
    "stack too short": (run(b"R"), r"REDUCE takes more values than the stack has"),
    "reach below a MARK": (run(b"N(\x85"), r"TUPLE1 takes more values than the stack has"),
    "no MARK": (run(b"}u"), r"SETITEMS lacks its MARK"),
    "key without a value": (run(b"}(" + text("w") + b"u"), r"SETITEMS has a key without a value"),
    "key that is a number": (run(b"}K\1Ns"), r"SETITEM has as a key a value of type int"),
    "key twice": (run(mapping(text("w"), b"N", text("w"), b"N")), r"sets the key 'w' twice"),
    "append to a dict": (run(b"}Na"), r"APPEND fills a value of type dict, wanted a list"),
    "items into a list": (
        run(b"](" + text("w") + b"Nu"),
        r"SETITEMS fills a value of type list, wanted a dict",
    ),
    "recall of nothing": (run(b"h\7"), r"BINGET recalls value 7, which was not stored"),
    "text not UTF-8": (run(b"X\2\0\0\0\xff\xff"), r"BINUNICODE has a string that is not UTF-8"),
    # What it says about storages and tensors
    "persistent id of text": (run(text("0") + b"Q"), r"storage '\?': is identified by a value of type str"),
    "persistent module": (run(storage(tag="module")), r"storage '0': is a 'module' of torch\.FloatStorage"),
    "persistent id, no class": (
        run(storage(kind=ORDERED)),
        r"storage '0': is a 'storage' of collections\.OrderedDict",
    ),
    "storage without a record": (run(storage("1")), r"storage '1': has no record in the archive"),
    "storage outside data": (run(storage("../data.pkl")), r"storage '\.\./data\.pkl': has no record"),
    "storage says more": (run(storage(count=5)), r"has 16 bytes, wanted the 5 values of float32"),
    "storage says less": (run(storage(count=3)), r"has 16 bytes, wanted the 3 values of float32"),
    "storage says 10^18": (run(storage(count=10**18)), r"wanted the 10{18} values of float32"),
    "storage says -4": (run(storage(count=-4)), r"wanted the -4 values of float32"),
    "storage of two types": (
        checkpoint(state(tensor(), tensor(storage(kind=b"ctorch\nIntStorage\n")))),
        r"storage '0': is used as float32 and as int32",
    ),
    "negative offset": (checkpoint(state(tensor(offset=-1))), r"has offset -1, .* no negative numbers"),
    "negative size": (
        checkpoint(state(tensor(shape=(-2, -2)))),
        r"has .* shape \(-2, -2\) .* no negative numbers",
    ),
    "negative stride": (
        checkpoint(state(tensor(strides=(-2, 1)))),
        r"has .* strides \(-2, 1\), .* no negative numbers",
    ),
    "offset too large": (checkpoint(state(tensor(offset=1))), r"has offset 1, .* an end before 5"),
    "stride too large": (
        checkpoint(state(tensor(strides=(3, 1)))),
        r"strides \(3, 1\), wanted an end before 5",
    ),
    "stride of 2^62": (checkpoint(state(tensor(strides=(1 << 62, 1)))), r"wanted an end before 46"),
    "offset of 2^62, empty": (
        checkpoint(state(tensor(offset=1 << 62, shape=(0, 1)))),
        r"has offset 46.* an end before",
    ),
    "more values than stored": (
        checkpoint(state(tensor(shape=(5,), strides=(1,)))),
        r"\(5,\), wanted at most the 4 values",
    ),
    "stride 0 bomb": (
        checkpoint(state(tensor(shape=(10**12,), strides=(0,)))),
        r"wanted at most the 4 values stored",
    ),
    "sizes overflow": (
        checkpoint(state(tensor(shape=(1 << 32, 1 << 32)))),
        r"wanted at most the 4 values stored",
    ),
    "empty of 2^62": (checkpoint(state(tensor(shape=(0, 1 << 62)))), r"sizes with a product of at most"),
    # What it holds
    "a tensor alone": (run(tensor()), r"holds a value of type TensorView, wanted a state dict"),
    "training checkpoint": (
        run(mapping(text("epoch"), b"K\3", text("state_dict"), mapping(text("w"), tensor()))),
        r"'epoch': is a value of type int \(the file's keys are 'epoch', 'state_dict'\)",
    ),
    "name of 100 kB": (run(mapping(text("\x1b" * 100_000), b"N")), r"'(\\x1b)+\S*\.\.\.': is None"),
}

_BIG_OFFSET = struct.pack("<HHQ", 1, 8, 1 << 63)

ARCHIVES: dict[str, tuple[bytes, str]] = {
    # Records that torch never writes
    "deflated bomb": (
        archive(deflated(b"m/data.pkl", bytes(50_000_000))),
        r"record 'm/data\.pkl' is compressed, wanted stored bytes",
    ),
    "deflated storage": (
        archive(Entry(b"m/data.pkl", GOOD), deflated(b"m/data/0", VALUES)),
        r"'m/data/0' is compressed",
    ),
    "packed is not size": (checkpoint(GOOD, Entry(b"m/x", b"abc", size=1 << 31)), r"'m/x' is compressed"),
    "encrypted": (checkpoint(GOOD, Entry(b"m/x", flags=1)), r"'m/x' is encrypted"),
    "patch data": (checkpoint(GOOD, Entry(b"m/x", flags=0x20)), r"'m/x' has the zip flags 0x0020"),
    "name climbs": (
        checkpoint(GOOD, Entry(b"m/../../etc/passwd")),
        r"has the record name 'm/\.\./\.\./etc/passwd'",
    ),
    "name absolute": (checkpoint(GOOD, Entry(b"/etc/passwd")), r"has the record name '/etc/passwd'"),
    "name of Windows": (checkpoint(GOOD, Entry(b"m/..\\x")), r"has the record name 'm/\.\.\\\\x'"),
    "name with NUL": (checkpoint(GOOD, Entry(b"m/x\0.pkl")), r"has the record name 'm/x\\x00\.pkl'"),
    "name not UTF-8": (checkpoint(GOOD, Entry(b"m/\xff")), r"has the record name .*wanted UTF-8"),
    "name without folder": (
        archive(Entry(b"data.pkl", GOOD)),
        r"has the record name 'data\.pkl', wanted names such as",
    ),
    "name too long": (checkpoint(GOOD, Entry(b"m/" + b"x" * MAX_NAME)), r"has a record name of 514 bytes"),
    "two archives": (checkpoint(GOOD, Entry(b"n/data.pkl", GOOD)), r"holds two archives, 'm' and 'n'"),
    "record twice": (checkpoint(GOOD, Entry(b"m/data.pkl", GOOD)), r"holds the record 'm/data\.pkl' twice"),
    "storage twice": (checkpoint(GOOD, Entry(b"m/data/0", VALUES)), r"holds the record 'm/data/0' twice"),
    # Where the records lie
    "two names, one header": (
        checkpoint(GOOD, Entry(b"m/0", b"", local=b"", header=0, size=len(GOOD), packed=len(GOOD))),
        r"record 'm/0' has a local header that disagrees",
    ),
    "overlap": (
        archive(
            Entry(b"m/data.pkl", GOOD),
            Entry(b"m/data/0", archive(Entry(b"m/data/1", VALUES))),
            Entry(b"m/data/1", b"", local=b"", header=40 + len(GOOD) + 38, size=16, packed=16),
        ),
        r"has overlapping records, 'm/data/0' and 'm/data/1'",
    ),
    "header past the end": (
        checkpoint(GOOD, Entry(b"m/x", header=1 << 30)),
        r"'m/x' has its header at 1073741824",
    ),
    "header of 2^63": (
        checkpoint(GOOD, Entry(b"m/x", header=IN_EXTRA, extra=_BIG_OFFSET)),
        r"'m/x' has its header at 9223372036854775808",
    ),
    "header is something else": (
        checkpoint(GOOD, Entry(b"m/x", header=4)),
        r"'m/x' has a local header that disagrees",
    ),
    "data past the directory": (
        archive(Entry(b"m/data.pkl", GOOD), Entry(b"m/data/0", b"abc", packed=64, size=64)),
        r"record 'm/data/0' ends at \d+, wanted at most \d+",
    ),
    "local name differs": (
        checkpoint(GOOD, Entry(b"m/x", local_name=b"m/y")),
        r"'m/x' has a local header that disagrees",
    ),
    "local method differs": (
        checkpoint(GOOD, Entry(b"m/x", local_method=8)),
        r"'m/x' has a local header that disagrees",
    ),
    "local size differs": (
        checkpoint(GOOD, Entry(b"m/x", local_size=7)),
        r"'m/x' has a local header that disagrees",
    ),
    "size in no extra": (checkpoint(GOOD, Entry(b"m/x", size=IN_EXTRA)), r"'m/x' lacks the zip64 sizes"),
    "size in a short extra": (
        checkpoint(GOOD, Entry(b"m/x", size=IN_EXTRA, packed=IN_EXTRA, extra=_BIG_OFFSET)),
        r"'m/x' lacks the zip64 sizes",
    ),
    # The directory
    "truncated": (checkpoint()[:-1], r"has no zip directory at its end: it is truncated, or something was"),
    "half a download": (checkpoint()[: len(GOOD) // 2], r"has no zip directory at its end"),
    "signature alone": (b"PK\x03\x04", r"has no zip directory at its end"),
    "appended": (checkpoint() + b"\0", r"has no zip directory at its end"),
    "comment": (archive(Entry(b"m/data.pkl", GOOD), comment=bytes(22)), r"has no zip directory at its end"),
    "end inside a comment": (
        archive(Entry(b"m/data.pkl", GOOD), comment=b"PK\5\6" + bytes(16) + b"\5\0"),
        r"has a zip comment of 5 bytes",
    ),
    "more records than entries": (
        archive(Entry(b"m/data.pkl", GOOD), Entry(b"m/data/0", VALUES), count=3),
        r"has a zip directory of 110 bytes at \d+ for 3 records",
    ),
    "fewer records than entries": (
        archive(Entry(b"m/data.pkl", GOOD), Entry(b"m/data/0", VALUES), count=1),
        r"has a zip directory that goes on to \d+ after its 1 records",
    ),
    "65535 records": (
        archive(Entry(b"m/data.pkl", GOOD), count=0xFFFF),
        rf"has 65535 zip records, wanted at most {MAX_RECORDS}",
    ),
    "directory elsewhere": (
        archive(Entry(b"m/data.pkl", GOOD), start=7),
        r"has a zip directory of \d+ bytes at 7 for 1 records",
    ),
    "several parts": (archive(Entry(b"m/data.pkl", GOOD), disk=1), r"is one part of a zip in several parts"),
    "record in another part": (checkpoint(GOOD, Entry(b"m/x", disk=1)), r"'m/x' is in another part"),
    "no directory entry": (
        checkpoint().replace(b"PK\x01\x02", b"PK\x01\x03", 1),
        r"has no zip directory entry at \d+, wanted one per record",
    ),
    "zip64 pointer astray": (
        archive(Entry(b"m/data.pkl", GOOD), between=zip64_end(1, 56, 40 + len(GOOD), end=0)),
        r"has a zip64 locator that points to 0",
    ),
    "zip64 end absent": (
        archive(Entry(b"m/data.pkl", GOOD), between=zip64_end(1, 56, 40 + len(GOOD), signature=b"PK\0\0")),
        r"has no zip64 directory end where its locator points",
    ),
    "two ends disagree": (
        archive(Entry(b"m/data.pkl", GOOD), count=2, between=zip64_end(1, 56, 40 + len(GOOD))),
        r"has two zip directory ends that disagree",
    ),
    "zip64 of 2^63 records": (
        archive(Entry(b"m/data.pkl", GOOD), count=0xFFFF, between=zip64_end(1 << 63, 56, 40 + len(GOOD))),
        r"has 9223372036854775808 zip records",
    ),
    # The records' meaning
    "no data.pkl": (archive(Entry(b"m/data/0", VALUES)), r"is a zip archive without data\.pkl"),
    "big-endian": (checkpoint(GOOD, Entry(b"m/byteorder", b"big")), r"says that its byteorder is not little"),
    "long byteorder": (checkpoint(GOOD, Entry(b"m/byteorder", b"little" * 1000)), r"byteorder is not little"),
}

_TORCH_1_5 = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)

OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"is empty"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        r"is a Git LFS pointer.*git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><title>404</title>", r"is a web page"),
    "text": (b"Entry not found", r"is a text that begins 'Entry not found'"),
    "torch 1.5": (
        _TORCH_1_5,
        r"is in the format of torch before 1\.6, wanted .*torch\.save\(torch\.load\(OLD\), NEW\)",
    ),
    "torch 0.1": (_tar(), r"is in the format of torch before 1\.6"),
    "bare pickle": (pickle.dumps({"w": [1.0]}, 2), r"is a bare pickle"),
    "safetensors": (b"\x10" + bytes(7) + b'{"w":{}}', r"is a safetensors file.*\.safetensors"),
    "GGUF": (b"GGUF\3\0\0\0", r"is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\0", r"is compressed with gzip"),
    "zeros": (bytes(4096), r"begins with zeros"),
    "noise": (b"\x93\x01\xff\xfe\x00", r"is of an unknown kind \(its first bytes are 93 01 ff fe 00\)"),
}

CASES = {
    **{f"pickle: {name}": case for name, case in PROGRAMS.items()},
    **{f"zip: {name}": case for name, case in ARCHIVES.items()},
    **{f"other: {name}": case for name, case in OTHERS.items()},
}
