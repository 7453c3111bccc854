"""Writes a model anew, in another precision or format, from whatever it comes in.

A folder of safetensors by default; with --to gguf, the two files that llama.cpp runs. Either appears under
its name when it is complete. For each rounded tensor a line says how far the rounding error lies below the
weights, in dB; the folder's mvlm.json keeps them, and the checksums for `mvlm inspect --verify`. A rounded
model gets prefix.safetensors, too: the beginning of every first question, which then need not be computed.

--precision int4 is 4 bits with minima, which a folder keeps as uint4 and a GGUF as Q4_K; int4-symmetric has
no minima, 3 % fewer bytes, and twice the loss. What is in 4 bits of either kind already stays as it is.

--calibrate rounds to 4 bits by what goes through the model (GPTQ), which takes half an hour for a model of
1.7B and loses much less. It reads the pictures in FOLDER, about each the questions in the text beside it
(photo.txt for photo.jpg) or in questions.txt, a question a line, and the model's own answers; without FOLDER,
the pictures in the package. Stopped, it leaves DESTINATION.calibrating, and the same command
goes on from there. The dB are then those of what each layer computes.

examples:
  mvlm convert mtgv/MobileVLM_V2-1.7B small --precision int4
  mvlm convert mtgv/MobileVLM_V2-1.7B small --precision int4 --calibrate photos
  mvlm convert model.gguf folder --precision bf16
  mvlm convert mtgv/MobileVLM_V2-1.7B tuned --lora adapter --precision bf16
  mvlm convert mtgv/MobileVLM_V2-1.7B pair --to gguf --precision int4
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

from mvlm_np import demo
from mvlm_np.cli.calls import number, place
from mvlm_np.errors import UserError
from mvlm_np.inputs.conversation import TEMPLATES
from mvlm_np.precisions import FOLDER, FOUR_BITS, GGUF, MEANING

PRECISIONS = {"folder": FOLDER, "gguf": tuple(GGUF)}


def describe(parser: argparse.ArgumentParser) -> None:
    known = list(dict.fromkeys(name for names in PRECISIONS.values() for name in names))
    parser.add_argument("source", help="model folder, GGUF file, or a name in the hub's cache")
    parser.add_argument("destination", type=place, help="folder to write; must not exist yet")
    parser.add_argument(
        "--precision",
        choices=known,
        help="of the linear layers (in a folder: as stored); a GGUF calls them F16, Q8_0, Q4_K and Q4_0",
    )
    parser.add_argument("--to", choices=PRECISIONS, default="folder", help="format to write (folder)")
    parser.add_argument("--quality", choices=("high", "fast"), default="high", help="of 4 bits (high)")
    parser.add_argument(
        "--prefix",
        choices=(*TEMPLATES, "none"),
        default="v1",
        help="prompt template whose beginning is stored computed, for rounded models (v1)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        nargs="?",
        type=place,
        const=True,
        help="round to 4 bits by what the model reads: these pictures, or those in the package",
    )
    parser.add_argument("--lora", metavar="DIR", type=place, help="adapter that PEFT saved, to be merged in")
    parser.add_argument(
        "--lora-scale",
        metavar="X",
        type=number,
        help="merge so much of it (1); 0.8, say, keeps more of what the model knew before",
    )
    parser.add_argument(
        "--vision-tower", metavar="PATH", type=place, help="folder of the CLIP model, if it is elsewhere"
    )
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def run(args: argparse.Namespace) -> int:
    if args.precision not in (*PRECISIONS[args.to], None if args.to == "folder" else ""):
        wanted = f"{', '.join(PRECISIONS[args.to])} in a {args.to}"
        raise UserError("--precision", f"found {args.precision or 'none'}", wanted)
    if args.calibrate and args.precision not in FOUR_BITS:
        fix = "leave --calibrate out: rounding to 8 bits costs next to nothing"
        raise UserError("--calibrate", f"found --precision {args.precision}", " or ".join(FOUR_BITS), fix)
    if args.lora_scale is not None and (args.lora is None or not 0 < args.lora_scale <= 2):
        found = f"found {args.lora_scale:g}" if args.lora else "found no --lora"
        raise UserError("--lora-scale", found, "more than 0 and at most 2, beside an adapter")
    from mvlm_np.calibrating.reading import Reading, drawn, reading_of
    from mvlm_np.checkpoints.lora import merged
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import Bars, bar, counting_bytes, say_notes, say_what_is_compiled
    from mvlm_np.converting import Calibration, convert, convert_to_gguf
    from mvlm_np.loading import manifest, open_tokenizer

    checkpoint = open_checkpoint(args.source, args.vision_tower, args.mmproj)
    if args.lora is not None:
        scale = 1.0 if args.lora_scale is None else args.lora_scale
        checkpoint = merged(checkpoint, args.lora, args.vision_tower, scale)
    notes = list(checkpoint.notes)
    if args.to == "gguf":
        notes += open_tokenizer(checkpoint).notes()
    for note in notes:
        print(f"mvlm: note: {note}", file=sys.stderr)
    destination, calibration = args.destination, None
    if args.calibrate:
        pictures = checkpoint.config.vision is not None
        if args.calibrate is True:
            reading = drawn(demo.PICTURES) if pictures else Reading()
        else:
            reading = reading_of(args.calibrate, pictures)
        calibration = Calibration(reading, Bars())
        say_what_is_compiled()
        say_notes()
    if args.to == "gguf":
        costs = dict[str, list[float | None]]()  # of matrices that are not as asked or stored, by their type
        with counting_bytes("convert") as count:
            convert_to_gguf(
                checkpoint, destination, args.precision, args.quality, count,
                lambda name, dtype, snr: costs.setdefault(dtype, []).append(snr), calibration,
            )  # fmt: skip
        for note in notes_on_blocks(costs, args.precision):
            print(f"mvlm: note: {note}", file=sys.stderr)
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
        convert(checkpoint, destination, args.precision, args.quality, told, template, calibration)
    width = max((len(name) for name, *_ in rows), default=0)
    for name, kept, loss in rows:
        print(f"{name:{width}}  {kept:5}  {loss:>8}")
    for kept in dict.fromkeys(kept for _, kept, _ in rows if kept in MEANING):
        print(f"{kept} is {MEANING[kept]}")
    print(f"wrote {destination}")
    return 0


def notes_on_blocks(costs: Mapping[str, Sequence[float | None]], precision: str) -> Iterator[str]:
    """What to say of matrices that a GGUF does not hold as asked or as stored, by the type it has them in.

    costs  what that cost, in dB, as `write_gguf_pair` tells it
    """
    for dtype, ratios in costs.items():
        if known := [snr for snr in ratios if snr is not None]:
            yield (
                f"{len(known)} matrices of uint4 have scales of 8 bits, and Q4_K of 6. They were rounded "
                f"again, with a signal-to-noise ratio of {min(known):.1f} dB or more"
            )
        if rows := len(ratios) - len(known):
            yield (
                f"blocks of {GGUF[precision]} do not divide the rows of {rows} matrices; "
                f"these are written as {dtype.upper().replace('FLOAT', 'F')}"
            )
