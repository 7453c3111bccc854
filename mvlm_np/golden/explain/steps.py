"""The steps of the model, and which step computes a stage."""

# The steps of the model, in order. A stage belongs to the step that computes it.
STEPS = ("pixels", "embed", "block", "features", "project", "ids", "embeds", "layer", "logits", "decode")
Place = tuple[str, int | None]  # a step, and the layer where it has one


class CannotReplay(ValueError):
    """A stage does not follow from what is given: a picture is missing, or shapes do not fit each other."""


def step_of(stage: str) -> str:
    """The step that computes a stage."""
    match stage.removesuffix(".tail").split("."):
        case ["pixel_values"]:
            return "pixels"
        case ["vision", "hidden_states", "0"]:
            return "embed"
        case ["vision", "hidden_states", _]:
            return "block"
        case ["vision", "features"]:
            return "features"
        case ["projector", *_]:
            return "project"
        case ["input_ids"]:
            return "ids"
        case ["inputs_embeds"] | ["decoder", "hidden_states", "0"]:
            return "embeds"
        case ["decoder", *_]:
            return "layer"
        case ["logits"]:
            return "logits"
        case ["decode", *_]:
            return "decode"
    raise CannotReplay(stage)


def layer_of(stage: str) -> int | None:
    """The block or layer that computes a stage, if it is one that does."""
    name, _, number = stage.removesuffix(".tail").rpartition(".")
    match name, int(number) if number.isdigit() else None:
        case "vision.hidden_states" | "decoder.hidden_states", int(i) if i > 0:
            return i - 1
        case "decoder.keys" | "decoder.values", int(i):
            return i
    return None


def independent(stage: str, step: str, layer: int | None = None) -> bool:
    """Whether a stage stays as it is when a step (of one layer) changes."""
    if (own := step_of(stage)) == "ids" or step == "ids":
        return STEPS.index(own) < STEPS.index("ids") if step == "ids" else True
    same = layer is not None and own == step and (layer_of(stage) or 0) < layer
    return same or STEPS.index(own) < STEPS.index(step)
