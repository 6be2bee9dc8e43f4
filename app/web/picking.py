"""A plane of points and a list of neighbours, in both of which one can click, or go with the Tab key and press Enter."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from numpy.typing import NDArray

# One colour and one shape of mark a modality, so that colour is not all that tells them apart.
MARKS = {
    "image": ("#0072B2", "circle"),
    "audio": ("#D55E00", "square"),
    "video": ("#009E73", "diamond"),
    "pointcloud": ("#CC79A7", "triangle"),
    "timeseries": ("#E69F00", "cross"),
    "weather": ("#56B4E9", "star"),
}
SHAPES = {
    "circle": '<circle r="6"/>',
    "square": '<rect x="-5.5" y="-5.5" width="11" height="11"/>',
    "diamond": '<path d="M0-7.5 7.5 0 0 7.5-7.5 0Z"/>',
    "triangle": '<path d="M0-7 7 6H-7Z"/>',
    "cross": '<path d="M-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5Z"/>',
    "star": '<path d="M0-8 2-2.5 8-2.5 3.2 1.2 5 7 0 3.5-5 7-3.2 1.2-8-2.5-2-2.5Z"/>',
}
CSS = """
svg {width: 100%; height: auto; display: block; border: 1px solid var(--border-color-primary); border-radius: 6px} .pt {cursor: pointer} .pt:hover, .pt:focus {stroke: currentColor; stroke-width: 2}
text {font-size: 11px; fill: currentColor} .legend {font-size: .82rem; color: var(--body-text-color-subdued)}
button {display: flex; width: 100%; gap: .8rem; padding: .35rem .5rem; border: 0; border-bottom: 1px solid var(--border-color-primary);
background: none; color: inherit; text-align: left; cursor: pointer; font: inherit; font-size: .9rem}
button:hover {background: var(--background-fill-secondary)} button b {font-variant-numeric: tabular-nums; font-weight: 600; min-width: 4.2rem}
button span {overflow-wrap: anywhere}
@media (max-width: 520px) {text {font-size: 17px} .pt {stroke-width: 0; transform: scale(1.4)}}
"""
ON_LOAD = """
const pick = (e) => { const p = e.target.closest('[data-i]'); if (p) trigger('select', {index: Number(p.dataset.i), value: p.dataset.i}); };
element.addEventListener('click', pick);
element.addEventListener('keydown', (e) => { if (e.target.matches('.pt') && (e.key === 'Enter' || e.key === ' ')) { e.preventDefault(); pick(e); } });
"""
WIDTH, HEIGHT, EDGE = 640, 400, 34
MOST_NAMED = 24  # points; of more, the names come on hover alone
LETTER, LINE = 6.4, 11.0  # of a name, in the picture's units


def picker(elem_id: str, empty: str | None = None) -> gr.HTML:
    """A widget whose value is the HTML of `plane` or `neighbours`; its `select` event has the index. Hidden without `empty`."""
    return gr.HTML(
        empty or "", css_template=CSS, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False,
        visible=empty is not None,
    )  # fmt: skip


def plane(places: NDArray[Any], names: Sequence[str], modalities: Sequence[str]) -> str:
    """Points on a plane, each with its name on hover and for screen readers."""
    low, high = places.min(axis=0), places.max(axis=0)
    span = [max(float(high[i] - low[i]), 1e-9) for i in range(2)]
    points = ""
    written: list[tuple[float, float, float]] | None = [] if len(names) <= MOST_NAMED else None
    for i, (place, name, kind) in enumerate(zip(places, names, modalities, strict=True)):
        x = EDGE + (WIDTH - 2 * EDGE) * (float(place[0] - low[0]) / span[0])
        y = HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (float(place[1] - low[1]) / span[1])
        colour, shape = MARKS.get(kind, MARKS["image"])
        title = escape(f"{name} ({kind})")
        text = "" if written is None else _name(x, y, name[:22], written)
        points += (
            f'<g transform="translate({x:.1f} {y:.1f})"><g class="pt" tabindex="0" role="button" aria-label="{title}" data-i="{i}" '
            f'fill="{colour}"><title>{title}</title>{SHAPES[shape]}</g>{text}</g>'
        )
    legend = ", ".join(f"{kind}: {MARKS[kind][1]}" for kind in dict.fromkeys(modalities) if kind in MARKS)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="map of the vectors">{points}</svg>'
        f'<p class="legend">The two directions in which the vectors differ most. {legend}. Click a point to open its recording.</p>'
    )


def _name(x: float, y: float, name: str, written: list[tuple[float, float, float]]) -> str:
    """A name beside the point at (x, y), lower or higher where it would lie over those that are `written`: (left, right, height) each."""
    wide = LETTER * len(name)
    side, shift = ("end", -10) if x + 10 + wide > WIDTH else ("start", 10)
    left = x + shift - (wide if side == "end" else 0)
    free = [
        down
        for down in (4, 18, -10, 32, -24)
        if all(left > r or left + wide < b or abs(y + down - h) > LINE for b, r, h in written)
    ]
    down = free[0] if free else 4
    written.append((left, left + wide, y + down))
    return f'<text x="{shift}" y="{down}" text-anchor="{side}">{escape(name)}</text>'


def neighbours(found: Sequence[tuple[str, float]]) -> str:
    """A list of names with their similarity."""
    return '<p class="legend">Cosine similarity, the nearest first. Click a recording to open it.</p>' + "".join(
        f'<button type="button" data-i="{i}"><b>{value:.4f}</b><span>{escape(name)}</span></button>'
        for i, (name, value) in enumerate(found)
    )
