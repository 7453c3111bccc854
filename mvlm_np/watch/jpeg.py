"""JPEGs in a stream of bytes, told apart by their markers (ITU-T T.81, annex B)."""

import re

MOST = 32 << 20  # bytes of a frame; one of 64 megapixels in good quality is as large

START = b"\xff\xd8\xff"  # SOI, and the first byte of the marker behind it
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment behind them: TEM and RST
# The next marker within coded data, in which FF 00 is a byte of data and RST may stand anywhere.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Splitter:
    """Takes the bytes of a stream as they come, and gives each whole JPEG in it.

    Segments are passed by their lengths, so a thumbnail in one of them does not end the picture. What stands
    between JPEGs is skipped, and so is a frame that is damaged, cut off by the next one, or longer than
    `most` bytes. No more is held than that, and what one call brings.

    dropped  frames that were skipped
    strange  bytes since the last whole frame, or since the beginning
    """

    def __init__(self, most: int = MOST):
        self.most, self.dropped, self.strange = most, 0, 0
        self._held = bytearray()  # from the frame's beginning; while none has begun, the last two bytes
        self._at = 0  # up to here the frame is understood; 0: none has begun
        self._coded = False  # whether coded data stand there, or a marker

    def push(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete."""
        self._held += data
        self.strange += len(data)
        frames = []
        while self._begin() and self._walk():
            if self._at <= self.most:
                frames.append(bytes(self._held[: self._at]))
                self.strange = len(self._held) - self._at
                self._forget(self._at)
            else:
                self._drop(self._at)
        if len(self._held) > self.most:
            self._drop(len(self._held))
        return frames

    def _begin(self) -> bool:
        """Whether a frame has begun. What is certainly before one is forgotten."""
        if not self._at:
            start = self._held.find(START)
            self._forget(start if start >= 0 else max(len(self._held) - 2, 0))
            if start < 0:
                return False
            self._at, self._coded = 2, False
        return True

    def _walk(self) -> bool:
        """Goes on through the frame as far as it is there; whether that is its end."""
        held = self._held
        while self._at + 1 < len(held):
            if self._coded:
                found = MARKER.search(held, self._at)
                self._at = found.start() if found else len(held) - 1  # the first half of a marker, perhaps
                self._coded = not found
                if not found:
                    return False
            first, marker = held[self._at : self._at + 2]
            if first != 0xFF or marker == 0:
                self._drop(self._at)
                if not self._begin():
                    return False
            elif marker == EOI:
                self._at += 2
                return True
            elif marker == SOI:  # the next picture: the rest of this one has been lost
                self._drop(self._at)
                self._at = 2
            elif marker == 0xFF:  # such bytes may fill the space before a marker
                self._at += 1
            elif marker in ALONE:
                self._at += 2
            elif self._at + 3 >= len(held):
                return False
            else:
                length = int.from_bytes(held[self._at + 2 : self._at + 4])  # its own two bytes included
                self._at += 2 + length
                self._coded = marker == SOS
        return False

    def _drop(self, end: int) -> None:
        self.dropped += 1
        self._forget(end)

    def _forget(self, end: int) -> None:
        del self._held[:end]
        self._at = 0
