"""Made-up data sets in the official formats, with answers and what the published scripts make of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.evaluation.answers import Answer, read_answers
from mvlm_np.evaluation.benchmarks import BENCHMARKS
from tests.conftest import DATA

benchmarks = pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))


def folder(key: str) -> Path:
    return DATA / "evaluation" / key


def answers(key: str, name: str = "main") -> list[Answer]:
    return read_answers(folder(key) / "predictions" / f"{name}.jsonl")


def expected(key: str) -> Any:
    return json.loads((folder(key) / "expected.json").read_text())


def without(given: Sequence[Answer], *places: int) -> list[Answer]:
    return [one for i, one in enumerate(given) if i not in places]
