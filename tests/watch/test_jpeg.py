"""JPEGs in a stream: each of them, whole, in whatever pieces it comes; and a bound on what is held."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.watch.jpeg import Splitter
from tests.watch.camera import jpeg, scene


def pushed(data: bytes, sizes: list[int], most: int = 1 << 20) -> tuple[list[bytes], Splitter]:
    """What comes of a stream in pieces of these sizes, by turns."""
    split, frames, at, i = Splitter(most), list[bytes](), 0, 0
    while at < len(data):
        frames += split.push(data[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
        assert len(split._held) <= most
    return frames, split


def with_segment(frame: bytes, kind: int, payload: bytes) -> bytes:
    """The picture with a segment of its own behind SOI."""
    return frame[:2] + bytes([0xFF, kind]) + (len(payload) + 2).to_bytes(2) + payload + frame[2:]


PLAIN = jpeg(scene(noise=20))
THUMBNAIL = with_segment(PLAIN, 0xE1, b"Exif\0\0" + jpeg(scene()[:24, :24]))
PROGRESSIVE = jpeg(scene(), progressive=True)
RESTARTS = jpeg(scene(noise=20), restart_marker_blocks=1)
FILLED = PLAIN.replace(b"\xff\xda", b"\xff\xff\xff\xda", 1)
LARGE = with_segment(PLAIN, 0xFE, bytes(65533))
KINDS = [PLAIN, THUMBNAIL, PROGRESSIVE, RESTARTS, FILLED, LARGE]


def test_the_pictures_are_what_they_are_for() -> None:
    assert THUMBNAIL.count(b"\xff\xd9") == THUMBNAIL.count(b"\xff\xd8\xff") == 2
    assert PROGRESSIVE.count(b"\xff\xda") > 2 and b"\xff\xd3" in RESTARTS and b"\xff\x00" in PLAIN
    for frame in KINDS:
        Image.open(io.BytesIO(frame)).load()


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=20)), min_size=1, max_size=5),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
def test_every_picture_comes_whole_in_whatever_pieces(
    parts: list[tuple[bytes, bytes]], sizes: list[int]
) -> None:
    between = [junk.replace(b"\xff", b"") for _, junk in parts]
    stream = b"".join(frame + junk for (frame, _), junk in zip(parts, between, strict=True))
    frames, split = pushed(b"--boundary\r\n" + stream, sizes)
    assert frames == [frame for frame, _ in parts]
    assert (split.dropped, split.strange) == (0, len(between[-1]))


def test_a_picture_byte_by_byte() -> None:
    assert pushed(THUMBNAIL + PLAIN, [1])[0] == [THUMBNAIL, PLAIN]


@pytest.mark.parametrize("cut", [3, 15, 700, -40, -2])
@pytest.mark.parametrize("sizes", [[1], [1 << 20]], ids=["bytes", "whole"])
def test_a_picture_that_is_cut_off_costs_no_other(cut: int, sizes: list[int]) -> None:
    """At least the second one behind it comes. If it ends in a segment, that takes the first one in."""
    frames, split = pushed(PLAIN + THUMBNAIL[:cut] + PLAIN + PROGRESSIVE, sizes)
    assert frames[0] == PLAIN and frames[-1] == PROGRESSIVE
    assert split.dropped >= 1


def test_a_wrong_length_costs_one_picture() -> None:
    at = PLAIN.index(b"\xff\xdb")
    wrong = PLAIN[: at + 2] + b"\0\0" + PLAIN[at + 4 :]
    frames, split = pushed(wrong + PLAIN, [997])
    assert frames == [PLAIN] and split.dropped == 1


@pytest.mark.parametrize("sizes", [[1000], [1 << 20]], ids=["pieces", "whole"])
def test_a_picture_that_is_too_long_is_not_kept(sizes: list[int]) -> None:
    frames, split = pushed(PLAIN + LARGE + PLAIN, sizes, most=len(PLAIN))
    assert frames == [PLAIN, PLAIN] and split.dropped >= 1


def test_what_is_no_jpeg_is_counted_and_not_kept() -> None:
    split = Splitter()
    for _ in range(100):
        assert split.push(bytes(10_000)) == []
        assert len(split._held) <= 2
    assert split.strange == 1_000_000


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_do_harm(noise: bytes, size: int) -> None:
    stream = b"\xff\xd8\xff" + noise.replace(b"\0", b"\xff")
    frames, _ = pushed(stream, [size], most=100)
    assert all(len(frame) <= 100 for frame in frames)
    at_once, _ = pushed(stream, [len(stream)], most=1000)
    assert at_once == pushed(stream, [size], most=1000)[0]


def test_frames_of_a_camera_without_huffman_tables_are_decoded() -> None:
    """Motion JPEG of USB cameras leaves the standard tables out."""
    standard = bare = jpeg(scene())
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4]) :]
    assert len(bare) < len(standard) and pushed(bare, [100])[0] == [bare]
    assert Image.open(io.BytesIO(bare)).tobytes() == Image.open(io.BytesIO(standard)).tobytes()
