"""tokenizer.json, all that transformers 5 saves of a tokenizer: byte pairs, and what is done around them.

Of the many things that such a file may ask for, those are read that LLaMA's files hold:

    model           BPE: pieces, and pairs of pieces in the order in which they are joined
    added_tokens    tokens that are recognised in a text before anything else happens
    normalizer      puts a sign for a space before a text, and in the place of each space
    pre_tokenizer   the same by another rule, `Metaspace`
    post_processor  puts tokens such as <s> around the ids
    decoder         undoes all that

Everything else is refused by its name: a tokenizer that is nearly the right one gives nearly the right ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mvlm_np.checkpoints.json_files import read_json, short
from mvlm_np.checkpoints.sniff import show
from mvlm_np.errors import TokenizerError

MAX_BYTES = 6 << 20  # LLaMA's has 1.8 MB, or 3.6 as transformers 5 writes it
MAX_PIECES, MAX_MERGES, MAX_ADDED = 1 << 17, 1 << 18, 4096
SPACE = "\u2581"


@dataclass(frozen=True)
class FoundToken:
    """An added token, and how it is looked for.

    single_word  not within a word
    lstrip       with the white space before it; `rstrip`: after it
    normalized   in the text as the normalizer leaves it, and not as it was given
    special      left out of decoded text
    """

    content: str
    id: int
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


@dataclass(frozen=True)
class BytePairModel:
    """What a tokenizer.json says.

    pieces       by id, added tokens included
    size         how many of them are the model's own
    merges       (left, right, joined) ids, the first to be joined first
    unk          the id for what has no piece; None: it is dropped
    fuse_unk     several such characters in a row are one
    byte_fallback  a character without a piece becomes pieces <0x00> to <0xFF>
    ignore_merges  a word that is a piece is taken as it is
    added        see `FoundToken`
    normalizer   in order: ("prepend", what) or ("replace", what, by what)
    metaspace    None, or when a sign for a space is put before a text that does not begin with one: "always",
                 "first" (of the stretches between added tokens only the first), "never"
    split        whether words are joined apart from each other
    strip        whether decoding drops a space at the start
    prefix, suffix  the tokens put around the ids
    """

    pieces: tuple[str, ...]
    size: int
    merges: tuple[tuple[int, int, int], ...]
    unk: int | None
    fuse_unk: bool
    byte_fallback: bool
    ignore_merges: bool
    added: tuple[FoundToken, ...]
    normalizer: tuple[tuple[str, ...], ...]
    metaspace: str | None
    split: bool
    strip: bool
    prefix: tuple[str, ...]
    suffix: tuple[str, ...]


def read_tokenizer_json(path: Path) -> BytePairModel:
    """TokenizerError: the file is unsound, or holds a tokenizer of another kind."""
    return _File(path).model()


class _File:
    def __init__(self, path: Path):
        self.path = path
        self.values = self.object("", read_json(path, TokenizerError, MAX_BYTES))

    # -- Checks: the value of the right type, or an error that names its place ------------------------

    def refuse(self, item: str, value: Any, wanted: str) -> NoReturn:
        self.refuse_as(item, f"found {short(value)}", wanted)

    def refuse_as(self, item: str, found: str, wanted: str) -> NoReturn:
        where = f"{self.path}: {item}" if item else self.path
        raise TokenizerError(where, found, wanted, "put the model's tokenizer.model here")

    def object(self, item: str, value: Any) -> dict[str, Any]:
        return value if isinstance(value, dict) else self.refuse(item, value, "an object")

    def list(self, item: str, value: Any, most: int) -> list[Any]:
        if not isinstance(value, list):
            self.refuse(item, value, "a list")
        return (
            value
            if len(value) <= most
            else self.refuse_as(item, f"has {len(value)} entries", f"at most {most}")
        )

    def text(self, item: str, value: Any) -> str:
        if not isinstance(value, str):
            self.refuse(item, value, "a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(item, value, "Unicode")
        return value

    def flag(self, item: str, values: dict[str, Any], key: str, default: bool | None = None) -> bool:
        value = values.get(key, default)
        return value if isinstance(value, bool) else self.refuse(f"{item}.{key}", value, "true or false")

    def only(self, item: str, values: dict[str, Any], known: dict[str, Sequence[Any]]) -> None:
        for key, accepted in known.items():
            value = values.get(key)
            if not any(value is one or (type(value) is type(one) and value == one) for one in accepted):
                self.refuse(f"{item}.{key}", value, " or ".join(map(repr, accepted)))

    # -- Parts ----------------------------------------------------------------------------------------

    def model(self) -> BytePairModel:
        model = self.object("model", self.values.get("model"))
        self.only("model", model, {
            "type": ["BPE"], "dropout": [None, 0, 0.0], "continuing_subword_prefix": [None, ""],
            "end_of_word_suffix": [None, ""],
        })  # fmt: skip
        vocab = self.vocab(model)
        unk = model.get("unk_token")
        if unk is not None and (not isinstance(unk, str) or unk not in vocab):
            self.refuse("model.unk_token", unk, "a piece")
        added = self.added(vocab)
        pieces = list(vocab) + [token.content for token in added if token.id >= len(vocab)]
        metaspace, split = self.metaspace()
        prefix, suffix = self.template()
        return BytePairModel(
            pieces=tuple(pieces),
            size=len(vocab),
            merges=self.merges(model, vocab),
            unk=None if unk is None else vocab[unk],
            fuse_unk=self.flag("model", model, "fuse_unk", False),
            byte_fallback=self.flag("model", model, "byte_fallback", False),
            ignore_merges=self.flag("model", model, "ignore_merges", False),
            added=added,
            normalizer=self.normalizer("normalizer", self.values.get("normalizer")),
            metaspace=metaspace,
            split=split,
            strip=self.decoder(),
            prefix=prefix,
            suffix=suffix,
        )

    def vocab(self, model: dict[str, Any]) -> dict[str, int]:
        """Piece -> id, in the order of ids."""
        vocab = self.object("model.vocab", model.get("vocab"))
        if not 0 < len(vocab) <= MAX_PIECES:
            self.refuse_as("model.vocab", f"has {len(vocab)} pieces", f"1 to {MAX_PIECES}")
        for piece, number in vocab.items():
            self.text("model.vocab", piece)
            if type(number) is not int or not 0 <= number < len(vocab):
                self.refuse(
                    f"model.vocab.{show(piece)}", number, f"a whole number from 0 to {len(vocab) - 1}"
                )
        ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
        if len(set(ordered.values())) < len(ordered):
            self.refuse_as("model.vocab", "has an id twice", "each once")
        return ordered

    def merges(self, model: dict[str, Any], vocab: dict[str, int]) -> tuple[tuple[int, int, int], ...]:
        merges: dict[tuple[int, int], int] = {}
        for i, entry in enumerate(self.list("model.merges", model.get("merges"), MAX_MERGES)):
            parts = entry.split(" ") if isinstance(entry, str) else entry
            plain = isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) for p in parts)
            if not plain or not {*parts, "".join(parts)} <= vocab.keys():
                self.refuse(f"model.merges[{i}]", entry, "two pieces whose union is a piece")
            pair = vocab[parts[0]], vocab[parts[1]]
            merges.pop(pair, None)  # the last place counts
            merges[pair] = vocab["".join(parts)]
        return tuple((left, right, joined) for (left, right), joined in merges.items())

    def added(self, vocab: dict[str, int]) -> tuple[FoundToken, ...]:
        tokens: dict[str, FoundToken] = {}
        number = len(vocab)  # of the next one that the model does not have
        for i, value in enumerate(
            self.list("added_tokens", self.values.get("added_tokens") or [], MAX_ADDED)
        ):
            item = f"added_tokens[{i}]"
            entry = self.object(item, value)
            content = self.text(f"{item}.content", entry.get("content"))
            if not content or content in tokens:
                self.refuse(f"{item}.content", content, "a text that no other has")
            expected = vocab.get(content, number)
            if type(entry.get("id")) is not int or entry["id"] != expected:
                self.refuse(f"{item}.id", entry.get("id"), f"{expected}")
            number += expected == number
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            tokens[content] = FoundToken(content, expected, *(self.flag(item, entry, f) for f in flags))
        return tuple(tokens.values())

    def normalizer(self, item: str, value: Any) -> tuple[tuple[str, ...], ...]:
        if value is None:
            return ()
        entry = self.object(item, value)
        kind = entry.get("type")
        if kind == "Sequence":
            steps = self.list(f"{item}.normalizers", entry.get("normalizers"), 16)
            return tuple(
                step for i, each in enumerate(steps) for step in self.normalizer(f"{item}[{i}]", each)
            )
        if kind == "Prepend":
            return (("prepend", self.text(f"{item}.prepend", entry.get("prepend"))),)
        if kind == "Replace":
            return (("replace", *self.replacement(item, entry)),)
        self.refuse(f"{item}.type", kind, "Prepend, Replace or a Sequence of these")

    def replacement(self, item: str, entry: dict[str, Any]) -> tuple[str, str]:
        pattern = entry.get("pattern")
        if not isinstance(pattern, dict) or list(pattern) != ["String"] or not pattern["String"]:
            self.refuse(f"{item}.pattern", pattern, "a String")
        new = self.text(f"{item}.content", entry.get("content"))
        return self.text(f"{item}.pattern", pattern["String"]), new

    def metaspace(self) -> tuple[str | None, bool]:
        value = self.values.get("pre_tokenizer")
        if value is None:
            return None, False
        entry = self.object("pre_tokenizer", value)
        self.only("pre_tokenizer", entry, {"type": ["Metaspace"], "replacement": [SPACE]})
        before = entry.get("add_prefix_space", True)  # how older files say it
        scheme = entry.get("prepend_scheme", "always" if before else "never")
        if scheme not in ("always", "first", "never"):
            self.refuse("pre_tokenizer.prepend_scheme", scheme, "always, first or never")
        return scheme, self.flag("pre_tokenizer", entry, "split", True)

    def template(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        value = self.values.get("post_processor")
        if value is None:
            return (), ()
        entry = self.object("post_processor", value)
        if entry.get("type") == "Sequence":
            several = self.list("post_processor.processors", entry.get("processors"), 16)
            if len(several) != 1:
                self.refuse_as("post_processor.processors", f"has {len(several)} of them", "one")
            entry = self.object("post_processor", several[0])
        self.only("post_processor", entry, {"type": ["TemplateProcessing"]})
        around: list[list[str]] = [[], []]
        texts = 0
        for i, part in enumerate(self.list("post_processor.single", entry.get("single"), 16)):
            if isinstance(part, dict) and list(part) == ["Sequence"]:
                texts += 1
            elif (
                isinstance(part, dict)
                and list(part) == ["SpecialToken"]
                and isinstance(part["SpecialToken"], dict)
            ):
                token = self.text(f"post_processor.single[{i}]", part["SpecialToken"].get("id"))
                around[texts > 0].append(token)
            else:
                self.refuse(f"post_processor.single[{i}]", part, "a Sequence or a SpecialToken")
        if texts != 1:
            self.refuse_as("post_processor.single", f"has {texts} texts", "one")
        return tuple(around[0]), tuple(around[1])

    def decoder(self) -> bool:
        """Whether a space at the start is dropped; the rest is always the same."""
        value = self.object("decoder", self.values.get("decoder"))
        steps = self.list("decoder.decoders", value.get("decoders"), 16)
        replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        known = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if value.get("type") != "Sequence" or steps not in (known, [*known, strip]):
            self.refuse(
                "decoder", value, "the Sequence of Replace, ByteFallback, Fuse and Strip that LLaMA has"
            )
        return len(steps) > len(known)
