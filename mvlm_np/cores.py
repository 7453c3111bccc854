"""Which CPUs to compute on: `mvlm doctor` shows the choice, the threads of the kernels follow it.

Whatever the threads share, they wait for the last of them: k threads do little more than k times the work of
the slowest of their cores. On a board with big and little cores, that may be less than the big ones do alone.
"""

import os
from pathlib import Path

from mvlm_np import memory

CPUS = Path("/sys/devices/system/cpu")

FAST = 0.75  # of the fastest core's speed: cores from here on always take part
# Slower cores take part if together they promise this many times more. Their speed is that of programs of
# one number at a time; their vectors, caches and share of the memory's rate are smaller still.
GAIN = 1.25


def usable() -> tuple[list[int], str]:
    """The CPUs to run one thread each on, the fastest first, at least one; and why these, for people.

    They are those that this process may use (its affinity), one for each core, without cores so slow that
    the others would wait for them, and no more than the control group's quota of CPU time pays for.
    """
    allowed = sorted(os.sched_getaffinity(0))
    cores = _one_a_core(allowed)
    speeds = _speeds(cores)
    fast = _worth_waiting_for(speeds)
    chosen, quota = fast, _quota()
    if quota is not None:
        chosen = fast[: max(1, int(quota + 0.5))]

    total, reasons = os.cpu_count() or len(allowed), []
    if len(allowed) < total:
        reasons.append(f"this process may use {len(allowed)} of {total} CPUs")
    if len(cores) < len(allowed):
        reasons.append(f"{len(allowed)} CPUs share {len(cores)} cores, which one thread each keeps busy")
    if slow := [speeds[cpu] for cpu in cores if cpu not in fast]:
        rate = f"at {max(slow):.0%} of the fastest"
        reasons.append(f"{len(slow)} slower cores, {rate}, would hold up the other {len(fast)}")
    if quota is not None and len(chosen) < len(fast):
        reasons.append(f"the control group's quota is {quota:.3g} CPUs")
    return chosen, "; ".join(reasons) or "every core that there is"


def _one_a_core(cpus: list[int]) -> list[int]:
    """The first of the given CPUs in each core. They share its arithmetic units, which one thread fills."""
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = _text(CPUS / f"cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings or str(cpu), cpu)
    return list(first.values())


def _speeds(cpus: list[int]) -> dict[int, float]:
    """Each core's speed, the fastest one's being 1. All are 1 where the system does not tell them apart.

    The kernel's own figure is `cpu_capacity`, on most ARM boards. Where it is absent the highest clock must
    do, squared: a core built for a lower clock does less in each of its cycles, too.
    """
    for name, power in (("cpu_capacity", 1), ("cpufreq/cpuinfo_max_freq", 2)):
        figures = {cpu: _text(CPUS / f"cpu{cpu}/{name}") for cpu in cpus}
        if all(text.isdigit() and int(text) for text in figures.values()):
            fastest = max(map(int, figures.values()))
            return {cpu: (int(text) / fastest) ** power for cpu, text in figures.items()}
    return dict.fromkeys(cpus, 1.0)


def _worth_waiting_for(speeds: dict[int, float]) -> list[int]:
    """The cores that do most together, the fastest first."""
    ranked = sorted(speeds, key=lambda cpu: (-speeds[cpu], cpu))
    chosen = [cpu for cpu in ranked if speeds[cpu] >= FAST]
    work = GAIN * len(chosen) * speeds[chosen[-1]]
    for n in range(len(chosen) + 1, len(ranked) + 1):
        if n * speeds[ranked[n - 1]] >= work:
            chosen, work = ranked[:n], n * speeds[ranked[n - 1]]
    return chosen


def _quota() -> float | None:
    """CPUs that the control groups of this process may keep busy; None: as many as there are."""
    quotas = []
    for group in memory.control_groups("cpu"):
        # In version 2 one file holds quota and period, in version 1 two.
        fields = _text(group / "cpu.max").split() or [
            _text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        if len(fields) == 2 and all(field.isdecimal() and int(field) for field in fields):
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
