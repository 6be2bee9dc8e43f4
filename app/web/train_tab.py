"""Train: a zip of class folders becomes a model, live; it is tried at once and taken home."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import charts, showing, words
from unipercept.app.web.blocks import visitor_of
from unipercept.app.web.jobs import Done, Job, as_refusal, refusal, status
from unipercept.app.web.looking import AUTO, look
from unipercept.app.web.teaching import FILES, Curve, Taught, run_folder, teach
from unipercept.errors import UniperceptError

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

HOW = (
    "A zip file with a folder of recordings for each class: pictures, sounds, videos or point clouds. The small network "
    "learns from scratch, 70 % of the recordings train it, 15 % choose and calibrate, 15 % judge it once."
)


def train_tab(context: Context) -> dict[str, Any]:
    """Build the tab."""
    run_name = gr.State("")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            gr.Markdown(HOW)
            clips = gr.File(label="A zip file of class folders", file_types=[".zip"], height=150, elem_id="train-zip")
            epochs = gr.Slider(1, 200, value=40, step=1, label="Epochs", info="Passes over the recordings")
            with gr.Row():
                run = gr.Button("Train", variant="primary", min_width=100, elem_id="train-run")
                cancel = gr.Button("Cancel", min_width=100, elem_id="train-cancel")
            state = gr.HTML(
                status(None, "Drop a zip file, or take the example."), elem_id="train-status", apply_default_css=False
            )
            example = gr.Button("Example: rising, falling and hissing sounds", size="sm", elem_id="train-example")
            gr.Markdown("### Try it")
            probe = gr.File(label="A recording that it has not seen", height=150, elem_id="train-probe")
            attempt = gr.Button("Name it", elem_id="train-try")
        with gr.Column(scale=3, min_width=300):
            curve = gr.Plot(label="Loss and accuracy", visible=False, elem_id="train-curve")
            scores = gr.HTML(elem_id="train-scores", apply_default_css=False)
            files = gr.File(
                label="Model and report", file_count="multiple", interactive=False, visible=False, elem_id="train-files"
            )
            labels = gr.HTML(elem_id="train-labels", apply_default_css=False)
            evidence = gr.Image(
                label="What it looked at",
                visible=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
            )
    outputs = [state, curve, scores, files, run_name]

    async def run_train(clips: str | None, epochs: float, request: gr.Request) -> AsyncIterator[list[Any]]:
        packed = _checked(clips)
        drawn: Curve | None = None
        async for event in context.run("train", _work(context, packed, epochs), request, is_long=True):
            if isinstance(event, Done):
                taught = event.value
                paths = [str(taught.folder / name) for name in FILES if (taught.folder / name).is_file()]
                yield [
                    status(1.0, "trained"), gr.update(value=_chart(taught.curve), visible=True), _scores(taught),
                    gr.update(value=paths, visible=True), taught.name,
                ]  # fmt: skip
            else:
                fresh = isinstance(event.news, Curve) and event.news != drawn
                drawn = event.news if fresh else drawn
                shown = gr.update(value=_chart(event.news), visible=True) if fresh else gr.skip()
                yield [status(event.share, event.text), shown, gr.skip(), gr.skip(), gr.skip()]

    async def train(
        clips: str, epochs: float = 40, request: gr.Request | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Train a classifier on a zip of class folders: its scores with intervals, and its files."""
        assert request is not None
        taught = await context.result("train", _work(context, _checked(clips), epochs), request, is_long=True)
        return taught.to_dict(), [str(taught.folder / name) for name in FILES if (taught.folder / name).is_file()]

    async def run_try(probe: str | None, name: str, request: gr.Request) -> list[Any]:
        folder = _own_run(context, name, request)
        if not probe:
            raise refusal("choose a recording to name")

        def work(job: Job) -> tuple[Any, Any]:
            looked = look(Path(probe), AUTO, str(folder), job)
            return looked, showing.evidence_picture(looked)

        looked, picture = await context.result("classify", work, request)
        if looked.labels is None:
            raise refusal(f"this is {looked.modality}, and the model knows another kind of recording")
        top = looked.labels.top(5)
        shown = words.bars(list(zip(top.labels, top.scores, strict=True)))
        return [
            f"<p><b>{words.plain(len(top.labels))} most probable</b></p>{shown}",
            gr.update(value=picture, visible=picture is not None),
        ]

    async def classify(recording: str, run: str = "", request: gr.Request | None = None) -> dict[str, Any]:
        """Name a recording by a run of your own (the name that `train` gave)."""
        assert request is not None
        folder = _own_run(context, run, request)
        looked = await context.result("classify", lambda job: look(Path(recording), AUTO, str(folder), job), request)
        found: dict[str, Any] = looked.to_dict()
        if looked.labels is None:
            raise refusal(f"this is {looked.modality}, and the model knows another kind of recording")
        return {**found, "model": run}

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    event = run.click(run_train, [clips, epochs], outputs, **quiet, **context.slow("train"))
    taken = example.click(lambda: str(context.examples.class_folders()), None, clips, **quiet)
    after = taken.then(run_train, [clips, epochs], outputs, **quiet, **context.slow("train"))
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event, after], api_visibility="private")
    attempt.click(run_try, [probe, run_name], [labels, evidence], **quiet, **context.quick)
    answer, made = gr.JSON(visible=False), gr.File(visible=False, file_count="multiple")
    gr.Button(visible=False).click(train, [clips, epochs], [answer, made], api_name="train", **context.slow("train"))
    named = gr.Textbox(visible=False)
    gr.Button(visible=False).click(classify, [probe, named], answer, api_name="classify", **context.quick)
    return {}


def _checked(clips: str | None) -> Path:
    if not clips:
        raise refusal("choose a zip file first")
    return Path(clips)


def _work(context: Context, packed: Path, epochs: float) -> Any:
    """The work, which keeps nothing of an archive that it refuses."""

    def work(job: Job) -> Taught:
        try:
            return teach(packed, int(epochs), job, 4 * context.options.max_file_bytes)
        except UniperceptError:
            if not packed.is_relative_to(context.examples.folder):
                context.sessions.forget(packed)
            raise

    return work


def _own_run(context: Context, name: str, request: gr.Request) -> Path:
    try:
        return run_folder(context.sessions, visitor_of(request) or "", name)
    except UniperceptError as error:
        raise as_refusal(error) from error


def _chart(curve: Curve) -> Any:
    figure = charts.new_figure(height=300)
    if curve.loss:
        x, y = zip(*curve.loss, strict=True)
        figure.add_scatter(x=x, y=y, name="loss (training)", line={"color": charts.GREY, "width": 1.2})
    if curve.accuracy:
        x, y = zip(*curve.accuracy, strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            name="accuracy (validation)",
            yaxis="y2",
            line={"color": charts.BLUE, "width": 2},
            mode="lines+markers",
        )
    figure.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "range": [0, 1.02], "showgrid": False, "title": "accuracy"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, margin={"r": 52, "t": 58},
    )  # fmt: skip
    figure.update_xaxes(title="updates")
    figure.update_yaxes(title="loss", selector={"anchor": "x"})
    return figure


def _scores(taught: Taught) -> str:
    rows = []
    for part in ("validation", "test"):
        if part in taught.scores:
            found = taught.scores[part]
            interval = f"{100 * found['accuracy_95_low']:.1f} to {100 * found['accuracy_95_high']:.1f} %"
            rows.append(
                [
                    part,
                    f"{100 * found['accuracy']:.1f} %",
                    interval,
                    str(found["n"]),
                    f"{100 * found['expected_calibration_error']:.1f} %",
                ]
            )
    skipped = "".join(words.note(f"left out, {name}: {line}") for name, line in taught.skipped[:5])
    table = words.table(["part", "accuracy", "95 % interval", "recordings", "calibration error"], rows)
    few = (
        words.note("Few recordings judge it, so the interval is wide: trust it no further than that.")
        if rows and int(rows[-1][3]) < 100
        else ""
    )
    return f"<p><b>{len(taught.class_names)} classes</b></p>{table}{few}{skipped}"
