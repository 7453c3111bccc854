"""The fuzzer, for some seconds, on all ways in to `mvlm serve`; `make fuzz` takes ten minutes for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz import try_file
from tests.serve.fuzz_targets import TARGETS

names = pytest.mark.parametrize("name", TARGETS)


@names
def test_every_seed_is_read_or_refused_and_the_first_is_good(tmp_path: Path, name: str) -> None:
    target, path = TARGETS[name], tmp_path / "file"
    for seed in target.seeds():
        try_file(target, path, seed)
    path.write_bytes(target.seeds()[0])
    assert list(target.read(path))


def test_a_short_run_without_atheris_is_clean(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "10", "--engine", "random"]
    for name in TARGETS:
        command += ["--target", name]
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("clean") == len(TARGETS)
