"""`mvlm batch` and `mvlm evaluate` with --workers and --dask, as they are called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_np.demo import MODEL, PICTURES
from tests.conftest import DATA, ROOT

pytest.importorskip("distributed")
pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("dask")  # one cluster at a time

PHOTOS = [str(PICTURES / f"{i}.png") for i in range(3)]
LIGHT = ["--model", str(MODEL), "--precision", "int4", "--threads", "1"]


def mvlm(folder: Path, *args: str) -> tuple[int, str]:
    """Exit code, and what is said on stderr."""
    command = [sys.executable, "-m", "mvlm_np", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stderr


def test_batch_on_two_workers_writes_what_one_process_writes(tmp_path: Path) -> None:
    asked = ["batch", *PHOTOS, "--question", "Who?", "--question", "Why?", "--max-new-tokens", "4", *LIGHT]
    for more in (["-o", "one.jsonl"], ["-o", "two.jsonl", "--workers", "2"]):
        code, said = mvlm(tmp_path, *asked, *more)
        assert code == 0, said
    assert "2 workers; the dashboard: http://127.0.0.1:" in said
    one, two = (
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one.jsonl", "two.jsonl")
    )
    assert len(one) == 6 and one == two


def test_evaluate_on_two_workers_writes_what_one_process_writes(tmp_path: Path) -> None:
    asked = ["evaluate", "gqa", "--data", str(DATA / "evaluation"), "--limit", "4", *LIGHT]
    for more in (["--answers", "one.jsonl"], ["--answers", "two.jsonl", "--workers", "2"]):
        code, said = mvlm(tmp_path, *asked, *more)
        assert code == 0, said
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes() != b""


@pytest.mark.parametrize(
    "args, error",
    [
        (["--workers", "0"], "--workers: found 0, wanted at least 1"),
        (["--workers", "1", "--dask", "tcp://127.0.0.1:1"], "--workers: stands beside --dask"),
        (["--dask", "nonsense://here"], "nonsense://here: no scheduler answers (wanted tcp://HOST:PORT)"),
        (["--dask", "tcp://127.0.0.1:1"], "tcp://127.0.0.1:1: no scheduler answers ("),
    ],
)
def test_wrong_clusters_are_one_line(tmp_path: Path, args: list[str], error: str) -> None:
    code, said = mvlm(tmp_path, "batch", *PHOTOS, "What?", *LIGHT, *args)
    assert code == 2 and error in said and said.count("\n") == 1
