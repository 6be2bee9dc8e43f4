"""A plane of points and a list of neighbours, in both of which one can click, or go with
the Tab key and press Enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from numpy.typing import NDArray

from unipercept.app.web import words

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
DESCENT, FAR = 2.0, 15  # of letters below their line; how far from its point a name is tied to it by a line
MARK = 8.0  # half the side of the largest mark

Box = tuple[float, float, float, float]  # left, top, right, bottom


def picker(elem_id: str, empty: str | None = None) -> gr.HTML:
    """A widget whose value is the HTML of `plane` or `neighbours`; its `select` event has the index.

    Hidden without `empty`.
    """
    return gr.HTML(
        empty or "", css_template=CSS, js_on_load=ON_LOAD, elem_id=elem_id, apply_default_css=False,
        visible=empty is not None,
    )  # fmt: skip


def plane(places: NDArray[Any], names: Sequence[str], modalities: Sequence[str]) -> str:
    """Points on a plane, each with its name on hover and for screen readers."""
    low, high = places.min(axis=0), places.max(axis=0)
    span = [max(float(high[i] - low[i]), 1e-9) for i in range(2)]
    points = ""
    marks = [
        (
            EDGE + (WIDTH - 2 * EDGE) * (float(place[0] - low[0]) / span[0]),
            HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (float(place[1] - low[1]) / span[1]),
        )
        for place in places
    ]
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks]  # and the names, once they are written
    for i, ((x, y), name, kind) in enumerate(zip(marks, names, modalities, strict=True)):
        colour, shape = MARKS.get(kind, MARKS["image"])
        title = escape(f"{name} ({words.kind(kind)})")
        text = _name(x, y, name[:22], taken) if len(names) <= MOST_NAMED else ""
        points += (
            f'<g transform="translate({x:.1f} {y:.1f})"><g class="pt" tabindex="0" role="button" aria-label="{title}" data-i="{i}" '
            f'fill="{colour}"><title>{title}</title>{SHAPES[shape]}</g>{text}</g>'
        )
    legend = ", ".join(f"{words.kind(kind)}: {MARKS[kind][1]}" for kind in dict.fromkeys(modalities) if kind in MARKS)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="map of the vectors">{points}</svg>'
        f'<p class="legend">The two directions in which the vectors differ most. {legend}. Click a point to open its recording.</p>'
    )


def _name(x: float, y: float, name: str, taken: list[Box]) -> str:
    """A name beside the point at (x, y), where it lies over the fewest marks and other
    names: the boxes that are `taken`.
    """
    wide = LETTER * len(name)
    places = [
        (side, shift, down, (left, y + down - LINE, left + wide, y + down + DESCENT))
        for down in (4, *(4 + sign * step for step in range(14, 99, 14) for sign in (1, -1)))
        for side, shift, left in (("start", 10, x + 10), ("end", -10, x - 10 - wide))
        if left >= 0 and left + wide <= WIDTH and LINE <= y + down <= HEIGHT
    ]
    # A name as wide as the picture has no place: it starts at the point all the same.
    places = places or [("start", 10, 4, (x + 10, y + 4 - LINE, x + 10 + wide, y + 4 + DESCENT))]
    side, shift, down, box = min(places, key=lambda place: sum(_overlap(place[3], other) for other in taken))
    taken.append(box)
    line = "" if abs(down - 4) < FAR else f'<line x2="{shift}" y2="{down - 4}" stroke="currentColor" opacity=".4"/>'
    return f'{line}<text x="{shift}" y="{down}" text-anchor="{side}">{escape(name)}</text>'


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def neighbours(found: Sequence[tuple[str, float]]) -> str:
    """A list of names with their similarity."""
    return '<p class="legend">Cosine similarity, the nearest first. Click a recording to open it.</p>' + "".join(
        f'<button type="button" data-i="{i}"><b>{value:.4f}</b><span>{escape(name)}</span></button>'
        for i, (name, value) in enumerate(found)
    )
