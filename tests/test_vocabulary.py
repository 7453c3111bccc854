"""Models and tokenizers that have not as many ids as each other."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.cli import main
from mvlm_np.converting import convert_to_gguf
from mvlm_np.errors import PromptError, TokenizerError
from mvlm_np.look.looking import look
from tests.checkpoints.adapters import BASE
from tests.conftest import DATA

PICTURE = str(DATA / "golden" / "picture.png")
ROWS = 72  # of the model, and tokens of its tokenizer


def copy(folder: Path) -> Path:
    return shutil.copytree(BASE, folder)


def padded(folder: Path, value: float, more: int = 56) -> Path:
    """The model with further rows in both tables, all of one value."""
    copy(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = tensors[name]
        tensors[name] = rows.new_full((ROWS + more, rows.shape[1]), value)
        tensors[name][:ROWS] = rows
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": ROWS + more}))
    return folder


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.5, "top_k": 0, "seed": 3}, {"num_beams": 3},
    {"num_beams": 2, "temperature": 1.0, "seed": 4},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("value", [0.0, 9.0, -9.0])
def test_ids_that_the_tokenizer_does_not_have_are_never_chosen(
    tmp_path: Path, value: float, settings: dict[str, float]
) -> None:
    """Rows of 9 and of -9: whatever the hidden states are, one of the two would win."""
    model = mvlm_np.load(padded(tmp_path / "padded", value), backend="numpy")
    expected = mvlm_np.load(BASE, backend="numpy")
    given = {"max_new_tokens": 24, **settings}
    assert model.ask(PICTURE, "What is this?", **given) == expected.ask(PICTURE, "What is this?", **given)
    stages = model.trace(PICTURE, "What is this?", max_new_tokens=8)
    assert stages["generated_ids"].max() < ROWS
    assert stages["logits"].shape[-1] == ROWS + 56  # as the model computed them
    (note,) = model.tokenizer.notes()
    assert note == "the model has 56 ids more than the tokenizer; they are never chosen"


@pytest.mark.parametrize("value", [9.0, -9.0])
def test_a_look_chooses_among_the_same_ids(tmp_path: Path, value: float) -> None:
    folders = padded(tmp_path / "padded", value), BASE
    models = (mvlm_np.load(folder, backend="numpy") for folder in folders)
    seen, expected = (look(model, PICTURE, "What is this?", max_new_tokens=12) for model in models)
    for one, other in zip(seen.answered.steps, expected.answered.steps, strict=True):
        assert one.token == other.token
        assert one.likeliest.ids.tolist() == other.likeliest.ids.tolist()
        assert one.lens.ids.max() < ROWS


def test_a_token_beyond_the_model_is_told_where_it_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(tmp_path / "model")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": ROWS}))
    model = mvlm_np.load(folder, backend="numpy")
    expected = mvlm_np.load(BASE, backend="numpy")
    assert model.ask(None, "A word", max_new_tokens=4) == expected.ask(None, "A word", max_new_tokens=4)
    with pytest.raises(PromptError, match=rf"^the text: '<pad>': is token {ROWS} .*added_tokens\.json$"):
        model.ask(None, "What is <pad>?")
    convert_to_gguf(open_checkpoint(folder), tmp_path / "pair", "float16")
    (written,) = (tmp_path / "pair").glob("model*.gguf")
    assert mvlm_np.load(written, backend="numpy").tokenizer.vocab_size == ROWS
    assert main(["inspect", str(folder)]) == 0
    assert f"the model has no row for '<pad>' = {ROWS}; no text may contain one" in capsys.readouterr().out


def test_another_models_tokenizer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(tmp_path / "model")
    shutil.copy(DATA / "tokenizer" / "tokenizer.model", folder)
    with pytest.raises(TokenizerError, match=rf"model: has 640 pieces, wanted at most the model's {ROWS}"):
        _ = mvlm_np.load(folder, backend="numpy").tokenizer
    assert main(["inspect", str(folder)]) == 1
    assert "problem: " in capsys.readouterr().out


def test_each_of_several_end_tokens_ends_an_answer(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    expected = mvlm_np.load(BASE, backend="numpy")
    ids = expected.generate([1, 5, 9], max_new_tokens=12)
    end = ids[5]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, int(end)]}))
    model = mvlm_np.load(folder, backend="numpy")
    assert model.config.decoder.eos_token_id == (2, end)
    assert model.generate([1, 5, 9], max_new_tokens=12) == ids[: ids.index(end) + 1]


def test_a_model_of_zeros_is_an_error_and_no_empty_answer(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(mvlm_np.errors.GenerationError, match="the same number for every token; weights are"):
        mvlm_np.load(folder, backend="numpy").ask(None, "Hello?")


def test_a_gguf_without_its_mmproj_says_what_it_lacks(tmp_path: Path) -> None:
    convert_to_gguf(open_checkpoint(BASE), tmp_path / "pair", "float16")
    (path,) = (tmp_path / "pair").glob("model*.gguf")
    alone = shutil.copy(path, tmp_path / "alone.gguf")
    with pytest.raises(PromptError, match="a GGUF needs its mmproj, and none lies beside it: name it with"):
        mvlm_np.load(alone, backend="numpy").ask(PICTURE, "What is this?")
