"""Words for errors about files that may be anything.

People who believe that they hold weights often hold a Git LFS pointer, a web page or half a
download. Every reader of a weight file asks `what_is` before it complains, and passes names that
it found in the file through `show`.
"""

import errno
import os
from pathlib import Path

# How torch's two formats before 1.6 begin: a pickled magic number; `ustar` at 257 in a tar archive.
_OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_SAVE_AGAIN = "with torch, write it again: torch.save(torch.load(OLD), NEW)"
_DOWNLOAD = "download the file again"

BOM = b"\xef\xbb\xbf"  # what Windows' editors put before a text in UTF-8
HEAD = 512  # bytes of a file that `what_is` looks at


def what_is(head: bytes) -> tuple[str, str | None]:
    """What a file that begins with `head` is, and what its owner can do about it (if anything)."""
    page = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, which stands for the file", "run `git lfs pull`, or download the file"
    if page.startswith((b"<!doctype html", b"<html")):
        return "is a web page", _DOWNLOAD
    if head.startswith(_OLD_TORCH) or head[257:262] == b"ustar":
        return "is in the format of torch before 1.6", _SAVE_AGAIN
    if head.startswith(b"GGUF"):
        return "is a GGUF file", "give it the ending .gguf"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "is a safetensors file", "give it the ending .safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "is a zip archive, as torch.save writes", "give it the ending .bin"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is a text in UTF-16", "save it in UTF-8"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip", "unpack it"
    if head.startswith(b"\x80") and head[1:2] <= b"\x05":
        return "is a bare pickle", _SAVE_AGAIN
    if not any(head):
        return "begins with zeros, as an unfinished download may", _DOWNLOAD
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:64]):
        return f"is a text that begins {show(head[:40].decode('ascii'))}", _DOWNLOAD
    return f"is of an unknown kind (its first bytes are {head[:8].hex(' ')})", None


def why_unreadable(path: Path, error: OSError) -> tuple[str, str | None]:
    """Why a file cannot be opened, and what its owner can do about it."""
    if error.errno == errno.ENOENT and path.is_symlink():
        target = show(os.readlink(path))
        return (
            f"is a link to {target}, which is not there",
            "copy the files themselves (cp -L), or download again",
        )
    fix = {
        errno.ENOENT: "check its name, or download the folder again",
        errno.EACCES: "allow this user to read it",
        errno.EPERM: "allow this user to read it",
    }.get(error.errno or 0)
    return f"cannot be read ({error.strerror})", fix


def show(text: str) -> str:
    """A name out of a file, fit for an error line: short, and with control characters spelled out."""
    shown = ascii(text[:80])
    return shown if len(text) <= 80 and len(shown) <= 120 else shown[:80] + "...'"
