"""Take README's four pictures of the web demo anew, with the default models, into docs/images.

python benchmarks/web_pictures.py                        needs playwright and Chromium, and some minutes
python benchmarks/web_pictures.py --output looks/
"""

import argparse
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image
from web_load import start_server
from web_start import CHROMIUM_ARGUMENTS, chromium_path

DOCS = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDE, PHONE, PHONE_HEIGHT, GAP = 1240, 390, 1030, 20
WAIT_MS = 600_000
STOP_SECONDS = 120  # a busy machine takes its time


class Camera:
    """A page of its own for each picture."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url

    def page(self, query: str, width: int, done: tuple[str, str], shown: str, **settings: Any) -> Any:
        """A page whose example, named in the address, has run: `done` is its status line and what it says then."""
        page = self.browser.new_page(viewport={"width": width, "height": 900}, **settings)
        page.goto(f"{self.url}/{query}")
        page.locator(done[0], has_text=re.compile(done[1])).wait_for(timeout=WAIT_MS)
        page.locator(shown).first.wait_for(timeout=WAIT_MS)
        page.mouse.move(0, 0)
        page.wait_for_timeout(3000)  # charts settle
        return page

    @staticmethod
    def taken(page: Any, top: float, bottom: float) -> Image.Image:
        """The page from one height to another, in pixels."""
        width = page.viewport_size["width"]
        clip = {"x": 0, "y": top, "width": width, "height": bottom - top}
        return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")

    def wide(self, query: str, done: tuple[str, str], shown: str, last: str) -> Image.Image:
        """Light and wide, down to the bottom of the element `last`."""
        page = self.page(query, WIDE, done, shown)
        return self.taken(page, 0, bottom_of(page, last) + 16)

    def phone(self, query: str, done: tuple[str, str], shown: str, second: str) -> Image.Image:
        """Dark and narrow: the top of the page, and beside it what begins just above the element `second`."""
        page = self.page(query, PHONE, done, shown, color_scheme="dark")
        start = page.locator(second).first.bounding_box()["y"] - 54
        pictures = [self.taken(page, top, top + PHONE_HEIGHT) for top in (0, start)]
        both = Image.new("RGB", (2 * PHONE + GAP, PHONE_HEIGHT), "white")
        for i, picture in enumerate(pictures):
            both.paste(picture, (i * (PHONE + GAP), 0))
        return both


def bottom_of(page: Any, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    return float(box["y"] + box["height"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    process, url, _ = start_server()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_ARGUMENTS)
            camera = Camera(browser, url)
            pictures = {
                "perceive": camera.wide(
                    "?tab=perceive&example=A torus (point cloud)", ("#perceive-status", "point cloud, "),
                    "#perceive-evidence img", "#perceive-labels",
                ),
                "compare": camera.wide(
                    "?tab=compare&example", ("#compare-status", "8 recordings"), "#compare-plane .pt", "#compare-plane"
                ),
                "weather": camera.wide(
                    "?tab=weather&example", ("#weather-status", "steps from"), "#weather-plume .main-svg", "#weather-plume"
                ),
                "phone": camera.phone(
                    "?tab=series&example", ("#series-status", "48 steps"), "#series-chart .main-svg", "#series-chart"
                ),
            }  # fmt: skip
            browser.close()
        for name, picture in pictures.items():
            path = folder / f"app-{name}.png"
            picture.save(path, optimize=True)
            print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


if __name__ == "__main__":
    main()
