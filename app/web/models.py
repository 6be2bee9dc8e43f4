"""Which models visitors may name: those on this machine, by name. A path of theirs is never opened."""

from __future__ import annotations

from functools import lru_cache

from unipercept.app.web.jobs import refusal


@lru_cache(maxsize=1)
def known_models() -> list[str]:
    """Names of the models that need no download; the default first."""
    return ["default"]


def usable_model(name: str) -> str:
    """The model of a name.

    Raises:
        gr.Error: there is none of that name here.
    """
    from unipercept.models import MODELS, is_cached

    if name != "default" and (name not in MODELS or not is_cached(MODELS[name])):
        raise refusal(f"there is no model {name!r} on this machine; the Models tab lists them")
    return name
