"""A widget that shows one of many pictures, moved by a slider: the lead of a forecast, with its stages marked below."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from unipercept.app.web.words import webp_address

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
CSS = """
.frame {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 235px), 1fr)); gap: .4rem} .frame[hidden] {display: none}
.frame p {grid-column: 1 / -1; margin: 0; font-weight: 600} figure {margin: 0}
figcaption {font-size: .82rem; text-align: center; color: var(--body-text-color-subdued)} img {width: 100%; height: auto; display: block; background: white; border-radius: 6px; margin: 0}
.row {display: flex; gap: .7rem; align-items: center; margin: .5rem 0 0} input {flex: 1; accent-color: #0072b2; min-width: 0; margin: 0}
.stages {display: flex; margin-left: 4.6rem; font-size: .8rem; gap: 2px}
.stages div {padding: .1rem .3rem; color: white; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; border-radius: 2px}
button {width: 3.9rem; padding: .3rem 0; border: 1px solid var(--border-color-primary); border-radius: 4px; background: none; color: inherit; cursor: pointer}
.legend {font-size: .82rem; color: var(--body-text-color-subdued); margin: .3rem 0 0}
"""
ON_LOAD = """
let timer = null;
const show = (n) => {
  const all = element.querySelectorAll('.frame'); all.forEach((frame, i) => { frame.hidden = i !== n; });
  const range = element.querySelector('input'); if (range) { range.value = n; range.setAttribute('aria-valuetext', all[n] ? all[n].querySelector('p').textContent : ''); }
};
const stop = () => { clearInterval(timer); timer = null; const b = element.querySelector('button'); if (b) b.textContent = 'Play'; };
element.addEventListener('input', (e) => { if (e.target.matches('input')) { stop(); show(Number(e.target.value)); } });
element.addEventListener('click', (e) => {
  if (!e.target.matches('button')) return;
  if (timer) { stop(); return; }
  e.target.textContent = 'Pause';
  timer = setInterval(() => {
    const range = element.querySelector('input'); if (!range) { stop(); return; }
    show((Number(range.value) + 1) % (Number(range.max) + 1));
  }, 250);
});
"""


def slider(elem_id: str) -> gr.HTML:
    """The widget; its value is the HTML of `pictures`."""
    return gr.HTML(css_template=CSS, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False, visible=False)


def pictures(
    frames: Sequence[tuple[str, Sequence[tuple[str, bytes]]]], stages: Sequence[tuple[str, int]], note: str
) -> str:
    """Frames (label, pictures with titles as WebP) over a slider; `stages` are names with their numbers of steps."""
    images = ""
    for i, (label, parts) in enumerate(frames):
        drawn = "".join(
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f'<img alt="{escape(title)}, {escape(label)}" src="{webp_address(data)}"></figure>'
            for title, data in parts
        )
        images += f'<div class="frame"{" hidden" if i else ""}><p>{escape(label)}</p>{drawn}</div>'
    blocks = "".join(
        f'<div style="flex:{count};background:{COLOURS[i % len(COLOURS)]}" title="{escape(name)}, {count} steps">{escape(name)}</div>'
        for i, (name, count) in enumerate(stages)
    )
    return (
        f'{images}<div class="row"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" aria-label="lead time" aria-valuetext="{escape(frames[0][0])}"></div>'
        f'<div class="stages">{blocks}</div><p class="legend">{escape(note)}</p>'
    )
