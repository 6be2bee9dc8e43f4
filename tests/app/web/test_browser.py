"""The page in a real Chromium: every tab's main flow, mistakes, cancel, dark mode, narrow and wide;
nothing is fetched from elsewhere.

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
LEFT = ("AbortError", "errored out")  # what gradio says of streams that a page leaves open when it is left
# By tab: its title, its example, what its status line and its results then show.
MAIN_FLOWS = {
    "perceive": ("Perceive", None, r"image, [\d.]+ s", "#perceive-facts table"),
    "compare": ("Compare", "#compare-example", r"8 recordings", "#compare-plane .pt"),
    "search": ("Compare", "#search-example", r"8 nearest", "#search-hits button"),
    "series": ("Series", "#series-example", r"48 steps", "#series-chart .main-svg"),
    "weather": ("Weather", "#weather-example", r"steps from", "#weather-maps img"),
    "train": ("Train", "#train-example", r"trained", "#train-scores table"),
    "models": ("Models", "#models-run", r"measured", "#models-speed table"),
}
TABS = [name for name in MAIN_FLOWS if name != "search"]
# Where a file goes, the button that follows (None: dropping it is enough), and recordings that do well.
UPLOADS = {
    "perceive": ("#perceive-file", None, ["picture"]),
    "compare": ("#compare-files", None, ["picture", "dark", "load"]),
    "search": ("#search-query", "#search-run", ["picture"]),
    "series": ("#series-file", "#series-run", ["load"]),
    "weather": ("#weather-file", "#weather-run", ["fields"]),
    "train": ("#train-zip", "#train-run", ["classes"]),
}
DONE = {"compare": r"3 recordings", **{name: flow[2] for name, flow in MAIN_FLOWS.items() if name != "compare"}}
DOWNLOADS = {
    "perceive": "#perceive-files",
    "series": "#series-files",
    "weather": "#weather-files",
    "train": "#train-files",
}
LONG_JOBS = {
    "compare": r"\d of 8",
    "series": r"back-test|origin|fitting|%|seconds|network|reading|loading",
    "weather": r"step \d+|drawing|first step|scores",
    "train": r"update \d+|decoding|learning",
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
        title, button, pattern, shown = MAIN_FLOWS[name]
        self.tab(title)
        if button is None:
            self.page.get_by_text("A lion (image)", exact=True).click()
        else:
            self.page.locator(button).click()
        self.wait_text(f"#{name}-status", pattern)
        self.page.locator(shown).first.wait_for(timeout=LONG)

    def send(self, name, paths):
        """Drop files where they go, and press the button."""
        field, button, _ = UPLOADS[name]
        self.tab(MAIN_FLOWS[name][0])
        self.page.locator(f"{field} input[type=file]").set_input_files([str(path) for path in paths])
        if button:
            self.page.locator(f"{field} a[download]").first.wait_for(timeout=LONG)
            self.page.locator(button).click()

    def overflow(self):
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def is_dark(self):
        return "dark" in (self.page.locator("body").get_attribute("class") or "")

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
    opened.errors[:] = [line for line in opened.errors if not any(word in line for word in LEFT)]
    opened.close()


@pytest.mark.parametrize("name", MAIN_FLOWS)
def test_the_main_flow_of_every_tab(visit, name):
    visit.main_flow(name)
    visit.keep(f"{name}-wide-light")
    assert visit.overflow() <= 0
    visit.page.locator("#toggle-dark").click()
    assert visit.is_dark()
    visit.keep(f"{name}-wide-dark")
    if name in DOWNLOADS:
        with visit.page.expect_download(timeout=LONG) as download:
            visit.page.locator(f"{DOWNLOADS[name]} a[download]").first.click()
        assert Path(download.value.path()).stat().st_size > 0


@pytest.mark.parametrize("name", TABS)
def test_every_tab_fits_a_phone_and_its_example_has_an_address(chromium, server, name):
    opened = Visit(chromium, server, NARROW, color_scheme="dark", device_scale_factor=1)
    opened.open(f"?tab={name}&example={'a lion (image)' if name == 'perceive' else ''}")
    assert opened.is_dark()
    if name == "models":  # its card is shown at once; measuring is asked for
        opened.page.locator("#models-card table").wait_for(timeout=LONG)
    else:
        opened.wait_text(f"#{name}-status", MAIN_FLOWS[name][2])
        opened.page.locator(MAIN_FLOWS[name][3]).first.wait_for(timeout=LONG)
    opened.keep(f"{name}-narrow-dark")
    assert opened.overflow() <= 0
    opened.page.locator("#toggle-dark").click()
    assert not opened.is_dark()
    opened.keep(f"{name}-narrow-light")
    opened.close()


@pytest.mark.parametrize("name", UPLOADS)
def test_a_corrupt_file_is_a_toast_of_one_line_and_a_good_one_is_taken(visit, recordings, tmp_path, name):
    bad = recordings["broken"]
    if name == "train":
        bad = tmp_path / "broken.zip"
        bad.write_bytes(b"PK\x03\x04nothing more")
    visit.send(name, [bad, recordings["picture"]] if name == "compare" else [bad])
    toast = visit.page.get_by_test_id("toast-body").first
    toast.wait_for(timeout=LONG)
    assert "broken" in toast.inner_text() or "readable" in toast.inner_text()
    visit.wait_text(f"#{name}-status", "broken|readable")  # the line stays when the toast has gone
    visit.errors[:] = [
        line for line in visit.errors if "broken" not in line and "readable" not in line
    ]  # gradio logs it
    visit.page.locator(f"{UPLOADS[name][0]} button[aria-label='Clear']").click()
    visit.send(name, [recordings[recording] for recording in UPLOADS[name][2]])
    visit.wait_text(f"#{name}-status", DONE[name])


def test_what_was_trained_names_a_recording_and_refuses_a_corrupt_one(visit, recordings):
    visit.send("train", [recordings["classes"]])
    visit.wait_text("#train-status", "trained")
    for recording, pattern in (("dark", r"dark\.png: (dark|bright)"), ("broken", "broken")):
        visit.page.locator("#train-probe input[type=file]").set_input_files(str(recordings[recording]))
        visit.page.locator("#train-probe a[download]").first.wait_for(timeout=LONG)
        visit.page.locator("#try-run").click()
        visit.wait_text("#try-status", pattern)
        visit.page.locator("#train-probe button[aria-label='Clear']").click()
    visit.page.get_by_test_id("toast-body").first.wait_for(timeout=LONG)
    visit.errors[:] = [line for line in visit.errors if "broken" not in line]


def test_cancel_is_there_only_while_its_own_job_runs(visit):
    visit.page.get_by_text("The earth (video)", exact=True).click()  # its player has a bar of progress, too
    visit.wait_text("#perceive-status", r"video, [\d.]+ s")
    visit.page.locator("video").first.wait_for(timeout=LONG)
    sync_api.expect(visit.page.locator("#perceive-cancel")).to_be_hidden(timeout=LONG)
    visit.tab("Compare")
    visit.page.locator("#compare-example").click()
    visit.wait_text("#compare-status", r"\d of 8")
    assert visit.page.locator("#compare-cancel").is_visible()
    assert not visit.page.locator("#search-cancel").is_visible()
    visit.wait_text("#compare-status", "8 recordings")


def test_the_vector_that_is_downloaded_is_the_vector(visit, recordings):
    visit.send("perceive", [recordings["picture"]])
    visit.wait_text("#perceive-status", r"image, [\d.]+ s")
    with visit.page.expect_download(timeout=LONG) as download:
        visit.page.locator("#perceive-files a[download]").first.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "feature,value"
    assert len(lines) > 100


def test_a_video_that_the_browser_cannot_play_says_so(visit, tmp_path):
    av = pytest.importorskip("av")
    if "libx265" not in av.codecs_available:
        pytest.skip("needs an encoder of HEVC")
    with av.open(str(tmp_path / "IMG_0001.mov"), "w") as out:
        stream = out.add_stream("libx265", rate=30, options={"x265-params": "log-level=none", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(30):
            out.mux(stream.encode(av.VideoFrame(128, 96, "yuv420p")))
        out.mux(stream.encode(None))
    for path, count in ((tmp_path / "IMG_0001.mov", 1), (None, 0)):
        if path is None:
            visit.page.get_by_text("The earth (video)", exact=True).click()
            visit.page.locator("#perceive-facts", has_text="world.mp4").wait_for(timeout=LONG)
        else:
            visit.send("perceive", [path])
            visit.wait_text("#perceive-status", r"video, [\d.]+ s")
        sync_api.expect(visit.page.locator(".up-unplayable")).to_have_count(count, timeout=LONG)


def test_markup_in_a_file_name_is_text(visit, recordings, tmp_path):
    named = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    named.write_bytes(recordings["broken"].read_bytes())
    visit.page.locator("#perceive-file input[type=file]").set_input_files(str(named))
    visit.page.get_by_test_id("toast-body").first.wait_for(timeout=LONG)
    assert visit.page.title() == "unipercept"
    assert visit.page.locator("img[src='x']").count() == 0
    visit.errors.clear()


def test_markup_in_the_header_of_a_table_is_text(visit, recordings, tmp_path):
    table = tmp_path / "marked.csv"
    rows = recordings["load"].read_text().splitlines()
    table.write_text("\n".join(["date,<img src=x onerror=document.title='owned'>", *rows[1:]]) + "\n")
    visit.send("series", [table])
    visit.wait_text("#series-status", r"48 steps of 1 series")
    visit.page.locator("#series-chart", has_text="<img src=x").wait_for(timeout=LONG)
    visit.send("perceive", [table])
    visit.wait_text("#perceive-status", r"time series, [\d.]+ s")
    assert visit.page.title() == "unipercept"
    assert visit.page.locator("img[src='x']").count() == 0


@pytest.mark.parametrize("name", LONG_JOBS)
def test_a_long_job_is_cancelled_and_the_next_one_runs(server, visit, name):
    title, button, *_ = MAIN_FLOWS[name]
    visit.tab(title)
    visit.page.locator(button).click()
    visit.wait_text(f"#{name}-status", LONG_JOBS[name])
    visit.page.locator(f"#{name}-cancel").click()
    visit.wait_text(f"#{name}-status", "Stopped")
    for _ in range(300):
        if server.metrics.health()["running"] == 0:
            break
        time.sleep(0.2)
    assert server.metrics.health()["running"] == 0
    visit.main_flow("perceive")


def test_who_waits_for_a_turn_is_told_so(chromium, server, visit):
    second = Visit(chromium, server).open()
    for opened in (visit, second):
        opened.tab("Train")
        opened.page.locator("#train-example").click()
        if opened is visit:
            opened.wait_text("#train-status", LONG_JOBS["train"])
    second.page.locator("#train-status", has_text="queue").wait_for(timeout=LONG)
    second.keep("train-waiting")
    for opened in (second, visit):
        opened.page.locator("#train-cancel").click()
        opened.wait_text("#train-status", "Stopped")
    second.close()


def test_users_sign_in_below_a_root_path(chromium, tiny_weather):
    from unipercept.app.demo import build
    from unipercept.app.web.options import AppOptions

    built = build(AppOptions(port=0, auth=(("ada", "secret"),), root_path="/lab"))
    try:
        built.url = built.start()
        opened = Visit(chromium, built)
        opened.page.goto(built.url + "lab/")
        opened.page.get_by_label("username").fill("ada")
        opened.page.get_by_label("password").fill("secret")
        opened.page.get_by_role("button", name="Login").click()
        opened.page.get_by_role("tab", name="Perceive").wait_for(timeout=LONG)
        opened.main_flow("perceive")
        opened.page.locator("#perceive-map img").wait_for(timeout=LONG)
        opened.errors[:] = [line for line in opened.errors if "401" not in line]  # what is asked before signing in
        opened.close()
    finally:
        built.close()


def test_the_tab_key_reaches_all_that_one_needs(visit):
    for name, (title, example, *_) in MAIN_FLOWS.items():
        visit.tab(title)
        needed = {f"#{name}-run", *filter(None, [example])}  # Cancel is there while something runs
        needed |= {UPLOADS[name][0]} if name in UPLOADS else set()
        visit.page.locator(f"#{name}-run").wait_for(timeout=LONG)
        visit.page.get_by_role("tab", name=title).focus()
        for _ in range(60):
            if not needed:
                break
            visit.page.keyboard.press("Tab")
            needed -= {
                here for here in needed if visit.page.evaluate("(s) => !!document.activeElement.closest(s)", here)
            }
        assert needed == set(), name


def test_all_that_one_can_press_or_look_at_has_a_name(visit):
    accessibility = visit.context.new_cdp_session(visit.page)
    visit.main_flow("series")
    visit.page.locator("#series-chart svg[role=img][aria-label*='load, temperature: history']").wait_for(timeout=LONG)
    visit.main_flow("perceive")
    visit.page.locator("#perceive-files a[aria-label='Download lion.json']").wait_for(timeout=LONG)
    visit.page.locator("#perceive-map img[alt]").wait_for(timeout=LONG)
    for title in ("Compare", "Train", "Perceive"):
        visit.tab(title)
        if title == "Compare":
            visit.main_flow("compare")  # its list of files has a button that adds more
        visit.page.wait_for_timeout(1000)
        nodes = [n for n in accessibility.send("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
        found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes]
        assert [role for role, name in found if role in ("button", "link", "slider", "combobox") and not name] == []
        boxes = [name for role, name in found if role == "button" and "drop files" in name]
        assert len(boxes) == len(set(boxes))
        assert all(not name.startswith("Click") for name in boxes)
        assert all("common." not in name for _, name in found)


def test_a_tab_and_an_example_open_by_the_keyboard(visit):
    visit.page.get_by_role("tab", name="Perceive").focus()
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    visit.page.locator("#compare-example").wait_for(timeout=LONG)
    visit.page.locator("#compare-example").focus()
    visit.page.keyboard.press("Enter")
    visit.wait_text("#compare-status", r"8 recordings")


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
    was_dark = visit.is_dark()
    visit.page.locator("#toggle-dark").focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(f"document.body.classList.contains('dark') !== {str(was_dark).lower()}")
