"""Writes a model anew, in another precision or format, from whatever it comes in.

A folder of safetensors by default; with --to gguf, the two files that llama.cpp runs. Either appears under
its name when it is complete. For each rounded tensor a line says how far the rounding error lies below the
weights, in dB; the folder's mvlm.json keeps them, and the checksums for `mvlm inspect --verify`. A rounded
model gets prefix.safetensors, too: the beginning of every first question, which then need not be computed.

examples:
  mvlm convert mtgv/MobileVLM_V2-1.7B small --precision int4
  mvlm convert model.gguf folder --precision bf16
  mvlm convert mtgv/MobileVLM_V2-1.7B tuned --lora adapter --precision bf16
  mvlm convert mtgv/MobileVLM_V2-1.7B pair --to gguf --precision int4
"""

import argparse
import sys

from mvlm_np.cli.calls import place
from mvlm_np.errors import UserError
from mvlm_np.inputs.conversation import TEMPLATES

PRECISIONS = {
    "folder": ("float32", "bf16", "int8", "int4", "uint4"),
    "gguf": ("float16", "int8", "int4", "uint4"),
}


def describe(parser: argparse.ArgumentParser) -> None:
    known = list(dict.fromkeys(name for names in PRECISIONS.values() for name in names))
    parser.add_argument("source", help="model folder, GGUF file, or a name in the hub's cache")
    parser.add_argument("destination", type=place, help="folder to write; must not exist yet")
    parser.add_argument(
        "--precision",
        choices=known,
        help="of the linear layers (in a folder: as stored); a GGUF calls them F16, Q8_0, Q4_0 and Q4_K",
    )
    parser.add_argument("--to", choices=PRECISIONS, default="folder", help="format to write (folder)")
    parser.add_argument("--quality", choices=("high", "fast"), default="high", help="of 4 bits (high)")
    parser.add_argument(
        "--prefix",
        choices=(*TEMPLATES, "none"),
        default="v1",
        help="prompt template whose beginning is stored computed, for rounded models (v1)",
    )
    parser.add_argument("--lora", metavar="DIR", type=place, help="adapter that PEFT saved, to be merged in")
    parser.add_argument(
        "--vision-tower", metavar="PATH", type=place, help="folder of the CLIP model, if it is elsewhere"
    )
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def run(args: argparse.Namespace) -> int:
    if args.precision not in (*PRECISIONS[args.to], None if args.to == "folder" else ""):
        wanted = f"{', '.join(PRECISIONS[args.to])} in a {args.to}"
        raise UserError("--precision", f"found {args.precision or 'none'}", wanted)
    from mvlm_np.checkpoints.lora import merged
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import bar, counting_bytes, say_what_is_compiled
    from mvlm_np.converting import convert, convert_to_gguf
    from mvlm_np.loading import manifest, open_tokenizer

    checkpoint = open_checkpoint(args.source, args.vision_tower, args.mmproj)
    if args.lora is not None:
        checkpoint = merged(checkpoint, args.lora, args.vision_tower)
    notes = list(checkpoint.notes)
    if args.to == "gguf":
        notes += open_tokenizer(checkpoint).notes()
    for note in notes:
        print(f"mvlm: note: {note}", file=sys.stderr)
    destination = args.destination
    if args.to == "gguf":
        again = list[float]()
        with counting_bytes("convert") as count:
            convert_to_gguf(
                checkpoint, destination, args.precision, args.quality, count,
                lambda name, kind, snr: again.append(snr),
            )  # fmt: skip
        if again:
            print(
                f"mvlm: note: {len(again)} matrices of uint4 have scales of 8 bits, and Q4_K of 6. They "
                f"were rounded again, with a signal-to-noise ratio of {min(again):.1f} dB or more",
                file=sys.stderr,
            )
        for path in sorted(destination.glob("*.gguf"), reverse=True):
            print(f"wrote {path}")
        return 0
    say_what_is_compiled()
    rows = []
    with bar("convert", len(manifest(checkpoint.config).shapes), unit="tensor") as progress:

        def told(name: str, kind: str | None, snr: float) -> None:
            if kind:
                rows.append((name, kind, "lossless" if snr == float("inf") else f"{snr:.1f} dB"))
            progress.update()

        template = None if args.prefix == "none" else args.prefix
        convert(checkpoint, destination, args.precision, args.quality, told, template)
    width = max((len(name) for name, *_ in rows), default=0)
    for name, kept, loss in rows:
        print(f"{name:{width}}  {kept:5}  {loss:>8}")
    print(f"wrote {destination}")
    return 0
