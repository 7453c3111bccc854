"""The zip archive around a torch checkpoint, with every record where it lies in the file.

torch.save stores records uncompressed, so their bytes can be mapped in place. What the standard
library's `zipfile` forgives (prefixes, comments, compression, overlaps, two records of one name,
local headers that say something else) is refused here: torch writes none of it.
Format: PKWARE's APPNOTE 6.3, sections 4.3 and 4.4.
"""

import itertools
import struct
from dataclasses import dataclass

from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tensors import MappedFile
from mvlm_np.errors import CheckpointError

# Bounds on what is worth parsing. The largest model of the family has about 700 records.
MAX_RECORDS = 16384
MAX_NAME = 512

# Fields that nobody needs are skipped ("x"): versions, times, checksums, attributes. torch lets
# its users switch checksums off, so a wrong one proves nothing.
END = struct.Struct("<4sHHHHLLH")  # signature, disks, records here, records, size, offset, comment
LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of END64, disks
END64 = struct.Struct("<4s12xLLQQQQ")  # signature, disks, records here, records, size, offset
CENTRAL = struct.Struct("<4s4xHH8xLLHHHH6xL")  # signature, flags, method, sizes, lengths, disk, offset
LOCAL = struct.Struct("<4s2xHH8xLLHH")  # signature, flags, method, sizes, lengths
SIZES_FOLLOW, UTF8 = 0x0008, 0x0800  # flags that torch sets
IN_EXTRA = 0xFFFFFFFF  # a field whose value is too large for it and stands in the zip64 extra


@dataclass(frozen=True, slots=True)
class Record:
    """Where one record's bytes lie in the file."""

    offset: int
    size: int


def read_records(file: MappedFile) -> dict[str, Record]:
    """The archive's records, by name without the archive's own: "data.pkl", "data/0", "version" ...

    Raises CheckpointError for anything that torch does not write. No record's bytes are read.
    """
    start, end, count = _directory(file)
    records: dict[str, Record] = {}
    spans: list[tuple[int, int, str]] = []
    archive = None
    at = start
    for index in range(count):
        at, header, record, full = _record(file, at, start)
        prefix, _, name = full.partition("/")
        archive = archive or prefix
        if prefix != archive:
            raise _refusal(file, f"holds two archives, {show(archive)} and {show(prefix)}", "one")
        if name in records:
            raise _refusal(file, f"holds the record {show(full)} twice", "each name once")
        records[name] = record
        spans.append((header, record.offset + record.size, full))
        if index % 256 == 0:
            file.forget(0, file.size)  # headers lie far apart; their pages would add up
    if at != end:
        raise _refusal(file, f"has a zip directory that goes on to {end} after its {count} records", at)
    spans.sort()
    for (_, stop, one), (begin, _, other) in itertools.pairwise(spans):
        if begin < stop:
            raise _refusal(file, f"has overlapping records, {show(one)} and {show(other)}", "separate bytes")
    return records


def _directory(file: MappedFile) -> tuple[int, int, int]:
    """Where the central directory begins and ends, and the number of its records."""
    end = file.size - END.size
    if end < 0 or (tail := _unpack(END, file, end))[0] != b"PK\x05\x06":
        raise _refusal(
            file,
            "has no zip directory at its end: it is truncated, or something was appended",
            fix="download it again",
        )
    _, disk, first_disk, here, count, size, start, comment = tail
    if comment:
        raise _refusal(file, f"has a zip comment of {comment} bytes", "none, as torch writes it")
    locator = end - LOCATOR.size
    if locator >= 0 and (pointer := _unpack(LOCATOR, file, locator))[0] == b"PK\x06\x07":
        small = (here, count, size, start)
        end = pointer[2]
        if pointer[1] != 0 or pointer[3] > 1 or end + END64.size != locator:
            raise _refusal(file, f"has a zip64 locator that points to {end}", locator - END64.size)
        signature, disk, first_disk, here, count, size, start = _unpack(END64, file, end)
        if signature != b"PK\x06\x06":
            raise _refusal(file, "has no zip64 directory end where its locator points")
        pairs = zip(small, (here, count, size, start), (0xFFFF, 0xFFFF, IN_EXTRA, IN_EXTRA), strict=True)
        if any(short not in (long, elsewhere) for short, long, elsewhere in pairs):
            raise _refusal(file, "has two zip directory ends that disagree", "the same figures in both")
    if disk or first_disk or here != count:
        raise _refusal(file, "is one part of a zip in several parts", "a whole archive")
    if count > MAX_RECORDS:
        raise _refusal(file, f"has {count} zip records", f"at most {MAX_RECORDS}")
    if start + size != end or size < count * CENTRAL.size:
        raise _refusal(
            file,
            f"has a zip directory of {size} bytes at {start} for {count} records",
            f"one that ends at {end}",
        )
    return start, end, count


def _record(file: MappedFile, at: int, limit: int) -> tuple[int, int, Record, str]:
    """One record, from its directory entry at `at`: next entry, local header, bytes, full name."""
    entry = _unpack(CENTRAL, file, at)
    signature, flags, method, packed, size, name_length, extra_length, comment, disk, header = entry
    if signature != b"PK\x01\x02":
        raise _refusal(file, f"has no zip directory entry at {at}", "one per record")
    raw = _slice(file, at + CENTRAL.size, name_length)
    name = _name(file, raw)
    at += CENTRAL.size + name_length
    extra = _slice(file, at, extra_length)
    if IN_EXTRA in (packed, size, header):
        size, packed, header = _zip64(file, name, extra, [size, packed, header])
    if flags & ~(SIZES_FOLLOW | UTF8):
        what = "is encrypted" if flags & 1 else f"has the zip flags {flags:#06x}"
        raise _refusal(file, f"record {show(name)} {what}", "a plain record")
    if method or packed != size:
        raise _refusal(file, f"record {show(name)} is compressed", "stored bytes, as torch writes them")
    if disk:
        raise _refusal(file, f"record {show(name)} is in another part of a zip in several parts")
    if header + LOCAL.size > limit:
        raise _refusal(file, f"record {show(name)} has its header at {header}", f"one before {limit}")
    signature, *local, local_packed, local_size, local_length, local_extra = _unpack(LOCAL, file, header)
    offset = header + LOCAL.size + local_length + local_extra
    # The local sizes are 0 where they follow the data, and IN_EXTRA where they stand in the extra.
    deferred = 0 if flags & SIZES_FOLLOW else size
    agree = all(s in (size, deferred, IN_EXTRA) for s in (local_packed, local_size))
    same_name = local_length == name_length and _slice(file, header + LOCAL.size, name_length) == raw
    if signature != b"PK\x03\x04" or local != [flags, method] or not agree or not same_name:
        raise _refusal(file, f"record {show(name)} has a local header that disagrees with the zip directory")
    if offset + size > limit:
        raise _refusal(file, f"record {show(name)} ends at {offset + size}", f"at most {limit}")
    return at + extra_length + comment, header, Record(offset, size), name


def _name(file: MappedFile, raw: bytes) -> str:
    """A record's name; never used as a path, and yet refused where it would be a bad one."""
    if len(raw) > MAX_NAME:
        raise _refusal(file, f"has a record name of {len(raw)} bytes", f"at most {MAX_NAME}")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _refusal(file, f"has the record name {raw[:80]!r}", "UTF-8") from None
    parts = name.split("/")
    if len(parts) < 2 or not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or "\0" in name:
        raise _refusal(file, f"has the record name {show(name)}", "names such as archive/data/0")
    return name


def _zip64(file: MappedFile, name: str, extra: bytes, fields: list[int]) -> list[int]:
    """Size, packed size and offset, with those that are IN_EXTRA taken from the zip64 extra."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        values = extra[at + 4 : at + 4 + length]
        if kind == 1 and length == 8 * fields.count(IN_EXTRA) == len(values):
            large = iter(struct.unpack(f"<{length // 8}Q", values))
            return [next(large) if field == IN_EXTRA else field for field in fields]
        at += 4 + length
    raise _refusal(file, f"record {show(name)} lacks the zip64 sizes that its header promises")


def _slice(file: MappedFile, offset: int, count: int) -> bytes:
    if offset + count > file.size:
        raise _refusal(file, f"has a zip header that reaches byte {offset + count}", f"at most {file.size}")
    return file.bytes(offset, count).tobytes()


def _unpack(layout: struct.Struct, file: MappedFile, offset: int) -> tuple:
    return layout.unpack(_slice(file, offset, layout.size))


def _refusal(
    file: MappedFile, found: str, wanted: object = None, fix: str | None = "write it again with torch.save"
) -> CheckpointError:
    return CheckpointError(file.path, found, wanted, fix)
