"""Pages for a browser that need nothing but themselves: pictures inside them, written whole or not at all."""

import base64
import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path

from PIL import Image

from mvlm_np.errors import UserError

HERE = Path(__file__).parent


def parts(folder: Path, *rules: str) -> dict[str, str]:
    """What a page is made of, besides the page.html of its folder.

    "style" and "script" are those that all pages share, then the folder's own, page.css and page.js; without
    a page.js there is no script. "policy" is the content security policy that allows these two, pictures
    inside the page, and what `rules` say.
    """
    style, script = (_shared_and_own(folder, kind) for kind in ("css", "js"))
    policy = (
        "default-src 'none'",
        "img-src data:",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}" if script else "script-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        *rules,
    )
    return {"style": style, "script": script, "policy": "; ".join(policy)}


def _shared_and_own(folder: Path, kind: str) -> str:
    shared, own = HERE / f"pages.{kind}", folder / f"page.{kind}"
    return "\n".join(path.read_text("utf-8") for path in (shared, own)) if own.exists() else ""


def _hash(text: str) -> str:
    """What a content security policy calls the one inline text that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inline(image: Image.Image, format: str = "PNG", **options: object) -> str:
    """A picture as a data URI; options are those of Pillow's writer."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return f"data:image/{format.lower()};base64," + base64.b64encode(out.getvalue()).decode()


def check(path: Path, error: type[UserError] = UserError) -> None:
    """`error`, before any work is done for it, if no page can be written there."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        found = "is a folder" if path.is_dir() else "cannot be written (its folder does not exist)"
        raise error(path, found, "a file in a folder that exists")
    if path.is_file() and not _is_page(path):
        raise error(path, "holds something else, which a page would replace", "a new file", "name another")


def _is_page(path: Path) -> bool:
    """Whether a file is empty or begins as a page does: only such a file may be replaced."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return False
    return not start or start.startswith((b"<!doctype html", b"<html"))


def write(path: Path, text: str, error: type[UserError] = UserError) -> None:
    """Writes a page where `check` allows it.

    It gets its name when it is whole, so that no half of it can be taken for a page.
    A link stays a link, and what is no file (a pipe, `/dev/stdout`) is written to as it is. `error` is raised
    where the page cannot be written.
    """
    check(path, error)
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            path.write_text(text, "utf-8", "replace")
            return
        draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            draft.write_text(text, "utf-8", "replace")
            draft.replace(target)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    except OSError as failed:
        reason = failed.strerror or failed
        raise error(path, f"cannot be written ({reason})", "a place in a folder") from None
