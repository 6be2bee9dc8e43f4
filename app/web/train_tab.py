"""Train: a zip of class folders becomes a model, live; it is tried at once and taken home."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import charts, parts, words
from unipercept.app.web.blocks import visitor_of
from unipercept.app.web.job import Job
from unipercept.app.web.jobs import RefusalError, as_refusal, status
from unipercept.app.web.perceive_drawing import Named, name_and_draw, name_json
from unipercept.app.web.train_work import EPOCHS, MAX_EPOCHS, Curve, TrainedRun, run_folder, train_on_zip
from unipercept.errors import UniperceptError

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

HOW = (
    "A zip file with a folder of recordings for each class: pictures, sounds, videos or point clouds. "
    "70 % of the recordings are for training, 15 % for validation and calibration, 15 % for the test."
)
LEARNERS = [
    ("The whole network, from universal", "network"),
    ("Its head alone, from universal: seconds", "head"),
    ("A small network, from scratch", "scratch"),
]
ENOUGH = 100  # test recordings; with fewer, the page says how many there are
EMPTY = "The learning curve, the scores of the model and its files appear here."


def train_tab(context: Context) -> None:
    """Build the tab."""
    run_name = _train_part(context)
    gr.Markdown("## Try it")
    _try_part(context, run_name)


def _train_part(context: Context) -> gr.State:
    run_name = gr.State("")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            gr.Markdown(HOW)
            clips = parts.dropzone("A zip file of class folders", "train-zip", file_types=[".zip"])
            learns = gr.Radio(LEARNERS, value="network", label="What learns", elem_id="train-learns")
            epochs = gr.Slider(
                1, MAX_EPOCHS, value=EPOCHS, step=1, label="Epochs", info="Passes over the recordings", buttons=[]
            )
            run, cancel = parts.run_and_cancel("Train", "train")
            state = parts.status_line("train", "Drop a zip file, or take the example.")
            example = gr.Button("Example: rising, falling and hissing sounds", size="sm", elem_id="train-example")
        with gr.Column(scale=3, min_width=300):
            curve = parts.chart("Loss and accuracy", "train-curve")
            scores = parts.html("train-scores", words.empty(EMPTY))
            files = parts.downloads("Model and report", "train-files")
    inputs, outputs = [clips, learns, epochs], [state, curve, scores, files, run_name]

    async def run_train(clips: str | None, learns: str, epochs: float, request: gr.Request) -> AsyncIterator[list[Any]]:
        work = _work(context, clips, learns, epochs)
        async for update in context.updates(
            "train", work, request, _draw, outputs, is_long=True, draw_news=_draw_curve
        ):
            yield update

    async def train(
        clips: str, learns: str = "network", epochs: float = EPOCHS, request: gr.Request | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Train a classifier on a zip of class folders: its scores with intervals, and its files.

        `learns` is "network" or "head" (both from `universal`), or "scratch".
        """
        trained = await context.result("train", _work(context, clips, learns, epochs), request, is_long=True)
        return trained.to_dict(), trained.files()

    slow = context.slow("train")
    event = run.click(run_train, inputs, outputs, **parts.told_by(state), **slow)
    taken = example.click(lambda: str(context.examples.class_folders()), None, clips, **parts.QUIET)
    after = taken.then(run_train, inputs, outputs, **parts.told_by(state), **slow)
    parts.cancels(cancel, state, [event, after])
    made = [gr.JSON(visible=False), gr.File(visible=False, file_count="multiple")]
    parts.endpoint("train", train, inputs, made, **slow)
    return run_name


def _draw(trained: TrainedRun) -> list[Any]:
    """Values of the outputs of `_train_part`, in their order."""
    return [
        status(None, "trained"),
        parts.shown(_chart(trained.curve) if trained.curve.loss else None),
        _scores(trained),
        gr.update(value=trained.files(), visible=True),
        trained.name,
    ]


def _draw_curve(curve: Curve) -> list[Any]:
    """The same but the status line, while it learns."""
    return [gr.update(value=_chart(curve), visible=True), gr.skip(), gr.skip(), gr.skip()]


def _try_part(context: Context, run_name: gr.State) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            probe = parts.dropzone("A recording that it has not seen", "train-probe")
            attempt, cancel = parts.run_and_cancel("Classify", "try")
            state = parts.status_line("try")
        with gr.Column(scale=3, min_width=300):
            labels = parts.html("train-labels", words.empty("Labels by the model just trained appear here."))
            evidence = parts.figure("Evidence for the label", "train-evidence")
    outputs = [state, labels, evidence]

    def draw(named: Named) -> list[Any]:
        return [status(None, named.summary), named.labels, parts.shown(named.evidence)]

    async def run_try(probe: str | None, name: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        if not probe:
            raise RefusalError("choose a recording to classify")
        work = partial(name_and_draw, Path(probe), _own_run(context, name, request))
        async for update in context.updates("classify", work, request, draw, outputs):
            yield update

    async def classify(recording: str | None, run: str = "", request: gr.Request | None = None) -> dict[str, Any]:
        """Name a recording by a run of your own (the name that `train` gave)."""
        if not recording:
            raise RefusalError("choose a recording to classify")
        work = partial(name_json, Path(recording), _own_run(context, run, request))
        found: dict[str, Any] = await context.result("classify", work, request)
        return {**found, "model": run}

    event = attempt.click(run_try, [probe, run_name], outputs, **parts.told_by(state), **context.quick)
    parts.cancels(cancel, state, [event])
    parts.endpoint("classify", classify, [probe, gr.Textbox(visible=False)], **context.quick)


def _work(context: Context, clips: str | None, learns: str, epochs: float) -> Callable[[Job], TrainedRun]:
    if not clips:
        raise RefusalError("choose a zip file first")
    return partial(train_on_zip, Path(clips), learns, int(epochs), max_bytes=4 * context.options.max_file_bytes)


def _own_run(context: Context, name: str, request: gr.Request | None) -> Path:
    try:
        return run_folder(context.sessions, visitor_of(request) or "", name)
    except UniperceptError as error:
        raise as_refusal(error) from error


def _chart(curve: Curve) -> Any:
    figure = charts.new_figure(height=300)
    x, y = zip(*curve.loss, strict=True)
    figure.add_scatter(x=x, y=y, name="loss (training)", line={"color": charts.GREY, "width": 1.2})
    if curve.accuracy:
        x, y = zip(*curve.accuracy, strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            name="accuracy (validation)",
            yaxis="y2",
            mode="lines+markers",
            line={"color": charts.BLUE, "width": 2},
        )
    figure.update_xaxes(title="updates")
    figure.update_yaxes(title="loss", rangemode="tozero")
    figure.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "range": [0, 1.02], "showgrid": False, "title": "accuracy"},
        margin={"r": 52}, showlegend=True,
    )  # fmt: skip
    return charts.described(figure, f"loss {curve.loss[-1][1]:.3g} after {curve.loss[-1][0]:,} updates")


def _scores(trained: TrainedRun) -> str:
    evaluated = {part: trained.scores[part] for part in ("validation", "test") if part in trained.scores}
    rows = [
        [
            part,
            f"{100 * found['accuracy']:.1f} % ({100 * found['accuracy_95_low']:.1f} to {100 * found['accuracy_95_high']:.1f})",
            str(found["n"]),
            f"{100 * found['expected_calibration_error']:.1f} %",
        ]
        for part, found in evaluated.items()
    ]
    table = words.table(["part", "accuracy (95 % interval)", "recordings", "calibration error"], rows)
    is_few = bool(evaluated) and list(evaluated.values())[-1]["n"] < ENOUGH
    few = words.note("There are few test recordings, so the interval is wide.") if is_few else ""
    skipped = "".join(words.note(f"left out, {name}: {line}") for name, line in trained.skipped[:5])
    head = words.heading(f"{len(trained.class_names)} classes")
    return head + table + few + skipped + words.commands(trained.command)
