"""What a loaded model is called and said to be."""

import hashlib
import re
import time
from math import prod
from pathlib import Path

import mvlm_np
from mvlm_np.errors import UserError
from mvlm_np.linear import Quantized
from mvlm_np.loading import manifest
from mvlm_np.model import MobileVLM
from mvlm_np.serve.dialects import Served


def describe(model: MobileVLM, folder: Path, name: str | None, max_tokens: int) -> Served:
    """folder: the model's, or its file; its name is the model's, unless one is given.

    UserError: the name is one that clients cannot ask for.
    """
    name = name or re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-") or "mvlm"
    if not re.fullmatch(r"[\w./-]+", name, re.ASCII):
        raise UserError("--name", f"found {name!r}", "letters, digits and . / - _")
    files = [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    marks = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()
    parameters = sum(prod(shape) for shape in manifest(model.config).shapes.values())
    down = model.decoder.layers[0].down_proj
    return Served(
        name=name,
        context=model.config.decoder.max_position_embeddings,
        sees=model.vision is not None,
        max_tokens=max_tokens,
        fingerprint=f"mvlm-{mvlm_np.__version__}-{hashlib.sha256(marks).hexdigest()[:12]}",
        since=time.time(),
        size=sum(stat.st_size for _, stat in stats),
        parameters=f"{parameters / 1e9:.1f}B" if parameters >= 1e8 else f"{parameters / 1e6:.1f}M",
        precision=down.kind if isinstance(down, Quantized) else "float32",
    )
