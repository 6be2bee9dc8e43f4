"""Files decoded in parallel: by threads, and for many files by processes beside them.

Codecs run without the interpreter's lock, but the Python around them holds it for about 1 ms a picture, so threads
gain nothing beyond some four. With enough processors and files, each thread therefore has a process that decodes for
it and hands the arrays over through a pipe: 1,840 small pictures a second with 16, and 466 with 8 threads
(benchmarks/results/encode_throughput.md). Processes only make it faster: until they have started, where they
cannot, and for whatever one of them did not manage, the thread decodes by itself, with the same result.

The processes are forked from one that has imported what all of them need, and which is started as a program of its
own: nothing is imported twice, the caller's script is not run again (as `multiprocessing` would), and no lock or GPU
context of this process is inherited. They end when their pipes close, so also if this process is killed.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.errors import UniperceptError
from unipercept.processors import n_processors

MOST_THREADS = 8  # that decode at a time: of more, each waits longer for the interpreter's lock than it decodes
MOST_PROCESSES = 16
ENOUGH_PROCESSORS = 4  # for processes
ENOUGH_FILES = 1024  # for processes: in the 2 to 4 s that they take to start, threads decode as many small pictures
STOP_SECONDS = 2.0
PIPE_BYTES = 1 << 20  # what Linux lets anyone ask for: a map in one piece
IMPORTS = ("unipercept.encode_chunk", "unipercept.pipelines.audio", "unipercept.pipelines.image")
_LENGTH = struct.Struct("<Q")
_READY = b"\1"
# Modules come from where the caller has them, not from the folder that it happens to be in.
_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from unipercept.decoders import serve; serve(sys.argv[1])"

P = ParamSpec("P")
R = TypeVar("R")


class DecoderDiedError(UniperceptError):
    """A decoding process ended in the middle of a file: a crash in a codec, or no memory."""


class Answer(NamedTuple):
    """What a function gave in a decoding process: a value that JSON can carry, and arrays."""

    value: Any
    arrays: list[NDArray[Any]]


class Decoders:
    """A pool of threads, and perhaps of processes, to decode files; a context manager. No choice changes a result.

    In its threads torch is single-threaded: each would otherwise start as many threads as the backbone.

    Args:
        n_files: how many files will be decoded.
        n_workers: threads; by default as many as pay.
        processes: whether each thread has a process; by default where this pays.
    """

    def __init__(self, n_files: int, n_workers: int | None = None, *, processes: bool | None = None) -> None:
        if processes is None:
            processes = n_workers is None and n_files >= ENOUGH_FILES and n_processors() >= ENOUGH_PROCESSORS
        processes = processes and _can_fork()
        self.n_workers = n_workers or min(n_processors(), MOST_PROCESSES if processes else MOST_THREADS)
        self._in_threads = threading.BoundedSemaphore(min(self.n_workers, MOST_THREADS))
        self._server: subprocess.Popen[bytes] | None = None
        self._idle: list[_Process] = []
        if processes:
            self._server, self._idle = _start(self.n_workers)
        usual = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.n_workers, "decode", initializer=_use_one_thread, initargs=(usual,))

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._server is not None:
            _stop(self._server, self._idle)

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a function in one of the threads."""
        return self._pool.submit(function, *args, **kwargs)

    def map(self, function: Callable[..., R], *items: Sequence[Any]) -> Iterator[R]:
        """The results of a function that runs in the threads, in order."""
        return self._pool.map(function, *items)

    def in_process(self, function: Callable[..., Answer | None], *arguments: Any) -> Answer | None:
        """Run a module's function in a process; None where none is ready, or where it failed or gave None there.

        To be called in the pool's threads, with arguments that JSON can carry.

        Raises:
            DecoderDiedError: the process ended meanwhile.
        """
        try:
            process = self._idle.pop()
        except IndexError:
            return None
        if not process.is_ready():
            self._idle.append(process)
            return None
        answer = process.ask(json.dumps([function.__module__, function.__qualname__, arguments]).encode())
        self._idle.append(process)
        return answer

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Decode inside the block: of more threads than processes, no more than pay get in at a time."""
        with self._in_threads:
            yield


def _use_one_thread(usual: int) -> None:
    """Make torch single-threaded in the thread that calls; threads that have not used torch yet get `usual`.

    set_num_threads sets the number of its own thread and of all those to come: another thread sets the latter back, at
    once. Set back when a pool ends, it stayed at 1 where the pools of two requests of a server overlapped.
    """
    torch.get_num_threads()  # its first use of torch would otherwise be after this, and take the number for all
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(usual,))
    other.start()
    other.join()


class _Process:
    """A decoding process as its thread sees it.

    Args:
        requests, answers: this process's ends of two pipes.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = FileIO(requests, "w"), FileIO(answers, "r")
        self._has_started = False

    def is_ready(self) -> bool:
        if not self._has_started:
            poll = select.poll()
            poll.register(self._answers, select.POLLIN)
            self._has_started = (
                any(event & select.POLLIN for _, event in poll.poll(0)) and self._answers.read(1) == _READY
            )
        return self._has_started

    def ask(self, request: bytes) -> Answer | None:
        try:
            _write(self._requests, request)
            header = json.loads(_read(self._answers, _LENGTH.unpack(_read(self._answers, _LENGTH.size))[0]))
            arrays = [_read_array(self._answers, *described) for described in header["arrays"]]
        except (EOFError, OSError) as error:
            self.close()
            raise DecoderDiedError(
                "the process that decoded it ended (a crash in a codec, or too little memory)"
            ) from error
        for text, category, file, line in header["warnings"]:
            warnings.warn_explicit(text, getattr(builtins, category, UserWarning), file, line)
        return None if header["failed"] else Answer(header["value"], arrays)

    def close(self) -> None:
        self._requests.close()
        self._answers.close()


def _can_fork() -> bool:
    """Elsewhere than on Linux a process cannot fork safely once it has imported what decodes."""
    return sys.platform == "linux" and not hasattr(sys, "frozen") and "python" in Path(sys.executable or "").name


def _start(n_processes: int) -> tuple[subprocess.Popen[bytes] | None, list[_Process]]:
    """None and no processes where no more of them, or of pipes, are allowed."""
    pipes: list[tuple[tuple[int, int], tuple[int, int]]] = []
    server = None
    with contextlib.suppress(OSError):
        pipes.extend((os.pipe(), os.pipe()) for _ in range(n_processes))
        theirs = [(requests[0], answers[1]) for requests, answers in pipes]
        server = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(theirs), *map(str, sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            pass_fds=[end for ends in theirs for end in ends],
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )
    for requests, answers in pipes:
        for end in (requests[0], answers[1]) if server else (*requests, *answers):
            os.close(end)
    return server, [_Process(requests[1], answers[0]) for requests, answers in pipes] if server else []


def _stop(server: subprocess.Popen[bytes], processes: list[_Process]) -> None:
    """They end when their pipes close; one that still imports is not waited for."""
    has_started = any(process.is_ready() for process in processes)
    for process in processes:
        process.close()
    try:
        server.wait(STOP_SECONDS if has_started else 0)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # they hold nothing that must be put away
        server.wait()


def serve(theirs: str) -> None:
    """The program that `_start` runs: fork a process for each pair of pipe ends, then wait for them."""
    ends: list[tuple[int, int]] = json.loads(theirs)
    for module in IMPORTS:
        import_module(module)
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, such as those of OpenBLAS
    for number, (requests, answers) in enumerate(ends):
        if os.fork() == 0:
            try:
                for later in ends[number + 1 :]:
                    os.close(later[0])
                    os.close(later[1])
                _answer(requests, answers)
            finally:
                os._exit(0)  # never back into the loop
        os.close(requests)
        os.close(answers)
    for _ in ends:
        os.wait()
    os._exit(0)  # what was imported need not be put away


def _answer(requests: int, answers: int) -> None:
    """Run what is asked for until the other side closes its end."""
    torch.set_num_threads(1)
    with FileIO(requests, "r") as source, FileIO(answers, "w") as sink:
        _enlarge(answers)
        sink.write(_READY)
        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                module, function, arguments = json.loads(_read(source, _LENGTH.unpack(_read(source, _LENGTH.size))[0]))
                header, arrays = _run(module, function, arguments)
                _write(sink, json.dumps(header).encode())
                for array in arrays:
                    _write_all(sink, _bytes_of(array))


def _run(module: str, function: str, arguments: list[Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the other side's filters decide
        try:
            answer: Answer | None = getattr(import_module(module), function)(*arguments)
        except Exception:  # the thread runs it again, and gets the error at first hand
            answer = None
    arrays = [np.ascontiguousarray(array) for array in answer.arrays] if answer else []
    header = {
        "failed": answer is None,
        "value": answer.value if answer else None,
        "arrays": [(array.dtype.str, array.shape) for array in arrays],
        "warnings": [(str(w.message), w.category.__name__, w.filename, w.lineno) for w in caught] if answer else [],
    }
    return header, arrays


def _enlarge(pipe: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):  # this user's pipes have no more room
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _write(sink: FileIO, message: bytes) -> None:
    _write_all(sink, memoryview(_LENGTH.pack(len(message)) + message))


def _write_all(sink: FileIO, rest: memoryview) -> None:
    while rest:
        rest = rest[sink.write(rest) :]


def _read(source: FileIO, n_bytes: int) -> bytes:
    return bytes(_read_array(source, "|u1", (n_bytes,)))


def _read_array(source: FileIO, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    array = np.empty(shape, np.dtype(dtype))
    rest = _bytes_of(array)
    while rest:
        n_read = source.readinto(rest)
        if not n_read:
            raise EOFError
        rest = rest[n_read:]
    return array


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
