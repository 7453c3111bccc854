"""Whether something has changed in front of a camera, at the price of a thumbnail.

A picture becomes 32 x 24 cells of grey, less their median, so that a cloud or the camera's exposure alone is
no change. A cell differs if it does so by more than its own noise of the last minute, so that a tree in the
wind counts for little. A change begins where many cells differ from the picture that was asked about last. It
has settled once hardly any differ from one look to the next.
"""

from collections import deque

import numpy as np
from PIL import Image

from mvlm_np.watch.pictures import opened

WIDTH, HEIGHT = 32, 24
LEAST = 2.0  # levels of grey that a cell varies by at least, for its coding
TIMES = 6.0  # so many times its noise a cell differs; two looks at the same thing differ by 1.4 times it
MAD = 1.4826  # a normal distribution's standard deviation, by its median absolute deviation
MINUTE, SAMPLES = 60.0, 60  # of the noise: how far back, and how many looks of that time at most
CALM = 0.25  # a change has settled when this part of what begins one differs from one look to the next
PATIENCE = 10.0  # times `settle`: a change that does not settle is asked about then


def thumbnail(data: bytes) -> np.ndarray:
    """A picture's file -> its cells, float32 (24, 32), with a median of 0.

    A large JPEG is decoded at an eighth of its size, which takes 2 ms for 1280 x 720.

    ImageError: it is no picture, or a damaged one.
    """
    with opened(data) as image:
        image.draft("L", (2 * WIDTH, 2 * HEIGHT))
        small = image.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    cells = np.asarray(small, np.float32)
    return cells - np.median(cells)


class Gate:
    """Follows what the camera shows.

    change  part of the cells that must differ for a change to begin; 0: every look is one
    settle  seconds without movement, after which a change is complete
    """

    def __init__(self, change: float = 0.02, settle: float = 1.0):
        self.change, self.settle = change, settle
        self._asked: np.ndarray | None = None  # the cells that were asked about last
        self._last: np.ndarray | None = None
        self._looks: deque[tuple[float, np.ndarray]] = deque(maxlen=SAMPLES)
        self._noise = np.full((HEIGHT, WIDTH), LEAST, np.float32)
        self._since: float | None = None  # when the change began; None: there is none
        self._calm = 0.0  # since when nothing has moved

    @property
    def open(self) -> bool:
        """Whether a change has begun that nobody has asked about."""
        return self._since is not None

    def look(self, cells: np.ndarray, now: float) -> bool:
        """Takes the next look; whether a change is complete with it."""
        last, self._last = self._last, cells
        self._learn(cells, now)
        if self.change == 0:
            self._since = now
            return True
        if last is None or self._differ(cells, last) > CALM * self.change:
            self._calm = now
        differs = self._asked is None or self._differ(cells, self._asked) >= self.change
        if self._since is None:
            if not differs:
                return False
            self._since = now
        if now - self._calm < self.settle:
            return now - self._since >= PATIENCE * self.settle
        if not differs:  # what came has gone again
            self._since = None
        return differs

    def asked(self) -> None:
        """The last look is being asked about: from now on, changes are changes from it."""
        self._asked, self._since = self._last, None

    def _differ(self, cells: np.ndarray, others: np.ndarray) -> float:
        """Which part of the cells differs."""
        return float((np.abs(cells - others) > TIMES * self._noise).mean())

    def _learn(self, cells: np.ndarray, now: float) -> None:
        if self._looks and now - self._looks[-1][0] < MINUTE / SAMPLES:
            return
        self._looks.append((now, cells))
        while now - self._looks[0][0] > MINUTE:
            self._looks.popleft()
        looks = np.stack([cells for _, cells in self._looks])
        self._noise = np.maximum(MAD * middle(np.abs(looks - middle(looks))), LEAST)


def middle(values: np.ndarray) -> np.ndarray:
    """The median over the first axis; of an even number the lower of two, never something between them."""
    at = (len(values) - 1) // 2
    return np.partition(values, at, axis=0)[at]
