"""Batches: padding, cutting, and what becomes of them when pictures take their positions."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mvlm_np.errors import UserError
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from tests.conftest import shared_path
from tests.training.fixtures import TWIN, large_tokenizer, load, published, read, tokenizer
from tools.training.batch import Batch, collate, splice
from tools.training.wording import IGNORED, Sample, sample

POSITIONS = 144  # of a picture


def rows(tensor: Tensor) -> list:
    return tensor.int().tolist()


def test_batches_are_the_published_codes(tmp_path: Path) -> None:
    tokenizer, members = large_tokenizer(), dict[tuple[str, str], Sample]()
    for case in published(legacy=True):
        if "error" not in case:
            (record,) = read(tmp_path, case["sample"], as_published=True)
            made = sample(record, tokenizer, case["version"], case["limit"], as_published=True)
            members[case["version"], case["name"]] = made
    batches = load(shared_path("training/fixtures/preprocess.json"))["batches"]
    assert len(batches) == 13
    for case in batches:
        samples = [members[case["version"], name] for name in case["members"]]
        batch = collate(samples, None, case["model_max_length"], as_published=True)
        assert list(batch.ids.shape) == case["batch_input_ids_shape"]
        if "error" in case:
            with pytest.raises(UserError):
                splice(batch, POSITIONS)
            continue
        spliced = splice(batch, POSITIONS)
        assert list(spliced.ids.shape) == case["inputs_embeds_shape"][:2]
        assert rows(spliced.labels) == case["labels"]
        assert rows(spliced.mask) == case["attention_mask"]


@pytest.mark.parametrize("as_published", [True, False])
def test_a_batch_is_the_published_codes_in_either_way(as_published: bool, tmp_path: Path) -> None:
    case = load(TWIN)["batch"]
    records = read(tmp_path, *case["records"], as_published=as_published)
    made = [sample(r, tokenizer(), "v1", case["limit"], as_published=as_published) for r in records]
    batch = collate(made, None, case["limit"], as_published=as_published)
    assert (rows(batch.ids), rows(batch.labels), rows(batch.mask)) == (
        case["ids"],
        case["labels"],
        case["mask"],
    )
    spliced = splice(batch, case["tokens"])
    assert rows(spliced.labels) == case["spliced_labels"]
    assert rows(spliced.mask) == case["spliced_mask"]


def batch_of(*ids: Sequence[int], limit: int = 99, as_published: bool = False) -> Batch:
    samples = [Sample([*row], [i if i > 5 else IGNORED for i in row]) for row in ids]
    return collate(samples, torch.zeros(len(ids), 3, 2, 2), limit, as_published=as_published)


def test_shorter_rows_are_padded_and_long_ones_cut() -> None:
    batch = batch_of([1, 7, 8, 9], [1, 6], [], limit=3)
    assert rows(batch.ids) == [[1, 7, 8], [1, 6, 0], [0, 0, 0]]
    assert rows(batch.labels) == [[-100, 7, 8], [-100, 6, -100], [-100] * 3]
    assert rows(batch.mask) == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert (batch.ids.dtype, batch.labels.dtype, batch.mask.dtype) == (torch.int64, torch.int64, torch.bool)


def test_a_real_unk_is_a_hole_in_the_published_mask_and_seen_here() -> None:
    ids = [1, 0, IMAGE_TOKEN, 9]
    assert rows(batch_of(ids, as_published=True).mask) == [[1, 0, 1, 1]]
    assert rows(batch_of(ids).mask) == [[1, 1, 1, 1]]
    # The published code puts a picture's part of the mask in front, so that its hole is elsewhere.
    assert rows(splice(batch_of(ids, as_published=True), 3).mask) == [[1, 1, 1, 0, 1, 1]]


def test_a_picture_takes_its_positions_and_is_not_learned() -> None:
    batch = splice(batch_of([1, IMAGE_TOKEN, 9], [1, 7, 8, 9]), 3)
    assert rows(batch.ids) == [[1, *[IMAGE_TOKEN] * 3, 9, 0], [1, 7, 8, 9, 0, 0]]
    assert rows(batch.labels) == [[-100] * 4 + [9, -100], [-100, 7, 8, 9, -100, -100]]
    assert rows(batch.mask) == [[1] * 5 + [0], [1, 1, 1, 1, 0, 0]]
    assert batch.pixels is not None and batch.pixels.shape == (2, 3, 2, 2)


def test_tags_for_more_pictures_than_there_are_stop_it() -> None:
    two = [1, IMAGE_TOKEN, 7, IMAGE_TOKEN]
    with pytest.raises(UserError, match="a batch: tags for 3 pictures, wanted 2, one a sample"):
        splice(batch_of(two, [1, 7]), 3)
    assert splice(batch_of(two, [1, 7], limit=3), 3).ids.shape == (2, 5)  # the second is cut off
