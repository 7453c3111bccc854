"""Writes tests/data/tokenizer/vectors.json: what the published code's tokenizer makes of texts and ids.

It needs transformers 4.33.1, the release that MobileVLM pins, in an environment of its own:

    python -m venv hf && hf/bin/pip install transformers==4.33.1 sentencepiece protobuf "numpy<2"
    hf/bin/python tools/make_tokenizer_vectors.py

Every case holds the content of a tokenizer folder's JSON files, so that a test can rebuild the folder.
"""

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "tokenizer"
TEXTS_PER_CASE, IDS_PER_CASE = 60, 50
TEXT_PARTS = [
    *"<s> </s> <unk> <pad> <image> <im_start> <im_end> <im_st <a> <b> < s> /s . 12 <0x0A>".split(),
    *"wörd a b Hello the it's é 日本 😀 \u2581 \u2581\u2581 \ufffd \U0010ffff \u200d".split(" "),
    *(" ", "  ", "   ", "\n", "\t", "\r\n", "\0", "\u00a0", "\u3000", "hello world", " the"),
]
PROMPTS = [
    "",
    "<image>",
    "<image>\n",
    "<image>\nhi",
    "<image><image>",
    "USER: <image>\n<image>\nCompare. ASSISTANT:",
    "USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT:",
    "[INST] <image>\nWhat is it? [/INST] A cat. </s><s>[INST] Sure? [/INST]",
    "</s><image></s>",
]


def token(content: str, lstrip: bool = False, rstrip: bool = False) -> dict[str, Any]:
    return dict(content=content, lstrip=lstrip, rstrip=rstrip, normalized=True, single_word=False)


def config_token(content: str) -> dict[str, Any]:
    return {"__type": "AddedToken", **token(content)}


LLAMA = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
CONFIG = {role: config_token(content) for role, content in LLAMA.items()} | {
    "tokenizer_class": "LlamaTokenizer"
}
MAP = {role: token(content) for role, content in LLAMA.items()}

FOLDERS: dict[str, dict[str, Any]] = {
    "as MobileVLM": {
        "tokenizer_config.json": CONFIG,
        "special_tokens_map.json": MAP | {"pad_token": "<unk>"},
    },
    "no map": {"tokenizer_config.json": CONFIG},
    "plain strings": {
        "tokenizer_config.json": {**LLAMA, "tokenizer_class": "LlamaTokenizer"},
        "special_tokens_map.json": {**LLAMA, "pad_token": "<pad>"},
    },
    "added tokens": {
        "tokenizer_config.json": CONFIG | {"add_eos_token": True},
        "special_tokens_map.json": MAP | {"pad_token": "<pad>"},
        "added_tokens.json": {"<pad>": 640, "<im_start>": 641, "<im_end>": 642, "<im_st": 643},
    },
    "flags": {
        "tokenizer_config.json": CONFIG | {"add_bos_token": False},
        "special_tokens_map.json": {
            "bos_token": token("<s>", lstrip=True),
            "eos_token": token("</s>", rstrip=True),
            "unk_token": token("<unk>", lstrip=True, rstrip=True),
            "additional_special_tokens": ["<a>", token("<b>")],
        },
        "added_tokens.json": {"<b>": 640, "wörd": 641},
    },
}


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The published code's rule: the pieces between images, BOS kept once, -200 for an image."""
    first, *others = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
    bos = int(tokenizer.add_bos_token)
    return first + [i for ids in others for i in (-200, *ids[bos:])]


def case(name: str, files: dict[str, Any], legacy: bool, rng: random.Random) -> dict[str, Any]:
    files = files | {"tokenizer_config.json": files["tokenizer_config.json"] | {"legacy": legacy}}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(DATA / "tokenizer.model", folder)
        for file, content in files.items():
            Path(folder, file).write_text(json.dumps(content))
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    texts = ["".join(rng.choices(TEXT_PARTS, k=rng.randrange(9))) for _ in range(TEXTS_PER_CASE)]
    # Runs of like ids: special ones, bytes, spaces, whole characters in bytes, added ones, any.
    kinds = [
        range(3),
        range(3, 259),
        [tokenizer.convert_tokens_to_ids("\u2581")],
        [3 + byte for byte in "é日😀".encode()],
        range(len(tokenizer) - 6, len(tokenizer)),
        range(len(tokenizer)),
    ]
    id_lists = []
    for _ in range(IDS_PER_CASE):
        runs = [rng.choices(rng.choice(kinds), k=rng.randrange(1, 5)) for _ in range(rng.randrange(5))]
        id_lists.append([i for run in runs for i in run])
    return {
        "name": f"{name}, legacy {legacy}",
        "files": files,
        "vocab_size": len(tokenizer),
        "special_ids": sorted(set(tokenizer.all_special_ids)),
        "encode": [[text, tokenizer(text).input_ids] for text in texts],
        "prompts": [[prompt, prompt_ids(tokenizer, prompt)] for prompt in PROMPTS],
        "decode": [
            [
                ids,
                tokenizer.batch_decode([ids], skip_special_tokens=True)[0],
                tokenizer.batch_decode([ids], skip_special_tokens=False)[0],
            ]
            for ids in id_lists
        ],
    }


def main() -> None:
    rng = random.Random(0)
    cases = [case(*folder, legacy, rng) for folder in FOLDERS.items() for legacy in (True, False)]
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (DATA / "vectors.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
