"""English text that is on any machine, as ids: the topics of Python's own manual, which `help()` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvlm_np.errors import UserError

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

BYTE_LEVEL = "byte_level_tokenizer.json"  # of the `tokenizers` package; our own engine does without


def manual(part: str) -> str:
    """The "evaluation" or "calibration" half of Python's manual, which have no paragraph in common.

    Every second topic in the order of names is for evaluation, the others are for calibration, without the
    paragraphs that stand in the first half, too.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    evaluation = _paragraphs(names[0::2], topics)
    if part == "evaluation":
        return "\n\n".join(evaluation)
    taken = {paragraph.strip() for paragraph in evaluation}
    return "\n\n".join(p for p in _paragraphs(names[1::2], topics) if p.strip() not in taken)


def _paragraphs(names: Sequence[str], topics: Mapping[str, str]) -> list[str]:
    return [paragraph for name in names for paragraph in topics[name].split("\n\n")]


def encode(folder: Path, model: "MobileVLM", text: str) -> list[int]:
    """The ids of a text: by the folder's `BYTE_LEVEL`, where it has one, else by the model's own tokenizer.

    UserError: there is neither.
    """
    path = folder / BYTE_LEVEL
    if not path.is_file():
        return model.tokenizer.encode(text)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        fix = "pip install 'mvlm-np[real]'"
        raise UserError(path, "is read by the tokenizers package, which is not installed", fix=fix) from None
    return Tokenizer.from_file(str(path)).encode(text).ids
