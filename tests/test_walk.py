"""docs/walk.md runs from top to bottom, shows our own code word for word, and tells the right sizes."""

import re
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import mvlm_np
from mvlm_np.checkpoints.checkpoint import StoredTokenizer
from mvlm_np.config import FAMILY, Config
from mvlm_np.demo import MODEL
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import Tokenizer, tokenize_prompt
from mvlm_np.kv_cache import bytes_per_position
from mvlm_np.model import MobileVLM
from mvlm_np.projector import image_tokens
from tests.conftest import ROOT, shared_path
from tools.walk_pictures import FOLDER, PICTURE, QUESTION, draw

WALK = ROOT / "docs" / "walk.md"
LARGE, LARGE_IDS = FAMILY["MobileVLM_V2-1.7B"], 51  # how many ids the prompt has with LLaMA's tokenizer
Facts = dict[str, str]

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def model() -> MobileVLM:
    return mvlm_np.load(MODEL)


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> Document:
    """The page, ready to run: what stands in a block of text must be what was printed since the last one."""

    def shown(example: Example) -> None:
        assert capsys.readouterr().out == example.parsed, f"{example.path}:{example.line}"

    return Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("text", shown)]).parse(WALK)


def run(page: Document) -> dict[str, Any]:
    for example in page.examples():
        example.evaluate()
    return page.namespace


def test_every_block_runs_and_prints_what_the_page_shows(
    page: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    run(page)
    assert capsys.readouterr().out == ""


def test_code_under_the_name_of_a_file_stands_in_it_word_for_word(page: Document) -> None:
    blocks = [example.parsed for example in page.examples() if example.parsed.startswith("# mvlm_np/")]
    assert len(blocks) >= 15
    for name, code in (block.removeprefix("# ").split("\n", 1) for block in blocks):
        lines = (ROOT / name).read_text("utf-8").splitlines(keepends=True)
        n = code.count("\n")
        assert code in [dedent("".join(lines[i : i + n])) for i in range(len(lines))], f"{name}\n{code}"


def test_its_tables_tell_the_sizes_of_both_models(page: Document, model: MobileVLM) -> None:
    multiply_adds = run(page)["multiply_adds"]
    stages = model.trace(PICTURE, QUESTION)
    here = facts(model.config, stages["input_ids"].size, multiply_adds)
    large = facts(LARGE, LARGE_IDS, multiply_adds)
    for name in (name for name in here if name.startswith("`")):
        assert here[name] == str(stages[name.strip("`")].shape[1:])
    tables = re.findall(
        r"^\| \| here \| V2-1\.7B \|\n.*\n((?:\|.*\n)+)", WALK.read_text("utf-8"), re.MULTILINE
    )
    rows = [row.strip("| ").split(" | ") for table in tables for row in table.splitlines()]
    assert rows == [[name, here[name], large[name]] for name, *_ in rows]
    assert {name for name, *_ in rows} == here.keys()


def facts(config: Config, ids: int, multiply_adds: Callable[[Config, int], dict[str, int]]) -> Facts:
    """What the page's tables say of a model, by the names of their rows; `ids` is the prompt's length."""
    v, d = config.vision, config.decoder
    assert v is not None
    g, V, D, H, KV = v.grid, v.hidden_size, d.hidden_size, d.num_attention_heads, d.num_key_value_heads
    P, images = g * g, image_tokens(config)
    T = ids - 1 + images
    layer = 2 * D * D + 2 * D * KV * d.head_dim + 3 * D * d.intermediate_size
    read = 4 * (d.num_hidden_layers * layer + D * d.vocab_size)
    shapes = {
        "pixel_values": (3, v.image_size, v.image_size),
        "vision.hidden_states.0": (P + 1, V),
        "vision.features": (P, V),
        "projector.mlp": (P, D),
        "projector.output": (images, D),
        "input_ids": (ids,),
        "inputs_embeds": (T, D),
        "decoder.hidden_states.0": (T, D),
        "decoder.keys.0": (KV, T, d.head_dim),
        "decoder.hidden_states.1": (T, D),
    }
    work = {f"multiply-adds: {k}": f"{n / 1e6:,.0f} million" for k, n in multiply_adds(config, T).items()}
    return {f"`{name}`": str(shape) for name, shape in shapes.items()} | work | {
        "patches": f"{g} × {g} of {v.patch_size} × {v.patch_size} pixels",
        "heads × size of a head": f"{v.num_attention_heads} × {V // v.num_attention_heads}",
        "inside the MLP of the tower": str((P + 1, v.intermediate_size)),
        "scores of all heads": f"{v.num_attention_heads} × {P + 1} × {P + 1}",
        "blocks that run": f"{config.vision_layers} of {v.num_hidden_layers}",
        "pieces that the tokenizer knows": f"{d.vocab_size:,}",
        "query heads × size": f"{H} × {d.head_dim}",
        "cache, a position, float32": f"{bytes_per_position(d, np.float32):,} bytes",
        "inside the MLP of the decoder": str((T, d.intermediate_size)),
        "layers": str(d.num_hidden_layers),
        "last row of `logits`": str((d.vocab_size,)),
        "weights read for it, float32": f"{read / 1e9:.1f} GB" if read > 1e9 else f"{read / 1e6:.1f} MB",
    }  # fmt: skip


def test_the_large_model_has_as_many_ids_as_the_page_says() -> None:
    tokenizer = Tokenizer(StoredTokenizer(shared_path("facts/tokenizer/tokenizer.model").read_bytes()))
    assert len(tokenize_prompt(render("v1", QUESTION), tokenizer)) == LARGE_IDS


def test_its_pictures_are_those_that_the_tool_draws(model: MobileVLM) -> None:
    drawn = draw(model)
    assert drawn.keys() == {path.name for path in FOLDER.iterdir()}
    for name, picture in drawn.items():
        kept = np.array(Image.open(FOLDER / name), np.int64)
        assert kept.shape == np.array(picture).shape
        # By a unit or two: another BLAS rounds otherwise, and so do the filters of another Pillow.
        assert np.abs(kept - np.array(picture)).max() <= 2, name


def test_its_pictures_are_small_and_described() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 150_000
    described = re.findall(r"!\[([^\]]+)\]\(pictures/walk/([\w.]+)\)", WALK.read_text("utf-8"))
    assert {name for _, name in described} == {path.name for path in FOLDER.iterdir()}
