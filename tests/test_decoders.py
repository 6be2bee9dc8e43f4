"""Threads and processes that decode: the same results, whatever happens to a process, and nothing left behind."""

import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from PIL import Image

from unipercept import decoders as module
from unipercept.datasets.folders import class_folders
from unipercept.datasets.processes import processes
from unipercept.decoders import Answer, DecoderDiedError, Decoders
from unipercept.devices import on_cpu
from unipercept.encode_chunk import EncodeSettings, FailedFile, _decode_ahead, decode_small
from unipercept.perception.packs import decode, pack_file
from unipercept.perception.settings import MapSettings

ROOT = Path(__file__).resolve().parent.parent  # of this module's name, for the processes
needs_fork = pytest.mark.skipif(not module._can_fork(), reason="decoding processes are for Linux")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_a_thread_started_later():
    with ThreadPoolExecutor(1) as later:
        return later.submit(torch.get_num_threads).result()


def test_decoding_threads_are_single_and_later_ones_are_not(three_threads):
    with Decoders(8, 2) as decoders:
        assert set(decoders.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)


def test_a_training_has_all_threads_after_its_recordings_were_decoded(three_threads):
    decode(processes("", "validation", per_class=1), MapSettings("timeseries"))
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)


def test_pools_that_overlap_leave_later_threads_as_they_were(three_threads):
    """Requests of a server: the second one, in a thread of its own, took the first one's single thread for the usual
    number, and left every later request with it."""
    began, ended = Event(), Event()

    def request():
        with Decoders(1, 1) as decoders:
            decoders.submit(int).result()
            began.set()
            ended.wait(10)

    with Decoders(1, 1) as first:
        first.submit(int).result()
        second = Thread(target=request)
        second.start()
        began.wait(10)
        assert of_a_thread_started_later() == 3
    ended.set()
    second.join()
    assert of_a_thread_started_later() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_computes_with_one_thread(three_threads):
    """With more it would wait for OpenMP's, which a fork leaves behind."""
    on_cpu(int)()
    child = os.fork()
    if not child:
        os._exit(torch.get_num_threads())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@needs_fork
@pytest.mark.parametrize(
    ("n_files", "n_processors", "n_workers", "expected"),
    [(10_000, 16, None, 16), (10_000, 64, None, 16), (10_000, 2, None, 0), (1_000, 16, None, 0), (10_000, 16, 3, 0)],
)
def test_processes_are_for_many_files_and_processors(monkeypatch, n_files, n_processors, n_workers, expected):
    asked = []
    monkeypatch.setattr(module, "n_processors", lambda: n_processors)
    monkeypatch.setattr(module, "_start", lambda n: asked.append(n) or (None, []))
    Decoders(n_files, n_workers)
    assert asked == [expected] * bool(expected)


def one(shape, dtype="<f4"):
    """What the tests ask a process for."""
    warnings.warn("a note of the reader", UserWarning, stacklevel=1)
    return Answer(["é\udc80", None, os.getpid()], [np.ones(shape, dtype), np.zeros((0, 3), "?")])


def broken():
    raise ValueError("not for the other side")


def ended():
    os.kill(os.getpid(), signal.SIGKILL)


def start(n_workers=1):
    decoders = Decoders(1000, n_workers, processes=True)
    deadline = time.monotonic() + 120
    while not all(process.is_ready() for process in decoders._idle) and time.monotonic() < deadline:
        time.sleep(0.02)
    return decoders


def ends(pid):
    """Whether a process is gone within ten seconds; one that waits to be reaped by the system's first process is."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@needs_fork
def test_a_process_gives_the_threads_results(tmp_path, monkeypatch):
    """And its warnings; where it fails or ends, the thread knows; afterwards none is left."""
    for index, side in enumerate((20, 33, 47, 40)):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (side, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    paths = sorted(map(str, tmp_path.rglob("*.png")))
    (tmp_path / "empty.png").touch()
    settings, maps = EncodeSettings("unireplknet_a"), MapSettings("image", size=32)
    with Decoders(1000, 1, processes=False) as decoders:
        assert decoders.in_process(one, (2, 3)) is None
        expected = list(_decode_ahead([paths], settings, decoders))
    packed = decode(class_folders(tmp_path), maps, max_bad_share=0.5)

    monkeypatch.syspath_prepend(ROOT)
    with start() as decoders:
        with pytest.warns(UserWarning, match="a note of the reader"):
            answer = decoders.in_process(one, (2, 300_000), "<f2")
        assert answer is not None
        name, nothing, pid = answer.value
        assert (name, nothing) == ("é\udc80", None)
        assert pid != os.getpid()
        assert [(array.dtype, array.shape) for array in answer.arrays] == [("<f2", (2, 300_000)), ("?", (0, 3))]
        assert (answer.arrays[0] == 1).all()
        assert decoders.in_process(broken) is None
        with monkeypatch.context() as patched:
            patched.setattr(broken, "__module__", "of_no_such_name")
            assert decoders.in_process(broken) is None
        answer = decoders.in_process(pack_file, paths[0], maps.to_json())
        assert answer is not None
        assert (torch.from_numpy(answer.arrays[0]) == packed.values[0]).all()

        found = list(_decode_ahead([paths], settings, decoders))
        for mine, theirs in zip(found[:-1], expected[:-1], strict=True):
            assert mine.is_read
            assert not theirs.is_read
            assert torch.equal(mine.first.tensor, theirs.first.tensor)
            assert torch.equal(mine.first.real_share(), theirs.first.real_share())
            assert (mine.path, mine.modality, mine.content_hash, mine.count) == (theirs.path, theirs.modality, theirs.content_hash, theirs.count)  # fmt: skip
        empty, _ = _decode_ahead([[str(tmp_path / "empty.png")]], settings, decoders)
        assert isinstance(empty, FailedFile)
        assert empty.is_final
        assert "is empty" in empty.error

        with pytest.raises(DecoderDiedError):
            decoders.in_process(ended)
        assert decoders.in_process(one, (1,)) is None  # no process is left: the thread goes on by itself
        assert [opened.is_read for opened in _decode_ahead([paths], settings, decoders) if opened] == [False] * 4
        server = decoders._server.pid
    assert ends(pid)
    assert ends(server)


@needs_fork
def test_without_more_pipes_or_processes_threads_decode(monkeypatch):
    def refused(*_, **__):
        raise OSError("too many")

    for name in ("subprocess.Popen", "os.pipe"):
        n_open = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patched:
            patched.setattr(name, refused)
            with Decoders(1000, 2, processes=True) as decoders:
                assert decoders.in_process(one, (1,)) is None
                assert decoders.submit(max, 1, 2).result() == 2
        assert len(os.listdir("/proc/self/fd")) == n_open


def test_long_recordings_are_left_to_the_thread(tmp_path, monkeypatch):
    """It reads them piece by piece."""
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr("unipercept.encode_chunk.FEW_NUMBERS", 3 * 224 * 224)
    assert decode_small(str(tmp_path / "a.png"), "unireplknet_a", "auto") is not None
    monkeypatch.setattr("unipercept.encode_chunk.FEW_NUMBERS", 3 * 224 * 224 - 1)
    assert decode_small(str(tmp_path / "a.png"), "unireplknet_a", "auto") is None


def test_a_file_whose_process_ended_is_listed_to_be_tried_again(tmp_path, monkeypatch):
    def die(*_):
        raise DecoderDiedError("the process that decoded it ended")

    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    with Decoders(1, 1) as decoders:
        monkeypatch.setattr(decoders, "in_process", die)
        failed, _ = _decode_ahead([[str(tmp_path / "a.png")]], EncodeSettings("unireplknet_a"), decoders)
    assert failed == FailedFile(str(tmp_path / "a.png"), "", "the process that decoded it ended", is_final=False)
