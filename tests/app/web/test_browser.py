"""The page in a real Chromium: every tab's main flow, mistakes, cancel, dark mode, narrow and wide; nothing is fetched from elsewhere.

Needs `pip install playwright` and Debian's chromium (or UNIPERCEPT_CHROMIUM naming one); skipped without.
Run: python3 dev.py test --slow tests/app/web/test_browser.py
UNIPERCEPT_SCREENSHOTS=FOLDER keeps pictures of every tab.
"""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = os.environ.get("UNIPERCEPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install -y chromium"),
]

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-unsafe-swiftshader"]
LONG = 180_000  # milliseconds: machines that run tests are busy
WIDE, NARROW = (1400, 1000), (390, 844)
FIRST_PAINT_MS = 3000
MAIN_FLOWS = {
    "perceive": ("Perceive", None, "#perceive-status", r"image, [\d.]+ s", "#perceive-facts table"),
    "compare": ("Compare", "#compare-example", "#compare-status", r"8 recordings", "#compare-plane .pt"),
    "series": ("Series", "#series-example", "#series-status", r"48 steps", "#series-chart .main-svg"),
    "weather": ("Weather", "#weather-example", "#weather-status", r"steps from", "#weather-maps img"),
    "train": ("Train", "#train-example", "#train-status", r"trained", "#train-scores table"),
    "models": ("Models", "#models-run", "#models-status", r"measured", "#models-speed table"),
}
# Where a file goes, the button that follows (None: dropping it is enough), and what else must be filled in.
MISTAKES = {
    "perceive": ("#perceive-file", None),
    "compare": ("#compare-files", None),
    "series": ("#series-file", "#series-run"),
    "weather": ("#weather-file", "#weather-run"),
    "train": ("#train-zip", "#train-run"),
}


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A fresh visitor's page, and all that it logged and asked for."""

    def __init__(self, chromium, server, size=WIDE, **settings):
        self.url = server.url
        self.context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, accept_downloads=True, **settings
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note)

    def _note(self, request):
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, query=""):
        self.page.goto(self.url + query)
        self.page.get_by_role("tab", name="Perceive").wait_for(timeout=LONG)
        return self

    def tab(self, title):
        tab = self.page.get_by_role("tab", name=title)
        if not tab.is_visible():  # a narrow page keeps the last ones in a menu
            self.page.locator("#tabs .overflow-menu button").first.click()
            self.page.locator("#tabs .overflow-dropdown button", has_text=title).click()
        else:
            tab.click()

    def wait_text(self, selector, pattern):
        sync_api.expect(self.page.locator(selector)).to_have_text(re.compile(pattern), timeout=LONG)

    def main_flow(self, name):
        title, button, status, pattern, shown = MAIN_FLOWS[name]
        self.tab(title)
        if name == "perceive":
            self.page.get_by_text("A lion (image)", exact=True).click()
        else:
            self.page.locator(button).click()
        self.wait_text(status, pattern)
        self.page.locator(shown).first.wait_for(timeout=LONG)

    def keep(self, name):
        folder = os.environ.get("UNIPERCEPT_SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(2000)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def close(self):
        self.context.close()
        assert self.errors == []
        assert self.elsewhere == []


@pytest.fixture
def visit(chromium, server):
    opened = Visit(chromium, server)
    yield opened.open()
    opened.close()


def test_the_first_paint_comes_soon_and_deep_links_open_their_tab_and_example(chromium, server):
    opened = Visit(chromium, server)
    opened.open()  # once: a fresh Chromium and a fresh server warm up
    opened.open("?tab=perceive&example=A+lion+(image)")
    paint = opened.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < FIRST_PAINT_MS
    opened.wait_text("#perceive-status", r"image, [\d.]+ s")
    opened.page.goto(opened.url + "?tab=weather")
    sync_api.expect(opened.page.get_by_role("tab", name="Weather")).to_have_attribute(
        "aria-selected", "true", timeout=LONG
    )
    opened.page.wait_for_function("window.unipercept_opened", timeout=LONG)
    opened.tab("Models")
    opened.page.wait_for_function("location.search === '?tab=models'", timeout=LONG)
    left = ("AbortError", "errored out")  # what gradio says of streams that a page leaves open when it is left
    opened.errors[:] = [line for line in opened.errors if not any(word in line for word in left)]
    opened.close()


@pytest.mark.parametrize("name", MAIN_FLOWS)
def test_the_main_flow_of_every_tab(visit, name):
    visit.main_flow(name)
    visit.keep(f"{name}-wide")


@pytest.mark.parametrize("name", MAIN_FLOWS)
def test_every_tab_fits_a_phone_in_the_dark(chromium, server, name):
    opened = Visit(chromium, server, NARROW, color_scheme="dark", device_scale_factor=1)
    opened.open()
    assert "dark" in opened.page.locator("body").get_attribute("class")
    opened.main_flow(name)
    wider = opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    opened.keep(f"{name}-narrow-dark")
    assert wider <= 0
    opened.close()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_corrupt_file_is_a_toast_of_one_line(visit, recordings, tmp_path, name):
    field, button = MISTAKES[name]
    title = MAIN_FLOWS[name][0]
    visit.tab(title)
    bad = recordings["broken"]
    if name == "train":
        bad = tmp_path / "broken.zip"
        bad.write_bytes(b"PK\x03\x04nothing more")
    files = [bad, recordings["picture"]] if name == "compare" else [bad]
    visit.page.locator(f"{field} input[type=file]").set_input_files([str(path) for path in files])
    if button:
        visit.page.locator(f"{field} a[download]").first.wait_for(timeout=LONG)
        visit.page.locator(button).click()
    toast = visit.page.get_by_test_id("toast-body").first
    toast.wait_for(timeout=LONG)
    assert "broken" in toast.inner_text() or "readable" in toast.inner_text()
    visit.errors[:] = [
        line for line in visit.errors if "broken" not in line and "readable" not in line
    ]  # gradio logs what it shows


def test_a_file_is_sent_looked_at_and_its_vector_downloaded(visit, recordings):
    visit.page.locator("#perceive-file input[type=file]").set_input_files(str(recordings["picture"]))
    visit.wait_text("#perceive-status", r"image, [\d.]+ s")
    with visit.page.expect_download(timeout=LONG) as download:
        visit.page.locator("#perceive-files a[download]").first.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "feature,value"
    assert len(lines) > 100


def test_markup_in_a_file_name_is_text(visit, recordings, tmp_path):
    named = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    named.write_bytes(recordings["broken"].read_bytes())
    visit.page.locator("#perceive-file input[type=file]").set_input_files(str(named))
    visit.page.get_by_test_id("toast-body").first.wait_for(timeout=LONG)
    assert visit.page.title() == "unipercept"
    assert visit.page.locator("img[src='x']").count() == 0
    visit.errors.clear()


def test_a_long_job_is_cancelled_and_the_next_one_runs(server, visit):
    visit.tab("Train")
    visit.page.locator("#train-example").click()
    visit.wait_text("#train-status", r"update \d+|decoding")
    visit.page.locator("#train-cancel").click()
    visit.wait_text("#train-status", "Stopped")
    for _ in range(100):
        if server.metrics.health()["running"] == 0:
            break
        time.sleep(0.2)
    assert server.metrics.health()["running"] == 0
    visit.tab("Perceive")
    visit.main_flow("perceive")


def test_the_lead_slider_the_plane_and_the_theme_obey_the_keyboard(visit):
    visit.main_flow("weather")
    slider = visit.page.locator("#weather-maps input[type=range]")
    slider.focus()
    visit.page.keyboard.press("ArrowRight")
    assert "+ 12 h" in visit.page.locator("#weather-maps .frame:not([hidden]) p").inner_text()
    visit.main_flow("compare")
    point = visit.page.locator("#compare-plane .pt").first
    point.focus()
    visit.page.keyboard.press("Enter")
    visit.wait_text("#compare-opened", r"lion\.jpg")
    was_dark = "dark" in (visit.page.locator("body").get_attribute("class") or "")
    visit.page.locator("#toggle-dark").focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(f"document.body.classList.contains('dark') !== {str(was_dark).lower()}")
    visit.keep("compare-dark")
