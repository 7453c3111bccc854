"""The fuzzer: it finds what is there to be found, keeps it, and finds nothing in the readers of weights.

What it finds in requests to `mvlm serve` is in `tests/serve/test_fuzz.py`.
"""

import subprocess
import sys

import pytest

from mvlm_np.errors import UserError
from tests.checkpoints.fuzz_targets import TARGETS
from tests.conftest import ROOT
from tests.fuzz import fuzz_at_random, try_file
from tests.fuzz_target import Target


def test_a_planted_fault_is_found_and_kept(tmp_path, capsys):
    def read(path):
        if b"\xff\xff" in path.read_bytes():
            raise KeyError("planted")
        raise UserError(path, "is refused")

    with pytest.raises(SystemExit) as status:
        fuzz_at_random(Target(read, lambda: [b"seed"], words=(b"\xff\xff",)), 1, tmp_path, tmp_path)
    assert status.value.code == 1
    (crash,) = tmp_path.glob("crash-*")
    assert b"\xff\xff" in crash.read_bytes()
    assert "planted" in capsys.readouterr().err


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_read_or_refused(tmp_path, name):
    for seed in TARGETS[name].seeds():
        try_file(TARGETS[name], tmp_path / "file", seed)


@pytest.mark.parametrize("name", TARGETS)
def test_some_seeds_are_good_files(tmp_path, name):
    target = TARGETS[name]
    path = tmp_path / "file"
    path.write_bytes(target.wrap(target.seeds()[0]))
    assert list(target.read(path))


def test_a_short_run_without_atheris_is_clean(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "5", "--engine", "random"]
    for name in TARGETS:
        command += ["--target", name]
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("clean") == len(TARGETS)
