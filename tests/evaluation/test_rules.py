"""How answers are read: our rules give what the published ones give, written down here a second time.

These second versions follow the description of the published scripts, not our code, and take other ways
wherever there are some: characters for patterns, patterns for words, closed formulas for loops.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.evaluation import evalai, gqa, mmbench, mme, pope, sqa
from mvlm_np.evaluation.evalai import RESTORED
from mvlm_np.evaluation.scores import Confusion, Judged, measure

# What models say, and what could trip a rule: parts of words, marks, odd blanks, digits of other scripts.
WORDS = """
    yes no Yes No YES NO not nope none snow north eyes yep y n a an the A B C D E F one two ten zero isnt dont
    Im thats its let's 's box's ball red The answer is 3 10 5.99 . .. , ? ! ; / [ ] " { } ( ) = + \\ _ - > < @
    ` ' : $ % # ٣ ² İ ß é 中 nan None
""".split()
BLANKS = [" ", "  ", "\n", "\t", "\u00a0", "\u2003", ". ", " .", ", ", " -", "- ", "'s", "."]
PIECES = WORDS + BLANKS
TEXTS = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
SPACED = st.lists(st.sampled_from(PIECES), max_size=7).map(" ".join)
ANSWERS = st.one_of(TEXTS, SPACED)


# ---------------------------------------------------------------- GQA, POPE, MME


def gqa_again(answer: str) -> str:
    return re.fullmatch(r"(.*?)\.*", answer, re.DOTALL).group(1).lower()  # type: ignore[union-attr]


def pope_again(answer: str) -> str:
    start = "".join(c for c in re.match(r"[^.]*", answer).group() if c != ",")  # type: ignore[union-attr]
    return "no" if re.search(r"(?<![^ ])(?:No|not|no)(?![^ ])", start) else "yes"


def mme_again(answer: str) -> str:
    start = answer.lower()[:4]
    places = {word: [i for i in range(4) if start[i : i + len(word)] == word] for word in ("yes", "no")}
    return "yes" if places["yes"] else "no" if places["no"] else "other"


@pytest.mark.parametrize(
    ("ours", "again"),
    [(gqa.compared, gqa_again), (pope.said, pope_again), (mme.said, mme_again)],
    ids=["gqa", "pope", "mme"],
)
@given(answer=ANSWERS)
def test_words_are_read_as_published(
    ours: Callable[[str], str], again: Callable[[str], str], answer: str
) -> None:
    assert ours(answer) == again(answer)


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        (
            gqa.compared,
            {"Blue..": "blue", "floor .": "floor ", "yes,": "yes,", "": "", "..": "", "5.9.": "5.9"},
        ),
        (pope.said, dict.fromkeys(["NO", "No!", "Nope", "Not in this picture", "no\nYes", ".No", ""], "yes")),
        (pope.said, {"I do not know": "no", "No, there is none": "no", "Yes. No": "yes", "n,o": "no"}),
        (mme.said, dict.fromkeys(["snow", "Norway", "none", "nothing", "not sure", "**No**", "NO."], "no")),
        (mme.said, {"eyes": "yes", '"Yes"': "yes", "YES": "yes"}),
        (mme.said, dict.fromkeys(["Y", "The answer is yes", "Unknown", "yep", "", "  no way"[:3]], "other")),
    ],
)
def test_known_answers(rule: Callable[[str], str], answers: dict[str, str]) -> None:
    assert {answer: rule(answer) for answer in answers} == answers


def judged(benchmark: str, rights: list[bool], golds: list[bool]) -> list[Judged]:
    """Questions with yes and no, in pairs."""
    return [
        Judged(f"{i}", f"{i // 2}", "ab"[i // 2 % 2], f"{i // 2}", "?", "", ("no", "yes")[gold], float(right))
        for i, (right, gold) in enumerate(zip(rights, golds, strict=True))
    ]


PAIRS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=2 * n, max_size=2 * n)] * 2)
)


@given(PAIRS)
def test_pope_is_the_mean_of_two_tp_over_their_sum(both: tuple[list[bool], list[bool]]) -> None:
    rights, golds = both
    total = Fraction(0)
    for part in range(2):
        found = [
            (right == gold, gold)
            for i, (right, gold) in enumerate(zip(rights, golds, strict=True))
            if i // 2 % 2 == part
        ]  # what was predicted, and what is true
        yes = sum(p for p, _ in found) + sum(g for _, g in found)  # predicted + true = 2 TP + FP + FN
        total += Fraction(2 * sum(p and g for p, g in found), yes) if yes else 0
    assert measure("pope", judged("pope", rights, golds)) == pytest.approx(float(50 * total))


@given(PAIRS)
def test_mme_counts_questions_and_pictures(both: tuple[list[bool], list[bool]]) -> None:
    rights, golds = both
    total = Fraction(0)
    for part in range(2):
        pairs = [rights[2 * i : 2 * i + 2] for i in range(len(rights) // 2) if i % 2 == part]
        # 50 for a right answer, and for two of a picture 100 more; divided among the pictures.
        total += Fraction(sum({0: 0, 1: 50, 2: 200}[sum(pair)] for pair in pairs), len(pairs))
    assert measure("mme", judged("mme", rights, golds)) == pytest.approx(float(total))


@given(PAIRS)
def test_a_confusion_is_what_was_said_and_what_is_true(both: tuple[list[bool], list[bool]]) -> None:
    counts = Confusion.of(judged("pope", *both))
    said = [right == gold for right, gold in zip(*both, strict=True)]
    table = [(p, g) for p, g in zip(said, both[1], strict=True)]
    assert (counts.tp, counts.fp) == (table.count((True, True)), table.count((True, False)))
    assert (counts.fn, counts.tn) == (table.count((False, True)), table.count((False, False)))
    assert counts.yes_ratio == sum(said) / len(said)


# ---------------------------------------------------------------- TextVQA


MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
    word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}


def evalai_again(answer: str) -> str:
    """Character by character."""
    text = answer.lower()
    text = "".join(c for c in text if c not in ",?")
    text = " 's".join(text.split("'s")).strip()
    text = text.translate({ord("\n"): " ", ord("\t"): " "}).strip()
    beside_blank = {c for i, c in enumerate(text) if " " in text[max(0, i - 1) : i] + text[i + 1 : i + 2]}
    made = "".join("" if c in MARKS and c in beside_blank else " " if c in MARKS else c for c in text)
    kept, gone = [], 0
    for i, c in enumerate(made):
        if c == "." and gone < 32 and not made[i + 1 : i + 2].isdecimal():
            gone += 1
        else:
            kept.append(c)
    words = [NUMBERS.get(word, word) for word in "".join(kept).lower().split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ("a", "an", "the"))


@given(ANSWERS)
def test_answers_are_processed_as_on_the_evalai_server(answer: str) -> None:
    assert evalai.processed(answer) == evalai_again(answer)


@given(st.lists(st.sampled_from([".", ".", ". ", "1", " ", "a."]), max_size=80).map("".join))
def test_of_many_periods_thirty_two_go(answer: str) -> None:
    assert evalai.processed(answer) == evalai_again(answer)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Acme", "acme"),
        ("Two", "2"),
        ("Bob's", "bob 's"),
        ("a-1", "1"),  # the mark becomes a blank, and then "a" is an article
        ("a -1", "1"),
        ("x-y -z", "xy z"),  # next to a blank once: deleted everywhere
        ("x-y", "x y"),
        ("$5.99.", "$5.99"),
        ("10:30", "10:30"),
        ("10.30", "10.30"),
        ("1,000", "1000"),
        ("The ACME!", "acme"),
        ("dont", "don't"),
        ("Im", "im"),
        ("None", "0"),
        ("a", ""),
        ("." * 40, "." * 8),
    ],
)
def test_known_answers_of_textvqa(answer: str, wanted: str) -> None:
    assert evalai.processed(answer) == evalai_again(answer) == wanted


@given(st.lists(st.sampled_from("abc"), min_size=10, max_size=10), st.sampled_from("abcd"))
def test_each_person_who_says_the_same_is_worth_three_tenths(ten: list[str], answer: str) -> None:
    """Leaving each of ten out, and a third for each of the others: 0.3, 0.6, 0.9, and then 1."""
    assert evalai.accuracy(answer, ten) == pytest.approx(min(1, 0.3 * ten.count(answer)))


# ---------------------------------------------------------------- ScienceQA, MMBench


def sqa_again(answer: str) -> str:
    if re.fullmatch("[A-E]", answer) and "\n" not in answer:
        return answer
    if re.match(r"[A-E]\. ", answer):
        return answer[0]
    found, at, words = [], 0, "The answer is "
    while (at := answer.find(words, at)) >= 0:
        at += len(words)
        letter, after = answer[at : at + 1], answer[at + 1 : at + 2]
        if letter and letter in ascii_uppercase and after not in ("", "\n"):
            found.append(letter)
            at += 2  # which no other can begin in
    return found[0] if len(found) == 1 else "FAILED"


SQA = st.lists(
    st.sampled_from(["The answer is ", "A", "B", "E", "F", "Z", "b", ".", ". ", " ", "\n", "x", "is ", ":"]),
    max_size=9,
).map("".join)


@given(SQA)
def test_letters_of_scienceqa(answer: str) -> None:
    assert sqa.said(answer) == sqa_again(answer)


FORMS = "X. X, X: X) X). (X) (X). :X :X, :X. :X) :X).".split()


def mmbench_again(answer: str, options: dict[str, str]) -> str | None:
    if answer in ("", "None") or answer[0] == "=":  # as the spreadsheet gives it back
        answer = "nan"
    words = answer.split()
    for form in ["X", *FORMS]:
        there = {letter for letter in "ABCDE" if form.replace("X", letter) in words}
        if len(there) == 1 and not (form == "X" and "A" in words and len(words) > 3):
            return there.pop()
    found = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else None


LETTERS = st.lists(
    st.sampled_from(
        [
            *"ABCDE",
            "=",
            "None",
            *(form.replace("X", x) for form in FORMS for x in "ABD"),
            "a",
            "box",
            "Both",
            "is",
            "red",
        ]
    ),
    max_size=5,
).map(" ".join)
OPTIONS = st.lists(
    st.sampled_from(["a box", "a", "red", "Both", "BALL", "n", "box"]), min_size=2, max_size=4
).map(lambda texts: dict(zip("ABCD", texts, strict=False)))


@given(LETTERS, OPTIONS)
def test_letters_of_mmbench(answer: str, options: dict[str, str]) -> None:
    assert mmbench.said(answer, options) == mmbench_again(answer, options)
