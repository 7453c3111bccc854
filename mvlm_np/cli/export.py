"""Writes a model as graphs for other runtimes: ONNX, from our weights, without torch.

DESTINATION becomes a folder with vision.onnx (vision tower and projector), decoder-N.onnx (N positions a
call, with a cache of fixed capacity), the embeddings, the tokenizer and a README.md, which says what goes in
and out, shows a loop that runs it, and how to check it. All shapes are fixed. Weights are written one after
another, so that a model need not fit in memory. The folder appears under its name when it is complete.

--dump makes every stage an output, named as in a golden, for `mvlm golden compare`.

examples:
  mvlm export mtgv/MobileVLM_V2-1.7B graphs --to onnx
  mvlm export FOLDER tower --to onnx --part vision --input uint8 --dtype float16
  mvlm export FOLDER decoder --to onnx --part decoder --rows 1 --capacity 512 --opset 13
  mvlm export FOLDER dump --to onnx --dump
"""

import argparse
import sys

from mvlm_np.cli.calls import place, whole


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model folder, GGUF file, or a name in the hub's cache")
    parser.add_argument("destination", type=place, help="folder to write; must not exist yet")
    parser.add_argument("--to", choices=("onnx",), default="onnx", help="format to write (onnx)")
    parser.add_argument("--part", choices=("both", "vision", "decoder"), default="both", help="what (both)")
    parser.add_argument("--opset", metavar="N", type=whole, default=17, help="13 to 20 (17)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="(float32)")
    parser.add_argument(
        "--gelu",
        choices=("erf", "op", "tanh"),
        default="erf",
        help="spelled out with Erf, ONNX's Gelu (opset 20), or an approximation (erf)",
    )
    parser.add_argument(
        "--layer-norm",
        choices=("op", "steps"),
        help="ONNX's LayerNormalization (opset 17), or spelled out (op where there is one)",
    )
    parser.add_argument(
        "--input",
        choices=("float", "uint8"),
        default="float",
        help="of the picture: normalised planes, or 8-bit RGB pixels, which the graph normalises (float)",
    )
    parser.add_argument(
        "--rows",
        metavar="N",
        type=whole,
        nargs="+",
        default=[1, 64],
        help="positions a call of the decoder computes; a graph for each number (1 64)",
    )
    parser.add_argument(
        "--capacity", metavar="N", type=whole, help="positions that the decoder's cache holds (1024)"
    )
    parser.add_argument("--dump", action="store_true", help="make every stage an output")
    parser.add_argument(
        "--vision-tower", metavar="PATH", type=place, help="folder of the CLIP model, if it is elsewhere"
    )
    parser.add_argument("--mmproj", metavar="PATH", help="GGUF file of the vision tower, if it is elsewhere")


def run(args: argparse.Namespace) -> int:
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.cli.progress import counting_bytes
    from mvlm_np.export.exporting import LAYER_NORM_SINCE, PARTS, Export, export
    from mvlm_np.export.tracing import Form

    checkpoint = open_checkpoint(args.source, args.vision_tower, args.mmproj)
    for note in checkpoint.notes:
        print(f"mvlm: note: {note}", file=sys.stderr)
    layer_norm = args.layer_norm or ("op" if args.opset >= LAYER_NORM_SINCE else "steps")
    longest = checkpoint.config.decoder.max_position_embeddings
    wanted = Export(
        Form(args.opset, args.dtype, args.gelu, layer_norm, args.input, args.dump),
        PARTS if args.part == "both" else (args.part,),
        tuple(dict.fromkeys(args.rows)),
        min(1024, longest) if args.capacity is None else args.capacity,
    )
    if args.gelu == "tanh":
        note = "is an approximation, and a known porting mistake: mvlm golden compare will find it"
        print(f"mvlm: note: --gelu tanh {note}", file=sys.stderr)
    with counting_bytes("export") as count:
        export(checkpoint, args.destination, wanted, count)
    for path in sorted(args.destination.iterdir()):
        print(f"wrote {path}")
    return 0
