"""What stands in the repository: fit for any machine, small, and naming the commands that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

ONE_MACHINE = re.compile(r"(?<![\w.])/(tmp|work|root|home)/\w")
LARGEST = 12_000_000  # bytes


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files under version control, as they are in the working tree."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0")[:-1] if (path := ROOT / name).is_file()]


def lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        return []  # a picture, a model


def where(path: Path, number: int) -> str:
    return f"{path.relative_to(ROOT)}:{number}"


def test_no_file_names_a_path_of_one_machine(tracked: list[Path]) -> None:
    found = [where(p, n) for p in tracked for n, line in enumerate(lines(p), 1) if ONE_MACHINE.search(line)]
    assert found == []


def test_only_tests_know_of_material_beside_the_repository(tracked: list[Path]) -> None:
    outside = [p for p in tracked if not p.is_relative_to(ROOT / "tests")]
    assert [where(p, n) for p in outside for n, line in enumerate(lines(p), 1) if "../shared" in line] == []


def test_no_file_is_large(tracked: list[Path]) -> None:
    assert [(str(p), p.stat().st_size) for p in tracked if p.stat().st_size > LARGEST] == []


def test_the_readme_and_ci_name_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in readme and "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_make_target_that_a_document_names_exists(tracked: list[Path]) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = re.compile(r"(?:`|^ {4}|^\$ )make ([a-z][\w-]*)")
    for path in (p for p in tracked if p.suffix == ".md"):
        for number, line in enumerate(lines(path), 1):
            assert set(named.findall(line)) <= targets, where(path, number)


def test_every_link_between_documents_leads_somewhere(tracked: list[Path]) -> None:
    broken = []
    for path in (p for p in tracked if p.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert broken == []
