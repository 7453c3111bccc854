"""The training loop, on models of a few numbers: what a step is, what a stop, a kill or a fault leaves."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor, nn

from mvlm_np.errors import UserError
from tools.training.curve import HELD_OUT, TRAINING, draw_curve
from tools.training.loop import History, fit, quick_precision, schedule


class Line(nn.Module):
    """Two layers with dropout between them, and one that is frozen and one that is never run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.idle = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(2, 2)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        h = nn.functional.dropout(self.first(x).tanh(), 0.25, self.training)
        return (self.frozen(self.second(h)) - y).square().mean()


def batch(step: int, i: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + i)
    x = torch.randn(2 + i, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def run(folder: Path, model: Line | None = None, **options: Any) -> tuple[Line, History]:
    model = model or Line()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    given: dict[str, Any] = {"batch": batch, "steps": 12, "micro_batches": 2, **options}
    return model, fit("line", folder, model, optimizer, **given)


def test_a_step_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Each micro-batch counts for as much as it has rows; so two of them are one large one."""

    def whole(step: int, i: int) -> tuple[Tensor, ...]:
        return tuple(map(torch.cat, zip(batch(step, 0), batch(step, 1), strict=True)))

    class Certain(Line):
        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return (self.second(self.first(batch[0]).tanh()) - batch[1]).square().mean()

    parts, _ = run(tmp_path / "parts", Certain(), share=lambda step, i: (2 + i) / 5, clip=0.1)
    together, _ = run(tmp_path / "whole", Certain(), batch=whole, micro_batches=1, clip=0.1)
    for a, b in zip(parts.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_its_steps_are_those_of_torch_alone(tmp_path: Path) -> None:
    model, history = run(tmp_path, steps=9, warmup=0.25, seed=3)
    alone, losses = Line(), []
    optimizer = torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad])
    for step in range(9):
        optimizer.param_groups[0]["lr"] = 0.05 * (
            step / 3 if step < 3 else 0.5 + 0.5 * math.cos(math.pi * (step - 3) / 6)
        )
        total = torch.zeros(())
        for i in range(2):
            torch.manual_seed(hash((3, step, i)))
            total = total + alone(batch(step, i)) / 2
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    np.testing.assert_allclose(history.losses, losses, rtol=1e-6)
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_schedule_is_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    for step in range(20):
        assert schedule(step, 20, 3) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_a_run_in_pieces_is_the_run_in_one(tmp_path: Path) -> None:
    """To the bit, dropout included; the checkpoint has neither what is frozen nor more than is needed."""
    whole, history = run(tmp_path / "whole")
    for stop in (1, 5, 8):
        run(tmp_path / "pieces", stop_at=stop)
    pieces, again = run(tmp_path / "pieces")
    assert again.losses == history.losses
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(a, b)
    kept = torch.load(tmp_path / "pieces" / "line.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in kept} == {"first", "second", "idle"}
    assert sorted(f.name for f in (tmp_path / "pieces").iterdir()) == ["line.png", "line.pt"]


def test_checks_are_made_on_time_and_kept(tmp_path: Path) -> None:
    model = Line()

    def check() -> dict[str, float]:
        assert not model.training and torch.is_inference_mode_enabled()
        return {"loss": np.float64(0.5), "exact": 1}

    for stop in (6, None):
        _, history = run(tmp_path, model, check=check, check_every=5, stop_at=stop)
    assert history.checks == [(step, {"loss": 0.5, "exact": 1.0}) for step in (0, 5, 10, 12)]


@pytest.mark.parametrize("at", [5, 12])
def test_a_check_that_cannot_be_made_loses_nothing_and_is_made_later(tmp_path: Path, at: int) -> None:
    """Such as one of a picture that cannot be read."""
    made: list[int] = []

    def check() -> dict[str, float]:
        made.append(len(made))
        if len(made) == (2 if at == 5 else 4):
            raise UserError("photo.jpg", "is cut off")
        return {"loss": 0.5}

    with pytest.raises(UserError, match=r"^photo\.jpg: is cut off$"):
        run(tmp_path, check=check, check_every=5)
    assert len(torch.load(tmp_path / "line.pt", weights_only=True)["losses"]) == at
    model, history = run(tmp_path, check=check, check_every=5)
    assert [step for step, _ in history.checks] == [0, 5, 10, 12]
    assert len(torch.load(tmp_path / "line.pt", weights_only=True)["checks"]) == 4
    whole, unbroken = run(tmp_path / "whole")
    assert history.losses == unbroken.losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    with pytest.raises(UserError, match=r"^photo\.jpg"):  # the first: nothing is learned yet
        made[:] = [0] if at == 5 else [0, 0, 0]
        run(tmp_path / "none", check=check)
    assert not (tmp_path / "none" / "line.pt").exists()


def test_weights_that_are_shared_and_frozen_are_in_no_checkpoint(tmp_path: Path) -> None:
    """Embeddings that give the logits, too, have two names."""

    class Tied(Line):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.frozen

    for stop in (3, None):
        run(tmp_path, Tied(), stop_at=stop)
    kept = torch.load(tmp_path / "line.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in kept} == {"first", "second", "idle"}


def test_many_threads_prepare_and_order_stays(tmp_path: Path) -> None:
    found = [run(tmp_path / str(workers), workers=workers)[1].losses for workers in (1, 4)]
    assert found[0] == found[1]


# ---------------------------------------------------------------- faults, each one line


UNREADABLE = r"not readable \(.*\), wanted a checkpoint of this run; remove it to begin anew$"


DAMAGES: list[dict[str, Any]] = [
    {"model": None},
    {"optimizer": None},
    {"losses": None},
    {"settings": 3},
    {"model": {"first.weight": torch.ones(3)}},
    {"optimizer": {"state": {}, "param_groups": []}},
]


def damage(place: Path, **change: Any) -> None:
    """Puts other parts in place of some of a checkpoint's; None: leaves the part out."""
    parts = torch.load(place, weights_only=True) | {"settings": {"rate": 2, "steps": 12}} | change
    torch.save({name: part for name, part in parts.items() if part is not None}, place)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda f: f.write_bytes(b"PK\3\4 and no more"), UNREADABLE),
        (lambda f: f.write_bytes(f.read_bytes()[:900]), UNREADABLE),
        (lambda f: torch.save([1], f), UNREADABLE),
        *[(partial(damage, **change), UNREADABLE) for change in DAMAGES],
        (lambda f: None, "its run had rate 1, wanted 2; go on with that, or name another folder$"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs(tmp_path: Path, fault: Callable[[Path], Any], rule: str) -> None:
    place = tmp_path / "line.pt"
    run(tmp_path, stop_at=3, settings={"rate": 1})
    fault(place)
    before = place.read_bytes()
    with pytest.raises(UserError, match=f"^{re.escape(str(place))}: {rule}") as raised:
        run(tmp_path, settings={"rate": 2})
    assert "\n" not in str(raised.value)
    assert place.read_bytes() == before


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, stop_at=2)
    before = (tmp_path / "line.pt").read_bytes()

    class Nothing(Line):
        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.first.weight.sum() * math.nan

    with pytest.raises(
        UserError, match=r"^step 3: its loss is nan, wanted a number; lower the learning rate$"
    ):
        run(tmp_path, Nothing())
    assert (tmp_path / "line.pt").read_bytes() == before
    with pytest.raises(
        UserError, match=r"^training: has made weights that are no numbers, by step 12; lower"
    ):
        run(tmp_path, Nothing(), silent=True)
    assert (tmp_path / "line.pt").read_bytes() == before


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, stop_at=2)
    before = (tmp_path / "line.pt").read_bytes()

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"the first half")
        raise RuntimeError("PytorchStreamWriter failed writing file\nand where")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match=r"line.pt: cannot be written \(PytorchStreamWriter failed writing \w+\)"
    ):
        run(tmp_path, stop_at=4)
    assert (tmp_path / "line.pt").read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["line.png", "line.pt"]


# ---------------------------------------------------------------- several processes, stops and kills

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from tests.training import test_loop
from tools.training import loop
torch.set_num_threads(1)
folder, slow, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
inner = test_loop.batch
def batch(step, i):
    time.sleep(slow)
    return inner(step, i)
test_loop.batch = batch
loop.CHECKPOINT_SECONDS = 0
model, history = test_loop.run(folder, steps=steps)
if loop.accelerator().is_main_process:
    torch.save({"losses": history.losses, "model": model.state_dict()}, folder / "end")
print("processes", loop.accelerator().num_processes)
if torch.distributed.is_initialized():
    group = torch.distributed.distributed_c10d._get_default_group()
    print("waits for", group._get_backend(torch.device("cpu")).options._timeout)
"""


def start(
    folder: Path, slow: float = 0, steps: int = 12, processes: int = 1, **environment: str
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, *(launch(processes) if processes > 1 else [])]
    return subprocess.Popen(
        [*command, script, folder, str(slow), str(steps)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(processes: int) -> list[str]:
    """`accelerate launch`, which starts several processes only under --multi_gpu; no GPU is needed."""
    options = f"--multi_gpu --num_processes={processes} --num_machines=1 --main_process_port=0"
    more = "--mixed_precision=no --dynamo_backend=no"
    return ["-m", "accelerate.commands.launch", *options.split(), *more.split()]


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Returns when the run has written such a file."""
    for _ in range(600):
        if any(folder.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} after a minute")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Also if one alone has begun, and whatever accelerate has been told to divide gradients by."""
    run(tmp_path / "two", stop_at=3)
    process = start(tmp_path / "two", processes=2, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and said.count("processes 2") == 2, said
    assert said.count("waits for 4:00:00") == 2, said  # the others wait while one writes
    found = torch.load(tmp_path / "two" / "end", weights_only=True)
    model, history = run(tmp_path / "one")
    np.testing.assert_allclose(found["losses"], history.losses, rtol=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_killed_or_stopped_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, slow=0.05)
    wait_for(process, tmp_path, "line.pt")
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert process.returncode != 0 and not (tmp_path / "end").exists(), said
    done = len(torch.load(tmp_path / "line.pt", weights_only=True)["losses"])
    assert 0 < done < 12
    model, history = run(tmp_path)
    whole, unbroken = run(tmp_path / "whole")
    assert history.losses == unbroken.losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


# ---------------------------------------------------------------- the curve


def test_the_curve_shows_both_losses(tmp_path: Path) -> None:
    losses = [math.nan, *(2 * math.exp(-step / 40) for step in range(199))]
    checks = [(50, {"loss": 1.0}), (100, {"loss": 0.5}), (150, {"exact": 1.0}), (200, {"loss": 0.02})]
    draw_curve(losses, checks, 200, tmp_path / "curve.png")
    pixels = np.asarray(Image.open(tmp_path / "curve.png"))
    for colour in (TRAINING, HELD_OUT):
        there = (pixels == ImageColor.getrgb(colour)).all(-1)[:300]
        rows, columns = np.nonzero(there)
        left, right = rows[columns == columns.min()].mean(), rows[columns == columns.max()].mean()
        assert right - left > 20  # it falls
        assert columns.max() - columns.min() > 400
    draw_curve([], [], 5, tmp_path / "nothing.png")
    assert [f.name for f in tmp_path.glob("*partial*")] == []


def test_the_machines_precision_is_one_that_accelerate_knows() -> None:
    assert quick_precision() in ("no", "bf16", "fp16")
