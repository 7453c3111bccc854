"""Makes llama.cpp see what MobileVLM sees: the edits of docs/llama-cpp.md, in a copy of its source.

python -m tools.parts.llama_cpp.edits llama.cpp
"""

import sys
from pathlib import Path
from typing import NamedTuple

FILE = Path("tools/mtmd/models/llava.cpp")


class Edit(NamedTuple):
    """What stands in the file so many times, and what is to stand there."""

    old: str
    new: str
    times: int


EDITS = (
    Edit("(ctx0, inp, model.class_embedding, 1)", "(ctx0, model.class_embedding, inp, 1)", 1),
    Edit("ggml_gelu(ctx0, ", "ggml_gelu_erf(ctx0, ", 4),
)


def edited(text: str) -> str:
    """The file's text with the edits, of which all or none may be made already; ValueError: it is another."""
    for old, new, times in EDITS:
        found, done = text.count(old), text.count(new)
        if (found, done) not in ((times, 0), (0, times)):
            wanted = f"wanted {times} of the first alone, or of the second"
            raise ValueError(f"found {found} of {old!r} and {done} of {new!r}, {wanted}")
        text = text.replace(old, new)
    return text


def edit(source: Path) -> None:
    """Edits llama.cpp's source in its place. SystemExit, in one line, where it is another than was known."""
    path = source / FILE
    try:
        path.write_text(edited(path.read_text("utf-8")), "utf-8")
    except (OSError, ValueError) as error:
        todo = "this is another version of llama.cpp: edit it by hand, as docs/llama-cpp.md says"
        raise SystemExit(f"{path}: {error}; {todo}") from None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m tools.parts.llama_cpp.edits FOLDER: the folder of llama.cpp's source")
    edit(Path(sys.argv[1]))
