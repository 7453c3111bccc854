"""What a CLIP folder's preprocessor_config.json says, checked once and then trusted."""

from mvlm_np.config import Fields, ImageConfig
from mvlm_np.errors import ConfigError

STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")  # what `inputs.image` computes
NO_EFFECT = ("do_convert_rgb",)  # every picture is RGB by the time it gets there


def image_config(values: object, aspect_ratio: object, where: object) -> ImageConfig:
    """The parsed preprocessor_config.json, in the hub's style or as transformers saves it again.

    Sizes are whole numbers (hub) or {"shortest_edge": n} and {"height": n, "width": n} (saved
    again). A value that the file leaves out is the default of transformers' CLIPImageProcessor.
    `aspect_ratio` is `image_aspect_ratio` of the model's config.json; None where it has none.

    ConfigError: a value is out of range, or asks for a step that `inputs.image` does not compute.
    """
    get = Fields(values, where)
    for key in ("image_processor_type", "feature_extractor_type"):
        get.only(key, "CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor")
    for key in STEPS:
        get.only(key, True)
    for key in get.values:
        if key.startswith("do_") and key not in STEPS + NO_EFFECT:
            get.only(key, False, None)
    get.only("resample", 3)  # Pillow's number for bicubic
    get.only("rescale_factor", 1 / 255)
    if not isinstance(aspect_ratio, str | None):
        raise ConfigError("config.json: image_aspect_ratio", f"found {aspect_ratio!r:.60}", "a text")
    (resize,) = _size(get, "size", ("shortest_edge",))
    height, width = _size(get, "crop_size", ("height", "width"))
    return ImageConfig(
        resize=resize,
        crop=(height, width),
        mean=_triple(get, "image_mean", ImageConfig.mean, 0, 1),
        std=_triple(get, "image_std", ImageConfig.std, 0.001, 1000),
        aspect_ratio=aspect_ratio,
    )


def _size(get: Fields, key: str, names: tuple[str, ...]) -> list[int]:
    """The values of `names`, written as one number for all of them or as an object with just these keys."""
    value = get.values.get(key)
    if not isinstance(value, dict):
        return [get.whole(key, 224, most=4096)] * len(names)
    if set(value) != set(names):
        raise ConfigError(
            f"{get.where}: {key}",
            f"found {value!r:.60}",
            f"a whole number or an object with {' and '.join(names)}",
        )
    inner = Fields(value, f"{get.where}: {key}")
    return [inner.whole(name, most=4096) for name in names]


def _triple(
    get: Fields, key: str, default: tuple[float, float, float], least: float, most: float
) -> tuple[float, float, float]:
    """One number for each of red, green and blue."""
    value = get.values.get(key, default)
    numbers = isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 3 or not all(least <= v <= most for v in value):
        raise ConfigError(
            f"{get.where}: {key}",
            f"found {value!r:.60}",
            f"three numbers from {least} to {most}, for red, green and blue",
        )
    red, green, blue = map(float, value)
    return red, green, blue
