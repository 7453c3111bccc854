"""Writes a picture as the model sees it: on a square of its longer side, in the model's colour of padding.

Give it to a runtime that pads otherwise, or not at all, such as llama.cpp. With --size it is scaled to N x N
too, to the bit as the model does it, for a runtime that scales otherwise: nothing is left but to normalise.

With --class-token-last it is for llama.cpp as it is: scaled, and all patches moved by one place. With files
that `mvlm convert --to gguf` wrote, llama.cpp then sees what the model sees; see docs/llama-cpp.md.

A photo is turned upright as its camera noted. The file is a PNG, which loses nothing.

examples:
  mvlm prepare photo.jpg -o square.png
  mvlm prepare photo.jpg -o small.png --size 336
  mvlm prepare photo.jpg -o seen.png --size 224 --model FOLDER
  mvlm prepare photo.jpg -o for-llama-cpp.png --class-token-last
"""

import argparse
import os
import sys

from mvlm_np.cli.calls import place, whole
from mvlm_np.errors import UserError


def describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", help="the picture's file")
    parser.add_argument("-o", "--output", type=place, required=True, metavar="FILE", help="PNG file to write")
    parser.add_argument(
        "--size", metavar="N", type=whole, help="scale it to N x N (336 in the published models)"
    )
    parser.add_argument(
        "--model", metavar="PATH", help="a model that pads or crops otherwise than the published ones"
    )
    parser.add_argument(
        "--class-token-last",
        action="store_true",
        help="for llama.cpp, which puts the class token behind the patches: a patch of padding before them",
    )
    parser.add_argument(
        "--no-exif", action="store_true", help="do not turn it, as the published code does not"
    )


def run(args: argparse.Namespace) -> int:
    if args.output.suffix.lower() != ".png":
        raise UserError(args.output, "is no PNG by its name", "a name that ends in .png", "JPEG loses pixels")
    if os.path.lexists(args.output):
        raise UserError(args.output, "exists already", "a new file", "name another, or remove it")
    if args.size is not None and not 1 <= args.size <= 4096:
        raise UserError("--size", f"found {args.size}", "1 to 4096")
    from dataclasses import replace

    from PIL import Image

    from mvlm_np import memory
    from mvlm_np.checkpoints.opening import open_checkpoint
    from mvlm_np.config import ImageConfig, VisionConfig
    from mvlm_np.inputs.image import one_patch_on, open_image, padded, padding, scaled

    config, vision = ImageConfig(), VisionConfig()
    if args.model:
        model = open_checkpoint(args.model).config
        config, vision = model.image, model.vision or vision
    if args.class_token_last:
        if args.size not in (None, config.crop[1]) or config.crop[0] != config.crop[1]:
            found = (
                f"--size {args.size}"
                if args.size
                else f"a model that sees {config.crop[0]} x {config.crop[1]}"
            )
            raise UserError("--class-token-last", f"found {found}", "the model's own size, a square")
        args.size = config.crop[1]
    picture = open_image(args.picture, exif=not args.no_exif, adapt=not args.no_exif)
    if args.size is None:
        needed, free = 4 * max(picture.size) ** 2, memory.available()
        if config.aspect_ratio == "pad" and free is not None and needed > free:
            found = f"its square takes {memory.text(needed)} of memory, and {memory.text(free)} are free"
            raise UserError(args.picture, found, fix="--size 336 makes it small at once")
        picture = padded(picture, config)
    else:
        size = (args.size, args.size)
        if size != config.crop:
            if config.crop != (config.resize, config.resize):  # it crops, which another size has no rule for
                raise UserError("--size", f"found {args.size}", f"{config.crop[0]}, this model's")
            config = replace(config, resize=args.size, crop=size)
        pixels = scaled(picture, config).transpose(1, 2, 0).copy()
        if args.class_token_last:
            p, colour = vision.patch_size, padding(config)
            last = slice((args.size // p - 1) * p, args.size // p * p)
            if (pixels[last, last] != colour).any():
                lost = f"the lower right {p} x {p} of {args.size} x {args.size} pixels are lost"
                print(f"mvlm: note: {lost}", file=sys.stderr)
            pixels = one_patch_on(pixels, p, colour)
        picture = Image.fromarray(pixels)
    part = args.output.with_name(f"{args.output.name}.part-{os.getpid()}")
    try:
        picture.save(part, "PNG")
        part.rename(args.output)
    except OSError as error:
        raise UserError(args.output, f"cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {args.output}: {picture.width} x {picture.height}")
    return 0
