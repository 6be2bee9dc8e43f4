"""Compare and search: recordings of any kinds side by side, and the nearest ones in an archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import picking, words
from unipercept.app.web.comparing import MAX_FILES, Compared, compare, nearest
from unipercept.app.web.files import recordings_below, unpack
from unipercept.app.web.jobs import Done, Job, refusal, status
from unipercept.app.web.models import known_models, usable_model
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.app.web.context import Context
    from unipercept.perception.search import Archive

EXAMPLE_INDEX = "examples"
ZIP_INDEX = "zip"
TOP = 10
MAX_RECORDING_BYTES = 200 * 10**6  # that a neighbour's file may have to be opened


def compare_tab(context: Context) -> dict[str, Any]:
    """Build the tab."""
    found = gr.State(None)
    hits = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            files = gr.File(label="Recordings of any kinds", file_count="multiple", height=150, elem_id="compare-files")
            model = gr.Dropdown(
                known_models(), value="default", label="Model", info="On this machine", allow_custom_value=True
            )
            with gr.Row():
                run = gr.Button("Compare", variant="primary", min_width=100, elem_id="compare-run")
                cancel = gr.Button("Cancel", min_width=100, elem_id="compare-cancel")
            state = gr.HTML(status(None, "Drop two files or more."), elem_id="compare-status", apply_default_css=False)
            example = gr.Button("Example: eight recordings of four kinds", size="sm", elem_id="compare-example")
            gr.Markdown("### Search an archive")
            query = gr.File(label="The recording to look for", height=150, elem_id="search-query")
            index = gr.Dropdown(
                _indexes(context),
                value=EXAMPLE_INDEX,
                label="Archive",
                info="The examples of this page, a zip file (below), or one of this server",
                elem_id="search-index",
            )
            folder = gr.File(label="A zip file of recordings", file_types=[".zip"], height=150, elem_id="search-zip")
            with gr.Row():
                look = gr.Button("Search", variant="primary", min_width=100, elem_id="search-run")
                stop = gr.Button("Cancel", min_width=100)
            search_state = gr.HTML(status(None, ""), elem_id="search-status", apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Their maps",
                columns=4,
                height=330,
                visible=False,
                format="jpeg",
                buttons=["fullscreen"],
                elem_id="compare-gallery",
            )
            matrix = gr.HTML(elem_id="compare-matrix", apply_default_css=False)
            plane = picking.picker("Map of the vectors", "compare-plane")
            neighbours = picking.picker("Nearest recordings", "search-hits")
            opened = gr.HTML(elem_id="compare-opened", apply_default_css=False)
            audio = gr.Audio(visible=False, interactive=False, autoplay=True, buttons=["download"], show_label=False)
            video = gr.Video(
                visible=False, interactive=False, autoplay=True, buttons=["download"], height=280, show_label=False
            )
            image = gr.Image(
                visible=False, interactive=False, buttons=["download"], height=300, format="png", show_label=False
            )
    shown = [state, gallery, matrix, plane, found]
    opening = [opened, audio, video, image]

    async def run_compare(files: list[str] | None, model: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        paths, chosen = _checked(files), usable_model(model)
        async for event in context.run("compare", lambda job: compare(paths, chosen, job, draws=True), request):
            if isinstance(event, Done):
                yield draw(event.value)
            else:
                yield [status(event.share, event.text), *[gr.skip()] * 4]

    def draw(result: Compared) -> list[Any]:
        pictures = [
            (t, f"{name} ({kind})")
            for t, name, kind in zip(result.thumbnails, result.names, result.modalities, strict=True)
        ]
        failed = "".join(words.note(f"{name}: {line}") for name, line in result.failures)
        if len(result.networks) > 1:
            failed += words.note("Each kind has a network of its own here: similarities between kinds say little.")
        tables = (
            f"<p><b>Cosine similarity</b> of {words.names(sorted(result.networks))}, after the common part is taken off:</p>"
            + words.matrix(result.similarity(centred=True), result.names)
            + "<details><summary>As it is</summary>"
            + words.matrix(result.similarity(), result.names)
            + "</details>"
        )
        value = picking.plane(result.plane(), result.names, result.modalities)
        return [
            status(1.0, f"{len(result.paths)} recordings"), gr.update(value=pictures, visible=True), failed + tables,
            gr.update(value=value, visible=True), result,
        ]  # fmt: skip

    async def compare_json(
        files: list[str], model: str = "default", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """How alike recordings are: matrices of cosines, and places on a plane."""
        paths, chosen = _checked(files), usable_model(model)
        assert request is not None
        result: Compared = await context.result("compare", lambda job: compare(paths, chosen, job), request)
        return result.to_dict()

    async def run_search(
        query: str | None, index: str, folder: str | None, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = _search(context, query, index, folder)
        async for event in context.run("search", work, request):
            if isinstance(event, Done):
                listed = [(Path(path).name, value) for path, value in event.value]
                value = picking.neighbours(listed)
                yield [status(1.0, f"{len(listed)} nearest"), gr.update(value=value, visible=True), event.value]
            else:
                yield [status(event.share, event.text), gr.skip(), gr.skip()]

    async def search_json(
        query: str, index: str = EXAMPLE_INDEX, folder: str | None = None, request: gr.Request | None = None
    ) -> list[dict[str, Any]]:
        """The recordings of an archive that are most like one."""
        assert request is not None
        result = await context.result("search", _search(context, query, index, folder), request)
        return [{"file": Path(path).name, "similarity": value} for path, value in result]

    def open_point(result: Compared | None, picked: gr.SelectData, request: gr.Request) -> list[Any]:
        if result is None or not 0 <= picked.index < len(result.paths):
            raise refusal("these recordings are no longer kept; compare them again")
        return _opened(result.paths[picked.index], result.modalities[picked.index])

    def open_hit(found: Sequence[tuple[str, float]] | None, picked: gr.SelectData, request: gr.Request) -> list[Any]:
        if not found or not 0 <= picked.index < len(found):
            raise refusal("these neighbours are no longer kept; search again")
        return _open_neighbour(context, Path(found[picked.index][0]), request)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    event = gr.on([run.click, files.upload], run_compare, [files, model], shown, **quiet, **context.quick)
    taken = example.click(lambda: [str(p) for p in context.examples.mixed()], None, files, **quiet)
    after = taken.then(run_compare, [files, model], shown, **quiet, **context.quick)
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event, after], api_visibility="private")
    searched = look.click(
        run_search, [query, index, folder], [search_state, neighbours, hits], **quiet, **context.quick
    )
    stop.click(lambda: status(None, "Stopped."), None, search_state, cancels=[searched], api_visibility="private")
    plane.select(open_point, found, opening, **quiet)
    neighbours.select(open_hit, hits, opening, **quiet)
    answer = gr.JSON(visible=False)
    gr.Button(visible=False).click(compare_json, [files, model], answer, api_name="compare", **context.quick)
    gr.Button(visible=False).click(search_json, [query, index, folder], answer, api_name="search", **context.quick)
    return {}


def _checked(files: list[str] | None) -> list[Path]:
    if not files or len(files) < 2:
        raise refusal("choose two files or more")
    return [Path(file) for file in files]


def _indexes(context: Context) -> list[str]:
    return [EXAMPLE_INDEX, ZIP_INDEX, *(str(path.name) for path in context.options.index)]


def _search(context: Context, query: str | None, index: str, folder: str | None) -> Any:
    """The work of a search: open or make the archive, then look."""
    if not query:
        raise refusal("choose the recording to look for")
    if index not in _indexes(context):
        raise refusal(f"there is no archive {index!r} here")
    if index == ZIP_INDEX and not folder:
        raise refusal("send the zip file of recordings too")

    def work(job: Job) -> list[tuple[str, float]]:
        archive: Archive | Compared
        if index == EXAMPLE_INDEX:
            archive = compare(context.examples.mixed(), "default", job, at_least=1)
        elif index == ZIP_INDEX:
            archive = _zipped(Path(str(folder)), job, context.options.max_file_bytes)
        else:
            from unipercept.perception.search import Archive as Stored

            job.tell(0.05, "opening the archive")
            archive = Stored.open(next(path for path in context.options.index if path.name == index))
        return nearest(Path(query), archive, TOP, job)

    return work


def _zipped(packed: Path, job: Job, max_bytes: int) -> Compared:
    top = unpack(packed, job.folder / "archive", 4 * max_bytes, lambda share: job.tell(0.1 * share, "unpacking"))
    paths = recordings_below(top, MAX_FILES)
    if len(paths) > MAX_FILES:
        raise InputError(
            f"at most {MAX_FILES} recordings are indexed here; use `unipercept encode` and --index for more"
        )
    return compare(paths, "default", job, at_least=1)


def _opened(path: Path, modality: str) -> list[Any]:
    """The recording in the player that suits it."""
    if not path.is_file():
        return [words.note(f"{path.name} is not on this machine any more"), *[gr.update(value=None, visible=False)] * 3]
    hidden = gr.update(value=None, visible=False)
    kinds = {"audio": 0, "video": 1, "image": 2}
    players = [hidden, hidden, hidden]
    if modality in kinds:
        value: Any = str(path)
        if modality == "image":  # drawn anew: pixels alone
            from PIL import Image, ImageOps

            with Image.open(path) as opened:
                value = ImageOps.exif_transpose(opened).convert("RGB")
            value.thumbnail((1280, 1280))
        players[kinds[modality]] = gr.update(value=value, visible=True)
    said = "" if modality in kinds else "; open it on the Perceive tab to see it"
    return [words.note(f"{path.name} ({modality}){said}", good=True), *players]


def _open_neighbour(context: Context, path: Path, request: gr.Request) -> list[Any]:
    """A neighbour in the operator's archive lies elsewhere: a copy is shown, of what is a recording and not too large."""
    from unipercept.app.web.blocks import visitor_of
    from unipercept.pipelines.detect import detect_modality

    try:
        modality = detect_modality(path)
    except InputError:
        return [words.note(f"{path.name} is not on this machine"), *[gr.update(value=None, visible=False)] * 3]
    if not path.resolve().is_relative_to(context.sessions.folder):
        visitor = visitor_of(request)
        if visitor is None or path.stat().st_size > MAX_RECORDING_BYTES:
            return [
                words.note(f"{path.name} is too large to be opened here"),
                *[gr.update(value=None, visible=False)] * 3,
            ]
        copy = context.sessions.new_folder(visitor) / path.name
        copyfile(path, copy)
        path = copy
    return _opened(path, modality)
