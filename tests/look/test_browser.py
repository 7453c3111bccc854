"""The page in a real browser, on a phone's screen and a desk's: what one points at, moves to and reads.

Needs Chromium, its driver and selenium; on Debian and Ubuntu: apt-get install chromium chromium-driver.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.look.page import write_page
from tests import browser
from tests.browser import DESK, PHONE, SMALL_PHONE, By, Keys, WebDriverWait, webdriver
from tests.look.looked import looked, numbers

pytestmark = pytest.mark.xdist_group("browser")  # one worker, so that one browser is started


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "look.html"
    write_page(path, looked("demo"), numbers("demo"))
    return path


class Opened(browser.Opened):
    """A look's page in the browser."""

    def __init__(self, driver: Any, path: Path, size: tuple[int, int] = DESK, scheme: str = "light"):
        super().__init__(driver, path.as_uri(), size, scheme)
        wait = WebDriverWait(driver, 60)
        wait.until(lambda d: d.execute_script("return document.body.dataset.ready") == "yes")

    def point(self, id: str, x: float, y: float, click: bool = False) -> None:
        """Moves the mouse to a place in an element; x and y are parts of its width and height."""
        element = self.by_id(id)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        actions = webdriver.ActionChains(self.driver, duration=0)
        actions.move_to_element_with_offset(
            element, int((x - 0.5) * size["width"]), int((y - 0.5) * size["height"])
        )
        (actions.click() if click else actions).perform()

    def strengths(self, id: str) -> np.ndarray:
        """How strongly each cell of a map is coloured, 0 to 1: (rows, columns)."""
        return browser.strengths(self.driver, f"#{id} canvas")


def strengths(weights: np.ndarray) -> np.ndarray:
    """What a map of weights, one for each cell, must look like."""
    side = round(weights.size**0.5)
    return (weights / weights.max()).reshape(side, side)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, SMALL_PHONE, DESK], ids=["phone", "small phone", "desk"])
def test_it_loads_without_errors_and_requests_and_fits_the_screen(
    driver: Any, page: Path, size: tuple[int, int], scheme: str
) -> None:
    opened = Opened(driver, page, size, scheme)
    opened.by_id("lens-details").find_element(By.TAG_NAME, "summary").click()
    assert driver.get_log("browser") == []
    assert opened.requested() == {page.as_uri()}
    assert opened.wider_than_the_screen(".scroll", ".steps") == []


def test_without_a_picture_it_loads_too(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.html"
    write_page(path, looked("demo", with_picture=False), numbers("demo", with_picture=False))
    opened = Opened(driver, path, PHONE)
    opened.run("document.querySelector('#steps input').focus()")
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert opened.run("return document.querySelectorAll('#steps input')[1].checked")
    assert driver.get_log("browser") == []
    assert opened.text("text-words").startswith("Of the text")
    assert opened.run("return document.querySelectorAll('h2').length") == 4


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
def test_models_of_every_projector_have_a_page(driver: Any, tmp_path: Path, name: str) -> None:
    write_page(tmp_path / "page.html", looked(name), numbers(name))
    opened = Opened(driver, tmp_path / "page.html", PHONE)
    assert driver.get_log("browser") == []
    answered = looked(name).answered
    side = numbers(name)["picture"]["token_grid"]
    all_tokens = answered.steps[0].attention.mean(axis=0)[answered.at < 0]
    weights = all_tokens[len(all_tokens) - side * side :]  # without a class token
    # In 8 bits, they are right within 0.4 % of their row's peak, which may be far above those of the picture.
    peak = answered.steps[0].attention.max() / weights.max()
    np.testing.assert_allclose(opened.strengths("looked-picture"), strengths(weights), atol=0.01 * (1 + peak))


def test_a_page_that_left_out_all_maps_still_tells_the_rest(driver: Any, tmp_path: Path) -> None:
    from mvlm_np.look.page import page as html

    (tmp_path / "page.html").write_text(html(looked("demo"), numbers("demo"), largest=1000), "utf-8")
    opened = Opened(driver, tmp_path / "page.html")
    assert driver.get_log("browser") == []
    for id in ("tower-maps", "looked", "answer-heads-slide"):
        assert not opened.by_id(id).is_displayed()
    assert "to the picture" in opened.text("shares-words")


def test_pointing_at_a_patch_shows_where_it_looks(driver: Any, page: Path) -> None:
    opened, seen = Opened(driver, page), looked("demo").seen
    assert seen is not None
    weights = seen.mean.weights()[-1, 1:, 1:]  # of the last block, without the class token
    at_first = opened.text("patches-words")
    for row, column in ((0, 0), (6, 2)):
        opened.point("patches", (column + 0.5) / 8, (row + 0.5) / 8)
        words = opened.text("patches-words")
        assert words.startswith(f"The patch in row {row + 1}, column {column + 1} looks most at ")
        own = weights[8 * row + column]
        best_row, best_column = divmod(int(own.argmax()), 8)
        assert f"row {best_row + 1}, column {best_column + 1} ({own.max():.1%}".replace("%", "") in words
        np.testing.assert_allclose(opened.strengths("patches"), strengths(own), atol=0.005)
    opened.point("h-tower", 0.5, 0.5)  # the pointer has left: what was chosen is back
    assert opened.text("patches-words") == at_first
    opened.point("patches", 0.05, 0.05, click=True)
    opened.point("h-tower", 0.5, 0.5)
    assert opened.text("patches-words").startswith("The patch in row 1, column 1 ")


def test_arrow_keys_move_the_patch_and_stay_within_the_picture(driver: Any, page: Path) -> None:
    opened = Opened(driver, page, PHONE)
    patches = opened.by_id("patches")
    opened.press("patches", Keys.HOME, Keys.PAGE_UP)
    assert "row 1, column 1 looks" in patches.get_attribute("aria-valuetext")
    opened.press("patches", Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert patches.get_attribute("aria-valuenow") == "1"
    opened.press("patches", Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "row 2, column 3 looks" in patches.get_attribute("aria-valuetext")
    opened.press("patches", Keys.END, Keys.PAGE_DOWN, Keys.ARROW_RIGHT)
    assert patches.get_attribute("aria-valuenow") == "64"


def test_blocks_and_heads_are_chosen_by_slider_and_by_map(driver: Any, page: Path) -> None:
    opened, seen = Opened(driver, page), looked("demo").seen
    assert seen is not None
    opened.press("patches", Keys.HOME, Keys.PAGE_UP)
    opened.press("tower-block", Keys.HOME, Keys.ARROW_RIGHT)
    opened.press("tower-head", Keys.END)
    assert opened.text("tower-block-name") == "2 of 5" and opened.text("tower-head-name") == "4"
    own = seen.heads.weights()[1, 3, 1, 1:]
    np.testing.assert_allclose(opened.strengths("patches"), strengths(own), atol=0.005)
    opened.point("overview", 4.5 / 5, 2.5 / 5, click=True)
    assert opened.text("tower-block-name") == "5 of 5" and opened.text("tower-head-name") == "2"
    np.testing.assert_allclose(
        opened.strengths("patches"), strengths(seen.heads.weights()[4, 1, 1, 1:]), atol=0.005
    )
    small = opened.strengths("overview")[18:26, 36:44]  # head 2 of block 5: maps of 8 × 8 with a line between
    np.testing.assert_allclose(small, strengths(seen.heads.weights()[4, 1, 1, 1:]), atol=0.005)
    opened.press("overview", Keys.ARROW_LEFT)
    assert opened.by_id("overview").get_attribute("aria-valuetext") == "Block 4, head 2."


def test_an_image_token_shows_which_are_like_it(driver: Any, page: Path) -> None:
    from mvlm_np.look.maps import likeness, on_picture

    opened, seen = Opened(driver, page), looked("demo").seen
    assert seen is not None
    opened.point("tokens", 2.5 / 12, 3.5 / 12, click=True)
    cosines = likeness(on_picture(seen))[3 * 12 + 2] / 255
    np.testing.assert_allclose(opened.strengths("tokens"), cosines.reshape(12, 12), atol=0.005)
    assert opened.text("tokens-words").startswith("Token 39 of 144 (row 4, column 3)")


def test_the_prompt_stands_in_order_and_tells_positions(driver: Any, page: Path) -> None:
    opened = Opened(driver, page)
    shown = opened.run("return [...document.querySelectorAll('#prompt label')].map((e) => e.textContent)")
    pieces = [e.get("piece", f"{e.get('picture')} image tokens") for e in numbers("demo")["prompt"]]
    assert shown == [piece.replace("▁", "·").replace("\n", "⏎") for piece in pieces]
    assert opened.text("prompt-words") == "Positions 33 to 176: the picture."
    opened.run("document.querySelector('#prompt input:checked').focus()")
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert opened.text("prompt-words").startswith("Position 177: token ")


def test_each_answered_token_shows_how_it_came_about(driver: Any, page: Path) -> None:
    opened, answered = Opened(driver, page), looked("demo").answered
    told = numbers("demo")["steps"]
    for i in (0, 1, len(told) - 1):
        opened.run("document.querySelectorAll('#steps input')[arguments[0]].click()", i)
        rows = opened.run(
            "return [...document.querySelectorAll('#likeliest tr')].map((e) => e.cells[0].innerText)"
        )
        assert [row.replace("·", "▁") for row in rows] == [e["piece"] for e in told[i]["likeliest"]]
        first = opened.run(
            "return document.querySelector('#likeliest .bar i').style.getPropertyValue('--share')"
        )
        assert float(first) == told[i]["likeliest"][0]["probability"]
        lens = opened.run(
            "return [...document.querySelectorAll('#lens tr')].map((e) => e.cells[1].innerText)"
        )
        assert [row.replace("·", "▁") for row in lens] == [e["piece"] for e in told[i]["lens"]]
        own = answered.steps[i].attention.mean(axis=0)[: len(answered.at)][answered.at < 0]
        np.testing.assert_allclose(opened.strengths("looked-picture"), strengths(own), atol=0.02)
        share = answered.steps[i].attention[:, : len(answered.at)][:, answered.at < 0].sum(axis=1).mean()
        assert f"{share:.1%} to the picture".replace("%", " %") in opened.text("shares-words")


def test_blocks_and_heads_of_the_decoder_change_where_it_looked(driver: Any, page: Path) -> None:
    opened, answered = Opened(driver, page), looked("demo").answered
    picture = answered.at < 0
    opened.run("document.querySelector('#shares input:checked').focus()")
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert opened.text("shares-words").startswith("Block 3, mean of all heads: ")
    own = answered.steps[0].attention[2, : len(picture)][picture]
    np.testing.assert_allclose(opened.strengths("looked-picture"), strengths(own), atol=0.02)
    opened.press("answer-head", Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    own = answered.steps[0].heads.weights()[2, 1]
    assert opened.text("shares-words").startswith(
        f"Block 3, head 2: {own[: len(picture)][picture].sum():.1%}"[:-1]
    )
    np.testing.assert_allclose(
        opened.strengths("looked-picture"), strengths(own[: len(picture)][picture]), atol=0.005
    )
    text = np.where(np.append(picture, [False] * (len(own) - len(picture))), 0, own)
    best = int(text[1:].argmax()) + 1
    piece = next(e["piece"] for e in numbers("demo")["prompt"] if e["position"] == best)
    assert f"most at “{piece.replace('▁', '·')}” ({text[best]:.1%}"[:-1] in opened.text("text-words")


def test_all_that_can_be_pointed_at_can_be_reached_and_seen_by_keyboard(driver: Any, page: Path) -> None:
    opened = Opened(driver, page)
    wanted = {"patches", "tower-block", "tower-head", "overview", "tokens", "prompt", "steps", "shares"}
    wanted |= {"answer-head", "looked-picture"}
    reached = set()
    body = driver.find_element(By.TAG_NAME, "body")
    for _ in range(30):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = driver.switch_to.active_element
        if focused == body:
            break
        reached.add(focused.get_attribute("id") or focused.get_attribute("name") or focused.tag_name)
        script = """
            const e = arguments[0].closest("label:not(.slide)") ?? arguments[0];
            const {outlineStyle, outlineWidth} = getComputedStyle(e);
            return [outlineStyle, parseFloat(outlineWidth)];
        """
        style, width = opened.run(script, focused)
        assert style == "solid" and width >= 3, reached
    assert wanted <= reached and "summary" in reached


def test_a_screen_reader_has_a_name_for_everything(driver: Any, page: Path) -> None:
    Opened(driver, page)
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append(name)
    for role in ("slider", "radio", "image", "table", "heading", "group", "region", "RootWebArea"):
        named = [name for name in roles.get(role, []) if role != "group" or name != ""]
        assert named and all(named), role
    assert len(roles["slider"]) == 7  # four maps, three sliders
    assert roles["heading"][0] == looked("demo").question
    for node in nodes:
        if not node["ignored"] and node["role"]["value"] == "slider":
            assert {p["name"] for p in node["properties"]} >= {"valuemin", "valuemax", "valuetext"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(driver: Any, page: Path, scheme: str) -> None:
    opened = Opened(driver, page, PHONE, scheme)
    opened.by_id("lens-details").find_element(By.TAG_NAME, "summary").click()
    count, low = opened.contrast()
    assert count > 150 and low == []
