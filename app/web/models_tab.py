"""Models: cards, sizes, and how fast each is on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import words
from unipercept.app.web.jobs import Done, Job, status
from unipercept.app.web.models import usable_model

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

SIDE, REPEATS, BUDGET_SECONDS = 224, 5, 8.0


def models_tab(context: Context) -> dict[str, Any]:
    """Build the tab. The table is filled after the page has been painted: it loads torch."""
    table = gr.HTML(words.note("The list is being loaded."), elem_id="models-table", apply_default_css=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            name = gr.Dropdown(
                ["default"], value="default", label="Model", elem_id="models-name", allow_custom_value=True
            )
            with gr.Row():
                show = gr.Button("Show its card", elem_id="models-show")
                run = gr.Button("Measure it here", variant="primary", elem_id="models-run")
                cancel = gr.Button("Cancel", min_width=100)
            state = gr.HTML(status(None, ""), elem_id="models-status", apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            card = gr.HTML(elem_id="models-card", apply_default_css=False)
            speed = gr.HTML(elem_id="models-speed", apply_default_css=False)

    async def fill(request: gr.Request) -> list[Any]:
        rows, names = await context.result("models", _table, request)
        header = ["model", "vector", "parameters", "head", "trained on", "metric", "data licence", "here"]
        return [words.table(header, rows), gr.update(choices=["default", *names])]

    async def card_html(name: str, request: gr.Request) -> str:
        found = await context.result("models", lambda job: _card(name), request)
        warning = words.note("Its weights are random: nothing was learned yet.") if found["is_untrained"] else ""
        shown = ("name", "architecture", "millions", "dim", "weights", "trained_on", "data_licence", "metric", "limits")
        return warning + words.facts([(key.replace("_", " "), str(found[key])) for key in shown])

    async def run_speed(name: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        async for event in context.run("measure", lambda job: measure(usable_model(name), job), request):
            if isinstance(event, Done):
                yield [status(1.0, "measured"), _speed(event.value)]
            else:
                yield [status(event.share, event.text), gr.skip()]

    async def models(request: gr.Request) -> list[dict[str, Any]]:
        """The cards of all models, and whether each is on this machine."""
        found: list[dict[str, Any]] = await context.result("models", lambda job: _cards(), request)
        return found

    async def model_card(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """The card of one model: what it was trained on, how good it is, and its limits."""
        assert request is not None
        found: dict[str, Any] = await context.result("models", lambda job: _card(name), request)
        return found

    async def measure_speed(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """Seconds that one map of 224 x 224 takes on this machine, and maps a second in batches of 8."""
        assert request is not None
        found: dict[str, Any] = await context.result("measure", lambda job: measure(usable_model(name), job), request)
        return found

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    show.click(card_html, name, card, **quiet, **context.quick)
    event = run.click(run_speed, name, [state, speed], **quiet, **context.slow("measure"))
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event], api_visibility="private")
    answer = gr.JSON(visible=False)
    gr.Button(visible=False).click(models, None, answer, api_name="models", **context.quick)
    gr.Button(visible=False).click(model_card, name, answer, api_name="model_card", **context.quick)
    gr.Button(visible=False).click(measure_speed, name, answer, api_name="measure_speed", **context.slow("measure"))
    return {"fill": fill, "fills": [table, name], "event": quiet}


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


def _table(job: Job) -> tuple[list[list[str]], list[str]]:
    rows, names = [], []
    for card in _cards():
        head = f"{card['n_classes']} classes, {card['head_modality']}" if card["head_modality"] else "none"
        size = f"{card['millions']:g} M"
        rows.append([card["name"], str(card["dim"]), size, head, card["trained_on"], card["metric"], card["data_licence"],
                     "yes" if card["here"] else "download"])  # fmt: skip
        if card["here"]:
            names.append(card["name"])
    return rows, names


def _speed(found: dict[str, Any]) -> str:
    from unipercept.app.web.words import facts

    one, many = found["one_map_seconds"], found["maps_per_second"]
    return facts([
        ("model", found["model"]),
        ("device", f"{found['device']}, {found['threads']} threads"),
        ("one map of 224 × 224", "not measured in time" if one is None else f"{1000 * one:.0f} ms (median)"),
        ("in batches of 8", "not measured in time" if many is None else f"{many:.1f} maps a second"),
    ])  # fmt: skip
