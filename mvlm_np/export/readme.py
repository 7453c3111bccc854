"""The page beside exported graphs: what they take and give, a loop that runs them, and how to check them."""

from collections.abc import Iterator, Mapping

from mvlm_np.checkpoints.checkpoint import Checkpoint
from mvlm_np.export.graph import Finished, Value
from mvlm_np.export.tracing import Form

VISION = """
## The picture

{input}
Padding and the filter matter: a picture that is scaled in another way gives other answers. docs/spec.md of
mvlm-np says to the last bit how it is done.

    import numpy as np
    import onnxruntime

    vision = onnxruntime.InferenceSession("vision.onnx")
    (tokens,) = vision.run(["projector.output"], {{"{name}": picture}})  # (1, tokens, width)
"""

INPUTS = {
    "float": """\
`pixel_values` is the picture on a square of its longer side, scaled to {side} × {side} and normalised, in
planes of red, green and blue: `mvlm_np.inputs.image.preprocess` makes it.""",
    "uint8": """\
`picture` is the picture on a square of its longer side, scaled to {side} × {side}: RGB of 8 bits, pixel by
pixel. The graph normalises it, in float32.""",
}

DECODER = """
## The decoder

A call computes {rows} positions behind `position` earlier ones. Where there are several graphs, one with
more positions a call reads prompts, the one with 1 generates. The cache is the caller's. It begins with
zeros; after each call the caller stores `decoder.keys.i` and `decoder.values.i` behind what is there. A last
call with fewer rows is filled up with anything, and what it gives for these rows is dropped. Positions count
from 0, those of pictures too. The cache holds {capacity} of them.

    import numpy as np
    import onnxruntime

    decoder = onnxruntime.InferenceSession("{file}")
    inputs = {{i.name: i for i in decoder.get_inputs()}}
    rows = inputs["inputs_embeds"].shape[1]
    cache = {{name: np.zeros(i.shape, np.{dtype}) for name, i in inputs.items() if name.startswith("past.")}}

    def forward(x, position):
        "Logits (T, vocabulary) of the next T positions, x (T, {width}); the cache grows by T."
        logits = []
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            filled = np.zeros((1, rows, x.shape[1]), np.{dtype})
            filled[0, : len(part)] = part
            at = np.array([[position + start]])
            out = decoder.run(None, {{"inputs_embeds": filled, "position": at, **cache}})
            out = dict(zip([o.name for o in decoder.get_outputs()], out))
            logits.append(out["logits"][0, : len(part)])
            for name, stored in cache.items():
                new = out[name.replace("past", "decoder")][:, :, : len(part)]
                stored[:, :, position + start : position + start + len(part)] = new
        return np.concatenate(logits)

    table = np.load("embed_tokens.npy", mmap_mode="r")  # row i stands for token id i

    def answer(x, end, most):
        "Greedy: the ids that follow the positions x (T, {width}), up to the id `end` or to `most` of them."
        ids, position, logits = [], len(x), forward(x, 0)
        while True:
            ids.append(int(logits[-1].argmax()))
            if ids[-1] == end or len(ids) == most:
                return ids
            logits = forward(table[ids[-1:]], position)
            position += 1

x is made of rows of `embed_tokens.npy` for the ids of the prompt, with the picture's tokens in their place;
docs/spec.md says what the prompt is. The id {end} ends an answer.
"""

CHECK = """
## Is it right?

With `--dump`, every stage of the model is an output, named as in a golden:

    mvlm golden record MODEL --image photo.png --question "What is this?" --float64 -o golden.safetensors
    mvlm export MODEL dump --to onnx --dump{options}
    mvlm golden compare golden.safetensors outputs.npz{kind}

`outputs.npz` is what the graphs in `dump` give, each output under its own name. Feed the vision graph the
golden's `pixel_values`, the decoder its `inputs_embeds`, and put the rows of its calls behind each other.
tools/ports/onnx_runtime.py of mvlm-np does so in ONNX Runtime; do the same in yours. `mvlm golden compare`
names the first stage that is wrong, `mvlm golden explain` the mistake; docs/is-my-port-right.md is the guide.

## To other runtimes

All shapes are fixed, no value has more than 4 axes, and the vision graph has no Gather. ONNX Runtime was
tried, in float32 and float16. Of others nothing is promised: compare there.

- [ONNX Runtime](https://onnxruntime.ai/docs), and through it
  [Qualcomm's QNN](https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html)
- [OpenVINO](https://docs.openvino.ai), which on some processors computes in bfloat16 unless
  INFERENCE_PRECISION_HINT is f32
- [TensorRT](https://docs.nvidia.com/deeplearning/tensorrt)
- [Rockchip's RKNN](https://github.com/airockchip/rknn-toolkit2) takes opsets 12 to 19
- [Hailo](https://hailo.ai/developer-zone). If Erf is refused there: `--opset 20 --gelu op`, or the
  approximation `--gelu tanh`
"""

PIXELS = """
The dump takes `pixel_values`, although the graph here takes 8-bit pixels: give both the same picture.
"""

TANH = """
GELU is written in its tanh form (`--gelu tanh`), which is an approximation: `mvlm golden compare` finds it.
"""


def text(checkpoint: Checkpoint, graphs: Mapping[str, Finished], form: Form) -> str:
    """The page, in Markdown.

    graphs  by the names of their files, without ending
    """
    config = checkpoint.config
    parts = [f"# {checkpoint.path.name} as ONNX\n"]
    parts.append(f"\nOpset {form.opset}, {form.dtype}. Written by `mvlm export` of mvlm-np.\n")
    if form.gelu == "tanh":
        parts.append(TANH)
    parts += [_table(name, graph) for name, graph in graphs.items()]
    if "vision" in graphs:
        assert config.vision is not None
        about = INPUTS[form.input].format(side=config.vision.image_size)
        parts.append(VISION.format(input=about, name=graphs["vision"].inputs[0].name))
    if decoders := [name for name in graphs if name != "vision"]:
        shapes = {value.name: value.shape for value in graphs[decoders[0]].inputs}
        parts.append(
            DECODER.format(
                rows=" or ".join(name.removeprefix("decoder-") for name in decoders),
                file=f"{decoders[0]}.onnx",
                capacity=shapes["past.keys.0"][2],
                width=config.decoder.hidden_size,
                end=" or ".join(map(str, config.decoder.end_tokens)),
                dtype=form.dtype,
            )
        )
    usual, names = Form(), ("opset", "dtype", "gelu", "layer_norm")
    given = [name for name in names if getattr(form, name) != getattr(usual, name)]
    options = "".join(f" --{name.replace('_', '-')} {getattr(form, name)}" for name in given)
    kind = " --class float16" if form.dtype == "float16" else ""
    parts.append(CHECK.format(options=options, kind=kind))
    if form.input == "uint8":
        parts.append(PIXELS)
    return "".join(parts)


def _table(name: str, graph: Finished) -> str:
    """What a graph takes and gives."""
    lines = [*_rows("in", graph.inputs), *_rows("out", graph.outputs)]
    head = f"\n## {name}.onnx\n\n| | name | shape | type |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(lines) + "\n"


def _rows(what: str, values: list[Value]) -> Iterator[str]:
    """A row for each name; of names that differ in their number only, one for all."""
    last = {value.name.rstrip("0123456789"): value.name for value in values}
    for value in values:
        stem = value.name.rstrip("0123456789")
        if value.name in (stem, f"{stem}0"):
            name = f"`{value.name}`" + (f" … `{last[stem]}`" if last[stem] != value.name else "")
            yield f"| {what} | {name} | {' × '.join(map(str, value.shape))} | {value.dtype} |"
