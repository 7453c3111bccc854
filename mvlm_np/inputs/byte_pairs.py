"""Text to ids by byte pairs, and back: what the `tokenizers` package does with LLaMA's tokenizer.json.

text  -> added tokens, and the stretches between them
      -> each stretch with signs in place of spaces
      -> characters, or bytes where a character has no piece
      -> pairs joined, the one first in the list first, of equal ones the leftmost
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from mvlm_np.checkpoints.tokenizer_json import SPACE, BytePairModel, FoundToken
from mvlm_np.inputs.conversation import HIDDEN

# What the package takes for white space and for parts of a word; Python takes a little more, or less.
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
WORD = ("L", "M", "Nd", "Nl", "Pc")
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class BytePairs:
    """Encodes by a `BytePairModel`."""

    def __init__(self, model: BytePairModel):
        self.model = model
        self._ids = {piece: i for i, piece in enumerate(model.pieces[: model.size])}
        self._ranks = {
            (left, right): (rank, joined) for rank, (left, right, joined) in enumerate(model.merges)
        }
        self._bytes = [self._ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        raw = {token.content: token for token in model.added if not token.normalized}
        seen = {
            self._normalise(token.content, token.content)[0]: token
            for token in model.added
            if token.normalized
        }
        # What decoding makes of each id: an added token as it is looked for.
        self.spelled = list(model.pieces)
        for text, token in seen.items():
            self.spelled[token.id] = text
        self._finders = [(found, _pattern(found)) for found in (raw, seen)]

    def encode(self, text: str, seen: str | None = None, goes_on: bool = False) -> list[int]:
        """The ids of a text.

        seen     of the same length: what is looked for added tokens in the text's place; None: the text
        goes_on  the text goes on where another has ended, so that no space is put before it
        """
        ids: list[int] = []
        for at, part, shown in self._split(text, text if seen is None else seen, 0):
            if isinstance(part, FoundToken):
                ids.append(part.id)
                continue
            first = at == 0 and not goes_on
            prepend = not (goes_on and at == 0)
            for inner, piece, _ in self._split(*self._normalise(part, shown, prepend), 1):
                if isinstance(piece, FoundToken):
                    ids.append(piece.id)
                else:
                    for word in self._words(piece, first and inner == 0, goes_on and at == inner == 0):
                        ids += self._encode_word(word)
        return ids

    def _normalise(self, text: str, seen: str, prepend: bool = True) -> tuple[str, str]:
        for kind, *what in self.model.normalizer:
            if kind == "replace":
                text, seen = _replaced(text, seen, *what)
            elif text and prepend:
                text, seen = what[0] + text, what[0] + seen
        return text, seen

    def _split(self, text: str, seen: str, finder: int) -> Iterator[tuple[int, str | FoundToken, str]]:
        """Added tokens and the texts between them, each with its place, and of texts what is seen of them."""
        tokens, pattern = self._finders[finder]
        start = at = 0
        while tokens and (match := pattern.search(seen, at)):
            token = tokens[match[0]]
            begin, at = match.span()
            if token.single_word and (_is_word(text[:begin][-1:]) or _is_word(text[at : at + 1])):
                continue
            if token.lstrip:
                begin = max(len(text[:begin].rstrip(WHITE)), start)
            end = len(text) - len(text[at:].lstrip(WHITE)) if token.rstrip else at
            if start < begin:
                yield start, text[start:begin], seen[start:begin]
            if begin < end:
                yield begin, token, ""
            start = end
        if start < len(text):
            yield start, text[start:], seen[start:]

    def _words(self, text: str, first: bool, goes_on: bool) -> list[str]:
        scheme = self.model.metaspace
        if scheme is None:
            return [text]
        text = text.replace(" ", SPACE)
        wanted = scheme == "always" or (scheme == "first" and first)
        if wanted and not goes_on and not text.startswith(SPACE):
            text = SPACE + text
        if not self.model.split:
            return [text]
        return [word for word in re.split(f"(?={SPACE})", text) if word]

    def _encode_word(self, word: str) -> list[int]:
        if self.model.ignore_merges and word in self._ids:
            return [self._ids[word]]
        symbols: list[int] = []
        unknown = False  # whether unk waits, to be joined with what follows
        for character in word:
            known = self._ids.get(character)
            if known is not None:
                if unknown and self.model.unk is not None:
                    symbols.append(self.model.unk)
                unknown = False
                symbols.append(known)
                continue
            if self.model.byte_fallback:
                pieces = [self._bytes[byte] for byte in character.encode()]
                if None not in pieces:
                    symbols += [piece for piece in pieces if piece is not None]
                    continue
            if unknown and not self.model.fuse_unk and self.model.unk is not None:
                symbols.append(self.model.unk)
            unknown = True
        if unknown and self.model.unk is not None:
            symbols.append(self.model.unk)
        return self._join(symbols)

    def _join(self, symbols: list[int]) -> list[int]:
        """Joins pairs until none is in the list: neighbours are linked, and the best pair is on a heap."""
        n = len(symbols)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        gone = [False] * n

        def pair(i: int) -> tuple[int, int, int, int, int] | None:
            j = after[i]
            found = self._ranks.get((symbols[i], symbols[j])) if j < n else None
            return (found[0], i, symbols[i], symbols[j], found[1]) if found else None

        heap = [entry for i in range(n - 1) if (entry := pair(i))]
        heapify(heap)
        while heap:
            _, i, left, right, joined = heappop(heap)
            j = after[i]
            if gone[i] or j >= n or symbols[i] != left or symbols[j] != right:
                continue  # one of the two has been joined with something else
            symbols[i], gone[j], after[i] = joined, True, after[j]
            if after[j] < n:
                before[after[j]] = i
            for k in (before[i], i):
                if k >= 0 and (entry := pair(k)):
                    heappush(heap, entry)
        return [symbol for symbol, is_gone in zip(symbols, gone, strict=True) if not is_gone]


class ByteDecoder:
    """Text of pieces that arrive one at a time.

    Bytes wait until something else follows: by this tokenizer's rule a run of them that is not UTF-8 gives
    one U+FFFD for each, those of its sound characters included.
    """

    def __init__(self, strip: bool):
        self._strip, self._waiting = strip, b""

    def push(self, piece: str) -> str:
        text = piece.replace(SPACE, " ")
        if len(text.encode()) == 6 and (byte := BYTE.fullmatch(text)):
            self._waiting += bytes([int(byte[1], 16)])
            return ""
        return self.finish() + self._start(text)

    def finish(self) -> str:
        waiting, self._waiting = self._waiting, b""
        try:
            text = waiting.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(waiting)
        return self._start(text)

    def _start(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _replaced(text: str, seen: str, old: str, new: str) -> tuple[str, str]:
    """Both with `new` where `old` stands in the text; in `seen` it is hidden where any of `old` was."""
    if text == seen:
        return (text.replace(old, new),) * 2
    parts, shown, end = list[str](), list[str](), 0
    for found in re.finditer(re.escape(old), text):
        start, last = found.span()
        is_seen = seen[start:last] == old
        parts += [text[end:start], new]
        shown += [seen[end:start], new if is_seen else HIDDEN * len(new)]
        end = last
    return "".join([*parts, text[end:]]), "".join([*shown, seen[end:]])


def _pattern(tokens: Sequence[str] | dict[str, FoundToken]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _is_word(character: str) -> bool:
    """Whether a character is a letter (in a circle, too), a mark, a digit, a low line or a joiner."""
    if not character:
        return False
    circled = "\u24b6" <= character <= "\u24e9" or "\U0001f130" <= character <= "\U0001f189"
    return circled or unicodedata.category(character).startswith(WORD) or character in "\u200c\u200d"
