"""The tokenizer inside a GGUF, to and from a SentencePiece model.

llama.cpp keeps a SentencePiece model as three lists: pieces, scores and kinds. A `tokenizer.model` is the
protobuf message ModelProto, which holds the same and a few flags; the handful of protobuf that it takes
is written out here. Field numbers are those of sentencepiece_model.proto.

    ModelProto:      1 pieces (SentencePiece, repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece:   1 piece   2 score
                     3 type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    TrainerSpec:     3 model_type: 2 is BPE   4 vocab_size   35 byte_fallback
                     40 unk_id   41 bos_id   42 eos_id   43 pad_id
                     45 unk_piece   46 bos_piece   47 eos_piece
    NormalizerSpec:  1 name   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, NoReturn

from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.errors import NoTokenizer, TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE = 2
MAX_TOKENS = 1 << 17
_LEGACY = "mvlm.tokenizer.legacy"  # a setting of ours: llama.cpp knows only one of the two ways
MODEL = "tokenizer.ggml.model"  # the setting without which a GGUF has no tokenizer
_FIX = "put the model's tokenizer.model beside the GGUF"


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


# -- From a GGUF's settings to a SentencePiece model ------------------------------------------------------


def read_tokenizer(metadata: Mapping[str, Any], where: object) -> StoredTokenizer:
    """The tokenizer that a GGUF's settings describe.

    A GGUF that we did not write does not say how text after a special token is read, and gets `legacy` True,
    which is what llama.cpp does. Raises TokenizerError if there is none, or if it is not a SentencePiece BPE
    model, or not a sound one.
    """
    kind = metadata.get(MODEL)
    if kind is None:
        raise NoTokenizer(where, "holds no tokenizer", fix=_FIX)
    if kind != "llama":
        _refuse(where, "tokenizer.ggml.model", f"found {str(kind)[:40]!r}", "'llama', a SentencePiece model")
    pieces = _pieces(metadata, where)
    unk = [i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unk) != 1:
        _refuse(where, "tokenizer.ggml.token_type", f"found {len(unk)} pieces of type 2 (unknown)", "one")
    bos, eos = (_id(metadata, role, default, pieces, where) for role, default in (("bos", 1), ("eos", 2)))
    flags = {key: metadata.get(f"tokenizer.ggml.{key}", default) for key, default in _FLAGS.items()}
    legacy = metadata.get(_LEGACY, True)
    for key, value in (*flags.items(), (_LEGACY, legacy)):
        if not isinstance(value, bool):
            _refuse(where, key, f"found {str(value)[:40]!r}", "true or false")
    model = _model(pieces, unk[0], bos, eos, flags["add_space_prefix"])
    return StoredTokenizer(
        model,
        legacy,
        where=where,
        bos=pieces[bos].text,
        eos=pieces[eos].text,
        unk=pieces[unk[0]].text,
        add_bos=flags["add_bos_token"],
        add_eos=flags["add_eos_token"],
    )


_FLAGS = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}


def _pieces(metadata: Mapping[str, Any], where: object) -> list[Piece]:
    """The three lists, checked for all that SentencePiece demands of them."""
    columns = {"tokens": str, "scores": float, "token_type": int}
    texts, scores, kinds = (_column(metadata, key, kind, where) for key, kind in columns.items())
    if not len(texts) == len(scores) == len(kinds) > 0:
        found = f"found {len(texts)} tokens, {len(scores)} scores and {len(kinds)} types"
        _refuse(where, "tokenizer.ggml", found, "as many of each")
    if len(texts) > MAX_TOKENS:
        _refuse(where, "tokenizer.ggml.tokens", f"found {len(texts)}", f"at most {MAX_TOKENS}")
    pieces = []
    for i, (text, score, kind) in enumerate(zip(texts, scores, kinds, strict=True)):
        if not text or not isfinite(score) or not NORMAL <= kind <= BYTE:
            found = f"is {text[:20]!r} with score {score} and type {kind}"
            _refuse(where, f"token {i}", found, "a text, a finite score and a type from 1 to 6")
        if kind == USER_DEFINED:  # llama.cpp's converter spells these with spaces
            text = text.replace(" ", "\u2581")
        pieces.append(Piece(text, score, kind))
    if len({piece.text for piece in pieces}) < len(pieces):
        seen: set[str] = set()
        double = next(p.text for p in pieces if p.text in seen or seen.add(p.text))  # type: ignore[func-returns-value]
        _refuse(where, "tokenizer.ggml.tokens", f"holds {double[:40]!r} twice")
    codes = {piece.text for piece in pieces if piece.kind == BYTE}
    if codes and codes != {f"<0x{byte:02X}>" for byte in range(256)}:
        found = f"found {len(codes)} byte pieces"
        _refuse(where, "tokenizer.ggml.token_type", found, "<0x00> to <0xFF>, or none")
    return pieces


def _column(metadata: Mapping[str, Any], key: str, kind: type, where: object) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        found = "is missing" if values is None else "is not such a list"
        _refuse(where, f"tokenizer.ggml.{key}", found, f"a list of {kind.__name__}")
    return values


def _id(metadata: Mapping[str, Any], role: str, default: int, pieces: Sequence[Piece], where: object) -> int:
    key = f"tokenizer.ggml.{role}_token_id"
    value = metadata.get(key, default)
    if type(value) is not int or not 0 <= value < len(pieces):
        _refuse(where, key, f"found {str(value)[:40]}", f"the number of one of {len(pieces)} tokens")
    return value


def _refuse(where: object, item: str, found: str, wanted: str | None = None) -> NoReturn:
    raise TokenizerError(f"{where}: {item}", found, wanted, _FIX)


def as_sentencepiece(stored: StoredTokenizer) -> bytes:
    """The tokenizer as a SentencePiece model, as which llama.cpp keeps it.

    A tokenizer.json has no scores: a piece gets one by the place where it is first put together, the later
    the lower. That gives the same ids, but where two overlapping pairs join to the same piece.
    """
    model = stored.model
    if isinstance(model, bytes):
        return model
    places = {joined: i for i, (_, _, joined) in reversed(list(enumerate(model.merges)))}
    special = {token.id for token in model.added if token.special}
    codes = {f"<0x{byte:02X}>" for byte in range(256)}
    codes = codes if model.byte_fallback and codes.issubset(model.pieces[: model.size]) else set()
    unk, bos, eos = (model.pieces.index(role) for role in (stored.unk, stored.bos, stored.eos))

    def kind(i: int, text: str) -> int:
        if i == unk:
            return UNKNOWN
        return CONTROL if i in special | {bos, eos} else BYTE if text in codes else NORMAL

    pieces = [
        Piece(text, -float(places.get(i, len(model.merges))), kind(i, text))
        for i, text in enumerate(model.pieces[: model.size])
    ]
    if max(unk, bos, eos) >= model.size:
        raise TokenizerError(stored.where, "has bos, eos or unk among its added tokens", "among its pieces")
    spaced = model.metaspace in ("always", "first") or any(step[0] == "prepend" for step in model.normalizer)
    return _model(pieces, unk, bos, eos, spaced)


def _model(pieces: Sequence[Piece], unk: int, bos: int, eos: int, add_dummy_prefix: bool) -> bytes:
    entries = (
        _bytes(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _number(3, piece.kind)
        for piece in pieces
    )
    trainer = (
        _number(3, _BPE)
        + _number(4, len(pieces))
        + _number(35, any(piece.kind == BYTE for piece in pieces))
        + b"".join(_number(field, i) for field, i in ((40, unk), (41, bos), (42, eos), (43, -1)))
        + b"".join(_bytes(field, pieces[i].text.encode()) for field, i in ((45, unk), (46, bos), (47, eos)))
    )
    normalizer = _bytes(1, b"identity") + _number(3, add_dummy_prefix) + _number(4, False)
    return b"".join(_bytes(1, entry) for entry in entries) + _bytes(2, trainer) + _bytes(3, normalizer)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


# -- From a SentencePiece model to a GGUF's settings ------------------------------------------------------


def tokenizer_settings(
    model: bytes,
    vocab_size: int,
    added: Mapping[str, int] | None = None,
    legacy: bool = True,
    where: object = "tokenizer.model",
) -> dict[str, Any]:
    """The `tokenizer.ggml.*` settings for a SentencePiece model.

    vocab_size  rows of the embedding; those beyond the model's pieces become unused tokens
    added       further tokens and their ids, recognised in text before the model sees it

    Raises TokenizerError for a model that llama.cpp would not tokenise in the same way.
    """
    added = added or {}
    try:
        pieces, trainer, normalizer = _parse(model)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error):  # a message of another kind
        raise TokenizerError(where, "is not a SentencePiece model") from None
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(where, f"is a SentencePiece model of type {trainer.get(3, 1)}", "2: BPE")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise TokenizerError(where, "normalises text", "a model that takes it as it is, since llama.cpp does")
    if max(len(pieces), *(i + 1 for i in added.values()), 0) > vocab_size:
        raise TokenizerError(where, "has more tokens than the model", f"at most {vocab_size}")
    pieces += [Piece(f"[PAD{i}]", -1000.0, UNUSED) for i in range(len(pieces), vocab_size)]
    for text, i in added.items():
        pieces[i] = Piece(text, -1000.0, pieces[i].kind if pieces[i].text == text else USER_DEFINED)
    ids = {"unknown": trainer.get(40, 0), "bos": trainer.get(41, 1), "eos": trainer.get(42, 2)}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        **{f"tokenizer.ggml.{key}_token_id": i for key, i in ids.items() if i < vocab_size},
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        _LEGACY: legacy,
    }


def _parse(model: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """Pieces, trainer_spec and normalizer_spec."""
    pieces, specs = [], {2: b"", 3: b""}
    for field, value in _fields(model):
        if field == 1:
            entry = dict(_fields(value))
            (score,) = struct.unpack("<f", entry.get(2, bytes(4)))
            pieces.append(Piece(entry[1].decode(), score, entry.get(3, NORMAL)))
        elif field in specs:
            specs[field] += value  # a message in two parts is its parts' bytes, joined
    return pieces, dict(_fields(specs[2])), dict(_fields(specs[3]))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int for varints, the bytes for all else. ValueError if cut short."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(message) or shift > 63:
                raise ValueError
            value |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return value

    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: lambda: 8, 2: varint, 5: lambda: 4}.get(kind, lambda: len(message))()
        if size > len(message) - at:
            raise ValueError
        yield tag >> 3, message[at : at + size]
        at += size
