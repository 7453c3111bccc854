"""Takes the picture in docs/serve.md: the server's page, when the model in the box has answered.

    mvlm serve --port 8080 &
    python tools/serve_picture.py http://127.0.0.1:8080/

Needs selenium, Chromium and its driver (Debian and Ubuntu: chromium and chromium-driver).
"""

import argparse
import base64
import io
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from mvlm_np.demo import PICTURES

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "serve.png"
QUESTION = "Describe the yellow lamp."
WIDTH = 640  # pixels of the screen


def take(driver: webdriver.Chrome, url: str, photo: Path) -> Image.Image:
    """Asks about a photo on the page at `url`, opens the map, and takes a picture of the whole page."""
    size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(url)
    wait = WebDriverWait(driver, 60)
    driver.find_element(By.ID, "choose").send_keys(str(photo))
    wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "#photos img"))
    driver.find_element(By.ID, "question").send_keys(QUESTION, Keys.ENTER)
    wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, ".turn button"))[0].click()
    driver.execute_script("document.activeElement.blur()")
    height = driver.execute_script("return document.body.scrollHeight")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    png = driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("url", help="of a running server without a key")
    url = parser.parse_args().url
    options = webdriver.ChromeOptions()
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # which a container does not have
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        take(driver, url, PICTURES / "1.png")  # so that the next one shows times of a server in use
        take(driver, url, PICTURES / "0.png").save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
