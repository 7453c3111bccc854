"""Where in a stage an error lies, in words: which patch, token, position, head or channel."""

from math import isqrt, prod

import numpy as np

from mvlm_np.golden.compare.tolerance import Bound
from mvlm_np.golden.layout import axes
from mvlm_np.golden.measure import Measured

ALONE = 0.9  # of an error's energy in a few rows or channels: then it is theirs


class Places:
    """Words for the rows and columns of a stage's matrix.

    image  the decoder's positions that the picture takes up, as a range, where that is known
    first  the position of the first row
    """

    def __init__(self, name: str, shape: tuple[int, ...], image: range | None = None, first: int = 0):
        self.name, self.shape, self.image, self.first = name, shape, image, first
        turned = [shape[axis] for axis in axes(name, len(shape))]
        self.channels = turned[-1] if turned else 1
        self.heads = len(shape) == 3 and name.startswith("decoder.")

    def row(self, i: int) -> str:
        name = self.name
        if name == "pixel_values":
            return f"row {i}"
        if name.startswith("vision."):
            side = isqrt(self.shape[0])
            with_class = side * side != self.shape[0]
            if with_class and i == 0:
                return "the class token"
            row, column = divmod(i - with_class, side)
            return f"patch {i - with_class} (row {row}, column {column})"
        if name.startswith("projector."):
            side = isqrt(prod(self.shape[1:]) if len(self.shape) == 3 else self.shape[0])
            return f"token {i} (row {i // side}, column {i % side})"
        if name.startswith("decode."):
            return f"generated token {i}"
        at = self.first + i
        if self.image and at in self.image:
            return f"position {at} (image token {at - self.image.start})"
        return f"position {at}"

    def column(self, i: int) -> str:
        if self.name == "pixel_values":
            return f"{'RGB'[i // self.channels % 3]}, column {i % self.channels}"
        if self.heads:
            return f"head {i // self.channels}, element {i % self.channels}"
        return f"channel {i}"

    def rows(self, wrong: np.ndarray) -> str:
        """Words for a set of rows (a mask), if there are good ones."""
        n, at = len(wrong), np.flatnonzero(wrong)
        if len(at) == n:
            return f"all {n} {self._plural()}"
        if len(at) == 1:
            return self.row(int(at[0]))
        picture = np.isin(np.arange(self.first, self.first + n), np.array(self.image or (), int))
        if picture.any() and picture[at].all():
            return f"the picture's positions only ({len(at)} of {picture.sum()})"
        if picture.any() and not picture[at].any():
            return f"the text's positions only ({len(at)} of {n - picture.sum()})"
        if self.name.startswith("vision.") and len(at) == n - 1 and not wrong[0]:
            return f"all {n - 1} patches, but not the class token"
        if at[-1] - at[0] == len(at) - 1:
            return f"{self._plural()} {at[0]} to {at[-1]} of {n}"
        return f"{len(at)} of {n} {self._plural()}"

    def columns(self, wrong: np.ndarray) -> str:
        n, at = len(wrong), np.flatnonzero(wrong)
        if len(at) == n:
            return "all channels"
        if len(at) <= 4:
            return ", ".join(self.column(int(i)) for i in at)
        return f"{len(at)} of {n} channels"

    def _plural(self) -> str:
        if self.name == "pixel_values":
            return "rows"
        if self.name.startswith("vision."):
            return "patches"
        if self.name.startswith("decode."):
            return "generated tokens"
        return "tokens" if self.name.startswith("projector.") else "positions"


def place(m: Measured, bound: Bound, places: Places) -> str:
    """Words for where an error is: alone in a few channels, in some positions only, or worst at one place."""
    if not m.rows.any():
        return ""
    by_column, by_row = np.sort(m.columns)[::-1], np.sort(m.rows)[::-1]
    few = max(1, min(4, len(by_column) // 8))
    channels = ""
    if len(by_column) > 1 and by_column[:few].sum() > ALONE * by_column.sum():
        alone = m.columns >= by_column[:few][(by_column[:few].cumsum() > ALONE * by_column.sum()).argmax()]
        channels = places.columns(alone)
    # A row is wrong where its own error is beyond what its own size, or the stage's, allows.
    T = len(m.rows)
    size = np.maximum(m.golden_rows, m.golden_rows.sum() / T * 1e-2)
    wrong = m.rows > bound.rms**2 * size
    if few_rows := by_row[:1].sum() > ALONE * by_row.sum() and T > 1:
        wrong = m.rows == by_row[0]
    if channels and (few_rows or wrong.any()):
        return channels if wrong.all() else f"{channels}; {places.rows(wrong)}"
    if wrong.any() and not wrong.all():
        return places.rows(wrong)
    if channels:
        return channels
    row, column = m.distance.at
    return f"everywhere; worst at {places.row(row)}, {places.column(column)}"
