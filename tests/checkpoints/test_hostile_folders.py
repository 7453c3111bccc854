"""Model folders that are broken or hostile are refused, at little cost, by the rule that they break."""

import re
from pathlib import Path

import pytest

from mvlm_np.errors import UserError
from tests.checkpoints.confine import MEMORY, read_confined
from tests.checkpoints.hostile_files import open_all, write
from tests.checkpoints.hostile_folders import CASES

READER = "tests.checkpoints.hostile_files:open_all"


def test_the_folder_that_they_change_is_good(tmp_path: Path) -> None:
    open_all(write(tmp_path / "m", {}))


@pytest.mark.parametrize("name", CASES)
def test_hostile_folders_are_refused_with_the_rule_they_break(tmp_path: Path, name: str) -> None:
    changes, rule = CASES[name]
    folder = write(tmp_path / "m", changes)
    with pytest.raises(UserError) as refusal:
        open_all(folder)
    message = str(refusal.value)
    assert re.search(rule, message), message
    assert message.startswith(str(folder)) and message.isprintable()
    assert len(message) < len(str(folder)) * 3 + 1200


def test_no_folder_costs_much_or_runs_anything(tmp_path: Path) -> None:
    """1 s of CPU time and 200 MB at the very most, nothing imported, compiled or started, and no file opened
    but those in the folder."""
    paths = {name: write(tmp_path / str(i), changes) for i, (name, (changes, _)) in enumerate(CASES.items())}
    for name, outcome in zip(paths, read_confined(READER, list(paths.values())), strict=True):
        assert not outcome.signal, f"{name}: killed by signal {outcome.signal}"
        assert outcome.user_error, f"{name}: {outcome.error}: {outcome.message}"
        assert outcome.grown < MEMORY, f"{name}: {outcome.grown >> 20} MB"
        assert not outcome.events, f"{name}: {outcome.events}"
