"""A model calibrated layer after layer: better than to nearest, repeatable to the bit, resumable."""

import gc
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep

import numpy as np
import pytest

import mvlm_np
from mvlm_np.backend import choose
from mvlm_np.calibrating import layers
from mvlm_np.calibrating.layers import Apart, Work, calibrated, taken
from mvlm_np.calibrating.reading import Reading, drawn, reading_of
from mvlm_np.chat import Chat
from mvlm_np.checkpoints.gguf_writer import Q4_K_WHOLE
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.checkpoints.packed import PackedTensor
from mvlm_np.checkpoints.record import verify
from mvlm_np.cli import main
from mvlm_np.converting import Calibration, convert, convert_to_gguf
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.errors import CheckpointError, UserError
from mvlm_np.loading import bound_tensors
from mvlm_np.model import MobileVLM
from mvlm_np.precisions import FOUR_BITS, PACKED
from mvlm_np.quantize import dequantize, quantize
from tests.conftest import DATA, ROOT

GOLDEN = DATA / "golden" / "ldpv2"
SMALL = Reading(((PICTURES / "0.png", ("Is the yellow lamp on?", "Describe the yellow lamp.")),))


def convert_calibrated(
    source: Path,
    destination: Path,
    reading: Reading = SMALL,
    progress: Callable[[str, float, float], object] = lambda what, done, total: None,
    precision: str = "int4",
) -> Path:
    convert(open_checkpoint(source), destination, precision, calibration=Calibration(reading, progress))
    return destination


@pytest.mark.parametrize("precision", FOUR_BITS)
@pytest.mark.parametrize("name", ["in the box", "random"])
def test_no_layer_puts_out_more_error_than_rounded_to_nearest(
    name: str, precision: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by what each layer really read, which is not what `layers` judges by."""
    source = {"in the box": MODEL, "random": tiny}[name]
    read: list[np.ndarray] = []

    def noted(h: np.ndarray) -> np.ndarray:
        read.append(h.astype(np.float64))
        return moments(h)

    moments = layers.second_moments
    monkeypatch.setattr(layers, "second_moments", noted)
    out = convert_calibrated(source, tmp_path / "out", precision=precision)
    rounded = bound_tensors(open_checkpoint(out))
    plain = bound_tensors(open_checkpoint(source))
    parts = ("self_attn.q self_attn.k self_attn.v", "self_attn.o", "mlp.gate mlp.up", "mlp.down")
    inputs, gained = iter(read), []
    for i in range(layers_of(source)):
        for together in parts:
            x = next(inputs)
            for part in together.split():
                matrix = f"model.layers.{i}.{part}_proj.weight"
                assert rounded[matrix].dtype == PACKED[precision]
                w = plain[matrix].float32()
                nearest = np.square(x @ (w - dequantize(*quantize(w, PACKED[precision]))).T).sum(0)
                found = np.square(x @ (w - rounded[matrix].float32()).T).sum(0)
                # Of each row of the matrix; both errors are rounded, in float32, when they are compared.
                assert (found <= nearest * (1 + 1e-4)).all(), matrix
                gained.append(nearest.sum() / found.sum())
    assert next(inputs, None) is None
    assert min(gained) > 1.1  # all of them gain; in the box by factors of 2 to 5


def test_it_is_repeatable_to_the_bit(tiny: Path, tmp_path: Path) -> None:
    one, other = (convert_calibrated(tiny, tmp_path / name) for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_model_in_the_box_still_answers_and_its_record_says_what_was_gained(tmp_path: Path) -> None:
    out = convert_calibrated(MODEL, tmp_path / "out")
    assert verify(out) == []
    noted = json.loads((out / "mvlm.json").read_text())["rounding"]
    for name, entry in noted.items():
        if name.startswith("model.layers."):
            assert entry["output_signal_to_noise_db"] > entry["to_nearest_db"]
    model = mvlm_np.load(out)
    assert model.ask(PICTURES / "0.png", "Is the yellow lamp on?") == "no"
    assert model.ask(PICTURES / "2.png", "Describe the black cross.") == "a large black cross, bottom"


def layers_of(folder: Path) -> int:
    return open_checkpoint(folder).config.decoder.num_hidden_layers


class Stop(Exception):
    """In place of a power cut."""


def test_stopped_anywhere_it_goes_on_to_the_same_result(tiny: Path, tmp_path: Path) -> None:
    whole, steps = convert_calibrated(tiny, tmp_path / "whole"), 0
    rng = random.Random(0)

    def stop(what: str, done: float, total: float) -> None:
        nonlocal steps
        steps += 1
        if rng.random() < 0.2:
            raise Stop

    for _ in range(100):
        try:
            convert_calibrated(tiny, tmp_path / "out", progress=stop)
            break
        except Stop:
            assert not (tmp_path / "out").exists()
            with pytest.raises(CheckpointError):
                open_checkpoint(tmp_path / "out.calibrating")
    assert steps > 7 * layers_of(tiny)  # it did stop, and computed something twice
    assert (tmp_path / "out/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_killed_it_leaves_nothing_that_loads_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    shutil.copyfile(PICTURES / "7.png", tmp_path / "7.png")
    (tmp_path / "questions.txt").write_text("What is on the right?\n")
    command = [sys.executable, "-m", "mvlm_np", "convert", str(tiny), str(tmp_path / "out")]
    command += ["--precision", "int4", "--calibrate", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    work = Work(tmp_path / "out.calibrating", "")
    while process.poll() is None and not ((state := work.read()) and state.done):
        sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.calibrating"
    with pytest.raises(CheckpointError):
        open_checkpoint(kept)
    read, seen = reading_of(tmp_path, True), list[float]()
    convert_calibrated(tiny, tmp_path / "out", read, lambda what, done, total: seen.append(done / total))
    assert seen[0] > 0  # what was done is not computed again
    assert mvlm_np.load(tmp_path / "out").trace(PICTURES / "7.png", "What is on the right?", 1)


def test_another_calibration_is_not_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    def stop(what: str, done: float, total: float) -> None:
        if what == "calibrate" and done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        convert_calibrated(tiny, tmp_path / "out", progress=stop)
    other = Reading(((PICTURES / "1.png", ("What is the green thing?",)),))
    with pytest.raises(UserError, match=r"out\.calibrating: holds the beginning of another calibration"):
        convert_calibrated(tiny, tmp_path / "out", other)
    assert (tmp_path / "out.calibrating/layer-0.safetensors").exists()  # nothing is lost


def test_two_at_a_time_are_told(tmp_path: Path) -> None:
    one, other = Work(tmp_path / "w", "a"), Work(tmp_path / "w", "a")
    with one.held(), pytest.raises(UserError, match="is in use by another process"), other.held():
        pass


def test_the_gguf_has_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    folder = convert_calibrated(tiny, tmp_path / "folder", precision="int4-symmetric")
    convert_to_gguf(
        open_checkpoint(tiny), tmp_path / "pair", "int4-symmetric", calibration=Calibration(SMALL)
    )
    ours, theirs = (bound_tensors(open_checkpoint(path)) for path in (folder, tmp_path / "pair"))
    for name in ours:
        if name.startswith("model.layers."):
            np.testing.assert_array_equal(ours[name].float32(), theirs[name].float32())


def test_a_gguf_that_would_not_hold_what_is_calibrated_is_refused(tiny: Path, tmp_path: Path) -> None:
    wanted = r"q_proj.weight: has rows of 64, wanted a multiple of 256, which is a block of Q4_K; take "
    with pytest.raises(UserError, match=wanted):
        convert_to_gguf(open_checkpoint(tiny), tmp_path / "pair", "int4", calibration=Calibration(SMALL))
    assert not list(tmp_path.iterdir())


def test_scales_are_as_small_as_a_q4_k_holds_where_one_is_to_be_made(tiny: Path, tmp_path: Path) -> None:
    checkpoint, work = open_checkpoint(tiny), Work(tmp_path / "work", "")
    x = np.random.default_rng(0).standard_normal((60, checkpoint.config.decoder.hidden_size), np.float32)
    with work.held():
        found, _ = calibrated(
            bound_tensors(checkpoint), checkpoint.config.decoder, "uint4", Q4_K_WHOLE, choose("numpy"), work,
            lambda: iter([x]),
        )  # fmt: skip
    for tensor in found.values():
        assert isinstance(tensor, PackedTensor)
        assert tensor.packed.scales.max() == Q4_K_WHOLE


def test_where_nothing_can_be_written_the_error_is_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert_calibrated(tiny, tmp_path / "file" / "out")


def test_a_model_without_pictures_reads_what_it_writes(tmp_path: Path) -> None:
    from tests.test_converting import text_only

    source = text_only(tmp_path / "source")
    out = convert_calibrated(source, tmp_path / "out", Reading())
    assert bound_tensors(open_checkpoint(out))["model.layers.0.mlp.down_proj.weight"].dtype == "uint4"


# ---------------------------------------------------------------- what is read


def test_questions_stand_beside_a_picture_or_for_all(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text("Who?\n\n  What? \n")
    general = reading_of(tmp_path, True).pictures
    assert [path.name for path, _ in general] == ["a.png", "b.JPG", "c.webp"]
    assert general[0][1] == ("Who?", "What?") and len(general[1][1]) > 1
    (tmp_path / "questions.txt").write_text("Where?")
    assert reading_of(tmp_path, True).pictures[1][1] == ("Where?",)
    assert [path.name for path in reading_of(tmp_path, False).texts] == ["a.txt", "questions.txt"]


def test_the_package_has_pictures_for_everyone() -> None:
    read = drawn(PICTURES)
    assert len(read.pictures) == 10 and all(picture.is_file() for picture, _ in read.pictures)
    assert read.digest() != Reading(read.pictures[:9]).digest()


@pytest.mark.parametrize("room, lengths", [(100, [5, 7, 11]), (13, [5, 7, 1]), (12, [5, 7]), (3, [3])])
def test_sequences_are_taken_until_there_is_no_room(room: int, lengths: list[int]) -> None:
    def sequences() -> Iterator[np.ndarray]:
        for n in (5, 7, 11):
            assert room > 12 or n < 11, "read and not taken"
            yield np.full((n, 2), n, np.float32)

    assert [len(x) for x in taken(sequences(), room)] == lengths


def test_what_was_needed_to_read_is_gone_when_layers_are_calibrated(tiny: Path, tmp_path: Path) -> None:
    """The model and the caches of its chats take more memory than all that follows."""

    def there() -> int:
        return sum(type(thing) in (Chat, MobileVLM) for thing in gc.get_objects())

    def progress(what: str, done: float, total: float) -> None:
        if what == "read" and done:
            chats.append(there())
        if what == "calibrate":
            assert there() == before

    chats, before = list[int](), there()
    two = Reading(tuple((PICTURES / f"{i}.png", ("Is the lamp on?", "Why?")) for i in range(2)))
    convert_calibrated(tiny, tmp_path / "out", two, progress)
    assert chats == [before + 1]  # the model alone


def test_little_to_read_is_told(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert_calibrated(tiny, tmp_path / "out")
    assert "positions were read; with fewer than 2048" in caplog.text


def test_each_sequence_sees_itself_alone() -> None:
    from mvlm_np import ops

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, 7, 8)).astype(np.float32) for _ in range(3))
    apart = Apart([3, 4])
    assert apart.positions(7).tolist() == [0, 1, 2, 0, 1, 2, 3]
    found = apart.attend(0, q, k, v, ops)  # type: ignore[arg-type]
    second = ops.attention(q[:, 3:], k[:, 3:], v[:, 3:], causal=True)
    np.testing.assert_array_equal(found[:, 3:], second)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--precision", "int8", "--calibrate"], "--calibrate: found --precision int8, wanted int4 or int4-"),
        (["--precision", "bf16", "--calibrate"], "--calibrate: found --precision bf16, wanted int4 or int4-"),
        (["--precision", "int4", "--calibrate", "nowhere"], "nowhere: is no folder"),
        (["--precision", "int4", "--calibrate", str(DATA)], f"{DATA}: holds no pictures"),
    ],
)
def test_a_bad_call_is_one_line(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(MODEL), str(tmp_path / "out"), *argv]) == 2
    assert capsys.readouterr().err.startswith(f"mvlm: {said}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_rounded_already_is_not_calibrated(tmp_path: Path) -> None:
    convert(open_checkpoint(GOLDEN), tmp_path / "int4", "int4")
    with pytest.raises(UserError, match="is rounded to uint4 already"):
        convert_calibrated(tmp_path / "int4", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]


def test_a_destination_that_is_there_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        convert_calibrated(MODEL, tmp_path)


def test_a_picture_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        convert_calibrated(MODEL, tmp_path / "out", reading_of(tmp_path / "photos", True))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
