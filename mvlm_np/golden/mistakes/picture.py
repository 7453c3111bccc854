"""Mistakes in preparing the picture."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mvlm_np.golden.mistakes.base import (
    Scene,
    Variant,
    after,
    mistake,
)
from mvlm_np.golden.pictures import FILTERS, Picture
from mvlm_np.golden.replay import Change, Parts, Stages

PICTURE = "a picture that is not square"


def picture(scene: Scene, detail: str = "", **changes: Any) -> Iterator[Variant]:
    """The picture prepared in another way; nothing where there is none."""
    if scene.picture is not None:
        yield Variant("pixels", _picture(changes), detail)


def _picture(changes: Mapping[str, Any]) -> Change:
    def change(p: Parts) -> Parts:
        now = p.pixels
        assert isinstance(now, Picture)
        return replace(p, pixels=replace(now, **changes))

    return change


def _pads(scene: Scene) -> bool:
    return scene.picture is not None and scene.picture.fit == "pad"


@mistake(
    "resize-before-pad",
    "pixel_values",
    "the picture is resized first and padded to a square then",
    "pad to the square of the longer side first, then resize the square",
    PICTURE,
)
def _(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        for rounding in ("round", "floor", "ceil"):
            yield from picture(scene, f"sizes rounded by {rounding}", fit="late pad", rounding=rounding)


@mistake(
    "no-pad",
    "pixel_values",
    "the picture is not padded: its sides are cut off, or it is stretched",
    "pad to a square of the longer side, since image_aspect_ratio is pad",
    PICTURE,
)
def _(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        yield from picture(scene, "the longer side is cut off", fit="crop")
        yield from picture(scene, "stretched to the square", fit="stretch")


@mistake(
    "pad-not-wanted",
    "pixel_values",
    "the picture is padded or stretched although the model crops it",
    "resize the shorter side and cut out the centre, since image_aspect_ratio is not pad",
    PICTURE,
)
def _(scene: Scene) -> Iterator[Variant]:
    if scene.picture is not None and not _pads(scene):
        yield from picture(scene, "padded", fit="pad")
        for rounding in ("floor", "round", "ceil"):
            way = f"resized, then padded, sizes rounded by {rounding}"
            yield from picture(scene, way, fit="late pad", rounding=rounding)
        yield from picture(scene, "stretched to the square", fit="stretch")


@mistake(
    "pad-at-corner",
    "pixel_values",
    "the picture stands in a corner of the padded square",
    "put it in the middle: (longer - shorter) // 2 on the shorter axis",
    PICTURE,
)
def _(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        yield from picture(scene, "at the top left", place=0.0)
        yield from picture(scene, "at the bottom right", place=1.0)


@mistake(
    "pad-colour",
    "pixel_values",
    "the padding has another colour",
    "pad with int(255 * mean) per channel, (122, 116, 104) for CLIP",
    PICTURE,
)
def _(scene: Scene) -> Iterator[Variant]:
    if not _pads(scene):
        return
    assert scene.picture
    r, g, b = scene.picture.colour
    colours: list[tuple[int, ...]] = [(grey,) * 3 for grey in (0, 255, 127, 128, 114)]
    colours += [(b, g, r), (r + 1, g + 1, b + 1)]
    colours = scene.picture.corners(scene.stages.get("pixel_values")) + colours
    for colour in dict.fromkeys(colours):
        if colour != (r, g, b):
            yield from picture(scene, f"found {colour}", colour=colour)
    for edge in ("edge", "reflect"):
        yield from picture(scene, f"the padding continues the picture ({edge})", border=edge)


@mistake(
    "bilinear",
    "pixel_values",
    "the picture is resized with another filter than Pillow's antialiased bicubic",
    "resize as Pillow's BICUBIC does: cubic with a = -0.5, stretched where the picture shrinks, on uint8",
    "a picture that has not the model's size",
)
def _(scene: Scene) -> Iterator[Variant]:
    for name in FILTERS:
        if name != "bicubic":
            yield from picture(scene, name, filter=name)


@mistake(
    "bgr",
    "pixel_values",
    "red and blue are swapped",
    "hand the channels over as red, green, blue",
    "a picture in colour",
)
def _(scene: Scene) -> Iterator[Variant]:
    for when in ("as read", "before normalising", "at the end"):
        yield from picture(scene, f"swapped {when}", bgr=when)


@mistake(
    "mean-std",
    "pixel_values",
    "the pixels are normalised with another mean or deviation",
    "(value / 255 - mean) / std with the mean and std of preprocessor_config.json",
)
def _(scene: Scene) -> Iterator[Variant]:
    if scene.picture is None:
        return
    ours = scene.picture.mean, scene.picture.std
    known = {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "0.5 and 0.5": ((0.5,) * 3, (0.5,) * 3),
        "none: 0 to 1": ((0.0,) * 3, (1.0,) * 3),
        "none: 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
        "no mean": ((0.0,) * 3, ours[1]),
        "no std": (ours[0], (1.0,) * 3),
        "their channels swapped": (ours[0][::-1], ours[1][::-1]),
    }
    for name, (mean, std) in known.items():
        yield from picture(scene, name, mean=mean, std=std)
    seen = scene.stages.get("pixel_values")
    if seen is not None:

        def fitted(value: np.ndarray, _: Stages) -> np.ndarray:
            """The best mean and std for each channel, whatever else is done to the picture."""
            if value.shape != seen.shape:
                return value
            x, y = value.reshape(len(value), -1), seen.reshape(len(value), -1)
            a, b = np.array([np.polyfit(x[c], y[c], 1) for c in range(len(value))]).T.reshape(2, -1, 1, 1)
            return (value * a + b).astype(value.dtype)

        yield Variant("pixels", after("pixel_values", fitted), "fitted to what is there")


@mistake(
    "exif-turned",
    "pixel_values",
    "the photo is turned as its EXIF note says",
    "leave it as it is stored: the published code does not turn photos",
    "a photo with an EXIF orientation",
)
def _(scene: Scene) -> Iterator[Variant]:
    if scene.picture is not None and scene.picture.upright is not None:
        yield from picture(scene, image=scene.picture.upright)
