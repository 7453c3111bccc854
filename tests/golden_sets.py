"""Where the goldens lie: stages that the published code computed, and smaller ones that this project made."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mvlm_np.checkpoints.safetensors import read_safetensors
from tests.conftest import DATA, SHARED

SETS = {
    f"published/{name}": SHARED / "goldens" / name for name in ("v2-gqa", "v2-256", "v1-ldp", "mlp-cls")
} | {f"own/{name}": DATA / "golden" / name for name in ("ldpv2", "ldp", "mlp")}


@dataclass(frozen=True)
class Case:
    """One question about one picture, and every stage that was computed for it (batch axis dropped)."""

    folder: Path
    image: Path
    question: str
    text: str
    stages: dict[str, np.ndarray]


def cases(name: str) -> list[Case]:
    """The cases of a set; the test is skipped where the published goldens are absent."""
    folder = SETS[name]
    if name.startswith("published") and not folder.exists():
        pytest.skip("needs ../shared/goldens, which is not part of the repository")
    return [
        Case(
            folder,
            folder / case["image"],
            case["question"],
            case["text"],
            {k: t.raw[0] for k, t in read_safetensors(folder / case["golden"]).items()},
        )
        for case in json.loads((folder / "cases.json").read_text())
    ]


def relative_error(found: np.ndarray, golden: np.ndarray) -> float:
    """The largest difference, as a part of the golden's largest magnitude."""
    assert found.shape == golden.shape
    return float(np.abs(found - golden).max() / np.abs(golden).max())
