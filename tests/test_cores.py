"""Which cores are taken, on the /sys trees of boards and machines that this one is not."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from mvlm_np import cores, memory


class Machine:
    """A /sys, a /proc and an affinity of our own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.monkeypatch, self.count = root, monkeypatch, 0
        monkeypatch.setattr(cores, "CPUS", root / "cpu")
        monkeypatch.setattr(memory, "PROC", root / "proc")
        monkeypatch.setattr(memory, "CGROUPS", root / "cgroup")

    def add(self, n: int, threads: int = 1, **files: int) -> None:
        """n more cores of one kind; in names of files, __ stands for /."""
        for _ in range(n):
            siblings = range(self.count, self.count + threads)
            for cpu in siblings:
                shared = ",".join(map(str, siblings))
                self.put(f"cpu/cpu{cpu}/topology/thread_siblings_list", shared)
                for name, value in files.items():
                    self.put(f"cpu/cpu{cpu}/{name.replace('__', '/')}", str(value))
            self.count += threads
        self.allow(range(self.count))

    def allow(self, cpus: Iterable[int]) -> None:
        allowed = set(cpus)
        self.monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
        self.monkeypatch.setattr(os, "cpu_count", lambda: self.count)

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("clock", [1_800_000, 2_400_000], ids=["Pi 4", "Pi 5"])
def test_four_equal_cores_are_all_taken(machine: Machine, clock: int) -> None:
    machine.add(4, cpu_capacity=1024, cpufreq__cpuinfo_max_freq=clock)
    assert cores.usable() == ([0, 1, 2, 3], "every core that there is")


def test_of_an_rk3588_the_big_cores_are_taken(machine: Machine) -> None:
    machine.add(4, cpu_capacity=414, cpufreq__cpuinfo_max_freq=1_800_000)  # Cortex-A55
    machine.add(2, cpu_capacity=1002, cpufreq__cpuinfo_max_freq=2_352_000)  # Cortex-A76
    machine.add(2, cpu_capacity=1024, cpufreq__cpuinfo_max_freq=2_400_000)
    chosen, reason = cores.usable()
    assert chosen == [6, 7, 4, 5]
    assert reason == "4 slower cores, at 40% of the fastest, would hold up the other 4"


def test_without_capacities_the_clocks_tell_big_from_little(machine: Machine) -> None:
    machine.add(4, cpufreq__cpuinfo_max_freq=1_800_000)
    machine.add(4, cpufreq__cpuinfo_max_freq=2_400_000)
    assert cores.usable()[0] == [4, 5, 6, 7]


def test_a_phone_of_three_kinds_of_cores_gives_its_big_and_middle_ones(machine: Machine) -> None:
    machine.add(4, cpu_capacity=250)
    machine.add(3, cpu_capacity=700)
    machine.add(1, cpu_capacity=1024)
    assert cores.usable()[0] == [7, 4, 5, 6]


def test_little_cores_take_part_where_there_are_many_more_of_them(machine: Machine) -> None:
    machine.add(2, cpu_capacity=1024)
    machine.add(8, cpu_capacity=600)
    assert cores.usable() == (list(range(10)), "every core that there is")


def test_an_x86_hybrid_gives_one_thread_of_each_fast_core(machine: Machine) -> None:
    machine.add(2, threads=2, cpufreq__cpuinfo_max_freq=4_900_000)
    machine.add(2, threads=2, cpufreq__cpuinfo_max_freq=5_000_000)  # favoured ones
    machine.add(2, cpufreq__cpuinfo_max_freq=3_800_000)
    chosen, reason = cores.usable()
    assert chosen == [4, 6, 0, 2]
    assert "10 CPUs share 6 cores" in reason
    assert "2 slower cores, at 58%" in reason


@pytest.mark.parametrize(
    ("quota", "taken"),
    [("max", 4), ("20000", 1), ("120000", 1), ("150000", 2), ("200000", 2), ("900000", 4)],
)
def test_a_containers_quota_limits_the_number(machine: Machine, quota: str, taken: int) -> None:
    machine.add(4)
    machine.put("proc/self/cgroup", "0::/docker/abc")
    machine.put("cgroup/docker/abc/cpu.max", "max 100000")
    machine.put("cgroup/docker/cpu.max", f"{quota} 100000")  # the limit may stand further up
    chosen, reason = cores.usable()
    assert chosen == list(range(taken))
    assert ("quota" in reason) == (taken < 4)


@pytest.mark.parametrize(("quota", "taken"), [("-1", 4), ("150000", 2), ("0", 4)])
@pytest.mark.parametrize("tree", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["docker/abc/", ""])
def test_a_quota_of_version_1_counts_too(
    machine: Machine, quota: str, taken: int, tree: str, group: str
) -> None:
    machine.add(4)
    machine.put("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc")
    machine.put(f"cgroup/{tree}/{group}cpu.cfs_quota_us", quota)
    machine.put(f"cgroup/{tree}/{group}cpu.cfs_period_us", "100000")
    assert cores.usable()[0] == list(range(taken))


def test_the_affinity_counts_before_all_else(machine: Machine) -> None:
    machine.add(4, cpu_capacity=400)
    machine.add(4, cpu_capacity=1024)
    machine.allow([1, 2])
    assert cores.usable() == ([1, 2], "this process may use 2 of 8 CPUs")
    machine.allow([1, 5])
    assert cores.usable()[0] == [5]


def test_of_a_core_the_thread_that_the_affinity_leaves_is_taken(machine: Machine) -> None:
    machine.add(2, threads=2)
    machine.allow([1, 2, 3])
    assert cores.usable()[0] == [1, 2]


def test_where_the_system_says_nothing_every_cpu_is_a_core(machine: Machine) -> None:
    machine.count = 3
    machine.allow(range(3))
    assert cores.usable() == ([0, 1, 2], "every core that there is")


@pytest.mark.parametrize("damaged", ["", "0", "fast", "-1"])
def test_a_figure_that_is_none_is_not_used(machine: Machine, damaged: str) -> None:
    machine.add(2, cpu_capacity=1024)
    machine.put("cpu/cpu1/cpu_capacity", damaged)
    assert cores.usable()[0] == [0, 1]


def test_this_machine_has_a_core_for_us() -> None:
    chosen, reason = cores.usable()
    assert set(chosen) <= os.sched_getaffinity(0)
    assert len(chosen) == len(set(chosen)) >= 1
    assert reason
