"""Workers do the jobs of a server in processes of their own; what hangs or crashes there takes nothing else along."""

import os
import subprocess
import sys
import threading
import time

import pytest

from tests.app.web import works
from unipercept.app.web.gradio_import import import_gradio
from unipercept.app.web.job import Job, StoppedError
from unipercept.app.web.workers import FailedError, Workers
from unipercept.errors import InputError, MissingDependencyError


@pytest.fixture(scope="module")
def workers():
    made = Workers()
    yield made
    made.close()


def stop_once_at_work(job: Job) -> None:
    def wait() -> None:
        while job.share == 0:
            time.sleep(0.01)
        job.stop.set()

    threading.Thread(target=wait, daemon=True).start()


def test_work_is_done_elsewhere_and_tells_how_far_it_is(workers, tmp_path):
    job = Job(tmp_path)
    pid, folder = workers.run(works.answer, job)
    assert pid != os.getpid()
    assert folder == str(tmp_path)
    assert (job.share, job.text, job.news) == (0.5, "half", "a curve")
    assert workers.run(works.answer, Job(tmp_path))[0] == pid
    assert workers.facts() == {"workers": 1, "workers_lost": 0}
    assert workers.resident_bytes() > 0 or sys.platform != "linux"


def test_our_errors_keep_their_words_and_bugs_their_traceback(workers, tmp_path):
    with pytest.raises(InputError, match="the <b>file</b>"):
        workers.run(works.mistake, Job(tmp_path))
    with pytest.raises(FailedError, match=r"RuntimeError: secret path /root") as caught:
        workers.run(works.bug, Job(tmp_path))
    assert "works.py" in str(caught.value)


def test_work_that_listens_is_stopped_and_its_worker_goes_on(workers, tmp_path):
    pid, _ = workers.run(works.answer, Job(tmp_path))
    job = Job(tmp_path)
    stop_once_at_work(job)
    with pytest.raises(StoppedError):
        workers.run(works.on_and_on, job)
    assert workers.run(works.answer, Job(tmp_path))[0] == pid


def test_work_that_hangs_is_ended_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr("unipercept.app.web.workers.GRACE_SECONDS", 0.3)
    workers, job = Workers(), Job(tmp_path)
    try:
        stop_once_at_work(job)
        with pytest.raises(StoppedError):
            workers.run(works.hang, job)
        assert workers.facts() == {"workers": 1, "workers_lost": 1}  # another one is ready
    finally:
        workers.close()


def test_a_crash_is_one_line_and_many_are_said_to_the_load_balancer(tmp_path, monkeypatch):
    monkeypatch.setattr("unipercept.app.web.workers.MANY_LOST", 2)
    workers = Workers()
    try:
        for is_well in (True, False):
            with pytest.raises(InputError, match="broke down: the recording may be damaged"):
                workers.run(works.crash, Job(tmp_path))
            assert workers.is_well is is_well
        assert workers.run(works.answer, Job(tmp_path))
        assert workers.is_well
    finally:
        workers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="memory of another process is read from /proc")
def test_work_that_takes_too_much_memory_is_ended_and_is_no_sign_of_a_broken_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("unipercept.app.web.workers.MANY_LOST", 1)
    workers = Workers(max_bytes=1.5e9)
    try:
        with pytest.raises(InputError, match=r"more than the 1\.5 GB of memory"):
            workers.run(works.swell, Job(tmp_path))
        assert workers.is_well
        assert workers.facts()["workers_lost"] == 1
        assert workers.run(works.answer, Job(tmp_path))
    finally:
        workers.close()


def test_a_server_without_jobs_is_well_again_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("unipercept.app.web.workers.MANY_LOST", 1)
    workers = Workers()
    try:
        with pytest.raises(InputError):
            workers.run(works.crash, Job(tmp_path))
        assert not workers.is_well
        monkeypatch.setattr("unipercept.app.web.workers.WELL_AGAIN_SECONDS", 0.0)
        assert workers.is_well
    finally:
        workers.close()


def test_those_with_nothing_to_do_end_but_one(tmp_path, monkeypatch):
    workers = Workers()
    try:
        together = [threading.Thread(target=workers.run, args=(works.answer, Job(tmp_path))) for _ in range(2)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        assert workers.facts()["workers"] == 2
        monkeypatch.setattr("unipercept.app.web.workers.IDLE_SECONDS", 0.0)
        workers.rest()
        assert workers.facts() == {"workers": 1, "workers_lost": 0}
    finally:
        workers.close()


def test_workers_end_when_their_server_is_killed(tmp_path):
    code = """
import os, sys
from pathlib import Path
from tests.app.web import works
from unipercept.app.web.job import Job
from unipercept.app.web.workers import Workers
print(Workers().run(works.answer, Job(Path(sys.argv[1])))[0], flush=True)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    pid = int(found.stdout)
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its server")


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_workers_import_has_no_gradio_and_starts_without_torch():
    code = """
import sys
from unipercept.app.web import models_work, compare_work, series_drawing, perceive_drawing, train_work, weather_drawing, worker
print(sorted({"gradio", "torch", "matplotlib", "plotly", "pandas"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "[]\n"


def test_gradio_is_imported_without_writing_stubs():
    code = """
from unipercept.app.web.gradio_import import import_gradio
import_gradio()
import gradio, gradio.component_meta
assert gradio.component_meta.create_or_modify_pyi.__module__ == "unipercept.app.web.gradio_import"
assert gradio.Button("press").click
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_gradio_whose_insides_are_others_is_refused_in_one_line(monkeypatch):
    queueing = pytest.importorskip("gradio.queueing")

    async def push(self, body, request):
        """As a later gradio might have it: without the user's name."""

    monkeypatch.setattr(queueing.Queue, "push", push)
    with pytest.raises(
        MissingDependencyError, match=r"gradio\.queueing\.Queue\.push of gradio [\d.]+ lacks .* pip install"
    ):
        import_gradio()
    monkeypatch.delattr(queueing.Queue, "push")
    with pytest.raises(MissingDependencyError, match="lacks"):
        import_gradio()
