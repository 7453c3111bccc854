"""docs/is-my-port-right.md: its recipes run, as they stand there, and what they write is judged."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.cli import main
from mvlm_np.converting import convert_to_gguf
from mvlm_np.golden.compare.candidates import read_candidate
from mvlm_np.golden.compare.comparison import compare
from mvlm_np.golden.format import read_golden
from mvlm_np.inputs.image import open_image, padded
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from tests.conftest import DATA, ROOT, shared_path
from tests.llama_cpp import llama_cpp_builds
from tools.llama_cpp_vision import compiled
from tools.parts.torch_projectors import build_projector
from tools.parts.torch_reference import PROJECTOR, TOWER, Reference, llama_config, pretrained, read_json

PAGE = (ROOT / "docs" / "is-my-port-right.md").read_text("utf-8")
SMALL = DATA / "golden" / "ldpv2"
GOLDEN = SMALL / "golden-0.safetensors"

pytestmark = pytest.mark.xdist_group("ports")


def section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    (found,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", PAGE, re.M | re.S)
    return found


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)


DUMP = blocks("2. Write your stages to files", "c")[0]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: from here, the small model lies where the page says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "dumps").mkdir()
    return tmp_path


def judged(dump: str, *more: str) -> int:
    """The exit code of `mvlm golden compare`: 0 right, 1 wrong."""
    return main(["golden", "compare", str(GOLDEN), dump, *more])


def dumped(dump: str) -> set[str]:
    return set(read_candidate(Path(dump), read_golden(GOLDEN).names).stages)


# ---------------------------------------------------------------- C


@cache
def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_c() -> None:
    """It is right as it stands, and wrong with the weight transposed."""
    (read,) = blocks("From plain C", "python")
    exec(read, {})
    (program,) = blocks("From plain C", "c")
    transposed = program.replace("weight[n * V + k]", "weight[k * D + n]")
    assert transposed != program
    for code, wanted in ((program, 0), (transposed, 1)):
        Path("port.c").write_text(DUMP + code)
        subprocess.run([compiler("gcc"), "-O1", "port.c", "-o", "port"], check=True)
        subprocess.run(["./port"], check=True)
        assert dumped("dumps") == {"projector.mlp.mlp.0"}
        assert judged("dumps") == wanted


# ---------------------------------------------------------------- ONNX Runtime, OpenVINO


def exported() -> None:
    pytest.importorskip("onnx")
    from mvlm_np.export.exporting import Export, export

    export(open_checkpoint(SMALL), Path("graphs"), Export(parts=("vision",)))


@pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
def test_runtimes_of_onnx(runtime: str) -> None:
    pytest.importorskip(runtime.replace(" ", "").lower())
    exported()
    (block,) = blocks(f"From {runtime}", "python")
    exec(block, {})
    assert dumped("dump.npz") == {"vision.hidden_states.1"}
    assert judged("dump.npz") == 0
    last = block.replace('"vision.hidden_states.1": "Add_37"', '"vision.hidden_states.1": "Add_69"')
    exec(last, {})  # block 1's output in place of block 0's
    assert judged("dump.npz") == 1


# ---------------------------------------------------------------- JAX, PyTorch


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    from tools.ports.jax_port import Port

    names: dict[str, Any] = {}
    keep, run = blocks("From JAX", "python")
    exec(keep, names)
    stages = read_golden(GOLDEN).stages
    see = jax.jit(Port(SMALL, names["keep"]).see)
    exec(run, names | {"see": see, "pixels": stages["pixel_values"]})
    assert {"vision.hidden_states.0", "projector.peg.peg", "projector.output"} < dumped("dump.npz")
    assert judged("dump.npz") == 0
    project = jax.jit(Port(SMALL, names["keep"], "gelu-default").project)
    exec(run, names | {"see": project, "pixels": stages["vision.features"]})
    assert judged("dump.npz") == 1


def test_pytorch() -> None:
    stages = read_safetensors(GOLDEN)
    inputs = {name: torch.tensor(stages[name].raw) for name in ("pixel_values", "input_ids")}
    (block,) = blocks("From PyTorch", "python")
    exec(block, {"model": Published(SMALL), "inputs": inputs})
    assert {"vision.hidden_states.0", "projector.output", "logits"} < dumped("dumps.safetensors")
    assert judged("dumps.safetensors") == 0


class Published(torch.nn.Module):
    """A model of transformers' parts under the names that they have in the published code."""

    def __init__(self, folder: Path):
        super().__init__()
        reference = Reference(folder)
        self.decoder = pretrained(LlamaForCausalLM, llama_config(reference.config), reference.state(""))
        self.model, self.lm_head = self.decoder.model, self.decoder.lm_head
        settings = CLIPVisionConfig(**read_json(folder / "clip" / "config.json")["vision_config"])
        self.tower = pretrained(CLIPVisionModel, settings, reference.state(TOWER))
        kind, D = reference.config["mm_projector_type"], reference.config["hidden_size"]
        self.model.mm_projector = build_projector(kind, settings.hidden_size, D)
        self.model.mm_projector.load_state_dict(reference.state(PROJECTOR))

    def get_vision_tower(self) -> Any:
        return SimpleNamespace(vision_tower=SimpleNamespace(vision_model=self.tower))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> None:
        features = self.tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
        at = input_ids[0].tolist().index(IMAGE_TOKEN)
        before, after = (self.model.embed_tokens(ids) for ids in (input_ids[:, :at], input_ids[:, at + 1 :]))
        self.decoder(inputs_embeds=torch.cat([before, self.model.mm_projector(features), after], 1))


# ---------------------------------------------------------------- llama.cpp

# Around the page's two blocks: a picture through mtmd, then the golden's embeddings through the decoder.
HARNESS = """
#include "llama.h"
#include "mtmd.h"
#include "mtmd-helper.h"
#include <cstring>
DUMP
CALLBACK
int main(int, char ** argv) {
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    mtmd_context_params of_picture = mtmd_context_params_default();
    of_picture.use_gpu = of_picture.warmup = false;
    of_picture.cb_eval = on_tensor;
    of_picture.cb_eval_user_data = (void *) vision_stage;
    mtmd_context * ctx = mtmd_init_from_file(argv[2], model, of_picture);
    mtmd_bitmap * picture = mtmd_helper_bitmap_init_from_file(ctx, argv[3], false, {}).bitmap;
    mtmd_input_text text = {mtmd_default_marker(), strlen(mtmd_default_marker()), true, true};
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    const mtmd_bitmap * pictures[] = {picture};
    if (mtmd_tokenize(ctx, chunks, &text, pictures, 1)) return 1;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        if (mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_IMAGE) continue;
        if (mtmd_encode_chunk(ctx, chunk)) return 1;
        FILE * f = fopen("embeddings.bin", "wb");
        EMBEDDINGS
        fclose(f);
    }
    const int T = atoi(argv[5]), D = llama_model_n_embd(model);
    std::vector<float> x(T * D);
    FILE * f = fopen(argv[4], "rb");
    if (fread(x.data(), sizeof(float), x.size(), f) != x.size()) return 1;
    llama_context_params of_text = llama_context_default_params();
    of_text.n_ctx = of_text.n_batch = of_text.n_ubatch = T;
    of_text.cb_eval = on_tensor;
    of_text.cb_eval_user_data = (void *) decoder_stage;
    llama_context * decoder = llama_init_from_model(model, of_text);
    llama_batch batch = llama_batch_init(T, D, 1);
    batch.n_tokens = T;
    memcpy(batch.embd, x.data(), x.size() * sizeof(float));
    for (int i = 0; i < T; i++) {
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    return llama_decode(decoder, batch);
}
"""


def test_llama_cpp() -> None:
    """As it is and edited: every stage that the callback names, and the embeddings."""
    source, *builds = llama_cpp_builds()
    folder = shared_path("goldens/v2-256")
    checkpoint, golden = open_checkpoint(folder), read_golden(folder / "golden-0.safetensors")
    convert_to_gguf(checkpoint, Path("pair"), "float16")
    padded(open_image(folder / "chelsea.png", exif=False), checkpoint.config.image).save("square.png")
    embeds, layers = golden.stages["inputs_embeds"], checkpoint.config.decoder.num_hidden_layers
    embeds.tofile("embeds.f32")
    embeddings, callback = blocks("From llama.cpp", "cpp")
    callback = callback.replace("LAYERS = 24", f"LAYERS = {layers}")
    parts = {"DUMP": DUMP, "CALLBACK": callback, "EMBEDDINGS": embeddings}
    Path("port.cpp").write_text(re.sub("|".join(parts), lambda found: parts[found[0]], HARNESS))
    compiled(source, builds[0], Path("port"), Path("port.cpp"))
    command = ["./port", "pair/model-F16.gguf", "pair/mmproj-model-f16.gguf", "square.png", "embeds.f32"]
    wanted = {f"vision.hidden_states.{i}" for i in range(checkpoint.config.vision_layers + 1)} | {"logits"}
    for i in range(layers):
        wanted |= {f"decoder.hidden_states.{i + 1}", f"decoder.values.{i}"}
    for build, first_wrong in zip(builds, ("vision.hidden_states.0", None), strict=True):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(build)}
        subprocess.run([*command, str(len(embeds))], env=environment, check=True, capture_output=True)
        candidate = read_candidate(Path("dumps"), golden.names)
        assert set(candidate.stages) == wanted
        result = compare(golden, candidate, "float16")
        assert (result.first_wrong.name if result.first_wrong else None) == first_wrong
        last = compare(golden, read_candidate(Path("embeddings.bin"), golden.names), "float16")
        assert last.right == (first_wrong is None)
