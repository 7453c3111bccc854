"""The table of published scores, and which model it is taken for."""

from dataclasses import replace

import pytest

from mvlm_np.config import FAMILY
from mvlm_np.evaluation.benchmarks import BENCHMARKS, score
from mvlm_np.evaluation.published import PUBLISHED, by_config, by_name
from tests.evaluation.fixtures import answers, folder

AVERAGES = {
    "MobileVLM-1.7B": 58.7,
    "MobileVLM_V2-1.7B": 64.2,
    "MobileVLM-3B": 62.8,
    "MobileVLM_V2-3B": 68.1,
    "MobileVLM_V2-7B": 72.0,  # README says 72.1, which its six scores do not give
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_table_gives_the_published_averages(model: str) -> None:
    """README's average is the mean of the six, with MME / 20."""
    scores = PUBLISHED[model]
    assert scores.keys() == BENCHMARKS.keys()
    mean = (sum(scores.values()) - scores["mme"] + scores["mme"] / 20) / 6
    assert round(mean + 1e-9, 1) == AVERAGES[model]


@pytest.mark.parametrize("model", FAMILY)
def test_models_are_recognised_by_shape(model: str) -> None:
    config = FAMILY[model]
    assert by_config(config) == model
    assert by_config(replace(config, vision=None)) is None
    assert by_config(replace(config, decoder=replace(config.decoder, num_hidden_layers=3))) is None
    assert by_config(replace(config, mm_projector_type="linear")) is None


@pytest.mark.parametrize(
    "name, model",
    [
        ("MobileVLM_V2-1.7B", "MobileVLM_V2-1.7B"),
        ("mobilevlm-v2-1.7b int4", "MobileVLM_V2-1.7B"),
        ("mtgv/MobileVLM-1.7B", "MobileVLM-1.7B"),
        ("checkpoints/MobileVLM-3B-finetuned", "MobileVLM-3B"),
        ("llava-v1.5-13b", None),
        ("", None),
    ],
)
def test_models_are_recognised_by_name(name: str, model: str | None) -> None:
    assert by_name(name) == model


def test_answers_of_a_published_model_are_shown_beside_its_score() -> None:
    given = [replace(one, model="MobileVLM_V2-3B") for one in answers("mme")]
    found, _ = score(BENCHMARKS["mme"], folder("mme"), given)
    assert found.published == 1440.5
    assert score(BENCHMARKS["mme"], folder("mme"), given, model="MobileVLM-3B")[0].published == 1288.9
    assert score(BENCHMARKS["mme"], folder("mme"), answers("mme"))[0].published is None
