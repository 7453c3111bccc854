"""A model that was trained on English text writes the published continuation, token for token."""

import json

import pytest

import mvlm_np
from tests.conftest import shared_path


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_stories260k_tells_the_reference_story(backend: str) -> None:
    folder = shared_path("weights/stories260K")
    reference = json.loads((folder / "greedy_reference.json").read_text())
    model = mvlm_np.load(folder, backend=backend)
    wanted = reference["greedy_ids_fp32"]
    assert model.generate(reference["prompt_ids"], max_new_tokens=len(wanted)) == wanted
    assert len(wanted) == 120
