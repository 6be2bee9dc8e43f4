"""Models: cards, sizes, and how fast each is on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import parts, words
from unipercept.app.web.jobs import Job, status
from unipercept.app.web.models import model_dropdown, usable_model

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

SIDE, REPEATS, BUDGET_SECONDS = 224, 5, 8.0
# What a card shows, in this order, and under which words.
CARD = {
    "name": "name",
    "architecture": "architecture",
    "millions": "million parameters",
    "dim": "numbers in a vector",
    "weights": "weights",
    "trained_on": "trained on",
    "data_licence": "licence of the data",
    "metric": "metric",
    "limits": "limits",
}


def models_tab(context: Context, dropdowns: Sequence[gr.Dropdown]) -> parts.Filled:
    """Build the tab; gives what fills its table, and the lists of models of other tabs, when the page has been painted."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            name = model_dropdown(elem_id="models-name")
            run, cancel = parts.run_and_cancel("Measure it here", "models")
            state = parts.status_line("models", "Its speed on this machine, in seconds.")
        with gr.Column(scale=3, min_width=300):
            card = parts.html(
                "models-card", words.empty("The card of the model, and its speed once measured, appear here.")
            )
            speed = parts.html("models-speed")
    table = parts.html("models-table", words.note("The list is being loaded.", "plain"))

    async def fill(request: gr.Request) -> list[Any]:
        cards = await context.result("models", lambda job: _cards(), request)
        names = ["default", *(card["name"] for card in cards if card["here"])]
        return [_tables(cards), _card_html(_card("default")), *[gr.update(choices=names)] * (1 + len(dropdowns))]

    async def show_card(name: str, request: gr.Request) -> list[Any]:
        return [_card_html(await context.result("models", lambda job: _card(name), request)), ""]

    async def run_speed(name: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        work = lambda job: measure(usable_model(name), job)  # noqa: E731
        draw = lambda found: [status(None, "measured"), _speed(found)]  # noqa: E731
        async for update in context.updates("measure", work, request, draw, [state, speed]):
            yield update

    async def models(request: gr.Request) -> list[dict[str, Any]]:
        """The cards of all models, and whether each is on this machine."""
        found: list[dict[str, Any]] = await context.result("models", lambda job: _cards(), request)
        return found

    async def model_card(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """The card of one model: what it was trained on, how good it is, and its limits."""
        found: dict[str, Any] = await context.result("models", lambda job: _card(name), request)
        return found

    async def measure_speed(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """Seconds that one map of 224 x 224 takes on this machine, and maps a second in batches of 8."""
        found: dict[str, Any] = await context.result("measure", lambda job: measure(usable_model(name), job), request)
        return found

    name.change(show_card, name, [card, speed], **parts.QUIET, **context.quick)
    event = run.click(run_speed, name, [state, speed], **parts.told_by(state), **context.slow("measure"))
    parts.cancels(cancel, state, [event])
    parts.endpoint("models", models, [], **context.quick)
    parts.endpoint("model_card", model_card, [name], **context.quick)
    parts.endpoint("measure_speed", measure_speed, [name], **context.slow("measure"))
    return parts.Filled(fill, [], [table, card, name, *dropdowns])


def measure(name: str, job: Job) -> dict[str, Any]:
    """Time a model on noise: the network alone, without reading."""
    job.tell(0.05, "loading the model")
    import torch

    from unipercept.models import load_model

    model = load_model(name)
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


def _cards() -> list[dict[str, Any]]:
    from unipercept.models import MODELS, is_cached

    return [{**card.to_dict(), "here": is_cached(card)} for card in MODELS.values()]


def _card(name: str) -> dict[str, Any]:
    from unipercept.errors import InputError
    from unipercept.models import MODELS, model_card

    if name != "default" and name not in MODELS:  # a path of a visitor's is never opened
        raise InputError(f"there is no model {name[:80]!r}; there are {', '.join(MODELS)}")
    return model_card(name).to_dict()


def _card_html(card: dict[str, Any]) -> str:
    warning = words.note("Its weights are random: nothing was learned yet.") if card["is_untrained"] else ""
    shown = [(label, str(card[key])) for key, label in CARD.items() if card[key] not in ("", None)]
    return warning + words.facts(shown)


def _tables(cards: Sequence[dict[str, Any]]) -> str:
    """The models of this machine, and folded away those that would be downloaded."""
    header = ["model", "parameters", "vector", "head", "trained on", "metric"]
    here, elsewhere = ([card for card in cards if card["here"] is there] for there in (True, False))
    tables = f"<p><b>On this machine</b></p>{words.table(header, [_row(card) for card in here])}"
    if elsewhere:
        folded = words.table(header, [_row(card) for card in elsewhere])
        tables += f"<details><summary>{len(elsewhere)} more, which `unipercept` downloads on request</summary>{folded}</details>"
    return tables


def _row(card: dict[str, Any]) -> list[str]:
    from unipercept.models import UNIVERSAL

    head = f"{card['n_classes']:,} classes, {card['head_modality']}" if card["head_modality"] else "none"
    if card["name"] == UNIVERSAL:
        head = "one for each task, below"
    return [card["name"], f"{card['millions']:g} M", str(card["dim"]), head, card["trained_on"], card["metric"]]


def _speed(found: dict[str, Any]) -> str:
    one, many = found["one_map_seconds"], found["maps_per_second"]
    return words.facts([
        ("model", found["model"]),
        ("device", f"{found['device']}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}"),
        ("one map of 224 × 224", "not measured in time" if one is None else f"{1000 * one:.0f} ms (median)"),
        ("in batches of 8", "not measured in time" if many is None else f"{many:.1f} maps a second"),
    ])  # fmt: skip
