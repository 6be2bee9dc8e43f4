"""Which models visitors may name: those on this machine, by name. A path of theirs is never opened."""

from __future__ import annotations

from typing import Any

import gradio as gr

from unipercept.app.web.jobs import RefusalError


def model_dropdown(**settings: Any) -> gr.Dropdown:
    """A list to choose from; it is filled after the page has been painted, since the models' cards load torch."""
    return gr.Dropdown(
        ["default"], value="default", label="Model", info="On this machine", allow_custom_value=True, **settings
    )


def usable_model(name: str) -> str:
    """The model of a name.

    Raises:
        RefusalError: there is none of that name here.
    """
    from unipercept.models import MODELS, is_cached

    if name != "default" and (name not in MODELS or not is_cached(MODELS[name])):
        raise RefusalError(f"there is no model {name!r} on this machine; the Models tab lists them")
    return name
