"""One training loop for all stages: AdamW, warm-up and cosine, clipping, mixed precision, resume, a curve."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as ranks
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_SECONDS = 60.0


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bfloat16() -> bool:
    """Whether this machine multiplies in bfloat16; where it does not, autocast would only cost time."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    with contextlib.suppress(OSError):
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    return False


def rank() -> int:
    """Which of several processes this is, that train together; 0 if it trains alone."""
    return ranks.get_rank() if ranks.is_initialized() else 0


def processes() -> int:
    return ranks.get_world_size() if ranks.is_initialized() else 1


def share(size: int) -> int:
    """This process's part of a batch."""
    return size // processes()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if ranks.is_initialized():
        ranks.barrier()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Makes the processes take the same step: each has had pictures of its own."""
    if ranks.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        ranks.all_reduce(flat)
        for g, mean in zip(
            gradients, (flat / processes()).split([*map(Tensor.numel, gradients)]), strict=True
        ):
            g.copy_(mean.view_as(g))


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine to nought: upstream's, as a factor of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(
    name: str,
    folder: Path,
    modules: dict[str, nn.Module],
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float,
    *,
    decay: float = 0.02,
    warmup: float = 0.03,
    stop_at: int | None = None,
    check: Callable[[int], str] | None = None,
    check_every: int = 0,
) -> list[float]:
    """Trains `modules` in place and returns the loss of every step; goes on where a killed run stopped.

    loss_of   step -> loss; the same step draws the same batch, so a resumed run goes on as it would have
    stop_at   end early, as a kill would, after a checkpoint
    check     called every `check_every` steps; what it says goes to the log
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    place, losses = folder / f"{name}.pt", list[float]()
    if place.exists():
        saved = torch.load(place, map_location=device(), weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(saved["modules"][key])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]

    def save() -> None:
        if rank() > 0:
            return
        state = {key: module.state_dict() for key, module in modules.items()}
        partial = place.with_suffix(".partial")
        torch.save({"modules": state, "optimizer": optimizer.state_dict(), "losses": losses}, partial)
        os.replace(partial, place)
        draw_curve(losses, steps, place.with_suffix(".png"))

    mixed = torch.autocast(device().type, torch.bfloat16, enabled=fast_bfloat16())
    saved_at = time.monotonic()
    end = min(steps, stop_at or steps)
    with tqdm(total=steps, initial=len(losses), desc=name, mininterval=10, disable=rank() > 0) as bar:
        for step in range(len(losses), end):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps, int(warmup * steps))
            with mixed:
                loss = loss_of(step)
            loss.backward()
            average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
            if check and check_every and rank() == 0 and (step + 1) % check_every == 0:
                bar.write(f"{name} step {step + 1}: {check(step + 1)}")
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = time.monotonic()
    save()
    wait_for_all()
    return losses


def draw_curve(losses: list[float], steps: int, path: Path) -> None:
    """The losses so far, averaged over a hundredth of the run, on a logarithmic scale, as a picture."""
    width, height, margin = 720, 360, 50
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    window = max(1, steps // 100)
    means = [sum(part) / len(part) for i in range(0, len(losses), window) if (part := losses[i : i + window])]
    points = [math.log10(max(m, 1e-6)) for m in means]
    low, high = math.floor(min(points, default=0)), math.ceil(max(points, default=1))
    high = max(high, low + 1)

    def at(step: float, value: float) -> tuple[float, float]:
        x = margin + (width - 2 * margin) * step / max(steps, 1)
        return x, height - margin - (height - 2 * margin) * (value - low) / (high - low)

    for power in range(low, high + 1):
        draw.line((at(0, power), at(steps, power)), "lightgrey")
        draw.text((4, at(0, power)[1] - 6), f"{10.0**power:g}", "black")
    said = f"0 .. {steps} steps; loss {means[-1] if means else 0:.4f}"
    draw.text((margin, height - margin + 8), said, "black")
    draw.line([at((i + 0.5) * window, p) for i, p in enumerate(points)], "navy", 2)
    picture.save(path)


def to_device(*arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(a).to(device(), non_blocking=True) for a in arrays)
