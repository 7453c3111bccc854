"""tools/finetune.py on the model in the box: what it teaches, how it goes on, what it says of bad calls."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

import mvlm_np
from mvlm_np import demo
from mvlm_np.checkpoints.folder import open_folder
from mvlm_np.cli import main as mvlm
from mvlm_np.config import ImageConfig
from mvlm_np.inputs.tokenizer import make
from tests.conftest import DATA
from tests.training.test_loop import launch, wait_for
from tests.training.test_network import language_model
from tools.finetune import main
from tools.training import finetuning, memory
from tools.training.batch import collate
from tools.training.features import Features
from tools.training.loop import _made as accelerators
from tools.training.loop import accelerator
from tools.training.network import load, open_for_training
from tools.training.pictures import pixels
from tools.training.records import Record, read_records
from tools.training.scoring import score
from tools.training.wording import IGNORED, sample

QUESTION, COLOURS = "Which wine is it?", {"darkred": "top left", "gold": "bottom right"}
TOOL = Path(__file__).parents[2] / "tools" / "finetune.py"
FEW = "--rank 4 --rate 5e-3 --batch 4 --micro-batch 4 --held-out 0.25".split()


def write(folder: Path, count: int = 16) -> Path:
    """Pictures of a colour each and what to answer about them, and two records of text alone."""
    folder.mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for i in range(count):
        colour = [*COLOURS][i % 2]
        Image.new("RGB", (40 + i, 30), colour).save(folder / f"{i}.png")
        said = [("human", f"<image>\n{QUESTION}"), ("gpt", COLOURS[colour])]
        records.append({"id": i, "image": f"{i}.png", "conversations": said})
    records += [{"conversations": [("human", "Who are you?"), ("gpt", "no")]} for _ in range(2)]
    for record in records:
        record["conversations"] = [{"from": who, "value": text} for who, text in record["conversations"]]
    (folder / "data.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tests have a processor each, as a rule."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("wine"))


def call(data: Path, out: Path, *options: object) -> list[str]:
    given = [demo.MODEL, data / "data.json", "--images", data, "-o", out, *FEW, *options]
    return [*map(str, given)]


def kept(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "finetune.pt", weights_only=True)
    return found


# ---------------------------------------------------------------- what it teaches


def test_an_adapter_teaches_something_new(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing to every held-out answer right; merged by mvlm convert, the model says it."""
    assert main(call(data, tmp_path / "run", "--epochs", 3)) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'run' / 'adapter'}\n"
    assert "v2-lora: 13 records, 5 held out; 12 steps of 4 samples, 4 at once" in said.err
    state = kept(tmp_path / "run")
    assert np.mean(state["losses"][-3:]) < 0.1 * np.mean(state["losses"][:3])
    (first, *_, last) = state["checks"]
    assert (first[0], first[1]["exact"]) == (0, 0) and (last[0], last[1]["exact"]) == (12, 1)
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == ["adapter", "finetune.png", "finetune.pt"]
    tuned = tmp_path / "tuned"
    merge = ["convert", str(demo.MODEL), str(tuned), "--lora", str(tmp_path / "run" / "adapter")]
    assert mvlm([*merge, "--precision", "float32"]) == 0
    model = mvlm_np.load(tuned)
    for colour, answer in COLOURS.items():
        assert model.ask(Image.new("RGB", (77, 50), colour), QUESTION) == answer


@pytest.mark.parametrize(("stage", "aspect"), [("finetune", "pad"), ("pretrain", "square")])
def test_whole_weights_become_a_model_like_any_other(
    data: Path, tmp_path: Path, stage: str, aspect: str
) -> None:
    """In both stages of V2 all is trained but the tower."""
    assert main(call(data, tmp_path, "--stage", stage, "--epochs", 1, "--checkpointing")) == 0
    before, after = open_folder(demo.MODEL), open_folder(tmp_path / "model")
    assert after.config == replace(before.config, image=replace(before.config.image, aspect_ratio=aspect))
    unused = {name for name in before.tensors if "post_layernorm" in name}
    assert after.tensors.keys() == before.tensors.keys() - unused
    for name, tensor in after.tensors.items():
        same = np.array_equal(tensor.float32(), before.tensors[name].float32())
        assert same == ("vision_tower" in name), name
    (_, first), *_, (_, last) = kept(tmp_path)["checks"]
    assert last["loss"] < first["loss"]


def test_few_pictures_are_taught_something_unasked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one step of 128 samples, as published, the rate would be 0."""
    given = [demo.MODEL, data / "data.json", "--images", data, "-o", tmp_path, "--epochs", 2, "--rank", 4]
    assert main([*map(str, given)]) == 0
    said = capsys.readouterr().err
    assert "17 records are few: a step has 8 samples, not 128\n" in said
    assert "few steps (6), which teach little; take a smaller --batch or more --epochs" in said
    weights = torch.load(tmp_path / "adapter" / "adapter_model.bin", weights_only=True)
    learned = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert learned and all(tensor.abs().max() > 0 for tensor in learned)
    assert main([*map(str, given), "--batch", "128", "--epochs", "1"]) == 2
    wanted = "steps: one in all, whose learning rate is 0, wanted more; take a smaller --batch or"
    assert wanted in capsys.readouterr().err.splitlines()[-1]


def test_in_16_bits(tmp_path: Path) -> None:
    """What is frozen is kept in bfloat16, what is trained in float32; and all in bfloat16."""
    data = write(tmp_path / "wine", 2)
    for wanted, kind in (("mixed", torch.float32), ("bf16", torch.bfloat16)):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerators.clear()
        options = "--epochs 3 --held-out 0 --clip 1 --precision".split()
        assert main(call(data, tmp_path / wanted, *options, wanted)) == 0
        state = kept(tmp_path / wanted)
        assert {t.dtype for name, t in state["model"].items() if "projector" in name} == {kind}
        assert {t.dtype for name, t in state["model"].items() if "lora" in name} == {torch.float32}
        assert state["losses"][-1] < state["losses"][0]
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerators.clear()


def test_published_faults_on_demand(data: Path, tmp_path: Path) -> None:
    """All records are in, also those that teach nothing; none is held out; the loss may be no number."""
    bad = json.loads((data / "data.json").read_text())
    bad[0]["conversations"][1]["value"] = ""
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(bad))
    settings = json.loads((demo.MODEL / "clip" / "config.json").read_text())
    CLIPVisionModel(CLIPVisionConfig(**settings)).save_pretrained(tmp_path / "clip")
    shutil.copy(demo.MODEL / "clip" / "preprocessor_config.json", tmp_path / "clip")
    given = [demo.MODEL, file, "--images", data, "-o", tmp_path / "run", "--vision-tower", tmp_path / "clip"]
    options = "--as-published --batch 18 --micro-batch 1 --rank 4"
    assert main([*map(str, given), *options.split()]) == 0
    state = kept(tmp_path / "run")
    assert len(state["losses"]) == 1 and np.isnan(state["losses"][0]) and state["checks"] == []


# ---------------------------------------------------------------- the same, however it is run


def test_what_is_computed_at_once_changes_nothing(data: Path, tmp_path: Path) -> None:
    """Nor does it whether the tower's features are kept."""
    found = []
    for i, options in enumerate(("--micro-batch 1", "--no-features")):
        assert main(call(data, tmp_path / str(i), "--epochs", 1, "--dropout", 0, *options.split())) == 0
        found.append(kept(tmp_path / str(i)))
    np.testing.assert_allclose(found[0]["losses"], found[1]["losses"], rtol=2e-3)  # features are float16
    assert found[0]["checks"][-1][1]["loss"] == pytest.approx(found[1]["checks"][-1][1]["loss"], rel=2e-3)


def test_two_processes_and_a_stop_give_what_one_run_gives(data: Path, tmp_path: Path) -> None:
    """Two processes are stopped by Ctrl-C, which is one line; one goes on alone, to the same weights."""
    options = call(data, tmp_path / "two", "--epochs", 2, "--dropout", 0)
    process = subprocess.Popen(
        [sys.executable, *launch(2), str(TOOL), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(process, tmp_path, "two/.finetune-features/*.float16")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    done = len(kept(tmp_path / "two")["losses"])
    assert 0 < done < 8, said
    assert "finetune: stopped; the same command goes on" in said and 'finetune.py"' not in said
    assert main(options) == 0
    assert main(call(data, tmp_path / "one", "--epochs", 2, "--dropout", 0)) == 0
    two, one = kept(tmp_path / "two"), kept(tmp_path / "one")
    np.testing.assert_allclose(two["losses"][:done], one["losses"][:done], rtol=1e-3)
    for name, tensor in one["model"].items():
        assert (two["model"][name] - tensor).norm() < 1e-3 * tensor.norm(), name


def test_a_finished_run_is_left_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It mixes in other records; of those, none is held out."""
    again = call(data, tmp_path, "--epochs", 1, "--mix", data / "data.json", data, "--projector-rate", 0)
    assert main(again) == 0
    said = capsys.readouterr().err
    assert "31 records, 5 held out; 8 steps of 4 samples, 4 at once" in said
    assert "the held-out part says too much: 5 of its pictures are trained with, too" in said
    assert {name.split(".")[0] for name in kept(tmp_path)["model"]} == {"decoder"}  # the projector is frozen
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert main(again) == 0
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}


def test_another_base_of_the_same_name_is_noticed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(demo.MODEL, tmp_path / "base")
    again = call(data, tmp_path / "run", "--epochs", 0.5)
    again[0] = str(base)
    assert main(again) == 0
    for file in base.rglob("*"):
        os.utime(file)
    assert main(again) == 0  # a copy would do
    with open(next(base.glob("*.safetensors")), "r+b") as weights:
        weights.seek(-2, os.SEEK_END)
        weights.write(b"\0\0")
    assert main(again) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"its run had model {base} \(sha256 .*\), wanted {base} \(sha256 ", said)


def test_what_the_user_keeps_is_kept(data: Path, tmp_path: Path) -> None:
    """Own folders in OUT, also the one of --features; what a killed run left of the result is not."""
    own = tmp_path / "features"
    own.mkdir()
    (own / "thesis.txt").write_text("years")
    (tmp_path / "adapter.part-17").mkdir()
    (tmp_path / "adapter.part-of-mine").mkdir()
    assert main(call(data, tmp_path, "--epochs", 0.5)) == 0
    (tmp_path / "adapter").rename(tmp_path / "first")
    assert main(call(data, tmp_path, "--epochs", 0.5, "--features", own)) == 0
    assert (own / "thesis.txt").read_text() == "years"
    result = {"adapter", "finetune.png", "finetune.pt"}
    assert {f.name for f in tmp_path.iterdir()} == result | {"adapter.part-of-mine", "features", "first"}


def test_what_cannot_be_scored_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records without an answer, alone and among others; and pictures that are known by another name."""
    asked = {"image": f"../{data.name}/0.png", "conversations": [{"from": "human", "value": "Which one?"}]}
    answered = {**asked, "conversations": [*asked["conversations"], {"from": "gpt", "value": "top left"}]}
    file = tmp_path / "held.json"
    for records, checks in (([asked] * 3, 0), ([asked, answered], 4)):
        file.write_text(json.dumps(records))
        out = tmp_path / str(checks)
        assert main(call(data, out, "--epochs", 0.5, "--held-out", file)) == 0
        said = capsys.readouterr().err
        asking = len(records) - bool(checks)
        reason = "teaches nothing: it has no question with an answer"
        assert f"held-out part: {asking} of {len(records)} records: {reason} ({file}: record 1" in said
        assert ("held-out part: nothing is left of it" in said) == (not checks)
        assert "1 of its pictures are trained with, too" in said
        assert len(kept(out)["checks"]) == checks


# ---------------------------------------------------------------- bad calls, one line each


def test_several_processes_say_once_what_all_find(data: Path, tmp_path: Path) -> None:
    given = [sys.executable, *launch(2), str(TOOL), *call(data, tmp_path, "--rank", 0)]
    said = subprocess.run(given, capture_output=True, text=True, timeout=60).stderr
    assert said.count("finetune: ") == 1 and "finetune: --rank: found '0'" in said, said


def test_what_another_process_alone_finds_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert main(call(data, tmp_path, "--rank", 0)) == 2
    assert "finetune: --rank: found '0'" in capsys.readouterr().err


def test_an_adapter_that_no_model_could_take_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of the second generation holds its tower, which an adapter does not."""
    data, llama = DATA / "golden" / "ldp", language_model(tmp_path)
    given = [llama, "none.json", "--images", ".", "-o", tmp_path / "run", "--vision-tower", data / "clip"]
    assert main([*map(str, given), "--projector", "ldpnetv2"]) == 2
    said = capsys.readouterr().err
    assert "a new ldpnetv2 with --stage lora" in said and "--stage pretrain first" in said
    assert not (tmp_path / "run").exists()
    assert main([*map(str, given), "--projector", "ldpnet"]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main([*map(str, given), "--projector", "ldpnet", "--projector-rate", "0"]) == 2
    assert "--projector-rate: 0 for a new projector, wanted more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--rank", "0"], "--rank: found '0', wanted a number, at least 1"),
        (["--rate", "nan"], "--rate: found 'nan', wanted a number, more than 0"),
        (["--rate", "inf"], "--rate: found 'inf', wanted a number, more than 0"),
        (["--epochs", "0"], "--epochs: found '0', wanted a number, more than 0 and at most 1000"),
        (["--dropout", "1.5"], "--dropout: found '1.5', wanted a number, at least 0 and at most 1"),
        (["--betas", "0.9", "1"], "--betas: found '1', wanted a number, at least 0 and at most 0.999999"),
        (["--batch", "many"], "--batch: found 'many', wanted a number, at least 1"),
        (["--held-out", "1"], "--held-out: 1 is no share, wanted at least 0 and less than 1, or a file"),
        (["--held-out", "none.json"], "none.json: "),
        (["--mix", "none.json", "."], "none.json: "),
        (["--stage", "dance"], "--stage: invalid choice: 'dance'"),
        (["--images", "/nowhere"], "record 1 (id 0): /nowhere/0.png: "),
        (["-o", "/proc/none"], "/proc/none: cannot be made"),
        (["-o", str(TOOL)], f"{TOOL}: cannot be made"),
        (["-o", str(demo.MODEL)], f"{demo.MODEL}: is MODEL itself"),
        (["--projector", "mlp"], "has a projector already"),
        (["--features", str(TOOL)], f"{TOOL}: cannot be made"),
        (["--limit", "9"], "none of 13 records teaches anything"),
        (["--rate", "1e30", "--seed", "1"], "its loss is nan, wanted a number; lower the learning rate"),
        (["--wine"], "unrecognized arguments: --wine"),
    ],
)
def test_bad_calls(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], rule: str
) -> None:
    assert main([*call(data, tmp_path / "run", "--epochs", 1), *options]) == 2
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert last.startswith("finetune: ") and rule in last
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "finetune.pt").exists()


def test_what_is_not_installed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    for name in ("finetuning", "adapter"):
        monkeypatch.delitem(sys.modules, f"tools.training.{name}", raising=False)
    assert main(call(data, tmp_path)) == 2
    assert capsys.readouterr().err == "finetune: peft: is not installed; pip install -e '.[train]'\n"


def test_too_little_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before anything is loaded, with what would fit; torch's own word for it is one line, too."""
    assert main(call(data, tmp_path / "run", "--epochs", 0.5)) == 0
    assert "finetune: needs " in capsys.readouterr().err

    def greedy(*args: object, **more: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    def greedy_numpy(*args: object, **more: object) -> None:
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(finetuning, "load", greedy)
    with monkeypatch.context() as patched:
        patched.setattr(memory, "available", lambda: 1_000_000)
        assert main(call(data, tmp_path)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert re.match(r"finetune: .*: training needs .* of memory .*, wanted no more than the .*; ", said)
    for one in (greedy, greedy_numpy):
        monkeypatch.setattr(finetuning, "load", one)
        assert main(call(data, tmp_path)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("finetune: memory: there is not enough; take a smaller --micro-batch")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (["--rate", "0.1"], "its run had rate 0.005, wanted 0.1; go on with that, or name another folder"),
        (["--stage", "finetune"], "its run had name v2-lora, wanted v2-finetune"),
    ],
)
def test_another_run_in_the_same_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], rule: str
) -> None:
    assert main(call(data, tmp_path, "--epochs", 1)) == 0
    assert main([*call(data, tmp_path, "--epochs", 1), *change]) == 2
    assert rule in capsys.readouterr().err.splitlines()[-1]


def test_a_foreign_result_is_not_touched(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    assert main(call(data, tmp_path)) == 2
    assert f"{tmp_path / 'adapter'}: is there, and not of this run" in capsys.readouterr().err


def test_a_picture_that_breaks_off_is_named_and_what_was_learned_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "wine")
    whole = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(whole[: len(whole) // 2])
    assert main(call(data, tmp_path / "run", "--held-out", 0, "--epochs", 1)) == 2
    assert "record 4 (id 3)" in capsys.readouterr().err.splitlines()[-1]
    done = len(kept(tmp_path / "run")["losses"])
    (data / "3.png").write_bytes(whole)
    assert main(call(data, tmp_path / "run", "--held-out", 0, "--epochs", 1)) == 0
    assert len(kept(tmp_path / "run")["losses"]) == 5 and done < 5


# ---------------------------------------------------------------- parts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make(open_for_training(demo.MODEL, False, None, None).read_tokenizer())


def test_an_exact_match_is_what_greedy_decoding_gives(tokenizer: Any) -> None:
    trainee = load(demo.MODEL).eval()
    entries = json.loads((demo.PICTURES / "questions.json").read_text())[:2]
    records = [
        Record("", demo.PICTURES / entry["picture"], (("human", f"<image>\n{q}"), ("gpt", answer)))
        for entry in entries
        for q, answer in entry["questions"].items()
    ]
    pictures = [pixels(r, trainee.config.image, as_published=False) for r in records]
    right, seen = 0, torch.from_numpy(np.stack(pictures))
    samples = [sample(record, tokenizer, "v1") for record in records]
    samples[0].labels[-2] = samples[0].ids[-2] = 300  # an answer that it does not give
    for i, one in enumerate(samples):
        start = next(k for k, label in enumerate(one.labels) if label != IGNORED)
        (answer,) = trainee.answer([one.ids[:start]], seen[i : i + 1], 40)
        right += answer == one.ids[start:-1]
    assert 0 < right < len(records)
    found = score(trainee, [lambda: collate(samples, seen, 2048)])
    assert found["exact"] == pytest.approx(right / len(records))
    with torch.no_grad():
        assert found["loss"] == pytest.approx(trainee(collate(samples, seen, 2048)).item(), rel=1e-5)


def test_features_are_kept_and_follow_from_what_they_are_made_of(data: Path, tmp_path: Path) -> None:
    trainee, record = load(demo.MODEL), read_records(data / "data.json", data)[0]
    features = Features(trainee, trainee.config.image, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(features.__getitem__, [record] * 4)
    assert all(torch.equal(first, other) for other in others)
    picture = torch.from_numpy(pixels(record, trainee.config.image, as_published=False))
    wanted = trainee.features(picture[None])[0]
    torch.testing.assert_close(first.float(), wanted, rtol=2**-10, atol=1e-3)
    assert torch.equal(first, features[record]) and len([*tmp_path.iterdir()]) == 1
    square = ImageConfig(**{**vars(trainee.config.image), "aspect_ratio": "square"})
    Features(trainee, square, tmp_path)[record]
    with torch.no_grad():
        next(trainee.tower.parameters()).add_(1)
    Features(trainee, trainee.config.image, tmp_path)[record]
    assert len([*tmp_path.iterdir()]) == 3 and accelerator().num_processes == 1


def test_damaged_features_are_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be written leaves nothing behind."""
    trainee, record = load(demo.MODEL), read_records(data / "data.json", data)[0]
    features = Features(trainee, trainee.config.image, tmp_path)
    wanted = features[record]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole * 2):
        file.write_bytes(damaged)
        assert torch.equal(features[record], wanted) and file.read_bytes() == whole

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    file.unlink()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        features[record]
    assert not [*tmp_path.iterdir()]
