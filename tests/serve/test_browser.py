"""The server's page in a real browser: what one drops, photographs, types, stops and reads."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

import mvlm_np
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.demo.asking import looks
from mvlm_np.model import MobileVLM
from mvlm_np.serve.page import page
from tests import browser
from tests.browser import DESK, PHONE, SMALLEST_PHONE, By, Keys, TimeoutException, WebDriverWait
from tests.clients.served import serving
from tests.conftest import ROOT
from tests.serve.pretended import (
    BEGIN,
    LOOKED,
    Pretended,
    answer,
    chunk,
    cut,
    end,
    error,
    pretended,
)

pytestmark = pytest.mark.xdist_group("browser")  # one worker, so that one browser is started

AXE = ROOT / ".cache/axe/node_modules/axe-core/axe.min.js"
BLUE, RED = (40, 60, 200), (200, 40, 40)
EVIL = "<img src=x onerror=\"document.title='broken in'\"> & </script>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    # A board's name, which is this machine, but to the browser a machine of the network.
    with browser.browser(
        tmp_path_factory.mktemp("profile"), "--host-resolver-rules=MAP board.local 127.0.0.1"
    ) as driver:
        yield driver


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Pretended, str]]:
    with pretended(*page("a model", pictures=4)) as (server, url):
        yield server, url


@pytest.fixture
def server(started: tuple[Pretended, str]) -> Pretended:
    started[0].go_on.set()  # whatever still waits in a test before
    started[0].forget()
    return started[0]


@pytest.fixture
def url(started: tuple[Pretended, str]) -> str:
    return started[1]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the file of a photo, left half blue and right half red."""
    folder = tmp_path_factory.mktemp("photos")

    def make(name: str, size: tuple[int, int] = (60, 40), mode: str = "RGB", **options: Any) -> Path:
        picture = Image.new("RGB", size, BLUE)
        picture.paste(RED, (size[0] // 2, 0, *size))
        picture.convert(mode).save(folder / name, **options)
        return folder / name

    return make


SMALL_BUTTONS = """
    const small = (e) => Math.min(e.offsetWidth, e.offsetHeight) < 44; // a finger would not find it
    const buttons = [...document.querySelectorAll("button, .button")].filter((e) => e.checkVisibility());
    return buttons.filter(small).map((e) => e.outerHTML);
"""


class Talk(browser.Opened):
    """The page, and what one does with it."""

    def __init__(self, driver: Any, url: str, size: tuple[int, int] = DESK, scheme: str = "light"):
        super().__init__(driver, url, size, scheme)
        self.run("sessionStorage.clear(); key = ''")

    def until(self, script: str, seconds: float = 20) -> Any:
        wait = WebDriverWait(self.driver, seconds, poll_frequency=0.05)
        try:
            return wait.until(lambda d: d.execute_script(f"return {script}"))
        except TimeoutException:
            shown = self.run("return [byId('question').value, document.body.innerText]")
            raise AssertionError(f"never: {script}\n{shown}") from None

    def add(self, *paths: Path) -> None:
        """Chooses files, and waits until they are there."""
        before = len(self.photos())
        self.by_id("choose").send_keys("\n".join(map(str, paths)))
        self.until(f"document.querySelectorAll('#photos li').length === {before + len(paths)}")

    def photos(self) -> list[str]:
        """The names of the photos that go with the question."""
        return self.run("return [...document.querySelectorAll('#photos img')].map((e) => e.alt)")

    def ask(self, question: str, wait: bool = True) -> None:
        self.press("question", question)
        self.press("question", Keys.ENTER)  # apart: a slow browser still holds the Shift of a question mark
        if wait:
            self.finished()

    def finished(self) -> None:
        self.until("!running && document.querySelector('#talk article:last-child [aria-busy=false]')")

    def all_texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.run(script, selector)

    def answers(self) -> list[str]:
        return self.all_texts(".answer")

    def shown(self, id: str) -> bool:
        return self.by_id(id).is_displayed()

    def focused(self) -> str:
        return self.run("return document.activeElement.id || document.activeElement.textContent")

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def talk(driver: Any, url: str, server: Pretended) -> Talk:
    return Talk(driver, url)


def sent_picture(part: dict[str, Any]) -> Image.Image:
    kind, data = part["image_url"]["url"].split(";base64,")
    assert part["type"] == "image_url" and kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def close_to(pixel: Any, colour: tuple[int, int, int]) -> bool:
    return np.abs(np.subtract(pixel, colour)).max() < 30


# ---------------------------------------------------------------- as it opens


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SMALLEST_PHONE, PHONE, DESK], ids=["320 px", "phone", "desk"])
def test_it_fits_every_screen_and_asks_for_nothing_but_answers(
    driver: Any, url: str, server: Pretended, photo: Callable[..., Path], size: tuple[int, int], scheme: str
) -> None:
    talk = Talk(driver, url, size, scheme)
    assert talk.wider_than_the_screen() == []
    server.say = answer("a" * 400, " and " * 80, looked=[LOOKED] * 4)
    talk.add(photo("a-long-name-" * 8 + ".png"), photo("2.png"), photo("3.png", (10, 900)), photo("4.png"))
    talk.ask("w" * 200)
    talk.run("document.querySelector('.turn button').click()")
    server.refuse = (400, error("e" * 300))
    talk.ask("again", wait=False)
    talk.until("byId('problem').textContent")
    assert talk.wider_than_the_screen() == []
    assert talk.run(SMALL_BUTTONS) == []
    assert talk.requested() == {url, f"{url}v1/chat/completions"}
    assert [m for m in talk.log() if "status of 400" not in m] == []
    count, low = talk.contrast()
    assert count > 20 and low == []


def test_its_policy_keeps_out_what_it_does_not_bring_itself(talk: Talk) -> None:
    talk.run("""
        const script = document.createElement("script");
        script.textContent = "document.title = 'broken in'";
        document.body.append(script);
    """)
    assert talk.driver.title == "Ask about a photo – mvlm serve"
    assert any("Content Security Policy" in message for message in talk.log())


def test_a_model_that_takes_no_pictures_is_asked_without(driver: Any) -> None:
    with pretended(*page(EVIL, pictures=0)) as (server, url):
        talk = Talk(driver, url)
        assert not talk.shown("add") and EVIL in talk.all_texts("header p")[0]
        talk.ask("Hello?")
        assert talk.answers() == ["yes"] and server.heard[0]["model"] == EVIL
        assert driver.title.startswith("Ask")


# ---------------------------------------------------------------- photos


def test_a_photo_and_a_question_are_answered(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    path = photo("lamp.png")
    talk.add(path)
    server.say = answer("A lamp", ", größer ", "🦊.")
    talk.ask("  What is it?\n")
    (heard,) = server.heard
    assert heard["stream"] is True and heard["mvlm"] == {"look": True} and heard["model"] == "a model"
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()  # not a bit has changed
    assert heard["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ]
    assert talk.answers() == ["A lamp, größer 🦊."]
    assert talk.all_texts(".turn h2") == ["What is it?"] and talk.all_texts(".turn .state") == [""]
    assert dict(zip(talk.all_texts("dt"), talk.all_texts("dd"), strict=True)) == {
        "waiting for its turn": "0 ms",
        "seeing the photo": "1.23 s",
        "reading the question": "500 ms, 191 tokens, 35 of them known",
        "writing the answer": "250 ms, 8 tokens",
    }
    assert talk.photos() == [] and talk.by_id("question").get_attribute("value") == ""
    assert talk.run("return document.querySelector('.turn img').alt") == "lamp.png"


def test_a_large_photo_is_made_smaller_and_stands_upright(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held upright: left is to become the top
    talk.add(photo("turned.jpg", (3000, 1000), exif=exif), photo("wide.png", (5000, 20)))
    talk.ask("?")
    first, second, _ = server.heard[0]["messages"][0]["content"]
    upright, wide = sent_picture(first), sent_picture(second)
    assert (upright.format, upright.size, wide.size) == ("JPEG", (341, 1024), (1024, 4))
    assert upright.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert close_to(upright.getpixel((170, 100)), BLUE) and close_to(upright.getpixel((170, 900)), RED)


def test_what_is_transparent_becomes_white_where_a_photo_is_made_anew(
    talk: Talk, server: Pretended, tmp_path: Path
) -> None:
    Image.new("RGBA", (1100, 30), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    Image.new("P", (30, 30), 3).save(tmp_path / "old.gif")
    talk.add(tmp_path / "glass.png", tmp_path / "old.gif")
    talk.ask("?")
    first, second, _ = server.heard[0]["messages"][0]["content"]
    assert close_to(sent_picture(first).getpixel((500, 10)), (255, 255, 255))
    assert sent_picture(second).format == "JPEG"  # as does what a server need not know


def test_a_browser_that_falsifies_drawings_sends_files_as_they_are(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.run("CanvasRenderingContext2D.prototype.getImageData = () => ({ data: [255, 255, 255, 255] })")
    path = photo("large.jpg", (2000, 1500))
    talk.add(path)
    talk.by_id("choose").send_keys(str(photo("old.gif", mode="P")))
    talk.until("byId('problem').textContent.startsWith('This browser lets no page make pictures.')")
    talk.ask("?")
    sent = server.heard[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.split(",")[1]) == path.read_bytes()


def test_photos_keep_their_order_and_can_be_removed(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.add(photo("1.jpg", (2500, 2000)), photo("2.png"))
    talk.add(photo("3.png"))
    assert talk.photos() == ["1.jpg", "2.png", "3.png"]
    assert talk.text("added") == "Photos with the question: 3"
    buttons = talk.driver.find_elements(By.CSS_SELECTOR, "#photos button")
    assert buttons[1].accessible_name == "Remove photo 2, 2.png"
    buttons[1].send_keys(Keys.ENTER)
    assert talk.photos() == ["1.jpg", "3.png"]
    assert talk.driver.switch_to.active_element.accessible_name == "Remove photo 2, 3.png"
    for _ in range(2):
        talk.driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert talk.photos() == [] and talk.focused() == "choose"
    assert not talk.shown("photos")


def test_more_photos_than_the_server_takes_are_refused_by_name(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.add(photo("1.png"), photo("2.png"), photo("3.png"))
    talk.ask("?")
    paths = [str(photo(f"{i}.png")) for i in (4, 5, 6)]
    talk.by_id("choose").send_keys("\n".join(paths))  # those of earlier turns are sent too, so they count
    talk.until("byId('problem').textContent")
    assert talk.photos() == ["4.png"]
    limit = "this server takes 4 photos in a conversation."
    assert talk.text("problem").splitlines() == [f"5.png: {limit}", f"6.png: {limit}"]


def test_a_file_that_is_no_picture_is_named_and_the_others_are_taken(
    talk: Talk, photo: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "<b>notes.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "empty.jpg").touch()
    files = [tmp_path / "<b>notes.pdf", photo("1.png"), tmp_path / "empty.jpg"]
    talk.by_id("choose").send_keys("\n".join(map(str, files)))
    talk.until("byId('problem').textContent")
    assert talk.photos() == ["1.png"]
    first, second = talk.text("problem").splitlines()
    assert first.startswith("<b>notes.pdf: this browser cannot read it") and second.startswith("empty.jpg: ")
    talk.add(photo("1.png"))  # the same file may come again, and what was wrong is forgotten
    assert talk.text("problem") == ""


def test_a_photo_can_be_pasted(talk: Talk, server: Pretended, photo: Callable[..., Path]) -> None:
    paste = """
        const data = new DataTransfer();
        if (arguments[0]) {
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
        } else data.setData("text/plain", "words");
        const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
        byId("question").dispatchEvent(event);
        return event.defaultPrevented;
    """
    assert talk.run(paste, "") is False  # text is the browser's business
    path = photo("1.png")
    assert talk.run(paste, base64.b64encode(path.read_bytes()).decode()) is True
    talk.until("photos.length")
    talk.ask("?")
    assert sent_picture(server.heard[0]["messages"][0]["content"][0]).size == (60, 40)


def test_photos_can_be_dropped_anywhere(talk: Talk, server: Pretended, photo: Callable[..., Path]) -> None:
    files = [str(photo("1.png")), str(photo("2.png"))]
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": files, "dragOperationsMask": 1}
        talk.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 20, "y": 20, "data": data})
        marked = talk.run("return document.body.classList.contains('dropping')")
        assert marked is (kind == "dragOver")
    talk.until("photos.length === 2")
    assert talk.photos() == ["1.png", "2.png"]
    drop = "new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true, cancelable: true})"
    assert talk.run(f"return byId('question').dispatchEvent({drop})") is True  # text, which the browser moves
    assert talk.run(f"return document.body.dispatchEvent({drop})") is False
    assert talk.text("problem").startswith("That is no file.")


# ---------------------------------------------------------------- the camera


def test_a_photo_is_taken_with_the_camera(
    server: Pretended, url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    frame = io.BytesIO()
    picture = Image.new("RGB", (640, 480), BLUE)
    picture.paste(RED, (320, 0, 640, 480))
    picture.save(frame, "JPEG", quality=95)
    film = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    film.write_bytes(frame.getvalue() * 20)
    switches = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
    with browser.browser(tmp_path_factory.mktemp("profile"), *switches) as driver:
        talk = Talk(driver, url, PHONE)
        assert not talk.shown("capture-button")
        talk.press("open-camera", Keys.ENTER)
        talk.until("!byId('take').disabled && document.activeElement.id === 'take'")
        assert not problems(talk)
        talk.run("track = byId('video').srcObject.getTracks()[0]")
        talk.by_id("take").send_keys(Keys.ENTER)
        assert talk.photos() == ["from the camera"] and not talk.shown("camera")
        talk.until("track.readyState === 'ended'")  # its light is off
        assert talk.focused() == "question"
        talk.ask("What is there?")
        sent = sent_picture(server.heard[0]["messages"][0]["content"][0])
        assert sent.size == (640, 480)
        assert close_to(sent.getpixel((100, 200)), BLUE) and close_to(sent.getpixel((500, 200)), RED)
        talk.press("open-camera", Keys.ENTER)
        talk.until("!byId('take').disabled")
        talk.run("track = byId('video').srcObject.getTracks()[0]")
        talk.by_id("take").send_keys(Keys.ESCAPE)
        talk.until("track.readyState === 'ended'")
        assert talk.photos() == [] and talk.focused() == "open-camera"


def test_without_a_camera_it_says_so_and_offers_the_file_input(talk: Talk) -> None:
    talk.press("open-camera", Keys.ENTER)
    talk.until("byId('problem').textContent")
    assert talk.text("problem") == "No camera can be used here."
    assert not talk.shown("camera") and not talk.shown("open-camera") and talk.shown("capture-button")
    assert talk.focused() == "capture"


def test_over_the_network_without_https_a_phones_own_camera_takes_the_photo(
    driver: Any, url: str, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk = Talk(driver, url.replace("127.0.0.1", "board.local"), PHONE)
    assert talk.run("return window.isSecureContext") is False
    assert talk.shown("capture-button") and not talk.shown("open-camera")
    assert talk.by_id("capture").get_attribute("capture") == "environment"
    talk.by_id("capture").send_keys(str(photo("1.png")))
    talk.until("photos.length")
    talk.ask("?")
    assert talk.answers() == ["yes"] and len(server.heard[0]["messages"][0]["content"]) == 2


# ---------------------------------------------------------------- the answer as it comes


def test_the_answer_is_shown_as_it_is_written(talk: Talk, server: Pretended) -> None:
    server.say = server.waits("It ", "is", after=chunk({"content": " red."}) + end())
    talk.ask("Which colour?", wait=False)
    talk.until("document.querySelector('.answer').textContent === 'It is'")
    (said,) = talk.driver.find_elements(By.CLASS_NAME, "answer")
    assert (said.get_attribute("aria-live"), said.get_attribute("aria-busy")) == ("polite", "true")
    assert talk.shown("stop") and not talk.shown("ask") and not talk.shown("anew")
    talk.ask("And now?", wait=False)  # one after the other
    assert len(server.heard) == 1 and talk.by_id("question").get_attribute("value") == "And now?"
    server.go_on.set()
    talk.finished()
    assert talk.answers() == ["It is red."] and said.get_attribute("aria-busy") == "false"
    assert talk.by_id("question").get_attribute("value") == "And now?"
    assert talk.shown("ask") and talk.shown("anew") and not talk.shown("stop")


def test_it_says_for_how_long_it_waits(talk: Talk, server: Pretended) -> None:
    server.say = server.waits(after=chunk({"content": "yes"}) + end())
    talk.ask("?", wait=False)
    state = "document.querySelector('.state').textContent"
    assert talk.until(f"{state}.endsWith('1 s') && {state}") == "Waiting for the answer 1 s"
    assert talk.run("return document.querySelector('.state').getAttribute('role')") == "status"
    server.go_on.set()
    talk.finished()
    assert talk.all_texts(".state") == [""]


def test_it_says_who_is_before_it(talk: Talk, server: Pretended) -> None:
    server.say = server.waits(begin=chunk({"role": "assistant"}, mvlm={"ahead": 2}), after=end())
    talk.ask("?", wait=False)
    words = "Waiting; questions before this one: 2."
    talk.until(f"document.querySelector('.state')?.textContent.startsWith('{words}')")


def parsed(body: str) -> list[str]:
    """The data of the events, as the standard of server-sent events has them."""
    found, data = [], []
    for line in body.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line == "data":
            data.append("")
        elif line == "" and data:
            found.append("\n".join(data))
            data = []
    return found


LINES = st.sampled_from(
    ["data: ä🦊", "data:b", "data:  c", ": a comment", ":", "event: x", "data", "", "", "id: 1"]
)


@given(
    lines=st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=12),
    places=st.lists(st.integers(0, 200), max_size=12),
)
def test_events_are_read_however_their_bytes_are_cut(
    driver: Any, started: tuple[Pretended, str], lines: list[tuple[str, str]], places: list[int]
) -> None:
    if driver.current_url != started[1]:
        driver.get(started[1])
    # A last "\r" may be half of an end of line, so an end that is certain follows.
    body = "".join(line + ending for line, ending in lines) + "data: last\n\n"
    encoded = body.encode()
    at = sorted({place for place in places if place < len(encoded)})
    parts = [list(encoded[i:j]) for i, j in zip([0, *at], [*at, len(encoded)], strict=True)]
    script = """
        const [parts, done] = arguments;
        const stream = new ReadableStream({
            start(controller) {
                for (const part of parts) controller.enqueue(new Uint8Array(part));
                controller.close();
            },
        });
        (async () => {
            const found = [];
            for await (const data of eventData(stream)) found.push(data);
            done(found);
        })();
    """
    assert driver.execute_async_script(script, parts) == parsed(body)


def test_a_stream_in_single_bytes_with_comments_is_read(talk: Talk, server: Pretended) -> None:
    body = b": hello\n\n" + BEGIN + b":\n\n" + chunk({"content": "größer 🦊"}).replace(b"\n", b"\r\n") + end()
    server.say = cut(body, range(1, len(body)))
    talk.ask("?")
    assert talk.answers() == ["größer 🦊"] and len(talk.all_texts("dt")) == 4


def test_what_looks_like_html_is_text_everywhere(
    talk: Talk, server: Pretended, photo: Callable[..., Path], tmp_path: Path
) -> None:
    named = tmp_path / EVIL.replace("/", "")
    named.write_bytes(photo("1.png").read_bytes())
    talk.add(named)
    server.say = answer(EVIL[:9], EVIL[9:])
    talk.ask(EVIL)
    assert talk.answers() == [EVIL] and talk.all_texts(".turn h2") == [EVIL]
    server.refuse = (400, error(EVIL))
    talk.ask("?", wait=False)
    assert talk.until("byId('problem').textContent") == EVIL
    server.refuse, server.key = None, "secret"
    server.refuse = (401, error(EVIL))
    talk.press("ask", Keys.ENTER)
    talk.until("byId('key-dialog').open")
    assert talk.driver.title.startswith("Ask")
    sources = talk.run("return [...document.querySelectorAll('img')].map((e) => e.src.slice(0, 11))")
    assert sources and set(sources) == {"data:image/"}


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (answer(), "The model answered nothing."),
        (answer("and so on", reason="length"), "Cut off: an answer here gets no longer."),
    ],
    ids=["nothing", "cut off"],
)
def test_an_answer_that_is_odd_is_told(talk: Talk, server: Pretended, say: Any, words: str) -> None:
    server.say = say
    talk.ask("?")
    assert talk.all_texts(".state") == [words]


# ---------------------------------------------------------------- where it looked


def test_a_map_shows_where_it_looked(talk: Talk, server: Pretended, photo: Callable[..., Path]) -> None:
    talk.add(photo("tall.png", (40, 80)))
    talk.ask("?")
    button = talk.driver.find_element(By.CSS_SELECTOR, ".turn button")
    figure = talk.driver.find_element(By.CSS_SELECTOR, ".looked")
    assert (button.text, button.get_attribute("aria-expanded")) == ("Where it looked", "false")
    assert not figure.is_displayed()
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true" and figure.is_displayed()
    weights = np.array(LOOKED)
    np.testing.assert_allclose(
        browser.strengths(talk.driver, ".looked canvas"), weights / weights.max(), atol=0.005
    )
    assert "most at row 4, column 8 of 12 × 12" in figure.text
    # The photo stands in the middle of a square, as where the model pads it, and the map covers that.
    sizes = talk.run("""
        const box = (s) => document.querySelector(s).getBoundingClientRect();
        const {objectFit} = getComputedStyle(document.querySelector(".looked img"));
        const boxes = [".field", "img", "canvas"].map((s) => box(`.looked ${s}`));
        return [objectFit, ...boxes.flatMap(({width, height}) => [width, height])];
    """)
    assert sizes[0] == "contain" and len(set(sizes[1:])) == 1
    talk.ask("And?")  # the next one is open at once, and shows the same photo
    assert [f.is_displayed() for f in talk.driver.find_elements(By.CSS_SELECTOR, ".looked")] == [True, True]
    talk.driver.find_elements(By.CSS_SELECTOR, ".turn button")[1].click()
    button.click()  # each for itself
    assert [f.is_displayed() for f in talk.driver.find_elements(By.CSS_SELECTOR, ".looked")] == [False, False]
    last = talk.driver.find_elements(By.CSS_SELECTOR, ".looked img")[-1]
    assert last.get_attribute("alt") == "tall.png, as a square"


def test_maps_of_several_photos_share_one_scale(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.add(photo("first.png"))
    talk.ask("?")
    talk.add(photo("wide.png", (80, 40)), photo("tall.png", (40, 80)))
    half = [[weight / 2 for weight in row] for row in LOOKED]
    server.say = answer("yes", looked=[LOOKED, half, LOOKED])  # of all photos of the conversation
    talk.ask("Which?")
    talk.driver.find_elements(By.CSS_SELECTOR, ".turn button")[1].click()
    second = ".turn:last-child .looked"
    figure = talk.driver.find_element(By.CSS_SELECTOR, second)
    assert "most at row 4, column 8 of 12 × 12 of photo 2." in figure.text
    alts = [one.get_attribute("alt") for one in figure.find_elements(By.CSS_SELECTOR, "img")]
    assert alts == ["wide.png, as a square", "tall.png, as a square"]
    weights = np.array(LOOKED) / np.max(LOOKED)
    for i, share in ((1, 0.5), (2, 1.0)):
        shown = browser.strengths(talk.driver, f"{second} .field:nth-child({i}) canvas")
        np.testing.assert_allclose(shown, share * weights, atol=0.005)


def test_without_a_map_there_is_no_button(talk: Talk, server: Pretended, photo: Callable[..., Path]) -> None:
    talk.add(photo("1.png"))
    server.say = answer("yes", looked=())
    talk.ask("?")
    assert talk.all_texts(".turn button") == []


# ---------------------------------------------------------------- conversations


def test_a_second_question_carries_the_whole_conversation(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.add(photo("1.png"))
    server.say = answer("A", " lamp.")
    talk.ask("What?")
    server.say = answer()
    talk.ask("Is it on?")
    talk.add(photo("2.png"))
    server.say = answer("No.")
    talk.ask("And here?")
    messages = server.heard[-1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    assert [messages[1]["content"], messages[3]["content"]] == ["A lamp.", ""]
    kinds = [[part["type"] for part in m["content"]] for m in messages[::2]]
    assert kinds == [["image_url", "text"], ["text"], ["image_url", "text"]]
    assert talk.answers() == ["A lamp.", "", "No."]
    talk.by_id("anew").click()
    assert talk.answers() == [] and not talk.shown("anew") and talk.focused() == "question"
    talk.ask("Alone?")
    assert len(server.heard[-1]["messages"]) == 1


def test_who_has_scrolled_up_to_read_is_left_there(driver: Any, url: str, server: Pretended) -> None:
    talk = Talk(driver, url, PHONE)
    server.say = answer("line\n" * 80)
    talk.ask("?")
    at_end = "innerHeight + scrollY >= document.body.scrollHeight - 50"
    assert talk.run(f"return {at_end}")
    server.say = server.waits("begun", after=chunk({"content": "line\n" * 80}) + end())
    talk.ask("?", wait=False)
    talk.until("document.querySelectorAll('.answer')[1]?.textContent === 'begun'")
    assert talk.run(f"return {at_end}")
    talk.run("scrollTo(0, 100)")
    server.go_on.set()
    talk.finished()
    assert talk.run("return scrollY") == 100


# ---------------------------------------------------------------- stop


def test_an_answer_that_is_stopped_counts_as_far_as_it_came(talk: Talk, server: Pretended) -> None:
    server.say = server.waits("It is a very long")
    talk.ask("What?", wait=False)
    talk.until("document.querySelector('.answer').textContent")
    talk.by_id("stop").click()
    talk.finished()
    assert server.left.wait(10)  # the server sees that nobody listens any more
    assert talk.all_texts(".state") == ["Stopped."] and talk.answers() == ["It is a very long"]
    assert talk.text("problem") == "" and talk.focused() == "ask"
    server.say = answer("Yes.")
    talk.ask("Go on?")
    assert [m["content"] for m in server.heard[-1]["messages"]][1] == "It is a very long"


def test_a_question_that_is_stopped_before_its_answer_returns(
    talk: Talk, server: Pretended, photo: Callable[..., Path]
) -> None:
    talk.add(photo("1.png"))
    server.say = server.waits()
    talk.ask("What?", wait=False)
    talk.until("document.querySelector('.state')?.textContent.startsWith('Waiting')")
    talk.by_id("stop").click()
    talk.until("!running")
    assert server.left.wait(10)
    assert talk.answers() == [] and talk.photos() == ["1.png"]
    assert talk.by_id("question").get_attribute("value") == "What?" and not talk.shown("anew")


# ---------------------------------------------------------------- what goes wrong


def refuses(status: int, body: bytes) -> Callable[[Pretended], None]:
    return lambda server: setattr(server, "refuse", (status, body))


def says(last: bytes) -> Callable[[Pretended], None]:
    """Says the beginning of an answer and then this."""
    return lambda server: setattr(server, "say", cut(BEGIN + chunk({"content": "It"}) + last, []))


PROBLEMS = {  # what the server does, what the page says of it, what it leaves of the answer
    "refused": (refuses(429, error("server: busy; try again")), "server: busy; try again", []),
    "a proxy's page": (refuses(502, b"<html>Oh"), "The server says: 502 Bad Gateway.", []),
    "an error in the stream": (says(b"data: " + error("is stopping") + b"\n\n"), "is stopping", ["It"]),
    "no end": (says(b""), "The connection ended before the answer did.", ["It"]),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_goes_wrong_is_said_and_nothing_is_lost(
    talk: Talk, server: Pretended, photo: Callable[..., Path], case: str
) -> None:
    arrange, words, left = PROBLEMS[case]
    talk.ask("First?")
    arrange(server)
    talk.add(photo("1.png"))
    talk.ask("What is it?", wait=False)
    assert talk.until("byId('problem').textContent") == words
    assert talk.by_id("problem").get_attribute("role") == "alert"
    talk.until("!running")
    assert talk.answers() == ["yes", *left]
    assert talk.photos() == ["1.png"] and talk.by_id("question").get_attribute("value") == "What is it?"
    server.refuse, server.say = None, answer("A lamp.")
    talk.press("ask", Keys.ENTER)
    talk.finished()
    assert talk.answers() == ["yes", *left, "A lamp."] and talk.text("problem") == ""
    assert len(server.heard[-1]["messages"]) == 3  # what went wrong is no part of the conversation


def test_a_connection_that_breaks_is_said(talk: Talk, server: Pretended) -> None:
    def breaks(write: Callable[[bytes], None]) -> None:
        write(BEGIN + chunk({"content": "It is"}))
        server.go_on.wait(30)
        raise OSError("the network is gone")

    server.say = breaks
    talk.ask("?", wait=False)
    talk.until("document.querySelector('.answer')?.textContent")
    server.go_on.set()
    talk.until("byId('problem').textContent")
    assert talk.text("problem") == "The connection ended before the answer did."
    assert talk.all_texts(".state") == ["The answer broke off."]


def test_a_server_that_is_gone_is_said(driver: Any) -> None:
    with pretended(*page("a model", pictures=4)) as (_, url):
        talk = Talk(driver, url)
    talk.ask("?", wait=False)
    assert talk.until("byId('problem').textContent") == "The server cannot be reached. Is it still running?"
    assert talk.by_id("question").get_attribute("value") == "?"


def test_a_failed_question_does_not_wipe_out_the_one_that_is_being_typed(
    talk: Talk, server: Pretended
) -> None:
    server.say = server.waits(after=b"data: " + error("is stopping") + b"\n\n")
    talk.ask("First?", wait=False)
    talk.until("running")
    talk.press("question", "Second?")
    server.go_on.set()
    talk.until("byId('problem').textContent")
    assert talk.by_id("question").get_attribute("value") == "Second?"
    assert talk.all_texts(".turn h2") == ["First?"] and talk.all_texts(".state") == ["The answer broke off."]


# ---------------------------------------------------------------- the key


def test_a_server_with_a_key_asks_for_it_once(
    talk: Talk, server: Pretended, photo: Callable[..., Path], url: str
) -> None:
    server.key = "s3cret-key"
    talk.add(photo("1.png"))
    talk.ask("What?", wait=False)
    talk.until("byId('key-dialog').open && !running")
    assert talk.text("key-words") == "This server wants its key." and talk.focused() == "key"
    assert talk.by_id("key").get_attribute("type") == "password"
    talk.by_id("key").send_keys("wrong", Keys.ENTER)
    talk.until("byId('key-dialog').open && !running && byId('key').value === ''")
    talk.by_id("key").send_keys(" s3cret-key ", Keys.ENTER)
    talk.finished()  # nothing had to be asked again
    assert talk.answers() == ["yes"] and server.keys == [None, "Bearer wrong", "Bearer s3cret-key"]
    talk.driver.get(url)
    talk.ask("Again?")
    assert server.keys[-1] == "Bearer s3cret-key" and "s3cret" not in talk.driver.current_url


def test_who_has_no_key_keeps_the_question(talk: Talk, server: Pretended) -> None:
    server.key = "s3cret-key"
    talk.ask("What?", wait=False)
    talk.until("byId('key-dialog').open && !running")
    talk.by_id("key").send_keys("schlüssel", Keys.ENTER)  # cannot be sent, so it is not taken
    assert talk.shown("key-dialog") and len(server.keys) == 1
    talk.by_id("key").send_keys(Keys.ESCAPE)
    assert not talk.shown("key-dialog") and talk.focused() == "question"
    assert talk.by_id("question").get_attribute("value") == "What?" and talk.answers() == []


# ---------------------------------------------------------------- keyboard, screen reader, motion


def test_all_of_it_works_by_keyboard_alone(talk: Talk, server: Pretended, photo: Callable[..., Path]) -> None:
    talk.add(photo("1.png"))
    talk.run("document.activeElement.blur(); scrollTo(0, 0)")

    def tab(*keys: str) -> str:
        browser.webdriver.ActionChains(talk.driver, duration=0).send_keys(*(keys or [Keys.TAB])).perform()
        script = """
            const e = document.activeElement;
            const {outlineStyle, outlineWidth} = getComputedStyle(e.closest(".button") ?? e);
            return [outlineStyle, parseFloat(outlineWidth)];
        """
        style, width = talk.run(script)
        assert style == "solid" and width >= 3, talk.focused()  # one sees where one is
        return talk.focused()

    assert [tab() for _ in range(5)] == ["choose", "open-camera", "×", "question", "ask"]
    server.say = server.waits("It", after=chunk({"content": " is."}) + end(looked=[LOOKED]))
    talk.press("question", "one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert tab() == "ask" and tab(Keys.SPACE) == "stop"
    server.go_on.set()
    talk.finished()
    assert talk.focused() == "ask" and talk.all_texts(".turn h2") == ["one\ntwo"]
    assert tab() == "anew"
    talk.run("byId('choose').focus()")
    browser.webdriver.ActionChains(talk.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).perform()
    assert talk.focused() == "Where it looked"


def test_enter_that_puts_a_word_together_does_not_ask(talk: Talk, server: Pretended) -> None:
    talk.press("question", "にほ")
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    assert talk.run(f"return byId('question').dispatchEvent({event})") is True  # the browser's own business
    talk.press("question", Keys.HOME, Keys.SHIFT, Keys.END, Keys.NULL, Keys.DELETE, "  ", Keys.ENTER)
    assert server.heard == [] and talk.answers() == []  # and spaces are no question


def test_less_motion_is_no_motion(driver: Any, url: str, server: Pretended) -> None:
    server.say = server.waits("It is")
    for motion, moving in (("reduce", "none"), ("no-preference", "blink")):
        talk = Talk(driver, url)
        features = [{"name": "prefers-reduced-motion", "value": motion}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        talk.ask("?", wait=False)
        talk.until("document.querySelector('.answer')?.textContent")
        script = "return getComputedStyle(document.querySelector('.answer'), '::after').animationName"
        assert talk.run(script) == moving
        talk.by_id("stop").click()


def problems(talk: Talk) -> list[tuple[str, str, list[str]]]:
    """What axe-core finds: its rule, how bad it is, and where. Skips where axe-core is absent."""
    if not AXE.exists():
        pytest.skip("needs axe-core (make axe, with npm)")
    talk.run(AXE.read_text("utf-8"))
    found = talk.driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert len(found["passes"]) > 15
    return [(v["id"], v["impact"], [n["html"][:90] for n in v["nodes"]]) for v in found["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    driver: Any, url: str, server: Pretended, photo: Callable[..., Path], scheme: str
) -> None:
    talk = Talk(driver, url, SMALLEST_PHONE, scheme)
    assert problems(talk) == []
    server.say = server.waits("It is", after=end(looked=[LOOKED]))
    talk.add(photo("1.png"))
    talk.ask("?", wait=False)
    talk.until("document.querySelector('.answer').textContent")
    talk.add(photo("2.png"))
    assert problems(talk) == []
    server.go_on.set()
    talk.finished()
    talk.driver.find_element(By.CSS_SELECTOR, ".turn button").click()
    server.refuse = (400, error("no"))
    talk.ask("?", wait=False)
    talk.until("byId('problem').textContent && !running")
    assert problems(talk) == []
    server.key, server.refuse = "secret", None
    talk.press("ask", Keys.ENTER)
    talk.until("byId('key-dialog').open && !running")
    assert problems(talk) == []


# ---------------------------------------------------------------- with the model in the box


@pytest.fixture(scope="module")
def demo() -> MobileVLM:
    return mvlm_np.load(MODEL)


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with serving(MVLM_API_KEY="s3cret-key") as server:
        yield server.url + "/"


def test_the_real_server_answers_as_the_model_does(driver: Any, real: str, demo: MobileVLM) -> None:
    talk = Talk(driver, real)
    question, again = "Describe the yellow lamp.", "What does the label say?"
    talk.add(PICTURES / "0.png")
    talk.ask(question, wait=False)
    talk.until("byId('key-dialog').open && !running")
    talk.by_id("key").send_keys("s3cret-key", Keys.ENTER)
    talk.finished()
    talk.ask(again)
    chat = demo.chat(PICTURES / "0.png")
    assert talk.answers() == [chat.ask(question), chat.ask(again)]
    assert talk.all_texts(".turn:first-child dt") == [
        "waiting for its turn",
        "seeing the photo",
        "reading the question",
        "writing the answer",
    ]
    prompt = talk.all_texts(".turn:last-child dd")[2]
    assert re.search(r", \d{3} tokens, \d{3} of them known$", prompt)  # as it is in the cache
    weights = looks(demo, demo.encode_image(PICTURES / "0.png"), question)
    np.testing.assert_allclose(
        browser.strengths(driver, ".turn:first-child canvas"), weights / weights.max(), atol=0.01
    )
    assert talk.requested() == {real, f"{real}v1/chat/completions"}
    assert [m for m in talk.log() if "status of 401" not in m] == []


def test_the_real_servers_refusal_is_said(driver: Any, real: str) -> None:
    talk = Talk(driver, real)
    talk.run("key = 's3cret-key'")
    talk.run("byId('question').value = 'word '.repeat(3000)")
    talk.ask("?", wait=False)
    words = talk.until("byId('problem').textContent")
    assert "2048" in words and talk.by_id("question").get_attribute("value").startswith("word word")
