"""How much memory is available, as /proc and the control groups say it."""

import platform
from pathlib import Path

import pytest

from mvlm_np import memory

MEMINFO = "MemTotal:       8000000 kB\nMemFree:         100 kB\nMemAvailable:    4000000 kB\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc and /sys/fs/cgroup, to be filled with `put`."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: str, used: int, stat: str = "anon 5\nfile 7\n") -> None:
    put(folder / "memory.max", f"{limit}\n")
    put(folder / "memory.current", f"{used}\n")
    put(folder / "memory.stat", stat)


def test_without_limits_it_is_what_the_machine_has(system: Path) -> None:
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/cgroup", "0::/\n")
    assert memory.available() == 4_000_000 * 1024


def test_nothing_is_known_where_nothing_can_be_read(system: Path) -> None:
    assert memory.available() is None
    assert memory.peak() is None


def test_the_tightest_of_all_groups_above_the_process_counts(system: Path) -> None:
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/cgroup", "1:name=systemd:/ignored\n0::/a/b/c\n")
    group(system / "cgroup/a/b/c", "max", 100)
    group(system / "cgroup/a/b", "5000", 1000)
    group(system / "cgroup/a", "3000", 2000)
    group(system / "cgroup/ignored", "10", 10)
    assert memory.available() == 1000


def test_the_machine_counts_where_it_has_less_than_the_group_allows(system: Path) -> None:
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/cgroup", "0::/a\n")
    group(system / "cgroup/a", str(1 << 40), 0)
    assert memory.available() == 4_000_000 * 1024


def test_cached_files_are_not_in_the_way(system: Path) -> None:
    """Reading a 3 GB checkpoint fills a container's account with pages that cost nothing to give up."""
    put(system / "proc/self/cgroup", "0::/\n")
    group(
        system / "cgroup",
        "4000",
        3500,
        "anon 300\nfile 3200\nactive_file 1000\ninactive_file 2100\nshmem 100\n",
    )
    assert memory.available() == 4000 - 400


def test_a_group_over_its_limit_leaves_nothing(system: Path) -> None:
    put(system / "proc/self/cgroup", "0::/\n")
    group(system / "cgroup", "1000", 1200)
    assert memory.available() == 0


def test_version_1_has_a_tree_for_memory(system: Path) -> None:
    """As older Docker, Jetson and NAS systems have them."""
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/cgroup", "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n")
    folder = system / "cgroup/memory/docker/abc"
    put(folder / "memory.limit_in_bytes", "5000\n")
    put(folder / "memory.usage_in_bytes", "4000\n")
    own, below = "active_file 1\ninactive_file 1\n", "total_active_file 500\ntotal_inactive_file 1000\n"
    put(folder / "memory.stat", own + below)
    assert memory.available() == 5000 - 2500
    put(system / "cgroup/memory/docker/memory.limit_in_bytes", "3000\n")
    put(system / "cgroup/memory/docker/memory.usage_in_bytes", "2000\n")
    assert memory.available() == 1000


def test_a_container_of_version_1_sees_its_own_group_as_the_root(system: Path) -> None:
    put(system / "proc/self/cgroup", "12:memory:/docker/abc\n")
    put(system / "cgroup/memory/memory.limit_in_bytes", "5000\n")
    put(system / "cgroup/memory/memory.usage_in_bytes", "0\n")
    assert memory.available() == 5000


def test_no_limit_of_version_1_is_a_large_number(system: Path) -> None:
    put(system / "proc/self/cgroup", "12:memory:/\n")
    put(system / "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    put(system / "cgroup/memory/memory.usage_in_bytes", "4000\n")
    assert memory.available() is None


@pytest.mark.parametrize("lines", ["", "\n", "memory\n", "0:\n", "::\n", "0::/../../..\n"])
def test_a_list_of_groups_that_is_odd_is_no_error(system: Path, lines: str) -> None:
    put(system / "proc/meminfo", MEMINFO)
    put(system / "proc/self/cgroup", lines)
    assert memory.available() == 4_000_000 * 1024


def test_the_real_system_says_something() -> None:
    available, peak = memory.available(), memory.peak()
    assert available is not None and 0 <= available < 1 << 50
    assert peak is not None and peak > 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked for what it keeps")
def test_free_memory_between_blocks_in_use_goes_back_to_the_system() -> None:
    def occupied() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])  # pages

    large, small = list[bytearray](), list[bytearray]()
    for _ in range(1000):
        large.append(bytearray(b"x" * 100_000))
        small.append(bytearray(b"x" * 1000))
    large.clear()
    before = occupied()
    memory.give_back()
    assert before - occupied() > 10_000  # of the 24,000 that are free
    assert len(small) == 1000
