"""The page: a heading, the tabs, and what ties them together (deep links, dark mode, leaving)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web.blocks import OwnedBlocks
from unipercept.app.web.compare_tab import compare_tab
from unipercept.app.web.models_tab import models_tab
from unipercept.app.web.perceive_tab import perceive_tab
from unipercept.app.web.series_tab import series_tab
from unipercept.app.web.train_tab import train_tab
from unipercept.app.web.weather_tab import weather_tab

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

TABS = {
    "perceive": "Perceive",
    "compare": "Compare",
    "series": "Series",
    "weather": "Weather",
    "train": "Train",
    "models": "Models",
}
SESSIONS_KEPT = (
    256  # gradio keeps a copy of the page for each, some 0.15 MB; a call of the API without a page is one too
)
HEADING = (
    '<header class="up-head"><h1>unipercept</h1>'
    "<p>One large-kernel ConvNet for pictures, sound, video, point clouds, time series and weather.</p></header>"
)
# The address follows the tab, so that it can be sent to somebody.
FOLLOW = """() => {{
  if (!window.unipercept_opened) return;  // the first tab is selected before the link has been read
  const u = new URL(window.location);
  u.search = '';
  u.searchParams.set('tab', '{0}');
  history.replaceState(null, '', u);
}}"""
# By a click, as a visitor would: a server's answer that set the tab could come after the visitor chose another.
OPEN = """() => {
  const wanted = new URLSearchParams(window.location.search).get('tab');
  const named = (where) => [...document.querySelectorAll(where)].find((b) => b.textContent.trim().toLowerCase() === wanted
    && !b.closest('.visually-hidden') && b.getBoundingClientRect().right <= window.innerWidth);
  const open = (left) => {
    const menu = document.querySelector('#tabs .overflow-menu > button');  // a narrow page keeps the last tabs there
    const found = named('#tabs [role=tablist] button, #tabs button[role=tab]');
    if (found) { found.click(); return; }
    if (menu && left < 45) {
      menu.click();
      setTimeout(() => { const item = named('#tabs .overflow-dropdown button'); if (item) item.click(); }, 100);
    } else if (left) setTimeout(() => open(left - 1), 100);
  };
  if (wanted) open(50);
  setTimeout(() => { window.unipercept_opened = true; }, 1500);
}"""
TOGGLE = "() => { document.body.classList.toggle('dark'); }"


def build_page(context: Context) -> OwnedBlocks:
    """All tabs, ready to be mounted."""
    builders = {
        "perceive": perceive_tab,
        "compare": compare_tab,
        "series": series_tab,
        "weather": weather_tab,
        "train": train_tab,
        "models": models_tab,
    }
    page = OwnedBlocks(title="unipercept", analytics_enabled=False, fill_width=True)
    with page:
        page.sessions = context.sessions
        with gr.Row():
            gr.HTML(HEADING, padding=False, min_width=180)
            dark = gr.Button("Light / dark", size="sm", scale=0, min_width=110, elem_id="toggle-dark")
        parts: dict[str, dict[str, Any]] = {}
        with gr.Tabs(elem_id="tabs"):
            for name, title in TABS.items():
                with gr.Tab(title, id=name) as tab:
                    parts[name] = builders[name](context)
                tab.select(None, None, None, js=FOLLOW.format(name), api_visibility="private")
        dark.click(None, None, None, js=TOGGLE, api_visibility="private")

        linked = gr.State(False)  # events that follow do not see the address

        def open_link(request: gr.Request) -> list[Any]:
            title = dict(request.query_params).get("example")
            if title not in context.examples.titles():
                return [gr.skip(), False]
            return [str(context.examples.get(title).path), True]

        perceive = parts["perceive"]
        page.load(None, None, None, js=OPEN, api_visibility="private")
        opened = page.load(
            open_link, None, [perceive["file"], linked], api_visibility="private", show_progress="hidden"
        )

        async def run_linked(is_linked: bool, file: Any, modality: str, model: str, request: gr.Request) -> Any:
            if not file or not is_linked:
                yield [gr.skip()] * len(perceive["outputs"])
                return
            async for update in perceive["run"](file, modality, model, request):
                yield update

        models = parts["models"]
        page.load(
            models["fill"], None, models["fills"], api_visibility="private", show_progress="hidden", **context.quick
        )
        opened.then(
            run_linked,
            [linked, *perceive["inputs"]],
            perceive["outputs"],
            show_progress="hidden",
            api_visibility="private",
            **context.quick,
        )
    page.state_session_capacity = SESSIONS_KEPT
    page.queue(max_size=200)
    return page
