"""Text to ids and back, as the published code's tokenizer does it.

That is the slow `LlamaTokenizer` of transformers 4.33: a SentencePiece model, and around it a rule
for tokens such as `</s>` that stand inside text. The rule has two versions, `legacy` true (MobileVLM
1.7B and 3B) and false (V2-7B).
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import sentencepiece

from mvlm_np.checkpoints.checkpoint import AddedToken, StoredTokenizer
from mvlm_np.checkpoints.json_files import short
from mvlm_np.checkpoints.sniff import show
from mvlm_np.checkpoints.tokenizer_files import FIX, check_model, read_folder
from mvlm_np.errors import PromptError, TokenizerError
from mvlm_np.inputs.conversation import Stretch, around_pictures

if TYPE_CHECKING:
    from mvlm_np.inputs.byte_pairs import ByteDecoder

IMAGE_TOKEN = -200  # stands for a whole picture among the ids of a prompt
SPACE = "\u2581"  # how SentencePiece spells a space
MAX_ADDED = 4096
HALF_CHARACTER = re.compile(
    "[\ud800-\udfff]"
)  # what Python makes of bytes it cannot decode, say in an argument

# A protobuf message appended to another one is merged into it. This one says, in field 3
# (normalizer_spec), that field 3 (add_dummy_prefix) is false.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"

sentencepiece.set_min_log_level(10)  # what it thinks of a file would go to stderr; we raise it
# Python's own "replace" gives one U+FFFD for several wrong bytes; SentencePiece gives one for each.
codecs.register_error("mvlm_np.each", lambda error: ("\ufffd", getattr(error, "start", 0) + 1))


class Tokenizer:
    """A SentencePiece model and the added tokens around it, as a checkpoint's files describe them.

    rows  of the model's table of embeddings, if that is known. Added tokens `beyond` it may be listed, as
          long as no text contains one

    `vocab_size` counts all ids, those of added tokens included. Raises TokenizerError when `stored.model`
    is not a SentencePiece model, has more pieces than `rows`, or an added token's id does not fit it.
    """

    def __init__(self, stored: StoredTokenizer, rows: int | None = None):
        assert isinstance(stored.model, bytes), "`make` knows what to make of it"
        self.where, self.legacy = stored.where, stored.legacy
        self.add_bos, self.add_eos = stored.add_bos, stored.add_eos
        self._model = _load(stored.model, stored.legacy, stored.where)
        try:
            self._pieces: list[str] = self._model.id_to_piece(list(range(len(self._model))))
        except UnicodeDecodeError:
            raise TokenizerError(self.where, "a piece is not UTF-8", fix=FIX) from None
        self._model_size = len(self._pieces)  # the ids from here on are added tokens'
        *_, self._unk = roles = stored.bos, stored.eos, stored.unk
        named = {name: AddedToken(name, None, True, False, False) for name in roles}
        self._added = named | {token.content: token for token in stored.added_tokens if token.content}
        self._ids = self._number_added()
        self.bos_id, self.eos_id, self.unk_id = (self._ids[name] for name in roles)
        self.special_ids = frozenset(self._ids[t.content] for t in self._added.values() if t.special)
        self._count(rows)

        longest_first = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._find_added = re.compile("|".join(longest_first)).finditer
        self._unk_length = len(self._model.encode(self._unk))
        # What decoding does with the spaces at the very start, seen from what encoding does there.
        self._strips_all = self._model.normalize(" ") == ""
        self._strips_one = self._model.normalize("a") != "a"

    def _count(self, rows: int | None) -> None:
        """Counts the ids, and compares them with the model's rows."""
        self.vocab_size, self._rows = len(self._pieces), rows
        self.beyond = {text: i for text, i in self.appended.items() if rows is not None and i >= rows}
        if rows is not None and self._model_size > rows:
            found = f"has {self._model_size} pieces"
            raise TokenizerError(self.where, found, f"at most the model's {rows}", "copy the model's own")

    def _number_added(self) -> dict[str, int]:
        """The id of each added token. Those that are not the model's are appended to the pieces."""
        if len(self._added) > MAX_ADDED:
            raise TokenizerError(self.where, f"{len(self._added)} added tokens", f"at most {MAX_ADDED}")
        ids = {}
        for token in sorted(self._added.values(), key=lambda t: (t.id is None, t.id or 0)):
            if HALF_CHARACTER.search(token.content):
                raise TokenizerError(self.where, f"added token {show(token.content)} is not Unicode", fix=FIX)
            number = self._model.piece_to_id(token.content)
            if token.content not in (self._pieces[number], self._unk):
                number = len(self._pieces)
                self._pieces.append(token.content)
            if token.id not in (None, number):
                found = f"added token {show(token.content)} has id {short(token.id)}"
                raise TokenizerError(self.where, found, f"{number}", FIX)
            ids[token.content] = number
        return ids

    @staticmethod
    def from_folder(folder: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face model folder; see `read_folder` for files and errors."""
        return make(read_folder(Path(folder)))

    @property
    def appended(self) -> dict[str, int]:
        """The tokens that the SentencePiece model does not have, and their ids."""
        return {text: number for text, number in self._ids.items() if number >= self._model_size}

    def notes(self) -> list[str]:
        """What a user should know of how the tokenizer fits the model, a line each."""
        notes = []
        if self.beyond:
            tokens = ", ".join(f"{show(text)} = {i}" for text, i in list(self.beyond.items())[:4])
            notes.append(f"{self.where}: the model has no row for {tokens}; no text may contain one")
        if self._rows is not None and self.vocab_size < self._rows:
            more = self._rows - self.vocab_size
            notes.append(f"the model has {more} ids more than the tokenizer; they are never chosen")
        return notes

    def encode(self, text: str, seen: str | None = None) -> list[int]:
        """Ids of a text, BOS first: `tokenizer(text).input_ids` of the published code.

        seen  of the same length: what is looked for added tokens in the text's place, see `spelled`

        Raises PromptError for a string that is not Unicode text (half a surrogate pair).
        """
        self._require_unicode(text)
        seen = text if seen is None else seen
        if text and not self.legacy:
            text, seen = (SPACE + each.replace(SPACE, " ") for each in (text, seen))
        parts, end = list[str](), 0  # text, token, text, token, ..., text
        for found in self._find_added(seen):
            parts += [text[end : found.start()], found[0]]
            end = found.end()
        parts.append(text[end:])
        for i in range(1, len(parts), 2):
            if self._added[parts[i]].lstrip:
                parts[i - 1] = parts[i - 1].rstrip()
            if self._added[parts[i]].rstrip:
                parts[i + 1] = parts[i + 1].lstrip()

        ids = self._encode_plain(parts[0])
        starts_special = len(parts) > 1 and self._added[parts[1]].special
        if starts_special and not self.legacy and self._spell(ids) == [SPACE]:
            ids = []  # there was no text for the space that was put before it
        for token, plain in zip(parts[1::2], parts[2::2], strict=True):
            ids += [self._ids[token], *self._encode_plain(plain)]
        return self._around(ids)

    def _require_unicode(self, text: str) -> None:
        if half := HALF_CHARACTER.search(text):
            raise PromptError("the text", f"half a character at {half.start()}", "valid Unicode")

    def _around(self, ids: list[int]) -> list[int]:
        """The ids of a text with the tokens around it. PromptError: one of them is beyond the model."""
        if unknown := next((text for text, i in self.beyond.items() if i in ids), None):
            raise PromptError(
                f"the text: {show(unknown)}",
                f"is token {self.beyond[unknown]} by the tokenizer's files",
                f"one of the model's {self._rows}",
                "leave it out, or take it out of added_tokens.json",
            )
        return [self.bos_id] * self.add_bos + ids + [self.eos_id] * self.add_eos

    def encode_inside(self, text: str) -> list[int]:
        """Ids of text that goes on where other text has ended: no BOS, and no space put before it."""
        return self._model.encode(self._unk + text)[self._unk_length :]

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of text without added tokens. SentencePiece would drop a space at its start; where the
        space belongs to the text (not legacy), another text stands before it and is cut off again."""
        if not text:
            return []
        if self.legacy or not text.startswith((SPACE, " ")):
            return self._model.encode(text)
        return self._model.encode(self._unk + text)[self._unk_length :]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids: `batch_decode` of the published code.

        Every byte that is not part of UTF-8 gives one U+FFFD. Raises TokenizerError for an id that
        is none of this tokenizer's.
        """
        if skip_special_tokens:
            stream = StreamDecoder(self)
            return "".join([stream.push(i) for i in ids]) + stream.finish()
        parts: list[str] = []
        for added, group in groupby(map(self._checked, ids), lambda i: i >= self._model_size):
            if added:
                parts += self._spell(group)
            else:
                parts.append(self._decode_with_special(group))
        return " ".join(parts)

    def _decode_with_special(self, ids: Iterable[int]) -> str:
        """Text of ids of the model, special ones spelled out. The published code puts a space, if
        legacy, in front of (sic) each stretch of text that a special token ends."""
        text = stretch = ""
        for i, (special, group) in enumerate(groupby(ids, self.special_ids.__contains__)):
            if special:
                text += " " * (self.legacy and i > 0) + stretch + "".join(self._spell(group))
                stretch = ""
            else:
                run = _Run(self, first=i == 0)
                stretch = "".join([run.push(i) for i in group]) + run.finish()
        return text + stretch

    def stream(self) -> "Stream":
        """Turns ids that arrive one at a time into text, special tokens left out."""
        return StreamDecoder(self)

    def id_to_piece(self, id: int) -> str:
        """A piece as the model spells it: `▁Hello`, `<0x0A>`, `</s>`."""
        return self._pieces[self._checked(id)]

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece; that of `unk` for a string that is no piece."""
        return self._ids[piece] if piece in self._ids else self._model.piece_to_id(piece)

    def piece_bytes(self, id: int) -> bytes:
        """What a piece adds to a text, in UTF-8: perhaps part of a character; of a special token nothing."""
        piece = self.id_to_piece(id)
        if id in self.special_ids:
            return b""
        if id < self._model_size and self._is_byte(id):
            return bytes([int(piece[3:-1], 16)])
        if id < self._model_size and self._is_no_text(id):
            return self._model.decode([piece]).encode()
        return piece.replace(SPACE, " ").encode()

    def _is_byte(self, id: int) -> bool:
        return self._model.is_byte(id)

    def _is_no_text(self, id: int) -> bool:
        return self._model.is_control(id) or self._model.is_unknown(id)

    def _spell(self, ids: Iterable[int]) -> list[str]:
        return [self._pieces[i] for i in ids]

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(self.where, f"no piece has id {id}", f"0 to {self.vocab_size - 1}")
        return id


class Stream(Protocol):
    """Text of ids that arrive one at a time.

    Everything that `push` has returned, and then `finish`, is together what `decode` gives for all ids.
    """

    def push(self, id: int) -> str:
        """The text that is certain now. TokenizerError: an id is none of the tokenizer's."""

    def finish(self) -> str:
        """What was held back."""


class PairTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json: the ids and texts are those of the `tokenizers` package."""

    def __init__(self, stored: StoredTokenizer, rows: int | None = None):
        from mvlm_np.inputs.byte_pairs import ByteDecoder, BytePairs  # for the few models that need them

        assert not isinstance(stored.model, bytes)
        self.where, self.add_bos, self.add_eos = stored.where, stored.add_bos, stored.add_eos
        model = stored.model
        self._pairs, self._decoder = BytePairs(model), partial(ByteDecoder, model.strip)
        # As for the other kind: whether a text behind an added token begins with a space of its own.
        self.legacy = model.metaspace == "always" or any(kind == "prepend" for kind, *_ in model.normalizer)
        self._pieces, self._model_size = list(model.pieces), model.size
        self._ids = {piece: i for i, piece in enumerate(model.pieces)}
        roles = (stored.bos, stored.eos, stored.unk)
        for text in (*roles, *(token.content for token in stored.added_tokens)):
            if text not in self._ids:
                raise TokenizerError(self.where, f"does not hold the token {show(text)}", fix=FIX)
        for token in stored.added_tokens:
            if token.id not in (None, self._ids[token.content]):
                found = f"added token {show(token.content)} has id {short(token.id)}"
                raise TokenizerError(self.where, found, f"{self._ids[token.content]}", FIX)
        self.bos_id, self.eos_id, self.unk_id = (self._ids[name] for name in roles)
        self.special_ids = frozenset(token.id for token in model.added if token.special)
        self._count(rows)

    def encode(self, text: str, seen: str | None = None) -> list[int]:
        self._require_unicode(text)
        return self._around(self._pairs.encode(text, seen))

    def encode_inside(self, text: str) -> list[int]:
        return self._pairs.encode(text, goes_on=True)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        skipped = self.special_ids if skip_special_tokens else ()
        decoder = self._decoder()
        kept = (i for i in map(self._checked, ids) if i not in skipped)
        return "".join([decoder.push(self._pairs.spelled[i]) for i in kept]) + decoder.finish()

    def piece_to_id(self, piece: str) -> int:
        return self._ids.get(piece, self.unk_id)

    def _is_byte(self, id: int) -> bool:
        from mvlm_np.inputs.byte_pairs import BYTE

        return BYTE.fullmatch(self._pieces[id]) is not None

    def _is_no_text(self, id: int) -> bool:
        return False

    def stream(self) -> Stream:
        return _PairStream(self, self._pairs.spelled, self._decoder())


class _PairStream:
    def __init__(self, tokenizer: PairTokenizer, spelled: list[str], decoder: "ByteDecoder"):
        self._tokenizer, self._spelled, self._decoder = tokenizer, spelled, decoder

    def push(self, id: int) -> str:
        self._tokenizer.id_to_piece(id)  # raises for an id that is none
        return "" if id in self._tokenizer.special_ids else self._decoder.push(self._spelled[id])

    def finish(self) -> str:
        return self._decoder.finish()


def make(stored: StoredTokenizer, rows: int | None = None) -> Tokenizer:
    """The tokenizer that the files describe, for a model with so many rows. TokenizerError: it is unsound."""
    kind = Tokenizer if isinstance(stored.model, bytes) else PairTokenizer
    return kind(stored, rows)


class StreamDecoder:
    """Text of ids that arrive one at a time, special tokens left out.

    Everything that `push` has returned, and then `finish`, is together what `decode` gives for all
    ids: `push` holds back only the bytes of a character that is not complete.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._run: _Run | None = None  # ids of the model, since the last added token
        self._is_empty = True

    def push(self, id: int) -> str:
        """The text that is certain now. Raises TokenizerError for an id that is none of the tokenizer's."""
        piece = self._tokenizer.id_to_piece(id)
        if id in self._tokenizer.special_ids:
            return ""
        if id >= self._tokenizer._model_size:
            text = self.finish() + self._gap() + piece
            self._run = None
            return text
        gap = ""
        if self._run is None:
            gap = self._gap()
            self._run = _Run(self._tokenizer)
        return gap + self._run.push(id)

    def finish(self) -> str:
        """What was held back: U+FFFD for each byte of an incomplete character."""
        return self._run.finish() if self._run else ""

    def _gap(self) -> str:
        """A space between added tokens and what stands beside them."""
        gap = "" if self._is_empty else " "
        self._is_empty = False
        return gap


class _Run:
    """What SentencePiece's decoder makes of pieces of the model, one piece at a time.

    At the very start it drops a space, the one that encoding put there. Before it sees the pieces
    the published code has dropped one too, if the run is the first of its text.
    """

    def __init__(self, tokenizer: Tokenizer, first: bool = True):
        self._tokenizer = tokenizer
        self._model = tokenizer._model
        self._first = first
        self._strips = tokenizer._strips_one or tokenizer._strips_all
        self._utf8 = codecs.getincrementaldecoder("utf-8")("mvlm_np.each")

    def push(self, id: int) -> str:
        piece = self._tokenizer._pieces[id]
        if self._first and piece.startswith(SPACE):
            piece = piece[1:]
            id = self._model.piece_to_id(piece)
        self._first = False
        if self._model.is_byte(id):
            text = self._utf8.decode(bytes([int(piece[1:-1], 16)]))
        else:
            held = self.finish()
            text = held + self._text_of(piece, id, at_start=self._strips and not held)
        self._strips = self._strips and not text
        return text

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def _text_of(self, piece: str, id: int, at_start: bool) -> str:
        if self._model.is_control(id) or self._model.is_unknown(id):
            return self._model.decode([piece])
        if at_start and piece.startswith(SPACE):
            piece = piece[1:]
            self._strips = self._tokenizer._strips_all
        return piece.replace(SPACE, " ")


def tokenize_prompt(prompt: str | Sequence[Stretch], tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt, IMAGE_TOKEN in place of each `<image>`.

    As in the published code each piece between images is a text of its own, with the space that
    starts a text; only BOS is not repeated.
    """
    ids: list[int] = []
    for i, (text, seen) in enumerate(around_pictures(prompt)):
        piece_ids = tokenizer.encode(text, seen)
        ids += [IMAGE_TOKEN, *piece_ids[tokenizer.add_bos :]] if i else piece_ids
    return ids


def _load(model: bytes, legacy: bool, where: object) -> sentencepiece.SentencePieceProcessor:
    check_model(model, where)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model if legacy else model + NO_DUMMY_PREFIX)
    except (RuntimeError, UnicodeError) as error:  # a message may quote a piece that is not UTF-8
        raise TokenizerError(where, f"is not a SentencePiece model ({error})", fix=FIX) from None
    return processor
