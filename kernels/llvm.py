"""CPU kernels as LLVM IR text, compiled on first use by the LLVM that llvmlite contains: pip
installs it, nothing is built.

The source lies in the operations' folders. Here it is compiled for this processor, cached on disk,
and run on torch's own threads.
"""

import ctypes
import importlib.util
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unipercept.kernels.compiled_code import kept
from unipercept.kernels.llvm_gate import GATE_INTEGERS, GATE_TEXT, MEET
from unipercept.kernels.llvm_writer import Writer

OLDEST_LLVMLITE = (0, 45)  # before it, pointers carried types
MIN_BUSY = 0.9  # of the threads, where each takes whole images
ARCH_PRCTL, REQUEST_STATE, MATRIX_STATE = 158, 0x1023, 18  # Linux on x86-64: a process asks before it uses AMX
_lock = threading.Lock()
_engines: list[Any] = []  # machine code lives as long as its engine


def why_not() -> str | None:
    """None where kernels can be compiled and run on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they run on Linux on x86-64, got {sys.platform} on {platform.machine()}"
    if not _has_llvmlite():
        return "llvmlite 0.45 or newer is not installed: pip install 'unipercept[cpu]'"
    if vector_width() == 0:
        return "this processor has neither AVX-512 nor AVX2 with FMA"
    if _openmp() is None:
        return "this build of torch does not bring GNU OpenMP"
    return None


@cache
def _has_llvmlite() -> bool:
    if importlib.util.find_spec("llvmlite") is None:
        return False
    import llvmlite

    return tuple(int(part) for part in llvmlite.__version__.split(".")[:2]) >= OLDEST_LLVMLITE


@cache
def vector_width() -> int:
    """Floats in a register: 16 with AVX-512, 8 with AVX2 and FMA, 0 with neither."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 0


@cache
def has_tables() -> bool:
    """Whether there is an instruction that looks 16 floats up in two registers."""
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx512f"))


@cache
def has_matrices() -> bool:
    """Whether there are registers of 16 by 16 floats that add up products of bfloat16, and the
    system lets this process use them.
    """
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if vector_width() != 16 or not (features.get("amx-tile") and features.get("amx-bf16")):
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_STATE, MATRIX_STATE) == 0)


def processor() -> str:
    """LLVM's name of it: "znver4", "sapphirerapids"."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@cache
def _openmp() -> ctypes.CDLL | None:
    """torch's CPU library, whose threads are those of its GNU OpenMP."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    library = ctypes.CDLL(str(path)) if path.exists() else None
    try:
        return library if library is not None and library.GOMP_parallel and library.omp_get_thread_num else None
    except AttributeError:
        return None


class Kernel(NamedTuple):
    """Machine code of one function."""

    name: str
    address: int


class Call(NamedTuple):
    """A kernel and its arguments: integers, and tensors for their addresses, which live as long as this does."""

    kernel: Kernel
    arguments: Sequence[int | torch.Tensor]


def takes_images(images: int, threads: int) -> bool:
    """Whether each thread had better take one image after the other, instead of a part of all: few
    of them would idle at the end.
    """
    return images >= MIN_BUSY * threads * -(-images // threads)


def bits(flags: Sequence[bool]) -> int:
    """As a kernel takes them: the first in the lowest bit."""
    return sum(flag << i for i, flag in enumerate(flags))


def run(calls: Sequence[Call], threads: int, images: int = 1, *, is_by_image: bool = False) -> None:
    """All of them once; see `Program`."""
    Program(calls).run((), threads, images, is_by_image=is_by_image)


class Program:
    """Calls that run in one go, since starting threads costs as much as a small kernel; as often as one likes.

    It holds addresses alone: whoever made it keeps the tensors.

    Args:
        calls: in order; each may need what those before it made.
        moving: tensors in whose place, which is where arguments have their address, each run may have others.
    """

    def __init__(self, calls: Sequence[Call], moving: Sequence[torch.Tensor] = ()) -> None:
        self.names = [call.kernel.name for call in calls]
        given = [a for call in calls for a in call.arguments]
        flat = [a if isinstance(a, int) else a.data_ptr() for a in given]
        self._arguments = _integers(len(flat))(*flat)
        places = [i for i, a in enumerate(given) if isinstance(a, torch.Tensor)]
        self._places = [[i for i in places if flat[i] == tensor.data_ptr()] for tensor in moving]
        table: list[int] = []
        offset = 0
        for call in calls:
            table += [call.kernel.address, offset]
            offset += ctypes.sizeof(ctypes.c_int64) * len(call.arguments)
        self._table = _integers(len(table))(*table)

    def run(
        self,
        moving: Sequence[torch.Tensor],
        threads: int,
        images: int = 1,
        *,
        is_by_image: bool = False,
        alone: int | None = None,
    ) -> None:
        """Run all calls on torch's threads.

        Args:
            moving: instead of those that it was made with.
            threads: torch's.
            images: the kernels' `last`.
            is_by_image: a thread takes an image, whichever is next, through all calls, and waits for nobody: where
                other processes have the cores too, a thread that stands still holds up one image. Without it all
                threads do a part of each call, one call after the other.
            alone: the number of the only call to run; for measuring.
        """
        arguments = type(self._arguments).from_buffer_copy(self._arguments)  # another thread may run it too
        for tensor, places in zip(moving, self._places, strict=True):
            address = tensor.data_ptr()
            for place in places:
                arguments[place] = address
        table, count = ctypes.addressof(self._table), len(self.names)
        if alone is not None:
            table, count = table + 2 * alone * ctypes.sizeof(ctypes.c_int64), 1
        work = _integers(6 + GATE_INTEGERS)(table, count, ctypes.addressof(arguments), images, is_by_image)
        enter, enter_together = _sequence()
        if threads == 1:
            enter(ctypes.addressof(work))
        else:
            enter_together(ctypes.addressof(work), threads)


@cache
def _sequence() -> tuple[Callable[[int], None], Callable[[int, int], None]]:
    """Calls the functions of a table with their arguments: on the thread that calls, or on as many as are requested."""
    w = Writer(vector_width())
    table, count, arguments = w.argument(0, "ptr"), w.argument(1), w.argument(2, "ptr")
    images, is_by_image = w.argument(3), w.argument(4)
    taken, gate = (w.value(f"getelementptr i64, ptr %args, i64 {i}") for i in (5, 6))
    thread, threads = w.thread()

    def call(i: str, *work: str) -> None:
        line = w.value(f"getelementptr [2 x i64], ptr {table}, i64 {i}")
        function = w.value(f"load ptr, ptr {line}")
        offset = w.value(f"load i64, ptr {w.value(f'getelementptr i64, ptr {line}, i64 1')}")
        own = w.value(f"getelementptr i8, ptr {arguments}, i64 {offset}")
        w.do(f"call void {function}(ptr {own}, ptr {gate}, {', '.join(f'i64 {number}' for number in work)})")

    by_image = w.compare("ne", is_by_image, 0)
    with w.when(by_image), w.loop(0, images):
        image = w.value(f"atomicrmw add ptr {taken}, i64 1 monotonic")
        with w.when(w.compare("slt", image, images)), w.loop(0, count) as i:
            call(i.index, thread, "0", "1", image, w.add(image, 1))
    with w.when(w.value(f"xor i1 {by_image}, true")), w.loop(0, count) as i:
        call(i.index, thread, thread, threads, "0", images)
        w.meet(gate, threads)
    address = compiled("sequence", w.module("sequence", ["ptr %args"])).address
    library = _openmp()
    assert library is not None
    start = library.GOMP_parallel
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), lambda work, threads: start(address, work, threads, 0)


@cache
def _integers(count: int) -> type[ctypes.Array[ctypes.c_int64]]:
    return ctypes.c_int64 * count


def compiled(name: str, text: str) -> Kernel:
    """Machine code of the function `name` in `text`."""
    with _lock:
        _bring_symbols()
        return Kernel(name, _address(name, text))


@cache
def _bring_symbols() -> None:
    """Make the functions that kernels may call known to LLVM."""
    import llvmlite.binding as llvm

    library = _openmp()
    assert library is not None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    llvm.add_symbol("syscall", ctypes.cast(ctypes.CDLL(None).syscall, ctypes.c_void_p).value)
    llvm.add_symbol(MEET, _address(MEET, GATE_TEXT))


def _address(name: str, text: str) -> int:
    """Address of the function `name` of `text`: its machine code is linked by an engine of its own, of
    a module with nothing in it.
    """
    import llvmlite
    import llvmlite.binding as llvm

    version = f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"
    code = kept((text, version, processor(), _features()), "o", lambda: _machine_code(text))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(name))


def _machine_code(text: str) -> bytes:
    import llvmlite.binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(text)
    module.verify()
    return bytes(machine.emit_object(module))


def _machine() -> Any:
    """A target for this processor; an engine takes it over, so that each needs its own."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(processor(), _features(), opt=3, reloc="static", codemodel="jitdefault")


@cache
def _features() -> str:
    """The processor's instructions, as LLVM lists them."""
    import llvmlite.binding as llvm

    features = str(llvm.get_host_cpu_features().flatten())
    return features + ",-prefer-256-bit" if vector_width() == 16 else features
