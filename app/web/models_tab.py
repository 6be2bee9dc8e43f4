"""Models: cards, sizes, and how fast each is on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import models_work, parts, words
from unipercept.app.web.jobs import status

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

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
    """Build the tab; gives what fills its table, and the lists of models of other tabs,
    when the page has been painted.
    """
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            name = parts.model_dropdown(elem_id="models-name")
            run, cancel = parts.run_and_cancel("Measure speed", "models")
            state = parts.status_line("models", "Times the network on this machine.")
        with gr.Column(scale=3, min_width=300):
            card = parts.html(
                "models-card", words.empty("The card of the model, and its speed once measured, appear here.")
            )
            speed = parts.html("models-speed")
    table = parts.html("models-table", words.note("The list is being loaded.", "plain"))

    async def fill(request: gr.Request) -> list[Any]:
        known = await context.result("models", models_work.cards, request)
        default = await context.result("model_card", partial(models_work.card, "default"), request)
        names = ["default", *(card["name"] for card in known if card["here"])]
        return [_tables(known), _card_html(default), *[gr.update(choices=names)] * (1 + len(dropdowns))]

    async def show_card(name: str, request: gr.Request) -> list[Any]:
        return [_card_html(await context.result("model_card", partial(models_work.card, name), request)), ""]

    async def run_speed(name: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        draw = lambda found: [status(None, "measured"), _speed(found)]  # noqa: E731
        async for update in context.updates(
            "measure", partial(models_work.measure, name), request, draw, [state, speed]
        ):
            yield update

    async def models(request: gr.Request) -> list[dict[str, Any]]:
        """The cards of all models, and whether each is on this machine."""
        found: list[dict[str, Any]] = await context.result("models", models_work.cards, request)
        return found

    async def model_card(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """The card of one model: what it was trained on, how good it is, and its limits."""
        found: dict[str, Any] = await context.result("model_card", partial(models_work.card, name), request)
        return found

    async def measure_speed(name: str = "default", request: gr.Request | None = None) -> dict[str, Any]:
        """Seconds that one map of 224 x 224 takes on this machine, and maps a second in batches of 8."""
        found: dict[str, Any] = await context.result("measure", partial(models_work.measure, name), request)
        return found

    name.change(show_card, name, [card, speed], **parts.QUIET, **context.quick)
    event = run.click(run_speed, name, [state, speed], **parts.told_by(state), **context.slow("measure"))
    parts.cancels(cancel, state, [event])
    parts.endpoint("models", models, [], **context.quick)
    parts.endpoint("model_card", model_card, [name], **context.quick)
    parts.endpoint("measure_speed", measure_speed, [name], **context.slow("measure"))
    return parts.Filled(fill, [], [table, card, name, *dropdowns])


def _card_html(card: dict[str, Any]) -> str:
    warning = words.note("Its weights are random: nothing was learned yet.") if card["is_untrained"] else ""
    shown = [(label, str(card[key])) for key, label in CARD.items() if card[key] not in ("", None)]
    return warning + words.facts(shown)


def _tables(known: Sequence[dict[str, Any]]) -> str:
    """The trained models of this machine, and folded away the untrained ones and those that would be downloaded."""
    trained = [card for card in known if card["here"] and not card["is_untrained"]]
    untrained = [card for card in known if card["here"] and card["is_untrained"]]
    elsewhere = [card for card in known if not card["here"]]
    tables = words.heading("On this machine") + _table(trained)
    if untrained:
        tables += words.folded(f"{len(untrained)} networks with random weights, to train from", _table(untrained))
    if elsewhere:
        summary = f"{len(elsewhere)} more, which <code>unipercept</code> downloads on request"
        tables += words.folded(summary, _table(elsewhere))
    return tables


def _table(cards: Sequence[dict[str, Any]]) -> str:
    """A row each, without columns that say the same of all: their cards have it."""
    header = ["model", "parameters", "vector", "head", "trained on", "metric"]
    rows = [_row(card) for card in cards]
    told = [i for i, column in enumerate(zip(*rows, strict=True)) if len(set(column)) > 1 or len(rows) == 1]
    return words.table([header[i] for i in told], [[row[i] for i in told] for row in rows])


def _row(card: dict[str, Any]) -> list[str]:
    head = "none" if card["is_untrained"] else "one for each task, below"
    if card["head_modality"]:
        head = f"{card['n_classes']:,} classes, {words.kind(card['head_modality'])}"
    trained_on = f"{card['task']}, jointly with the others" if card["task"] else card["trained_on"]
    return [card["name"], f"{card['millions']:g} M", str(card["dim"]), head, trained_on, card["metric"]]


def _speed(found: dict[str, Any]) -> str:
    one, many = found["one_map_seconds"], found["maps_per_second"]
    return words.facts([
        ("model", found["model"]),
        ("device", f"{found['device']}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}"),
        ("one map of 224 × 224", "not measured in time" if one is None else f"{1000 * one:.0f} ms (median)"),
        ("in batches of 8", "not measured in time" if many is None else f"{many:.1f} maps a second"),
    ])  # fmt: skip
