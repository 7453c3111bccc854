"""How far int8, int4 and a smaller cache move the logits: signal-to-noise ratios in dB, as tables for docs.

Each argument is a folder of goldens: cases.json, golden-*.safetensors, and the checkpoint that made them.
What llama.cpp made of the same model, in its folder gguf, is measured too.

example:
  python tools/quantisation_table.py tests/data/golden/ldpv2 tests/data/golden/mlp
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import mvlm_np
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.kv_cache import TYPES
from mvlm_np.precisions import PACKED

GGUF = {"Q8_0": "*Q8_0.gguf", "Q4_0": "*Q4_0.gguf"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="+")
    rows = {folder.name: ratios(folder) for folder in parser.parse_args().folder}
    print_table(rows, [*PACKED, *GGUF])
    print()
    print_table(rows, [f"cache {name}" for name in TYPES[1:]])


def print_table(rows: dict[str, dict[str, float]], columns: list[str]) -> None:
    print("| model |", " | ".join(columns), "|")
    print("| --- |", " | ".join("---" for _ in columns), "|")
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(f"{row[c]:.1f}" if c in row else "" for c in columns), "|")


def ratios(folder: Path) -> dict[str, float]:
    """Of all logits of all prompts, by what was changed."""
    changed: dict[str, dict[str, Any]] = {p: {"precision": p} for p in PACKED}
    changed |= {f"cache {name}": {"precision": "float32", "cache": name} for name in TYPES[1:]}
    result = {name: ratio(folder, folder, options) for name, options in changed.items()}
    for name, pattern in GGUF.items():
        if files := sorted(folder.glob(f"gguf/{pattern}")):
            mmproj = next(folder.glob("gguf/mmproj*"))
            result[name] = ratio(folder, files[0], {"mmproj": mmproj})
    return result


def ratio(folder: Path, model: Path, options: dict[str, Any]) -> float:
    vision_tower = folder / "clip" if model == folder else None
    loaded = mvlm_np.load(model, backend="numba", vision_tower=vision_tower, **options)
    signal = noise = 0.0
    for case in json.loads((folder / "cases.json").read_text()):
        golden = read_safetensors(folder / case["golden"])
        name = "logits" if "logits" in golden else "logits.tail"
        wanted = golden[name].raw[0].astype(np.float64)
        found = loaded.trace(folder / case["image"], case["question"], max_new_tokens=1)["logits"][0]
        signal += np.square(wanted).sum()
        noise += np.square(found[-len(wanted) :] - wanted).sum()
    return float(10 * np.log10(signal / noise))


if __name__ == "__main__":
    main()
