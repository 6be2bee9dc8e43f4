"""How the page looks: system fonts (nothing is fetched), one accent, light and dark, narrow and wide."""

from __future__ import annotations

from typing import Any

import gradio as gr

CSS = """
.gradio-container {max-width: min(1240px, 100vw) !important; margin: 0 auto !important}
.up-head {display: flex; gap: .6rem 1.2rem; align-items: baseline; flex-wrap: wrap; padding: .2rem 0}
.up-head h1 {font-size: 1.55rem; letter-spacing: -.02em; margin: 0}
.up-head p {margin: 0; color: var(--body-text-color-subdued); flex: 1 1 12rem}
.up-status {display: flex; gap: .8rem; align-items: center; min-height: 1.8rem; font-size: .92rem; color: var(--body-text-color-subdued)}
.up-status progress {width: min(14rem, 36%); height: .5rem; flex: none; appearance: none; border: 0; border-radius: 4px; overflow: hidden; background: var(--border-color-primary)}
.up-status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.up-status progress::-webkit-progress-value {background: #0072b2}
.up-status progress::-moz-progress-bar {background: #0072b2}
.up-note {border-left: 4px solid #d55e00; background: var(--background-fill-secondary); padding: .6rem .9rem; border-radius: 4px; margin: .2rem 0; font-size: .93rem; overflow-wrap: anywhere}
.up-good {border-left-color: #009e73}
.up-facts {border-collapse: collapse; font-size: .88rem; width: 100%}
.up-facts th {text-align: left; font-weight: 600; white-space: nowrap; padding: .25rem .8rem .25rem 0; vertical-align: top}
.up-facts td {padding: .25rem .6rem .25rem 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums}
.up-facts tr {border-bottom: 1px solid var(--border-color-primary)}
.up-scroll {overflow-x: auto}
.up-matrix {border-collapse: collapse; font-size: .82rem}
.up-matrix th {font-weight: 500; padding: .2rem .5rem; text-align: right; max-width: 11rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.up-matrix td {padding: .35rem .5rem; text-align: center; min-width: 3rem; font-variant-numeric: tabular-nums; color: #111}
.up-matrix thead th {writing-mode: horizontal-tb; text-align: center}
.up-bars {display: grid; gap: .35rem; font-size: .92rem}
.up-bar {display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr 4rem; gap: .6rem; align-items: center}
.up-bar span {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.up-bar i {display: block; height: .7rem; border-radius: 3px; background: #0072b2; min-width: 2px}
.up-bar b {font-weight: 500; text-align: right; font-variant-numeric: tabular-nums}
:focus-visible {outline: 2px solid #0072b2 !important; outline-offset: 1px}
footer {opacity: .8}
@media (max-width: 520px) {
  .gradio-container > .main {padding: .6rem !important}
  .gradio-container {padding-left: .4rem !important; padding-right: .4rem !important}
  .up-bar {grid-template-columns: minmax(5rem, 8rem) 1fr 3.4rem}
}
"""

HEAD = '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'


def theme_arguments() -> dict[str, Any]:
    """What gradio's mount takes."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_text_color_subdued="*neutral_600",  # readable: 7 to 1 on white
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="#00629b",
        button_primary_background_fill_hover="#004f7c",
        button_primary_background_fill_dark="#0072b2",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return {"theme": theme, "css": CSS, "head": HEAD}
