"""Jobs tell how far they are, stop when told, and say what went wrong in one line."""

import asyncio
import threading
import time

import pytest

gradio = pytest.importorskip("gradio")

from unipercept.app.web.job import without_folders  # noqa: E402
from unipercept.app.web.jobs import Done, Progress, run_job, status  # noqa: E402
from unipercept.app.web.metrics import Metrics  # noqa: E402
from unipercept.errors import InputError  # noqa: E402


def gather(work, folder, seconds=10.0, metrics=None):
    async def run():
        return [e async for e in run_job("test", work, folder=folder, seconds=seconds, metrics=metrics or Metrics())]

    return asyncio.run(run())


def test_progress_comes_before_the_value(tmp_path):
    def work(job):
        job.tell(0.5, "half")
        time.sleep(0.3)
        return 42

    events = gather(work, tmp_path)
    assert Progress(0.5, "half", None) in events
    assert events[-1] == Done(42)


def test_our_errors_keep_their_words_and_bugs_get_a_number(tmp_path, capsys):
    def mistake(job):
        raise InputError("the <b>file</b>\nis bad")

    def bug(job):
        raise RuntimeError("secret path /root")

    with pytest.raises(gradio.Error) as caught:
        gather(mistake, tmp_path)
    assert caught.value.message == "the &lt;b&gt;file&lt;/b&gt; is bad"
    with pytest.raises(gradio.Error) as caught:
        gather(bug, tmp_path)
    assert "secret" not in caught.value.message
    assert "secret path" in capsys.readouterr().err


def test_a_late_job_gives_its_place_back_at_once(tmp_path):
    metrics, began = Metrics(), time.monotonic()
    with pytest.raises(gradio.Error, match=r"more than 0\.2 s"):
        gather(lambda job: job.stop.wait(20), tmp_path, seconds=0.2, metrics=metrics)
    assert time.monotonic() - began < 5
    assert metrics.health()["running"] == 0
    assert 'outcome="late"' in metrics.text()


def test_work_stops_at_its_next_word_when_nobody_waits(tmp_path):
    stopped = threading.Event()

    def work(job):
        try:
            while True:
                job.tell(0.1, "on and on")
                time.sleep(0.01)
        finally:
            stopped.set()

    async def leave_early():
        events = run_job("test", work, folder=tmp_path, seconds=10, metrics=Metrics())
        await anext(events)
        await events.aclose()

    asyncio.run(leave_early())
    assert stopped.wait(5)


def test_what_nobody_gets_of_a_job_is_deleted(tmp_path):
    def well(job):
        (job.scratch / "unpacked").write_bytes(b"x")
        (job.folder / "result").write_bytes(b"x")

    def badly(job):
        well(job)
        raise InputError("no")

    def silently(job):
        return 42

    for work, left in ((well, {"well", "well/result"}), (badly, set()), (silently, set())):
        folder = tmp_path / work.__name__
        folder.mkdir()
        try:
            gather(work, folder)
        except gradio.Error:
            assert work is badly
        assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_relative_to(folder)} == left


def test_words_of_visitors_are_escaped_and_folders_left_out(tmp_path):
    import tempfile

    assert "<img" not in status(0.5, "<img src=x onerror=alert(1)>")
    assert (
        without_folders(f"cannot read {tempfile.gettempdir()}/app-1/ab/cd.wav: cut short")
        == "cannot read cd.wav: cut short"
    )
