"""Compare and search: recordings of any kinds side by side, and the nearest ones in an archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import parts, picking, words
from unipercept.app.web.compare_work import (
    OPENED,
    Compared,
    Hits,
    Opened,
    compare_named,
    open_recording,
    search_archive,
    search_files,
    search_zip,
)
from unipercept.app.web.job import Job
from unipercept.app.web.jobs import RefusalError, status

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

EXAMPLE_INDEX = "examples"
ZIP_INDEX = "zip"
TOP = 10
EMPTY_COMPARE = "Their maps, the similarity matrix and a projection of their vectors appear here; click a point to open its recording."
ONE_SO_FAR = "One recording is here. Add another with the arrow in the corner of its list."
EMPTY_SEARCH = "The nearest recordings appear here; click one to open it."


def compare_tab(context: Context) -> gr.Dropdown:
    """Build the tab; gives the list of models, which is filled later."""
    model = _compare_part(context)
    gr.Markdown("## Search an archive")
    _search_part(context)
    return model


def _compare_part(context: Context) -> gr.Dropdown:
    found = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            files = parts.dropzone("Recordings of any kinds", "compare-files", file_count="multiple")
            model = parts.model_dropdown()
            run, cancel = parts.run_and_cancel("Compare", "compare")
            state = parts.status_line("compare", "Drop two files or more, or take the example.")
            example = gr.Button("Example: eight recordings of four kinds", size="sm", elem_id="compare-example")
        with gr.Column(scale=3, min_width=300):
            matrix = parts.html("compare-matrix", words.empty(EMPTY_COMPARE))
            plane = picking.picker("compare-plane")
            vectors = parts.downloads("Vectors and similarity", "compare-vectors")
            players = _players("compare-opened")
    outputs = [state, matrix, plane, vectors, found]

    async def run_compare(files: list[str] | None, model: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        if files and len(files) == 1:  # of several that are dropped one by one
            yield [status(None, ONE_SO_FAR), *[gr.skip()] * 4]
            return
        work = partial(compare_named, _checked(files), model, draws=True)
        async for update in context.updates("compare", work, request, _compared, outputs):
            yield update

    async def compare_json(
        files: list[str], model: str = "default", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """How alike recordings are: matrices of cosines, and places on a plane."""
        work = partial(compare_named, _checked(files), model)
        result: Compared = await context.result("compare", work, request)
        return result.to_dict()

    async def open_point(result: Compared | None, picked: gr.SelectData, request: gr.Request) -> list[Any]:
        if result is None or not 0 <= picked.index < len(result.paths):
            raise RefusalError("these recordings are no longer kept; compare them again")
        return await _open(context, result.paths[picked.index], request)

    event = gr.on(
        [run.click, files.upload], run_compare, [files, model], outputs, **parts.told_by(state), **context.quick
    )
    taken = example.click(lambda: [str(p) for p in context.examples.mixed()], None, files, **parts.QUIET)
    after = taken.then(run_compare, [files, model], outputs, **parts.told_by(state), **context.quick)
    parts.cancels(cancel, state, [event, after])
    plane.select(open_point, found, players, **parts.QUIET, **context.quick)
    parts.endpoint("compare", compare_json, [files, model], **context.quick)
    return model


def _search_part(context: Context) -> None:
    hits = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            query = parts.dropzone("The recording to look for", "search-query")
            index = gr.Dropdown(
                [("the examples of this page", EXAMPLE_INDEX), ("a zip file of yours, sent below", ZIP_INDEX)]
                + [(name, name) for name in _indexes(context)[2:]],
                value=EXAMPLE_INDEX, label="Archive", info="Where to look", elem_id="search-index",
            )  # fmt: skip
            folder = parts.dropzone("A zip file of recordings", "search-zip", file_types=[".zip"])
            look, stop = parts.run_and_cancel("Search", "search")
            state = parts.status_line("search", "Drop a recording, or take the example.")
            example = gr.Button("Example: what is most like a tower?", size="sm", elem_id="search-example")
        with gr.Column(scale=3, min_width=300):
            listed = picking.picker("search-hits", words.empty(EMPTY_SEARCH))
            players = _players("search-opened")
    inputs, outputs = [query, index, folder], [state, listed, hits]

    def draw(found: Hits) -> list[Any]:
        named = [(Path(path).name, value) for path, value in found]
        return [status(None, f"{len(found)} nearest"), picking.neighbours(named), found]

    async def run_search(
        query: str | None, index: str, folder: str | None, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = _search(context, query, index, folder)
        async for update in context.updates("search", work, request, draw, outputs):
            yield update

    async def search_json(
        query: str, index: str = EXAMPLE_INDEX, folder: str | None = None, request: gr.Request | None = None
    ) -> list[dict[str, Any]]:
        """The recordings of an archive that are most like one: `index` is "examples", "zip" (`folder` is the zip file),
        or the name of an archive of the server.
        """
        found: Hits = await context.result("search", _search(context, query, index, folder), request)
        return [{"file": Path(path).name, "similarity": value} for path, value in found]

    async def open_hit(found: Hits | None, picked: gr.SelectData, request: gr.Request) -> list[Any]:
        if not found or not 0 <= picked.index < len(found):
            raise RefusalError("these neighbours are no longer kept; search again")
        return await _open(context, Path(found[picked.index][0]), request)

    folder.upload(lambda: ZIP_INDEX, None, index, **parts.QUIET)
    event = look.click(run_search, inputs, outputs, **parts.told_by(state), **context.quick)
    taken = example.click(lambda: (str(context.examples.query()), EXAMPLE_INDEX), None, [query, index], **parts.QUIET)
    after = taken.then(run_search, inputs, outputs, **parts.told_by(state), **context.quick)
    parts.cancels(stop, state, [event, after])
    listed.select(open_hit, hits, players, **parts.QUIET, **context.quick)
    parts.endpoint("search", search_json, inputs, **context.quick)


def _compared(result: Compared) -> list[Any]:
    pictures = list(zip(result.thumbnails, result.names, strict=True))
    notes = "".join(words.note(f"{name}: {line}") for name, line in result.failures)
    if len(result.networks) > 1:
        notes += words.note("Each kind has its own network here, so similarities between kinds mean little.")
    whole = words.matrix(result.similarity(), result.names)
    tables, scale = whole, "1: the same"
    if result.can_be_centred:
        scale = "0: as alike as any two of them, after what all have in common is taken off"
        tables = words.matrix(result.similarity(centred=True), result.names) + words.folded(
            "With what they have in common", whole
        )
    networks = ", ".join(sorted(result.networks))
    tables = words.heading("Cosine similarity", f"of the vectors by {networks} ({scale}):") + tables
    again = ["encode", *map(words.local, result.names), "-m", result.model, "-o", "vectors.parquet"]
    value = picking.plane(result.plane(), result.names, result.modalities)
    return [
        status(None, f"{len(result.paths)} recordings"),
        words.thumbnails(pictures, "Their maps", large=True) + notes + tables + words.commands(again),
        gr.update(value=value, visible=True),
        gr.update(value=result.files, visible=True),
        result,
    ]


def _checked(files: list[str] | None) -> list[Path]:
    if not files or len(files) < 2:
        raise RefusalError("choose two files or more")
    return [Path(file) for file in files]


def _indexes(context: Context) -> list[str]:
    return [EXAMPLE_INDEX, ZIP_INDEX, *(path.name for path in context.options.index)]


def _search(context: Context, query: str | None, index: str, folder: str | None) -> Callable[[Job], Hits]:
    """The work of a search: open or make the archive, then look."""
    if not query:
        raise RefusalError("choose the recording to look for")
    if index not in _indexes(context):
        raise RefusalError(f"there is no archive {index!r} here")
    if index == ZIP_INDEX and not folder:
        raise RefusalError("send the zip file of recordings too")

    if index == EXAMPLE_INDEX:
        return partial(search_files, Path(query), context.examples.mixed(), TOP)
    if index == ZIP_INDEX:
        return partial(search_zip, Path(query), Path(str(folder)), TOP, 4 * context.options.max_file_bytes)
    return partial(search_archive, Path(query), next(path for path in context.options.index if path.name == index), TOP)


def _players(elem_id: str) -> list[Any]:
    """Widgets that open a picked recording: its name, and a player of each kind, hidden."""
    settings: dict[str, Any] = {"visible": False, "interactive": False, "buttons": ["download"], "show_label": False}
    return [
        parts.html(elem_id),
        gr.Audio(autoplay=True, **settings),
        gr.Video(autoplay=True, height=280, **settings),
        gr.Image(height=300, format="png", **settings),
    ]


async def _open(context: Context, path: Path, request: gr.Request) -> list[Any]:
    """Values of the players: the recording in the one that suits it, or a note alone."""
    work = partial(open_recording, path, context.sessions.folder)
    try:
        opened: Opened = await context.result("open", work, request)
    except RefusalError as error:
        return [words.note(error.line), *[parts.shown(None)] * len(OPENED)]
    said = "" if opened.path else "; open it on the Perceive tab to see it"
    players = [parts.shown(opened.path if opened.modality == kind else None) for kind in OPENED]
    return [words.note(f"{opened.name} ({words.kind(opened.modality)}){said}", "plain"), *players]
