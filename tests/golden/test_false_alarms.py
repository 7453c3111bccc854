"""Sound candidates are right, each in its class: on every golden there is, and on random models."""

import pytest

from mvlm_np.golden.format import Golden, read_golden
from mvlm_np.golden.precision import rounded, rounding_recorder, to_bf16, to_float16
from mvlm_np.golden.record.recording import Question, record
from mvlm_np.loading import load
from mvlm_np.precisions import PACKED
from tests.golden.recorded import OWN, Stages, against, recorded
from tests.golden_sets import SETS, cases
from tools import check_golden

RUNS = ["float32", "float16", "bf16", *PACKED]  # names of precisions, and of roundings

pytestmark = pytest.mark.xdist_group("false alarms")


@pytest.fixture(params=SETS, scope="module")
def judged(request: pytest.FixtureRequest) -> tuple[str, Golden, dict[str, Stages]]:
    """A golden that torch computed, and what mvlm_np computes: {class: stages}."""
    case = cases(request.param)[0]
    golden = read_golden(case.folder / "golden-0.safetensors")
    question = Question(case.question, case.image, num_beams=None)
    runs = {"float32": record(load(case.folder, "float32", "numba"), question)}
    for kind, to in (("float16", to_float16), ("bf16", to_bf16)):
        model = rounded(load(case.folder, "float32", "numpy"), to)
        runs[kind] = record(model, question, None, rounding_recorder(to))
    for precision in PACKED:
        runs[precision] = record(load(case.folder, precision, "numba"), question)
    return request.param, golden, runs


@pytest.mark.parametrize("run", RUNS)
def test_of_goldens_without_floors(judged: tuple[str, Golden, dict[str, Stages]], run: str) -> None:
    _, golden, runs = judged
    result = against(golden, runs[run], check_golden.class_of(run))
    assert result.right, result.first_wrong


@pytest.mark.parametrize("run", RUNS)
def test_of_goldens_with_floors(judged: tuple[str, Golden, dict[str, Stages]], run: str) -> None:
    name, published, runs = judged
    if name not in OWN:
        pytest.skip("floors are recorded for the small models only, to keep this quick")
    golden = recorded(name).golden
    result = against(golden, runs[run], check_golden.class_of(run))
    assert result.right, result.first_wrong
    if run == "float32":
        torch = {n: a for n, a in published.stages.items() if "beam" not in n}
        assert (result := against(golden, torch)).right, result.first_wrong


def test_of_random_models(capsys: pytest.CaptureFixture[str]) -> None:
    """A few; `python tools/check_golden.py --models 200` takes many."""
    code = check_golden.main(["--models", "2", "--seed", "1000"])
    assert code == 0, capsys.readouterr().out
