"""How much memory there is, and whether a model fits in it."""

from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # what a control group of version 1 calls no limit lies above


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
    for group in control_groups("memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and limit < UNLIMITED and used is not None:
            stat = dict(entry.split() for entry in _lines(group / "memory.stat") if entry.count(" ") == 1)
            # Version 1 has both the group's own figures and, as total_, those with all groups below it.
            cached = sum(
                int(stat.get(f"total_{name}", stat.get(name, 0))) for name in ("active_file", "inactive_file")
            )
            left.append(max(0, limit - max(0, used - cached)))
    return left


def control_groups(controller: str) -> list[Path]:
    """The folders of the control groups of this process, and of those above them, that may set limits.

    controller  "memory" or "cpu". Version 2 has one tree of groups, version 1 a tree for each controller or
                for several. A container may see its own group as the root, under which no path is found.
    """
    found = []
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for root in dict.fromkeys((CGROUPS / controllers, CGROUPS / controller if controllers else CGROUPS)):
            folder = root / path.strip().lstrip("/")
            found += [folder, *(group for group in folder.parents if group.is_relative_to(root))]
    return found


def _number(*paths: Path) -> int | None:
    """The number in the first of these files that is there; None for a word, such as "max"."""
    text = next((lines[0].strip() for path in paths if (lines := _lines(path))), "")
    return int(text) if text.isdecimal() else None


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


def peak(process: int | None = None) -> int | None:
    """The most memory this process has occupied so far (VmHWM), mapped pages included, in bytes.

    process  the number of another one
    """
    return _kilobytes(PROC / str(process or "self") / "status", "VmHWM:")


def own(process: int) -> int | None:
    """The bytes that a process occupies now (RssAnon), without what is mapped from files."""
    return _kilobytes(PROC / str(process) / "status", "RssAnon:")


def give_back() -> None:
    """Hands the system the memory that is free in this process.

    glibc keeps what lies between blocks that are in use, for small blocks to come; a model's matrices leave
    much of it. Other C libraries have nothing to call, and are left alone.
    """
    import ctypes  # here, as a start has no use for it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def text(nbytes: int) -> str:
    """A number of bytes for people: 3.35 GB, 12.4 MB, 830 kB, 17 bytes."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= 0.9995 * size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"
