"""The published API. A script written for upstream runs with one line changed:

from mvlm_np.compat import inference_once      # was: from scripts.inference import inference_once
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvlm_np.errors import UserError
from mvlm_np.loading import load

# What the published script takes where an argument is not given.
DEFAULTS = {
    "model_path": "mtgv/MobileVLM-1.7B",
    "image_file": "assets/samples/demo.jpg",
    "prompt": "Who is the author of this book?\nAnswer the question using a single word or phrase.",
    "conv_mode": "v1",
    "temperature": 0.2,
    "top_p": None,
    "num_beams": 1,
    "max_new_tokens": 512,
    "load_8bit": False,
    "load_4bit": False,
}


def inference_once(args: Any) -> None:
    """Loads the model, asks `args.prompt` about `args.image_file`, prints the answer and returns nothing.

    args  an object whose attributes are the keys of `DEFAULTS`; a missing one has the default there

    As upstream does it: the photo is not turned by its EXIF note, a temperature above 0 samples with
    top_k = 50, and load_8bit goes before load_4bit.
    """
    if args is None or isinstance(args, Mapping):
        found = f"found {reprlib.repr(args)}"
        raise UserError("args", found, "an object with attributes", 'type("Args", (), {...})() makes one')
    given: dict[str, Any] = {name: getattr(args, name, default) for name, default in DEFAULTS.items()}
    precision = "int8" if given["load_8bit"] else "int4" if given["load_4bit"] else None
    model = load(given["model_path"], precision=precision)
    answer = model.ask(
        given["image_file"],
        given["prompt"],
        conv_mode=given["conv_mode"],
        exif=False,
        **{name: given[name] for name in ("temperature", "top_p", "num_beams", "max_new_tokens")},
    )
    print(f"🚀 {Path(given['model_path']).name}: {answer}\n")
