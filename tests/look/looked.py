"""Looks at small models, made once for all tests of this folder."""

from functools import cache
from pathlib import Path

import mvlm_np
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.look.looking import Look, look
from mvlm_np.look.report import report
from mvlm_np.model import MobileVLM
from tests.conftest import DATA

FOLDERS = {"demo": MODEL} | {name: DATA / "golden" / name for name in ("ldpv2", "ldp", "mlp")}
BACKENDS = ("numpy", "numba")
NEW = 24  # as in the goldens


def picture(name: str) -> Path:
    return PICTURES / "0.png" if name == "demo" else DATA / "golden" / "picture.png"


def question(name: str) -> str:
    return "Describe the yellow lamp." if name == "demo" else "What is it?"


@cache
def model(name: str, backend: str = "numpy", cache: str = "float32") -> MobileVLM:
    return mvlm_np.load(FOLDERS[name], backend=backend, cache=cache)


@cache
def looked(name: str, backend: str = "numpy", with_picture: bool = True) -> Look:
    image = picture(name) if with_picture else None
    # Upstream does not turn photos, and the goldens are upstream's.
    return look(model(name, backend), image, question(name), max_new_tokens=NEW, exif=False)


@cache
def numbers(name: str, with_picture: bool = True) -> dict:
    return report(looked(name, with_picture=with_picture), model(name), f"the model {name}")
