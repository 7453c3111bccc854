"""Mistakes in the vision encoder."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import isqrt, sqrt
from typing import Any

import numpy as np

from mvlm_np.checkpoints.gguf_class_token import shares
from mvlm_np.golden.explain.changes import (
    EPS,
    WHERE,
    both,
    config,
    edit_stage,
    function,
    layers,
    vision_config,
    vision_of,
    weights,
)
from mvlm_np.golden.explain.mistake import Variant, dial, mistake
from mvlm_np.golden.explain.mistakes.picture import prepared_for
from mvlm_np.golden.explain.parts import Change, Parts
from mvlm_np.golden.explain.resampling import TABLE_FILTERS, Resize
from mvlm_np.golden.explain.scene import Scene
from mvlm_np.inputs.image import padding_seen
from mvlm_np.linear import Dense, Joined, Norm
from mvlm_np.projector import LDP, NORM_EPS
from mvlm_np.vision import VisionWeights


@mistake(
    stage="vision.hidden_states.0",
    what="the patches are read column by column",
    mend="read them row by row: patch i stands in row i // grid, column i % grid",
)
def patches_column_order(scene: Scene) -> Iterator[Variant]:
    def columns(patches: Any) -> Any:
        def turned(pixels: np.ndarray, size: int) -> np.ndarray:
            rows, cols = pixels.shape[1] // size, pixels.shape[2] // size
            x = patches(pixels, size)
            return x.reshape(rows, cols, -1).swapaxes(0, 1).reshape(len(x), -1)

        return turned

    if scene.parts.vision:
        yield Variant("embed", function("vision", "patches", columns))


@mistake(
    stage="vision.hidden_states.0",
    what="the pixels of a patch meet the patch embedding in another order",
    mend="multiply in the order of the weight: channel, row, column",
)
def patch_pixel_order(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return

    def turned(*axes: int) -> Callable[[Any], Any]:
        def change(w: VisionWeights) -> VisionWeights:
            patch = w.patch_embedding
            return replace(w, patch_embedding=patch.transpose(0, *axes).reshape(patch.shape))

        return change

    yield Variant("embed", weights("vision", turned(1, 3, 2)), "rows and columns swapped")
    yield Variant("embed", weights("vision", turned(2, 3, 1)), "the weight is read as row, column, channel")

    def flipped(w: VisionWeights) -> VisionWeights:
        return replace(w, patch_embedding=w.patch_embedding[..., ::-1, ::-1])

    yield Variant("embed", weights("vision", flipped), "a true convolution, which turns the weight around")


@mistake(
    stage="vision.hidden_states.0",
    what="pixels in the order row, column, channel (NHWC) are read as channel, row, column (NCHW)",
    mend="transpose to three planes before the encoder, or tell the runtime the layout that you hand over",
)
def nhwc_as_nchw(scene: Scene) -> Iterator[Variant]:
    def misread(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(1, 2, 0)).reshape(x.shape)

    if scene.parts.vision:
        yield Variant("pixels", edit_stage("pixel_values", lambda x, _: misread(x)), "in what is handed over")
        inside = function("vision", "patches", lambda base: lambda x, size: base(misread(x), size))
        yield Variant("embed", inside, "by the encoder")


def _positions(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return weights("vision", lambda w: replace(w, position_embedding=change(w.position_embedding)))


@mistake(
    stage="vision.hidden_states.0",
    what="the class token stands behind the patches: positions shift by one, patch 0 is lost, "
    "the class token becomes a patch",
    mend="put the class token first, at position 0",
)
def class_token_last(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    last = edit_stage("vision.hidden_states.0", lambda x, _: np.roll(x, -1, axis=0))
    behind = both(_positions(lambda p: np.roll(p, 1, axis=0)), last)
    yield Variant("embed", behind)
    yield Variant("embed", last, "with the positions of the right order")
    padding = padding_seen(scene.parts.config.image)

    def as_in_gguf(w: VisionWeights) -> VisionWeights:
        token, first = shares(w.class_embedding + w.position_embedding[0], w.patch_embedding, padding)
        return replace(
            w, class_embedding=token, position_embedding=np.vstack([first, w.position_embedding[1:]])
        )

    shared = both(weights("vision", as_in_gguf), behind)
    yield Variant("embed", shared, "in a GGUF that mvlm convert has written")


@mistake(
    stage="vision.hidden_states.0",
    what="the positions of the vision encoder are shifted, or missing",
    mend="add position i to token i: 0 for the class token, 1 for the first patch",
)
def positions_shifted(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    for shift in (1, -1, 2, -2):
        yield Variant(
            "embed", _positions(partial(np.roll, shift=shift, axis=0)), f"by {shift}, around the end"
        )
        clipped = partial(_clipped, shift=shift)
        yield Variant("embed", _positions(clipped), f"by {shift}, the outermost repeated")
    yield Variant("embed", _positions(np.zeros_like), "none are added")
    yield Variant("embed", _positions(lambda p: p[::-1]), "from the end")
    side = vision_of(scene.parts).grid

    def columns(p: np.ndarray) -> np.ndarray:
        turned = p[1:].reshape(side, side, -1).swapaxes(0, 1).reshape(len(p) - 1, -1)
        return np.concatenate([p[:1], turned])

    yield Variant("embed", _positions(columns), "column by column")
    only = lambda p: np.concatenate([np.zeros_like(p[:1]), p[1:]])  # noqa: E731
    yield Variant("embed", _positions(only), "none for the class token")


def _clipped(p: np.ndarray, shift: int) -> np.ndarray:
    return p[np.clip(np.arange(len(p)) - shift, 0, len(p) - 1)]


@mistake(
    stage="vision.hidden_states.0",
    what="the table of positions is resized, although it fits, or since the picture has another size",
    mend="add the table as the checkpoint holds it; the picture has the size that the model was trained for",
)
def position_table_resized(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    c = vision_of(scene.parts)
    side, p = c.grid, c.patch_size
    for name, way in TABLE_FILTERS.items():
        nearly = side / (side + 0.1)  # so that a size is not rounded down: DINO's way, which many have copied
        again = _positions(partial(_resized, side=side, way=way, scale=nearly))
        yield Variant("embed", again, f"by {side + 0.1:.4g} / {side}, {name}")
        for other in _other_sides(side):

            def there_and_back(table: np.ndarray, other: int = other, way: Resize = way) -> np.ndarray:
                return _resized(_resized(table, other, way), side, way)

            detail = f"to {other} x {other} and back, {name}"
            yield Variant("embed", _positions(there_and_back), detail)
            n = other * p
            fitted = _positions(partial(_resized, side=other, way=way))
            for picture in prepared_for(scene, n):
                yield Variant(
                    "pixels",
                    both(picture.change, vision_config(image_size=n), fitted),
                    f"for a picture of {n} x {n}, {name}",
                )


def _other_sides(side: int) -> list[int]:
    """Patches along other pictures: 16, 27 and 32, of 224, 384 and 448 pixels, where the model has 24."""
    return sorted({round(side * n / 24) for n in (16, 27, 32)} - {side, 0})


def _resized(table: np.ndarray, side: int, way: Resize, scale: float | None = None) -> np.ndarray:
    """(1 + patches, V) for another number of patches; the class token's row stays as it is."""
    old = isqrt(len(table) - 1)
    patches = way(table[1:].reshape(old, old, -1), (side, side), scale=scale)
    return np.concatenate([table[:1], patches.reshape(side * side, -1)]).astype(table.dtype)


@mistake(
    stage="vision.hidden_states.0",
    what="the LayerNorm before the first block is left out",
    mend="apply pre_layrnorm (so its name in the checkpoint) after the positions are added",
)
def no_pre_layernorm(scene: Scene) -> Iterator[Variant]:
    if tower := scene.parts.vision:
        norm = tower.pre_layrnorm

        def wrap(base: Any) -> Any:
            return lambda x, w, b, eps: x if w is norm.weight else base(x, w, b, eps)

        yield Variant("embed", function("vision", "layer_norm", wrap))


@mistake(
    stage="vision.hidden_states.0",
    what="the CLIP weights come from the other place",
    mend="projectors with v2 in their name use the checkpoint's own CLIP; all others load mm_vision_tower's",
    shown="a model whose checkpoint and CLIP folder differ, as fine-tuned ones do",
)
def wrong_tower(scene: Scene) -> Iterator[Variant]:
    if (other := scene.spare.get("other_tower")) is not None:
        yield Variant("embed", weights("vision", lambda _: other))


@mistake(
    stage="vision.hidden_states.0",
    what="a LayerNorm has another eps",
    mend="1e-5, CLIP's layer_norm_eps, in the vision encoder and in LDP",
    shown="a picture whose features have little variance",
)
def layer_norm_eps(scene: Scene) -> Iterator[Variant]:
    if not (tower := scene.parts.vision):
        return
    right = vision_of(scene.parts).layer_norm_eps

    def everywhere(eps: float) -> Change:
        return vision_config(layer_norm_eps=eps)

    def in_ldp(eps: float) -> Change:
        return function("projector", "layer_norm", lambda base: lambda x, w, b, _: base(x, w, b, eps))

    def only_before(eps: float) -> Change:
        def wrap(base: Any) -> Any:
            return lambda x, w, b, e: base(x, w, b, eps if w is tower.pre_layrnorm.weight else e)

        return function("vision", "layer_norm", wrap)

    yield from dial("embed", "{:.3g} in the vision encoder", everywhere, EPS, right)
    yield from dial("embed", "{:.3g} in pre_layrnorm", only_before, EPS, right)
    yield from dial("block", "{:.3g} in the blocks of the vision encoder", everywhere, EPS, right)
    if isinstance(scene.parts.projector, LDP):
        yield from dial("project", "{:.3g} in the projector", in_ldp, EPS, NORM_EPS)


def _wrong_axis(base: Any) -> Any:
    """Statistics over the tokens, or over the picture, of each channel."""

    def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
        axes = tuple(range(x.ndim - 1))
        centred = x - x.mean(axis=axes, keepdims=True)
        return centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + eps) * weight + bias

    return norm


def _all_axes(base: Any) -> Any:
    """Statistics over everything at once."""

    def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
        centred = x - x.mean()
        return centred / np.sqrt(np.square(centred).mean() + eps) * weight + bias

    return norm


def _unbiased(base: Any) -> Any:
    """The variance divided by n - 1."""

    def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
        centred, n = x - x.mean(axis=-1, keepdims=True), x.shape[-1]
        variance = np.square(centred).sum(axis=-1, keepdims=True) / (n - 1)
        return centred / np.sqrt(variance + eps) * weight + bias

    return norm


def _beside_root(base: Any) -> Any:
    """eps added to the deviation instead of the variance."""

    def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True))
        return centred / (deviation + eps) * weight + bias

    return norm


@mistake(
    stage="vision.hidden_states.0",
    what="a LayerNorm takes mean and variance over the wrong axis",
    mend="over the channels of each token or pixel, with the variance divided by n",
)
def layer_norm_axis(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    places = {"embed": ("vision", "in the vision encoder"), "block": ("vision", "in the encoder's blocks")}
    if isinstance(scene.parts.projector, LDP):
        places["project"] = ("projector", "in the projector")
    ways = {
        "over the tokens": _wrong_axis,
        "over tokens and channels": _all_axes,
        "variance over n - 1": _unbiased,
        "eps outside the root": _beside_root,
    }
    for step, (part, where) in places.items():
        for name, way in ways.items():
            yield Variant(step, function(part, "layer_norm", way), f"{name}, {where}")


@mistake(
    stage="vision.features",
    what="the features are taken one block too early",
    mend="hidden_states[-2]: after all blocks but one, 23 of CLIP's 24; "
    "block_count in an mmproj is already short",
)
def one_layer_short(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    right = scene.parts.config.vision_layers
    for short in (1, 2, 3):
        if right - short >= 0:
            yield Variant("features", config(mm_vision_select_layer=right - short), f"{short} short")


@mistake(
    stage="vision.features",
    what="the features are the last block's",
    mend="hidden_states[-2], one block before the end",
)
def last_layer(scene: Scene) -> Iterator[Variant]:
    if (
        scene.parts.vision
        and (last := vision_of(scene.parts).num_hidden_layers) != scene.parts.config.vision_layers
    ):
        yield Variant("features", config(mm_vision_select_layer=last))


@mistake(
    stage="vision.features",
    what="post_layernorm is applied to the features",
    mend="take the features as they leave the block: post_layernorm is not used",
)
def post_layernorm(scene: Scene) -> Iterator[Variant]:
    norm: Norm | None = scene.spare.get("post_layernorm")
    if norm is not None:

        def apply(p: Parts) -> Parts:
            ops, eps = p.vision_ops, vision_of(p).layer_norm_eps
            return edit_stage("vision.features", lambda x, _: ops.layer_norm(x, *norm, eps))(p)

        yield Variant("features", apply)
        last = vision_of(scene.parts).num_hidden_layers
        yield Variant("features", both(config(mm_vision_select_layer=last), apply), "after the last block")


@mistake(
    stage="vision.features",
    what="the wrong row is dropped from the encoder's output, or none where one should be",
    mend='mm_vision_select_feature "patch" drops row 0, the class token; "cls_patch" keeps all',
)
def class_token_kept(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return
    if scene.parts.config.mm_vision_select_feature == "patch":
        yield Variant("features", config(mm_vision_select_feature="cls_patch"), "none is dropped")
        without_last = edit_stage("vision.features", lambda x, _: x[:-1])
        # No value that there is: all rows are kept, and the count of image tokens stays what it is.
        last = both(config(mm_vision_select_feature="cls"), without_last)
        yield Variant("features", last, "the last one is dropped")
    else:
        yield Variant("features", config(mm_vision_select_feature="patch"), "the class token is dropped")


def _scaled(factor: float) -> Callable[[Any], Any]:
    return lambda base: lambda q, k, v, causal: base(q * factor, k, v, causal)


@mistake(
    stage="vision.hidden_states.1",
    what="heads are split as (d, H): element j of head h is taken from column j H + h",
    mend="head h owns columns h d to (h + 1) d - 1: shape (T, H, d), then transpose",
)
def head_split(scene: Scene) -> Iterator[Variant]:
    """The rows of q, k and v, and the columns of the matrix after them, in the order of such a port."""

    def order(size: int, heads: int) -> np.ndarray:
        return np.arange(size).reshape(-1, heads).T.ravel()

    def rows(linear: Dense, heads: int) -> Dense:
        at, bias = order(len(linear.weight), heads), linear.bias
        return replace(linear, weight=linear.weight[at], bias=None if bias is None else bias[at])

    def columns(linear: Dense, heads: int) -> Dense:
        return replace(linear, weight=linear.weight[:, order(linear.weight.shape[1], heads)])

    def split(part: str, out: str, counts: tuple[int, ...], whole: bool) -> Change:
        def change(layer: Any) -> Any:
            qkv = Joined(*(rows(x, n) for x, n in zip(layer.qkv.layers, counts, strict=True)))
            joined = {out: columns(getattr(layer, out), counts[0])} if whole else {}
            return replace(layer, qkv=qkv, **joined)

        return layers(part, change)

    c = scene.parts.config.decoder
    places = [("decoder", "layer", "o_proj", (c.num_attention_heads, *[c.num_key_value_heads] * 2))]
    if scene.parts.vision:
        places.insert(0, ("vision", "block", "out_proj", (vision_of(scene.parts).num_attention_heads,) * 3))
    for part, step, out, counts in places:
        if counts[0] > 1:
            for whole, how in ((True, "joined in the same way"), (False, "joined in the right way")):
                yield Variant(step, split(part, out, counts, whole), f"and {how}, in the {WHERE[part]}")


@mistake(
    stage="vision.hidden_states.1",
    what="attention scores are scaled by something else",
    mend="1 / sqrt(d) with d the size of a head, once",
)
def attention_scale(scene: Scene) -> Iterator[Variant]:
    for part, step, where in (("vision", "block", "the vision encoder"), ("decoder", "layer", "the decoder")):
        if part == "vision" and not scene.parts.vision:
            continue
        if part == "vision":
            c = vision_of(scene.parts)
            d, width = c.hidden_size // c.num_attention_heads, c.hidden_size
        else:
            d, width = scene.parts.config.decoder.head_dim, scene.parts.config.decoder.hidden_size
        factors = (sqrt(d), 1 / sqrt(d), sqrt(d / width), sqrt(0.5), sqrt(2), 0.5, 2.0, 1 / d)

        def scaled(factor: float, part: str = part) -> Change:
            return function(part, "attention", _scaled(factor))

        yield from dial(step, f"{{:.4g}} times what is right, in {where}", scaled, factors, 1.0)


@mistake(
    stage="vision.hidden_states.1",
    what="the vision encoder's attention is causal",
    mend="every patch sees every other",
)
def causal_encoder(scene: Scene) -> Iterator[Variant]:
    if scene.parts.vision:
        yield Variant(
            "block", function("vision", "attention", lambda base: lambda q, k, v, causal: base(q, k, v, True))
        )
