"""Binding is strict: whatever is missing, extra or misshapen is counted and named, all of it in one line."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.binder import Binder, Manifest
from mvlm_np.checkpoints.loader import Loader, check
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.errors import CheckpointError
from mvlm_np.linear import Dense, Linear, Norm
from tests.models import stored

Shape = tuple[int, ...]
FATES = ("fits", "missing", "not known", "misshapen", "unused")
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def tensors_of(shapes: dict[str, Shape]) -> dict[str, Tensor]:
    return stored({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


@given(st.lists(st.tuples(st.sampled_from(FATES), shapes), max_size=30))
def test_all_that_is_wrong_is_counted_in_one_line_and_what_fits_is_handed_out(fates):
    wanted, found = dict[str, Shape](), dict[str, Shape]()
    for i, (fate, shape) in enumerate(fates):
        if fate in ("fits", "missing", "misshapen"):
            wanted[f"w.{i}"] = shape
        if fate != "missing":
            name = f"{i}.rotary_emb.inv_freq" if fate == "unused" else f"w.{i}"
            found[name] = (*shape, 7) if fate == "misshapen" else shape
    tensors = tensors_of(found)
    wrong = {
        fate: [i for i, (f, _) in enumerate(fates) if f == fate]
        for fate in ("missing", "not known", "misshapen")
    }
    try:
        bound = check("the file", wanted, tensors)
    except CheckpointError as error:
        line = str(error)
        assert "\n" not in line
        assert line.startswith("the file: ")
        counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (missing|not known|misshapen): ", line)}
        assert counts == {kind: len(items) for kind, items in wrong.items() if items}
        for items in wrong.values():
            assert all(f"w.{i}" in line for i in items[:4])
            assert f"and {len(items) - 4} more" in line or len(items) <= 4
    else:
        assert not any(wrong.values())
        assert bound == {name: tensors[name] for name in wanted}


def test_the_error_says_which_shape_was_found_and_which_was_wanted():
    with pytest.raises(CheckpointError, match=re.escape("w is [3, 2] instead of [2, 3]")):
        check("the file", {"w": (2, 3)}, tensors_of({"w": (3, 2)}))


def collect(get: Binder) -> tuple[np.ndarray, Linear, Linear, Norm]:
    inner = get.at("part").at("0")
    return (
        get.array("a", 2),
        inner.linear("b", 3, 2),
        inner.conv1x1("c", 2, 3, bias=False),
        inner.norm("d", 3),
    )


WANTED = {
    "a": (2,),
    "part.0.b.weight": (3, 2),
    "part.0.b.bias": (3,),
    "part.0.c.weight": (2, 3, 1, 1),
    "part.0.d.weight": (3,),
    "part.0.d.bias": (3,),
}


def test_a_manifest_notes_names_and_shapes():
    manifest = Manifest()
    collect(manifest)
    assert manifest.shapes == WANTED
    assert manifest.matrices == {"part.0.b.weight", "part.0.c.weight"}


def test_a_manifest_of_any_size_occupies_no_memory():
    assert Manifest().array("a", 1 << 20, 1 << 20).strides == (0, 0)


def test_a_loader_hands_out_what_is_stored_and_counts_its_bytes():
    rng, counted = np.random.default_rng(0), list[int]()
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in WANTED.items()}
    a, b, c, d = collect(Loader(stored(arrays), progress=counted.append))
    assert np.array_equal(a, arrays["a"])
    assert isinstance(b, Dense) and isinstance(c, Dense)
    assert np.array_equal(b.weight, arrays["part.0.b.weight"])
    assert b.bias is not None and np.array_equal(b.bias, arrays["part.0.b.bias"])
    assert np.array_equal(c.weight, arrays["part.0.c.weight"][:, :, 0, 0])
    assert c.bias is None
    assert np.array_equal(d.weight, arrays["part.0.d.weight"])
    assert np.array_equal(d.bias, arrays["part.0.d.bias"])
    assert sum(counted) == sum(array.nbytes for array in arrays.values())
