"""The stored beginning of a prompt: it changes no bit, and one that is not the model's is never used."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mvlm_np
from mvlm_np import backend, demo, ops, prefix
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.packed import PackedTensor
from mvlm_np.cli.inspect import stored_prefix
from mvlm_np.converting import convert
from mvlm_np.errors import UserError
from mvlm_np.model import MobileVLM
from mvlm_np.trace import Recorder, Watch

PICTURE = demo.PICTURES / "0.png"
QUESTION = "Describe the yellow lamp."

# Of the keys and values of the demo model's beginning, in int4 and float16, on every CPU. If a change of a
# kernel or of the decoder was meant to change bits, count `prefix.ARITHMETIC` up and put the new digest here.
BITS = "ff9cafa75e3c2da7"


def load(folder: Path, **options: str) -> MobileVLM:
    return mvlm_np.load(folder, **{"backend": "numba"} | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4, with its beginning."""
    folder = tmp_path_factory.mktemp("prefix") / "model"
    convert(open_checkpoint(demo.MODEL), folder, "int4-symmetric", quality="fast")
    model = load(folder)
    if not prefix.is_exact(model.decoder, model.config.decoder, model.ops):
        pytest.skip("this CPU, or MVLM_SIMD, has no fused multiply-add")
    prefix.write(folder / prefix.NAME, prefix.compute(model.session(), "v1", model.tokenizer, True))
    return folder


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def first_logits(model: MobileVLM, use: bool, **options: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a question about a picture: logits, the cache's bytes, and the positions that were computed."""
    model.__dict__["prefix"] = model._find_prefix() if use else None
    watch = Recorder()
    watch.everything = False
    chat = model.chat(PICTURE, watch=watch, **options)
    list(chat.stream(QUESTION, max_new_tokens=1))
    cache, T = chat.session.cache, len(chat.session.ids)
    stored = np.concatenate([cache.keys.numbers[:, :, :T], cache.values.numbers[:, :, :T]])
    hidden = watch.arrays["decoder.hidden_states.1"]
    return model.decoder.lm_head(watch.arrays["decoder.hidden_states.4"][-1:]), stored, len(hidden)


def test_the_first_answer_is_the_same_to_the_bit(folder: Path) -> None:
    model = load(folder)
    cold, stored = first_logits(model, use=False), first_logits(model, use=True)
    T = len(prefix.read(folder / prefix.NAME).ids)
    assert T > 10 and stored[2] == cold[2] - T
    for one, other in zip(cold[:2], stored[:2], strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "image, mode", [(None, "v1"), (PICTURE, "llava_llama_2"), ([PICTURE, PICTURE], "v1")]
)
def test_other_prompts_share_what_begins_alike(folder: Path, image: object, mode: str) -> None:
    model, answers = load(folder), []
    for use in (False, True):
        model.__dict__["prefix"] = model._find_prefix() if use else None
        chat = model.chat(image, conv_mode=mode)  # type: ignore[arg-type]
        answers.append([chat.ask(QUESTION, max_new_tokens=5), chat.ask("And now?", max_new_tokens=5)])
    assert answers[0] == answers[1]


def test_its_bits_are_the_same_everywhere(folder: Path) -> None:
    found = prefix.read(folder / prefix.NAME)
    digest = hashlib.sha256(found.keys.numbers.tobytes() + found.values.numbers.tobytes())
    assert digest.hexdigest()[:16] == BITS


def test_what_records_every_stage_computes_every_position(folder: Path) -> None:
    model = load(folder)
    assert model.prefix is not None
    stages = model.trace(PICTURE, QUESTION, max_new_tokens=1)
    assert stages["decoder.keys.0"].shape[2] == stages["inputs_embeds"].shape[1]


@pytest.mark.parametrize("options", [
    {"backend": "numpy"}, {"precision": "float32"}, {"cache": "float32"}, {"cache": "int8"},
])  # fmt: skip
def test_where_bits_may_differ_it_is_not_used(folder: Path, options: dict[str, str]) -> None:
    assert load(folder, **options).prefix is None
    assert load(folder).prefix is not None


def test_replaced_operations_do_not_begin_with_it(folder: Path) -> None:
    model = load(folder)
    others = backend.replaced(model.ops, rope=ops.rope)
    assert not prefix.is_exact(model.decoder, model.config.decoder, others)


def test_an_int8_cache_has_a_beginning_of_its_own(changed: Path) -> None:
    model = load(changed, cache="int8")
    prefix.write(changed / prefix.NAME, prefix.compute(model.session(), "v1", model.tokenizer, True))
    cold, stored = first_logits(model, use=False), first_logits(model, use=True)
    assert stored[2] < cold[2]
    assert all(one.tobytes() == other.tobytes() for one, other in zip(cold[:2], stored[:2], strict=True))


# ---------------------------------------------------------------- files that are not the model's


def change(path: Path, at: int, to: bytes | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(to or b"x")] = to or bytes([content[at] ^ 1])
    path.write_bytes(content)


def test_other_weights_do_not_begin_with_it(changed: Path) -> None:
    """The last scale of a block's matrix is another; so is, then, a value in the first rows of one."""
    tensors = open_checkpoint(changed).tensors
    matrix = tensors["model.layers.3.mlp.down_proj.weight"]
    assert isinstance(matrix, PackedTensor)
    (scales,) = matrix.factors
    for at in (scales.offset + scales.nbytes - 2, matrix.offset + 100):
        assert load(changed).prefix is not None
        change(changed / "model.safetensors", at)
        assert load(changed).prefix is None
        change(changed / "model.safetensors", at)


def test_a_token_s_other_embedding_counts(changed: Path) -> None:
    model, found = load(changed), prefix.read(changed / prefix.NAME)
    embedding = open_checkpoint(changed).tensors["model.embed_tokens.weight"]
    row = embedding.nbytes // model.config.decoder.vocab_size
    change(changed / "model.safetensors", embedding.offset + int(found.ids[-1]) * row)
    assert load(changed).prefix is None


def test_another_version_s_file_is_not_used(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "ARITHMETIC", prefix.ARITHMETIC + 1)
    assert load(changed).prefix is None


@pytest.mark.parametrize(
    "damage", ["a bit", "cut off", "empty", "no file of this kind", "other ids", "no mark"]
)
def test_a_damaged_file_is_passed_over(changed: Path, damage: str) -> None:
    path = changed / prefix.NAME
    content = path.read_bytes()
    match damage:
        case "a bit":
            change(path, len(content) - 5)
        case "cut off":
            path.write_bytes(content[:-100])
        case "empty":
            path.write_bytes(b"")
        case "no file of this kind":
            path.write_bytes(b"<html>")
        case "other ids":
            found = prefix.read(path)
            prefix.write(path, replace(found, ids=found.ids[::-1]))
        case "no mark":
            path.write_bytes(content.replace(b"mvlm_np.prefix", b"mvlm_np.suffix"))
    model = load(changed)
    assert model.prefix is None
    assert model.ask(PICTURE, QUESTION, max_new_tokens=3)
    problem = stored_prefix(changed)
    assert problem is not None and ("problem" in problem or damage == "other ids")


def test_reading_says_what_is_wrong(changed: Path) -> None:
    change(changed / prefix.NAME, (changed / prefix.NAME).stat().st_size - 5)
    with pytest.raises(UserError, match=r"prefix\.safetensors: is damaged, wanted what mvlm convert writes"):
        prefix.read(changed / prefix.NAME)


def test_inspect_tells_what_there_is(folder: Path) -> None:
    about, found = stored_prefix(folder), prefix.read(folder / prefix.NAME)
    size = (folder / prefix.NAME).stat().st_size
    assert about == {"template": "v1", "positions": len(found.ids), "dtype": "float16", "bytes": size}
    assert stored_prefix(demo.MODEL) is None


# ---------------------------------------------------------------- converting


def test_convert_writes_it_for_packed_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvlm_np.loading.SMALL", 0)  # as for a model that is worth importing Numba for
    for name, precision, template in (("a", "int8", "v1"), ("b", "bf16", "v1"), ("c", "int8", None)):
        convert(open_checkpoint(demo.MODEL), tmp_path / name, precision, template=template)
        assert (tmp_path / name / prefix.NAME).exists() == (name == "a")
    assert f'"{prefix.NAME}"' in (tmp_path / "a" / "mvlm.json").read_text()
    model = mvlm_np.load(tmp_path / "a")
    assert model.prefix is not None
    session = model.session()
    model.prefix.begin(session)
    x = model.decoder.embed_tokens(model.prefix.ids)
    cold = model.session()
    cold.prefill(x, model.prefix.ids, 0, Watch())
    assert session.cache.keys.numbers.tobytes() == cold.cache.keys.numbers.tobytes()
