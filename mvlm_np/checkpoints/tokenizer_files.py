"""What a tokenizer's files say, checked before anything is built from it.

A Hugging Face folder describes its tokenizer in up to four files, two of which may repeat or
overrule the others. Who wins is decided here, as transformers 4.33 decides it. Transformers 5 saves
another file in place of the first, see `tokenizer_json`.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvlm_np.checkpoints.checkpoint import AddedToken, StoredTokenizer
from mvlm_np.checkpoints.json_files import read_json, short
from mvlm_np.checkpoints.sniff import show, why_unreadable
from mvlm_np.errors import NoTokenizer, TokenizerError

if TYPE_CHECKING:
    from mvlm_np.checkpoints.tokenizer_json import BytePairModel

# LLaMA's model has 0.5 MB and 32,000 pieces, each a field. Reading as much as may be takes 100 MB.
MAX_MODEL_BYTES = 8 << 20
MAX_FIELDS = 1 << 18
PIECE = 1 << 3 | 2  # the key of field 1, which holds a piece
FIX = "copy it again from the model's repository"

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LLAMA_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


JSON = "tokenizer.json"  # all that transformers 5 saves of a tokenizer; read where there is no MODEL
MODEL, CONFIG, MAP, ADDED = FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def read_folder(*folders: Path) -> StoredTokenizer:
    """Reads `tokenizer.model` and, where they are there, the other `FILES`; of each, the first folder's.

    A `tokenizer.json` is read where there is no `tokenizer.model`. What the files do not say has LLaMA's
    defaults (`legacy` true). Raises NoTokenizer where there is neither of the two, and TokenizerError for a
    broken file and for a setting that changes the text in a way that this package does not compute.
    """
    found = {name: [f / name for f in folders if os.path.lexists(f / name)] for name in (*FILES, JSON)}
    files = {name: paths[0] for name, paths in found.items() if paths}
    if MODEL in files:
        files.pop(JSON, None)
    elif JSON not in files:
        fix = "copy it from the model that this one was made from"
        raise NoTokenizer(folders[0] / MODEL, f"is missing, and {JSON} is too", "one of them", fix)
    config = _read_json(files, CONFIG)
    config_file = files.get(CONFIG)
    for key, *known in (
        ("tokenizer_class", "LlamaTokenizer", "LlamaTokenizerFast"),
        ("sp_model_kwargs", {}),
        ("clean_up_tokenization_spaces", False),
    ):
        if config.get(key) and config[key] not in known:
            raise TokenizerError(f"{config_file}: {key}", f"found {short(config[key])}", repr(known[0]))

    def flag(key: str, default: bool) -> bool:
        value = config.get(key)
        return default if value is None else _typed(value, bool, f"{config_file}: {key}")

    special = _special_tokens(files, config)
    added = _merged(files, config, special.values())
    model: bytes | BytePairModel
    if MODEL in files:
        model, around = _read(files[MODEL], MAX_MODEL_BYTES), (True, False)
    else:
        from mvlm_np.checkpoints.tokenizer_json import read_tokenizer_json

        model = read_tokenizer_json(files[JSON])
        around = _around(model, special, files[JSON])
    return StoredTokenizer(
        model=model,
        legacy=flag("legacy", True),
        added_tokens=added,
        where=files.get(MODEL, files.get(JSON)),
        add_bos=flag("add_bos_token", around[0]),
        add_eos=flag("add_eos_token", around[1]),
        bos=special["bos_token"].content,
        eos=special["eos_token"].content,
        unk=special["unk_token"].content,
        files=files,
    )


def _around(model: "BytePairModel", special: Mapping[str, AddedToken], path: Path) -> tuple[bool, bool]:
    """Whether a tokenizer.json puts bos before a text, and eos behind it."""
    flags = []
    for role, tokens in (("bos_token", model.prefix), ("eos_token", model.suffix)):
        if tokens not in ((), (special[role].content,)):
            found = f"puts {', '.join(map(show, tokens))} around a text"
            raise TokenizerError(f"{path}: post_processor", found, f"{show(special[role].content)} alone")
        flags.append(bool(tokens))
    return flags[0], flags[1]


def check_model(model: bytes, where: object) -> None:
    """Refuses, by the rule they break, bytes that are not a SentencePiece model of LLaMA's kind.

    SentencePiece would take a file that was cut off between two fields, and read any number of pieces.
    """
    if model.startswith(b"version https://git-lfs"):
        raise TokenizerError(where, "is a Git LFS pointer, not the file itself", fix="run `git lfs pull`")
    try:
        sizes = _sizes(model, where)
    except IndexError:
        raise TokenizerError(where, "is not a SentencePiece model, or is cut off", fix=FIX) from None
    for number, name in ((1, "pieces"), (2, "trainer_spec"), (3, "normalizer_spec")):
        if not sizes[number]:
            raise TokenizerError(where, f"has no {name}", "a whole SentencePiece model", FIX)
    if sizes[5]:
        raise TokenizerError(where, "has a denormalizer_spec", "none, as in LLaMA's")


def _sizes(message: bytes, where: object) -> Counter[int]:
    """{number: bytes} of the fields of a protobuf message that holds strings and messages only, as
    SentencePiece's outermost one does. Raises IndexError where the bytes are anything else."""
    sizes, at, end, count = Counter[int](), 0, len(message), 0
    while at < end:
        # Nearly all of 32,000 are pieces with a key and a size of one byte each: a short loop for these.
        run, n = at, 0
        while at < end and message[at] == PIECE and (size := message[at + 1]) < 128:
            at += 2 + size
            n += 1
        sizes[1] += at - run - 2 * n
        if at < end:
            key, at = _varint(message, at)
            size, at = _varint(message, at)
            at, n = at + size, n + 1
            if key & 7 != 2:
                raise IndexError
            sizes[key >> 3] += size
        count += n
        if at > end:
            raise IndexError
        if count > MAX_FIELDS:
            raise TokenizerError(where, f"has more than {MAX_FIELDS} fields", "fewer pieces", FIX)
    return sizes


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at a position, of up to 35 bits, and the position behind it."""
    value = 0
    for shift in range(0, 35, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError


def _special_tokens(files: Mapping[str, Path], config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Role -> token, in the order in which new ids are given. `special_tokens_map.json` overrules
    `tokenizer_config.json`, and only in the latter does a plain string for one of LLaMA's own roles
    not strip white space."""
    names, folder = _read_json(files, MAP), next(iter(files.values())).parent
    found = {}
    for role in ROLES:
        if role in names:
            found[role] = _token(names[role], f"{files[MAP]}: {role}")
        else:
            value = config.get(role, DEFAULTS.get(role))
            found[role] = _token(value, f"{files.get(CONFIG)}: {role}", role not in LLAMA_ROLES)
    for role in DEFAULTS:
        if not found[role]:
            raise TokenizerError(f"{folder}: {role}", "the tokenizer files name none", "a token")
    key = "additional_special_tokens"
    more = names.get(key, config.get(key)) or []
    for i, value in enumerate(_typed(more, list, f"{folder}: {key}")):
        found[f"{key}[{i}]"] = _token(value, f"{folder}: {key}[{i}]")
    return {role: token for role, token in found.items() if token}


def _merged(
    files: Mapping[str, Path], config: Mapping[str, Any], special: Iterable[AddedToken]
) -> tuple[AddedToken, ...]:
    """The special tokens, those of `added_tokens.json`, and those that transformers since 4.34 lists in
    `tokenizer_config.json`, each once. A token with flags overrules the same as a plain string."""
    tokens: dict[str, AddedToken] = {}
    for token in special:
        if token.content not in tokens or not (token.lstrip and token.rstrip):
            tokens[token.content] = token
    for content, number in _read_json(files, ADDED).items():
        known = tokens.get(content, AddedToken(content))
        tokens[content] = replace(known, id=_typed(number, int, f"{files[ADDED]}: {show(content)}"))
    where = f"{files.get(CONFIG)}: added_tokens_decoder"
    for key, entry in _typed(config.get("added_tokens_decoder", {}), dict, where).items():
        listed = _token(entry, f"{where}: {show(key)}")
        if listed is None or not isinstance(entry, dict) or not key.isdecimal() or len(key) > 9:
            raise TokenizerError(where, f"found {show(key)}: {short(entry)}", "an id and its token")
        is_special = entry.get("special") is True or any(listed.content == token.content for token in special)
        tokens[listed.content] = replace(listed, id=int(key), special=is_special)
    return tuple(tokens.values())


def _token(value: Any, where: str, strips: bool = True) -> AddedToken | None:
    """A special token as a file gives it: a string, or an object with `content` and flags.
    None stands for null and for the empty string."""
    if isinstance(value, dict):
        flags = [_typed(value.get(key, False), bool, f"{where}: {key}") for key in ("lstrip", "rstrip")]
        value = value.get("content")
    else:
        flags = [strips, strips]
    if value is None or value == "":
        return None
    return AddedToken(_typed(value, str, where), None, True, *flags)


def _typed(value: Any, kind: type, where: str) -> Any:
    """The value, which must be of that very type."""
    if type(value) is not kind:
        raise TokenizerError(where, f"found {short(value)}", f"{kind.__name__}")
    return value


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    try:
        if path.exists() and not path.is_file():
            raise TokenizerError(path, "is not a regular file", "a file")
        if path.stat().st_size > limit:
            raise TokenizerError(path, f"has {path.stat().st_size} bytes", f"at most {limit}", FIX)
        return path.read_bytes()
    except OSError as error:
        found, fix = why_unreadable(path, error)
        raise TokenizerError(path, found, "a tokenizer file", fix) from None


def _read_json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file. (A link that leads nowhere, as
    an interrupted download leaves it, is an error.)"""
    return _typed(read_json(files[name], TokenizerError), dict, str(files[name])) if name in files else {}
