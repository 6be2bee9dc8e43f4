"""Small HTML for the page. Everything that comes from a visitor passes `escape` here."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from shlex import join
from typing import Any

import numpy as np
from numpy.typing import NDArray

POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def kind(modality: str) -> str:
    """A modality as people write it."""
    return {"pointcloud": "point cloud", "timeseries": "time series"}.get(modality, modality)


def note(text: str, kind: str = "warning") -> str:
    """A line with an edge whose colour is its kind: "warning", "good" or "plain"."""
    return f'<p class="up-note up-{kind}">{escape(text)}</p>'


def heading(text: str, rest: str = "") -> str:
    """A heading of a result, by which screen readers find it; `rest` goes on in plain letters."""
    return f'<h2 class="up-h"><b>{escape(text)}</b> {escape(rest)}</h2>'


def empty(text: str) -> str:
    """A placeholder that says what will appear here."""
    return f'<div class="up-empty">{escape(text)}</div>'


def thumbnails(pictures: Sequence[tuple[bytes, str]], label: str, *, large: bool = False) -> str:
    """Small pictures (WebP) with a caption each, in rows."""
    cells = "".join(
        f'<figure><img alt="" src="{webp_address(data)}"><figcaption title="{escape(caption)}">{escape(caption)}</figcaption></figure>'
        for data, caption in pictures
    )
    return f'{heading(label)}<div class="up-thumbs{" up-large" if large else ""}">{cells}</div>'


def webp_address(data: bytes) -> str:
    """A picture as an address that needs no request."""
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def moment(time: Any) -> str:
    """A time of weather data as people write it: 2081-01-15 06:00."""
    return str(np.datetime_as_string(np.datetime64(time), "m")).replace("T", " ")


def unit(text: str) -> str:
    """A unit with its powers raised: m² s⁻² for m2 s-2, or m**2 s**-2."""
    power = lambda found: found[1] + found[2].translate(POWERS)  # noqa: E731
    return re.sub(r"([A-Za-z%])\*{0,2}(-?\d+)", power, text)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, a row each; what stands between backquotes is set as code."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{_with_code(value)}</td></tr>' for name, value in pairs)
    return f'<div class="up-scroll"><table class="up-facts">{rows}</table></div>'


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def commands(*lines: Sequence[str]) -> str:
    """What gives the same on the command line, folded away: the words of each line after `unipercept`."""
    text = "\n".join(f"unipercept {join(line)}" for line in lines)
    return folded("On the command line", f'<pre class="up-command" tabindex="0">{escape(text)}</pre>')


def local(name: str) -> str:
    """A file's name as an argument: one that begins as an option does is told from one."""
    return f"./{name}" if name.startswith("-") else name


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text cells under a header."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="up-scroll"><table class="up-facts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    short = ' class="up-short"' if len(text) < 26 else ""
    return f"<td{short}>{escape(text)}</td>"


def bars(pairs: Sequence[tuple[str, float]], *, doubtful: bool = False) -> str:
    """Names with shares from 0 to 1 as bars, grey where they are doubtful."""
    rows = "".join(
        f'<div class="up-bar" role="listitem"><span title="{escape(name)}">{escape(name)}</span>'
        f'<div><i style="width:{100 * min(max(value, 0), 1):.1f}%"></i></div><b>{_percent(value)}</b></div>'
        for name, value in pairs
    )
    return f'<div class="up-bars{" up-doubtful" if doubtful else ""}" role="list">{rows}</div>'


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def folded(summary: str, content: str) -> str:
    """HTML that is opened on request; `summary` is HTML, too."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def matrix(values: NDArray[Any], names: Sequence[str]) -> str:
    """A square table of numbers from -1 to 1, blue for near and orange for far."""
    head = "<td></td>" + "".join(f'<th scope="col" title="{escape(n)}">{i + 1}</th>' for i, n in enumerate(names))
    body = ""
    for i, name in enumerate(names):
        cells = "".join(_number(float(v)) for v in values[i])
        body += f'<tr><th scope="row" title="{escape(name)}">{i + 1} {escape(name)}</th>{cells}</tr>'
    return (
        '<div class="up-scroll" tabindex="0"><table class="up-matrix">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float) -> str:
    if np.isnan(value):
        return '<td title="of different networks" style="color:inherit">–</td>'
    return f'<td style="background:{_tint(value)}">{value:.2f}</td>'


def size(n_bytes: float) -> str:
    """Bytes in kB or MB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def _tint(value: float) -> str:
    share = min(abs(value), 1.0)
    near, far = (86, 180, 233), (230, 159, 0)  # Okabe and Ito's light blue and orange
    colour = near if value >= 0 else far
    return "rgb(" + ",".join(f"{255 - share * (255 - c):.0f}" for c in colour) + ")"
