"""The page: a heading, the tabs, and what ties them together (deep links, dark mode, leaving)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from unipercept.app.web import parts
from unipercept.app.web.blocks import OwnedBlocks
from unipercept.app.web.compare_tab import compare_tab
from unipercept.app.web.models_tab import models_tab
from unipercept.app.web.perceive_tab import perceive_tab
from unipercept.app.web.series_tab import series_tab
from unipercept.app.web.train_tab import train_tab
from unipercept.app.web.turns import TurnQueue
from unipercept.app.web.weather_tab import weather_tab

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

# gradio keeps a copy of the page for each, some 0.15 MB; a call of the API without a page is one too.
SESSIONS_KEPT = 256
HEADING = (
    '<header class="up-head"><h1>unipercept</h1>'
    "<p>One large-kernel ConvNet for images, audio, video, point clouds, time series and weather.</p></header>"
)
# The address follows the tab, so that it can be sent to somebody.
FOLLOW = """() => {{
  if (!window.unipercept_opened) return;  // the first tab is selected before the link has been read
  const u = new URL(window.location);
  u.search = '';
  u.searchParams.set('tab', '{0}');
  history.replaceState(null, '', u);
}}"""
# By clicks, as a visitor would: a server's answer that set the tab could come after the visitor chose another.
# ?tab=perceive&example=A+lion+(image) runs an example by its name, ?tab=series&example the tab's own.
OPEN = """() => {
  const asked = new URLSearchParams(window.location.search);
  const wanted = asked.get('tab') || (asked.has('example') ? 'perceive' : null);
  const named = (where, text) => [...document.querySelectorAll(where)].find((b) => b.textContent.trim().toLowerCase() === text
    && !b.closest('.visually-hidden') && b.getBoundingClientRect().right <= window.innerWidth);
  const until = (found, left) => {
    const done = found();
    if (!done && left) setTimeout(() => until(found, left - 1), 100);
  };
  const run = () => {
    const example = wanted === 'perceive' ? named('#perceive-examples button', asked.get('example').toLowerCase())
      : document.querySelector('#' + wanted + '-example');
    if (example && example.offsetParent) { example.click(); return true; }
  };
  const open = () => {
    const menu = document.querySelector('#tabs .overflow-menu > button');  // a narrow page keeps the last tabs there
    const found = named('#tabs [role=tablist] button, #tabs button[role=tab]', wanted) || named('#tabs .overflow-dropdown button', wanted);
    if (found) { found.click(); if (asked.has('example')) until(run, 50); return true; }
    if (menu && !document.querySelector('#tabs .overflow-dropdown:not(.hide)')) menu.click();
  };
  if (wanted && /^[a-z]+$/.test(wanted)) until(open, 50);
  setTimeout(() => { window.unipercept_opened = true; }, 1500);
}"""
# gradio names all boxes for files alike, the button that adds files and the end of a job (which it has read aloud) by
# the key of a translation, links to files by their size, and pictures and charts not at all. What a browser cannot
# play, it shows as an empty box.
NAMES = """() => {
  const name = () => {
    for (const block of document.querySelectorAll('.block')) {
      const label = block.querySelector('[data-testid=block-label]')?.textContent.trim();
      if (!label) continue;
      for (const box of block.querySelectorAll('button[aria-label="Click to upload or drop files"]'))
        box.setAttribute('aria-label', label + ': click to upload, or drop files');
      for (const add of block.querySelectorAll('button[aria-label="common.upload"]')) {
        add.setAttribute('aria-label', label + ': add more');
        add.title = 'Add more';
      }
      for (const picture of block.querySelectorAll('img')) if (!picture.alt) picture.alt = label;
      for (const chart of block.querySelectorAll('.js-plotly-plot')) chart.querySelectorAll('.main-svg').forEach((drawn, i) => {
        drawn.setAttribute(i ? 'aria-hidden' : 'role', i ? 'true' : 'img');
        if (!i) drawn.setAttribute('aria-label', [label, chart.layout?.meta?.alt].filter(Boolean).join(': '));
      });
      for (const link of block.querySelectorAll('a.download-link[download]'))
        if (!link.hasAttribute('aria-label')) link.setAttribute('aria-label', 'Download ' + link.download);
    }
  };
  const plays = (can) => (e) => { if (e.target.matches?.('video, audio')) e.target.closest('.block')?.classList.toggle('up-unplayable', !can && !!e.target.currentSrc); };
  document.addEventListener('error', plays(false), true);  // of media, which does not bubble
  document.addEventListener('loadeddata', plays(true), true);
  let due = null;
  new MutationObserver((changes) => {
    for (const {target} of changes) {  // at once, before it is read aloud
      const text = target.nodeType === Node.TEXT_NODE ? target : target.firstChild;
      if (text?.data === 'common.complete') text.data = 'Done';
    }
    due = due || setTimeout(() => { due = null; name(); }, 200);
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
  name();
}"""
TOGGLE = "() => { document.body.classList.toggle('dark'); }"


def build_page(context: Context) -> OwnedBlocks:
    """All tabs, ready to be mounted."""
    page = OwnedBlocks(title="unipercept", analytics_enabled=False, fill_width=True)
    with page:
        page.sessions = context.sessions
        with gr.Row(elem_classes="up-top"):
            gr.HTML(HEADING, min_width=180, apply_default_css=False)
            dark = gr.Button("Light / dark", size="sm", scale=0, min_width=110, elem_id="toggle-dark")
        dark.click(None, None, None, js=TOGGLE, api_visibility="private")
        with gr.Tabs(elem_id="tabs"):
            with _tab("Perceive"):
                models = [perceive_tab(context)]
            with _tab("Compare"):
                models.append(compare_tab(context))
            with _tab("Series"):
                series_tab(context)
            with _tab("Weather"):
                filled = [weather_tab(context)]
            with _tab("Train"):
                train_tab(context)
            with _tab("Models"):
                filled.append(models_tab(context, models))
        for script in (OPEN, NAMES):
            page.load(None, None, None, js=script, api_visibility="private")
        for what in filled:
            page.load(what.function, what.inputs, what.outputs, **parts.QUIET, **context.quick)
    page.state_session_capacity = SESSIONS_KEPT
    page.queue()
    page._queue = TurnQueue.of(page, context.metrics.refuse)
    return page


def _tab(title: str) -> gr.Tab:
    name = title.lower()
    tab = gr.Tab(title, id=name)
    tab.select(None, None, None, js=FOLLOW.format(name), api_visibility="private")
    return tab
