"""The server's page as it leaves the server: one piece, that lets nothing else in."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from mvlm_np.serve.page import page


class Reader(HTMLParser):
    """The attributes of a page, (tag, name, value), and the text of its style and script."""

    def __init__(self, text: str):
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self.lasttag in ("style", "script") and data.strip():
            assert self.lasttag not in self.texts  # one of each
            self.texts[self.lasttag] = data


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(page("a model", 8)[0].decode())


def test_it_asks_for_nothing_and_holds_no_code_in_attributes(read: Reader) -> None:
    sources = {
        value for _, name, value in read.attributes if name in ("src", "href", "action", "data", "srcset")
    }
    assert sources == {"data:,"}  # without this icon, browsers ask for /favicon.ico
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"https?:|@import|url\(", page("a model", 8)[0].decode())
    makes_markup = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|createContextualFragment"
    )
    assert not re.search(makes_markup, read.texts["script"])


def test_its_policy_allows_its_own_style_and_script_and_answers(read: Reader) -> None:
    policy = page("a model", 8)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for text, rule in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(read.texts[text].encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert rules == nothing | {"img-src": "data:", "connect-src": "'self'"}


def test_a_models_name_is_text() -> None:
    evil = '"><script>alert(1)</script>$script'
    read = Reader(page(evil, 8)[0].decode())
    assert ("body", "data-model", evil) in read.attributes
    assert "alert(1)" not in read.texts["script"]
    assert page(evil, 8)[1] == page("a model", 8)[1]


@pytest.mark.parametrize(("pad", "fit"), [(True, "pad"), (False, "cut")])
def test_it_knows_what_the_server_takes(pad: bool, fit: str) -> None:
    read = Reader(page("a model", 3, pad)[0].decode())
    assert {("body", "data-pictures", "3"), ("body", "data-fit", fit)} <= {*read.attributes}
