"""What the published code makes of records: the reference material's, and the smaller twin in tests/data."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.inputs.tokenizer import Tokenizer
from tests.conftest import DATA, shared_path
from tools.training.records import Record, read_records

SMALL = DATA / "tokenizer" / "tokenizer.model"
TWIN = DATA / "training" / "wording.json"


def tokenizer(legacy: bool = True, model: Path = SMALL) -> Tokenizer:
    return Tokenizer(StoredTokenizer(model.read_bytes(), legacy))


def large_tokenizer(legacy: bool = True) -> Tokenizer:
    """LLaMA's own, which no clone has."""
    return tokenizer(legacy, shared_path("facts/tokenizer/tokenizer.model"))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def read(folder: Path, *entries: Mapping[str, Any], **options: bool) -> list[Record]:
    """The records of a data file with these entries, whose pictures are there."""
    for entry in entries:
        if "image" in entry:
            (folder / entry["image"]).touch()
    file = folder / "data.json"
    file.write_text(json.dumps(entries))
    return read_records(file, folder, **options)


def published(legacy: bool) -> Iterator[Mapping[str, Any]]:
    """The cases of the reference material, each as in the twin; of some long ones no ids are known."""
    for case in load(shared_path("training/fixtures/preprocess.json"))["cases"]:
        found = case if legacy else case | case.get("legacy_false", {"same_ids": True})
        if found.get("same_ids", True) or "input_ids" in case["legacy_false"]:
            known = {"ids": found.get("input_ids"), "labels": found.get("labels")}
            yield found | known | {"limit": case["model_max_length"]}
