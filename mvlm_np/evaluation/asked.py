"""A benchmark's question, as the published loaders put it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm_np.rows.row import Preparation, Row

WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Asked:
    """One question.

    id           names it; no other of the benchmark has it
    question_id  as the question file has it; several questions may share it
    group        questions that only count together, see `scores.Judged`
    category     of which `--limit` takes an equal share each
    picture      names the picture; "" where there is none
    source       the picture: its file, or the file's bytes
    text         what is sent after the picture
    prompt       what the answers file records of it
    more         what the answers file says besides
    """

    id: str
    question_id: str | int
    group: str
    category: str
    picture: str
    source: Path | bytes | None = field(repr=False)
    text: str
    prompt: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def row(self, max_new_tokens: int, preparation: Preparation) -> Row:
        """The same as the engine takes it."""
        source = self.source.absolute() if isinstance(self.source, Path) else self.source
        return Row(self.id, source, self.text, max_new_tokens, preparation)


# How the published loaders prepare pictures; none of them turns a photo as its camera noted.
PAD = Preparation(exif=False, aspect_ratio="pad")
PAD_FIRST = Preparation(exif=False, aspect_ratio="pad", pad_first=True)
CROP = Preparation(exif=False, aspect_ratio="crop")
