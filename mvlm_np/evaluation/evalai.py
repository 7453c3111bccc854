"""How answers of TextVQA are made comparable, and how right one is when ten people have answered.

This is the processing of the EvalAI server, in the variant that the published code has, slips included.
"""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "none zero one two three four five six seven eight nine ten".split()
NUMBERS = {word: str(max(0, i - 1)) for i, word in enumerate(DIGITS)}
ARTICLES = ("a", "an", "the")
# What is restored where one apostrophe is missing. Words with "I" are left out: the text is in lower case.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
    they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
RESTORED = {
    word[:i] + word[i + 1 :]: word for word in CONTRACTIONS for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # a slip of the list, the other way round
MOST_PERIODS = 32  # a flag is passed in place of a count


def processed(answer: str) -> str:
    """An answer, of the model or of a person, as it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # A mark that stands beside a blank anywhere is deleted everywhere, any other becomes a blank.
    beside = {mark for mark in PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    table = {ord(mark): "" if mark in beside else " " for mark in PUNCTUATION}
    text = re.sub(r"\.(?!\d)", "", text.translate(table), count=MOST_PERIODS)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, ten: Sequence[str]) -> float:
    """How right a processed answer is, beside ten processed ones of people.

    Each of the ten is left out in turn; of the other nine, three that are equal make it fully right; the mean
    of that. So 1, 2, 3 and more equal ones of the ten give 0.3, 0.6, 0.9 and 1.
    """
    assert len(ten) == 10
    equal = sum(answer == other for other in ten)
    return sum(min(1.0, (equal - (answer == left_out)) / 3) for left_out in ten) / 10
