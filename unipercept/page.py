"""Self-contained pages: one HTML file with its pictures inside, no script, no request."""

import base64
from collections.abc import Sequence
from html import escape

from unipercept.errors import as_text

STYLE = """
:root{color-scheme:light dark;--ink:#111827;--soft:#4b5563;--line:#e5e7eb;--paper:#fff;--card:#f9fafb;--accent:#0072b2}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--paper:#0f1419;--card:#161d26;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.02em}
h2{font-size:1.25rem;margin:2.8rem 0 .8rem}
h3{font-size:1.02rem;margin:0 0 .1rem}
p{margin:.4rem 0 1rem;max-width:70ch}
.soft{color:var(--soft);font-size:.9rem}
.notice{border-left:4px solid var(--accent);background:var(--card);padding:.7rem 1rem;border-radius:4px;max-width:78ch}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:1.1rem}
article{border:1px solid var(--line);border-radius:10px;padding:1rem;background:var(--card)}
.small{grid-template-columns:repeat(auto-fill,minmax(220px,1fr))}
.small img{image-rendering:pixelated}
.big{font-size:2.2rem;font-weight:600;color:var(--accent)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.6rem;margin:.7rem 0}
.pair img{aspect-ratio:46/27;object-fit:contain}
figure{margin:0}
figcaption{font-size:.78rem;color:var(--soft);margin-top:.2rem}
img{width:100%;height:auto;border-radius:6px;background:#fff;display:block}
.wide img{max-width:760px}
.natural img{width:auto;max-width:100%}
table{border-collapse:collapse;font-size:.88rem;width:100%}
th{white-space:nowrap}
th,td{text-align:left;padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
pre{background:var(--card);border:1px solid var(--line);padding:.7rem 1rem;border-radius:6px;overflow-x:auto;font:.85rem/1.45 ui-monospace,SFMono-Regular,Menlo,monospace}
summary{cursor:pointer}
li{max-width:78ch}
article{overflow-wrap:anywhere}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,monospace}
.bad{border-color:#d55e00}
@media(max-width:520px){.pair{grid-template-columns:1fr}h1{font-size:1.5rem}}
@media print{article{break-inside:avoid}}
"""


def page(title: str, lead: str, body: str) -> str:
    """A whole document. `lead` and `body` are HTML, `title` is text; odd bytes of file names are spelt out."""
    return as_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f'initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>'
        f"{lead}{body}</main></body></html>\n"
    )


def figure(png: bytes, alternative: str, caption: str = "") -> str:
    """A picture with its alternative text and a caption."""
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}">{below}</figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text cells; columns of numbers are aligned right."""
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(f"<th{_class(n)}>{escape(h)}</th>" for h, n in zip(header, numeric, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{_class(n)}>{escape(c)}</td>" for c, n in zip(row, numeric, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, a row each."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f"<table>{rows}</table>"


def _class(number: bool) -> str:
    return ' class="n"' if number else ""


def _is_number(text: str) -> bool:
    return bool(text) and text.strip("~≈").replace(",", "")[:1] in "0123456789-+—"
