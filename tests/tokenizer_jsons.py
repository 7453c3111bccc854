"""A tokenizer.json in every variant that LLaMA's have had, of the vocabulary of a SentencePiece model."""

import copy
import random
from typing import Any

import sentencepiece

Json = dict[str, Any]
SPACE = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, REPLACE]}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
WORDS = ("<pad>", "<im_start>", "loc", " x", "\n", "<pad>>")  # as added tokens


def metaspace(scheme: str, split: bool = False) -> Json:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


# (normalizer, pre_tokenizer)
VARIANTS: dict[str, tuple[Json | None, Json | None]] = {
    "legacy, as transformers 4 saves it": (PREPEND, None),
    "not legacy, as transformers 4 saves it": (None, metaspace("first")),
    "as transformers 5 saves it": (None, metaspace("always")),
    "no space before a text": (None, metaspace("never")),
    "no space before a text, normalised": (REPLACE, None),
    "words apart": (None, metaspace("always", True)),
    "words apart, the first alone with a space": (None, metaspace("first", True)),
    "as older tokenizers save it": (
        None, {"type": "Metaspace", "replacement": SPACE, "add_prefix_space": True}
    ),
    "both ways": (PREPEND, metaspace("first")),
    "nothing": (None, None),
}  # fmt: skip


def from_sentencepiece(model: bytes) -> Json:
    """The vocabulary with every pair that joins to a piece, the best piece first, as transformers has it."""
    read = sentencepiece.SentencePieceProcessor()
    read.LoadFromSerializedProto(model)
    pieces = [read.id_to_piece(i) for i in range(read.vocab_size())]
    odd = (read.is_control, read.is_unknown, read.is_byte)
    plain = {piece: i for i, piece in enumerate(pieces) if not any(is_kind(i) for is_kind in odd)}
    merges = []
    for piece in sorted(plain, key=lambda piece: -read.get_score(plain[piece])):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += sorted(
            ([left, right] for left, right in splits if left in plain and right in plain),
            key=lambda pair: (plain[pair[0]], plain[pair[1]]),
        )
    return _file(pieces, merges)


def small() -> Json:
    """A vocabulary of a few letters."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "<0x0A>",
        SPACE,
        *"abcde",
        "ab",
        "cd",
        "abcd",
        f"{SPACE}a",
        f"{SPACE}ab",
    ]
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], [SPACE, "a"], [f"{SPACE}a", "b"], [SPACE, "ab"]]
    return _file(pieces, merges)


def _file(pieces: list[str], merges: list[list[str]]) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces[i], **flags, "special": True} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": metaspace("always"),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [TEXT, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


def variant(base: Json, name: str, more: int) -> Json:
    """One of `VARIANTS`. more: 0, or which of several ways added tokens and settings are drawn."""
    found = copy.deepcopy(base)
    found["normalizer"], found["pre_tokenizer"] = VARIANTS[name]
    if more:
        draw = random.Random(more)
        first = len(found["model"]["vocab"])
        for i, content in enumerate(WORDS):
            flags = {flag: draw.random() < 0.4 for flag in ("single_word", "lstrip", "rstrip", "special")}
            token = {
                "id": first + i,
                "content": content,
                **flags,
                "normalized": more > 1 and draw.random() < 0.5,
            }
            found["added_tokens"].append(token)
    if more == 2:
        found["decoder"]["decoders"].pop()  # no space is dropped
    if more == 3:
        for token in found["added_tokens"][:3]:
            token["normalized"] = True
        found["model"] |= {"fuse_unk": False, "ignore_merges": True, "unk_token": "<unk>"}
    if more == 4:  # nothing for characters that have no piece
        found["model"] |= {"byte_fallback": False, "unk_token": "<unk>"}
    if more == 5:
        found["model"] |= {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": False}
    if more == 6:
        found["model"] |= {"byte_fallback": False}
    if more == 7:  # as transformers wrote pairs before 4.45
        found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    return found
