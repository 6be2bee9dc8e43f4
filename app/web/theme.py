"""How the page looks: system fonts (nothing is fetched), one accent, light and dark, narrow and wide."""

from __future__ import annotations

from typing import Any

import gradio as gr

# gradio sets its own selector before each rule, and after each comma: none may stand inside parentheses.
CSS = """
.gradio-container {max-width: min(1240px, 100vw) !important; margin: 0 auto !important}
.html-container {padding: 0 !important}
.up-top {align-items: center}
.up-head {display: flex; gap: .3rem 1.2rem; align-items: baseline; flex-wrap: wrap}
.up-head h1 {font-size: 1.55rem; font-weight: 700; letter-spacing: -.02em; margin: 0}
.up-head p {margin: 0; color: var(--body-text-color-subdued); flex: 1 1 20rem}
.up-status {display: flex; gap: .8rem; align-items: center; min-height: 1.8rem; font-size: .92rem; color: var(--body-text-color-subdued)}
.up-status span {overflow-wrap: anywhere}
.up-status progress {width: min(14rem, 36%); height: .5rem; flex: none; appearance: none; border: 0; border-radius: 4px; overflow: hidden; background: var(--border-color-primary)}
.up-status progress::-webkit-progress-bar {background: var(--border-color-primary)}
.up-status progress::-webkit-progress-value {background: #0072b2}
.up-status progress::-moz-progress-bar {background: #0072b2}
[id$="-status"] .progress-text {transform: none; inset: 0 auto auto 0; padding: .3rem 0; background: none; font: inherit; font-size: .92rem}
[id$="-status"] .generating {border: 0; animation: none}
[id$="-status"] .wrap {min-height: 1.8rem; overflow: visible}
[id$="-status"] .pending {opacity: 0}
[id$="-status"] .wrap:has(.error) {display: none}
.up-cancel {visibility: hidden}
.row > .column:has(.up-status progress) .up-cancel {visibility: visible}
.row > .column:has([id$="-status"] .wrap:not(.hide)) .up-cancel {visibility: visible}
.row > .column:not(:has(.up-status progress)):has([id$="-status"] .wrap .error:not(.hide)) .up-cancel {visibility: hidden}
.up-empty {border: 1px dashed var(--border-color-primary); border-radius: 6px; padding: 2.6rem 1.4rem; text-align: center; color: var(--body-text-color-subdued)}
.up-note {border-left: 4px solid #d55e00; background: var(--background-fill-secondary); padding: .6rem .9rem; border-radius: 4px; margin: .5rem 0; font-size: .93rem; overflow-wrap: anywhere}
.up-good {border-left-color: #009e73}
.up-small {font-size: .82rem; color: var(--body-text-color-subdued); margin: .3rem 0}
.up-command {overflow-x: auto; padding: .5rem .8rem; font-size: .8rem; user-select: all; background: var(--background-fill-secondary); border-radius: 4px}
.up-h {font-size: .92rem; font-weight: 400; margin: .3rem 0}
.up-h b {font-weight: 600}
.up-unplayable::after {content: "This browser cannot play this coding of video or sound (telephones write HEVC). It was read all the same: see below."; position: absolute; inset: 2.4rem .8rem auto .8rem; padding: .6rem .9rem; border-left: 4px solid #d55e00; font-size: .93rem}
.up-unplayable video {display: none}
.modebar-group:has(.modebar-btn--logo) {display: none !important}
.up-plain {border-left-color: var(--border-color-primary)}
.up-facts {border-collapse: collapse; font-size: .88rem; width: 100%}
.up-facts th {text-align: left; font-weight: 600; white-space: nowrap; padding: .25rem .8rem .25rem 0; vertical-align: top}
.up-facts thead th {white-space: normal; vertical-align: bottom}
.up-facts td {padding: .25rem .6rem .25rem 0; overflow-wrap: anywhere; vertical-align: top; font-variant-numeric: tabular-nums}
.up-facts td.up-short {white-space: nowrap}
.up-facts td:not(.up-short):not(:only-of-type) {min-width: min(13rem, 28vw)}
#models-table td:not(.up-short) {min-width: 13rem}
.up-facts tr {border-bottom: 1px solid var(--border-color-primary)}
.up-scroll {overflow-x: auto}
.up-matrix {border-collapse: collapse; font-size: .82rem}
.up-matrix th {font-weight: 500; padding: .2rem .5rem; text-align: right; max-width: 11rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.up-matrix td {padding: .35rem .5rem; text-align: center; min-width: 3rem; font-variant-numeric: tabular-nums; color: #111}
.up-matrix thead th {text-align: center}
.up-bars {margin-top: .4rem; display: grid; gap: .35rem; font-size: .92rem}
.up-bar {display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr 4rem; gap: .6rem; align-items: center}
.up-bar span {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.up-bar i {display: block; height: .7rem; border-radius: 3px; background: #0072b2; min-width: 2px}
.up-doubtful i {background: var(--neutral-400)}
.up-bar b {white-space: nowrap; font-weight: 500; text-align: right; font-variant-numeric: tabular-nums}
.up-thumbs {display: grid; grid-template-columns: repeat(auto-fill, minmax(62px, 1fr)); gap: .5rem}
.up-thumbs.up-large {grid-template-columns: repeat(auto-fill, minmax(128px, 1fr))}
.up-thumbs figure {margin: 0; min-width: 0}
.up-large img {aspect-ratio: 1; object-fit: fill}
.up-thumbs img {width: 100%; border-radius: 4px; background: var(--background-fill-secondary); display: block; margin: 0}
.up-thumbs figcaption {font-size: .78rem; color: var(--body-text-color-subdued); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: center}
.up-figure .image-frame, .up-figure .image-container {padding-top: 1.9rem}
.up-figure img {width: 100%; max-height: 620px; object-fit: contain}
#perceive-map img {max-height: 340px}
.js-plotly-plot .main-svg text:not(.hoverlayer text) {fill: var(--body-text-color-subdued) !important}
.up-downloads button[aria-label="Remove this file"] {display: none}
.dark input[type=range] {--neutral-200: var(--neutral-600)}
.dark {--slider-color: #56b4e9}
.dark [role=tab][aria-selected=true] {color: #56b4e9 !important}
details > summary {cursor: pointer; padding: .3rem 0}
:focus-visible {outline: 2px solid #0072b2 !important; outline-offset: 1px}
.dark :focus-visible {outline-color: #56b4e9 !important}
footer .divider, footer .show-api-divider {display: none}
@media (max-width: 520px) {
  .up-top {position: relative}
  #tabs .tab-container button {padding: 0 .3rem; font-size: .82rem}
  .up-facts th[scope=row] {white-space: normal}
  #toggle-dark {position: absolute; top: 0; right: 0; width: auto}
  .up-bar {grid-template-columns: minmax(5rem, 8rem) 1fr 3.4rem}
}
"""

# Rules that reach above gradio's `.contain`: it sets that before each rule within an @media of `css`.
HEAD = (
    '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex"><style>'
    "@media (max-width: 520px) {.gradio-container > .main {padding: .6rem .75rem !important}}"
    "@media (prefers-reduced-motion: reduce) {*, ::before, ::after "
    "{animation-duration: 1ms !important; animation-iteration-count: 1 !important; transition-duration: 1ms !important}}"
    "</style>"
)


# Around the blue of the charts, from pale to dark: 5.2 to 1 on white at 500, where gradio takes the accent.
BLUES = gr.themes.Color(
    "#eef6fb",
    "#d6eaf6",
    "#add5ed",
    "#7cbbe0",
    "#3f98cf",
    "#0072b2",
    "#00629b",
    "#004f7c",
    "#003c5e",
    "#002a42",
    "#001a29",
)


def theme_arguments() -> dict[str, Any]:
    """Arguments of gradio's mount."""
    theme = gr.themes.Base(
        primary_hue=BLUES,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_text_color_subdued="*neutral_600",  # readable: 7 to 1 on white
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        link_text_color="#00629b",
        link_text_color_dark="#56b4e9",
        link_text_color_hover_dark="#7cbbe0",
        link_text_color_active_dark="#56b4e9",
        link_text_color_visited_dark="#56b4e9",
        button_primary_background_fill="#00629b",
        button_primary_background_fill_hover="#004f7c",
        button_primary_background_fill_dark="#0072b2",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return {"theme": theme, "css": CSS, "head": HEAD}
