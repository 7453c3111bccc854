"""The Python of README and docs runs: with the model in the box, under the names that the pages use."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

import mvlm_np
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.cli import main
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from tests.conftest import DATA, ROOT
from tools.parts.torch_projectors import build_projector
from tools.parts.torch_reference import PROJECTOR, TOWER, Reference, llama_config, pretrained, read_json

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: in it is photo.jpg. Models are loaded as they would be if they were large."""
    pytest.importorskip("numba")
    shutil.copy(PICTURES / "0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    load = partial(mvlm_np.load, backend="numba", precision="int8")
    monkeypatch.setattr(mvlm_np, "load", load)
    return tmp_path


def called(here: Path, *names: str) -> None:
    """The model in the box has these names."""
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(MODEL)


def python_blocks(page: str) -> list[Example]:
    return [*Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / page).examples()]


def run(page: str) -> dict[str, Any]:
    """Runs the Python blocks of a page. Returns what they define."""
    blocks = python_blocks(page)
    for block in blocks:
        block.evaluate()
    return blocks[0].document.namespace


def test_no_page_with_python_is_forgotten() -> None:
    """docs/walk.md has tests of its own; of the port guide, the block that needs `onnx` is not run."""
    pages = {str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
    own = {
        "README.md",
        *(f"docs/{name}.md" for name in ("batch", "look", "json", "speculation", "evaluation")),
    }
    others = {"docs/walk.md", "docs/is-my-port-right.md"}
    assert {page for page in pages if python_blocks(page)} == own | others


def test_readme(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    found = run("README.md")
    assert capsys.readouterr().out.startswith(found["model"].ask("photo.jpg", "What animal is this?") + "\n")
    chat, turns = found["chat"], found["turns"]
    questions = ("Is it new?", "Who made it?", "What is it for?")
    assert [turn.text for turn in turns] == [chat.fork().ask(question) for question in questions]
    assert len(chat.history) == 2 and all(turn.text for turn in turns)


def test_looking_at_an_answer(here: Path) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    found = run("docs/look.md")
    assert 0 < found["step"].probability <= 1


def test_answers_as_json(here: Path) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    answer = run("docs/json.md")["answer"]
    assert list(answer) == ["lamp", "colour", "value"] and answer["lamp"] in ("on", "off")
    assert 0 <= answer["value"] <= 100 and len(answer["colour"]) <= 20


def test_drafts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called(here, "SMALL", "LLAMA-68M")
    plain = run("docs/speculation.md")["model"].ask("photo.jpg", "What is in the picture?")
    assert capsys.readouterr().out == f"{plain}\n" * 2


def test_many_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("docs/batch.md")
    model, rows = found["model"], found["rows"]
    answers = [model.ask(*row, max_new_tokens=20) for row in rows]
    assert len(answers) == 2 and capsys.readouterr().out.splitlines() == answers


def test_scores_of_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "benchmark_data").symlink_to(DATA / "evaluation")
    shutil.copy(DATA / "evaluation" / "gqa" / "predictions" / "main.jsonl", "answers.jsonl")
    found = run("docs/evaluation.md")
    assert found["worth"].name == "Accuracy" and len(found["wrong"]) == 10


def test_the_stages_of_a_port_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    golden = DATA / "golden" / "ldpv2" / "golden-0.safetensors"
    stages = read_safetensors(golden)
    inputs = {name: torch.tensor(stages[name].raw) for name in ("pixel_values", "input_ids")}
    blocks = python_blocks("docs/is-my-port-right.md")
    (block,) = (block for block in blocks if "register_forward_hook" in block.parsed)
    block.document.namespace |= {"model": Published(golden.parent), "inputs": inputs}
    block.evaluate()
    assert main(["golden", "compare", str(golden), "dumps.safetensors"]) == 0
    dumped = read_safetensors(Path("dumps.safetensors"))
    assert {"vision.hidden_states.0", "projector.output", "logits"} < dumped.keys()


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
