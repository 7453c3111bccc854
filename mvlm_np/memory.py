"""How much memory there is, and whether a model fits in it."""

from pathlib import Path


def available() -> int | None:
    """Bytes that this process may still take, of the machine or of its container. None if unknown."""
    amounts = [_meminfo(), *_cgroup()]
    known = [amount for amount in amounts if amount is not None]
    return min(known) if known else None


def _meminfo() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup() -> list[int]:
    """What is left under each limit of the control groups (v2) that this process is in."""
    left = []
    for line in _lines(Path("/proc/self/cgroup")):
        if line.startswith("0::"):
            folder = Path("/sys/fs/cgroup") / line[3:].strip().lstrip("/")
            for group in [folder, *folder.parents]:
                limit = _lines(group / "memory.max")
                used = _lines(group / "memory.current")
                if limit and used and limit[0].strip() != "max":
                    left.append(max(0, int(limit[0]) - int(used[0])))
    return left


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def peak() -> int | None:
    """The most memory this process has occupied so far (VmHWM), mapped pages included, in bytes."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
