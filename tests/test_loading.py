"""From files to a loaded model, or one error that says why not, before anything large is allocated."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mvlm_np
from mvlm_np import loading, memory
from mvlm_np.checkpoints.loader import Loader
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.tensors import Tensor
from mvlm_np.cli import main
from mvlm_np.errors import CheckpointError, ConfigError, MemoryNeeded, TokenizerError, UserError
from mvlm_np.linear import Dense
from mvlm_np.loading import bind, bound_tensors
from mvlm_np.precisions import PACKED
from tests.checkpoints.folders import config, weights, write_model, write_tower

TIED: dict[str, Any] = {"mm_vision_tower": None, "tie_word_embeddings": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny V2 model in float32."""
    write_tower(tmp_path / "clip")
    return write_model(tmp_path)


# -- Tensors ------------------------------------------------------------------------------------------


def test_all_that_is_missing_extra_and_misshapen_is_one_error(tmp_path: Path) -> None:
    state = weights()
    del state["lm_head.weight"], state["model.norm.weight"]
    state["model.mm_projector.extra"] = torch.zeros(1)
    state["model.embed_tokens.weight"] = torch.zeros(64, 512)
    state["model.mm_projector.peg.peg.0.bias"] = torch.zeros(64, 1)
    write_tower(tmp_path / "clip")
    with pytest.raises(CheckpointError) as refusal:
        mvlm_np.load(write_model(tmp_path, state))
    assert str(refusal.value) == (
        f"{tmp_path}: the tensors do not fit config.json: "
        "2 missing: model.norm.weight, lm_head.weight; "
        "1 not known: 'model.mm_projector.extra'; "
        "2 misshapen: model.mm_projector.peg.peg.0.bias is [64, 1] instead of [64], "
        "model.embed_tokens.weight is [64, 512] instead of [512, 64]; "
        "use the config.json that belongs to these weights, or download the checkpoint again"
    )


def test_nothing_is_read_before_all_tensors_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float32", lambda _: pytest.fail("a tensor was read"))
    state = weights()
    del state["lm_head.weight"]
    with pytest.raises(CheckpointError, match="1 missing"):
        mvlm_np.load(write_model(folder, state))


def test_float32_is_mapped_and_other_types_are_converted(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        state = {name: value.to(dtype) for name, value in weights(mm_vision_tower=None).items()}
        folder = write_model(tmp_path, state, mm_vision_tower=None)
        checkpoint = open_checkpoint(folder)
        tensors = bound_tensors(checkpoint)
        _, _, decoder = bind(checkpoint.config, Loader(tensors))
        query = decoder.layers[1].qkv.layers[0]
        assert isinstance(query, Dense) and query.weight.dtype == np.float32
        stored = tensors["model.layers.1.self_attn.q_proj.weight"].raw
        assert np.shares_memory(query.weight, stored) == (dtype == torch.float32)
        assert query.weight.flags.writeable == (dtype != torch.float32)


def test_the_weights_of_every_stored_type_answer_alike(tmp_path: Path) -> None:
    logits = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        state = {name: value.to(dtype) for name, value in weights(mm_vision_tower=None).items()}
        model = mvlm_np.load(write_model(tmp_path, state, mm_vision_tower=None), backend="numpy")
        logits.append(model.generate([1, 5, 9], max_new_tokens=8))
    assert logits[0] == logits[1] == logits[2]


@pytest.mark.parametrize("changes", [{}, TIED], ids=["vision", "tied, text only"])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_progress_counts_every_stored_byte_once(
    tmp_path: Path, changes: dict[str, Any], precision: Any
) -> None:
    write_tower(tmp_path / "clip")
    folder = write_model(tmp_path, **changes)
    calls: list[tuple[int, int]] = []
    mvlm_np.load(folder, precision, "numpy", progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert {total for _, total in calls} == {sum(v.nbytes for v in weights(**changes).values())}
    assert done == sorted(done) and done[-1] == calls[0][1]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_an_int8_tower_has_int8_attention(folder: Path, backend: str) -> None:
    pytest.importorskip(backend)
    for precision in (None, "int8", "int4"):
        operations = mvlm_np.load(folder, precision, backend).ops
        assert (operations.attention == operations.int8_attention) == (precision is not None)


# -- Memory -------------------------------------------------------------------------------------------


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "bind", lambda config, get: _manifest_only(config, get))


def _manifest_only(config: Any, get: Any, bind: Any = bind) -> Any:
    assert not isinstance(get, Loader), "weights were read"
    return bind(config, get)


def test_too_little_memory_is_said_before_any_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_reading(monkeypatch)
    settings, tensors = config(), bound_tensors(open_checkpoint(folder))
    needed = {p: loading.memory_needed(settings, tensors, p) for p in (None, *PACKED)}
    assert needed[None] > needed["int8"] > needed["int4"] > needed["int4-symmetric"]
    size = r"\(0\.0 GB\)"
    for available, fitting in (
        (needed[None] - 1, rf"precision int8 {size} or int4 {size} or int4-symmetric {size} would fit"),
        (needed["int8"] - 1, rf"precision int4 {size} or int4-symmetric {size} would fit"),
        (needed["int4"] - 1, rf"precision int4-symmetric {size} would fit"),
        (needed["int4-symmetric"] - 1, r"not even int4-symmetric would fit"),
    ):
        monkeypatch.setattr(memory, "available", lambda available=available: available)
        rule = rf"^{folder}: needs 0\.0 GB as stored, wanted no more than the 0\.0 GB .*; {fitting}$"
        with pytest.raises(MemoryNeeded, match=rule):
            mvlm_np.load(folder)


def test_enough_memory_or_an_unknown_amount_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = loading.memory_needed(config(), bound_tensors(open_checkpoint(folder)), "int4")
    for available in (needed, None):
        monkeypatch.setattr(memory, "available", lambda available=available: available)
        assert mvlm_np.load(folder, "int4", backend="numpy").config == config()


def test_memory_needed_is_that_of_weights_and_a_cache_of_512_positions(folder: Path) -> None:
    settings, state = config(), weights()
    d = settings.decoder
    cache = 2 * 4 * 512 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim
    table = state["model.embed_tokens.weight"].nbytes  # its rows are read where they lie
    expected = sum(value.nbytes for value in state.values()) - table + cache
    assert loading.memory_needed(settings, bound_tensors(open_checkpoint(folder)), None) == expected


# -- Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (
            {"precision": "int2"},
            r"^precision: found 'int2', wanted float32, int8, int4, int4-symmetric, or N",
        ),
        ({"precision": 8}, r"^precision: found 8, wanted"),
        ({"backend": "torch"}, r"^backend: found 'torch', wanted auto or numba or numpy"),
        ({"cache": "int4"}, r"^cache: found 'int4', wanted float32, float16, int8, or None"),
        ({"threads": 0}, r"^threads: found 0, wanted a whole number from 1"),
        ({"threads": "4"}, r"^threads: found '4', wanted a whole number from 1"),
        ({"vision_tower": "absent"}, r"^absent: has no config\.json, wanted the folder of a CLIP model"),
        ({"mmproj": "m.gguf"}, r"is a folder, which takes no mmproj"),
    ],
)
def test_arguments_out_of_range_are_refused(folder: Path, arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        mvlm_np.load(folder, **arguments)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("absent", r"does not exist, wanted a model folder or a GGUF file"),
        ("a\0b", r"does not exist"),
        ("a" * 300, r"does not exist"),
        ("model.safetensors", r"is not a model, wanted a model folder or a GGUF file; give its folder, "),
        ("config.json", r"is not a model, .*; give its folder, "),
        ("pipe", r"is neither, wanted a model folder or a GGUF file"),
        ("link", r"link: is a link to .nowhere., which is not there"),
        ("empty", r"empty: holds no model, wanted config\.json with weights, or a GGUF file"),
    ],
)
def test_a_path_that_is_no_model_is_refused(folder: Path, name: str, rule: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    (folder / "empty").mkdir()
    with pytest.raises((CheckpointError, ConfigError), match=rule):
        mvlm_np.load(folder / name)


def test_a_name_of_the_hub_that_is_not_downloaded_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^mtgv/MobileVLM_V2-1\.7B: is neither .* mvlm pull"):
        mvlm_np.load("mtgv/MobileVLM_V2-1.7B")


# -- The tokenizer and the notes ----------------------------------------------------------------------


def test_a_missing_tokenizer_shows_when_it_is_needed(folder: Path) -> None:
    model = mvlm_np.load(folder, backend="numpy")
    assert model.generate([1, 5], max_new_tokens=3)
    with pytest.raises(TokenizerError, match=rf"^{folder}/tokenizer\.model: is missing"):
        model.ask(None, "Why?")


def test_notes_reach_the_user_of_the_api_and_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tower := write_tower(tmp_path / "clip")).joinpath("model.safetensors").unlink()
    folder = write_model(tmp_path, mm_projector_type="ldpnet")
    assert tower.parent == folder
    (note,) = mvlm_np.load(folder, backend="numpy").notes
    assert "the checkpoint's own copy of it is used" in note
    assert main(["ask", "Why?", "--model", str(folder), "--backend", "numpy"]) == 2  # it has no tokenizer
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(rf"mvlm: note: {re.escape(note)}\nmvlm: .*tokenizer\.model: is missing", err)
