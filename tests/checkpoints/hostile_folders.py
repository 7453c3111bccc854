"""Malformed and malicious model folders: each breaks one rule, and its error must name that rule.

`CASES` is name -> (changes of a good folder, a pattern that the error must match); see `hostile_files`.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from mvlm_np.checkpoints.json_files import MAX_JSON
from tests.checkpoints.hostile_configs import SETTINGS, TOWERS
from tests.checkpoints.hostile_files import CONFIG, GOOD, Case, Changes, Content, as_json, link, sparse
from tests.tokenizer_jsons import from_sentencepiece

# -- JSON files that are none -------------------------------------------------------------------------

_DEEP = 100_000


def broken(name: str) -> dict[str, Case]:
    """Ways in which the JSON file `name` can be unreadable."""
    where = name.replace(".", r"\.")
    contents: dict[str, tuple[Content, str]] = {
        "missing": (None, r"cannot be read \(No such file or directory\), wanted a JSON file"),
        "a directory": (Path.mkdir, r"is not a regular file, wanted a JSON file"),
        "a pipe": (os.mkfifo, r"is not a regular file"),
        "link to a device": (link("/dev/zero"), r"is not a regular file"),
        "link to nowhere": (
            link("absent"),
            r"is a link to 'absent', which is not there, wanted a JSON file",
        ),
        "link to itself": (link(Path(name).name), r"cannot be read \(Too many levels of symbolic links\)"),
        "100 MB": (sparse(100 << 20), rf"has 104857600 bytes, wanted at most {MAX_JSON}"),
        "empty": (b"", r"is empty, wanted a JSON file"),
        "a web page": (b"<html>404</html>", r"is a web page, wanted a JSON file"),
        "LFS pointer": (
            b"version https://git-lfs.github.com/spec/v1\n",
            r"is a Git LFS pointer.*git lfs pull",
        ),
        "a list": (b"[]", r"found \[\], wanted a JSON object"),
        "a text": (b'"hidden_size"', r"is a text that begins '\"hidden_size\"', wanted a JSON file"),
        "cut off": (b'{"hidden_size": 8', r"cannot be read as JSON: Expecting ',' delimiter"),
        "not UTF-8": (b'{"\xff": 1}', r"cannot be read as JSON: 'utf-8' codec can't decode byte 0xff"),
        "UTF-16": ("{}".encode("utf-16"), r"is a text in UTF-16, wanted a JSON file; save it in UTF-8"),
        "deep": (
            b'{"a": ' + b"[" * _DEEP + b"]" * _DEEP + b"}",
            r"cannot be read as JSON: it is nested too deeply",
        ),
        "key twice": (b'{"hidden_size": 8, "hidden_size": 9}', r".* the key 'hidden_size' is there twice"),
    }
    return {
        f"{name}: {kind}": ({name: content}, f"{where}: {rule}") for kind, (content, rule) in contents.items()
    }


# -- Weights and their index --------------------------------------------------------------------------

INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00002.safetensors"


def shards(weight_map: object, **more: Content) -> Changes:
    """The good folder with an index instead of model.safetensors, and w and v in two shards beside it."""
    one = {name: np.zeros(1, np.float32) for name in ("w", "v")}
    files = {"a.safetensors": save({"w": one["w"]}), "b.safetensors": save({"v": one["v"]})}
    changed = {name.replace("_", "."): content for name, content in more.items()}
    return {"model.safetensors": None, INDEX: as_json({"weight_map": weight_map}), **files, **changed}


def placed(file: Any, rule: str = "wanted a .safetensors file beside it") -> Case:
    """An index that places a tensor in `file`."""
    changes = shards({"w": "a.safetensors", "v": file})
    return changes, rf"index\.json: weight_map: names the file .*, {rule}"


def _lost_shard() -> Changes:
    """The good model behind an index that promises one tensor more than the file holds."""
    arrays = load(GOOD["model.safetensors"])
    kept = {name: array for name, array in arrays.items() if name != "model.norm.weight"}
    index = {"weight_map": dict.fromkeys(arrays, "a.safetensors")}
    return {"model.safetensors": None, INDEX: as_json(index), "a.safetensors": save(kept)}


_BOTH = {"w": "a.safetensors", "v": "b.safetensors"}
_WHERE = r"index\.json: weight_map: found"

INDEXES: dict[str, Case] = {
    "climbs": placed("../a.safetensors"),
    "climbs from within": placed("clip/../../a.safetensors"),
    "goes down": placed("clip/model.safetensors"),
    "absolute": placed("/elsewhere/model.safetensors"),
    "a device": placed("/dev/zero"),
    "no weight file": placed("config.json"),
    "a pickle": placed("evil.bin"),
    "nothing": placed(""),
    "a number": placed(7),
    "a list": placed(["a.safetensors"]),
    "a NUL": placed("a\0.safetensors"),
    "terminal escapes": placed("\x1b[2J.safetensors"),
    "100 kB of dots": placed("../" * 33_000 + "a.safetensors"),
    "shard missing": (shards(_BOTH, b_safetensors=None), r"b\.safetensors: cannot be read \(No such file"),
    "shard a device": (
        shards(_BOTH, b_safetensors=link("/dev/zero")),
        r"b\.safetensors: cannot be read \(not a regular file\)",
    ),
    "shard a link to nowhere": (
        shards(_BOTH, b_safetensors=link("absent")),
        r"b\.safetensors: is a link to 'absent', which is not there",
    ),
    "shard a directory": (
        shards(_BOTH, b_safetensors=Path.mkdir),
        r"b\.safetensors: cannot be read \(not a regular file\)",
    ),
    "shard a pipe": (
        shards(_BOTH, b_safetensors=os.mkfifo),
        r"b\.safetensors: cannot be read \(not a regular file",
    ),
    "shard an LFS pointer": (
        shards(_BOTH, b_safetensors=b"version https://git-lfs.github.com/spec/v1\n"),
        r"b\.safetensors: is a Git LFS pointer",
    ),
    "shard linked to another": (
        shards(_BOTH, b_safetensors=link("a.safetensors")),
        r"do not fit config\.json: 23 missing",
    ),
    "tensor in two shards, not the same": (
        shards(_BOTH, b_safetensors=save({name: np.ones(1, np.float32) for name in "wv"})),
        r"b\.safetensors: 'w': is in a\.safetensors with other values, wanted one",
    ),
    "tensor in two shards, of two types": (
        shards(_BOTH, b_safetensors=save({name: np.zeros(1, np.int32) for name in "wv"})),
        r"b\.safetensors: 'w': is in a\.safetensors with other values",
    ),
    "tensors in no shard": (_lost_shard(), r"do not fit config\.json: 1 missing: model\.norm\.weight"),
    "map missing": (shards(None), rf"{_WHERE} None, wanted an object of tensor names and files"),
    "map empty": (shards({}), rf"{_WHERE} \{{\}}, wanted"),
    "map a list": (shards([["w", "a.safetensors"]]), rf"{_WHERE} \[\['w', 'a.safetensors'\]\], wanted"),
    "map a text": (shards("a.safetensors"), rf"{_WHERE} 'a\.safetensors', wanted"),
    "index a list": (shards({}) | {INDEX: b"[]"}, rf"{_WHERE} None, wanted"),
    "index of 100 MB": (
        shards({}) | {INDEX: sparse(100 << 20)},
        rf"has 104857600 bytes, wanted at most {MAX_JSON}",
    ),
    "tensor twice in the index": (
        shards({}) | {INDEX: b'{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'},
        r"index\.json: cannot be read as JSON: the key 'w' is there twice",
    ),
    "index deep": (
        shards({}) | {INDEX: b'{"weight_map": ' + b"[" * _DEEP + b"]" * _DEEP + b"}"},
        r"index\.json: cannot be read as JSON: it is nested too deeply",
    ),
    "pickles that are safetensors": (
        {"model.safetensors": None, "pytorch_model.bin": GOOD["model.safetensors"]},
        r"pytorch_model\.bin: is a safetensors file.*\.safetensors",
    ),
    "pickle index to safetensors": (
        shards({}) | {INDEX: None, "pytorch_model.bin.index.json": as_json({"weight_map": _BOTH})},
        r"bin\.index\.json: weight_map: names the file 'a\.safetensors', wanted a \.bin file beside it",
    ),
}


def quantised(weights: dict[str, np.ndarray] | bytes, how: object = {"quant_method": "gptq"}) -> Changes:
    """The good folder with settings of another tool's quantisation, and weights that it may have written."""
    content = weights if isinstance(weights, bytes) else save(weights)
    return {"config.json": as_json(CONFIG | {"quantization_config": how}), "model.safetensors": content}


WEIGHTS: dict[str, Case] = {
    "of another tool": (
        quantised({"model.layers.0.mlp.up_proj.qweight": np.zeros((1, 8), np.int32)}),
        r"config\.json: quantization_config: found 'gptq', whose .*; take the model before that",
    ),
    "of a type of another tool": (
        quantised(save({"w": np.zeros(1, np.float32)}).replace(b'"F32"', b'"F8_E4M3"')),
        r"quantization_config: found 'gptq'",
    ),
    "of a tool without a name": (
        quantised({"w": np.zeros(1, np.uint8)}, {"load_in_4bit": True}),
        r"quantization_config: found .*load_in_4bit",
    ),
    "of a tool that is a list": (quantised({"w": np.zeros(1, np.uint8)}, [1]), r"quantization_config: found"),
    "none": (
        {"model.safetensors": None},
        r"holds no weights, wanted one of model\.safetensors, .*; download",
    ),
    "a directory": (
        {"model.safetensors": Path.mkdir},
        r"model\.safetensors: cannot be read \(not a regular file\)",
    ),
    "a link to a device": (
        {"model.safetensors": link("/dev/zero")},
        r"model\.safetensors: cannot be read \(not a regular file\)",
    ),
    "a link to nowhere": (
        {"model.safetensors": link("../blobs/absent")},
        r"model\.safetensors: is a link to '\.\./blobs/absent', which is not there, .*; copy the files",
    ),
    "a web page": ({"model.safetensors": b"<!doctype html>"}, r"model\.safetensors: is a web page"),
    "of another model": (
        {"model.safetensors": save({"w\x1b[2J": np.zeros(1, np.float32)})},
        r"the tensors do not fit config\.json: 23 missing: .* 1 not known: 'w\\x1b\[2J'",
    ),
    "of another size": (
        {"model.safetensors": GOOD["model.safetensors"].replace(b'"shape":[640,8]', b'"shape":[8,640]')},
        r"2 misshapen: model\.embed_tokens\.weight is \[8, 640\] instead of \[640, 8\]",
    ),
}

# -- Tokenizer files ----------------------------------------------------------------------------------

_MODEL = GOOD["tokenizer.model"]
GOOD_JSON = as_json(from_sentencepiece(_MODEL))


def tokenizer(content: Content, rule: str) -> Case:
    return {"tokenizer.model": content}, rf"tokenizer\.model: {rule}"


def tokenizer_config(key: str, value: Any, rule: str) -> Case:
    return {"tokenizer_config.json": as_json({key: value})}, rf"tokenizer_config\.json: {key}: {rule}"


TOKENIZERS: dict[str, Case] = {
    "missing": tokenizer(None, r"is missing"),
    "empty": tokenizer(b"", r"has no pieces"),
    "noise": tokenizer(bytes(range(256)) * 40, r"is not a SentencePiece model, or is cut off"),
    "cut off": tokenizer(_MODEL[: len(_MODEL) // 2], r"is not a SentencePiece model, or is cut off|has no "),
    "a web page": tokenizer(
        b"<!DOCTYPE html><title>404</title>", r"is not a SentencePiece model, or is cut off"
    ),
    "LFS pointer": tokenizer(b"version https://git-lfs.github.com/spec/v1\n", r"is a Git LFS pointer"),
    "1 GB": tokenizer(sparse(1 << 30), r"has 1073741824 bytes, wanted at most"),
    "a pipe": tokenizer(os.mkfifo, r"is not a regular file"),
    "link to a device": tokenizer(link("/dev/zero"), r"is not a regular file"),
    "a million pieces": tokenizer(
        b"\x0a\x02\x0a\x00" * 1_000_000, r"has more than 262144 fields, wanted fewer"
    ),
    "config not JSON": (
        {"tokenizer_config.json": b"legacy: true"},
        r"tokenizer_config\.json: is a text that begins",
    ),
    "config a list": ({"tokenizer_config.json": b"[]"}, r"tokenizer_config\.json: found \[\], wanted dict"),
    "config deep": (
        {"tokenizer_config.json": b"[" * _DEEP},
        r"tokenizer_config\.json: .* it is nested too deeply",
    ),
    "legacy a text": tokenizer_config("legacy", "false", r"found 'false', wanted bool"),
    "another tokenizer": tokenizer_config(
        "tokenizer_class", "GPT2Tokenizer", r"found 'GPT2Tokenizer', wanted"
    ),
    "token id of 5,000 digits": tokenizer_config(
        "added_tokens_decoder",
        {"9" * 5000: {"content": "<x>"}},
        r"found '9+\.\.\.': \{'content': '<x>'\}, wanted an id",
    ),
    "token of 100 kB": (
        {"added_tokens.json": as_json({"x" * 100_000: 0})},
        r"added token 'x+\.\.\.' has id 0",
    ),
    "token id far off": (
        {"added_tokens.json": as_json({"<x>": 1 << 60})},
        r"'<x>' has id 1152921504606846976",
    ),
}


def tokenizer_json(rule: str, **changes: Any) -> Case:
    """The good tokenizer.json with `changes`, part__key=value, and no tokenizer.model beside it."""
    values = json.loads(GOOD_JSON)
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = values
        for part in path:
            inner = inner[part]
        inner[last] = value
    return {"tokenizer.model": None, "tokenizer.json": as_json(values)}, rf"tokenizer\.json: .*{rule}"


def raw_json(content: Content, rule: str) -> Case:
    return {"tokenizer.model": None, "tokenizer.json": content}, rf"tokenizer\.json: .*{rule}"


_TOKEN = {
    "id": 640,
    "content": "<x>",
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
}
_TOKEN |= {"special": False}
_MANY = {f"p{i}": i for i in range(140_000)}

TOKENIZER_JSONS: dict[str, Case] = {
    "both missing": (
        {"tokenizer.model": None},
        r"tokenizer\.model: is missing, and tokenizer\.json is too, wanted one of them",
    ),
    "empty": raw_json(b"", r"is empty"),
    "a web page": raw_json(b"<html>", r"is a web page"),
    "a list": raw_json(b"[]", r"found \[\], wanted an object"),
    "empty object": raw_json(b"{}", r"model: found None, wanted an object"),
    "deep": raw_json(b'{"model": ' + b"[" * _DEEP + b"]" * _DEEP + b"}", r"it is nested too deeply"),
    "1 GB": raw_json(sparse(1 << 30), r"has 1073741824 bytes, wanted at most"),
    "lists without end": raw_json(b'{"model": [' + b"[]," * 2_097_000 + b"0]}", r"more than 400000 lists"),
    "a link to a device": raw_json(link("/dev/zero"), r"is not a regular file"),
    "a link to nowhere": raw_json(link("absent"), r"is a link to 'absent'"),
    "a key twice": raw_json(b'{"model": {"vocab": {"a": 0, "a": 1}}}', r"the key 'a' is there twice"),
    "another model": tokenizer_json(r"model\.type: found 'Unigram', wanted 'BPE'", model__type="Unigram"),
    "dropout": tokenizer_json(r"model\.dropout: found 0\.1, wanted None or", model__dropout=0.1),
    "a suffix": tokenizer_json(r"model\.end_of_word_suffix: found '</w>'", model__end_of_word_suffix="</w>"),
    "a prefix": tokenizer_json(
        r"model\.continuing_subword_prefix: found '##'", model__continuing_subword_prefix="##"
    ),
    "fuse a number": tokenizer_json(r"model\.fuse_unk: found 1, wanted true or false", model__fuse_unk=1),
    "unk unknown": tokenizer_json(r"model\.unk_token: found '<no>', wanted a piece", model__unk_token="<no>"),
    "no vocabulary": tokenizer_json(r"model\.vocab: has 0 pieces, wanted 1 to", model__vocab={}),
    "vocabulary a list": tokenizer_json(r"model\.vocab: found \[\['a', 0\]\]", model__vocab=[["a", 0]]),
    "many pieces": tokenizer_json(r"model\.vocab: has 140000 pieces", model__vocab=_MANY),
    "a hole": tokenizer_json(r"'b': found 2, wanted a whole number", model__vocab={"a": 0, "b": 2}),
    "an id twice": tokenizer_json(
        r"model\.vocab: has an id twice, wanted each", model__vocab={"a": 0, "b": 0}
    ),
    "an id a text": tokenizer_json(r"'a': found '0', wanted a whole number", model__vocab={"a": "0"}),
    "half a character": raw_json(b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}}}', "wanted Unicode"),
    "merges missing": tokenizer_json(r"model\.merges: found None, wanted a list", model__merges=None),
    "a merge of three": tokenizer_json(r"merges\[0\]: found 'a b c', wanted two", model__merges=["a b c"]),
    "a merge of lists": tokenizer_json(r"merges\[0\]: found \[\[\], \[\]\]", model__merges=[[[], []]]),
    "a merge to nothing": tokenizer_json(r"merges\[0\]: found 'a </s>'", model__merges=["a </s>"]),
    "added a number": tokenizer_json(r"added_tokens\[0\]: found 7, wanted an object", added_tokens=[7]),
    "added at another id": tokenizer_json(
        r"added_tokens\[0\]\.id: found 9, wanted 640", added_tokens=[_TOKEN | {"id": 9}]
    ),
    "added without text": tokenizer_json(
        r"added_tokens\[0\]\.content: found ''", added_tokens=[_TOKEN | {"content": ""}]
    ),
    "added twice": tokenizer_json(r"added_tokens\[1\]\.content: found '<x>'", added_tokens=[_TOKEN, _TOKEN]),
    "added with a flag of text": tokenizer_json(
        r"tokens\[0\]\.lstrip: found 'no', wanted true",
        added_tokens=[_TOKEN | {"lstrip": "no"}],
    ),
    "without its bos": tokenizer_json(
        r"does not hold the token '<s>'", model__vocab={"a": 0}, model__merges=[], added_tokens=[]
    ),
    "another normalizer": tokenizer_json(r"normalizer\.type: found 'NFKC'", normalizer={"type": "NFKC"}),
    "a normalizer inside": tokenizer_json(
        r"normalizer\[0\]\.type: found 'Strip'",
        normalizer={"type": "Sequence", "normalizers": [{"type": "Strip"}]},
    ),
    "a regular expression": tokenizer_json(
        r"normalizer\.pattern: found \{'Regex': '\(a\+\)\+b'\}, wanted a String",
        normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""},
    ),
    "another pre_tokenizer": tokenizer_json(
        r"pre_tokenizer\.type: found 'ByteLevel', wanted 'Metaspace'", pre_tokenizer={"type": "ByteLevel"}
    ),
    "another sign": tokenizer_json(
        r"pre_tokenizer\.replacement: found '_'", pre_tokenizer={"type": "Metaspace", "replacement": "_"}
    ),
    "another scheme": tokenizer_json(
        r"prepend_scheme: found 'last', wanted always, first or never", pre_tokenizer__prepend_scheme="last"
    ),
    "another post_processor": tokenizer_json(
        r"post_processor\.type: found 'ByteLevel'", post_processor={"type": "ByteLevel"}
    ),
    "no text in the template": tokenizer_json(r"single: has 0 texts, wanted one", post_processor__single=[]),
    "another token around": tokenizer_json(
        r"post_processor: puts '</s>' around a text, wanted '<s>' alone",
        post_processor__single=[{"SpecialToken": {"id": "</s>"}}, {"Sequence": {"id": "A"}}],
    ),
    "no decoder": tokenizer_json(r"decoder: found None, wanted an object", decoder=None),
    "another decoder": tokenizer_json(r"decoder\.decoders: found None", decoder={"type": "WordPiece"}),
    "part of a decoder": tokenizer_json(
        r"decoder: .* wanted the Sequence of",
        decoder={"type": "Sequence", "decoders": [{}]},
    ),
}

CASES: dict[str, Case] = {
    **{name: case for name, case in broken("config.json").items() if "missing" not in name},
    "no config.json": ({"config.json": None}, r"holds weights, but no config\.json, wanted both; copy it"),
    **{name: case for name, case in broken("clip/config.json").items() if "missing" not in name},
    **{f"config: {name}": case for name, case in SETTINGS.items()},
    **{f"tower: {name}": case for name, case in TOWERS.items()},
    **{f"index: {name}": case for name, case in INDEXES.items()},
    **{f"weights: {name}": case for name, case in WEIGHTS.items()},
    **{f"tokenizer: {name}": case for name, case in TOKENIZERS.items()},
    **{f"tokenizer.json: {name}": case for name, case in TOKENIZER_JSONS.items()},
}
