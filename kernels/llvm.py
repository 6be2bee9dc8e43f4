"""Kernels for the CPU as LLVM's own text, compiled on first use by the library inside llvmlite: pip brings it, nothing is built.

Source lies in the operations' folders; here it becomes machine code for this processor, which is kept on disk, and runs on torch's
own threads.
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
from unipercept.kernels.llvm_writer import Writer

OLDEST_LLVMLITE = (0, 45)  # before it, pointers carried types
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


class Kernel:
    """Machine code of one `void name(ptr args)`, that all of torch's threads enter at once."""

    def __init__(self, name: str, address: int) -> None:
        self.name, self.address = name, address
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        library = _openmp()
        assert library is not None
        self._together: Callable[..., None] = library.GOMP_parallel
        self._together.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._together.restype = None

    def __call__(self, arguments: Sequence[int], threads: int) -> None:
        """Run with addresses and integers; whoever calls keeps the tensors behind the addresses alive."""
        packed = _integers(len(arguments))(*arguments)
        if threads == 1:
            self._alone(ctypes.addressof(packed))
        else:
            self._together(self.address, ctypes.addressof(packed), threads, 0)


class Call(NamedTuple):
    """A kernel and its arguments: integers, and tensors for their addresses, which live as long as this does."""

    kernel: Kernel
    arguments: Sequence[int | torch.Tensor]


def run(calls: Sequence[Call], threads: int) -> None:
    """All of them in one go, each after all threads have done with the one before: starting threads costs as much as a small kernel."""
    flat = [a if isinstance(a, int) else a.data_ptr() for call in calls for a in call.arguments]
    arguments = _integers(len(flat))(*flat)
    table: list[int] = []
    place = ctypes.addressof(arguments)
    for call in calls:
        table += [call.kernel.address, place]
        place += ctypes.sizeof(ctypes.c_int64) * len(call.arguments)
    addresses = _integers(len(table))(*table)
    _sequence()((ctypes.addressof(addresses), len(calls)), threads)


@cache
def _sequence() -> Kernel:
    """Calls the functions of a table with their arguments, with a barrier after each."""
    w = Writer(vector_width())
    table, count = w.argument(0, "ptr"), w.argument(1)
    with w.loop(0, count) as i:
        pair = w.value(f"getelementptr [2 x ptr], ptr {table}, i64 {i.index}")
        function = w.value(f"load ptr, ptr {pair}")
        arguments = w.value(f"load ptr, ptr {w.value(f'getelementptr ptr, ptr {pair}, i64 1')}")
        w.do(f"call void {function}(ptr {arguments})")
        w.barrier()
    return compiled("sequence", w.module("sequence"))


@cache
def _integers(count: int) -> type[ctypes.Array[ctypes.c_int64]]:
    return ctypes.c_int64 * count


def compiled(name: str, text: str) -> Kernel:
    """Machine code of the function `name` in `text`."""
    import llvmlite
    import llvmlite.binding as llvm

    with _lock:
        version = f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"
        code = kept((text, version, processor(), _features()), "o", lambda: _machine_code(text))
        _make_known()
        # An engine of its own, of a module with nothing in it, that links the code.
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        return Kernel(name, engine.get_function_address(name))


def _machine_code(text: str) -> bytes:
    import llvmlite.binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(text)
    module.verify()
    return bytes(machine.emit_object(module))


def _make_known() -> None:
    """What the code calls: the barrier of torch's threads, and which of them it is in."""
    import llvmlite.binding as llvm

    library = _openmp()
    assert library is not None
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


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
