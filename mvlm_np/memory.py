"""How much memory there is, and whether a model fits in it."""

from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that this process may still take, of the machine or of its container. None if unknown."""
    amounts = [_meminfo(), *_cgroup()]
    known = [amount for amount in amounts if amount is not None]
    return min(known) if known else None


def total() -> int | None:
    """Bytes of memory in the machine."""
    return _kilobytes(PROC / "meminfo", "MemTotal:")


def _meminfo() -> int | None:
    return _kilobytes(PROC / "meminfo", "MemAvailable:")


def _cgroup() -> list[int]:
    """What is left under each limit of the control groups that this process is in.

    Cached pages of files count as used there, but the system gives them up when memory runs short: without
    them, a model that has been read once, and so lies in that cache, would seem to leave no room for itself.
    """
    left = []
    for group in control_groups():
        limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
        if limit and used and limit[0].strip() != "max":
            fields = (entry.split() for entry in _lines(group / "memory.stat"))
            cached = sum(int(f[1]) for f in fields if f[0] in ("active_file", "inactive_file"))
            left.append(max(0, int(limit[0]) - max(0, int(used[0]) - cached)))
    return left


def control_groups() -> list[Path]:
    """The folders of the control group (v2) that this process is in and of those above it."""
    for line in _lines(PROC / "self/cgroup"):
        if line.startswith("0::"):
            folder = CGROUPS / line[3:].strip().lstrip("/")
            return [folder, *(group for group in folder.parents if group.is_relative_to(CGROUPS))]
    return []


def _kilobytes(path: Path, field: str) -> int | None:
    """The bytes that a line such as "MemFree:  1024 kB" stands for; None if there is no such line."""
    for line in _lines(path):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def peak() -> int | None:
    """The most memory this process has occupied so far (VmHWM), mapped pages included, in bytes."""
    return _kilobytes(PROC / "self/status", "VmHWM:")


def text(nbytes: int) -> str:
    """A number of bytes for people: 3.35 GB, 12.4 MB, 830 kB, 17 bytes."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= 0.9995 * size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"
