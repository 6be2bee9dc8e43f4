"""The Models tab's work: models that visitors may select, their cards, and their speed on this machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

from unipercept.app.web.job import Job
from unipercept.errors import InputError

SIDE, REPEATS, BUDGET_SECONDS = 224, 5, 8.0


def usable_model(name: str | None) -> str:
    """The model of a name (none: the default), one of those on this machine. A path of a visitor's is never opened.

    Raises:
        InputError: there is none of that name here.
    """
    from unipercept.model_cards import MODELS, is_cached

    name = name or "default"
    if name != "default" and (name not in MODELS or not is_cached(MODELS[name])):
        raise InputError(f"there is no model {name[:80]!r} on this machine; the Models tab lists them")
    return name


def cards(job: Job) -> list[dict[str, Any]]:
    """Cards of all models, and whether each is on this machine."""
    from unipercept.model_cards import MODELS, is_cached

    return [{**card.to_dict(), "here": is_cached(card)} for card in MODELS.values()]


def card(name: str | None, job: Job) -> dict[str, Any]:
    """The card of one model (none: the default).

    Raises:
        InputError: there is none of that name.
    """
    from unipercept.model_cards import MODELS, model_card

    name = name or "default"
    if name != "default" and name not in MODELS:
        raise InputError(f"there is no model {name[:80]!r}; there are {', '.join(MODELS)}")
    return model_card(name).to_dict()


def measure(name: str | None, job: Job) -> dict[str, Any]:
    """Time a model on noise: the network alone, without reading.

    Raises:
        InputError: there is none of that name here.
    """
    job.tell(0.05, "loading the model")
    import torch

    from unipercept.models import load_model

    model = load_model(usable_model(name))
    maps = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"model": model.name, "device": str(model.device), "threads": torch.get_num_threads()}
    began = time.perf_counter()
    for key, part in (("one_map_seconds", maps[:1]), ("eight_maps_seconds", maps)):
        model.features(part)
        times: list[float] = []
        while len(times) < REPEATS and time.perf_counter() - began < BUDGET_SECONDS:
            job.tell(min(0.95, 0.1 + (time.perf_counter() - began) / BUDGET_SECONDS), key.replace("_", " "))
            mark = time.perf_counter()
            model.features(part)
            times.append(time.perf_counter() - mark)
        found[key] = round(statistics.median(times), 4) if times else None
    eight = found["eight_maps_seconds"]
    found["maps_per_second"] = round(8 / eight, 2) if eight else None
    return found
