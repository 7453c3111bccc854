"""A question about a picture, as `batch` and `evaluate` ask it, and what comes of it."""

import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any

import numpy as np
from PIL import Image

from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError, PromptError
from mvlm_np.generation import NEW_TOKENS
from mvlm_np.inputs.image import Picture, open_image, preprocess
from mvlm_np.inputs.picture_file import Encoded, open_encoded, open_file, unreadable


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes pixel values. The defaults are those of `ask`.

    exif          turn a photo as its camera noted, and adapt what upstream does not show; see `open_image`
    aspect_ratio  "pad" to a square first, or "crop" the longer side; None: as the model's settings say
    pad_first     pad in the picture's own mode, before it becomes RGB, as the published MMBench code does:
                  the colours of a picture with a palette change then, and a grey one is an ImageError
    """

    exif: bool = True
    aspect_ratio: str | None = None
    pad_first: bool = False

    def pixels(self, picture: Picture, config: ImageConfig) -> np.ndarray:
        """Pixel values (3, crop height, crop width) of a picture, for a model with these settings.

        ImageError: it cannot be read, or not be prepared like this.
        """
        if self.aspect_ratio is not None:
            config = replace(config, aspect_ratio=self.aspect_ratio)
        if self.pad_first and config.aspect_ratio == "pad":
            picture = _padded(picture, config)
        return preprocess(open_image(picture, self.exif, adapt=self.exif), config)


AS_ASK = Preparation()


@dataclass(frozen=True)
class Row:
    """A question about a picture.

    key             names the row in the output; no two rows of a run have the same
    picture         a file, or a file's bytes; from Python also a Pillow image or an array, see
                    `inputs.image`; None: a question without a picture
    question        the text of the user's one turn, without <image>
    max_new_tokens  the answer has at most so many. 512 as in `ask`; the benchmarks have numbers of their own
    preparation     how the picture becomes pixel values
    """

    key: str
    picture: Picture | bytes | None = field(repr=False)
    question: str
    max_new_tokens: int = NEW_TOKENS
    preparation: Preparation = AS_ASK

    @property
    def source(self) -> Picture | None:
        """The picture, as `inputs.image` opens it; errors name bytes by the row's key."""
        return Encoded(self.picture, self.key) if isinstance(self.picture, bytes) else self.picture


@dataclass(frozen=True)
class Answered:
    """What came of a row.

    answer       None: it failed
    error        in one line, why it failed; None: it did not
    tokens       of the answer, with the one that ends it
    probability  of the answer as a whole: the product of its tokens' probabilities
    seconds      from the start of its work to its end; rows that are answered together share that time
    """

    row: Row
    answer: str | None
    error: str | None = None
    tokens: int = 0
    probability: float = 0.0
    seconds: float = 0.0


def as_rows(
    given: Iterable[Row | Answered | tuple[Any, str]], max_new_tokens: int = NEW_TOKENS
) -> Iterator[Row | Answered]:
    """Rows as Python's users give them: rows, or pairs of picture and question, whose keys are their numbers.

    PromptError: one is neither.
    """
    for number, row in enumerate(given, 1):
        if isinstance(row, Row | Answered):
            yield row
        elif isinstance(row, tuple | list) and len(row) == 2:
            yield Row(str(number), *row, max_new_tokens)
        else:
            found, wanted = f"found {reprlib.repr(row)}", "a Row, or a pair of picture and question"
            raise PromptError(f"row {number}", found, wanted)


def _padded(picture: Picture, config: ImageConfig) -> Picture:
    """A picture of another mode than RGB as a square of its own mode, as upstream makes it."""
    if isinstance(picture, np.ndarray):
        return picture  # is RGB
    if isinstance(picture, Image.Image):
        return _square(picture, "the image given", config) or picture
    if isinstance(picture, Encoded):
        opened, where = open_encoded(picture), picture.name
    else:
        assert isinstance(picture, str | PathLike)
        where = fspath(picture)
        opened = open_file(where)
    with opened as image:
        return _square(image, where, config) or picture


def _square(image: Image.Image, where: str, config: ImageConfig) -> Image.Image | None:
    """None: there is nothing to do."""
    width, height = image.size
    if image.mode == "RGB" or width == height:
        return None
    try:
        image.load()
    except Exception as error:
        raise unreadable(where, error) from None
    side = max(width, height)
    colour = tuple(int(m * 255) for m in config.mean)
    try:
        square = Image.new(image.mode, (side, side), colour)
    except TypeError:
        found = f"is of mode {image.mode}, which the published code cannot pad"
        raise ImageError(where, found, "colours", "pad after converting to RGB") from None
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
