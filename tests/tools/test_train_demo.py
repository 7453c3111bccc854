"""The demo model's pictures, questions and training, on a scale of a minute."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

import mvlm_np
from mvlm_np.evaluation.statistics import difference
from tools.demo import dense
from tools.demo.data import as_seen
from tools.demo.evaluation import evaluate
from tools.demo.questions import TASKS, Question, description, facts, questions, record, score
from tools.demo.recipe import RECIPES, Stage, train, write_data
from tools.demo.scenes import COLOURS, INSTRUMENTS, LAMPS, SHAPES, SPLITS, UNSEEN, render, scene
from tools.train_demo import main

# ---------------------------------------------------------------- pictures


def test_a_scene_follows_from_its_number_alone() -> None:
    first, again = scene("test", 5), scene("test", 5)
    assert first == again
    assert render(first).tobytes() == render(again).tobytes()


def test_no_two_splits_share_a_scene() -> None:
    seeds = [scene(split, number).seed for split in SPLITS for number in range(20)]
    assert len(set(seeds)) == len(seeds)
    described = {split: {description(scene(split, n)) for n in range(200)} for split in ("train", "test")}
    assert len(described["train"] & described["test"]) < 10  # some scenes hold a single thing


def test_every_kind_of_thing_occurs() -> None:
    items = [item for number in range(300) for item in scene("train", number).items]
    assert {item.kind for item in items} == {"shape", "lamp", *INSTRUMENTS}
    assert len(SHAPES) >= 6 and len(COLOURS) >= 8
    assert {item.shape for item in items if item.kind == "shape"} == set(SHAPES)
    assert {item.colour for item in items if item.kind == "shape"} == set(COLOURS)
    assert {item.colour for item in items if item.kind == "lamp"} == set(LAMPS)


def test_some_colours_of_shapes_are_kept_for_the_split_unseen() -> None:
    def pairs(split: str) -> set[tuple[str, str]]:
        return {(item.colour, item.shape) for n in range(400) for item in scene(split, n).shapes}

    assert pairs("train") & UNSEEN == pairs("test") & UNSEEN == set()
    assert pairs("unseen") >= UNSEEN


def test_things_do_not_cover_each_other() -> None:
    for number in range(100):
        cells = [c for i in scene("train", number).items for c in range(i.cell, i.cell + i.span)]
        assert len(cells) == len(set(cells))


def test_the_labels_say_what_covers_a_patch() -> None:
    kind, colour, centre = (list(dense.HEADS).index(name) for name in ("kind", "colour", "centre"))
    for number in range(50):
        shown = scene("train", number)
        render(shown)
        labels = dense.labels(shown, 8)
        assert labels.shape == (64, len(dense.HEADS))
        assert (labels >= dense.NONE).all() and (labels < np.array([*dense.HEADS.values()])).all()
        assert (labels[:, centre] == 1).sum() == len(shown.items)
        there = Counter(item.kind for item in shown.items)
        seen = Counter(dense.KINDS[k - 1] for k in labels[labels[:, centre] == 1, kind])
        assert seen == there
        assert (labels[labels[:, kind] == 0, colour] == dense.NONE).all()


def test_the_notice_board_tells_how_many_there_are_of_a_name_and_what_a_single_one_is_like() -> None:
    scenes = (scene("train", number) for number in range(1000))
    shown = next(s for s in scenes if len(s.shapes) > 2 and len(s.of("lamp")) > 1)
    render(shown)
    labels = dense.labels(shown, 8).reshape(8, 8, -1)

    def told(noun: str, colour: str, what: str) -> int:
        return int(labels[dense.NOUNS.index(noun), [*COLOURS].index(colour), [*dense.HEADS].index(what)])

    for colour in COLOURS:
        for noun in dense.NOUNS:
            named = [item for item in shown.items if noun in (item.kind, item.shape)]
            same = [item for item in named if item.colour == colour]
            assert told(noun, colour, "noun_count") == len(named)
            assert told(noun, colour, "colour_count") == sum(i.colour == colour for i in shown.shapes)
            assert told(noun, colour, "pair_count") == (dense.NONE if (colour, noun) in UNSEEN else len(same))
            assert told(noun, colour, "pair_place") == (same[0].cell if len(same) == 1 else dense.NONE)
            if noun == "lamp":
                assert told(noun, colour, "lamps_on") == sum(item.on for item in named)


def test_pictures_are_padded_as_the_model_sees_them() -> None:
    from mvlm_np.config import ImageConfig
    from mvlm_np.inputs.image import preprocess

    config = ImageConfig(resize=128, crop=(128, 128))
    for number in range(8):
        picture = render(scene("test", number))
        pixels = as_seen(picture, 128).transpose(2, 0, 1) / 255
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (config.mean, config.std))
        np.testing.assert_allclose((pixels - mean) / std, preprocess(picture, config), atol=1e-5)


# ---------------------------------------------------------------- questions


def test_every_task_is_asked_and_its_answer_scores_full() -> None:
    asked = [q for n in range(150) for q in questions(scene("train", n), Random(n), each=2)]
    assert {q.task for q in asked} == set(TASKS)
    assert all(score(q, q.answer) == 1 for q in asked)
    assert {q.answer for q in asked if q.task == "count"} == set("0123456")
    yes = [q.answer == "yes" for q in asked if q.task == "exists"]
    assert 0.4 < sum(yes) / len(yes) < 0.6


def test_a_description_scores_by_its_facts() -> None:
    true = "top left: a small red star, middle: a green lamp off, display: 90"
    assert facts(true) == Counter(
        [("top left", word) for word in ("small", "red", "star")]
        + [("middle", word) for word in ("green", "lamp", "off")]
        + [("display", "90")]
    )
    asked = Question("describe", "Describe the picture.", true)
    assert score(asked, true) == 1
    assert score(asked, true.replace("red", "blue")) == 6 / 7
    assert score(asked, true + ", top: a large red star") == 7 / 10
    assert score(asked, "") == 0


def test_the_data_is_in_upstreams_format(tmp_path: Path) -> None:
    write_data(tmp_path, "train", 3)
    for entry in json.loads((tmp_path / "data.json").read_text()):
        assert (tmp_path / entry["image"]).exists()
        said = entry["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert [turn["value"].startswith("<image>\n") for turn in said] == [True] + [False] * (len(said) - 1)
    turns = [Question("count", "How many?", "2")]
    assert record("a", turns)["conversations"] == [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "2"},
    ]


def test_data_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.json").write_text("mine")
    assert main([str(tmp_path), "--write-data", "1"]) == 2
    said = f"train_demo: {tmp_path}/data.json: is there already, wanted a new folder; "
    assert capsys.readouterr().err == said + "name another, or remove the file\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("data.json", "mine")]


def test_pictures_of_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # its own are made anew
        assert main([str(tmp_path / "new"), "--write-pictures"]) == 0
    (tmp_path / "3.png").write_text("mine")
    assert main([str(tmp_path), "--write-pictures"]) == 2
    said = f"train_demo: {tmp_path}: has pictures of others: 3.png, wanted a new folder; name another\n"
    assert capsys.readouterr().err == said
    assert (tmp_path / "3.png").read_text() == "mine"


def test_written_conversations_can_be_short(tmp_path: Path) -> None:
    write_data(tmp_path / "all", "train", 3)
    write_data(tmp_path / "short", "train", 3, turns=2)
    all_, short = (json.loads((tmp_path / name / "data.json").read_text()) for name in ("all", "short"))
    for long, entry in zip(all_, short, strict=True):
        answers = [turn["value"] for turn in entry["conversations"]][1::2]
        assert len(answers) == 2 < len(long["conversations"]) / 2
        assert set(answers) <= {turn["value"] for turn in long["conversations"]}


def test_questions_behind_one_picture_are_read_as_if_each_stood_alone() -> None:
    import torch

    from mvlm_np.checkpoints.checkpoint import StoredTokenizer
    from mvlm_np.inputs.tokenizer import Tokenizer
    from tools.demo.folder import model_config
    from tools.demo.language import BLOCK, Prompts, hidden, pack, train_tokenizer
    from tools.demo.network import build_decoder
    from tools.parts.torch_projectors import LDPv2

    torch.manual_seed(0)
    recipe, tokenizer = RECIPES["minute"], Tokenizer(StoredTokenizer(train_tokenizer(400)))
    config = model_config(recipe.vision, recipe.decoder, tokenizer.vocab_size)
    projector, decoder = LDPv2(64, 64), build_decoder(config)
    prompts, seen = Prompts(tokenizer), torch.randn(2, 64, 64)
    tails = [
        [prompts.tail((q.text, q.answer)) for q in questions(scene("test", n), Random(n), each=2)]
        for n in (0, 2)
    ]
    with torch.inference_mode():
        packed = pack(prompts, tails, 144)
        assert packed.ids.shape[1] > len(prompts.prefix) + 144 + BLOCK  # more than one block
        found, before = hidden(decoder, projector, seen, packed, len(prompts.prefix)), len(prompts.prefix)
        decoder.set_attn_implementation("sdpa")
        for b, of_one in enumerate(tails):
            for tail, here in zip(of_one, packed.at[b], strict=True):
                ids = torch.tensor([[*prompts.prefix, *[0] * 144, *tail.ids]])
                x = decoder.get_input_embeddings()(ids)
                x[:, before : before + 144] = projector(seen[b : b + 1])
                alone = decoder.get_decoder()(inputs_embeds=x).last_hidden_state[0, before + 144 :]
                assert (alone - found[b, here]).abs().max() < 1e-4
                assert packed.wanted[b, here].tolist() == list(tail.wanted)


def test_the_projector_begins_with_the_answers_of_stage_0() -> None:
    import torch
    from torch.nn.functional import gelu, layer_norm

    from tools.demo.network import DenseHeads, build_projector

    torch.manual_seed(0)
    heads, seen = DenseHeads(64), layer_norm(torch.randn(2, 64, 64), (64,))
    torch.nn.init.normal_(heads.norm.weight), torch.nn.init.normal_(heads.norm.bias)
    with torch.inference_mode():
        answers = torch.cat(heads(seen), dim=-1)[..., :96]
        tokens = build_projector({"hidden_size": 64}, {"hidden_size": 96}, heads, seen).mlp(seen)
    torch.testing.assert_close(tokens, gelu(answers), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of a minute, stopped and resumed in every stage; and the folder of its model."""
    folder = tmp_path_factory.mktemp("training")
    recipe = RECIPES["minute"]
    for stops in ((20, None, None), (None, 5, None), (None, None, 10)):
        assert train(recipe, folder, stop_at=stops) == folder
    return folder, train(recipe, folder)


def test_the_loss_falls_in_every_stage_across_its_resumption(trained: tuple[Path, Path]) -> None:
    import torch

    folder, _ = trained
    for number, stage in enumerate(RECIPES["minute"].stages):
        losses = torch.load(folder / f"stage{number}.pt", weights_only=True)["losses"]
        assert len(losses) == stage.steps
        assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
        assert (folder / f"stage{number}.png").exists()


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    import torch

    few = replace(RECIPES["minute"], stages=(Stage(6, 8, 1e-3), Stage(1, 1, 1e-3), Stage(1, 1, 1e-3)))
    pictures = tmp_path / "pictures"
    train(few, tmp_path / "whole", pictures=pictures, stop_at=(5, None, None))
    for stop in (3, 5):
        train(few, tmp_path / "parts", pictures=pictures, stop_at=(stop, None, None))
    whole, parts = (
        torch.load(tmp_path / name / "stage0.pt", weights_only=True)["losses"] for name in ("whole", "parts")
    )
    assert len(whole) == len(parts) == 5
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_what_it_writes_is_a_model_like_any_other(trained: tuple[Path, Path]) -> None:
    from tools.demo.torch_model import TorchModel

    _, folder = trained
    model = mvlm_np.load(folder)
    assert model.notes == []
    ours, theirs = (evaluate(m, "validation", 40) for m in (model, TorchModel(folder)))
    assert [one.answer for one in ours] == [one.answer for one in theirs]
    found = difference("demo", ours, theirs)
    assert (found.questions, found.changed, found.value, found.p) == (40, 0, 0, 1)


def test_stage_2_as_an_adapter_merges_onto_the_model(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from mvlm_np import cli

    folder, _ = trained
    for name in ("tokenizer.model", "stage0.pt", "stage1.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    few = replace(RECIPES["minute"], stages=(*RECIPES["minute"].stages[:2], Stage(3, 4, 1e-3)))
    base = train(few, tmp_path, pictures=folder / "pictures", lora=4)
    tuned = tmp_path / "tuned"
    adapter = str(tmp_path / "adapter")
    assert cli.main(["convert", str(base), str(tuned), "--precision", "float32", "--lora", adapter]) == 0
    before, after = (mvlm_np.load(f).decoder.layers[0].qkv.layers[0] for f in (base, tuned))
    x = np.eye(64, dtype=np.float32)
    assert 0 < np.abs(before(x) - after(x)).max() < 0.1
