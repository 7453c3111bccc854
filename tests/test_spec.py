"""docs/spec.md against the goldens: each formula, in plain Python, makes a stage of the one before it.

Nothing of the package computes here. `says` quotes the formula, so that neither the page nor the loop that
stands for it can change alone.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import ceil, cos, erf, exp, sin, sqrt

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from mvlm_np.checkpoints.safetensors import read_safetensors
from tests.conftest import DATA, ROOT

PAGE = " ".join((ROOT / "docs" / "spec.md").read_text("utf-8").split())
CHAIN = 5e-5  # the page's own bound, of a stage's largest magnitude
Vector = list[float]
Numbers = Sequence[float] | np.ndarray


def says(*formulas: str) -> None:
    for formula in formulas:
        assert " ".join(formula.split()) in PAGE


@cache
def stages(name: str) -> dict[str, np.ndarray]:
    return {k: t.raw[0] for k, t in read_safetensors(DATA / "golden" / name / "golden-0.safetensors").items()}


def weights(name: str, prefix: str, folder: str = ".") -> Callable[[str], np.ndarray]:
    tensors = read_safetensors(DATA / "golden" / name / folder / "model.safetensors")
    return lambda key: tensors[prefix + key].float32()


def settings(name: str) -> dict:
    return json.loads((DATA / "golden" / name / "config.json").read_text())


def agree(ours: Numbers, golden: np.ndarray) -> None:
    assert len(ours) == golden.size
    assert np.abs(np.array(ours) - golden.ravel()).max() <= CHAIN * np.abs(golden).max()


# ---------------------------------------------------------------- what several stages need


def dot(a: Numbers, b: Numbers) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def linear(x: Vector, w: Callable[[str], np.ndarray], name: str, bias: bool = True) -> Vector:
    y = [dot(row, x) for row in w(f"{name}.weight").reshape(-1, len(x))]
    return add(y, w(f"{name}.bias")) if bias else y


def add(a: Numbers, b: Numbers) -> Vector:
    return [float(x) + float(y) for x, y in zip(a, b, strict=True)]


def layer_norm(x: Numbers, w: Callable[[str], np.ndarray], name: str) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    gains, biases = w(f"{name}.weight"), w(f"{name}.bias")
    return [(v - mean) / sqrt(variance + 1e-5) * g + b for v, g, b in zip(x, gains, biases, strict=True)]


def rms_norm(x: Numbers, gains: np.ndarray) -> Vector:
    root = sqrt(dot(x, x) / len(x) + 1e-6)
    return [v / root * g for v, g in zip(x, gains, strict=True)]


def head(q: Vector, keys: Sequence[Vector], values: Sequence[Vector]) -> Vector:
    """One row of one head."""
    scores = [dot(q, k) / sqrt(len(q)) for k in keys]
    e = [exp(s - max(scores)) for s in scores]
    return [sum(a * v[i] for a, v in zip(e, values, strict=True)) / sum(e) for i in range(len(q))]


def convolved(x: np.ndarray, weight: np.ndarray, c: int, i: int, j: int, stride: int) -> float:
    """One pixel of a depthwise 3 x 3 convolution of (D, g, g)."""
    total = 0.0
    for u in range(3):
        for v in range(3):
            row, col = stride * i + u - 1, stride * j + v - 1
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                total += float(weight[c, 0, u, v]) * float(x[c, row, col])
    return total


# ---------------------------------------------------------------- picture


def resized(line: list[int], m: int) -> list[int]:
    n, out = len(line), []
    r = n / m
    q = max(r, 1)
    for i in range(m):
        centre = (i + 0.5) * r
        seen = range(max(int(centre - 2 * q + 0.5), 0), min(int(centre + 2 * q + 0.5), n))
        f = []
        for j in seen:
            t = abs(j - centre + 0.5) * (1 / q)
            near, far = (1.5 * t - 2.5) * t * t + 1, -0.5 * (((t - 5) * t + 8) * t - 4)
            f.append(near if t < 1 else far if t < 2 else 0.0)
        w = [value / sum(f) for value in f]
        W = [int(value * 2**22 - 0.5) if value < 0 else int(value * 2**22 + 0.5) for value in w]
        total = 2**21 + sum(k * line[j] for k, j in zip(W, seen, strict=True))
        out.append(min(max(total >> 22, 0), 255))
    return out


@pytest.mark.parametrize("name", ["ldpv2", "mlp"])
def test_the_pixel_values_to_the_bit(name: str) -> None:
    says("at (n - shorter side) div 2 from the top or left", "colour floor(255 · mean[c])")
    says("the longer one to floor(`size` · longer / shorter): first along x, then along y")
    says("r = n / m q = max(r, 1) centre = (i + 0.5) r", "t = |j - centre + 0.5| · (1 / q)")
    says("lo = max(int(centre - 2q + 0.5), 0) hi = min(int(centre + 2q + 0.5), n)")
    says("f[j] = (1.5 t - 2.5) t t + 1 if t < 1; -0.5 (((t - 5) t + 8) t - 4) if t < 2; 0 beyond")
    says("out[i] = min(max((2²¹ + Σⱼ W[j] in[j]) >> 22, 0), 255)", "column floor((width - s) / 2)")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    picture = np.asarray(Image.open(DATA / "golden" / "picture.png").convert("RGB"))
    (h, w, _), golden = picture.shape, stages(name)["pixel_values"]
    s = golden.shape[1]
    for c in range(3):
        plane = picture[:, :, c].tolist()
        if settings(name)["image_aspect_ratio"] == "pad":
            square = np.full((w, w), int(255 * mean[c]))
            square[(w - h) // 2 :][:h] = plane
            plane = square.tolist()
        rows, cols = (s * side // min(len(plane), len(plane[0])) for side in (len(plane), len(plane[0])))
        plane = [resized(row, cols) for row in plane]
        plane = np.array([resized(list(column), rows) for column in zip(*plane, strict=True)]).T
        value = plane[(rows - s) // 2 :, (cols - s) // 2 :][:s, :s]
        x = (value * (1 / 255)).astype(np.float32)
        assert np.array_equal((x - np.float32(mean[c])) / np.float32(std[c]), golden[c])


# ---------------------------------------------------------------- vision tower


def test_the_embedding_of_patches() -> None:
    says(
        "at row i div g, column i mod g, read in the order (channel, row, column)",
        "the class token comes **first**",
    )
    w, golden = weights("ldpv2", "model.vision_tower.vision_tower.vision_model."), stages("ldpv2")
    pixels, positions = golden["pixel_values"], w("embeddings.position_embedding.weight")
    filters, g, p = w("embeddings.patch_embedding.weight"), 13, 4
    for row in (0, 1, 20, 169):
        i, j = divmod(row - 1, g)
        patch = [pixels[c, p * i + y, p * j + x] for c in range(3) for y in range(p) for x in range(p)]
        x = [dot(f.ravel(), patch) for f in filters] if row else w("embeddings.class_embedding")
        agree(layer_norm(add(x, positions[row]), w, "pre_layrnorm"), golden["vision.hidden_states.0"][row])


def test_a_block_of_the_tower_that_mm_vision_tower_names() -> None:
    says("h = layer_norm1(X); X = X + out_proj(attention(q_proj(h), k_proj(h), v_proj(h)))")
    says("h = layer_norm2(X); X = X + fc2(act(fc1(h)))", "x / (1 + exp(-1.702 x))")
    says("head h owns columns h·d to (h + 1)·d - 1", "Σᵤ softmaxᵤ(qₜ·kᵤ / √d) vᵤ")
    says("Otherwise: `vision_model.*` in the folder `mm_vision_tower`")
    golden = stages("ldp")
    w = weights("ldp", "vision_model.encoder.layers.0.", "clip")
    X, row, d = golden["vision.hidden_states.0"].tolist(), 11, 4
    h = [layer_norm(x, w, "layer_norm1") for x in X]
    q, k, v = ([linear(x, w, f"self_attn.{n}_proj") for x in h] for n in "qkv")
    heads = [slice(d * i, d * i + d) for i in range(4)]
    attended = [a for at in heads for a in head(q[row][at], [x[at] for x in k], [x[at] for x in v])]
    x = add(X[row], linear(attended, w, "self_attn.out_proj"))
    inner = [a / (1 + exp(-1.702 * a)) for a in linear(layer_norm(x, w, "layer_norm2"), w, "mlp.fc1")]
    agree(add(x, linear(inner, w, "mlp.fc2")), golden["vision.hidden_states.1"][row])


@pytest.mark.parametrize("name", ["ldpv2", "mlp"])
def test_which_state_the_features_are(name: str) -> None:
    says(
        "-2 leaves out the last block. **No LayerNorm follows.**",
        "`patch` drops the class token, `cls_patch` keeps it",
    )
    golden, state = stages(name), sum(key.startswith("vision.hidden_states.") for key in stages(name)) - 2
    kept = settings(name)["mm_vision_select_feature"] == "cls_patch"
    features = golden[f"vision.hidden_states.{state}"][0 if kept else 1 :]
    assert np.array_equal(golden["vision.features"], features)


# ---------------------------------------------------------------- projectors


def test_ldpnetv2() -> None:
    says("GELU(x) = x/2 · (1 + erf(x / √2))", "rows floor(i g / 12) to ceil((i + 1) g / 12) - 1")
    says(
        "y[c, i, j] = Σᵤᵥ weight[c, 0, u, v] x[c, stride·i + u - 1, stride·j + v - 1]",
        "depthwise, stride 1, with bias → peg.peg",
    )
    w, golden = weights("ldpv2", "model.mm_projector."), stages("ldpv2")
    hidden = linear(golden["vision.features"][40].tolist(), w, "mlp.mlp.0")
    x = [a / 2 * (1 + erf(a / sqrt(2))) for a in hidden]
    agree(linear(x, w, "mlp.mlp.2"), golden["projector.mlp"][40])

    g, tokens, pooled = 13, golden["projector.mlp"], golden["projector.dwn.dwn"]
    for i, j in ((0, 0), (3, 11), (11, 5)):
        rows, cols = (range(a * g // 12, ceil((a + 1) * g / 12)) for a in (i, j))
        window = [tokens[g * row + col] for row in rows for col in cols]
        agree(
            [sum(map(float, values)) / len(window) for values in zip(*window, strict=True)], pooled[:, i, j]
        )

    weight, bias = w("peg.peg.0.weight"), w("peg.peg.0.bias")
    for i, j in ((0, 0), (5, 11), (11, 3)):
        y = [convolved(pooled, weight, c, i, j, 1) + bias[c] for c in range(16)]
        agree(y, golden["projector.peg.peg"][:, i, j])
        agree(add(y, pooled[:, i, j]), golden["projector.output"][12 * i + j])


def test_a_block_of_ldpnet() -> None:
    says("x = 0.1(0.0(x))", "x = x · hs(x)", "x = x · hs(1.fc2(max(1.fc1(m), 0)))", "x = 2.1(2.0(x))")
    says("hs(x) = min(max(x + 3, 0), 6) / 6", "B2, with stride 2", "No residual here", "eps 1e-5")
    says("b = max(8, 8 · ((a + 4) div 8)) outputs where a = D div 4, and b + 8 if b < 0.9 a")
    D, g, golden = 36, 4, stages("ldp")
    w = weights("ldp", "model.mm_projector.model.mb_block.2.block.")
    assert len(w("1.fc1.bias")) == 16

    def hs(x: float) -> float:
        return min(max(x + 3, 0), 6) / 6

    x, filters = golden["projector.model.mb_block.1"], w("0.0.weight")
    assert ceil(x.shape[1] / 2) == g
    picture = []
    for i, j in np.ndindex(g, g):
        y = layer_norm([convolved(x, filters, c, i, j, 2) for c in range(D)], w, "0.1")
        picture.append([a * hs(a) for a in y])
    m = [sum(values) / len(picture) for values in zip(*picture, strict=True)]
    factors = [hs(a) for a in linear([max(a, 0) for a in linear(m, w, "1.fc1")], w, "1.fc2")]
    for token, y in enumerate(picture):
        y = [a * f for a, f in zip(y, factors, strict=True)]
        agree(layer_norm(linear(y, w, "2.0", bias=False), w, "2.1"), golden["projector.output"][token])


# ---------------------------------------------------------------- prompt


def tokens(text: str, pieces: dict[str, int], scores: Numbers) -> list[int]:
    """Ids of a text without added tokens, joined as the page says."""
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while pairs := [
        (scores[pieces[a + b]], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pieces
    ]:
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    spelt = [[p] if p in pieces else [f"<0x{byte:02X}>" for byte in p.encode()] for p in parts]
    return [pieces[p] for part in spelt for p in part]


def test_joining_pieces() -> None:
    says(
        "Begin with single characters.",
        "join the pair whose piece has the highest score, the leftmost among equals",
    )
    says("becomes its UTF-8 bytes, `<0xNN>`", "Write `▁` (U+2581) for each space and one more in front")
    model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "tokenizer" / "tokenizer.model"))
    pieces = {
        model.id_to_piece(i): i for i in range(len(model)) if not model.is_control(i) and i != model.unk_id()
    }
    scores = [model.get_score(i) for i in range(len(model))]
    for text in (
        "\nWhat is it? ASSISTANT:",
        "the  theory of thinness",
        "",
        " ",
        "a ñ 🦙",
        "aaaaaaa",
        "ssssss",
    ):
        assert tokens(text, pieces, scores) == model.encode(text), text


# ---------------------------------------------------------------- decoder


def rotated(x: Vector, t: int) -> Vector:
    d, y = len(x), [0.0] * len(x)
    for i in range(d // 2):
        e = np.float32(2 * i) / np.float32(d)
        f = np.float32(1) / np.float32(10000.0 ** float(e))
        a = float(np.float32(t) * f)
        y[i] = x[i] * cos(a) - x[i + d // 2] * sin(a)
        y[i + d // 2] = x[i + d // 2] * cos(a) + x[i] * sin(a)
    return y


def test_a_block_of_the_decoder() -> None:
    says("RMS(x) = x / √(mean(x²) + rms_norm_eps) · weight", "row t sees u ≤ t only")
    says(
        "query head h reads key-value head h div (H / KV)",
        "a = float32(t) · f",
        "f = 1 / float32(theta^e in float64)",
    )
    says("y[i] = x[i] cos a - x[i + d/2] sin a", "y[i + d/2] = x[i + d/2] cos a + x[i] sin a")
    says("h = post_attention_layernorm(X); X = X + down_proj(silu(gate_proj(h)) · up_proj(h))")
    w, golden, t, d, H, KV = weights("ldpv2", "model.layers.0."), stages("ldpv2"), 300, 4, 4, 2
    x = golden["decoder.hidden_states.0"][t].tolist()
    h = rms_norm(x, w("input_layernorm.weight"))
    q, k, v = (linear(h, w, f"self_attn.{n}_proj", bias=False) for n in "qkv")
    keys, values = golden["decoder.keys.0"], golden["decoder.values.0"]
    for j in range(KV):
        agree(rotated(k[d * j : d * j + d], t), keys[j, t])
        agree(v[d * j : d * j + d], values[j, t])
    attended: Vector = []
    for j in range(H):
        shared = j // (H // KV)
        attended += head(
            rotated(q[d * j : d * j + d], t), keys[shared, : t + 1].tolist(), values[shared, : t + 1].tolist()
        )
    x = add(x, linear(attended, w, "self_attn.o_proj", bias=False))
    h = rms_norm(x, w("post_attention_layernorm.weight"))
    gate, up = (linear(h, w, f"mlp.{n}_proj", bias=False) for n in ("gate", "up"))
    inner = [a / (1 + exp(-a)) * b for a, b in zip(gate, up, strict=True)]
    agree(add(x, linear(inner, w, "mlp.down_proj", bias=False)), golden["decoder.hidden_states.1"][t])


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
def test_what_the_rows_of_decode_follow(name: str) -> None:
    says("Row k of `decode.logits`** is what feeding `generated_ids[k]` at position T + k gives, for every k")
    says("row 0 follows the first generated id, which the last row of `logits` has chosen")
    golden = stages(name)
    ids, rows = golden["generated_ids"].tolist(), golden["decode.logits"]
    assert len(rows) == len(ids)
    assert [golden["logits"][-1].argmax(), *rows.argmax(-1)[:-1]] == ids
    embedded = weights(name, "model.")("embed_tokens.weight")[ids]
    assert golden["decode.hidden_states.1"].shape == embedded.shape


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
def test_the_page_names_every_tensor(name: str) -> None:
    words = set(re.findall(r"\w+", PAGE))
    for tensor in read_safetensors(DATA / "golden" / name / "model.safetensors"):
        assert set(re.findall(r"[a-z]\w*", tensor)) <= words, tensor
        if "mm_projector" in tensor:
            path = re.sub(r".*(mm_projector|\.block)\.", "", tensor).rpartition(".")[0]
            assert re.search(rf"(?<![\w.]){re.escape(path)}(?![\w]|\.\w)", PAGE), tensor
