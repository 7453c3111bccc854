"""A real browser for the tests of pages: Chromium, driven by selenium.

On Debian and Ubuntu: apt-get install chromium chromium-driver.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives the browser")
from selenium.common.exceptions import TimeoutException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

__all__ = ["By", "Keys", "TimeoutException", "WebDriverWait", "webdriver"]

PHONE, SMALL_PHONE, SMALLEST_PHONE, DESK = (390, 844), (360, 740), (320, 568), (1280, 900)
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
).split()


@contextmanager
def browser(profile: Path, *switches: str) -> Iterator[Any]:
    """A driver of a browser with an empty profile in that folder; skips where there is no browser."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, *switches, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        driver.set_page_load_timeout(120)
        driver.set_script_timeout(120)  # axe-core takes long where others compute
        yield driver
    finally:
        driver.quit()


class Opened:
    """A page in the browser, on a screen of that size."""

    def __init__(self, driver: Any, url: str, size: tuple[int, int] = DESK, scheme: str = "light"):
        self.driver = driver
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get_log("browser"), driver.get_log("performance")  # those of the page before
        driver.get(url)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def by_id(self, id: str) -> Any:
        return self.driver.find_element(By.ID, id)

    def text(self, id: str) -> str:
        return self.by_id(id).get_attribute("textContent")

    def press(self, id: str, *keys: str) -> None:
        element = self.by_id(id)
        self.run("arguments[0].focus()", element)
        element.send_keys(*keys)

    def wider_than_the_screen(self, *scrolled: str) -> list[str]:
        """What reaches beyond the right edge; inside the `scrolled` elements it may."""
        outside = f" && !e.closest('{', '.join(scrolled)}')" if scrolled else ""
        script = f"""
            const beyond = (e) => e.getBoundingClientRect().right > innerWidth + 1{outside};
            const found = [...document.querySelectorAll("body *")].filter(beyond);
            return found.map((e) => e.outerHTML.slice(0, 80));
        """
        return self.run(script) + (["the page"] if self.run(WIDER) else [])

    def contrast(self) -> tuple[int, list]:
        """How many texts are seen, and those whose contrast is below 4.5."""
        return self.run(CONTRAST)

    def requested(self) -> set[str]:
        """The addresses that the browser asked for since the page was opened; pictures inside it are none."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if not url.startswith("data:")}


def strengths(driver: Any, canvas: str) -> np.ndarray:
    """How strongly each cell of a map is coloured, 0 to 1: (rows, columns). canvas: its selector."""
    script = """
        const canvas = document.querySelector(arguments[0]);
        const {width, height} = canvas;
        const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return [width, height, Array.from(data).filter((_, i) => i % 4 === 3)];
    """
    width, height, alpha = driver.execute_script(script, canvas)
    return np.reshape(alpha, (height, width)) / 235


WIDER = "return document.documentElement.scrollWidth > innerWidth"

CONTRAST = """
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => (v * a + under[i] * (255 - a)) / 255);
    const behind = (e) => {
        const own = e ? rgba(getComputedStyle(e).backgroundColor) : [255, 255, 255, 255];
        return own[3] === 255 ? own.slice(0, 3) : over(own, behind(e.parentElement));
    };
    const light = (colour) => {
        const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = colour.map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const low = [];
    const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    let count = 0;
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
        count += 1;
        const back = behind(e);
        const front = over(rgba(getComputedStyle(e).color), back);
        const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) low.push([ratio, e.className, walker.currentNode.textContent]);
    }
    return [count, low];
"""
