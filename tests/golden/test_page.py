"""The page of a comparison: whole by itself, and the fault marked on it."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mvlm_np.errors import GoldenError
from mvlm_np.golden.compare.candidates import Candidate
from mvlm_np.golden.compare.comparison import compare
from mvlm_np.golden.compare.page import page, write_page
from tests.golden.recorded import against, recorded

VOID = {"meta", "img", "wbr", "br", "path"}


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps what the page refers to, and the classes it uses."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.marked: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [v for k, v in values.items() if k in ("src", "href") and v]
        self.marked += [tag] * ("marked" in (values.get("class") or "").split())
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def wrong():
    r = recorded()
    stages = dict(r.stages)
    stages["projector.mlp"] = stages["projector.mlp"].copy()
    stages["projector.mlp"][20, 5] += 1
    return against(r.golden, stages)


def test_the_page_needs_nothing_but_itself() -> None:
    text = page(wrong(), recorded().golden)
    read = Reader(text)
    assert read.sources and all(source.startswith("data:image/png;base64,") for source in read.sources)
    assert "url(" not in text and "<script" not in text and "@import" not in text
    assert 'name="viewport" content="width=device-width' in text
    assert len(text) < 1_000_000


def test_the_fault_is_marked_in_the_maps_and_in_the_table() -> None:
    text = page(wrong(), recorded().golden)
    read = Reader(text)
    assert "Wrong from projector.mlp on" in read.text
    assert read.marked == ["figure", "figure", "tr"]  # large, small, table
    assert text.count('<span class="fault') == 1
    assert "channel 5; token 20 (row 1, column 7)" in read.text


def test_a_right_candidate_has_a_page_without_marks() -> None:
    r = recorded()
    read = Reader(page(against(r.golden, r.stages), r.golden))
    assert "Right" in read.text and read.marked == []


def test_what_files_say_is_shown_as_text() -> None:
    r = recorded()
    found = Candidate({"logits": r.stages["logits"]}, unknown=("<script>alert(1)</script>",))
    text = page(compare(r.golden, found), r.golden)
    Reader(text)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_stages_that_cannot_be_measured_leave_a_page() -> None:
    r = recorded()
    for bad in (np.zeros(3), np.full_like(r.stages["logits"], np.nan)):
        Reader(page(against(r.golden, {"logits": bad}), r.golden))


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="cannot be written"):
        write_page(tmp_path / "missing" / "page.html", wrong(), recorded().golden)
