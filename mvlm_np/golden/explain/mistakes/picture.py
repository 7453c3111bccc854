"""Mistakes in preparing the picture."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mvlm_np.golden.explain.changes import edit_stage
from mvlm_np.golden.explain.mistake import Variant, mistake
from mvlm_np.golden.explain.parts import Parts
from mvlm_np.golden.explain.preprocessing import Picture
from mvlm_np.golden.explain.resampling import FILTERS
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.golden.stages import Stages
from mvlm_np.inputs.image import one_patch_on, padding_seen

PICTURE = "a picture that is not square"


def prepared(scene: Scene, detail: str = "", **changes: Any) -> Iterator[Variant]:
    """The picture prepared in another way; nothing where there is none."""

    def change(p: Parts) -> Parts:
        assert isinstance(p.pixels, Picture)
        return replace(p, pixels=replace(p.pixels, **changes))

    if scene.picture is not None:
        yield Variant("pixels", change, detail)


def prepared_for(scene: Scene, size: int) -> Iterator[Variant]:
    """The picture prepared for an encoder of another size; nothing where there is none."""
    if scene.picture is not None:
        yield from prepared(scene, config=replace(scene.picture.config, resize=size, crop=(size, size)))


def _pads(scene: Scene) -> bool:
    return scene.picture is not None and scene.picture.fit == "pad"


@mistake(
    stage="pixel_values",
    what="the picture is resized first and padded to a square then",
    mend="pad to the square of the longer side first, then resize the square",
    shown=PICTURE,
)
def resize_before_pad(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        for rounding in ("round", "floor", "ceil"):
            yield from prepared(scene, f"sizes rounded by {rounding}", fit="late pad", rounding=rounding)


@mistake(
    stage="pixel_values",
    what="the picture is not padded: its sides are cut off, or it is stretched",
    mend="pad to a square of the longer side, since image_aspect_ratio is pad",
    shown=PICTURE,
)
def no_pad(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        yield from prepared(scene, "the longer side is cut off", fit="crop")
        yield from prepared(scene, "stretched to the square", fit="stretch")


@mistake(
    stage="pixel_values",
    what="the picture is padded or stretched although the model crops it",
    mend="resize the shorter side and cut out the centre, since image_aspect_ratio is not pad",
    shown=PICTURE,
)
def pad_not_wanted(scene: Scene) -> Iterator[Variant]:
    if scene.picture is not None and not _pads(scene):
        yield from prepared(scene, "padded", fit="pad")
        for rounding in ("floor", "round", "ceil"):
            way = f"resized, then padded, sizes rounded by {rounding}"
            yield from prepared(scene, way, fit="late pad", rounding=rounding)
        yield from prepared(scene, "stretched to the square", fit="stretch")


@mistake(
    stage="pixel_values",
    what="the picture stands in a corner of the padded square",
    mend="put it in the middle: (longer - shorter) // 2 on the shorter axis",
    shown=PICTURE,
)
def pad_at_corner(scene: Scene) -> Iterator[Variant]:
    if _pads(scene):
        yield from prepared(scene, "at the top left", place=0.0)
        yield from prepared(scene, "at the bottom right", place=1.0)


@mistake(
    stage="pixel_values",
    what="the padding has another colour",
    mend="pad with int(255 * mean) per channel, (122, 116, 104) for CLIP",
    shown=PICTURE,
)
def pad_colour(scene: Scene) -> Iterator[Variant]:
    if not _pads(scene):
        return
    assert scene.picture
    r, g, b = scene.picture.colour
    colours: list[tuple[int, ...]] = [(grey,) * 3 for grey in (0, 255, 127, 128, 114)]
    colours += [(b, g, r), (r + 1, g + 1, b + 1)]
    colours = scene.picture.corners(scene.stages.get("pixel_values")) + colours
    for colour in dict.fromkeys(colours):
        if colour != (r, g, b):
            yield from prepared(scene, f"found {colour}", colour=colour)
    for edge in ("edge", "reflect"):
        yield from prepared(scene, f"the padding continues the picture ({edge})", border=edge)


@mistake(
    stage="pixel_values",
    what="the picture is resized with another filter than Pillow's antialiased bicubic",
    mend="resize as Pillow's BICUBIC does: cubic with a = -0.5, stretched where the picture shrinks, "
    "on uint8",
    shown="a picture that has not the model's size",
)
def bilinear(scene: Scene) -> Iterator[Variant]:
    for name in FILTERS:
        if name != "bicubic":
            yield from prepared(scene, name, filter=name)


@mistake(
    stage="pixel_values",
    what="red and blue are swapped",
    mend="hand the channels over as red, green, blue",
    shown="a picture in colour",
)
def bgr(scene: Scene) -> Iterator[Variant]:
    for when in ("as read", "before normalising", "at the end"):
        yield from prepared(scene, f"swapped {when}", bgr=when)


@mistake(
    stage="pixel_values",
    what="the pixels are normalised with another mean or deviation",
    mend="(value / 255 - mean) / std with the mean and std of preprocessor_config.json",
)
def mean_std(scene: Scene) -> Iterator[Variant]:
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
        yield from prepared(scene, name, mean=mean, std=std)
    seen = scene.stages.get("pixel_values")
    if seen is not None:

        def fitted(value: np.ndarray, _: Stages) -> np.ndarray:
            """The best mean and std for each channel, whatever else is done to the picture."""
            if value.shape != seen.shape:
                return value
            x, y = value.reshape(len(value), -1), seen.reshape(len(value), -1)
            a, b = np.array([np.polyfit(x[c], y[c], 1) for c in range(len(value))]).T.reshape(2, -1, 1, 1)
            return (value * a + b).astype(value.dtype)

        yield Variant("pixels", edit_stage("pixel_values", fitted), "fitted to what is there")


@mistake(
    stage="pixel_values",
    what="the photo is turned as its EXIF note says",
    mend="leave it as it is stored: the published code does not turn photos",
    shown="a photo with an EXIF orientation",
)
def exif_turned(scene: Scene) -> Iterator[Variant]:
    if scene.picture is not None:  # without a note it changes nothing, and so is not seen
        yield from prepared(scene, image=scene.picture.upright or scene.picture.image)


@mistake(
    stage="pixel_values",
    what="the picture's patches are moved by one place, as mvlm prepare --class-token-last moves them",
    mend="that is for a llama.cpp with the class token behind the patches; one that has it in front gets the "
    "padded picture",
)
def patches_moved(scene: Scene) -> Iterator[Variant]:
    if (vision := scene.parts.config.vision) is not None:
        p, colour = vision.patch_size, padding_seen(scene.parts.config.image)

        def moved(x: np.ndarray, _: Stages) -> np.ndarray:
            return one_patch_on(x.transpose(1, 2, 0), p, colour).transpose(2, 0, 1)

        yield Variant("pixels", edit_stage("pixel_values", moved))
