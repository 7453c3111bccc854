"""Whatever a model says: complete answers get the published score, and missing ones change no other."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.evaluation.answers import Answer
from mvlm_np.evaluation.benchmark import Benchmark, ScriptStops
from mvlm_np.evaluation.benchmarks import read, score
from tests.evaluation.fixtures import answers, benchmarks, folder

WORDS = "yes no Yes No A B C D A. B. the a none None =1 nan left blue acme 2 stop red".split()
USUAL = [*WORDS, "", "The answer is B.", "Yes, there is.", "It is the ball"]
SAID = st.one_of(st.sampled_from(USUAL), st.text(max_size=20))


def said(data: st.DataObject, benchmark: Benchmark) -> list[Answer]:
    """An answer of any kind to each question, in order."""
    given_answers = answers(benchmark.key)
    texts = data.draw(st.lists(SAID, min_size=len(given_answers), max_size=len(given_answers)))
    return [replace(one, text=text) for one, text in zip(given_answers, texts, strict=True)]


@benchmarks
@given(data=st.data())
def test_complete_answers_get_the_published_score(benchmark: Benchmark, data: st.DataObject) -> None:
    given_answers = said(data, benchmark)
    found, judged = score(benchmark, folder(benchmark.key), given_answers)
    assert 0 <= found.value <= (2000 if benchmark.key == "mme" else 100 + 1e-9)
    assert all(0 <= one.right <= 1 for one in judged)
    try:
        theirs, _ = score(benchmark, folder(benchmark.key), given_answers, as_published=True)
    except ScriptStops as stop:
        assert found.remarks == (f"the published script stops here, without a score: {stop.error}",)
        assert benchmark.key in ("pope", "mme")  # no "yes" at all; a line break or tab in an answer
        return
    assert (found.value, found.parts, found.remarks) == (theirs.value, theirs.parts, ())


@benchmarks
@given(data=st.data())
def test_missing_answers_are_wrong_and_change_no_other(benchmark: Benchmark, data: st.DataObject) -> None:
    given_answers = said(data, benchmark)
    missing = data.draw(st.sets(st.integers(0, len(given_answers) - 1), max_size=5))
    order = data.draw(st.permutations([i for i in range(len(given_answers)) if i not in missing]))
    found, judged = score(benchmark, folder(benchmark.key), [given_answers[i] for i in order])
    _, complete = score(benchmark, folder(benchmark.key), given_answers)
    gone = {one.id for i, one in enumerate(read(benchmark, folder(benchmark.key))) if i in missing}
    assert judged == [
        replace(one, answer=None, right=0.0, probability=None) if one.id in gone else one for one in complete
    ]
    assert found.counts["expected"] - found.counts["answered"] == len(missing)
