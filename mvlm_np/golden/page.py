"""A comparison as one page for a browser (in the making)."""

from pathlib import Path

from mvlm_np.golden.candidates import Candidate
from mvlm_np.golden.compare import Comparison
from mvlm_np.golden.format import Golden


def write_page(path: Path, result: Comparison, golden: Golden, candidate: Candidate) -> None:
    path.write_text("")
