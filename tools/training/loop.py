"""One training loop for all that is trained here: on accelerate, alone or in many processes, and resumable.

A step is made of micro-batches, which the processes share out among themselves. So the number of processes
changes how long a step takes, not what it does. What dropout leaves out is drawn for each micro-batch: it
depends on how a step is cut, and on nothing else.
"""

import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn
from tqdm import tqdm

from mvlm_np.errors import UserError
from tools.training.curve import draw_curve

CHECKPOINT_SECONDS = 60.0
WAIT = timedelta(hours=4)
FAULTS = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, PickleError)
PRECISIONS = ("no", "bf16", "fp16")
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass
class History:
    """What a run has come to so far."""

    losses: list[float] = field(default_factory=list)  # of every step
    checks: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # steps done, what was measured


def accelerator(precision: str | None = None) -> Accelerator:
    """The processes that train together, as `accelerate launch` has started them, and this one's device.

    precision: one of PRECISIONS, what products of matrices are computed in; None takes what the machine is
    quick in. The first call settles it for the process.
    """
    if not _made:
        found = Accelerator(
            mixed_precision=precision or quick_precision(),
            cpu=not torch.cuda.is_available(),
            # Else a variable of the environment may set another number, by which all gradients are divided.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),  # the tower's last layer
                InitProcessGroupKwargs(timeout=WAIT),  # for the one that writes a large checkpoint
            ],
        )
        if found.distributed_type not in KINDS:
            kind, wanted = (
                found.distributed_type.value,
                "MULTI_GPU or MULTI_CPU, the whole model in each process",
            )
            raise UserError("accelerate", kind, wanted, "run `accelerate config` anew")
        _made.append(found)
    return _made[0]


_made: list[Accelerator] = []


def quick_precision() -> str:
    """bf16 where this machine multiplies in it, fp16 on older GPUs; elsewhere either would only cost time."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    with suppress(OSError):
        if {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()):
            return "bf16"
    return "no"


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up from nought, then half a cosine to nought: the learning rate's factor, as published."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(
    name: str,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int, int], Any],
    steps: int,
    *,
    micro_batches: int,
    share: Callable[[int, int], float] | None = None,
    warmup: float = 0.03,
    clip: float | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    stop_at: int | None = None,
    silent: bool = False,
    check: Callable[[], Mapping[str, float]] | None = None,
    check_every: int = 0,
    workers: int = 1,
) -> History:
    """Trains `model` in place, on the accelerator's device; goes on where a stopped or killed run ended.

    model          called with what `batch` returns, gives the loss
    optimizer      its rates are those after the warm-up
    batch          step, number of the micro-batch -> what the model takes; the same numbers give the same, so
                   that a resumed run goes on as it would have
    micro_batches  of a step, all processes' together: a multiple of how many processes there are
    share          step, number -> what the micro-batch's loss counts for in the step's; None: all the same
    warmup         this share of the steps, rounded up
    clip           the largest norm of all gradients together
    settings       a checkpoint of a run with others is refused
    stop_at        end early, after a checkpoint
    silent         a step in which nothing is learned has a loss that is not a number; else it ends the run
    check          measures; called in every process, at first, each `check_every` steps, and at the end
    workers        threads that prepare micro-batches ahead
    """
    run, settings = accelerator(), {**(settings or {}), "steps": steps}
    mine = range(run.process_index, micro_batches, run.num_processes)
    assert micro_batches % run.num_processes == 0
    folder.mkdir(parents=True, exist_ok=True)
    place, rates = folder / f"{name}.pt", [group["lr"] for group in optimizer.param_groups]
    prepared, stepper = run.prepare(model, optimizer)
    history = _load(place, model, optimizer, settings) if _all_see(place) else History()
    first, end = len(history.losses), min(steps, stop_at or steps)
    ahead = _ahead(batch, ((step, i) for step in range(first, end) for i in mine), workers)
    saved_at, saving = time.monotonic(), 0.0

    def save() -> None:
        nonlocal saved_at, saving
        if run.is_main_process:
            began = time.monotonic()
            _write(place, model, optimizer, history, settings)
            draw_curve(history.losses, history.checks, steps, place.with_suffix(".png"))
            saved_at = time.monotonic()
            saving = saved_at - began

    @contextmanager
    def kept() -> Iterator[None]:
        """What has been learned is kept if a picture cannot be read."""
        try:
            yield
        except (UserError, OSError):
            if history.losses:
                save()
            raise

    def measure() -> None:
        done = len(history.losses)
        due = done in (0, steps) or (check_every and done % check_every == 0)
        if not check or not due or done in [step for step, _ in history.checks[-1:]]:
            return
        model.eval()
        with torch.inference_mode(), kept():
            measured = {what: float(value) for what, value in check().items()}
        history.checks.append((done, measured))
        if run.is_main_process:
            said = " ".join(f"{what} {value:.3f}" for what, value in measured.items())
            bar.write(f"{name} step {done}: {said}", file=sys.stderr)

    bar = tqdm(total=steps, initial=first, desc=name, mininterval=1, disable=not run.is_main_process)
    with bar, _Stop() as stop:
        checked = len(history.checks)
        measure()
        for step in range(first, end):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps, math.ceil(warmup * steps))
            model.train()
            total = torch.zeros(2, device=run.device)
            for i in mine:
                torch.manual_seed(hash((seed, step, i)))  # for dropout: the same, whoever computes it
                with kept():
                    taken = next(ahead)
                with nullcontext() if i == mine[-1] else run.no_sync(prepared):
                    loss = prepared(taken) * (share(step, i) if share else 1 / micro_batches)
                    run.backward(loss * run.num_processes)  # of the processes' gradients the mean is taken
                total[0] += loss.detach()
            if clip:
                run.clip_grad_norm_(model.parameters(), clip)
            stepper.step()
            stepper.zero_grad()
            total[1] = stop.asked
            now, asked = run.reduce(total, "sum").tolist()
            if not (math.isfinite(now) or silent):
                raise UserError(
                    f"step {step + 1}", f"its loss is {now}", "a number", "lower the learning rate"
                )
            history.losses.append(now)
            recent = history.losses[-50:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
            measure()
            # Large models take long to save: no more than a tenth of the time goes into that.
            if asked or time.monotonic() - saved_at > max(CHECKPOINT_SECONDS, 10 * saving):
                save()
            if asked:
                raise KeyboardInterrupt
    if first < end or checked < len(history.checks):
        save()
    run.wait_for_everyone()
    run.free_memory()
    return history


def _ahead(
    batch: Callable[[int, int], Any], wanted: Iterable[tuple[int, int]], workers: int
) -> Iterator[Any]:
    """What `batch` makes of each of `wanted`, prepared in threads while the one before is in use."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque[Future[Any]]()
        for step, i in wanted:
            waiting.append(pool.submit(batch, step, i))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Stop:
    """Ctrl-C, or a request to end, is heeded after the step and a checkpoint; another, later one at once.

    Of one Ctrl-C a process may hear twice: from the terminal, and from the launcher.
    """

    asked = False
    at = 0.0

    def __enter__(self) -> "_Stop":
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, *_: object) -> None:
        if self.asked and time.monotonic() - self.at > 1:
            raise KeyboardInterrupt
        self.asked, self.at = True, time.monotonic()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- checkpoints


def _all_see(place: Path) -> bool:
    """Whether there is a checkpoint; the processes must agree."""
    run = accelerator()
    see = int(run.reduce(torch.tensor(float(place.exists()), device=run.device), "sum").item())
    if see not in (0, run.num_processes):
        found = f"{see} of {run.num_processes} processes see it"
        raise UserError(place, found, "all", "use a folder that they share")
    return see > 0


def _write(
    place: Path, model: nn.Module, optimizer: Any, history: History, settings: Mapping[str, Any]
) -> None:
    frozen, scaler = _frozen(model), accelerator().scaler
    state = {
        "model": {name: tensor for name, tensor in model.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "losses": history.losses,
        "checks": history.checks,
        "settings": settings,
    }
    if not all(tensor.isfinite().all() for tensor in state["model"].values()):
        found = f"has made weights that are no numbers, by step {len(history.losses)}"
        raise UserError("training", found, fix="lower the learning rate")
    partial = place.with_suffix(".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, place)
    except (OSError, RuntimeError) as error:  # torch has one of its own for a full disk
        partial.unlink(missing_ok=True)
        found = f"cannot be written ({str(error).splitlines()[0]})"
        raise UserError(place, found, fix="make room on the disk, then the same command goes on") from None


def _load(place: Path, model: nn.Module, optimizer: Any, settings: Mapping[str, Any]) -> History:
    run = accelerator()
    try:
        saved = torch.load(place, map_location="cpu", weights_only=True)
        before, history = saved["settings"], History(saved["losses"], saved["checks"])
        for name in {**settings, **before}:
            if (was := before.get(name)) != (now := settings.get(name)):
                fix = "go on with that, or name another folder"
                raise UserError(place, f"its run had {name} {was}", now, fix)
        model.load_state_dict(saved["model"] | {name: model.get_parameter(name) for name in _frozen(model)})
        optimizer.load_state_dict(saved["optimizer"])
        if run.scaler and saved["scaler"]:
            run.scaler.load_state_dict(saved["scaler"])
        return history
    except UserError:
        raise
    except FAULTS as error:
        said = str(error).partition("\n")[0].partition(". ")[0]
        found = f"not readable ({type(error).__name__}: {said})"
        raise UserError(place, found, "a checkpoint of this run", "remove it to begin anew") from None


def _frozen(model: nn.Module) -> set[str]:
    """Of a weight that two modules share, both names."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
