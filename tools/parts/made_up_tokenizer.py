"""A SentencePiece model of any size that works as LLaMA's does, with made-up pieces instead of learnt ones.

LLaMA's own tokenizer.model may not be handed on, and a random checkpoint needs none: what matters is that
every text has ids, every id has a text, and a token is a few letters long.
"""

from collections.abc import Iterator
from itertools import islice, product
from string import digits, printable

from mvlm_np.checkpoints.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    as_sentencepiece,
    read_tokenizer,
)

SPACE = "\u2581"  # how SentencePiece spells a space
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # the commonest first


def tokenizer_model(vocabulary: int) -> bytes:
    """The bytes of a `tokenizer.model` of exactly this many pieces, from 64 to 36,000.

    Ids 0 to 2 are <unk>, <s>, </s>; then come, where there is room for them, the 256 bytes; then
    characters; then pairs and threes of letters, and pairs with a space before them.
    """
    with_bytes = vocabulary >= 512
    fixed = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    fixed += [(f"<0x{byte:02X}>", BYTE) for byte in range(256 if with_bytes else 0)]
    pieces = fixed + [(text, NORMAL) for text in islice(_texts(), vocabulary - len(fixed))]
    assert len(pieces) == vocabulary, f"no more than {len(pieces)} pieces can be made up"
    texts, kinds = zip(*pieces, strict=True)
    tokenizer = read_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": list(texts),
            # The earlier of two pieces that could be formed is formed first.
            "tokenizer.ggml.scores": [float(-i) for i in range(vocabulary)],
            "tokenizer.ggml.token_type": list(kinds),
        },
        "made-up tokenizer",
    )
    return as_sentencepiece(tokenizer)


def _texts() -> Iterator[str]:
    """Characters and then groups of letters, likelier ones first. A group's parts come before it, as
    the merging of pairs needs it."""
    common = LETTERS + SPACE + "\n.,:?'" + LETTERS.upper() + digits
    yield from common
    yield from (c for c in printable.strip() if c not in common)
    yield from (SPACE + letter for letter in LETTERS)
    yield from ("".join(pair) for pair in product(LETTERS, repeat=2))
    yield from (SPACE + first + second for first, second in product(LETTERS, repeat=2))
    yield from ("".join(three) for three in product(LETTERS, repeat=3))
    yield from (SPACE + "".join(three) for three in product(LETTERS, repeat=3))
