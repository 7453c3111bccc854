"""Stages in another order: read where the shape tells, named where it does not."""

import numpy as np
import pytest

from mvlm_np.golden.compare.orders import arrangements, describe_permutation, permutation
from mvlm_np.golden.compare.verdict import REORDERED, RIGHT, SHAPE
from mvlm_np.golden.layout import matrix
from tests.golden.recorded import against, recorded

PEG = "projector.peg.peg"  # (D, h, w)


def verdict(name: str, array: np.ndarray):
    return next(s for s in against(recorded().golden, {name: array}).stages if s.name == name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (PEG, lambda x: x.transpose(1, 2, 0)),
        (PEG, lambda x: x.transpose(1, 2, 0).reshape(-1, len(x))),
        (PEG, lambda x: x.reshape(len(x), -1)),
        (PEG, lambda x: x.ravel()),
        (PEG, lambda x: x.transpose(1, 2, 0).ravel()),
        (PEG, lambda x: x.transpose(1, 2, 0)[None, None]),
        ("projector.output", lambda x: x.T),
        ("projector.output", lambda x: x.reshape(12, 12, -1)),
        ("projector.output", lambda x: x.T.reshape(-1, 12, 12)),
        ("decoder.keys.0", lambda x: x.transpose(1, 0, 2)),
        ("decoder.keys.0", lambda x: x.transpose(1, 0, 2).reshape(x.shape[1], -1)),
        ("decoder.values.1", lambda x: x.transpose(0, 2, 1)),
        ("pixel_values", lambda x: x.transpose(1, 2, 0)),
    ],
)
def test_axes_in_an_order_that_the_shape_tells_are_read(name: str, change) -> None:
    result = verdict(name, np.ascontiguousarray(change(recorded().stages[name])))
    assert result.verdict == RIGHT
    assert result.distance is not None and result.distance.rms == 0


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("pixel_values", lambda x: x[::-1], "colours: 0 and 2 are swapped"),
        ("pixel_values", lambda x: x.transpose(0, 2, 1), "transposed"),
        ("pixel_values", lambda x: x[:, ::-1], "rows: they stand in reverse"),
        (
            "vision.features",
            lambda x: x.reshape(13, 13, -1).swapaxes(0, 1).reshape(x.shape),
            "column by column",
        ),
        (
            "vision.hidden_states.0",
            lambda x: np.roll(x, -1, 0),
            "patches: they are shifted: number 1 stands first",
        ),
        ("vision.features", lambda x: x[:, np.r_[1, 0, 2 : x.shape[1]]], "channels: 0 and 1 are swapped"),
        ("decoder.keys.0", lambda x: x[:, :, [0, 2, 1, 3]], "elements of each head: 1 and 2 are swapped"),
        ("decoder.values.0", lambda x: x[::-1], "heads: 0 and 1 are swapped"),
        (  # llama.cpp's: positions first, and the halves that RoPE pairs side by side
            "decoder.keys.0",
            lambda x: x[:, :, [0, 2, 1, 3]].transpose(1, 0, 2),
            "axes 1-0-2 of the golden's 2 x 331 x 4; elements of each head: 1 and 2 are swapped",
        ),
    ],
)
def test_another_order_of_the_same_shape_is_named(name: str, change, says: str) -> None:
    result = verdict(name, np.ascontiguousarray(change(recorded().stages[name])))
    assert result.verdict == REORDERED
    assert says in result.note


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[1:], "without its first 1 row"),
        (lambda x: x[:-2], "without its last 2 rows"),
        (lambda x: np.concatenate([x, x[:1]]), "with 1 row behind it"),
        (lambda x: x[:, :-1], "wanted 170 x 12"),
    ],
)
def test_another_size_says_what_is_missing(change, says: str) -> None:
    result = verdict("vision.hidden_states.1", change(recorded().stages["vision.hidden_states.1"]))
    assert result.verdict == SHAPE
    assert says in result.note


def test_arrangements_start_with_the_golden_order() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    order, read = next(arrangements((2, 3, 4), x))
    assert order == (0, 1, 2)
    np.testing.assert_array_equal(read, x)
    for order, read in arrangements((2, 3, 4), x.ravel()):
        np.testing.assert_array_equal(read.transpose(order).ravel(), x.ravel())
    assert not list(arrangements((2, 3, 4), np.zeros((2, 2, 6))))
    assert not list(arrangements((2, 3, 4), np.zeros(23)))


def test_a_permutation_is_found_among_equal_slices_too() -> None:
    rng = np.random.default_rng(0)
    golden = rng.standard_normal((9, 20))
    golden[[3, 4]] = golden[2]  # a token that is repeated
    p = rng.permutation(9)
    found = permutation(golden, golden[p] + 1e-7 * rng.standard_normal((9, 20)), 0, 1e-5)
    assert found is not None
    np.testing.assert_allclose(golden[found], golden[p])
    assert permutation(golden, rng.standard_normal((9, 20)), 0, 1e-5) is None
    assert permutation(golden, golden, 0, 1e-5) is None


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ([0, 3, 2, 1], "1 and 3 are swapped"),
        ([4, 3, 2, 1, 0], "they stand in reverse"),
        ([0, 3, 6, 1, 4, 7, 2, 5, 8], "they stand column by column instead of row by row"),
        ([0, 1, 4, 7, 2, 5, 8, 3, 6, 9], "they stand column by column instead of row by row"),
        ([2, 3, 4, 0, 1], "they are shifted: number 2 stands first"),
        ([0, 3, 1, 4, 2, 5], "their two halves are interleaved"),
        ([0, 2, 4, 1, 3, 5], "every second one stands first, then the others"),
        ([0, 2, 3, 1, 4], "3 of 5 stand in another's place"),
    ],
)
def test_words_for_permutations(order: list[int], says: str) -> None:
    assert describe_permutation(np.array(order)) == says


def test_the_matrix_of_a_stage_has_positions_as_rows() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    assert matrix("decoder.keys.0", x).shape == (3, 8)
    assert matrix("decoder.keys.0.tail", x).shape == (3, 8)
    assert matrix("pixel_values", x).shape == (3, 8)
    assert matrix(PEG, x).shape == (12, 2)
    assert matrix("logits", x[0]).shape == (3, 4)
    assert matrix("x", x[0, 0]).shape == (1, 4)
