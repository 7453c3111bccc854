"""Paths as people and programs write them: `~/photo.jpg`, `file:///media/card/my%20photo.jpg`, or plain."""

import os
import reprlib

from mvlm_np.errors import UserError


def local(path: object, item: str = "path") -> str:
    """The path on this machine that is meant. A file of exactly the name that was given goes before all else.

    `~` is a home folder, as in a shell, which does not replace it behind `=` or in quotes. A `file:` address
    is what browsers and file managers copy.

    UserError: `item` is not a path, or an address of a file on another machine.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(item, f"found {reprlib.repr(path)}", "a path, as a str or a pathlib.Path")
    text = os.fsdecode(path)
    if os.path.lexists(text):
        return text
    if text[:5].lower() == "file:":
        address = text[5:]
        if address.startswith("//"):
            host, slash, rest = address[2:].partition("/")
            if host not in ("", "localhost"):
                raise UserError(
                    text,
                    f"names the machine {host!r}",
                    "a file of this one",
                    "write file:/// with three slashes",
                )
            address = slash + rest
        from urllib.parse import unquote

        return unquote(address, errors="surrogateescape")
    return os.path.expanduser(text)
