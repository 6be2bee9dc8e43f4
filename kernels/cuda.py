"""CUDA C++ kept as text, compiled at run time by the NVRTC that comes with GPU torch, launched through the driver.

Nothing is built at installation, no header and no nvcc is needed. A compiled kernel is kept on disk, by the hash of all
that made it, so that a process compiles only what no process of this user has compiled before.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipercept.errors import MissingDependencyError, UniperceptError
from unipercept.kernels.compiled_code import kept
from unipercept.kernels.dispatch import ENVIRONMENT_VARIABLE
from unipercept.kernels.measured import cache_folder

MAX_PORTABLE_SHARED_BYTES = 48 * 1024  # a block gets more only after asking
MAX_PORTABLE_CLUSTER = 8  # blocks; more only after asking
_SHARED_BYTES_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_UNUSUAL_CLUSTERS_ATTRIBUTE = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_COOPERATIVE_ATTRIBUTE = 2  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
_CLUSTER_ATTRIBUTE = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_OVERLAPPING_ATTRIBUTE = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_UINT16 = 1  # CU_TENSOR_MAP_DATA_TYPE_UINT16
_NOT_INTERLEAVED, _PROMOTE_TO_128, _ZEROS_OUTSIDE = 0, 2, 0  # of CUtensorMap's enumerations
_SWIZZLES = {16: 1, 32: 2, 64: 3}  # CU_TENSOR_MAP_SWIZZLE_32B and so on, by channels of 2 bytes
WITHOUT = f"{ENVIRONMENT_VARIABLE}=reference runs without these kernels"  # until the bug is fixed
SILENT_SECONDS = 1.0  # of compiling; a kernel takes 0.3 to 1
_LOG = logging.getLogger(__name__)
_LOCK = threading.Lock()
_seconds_compiling = 0.0
_thread = threading.local()


class KernelError(UniperceptError):
    """A kernel that could not be compiled or launched: a bug of ours, or a GPU in a bad state."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("gap", ctypes.c_int), ("value", ctypes.c_uint * 3), ("rest", ctypes.c_byte * 52))


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


@cache
def _attributes(cooperative: bool, overlapping: bool, cluster: int) -> ctypes.Array[_Attribute]:
    asked = {_COOPERATIVE_ATTRIBUTE: (1, 0, 0)} if cooperative else {}
    asked |= {_OVERLAPPING_ATTRIBUTE: (1, 0, 0)} if overlapping else {}
    asked |= {_CLUSTER_ATTRIBUTE: (cluster, 1, 1)} if cluster > 1 else {}
    return (_Attribute * len(asked))(*(_Attribute(number, 0, value) for number, value in asked.items()))


class TensorMap(ctypes.Structure):
    """CUtensorMap: how the copy engine sees a tensor, Hopper and later."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


def tensor_map(x: Tensor, channels: int, rows: int, columns: int, images: int = 1) -> TensorMap:
    """For copies of boxes of so many channels, rows and columns of so many images of `x`,
    BxCxHxW, 16-bit and channels-last.

    What is outside of the tensor comes as zeros. Of boxes of 16, 32 or 64 channels, 16 bytes change
    places as bank conflicts ask for.
    """
    _ensure_context()
    batch, all_channels, height, width = x.shape
    space = (ctypes.c_char * 192)()
    aligned = (ctypes.addressof(space) + 63) // 64 * 64
    driver_call(
        "cuTensorMapEncodeTiled", ctypes.c_void_p(aligned), _UINT16, 4, ctypes.c_void_p(x.data_ptr()),
        (ctypes.c_uint64 * 4)(all_channels, width, height, batch),
        (ctypes.c_uint64 * 3)(2 * all_channels, 2 * all_channels * width, 2 * all_channels * width * height),
        (ctypes.c_uint32 * 4)(channels, columns, rows, images), (ctypes.c_uint32 * 4)(1, 1, 1, 1),
        _NOT_INTERLEAVED, _SWIZZLES.get(channels, 0), _PROMOTE_TO_128, _ZEROS_OUTSIDE,
    )  # fmt: skip
    return TensorMap.from_buffer_copy(ctypes.string_at(aligned, 128))


class Kernel:
    """One compiled function on one device.

    Args:
        overlapping: the next launch may begin while the one before still runs, for which the kernel waits by itself
            (`overlap_launches` in prelude.cuh); needs compute capability 9.0.
    """

    def __init__(self, binary: bytes, name: str, shared_bytes: int, overlapping: bool = False) -> None:
        self.name, self.shared_bytes = name, shared_bytes
        self._overlapping = overlapping
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _ensure_context()
        driver_call("cuModuleLoadData", ctypes.byref(self._module), binary)
        driver_call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode())
        if shared_bytes > MAX_PORTABLE_SHARED_BYTES:
            driver_call("cuFuncSetAttribute", self._function, _SHARED_BYTES_ATTRIBUTE, shared_bytes)

    def clusters_at_once(self, cluster: int, threads: int) -> int:
        """How many clusters of so many blocks the GPU can run at the same time; 0 of a size that it does not take."""
        _ensure_context()
        attributes = _attributes(False, False, cluster)
        launch = _Launch((cluster, 1, 1), (threads, 1, 1), self.shared_bytes, None, attributes, len(attributes))
        count = ctypes.c_int()
        try:
            if cluster > MAX_PORTABLE_CLUSTER:
                driver_call("cuFuncSetAttribute", self._function, _UNUSUAL_CLUSTERS_ATTRIBUTE, 1)
            driver_call("cuOccupancyMaxActiveClusters", ctypes.byref(count), self._function, ctypes.byref(launch))
        except KernelError:
            return 0
        return count.value

    def __call__(
        self,
        blocks: int,
        threads: int,
        *arguments: Tensor | ctypes._SimpleCData[Any] | ctypes.Array[Any] | ctypes.Structure | None,
        cooperative: bool = False,
        cluster: int = 1,
    ) -> None:
        """Launch on the current stream.

        Tensors go as pointers, None as a null pointer, numbers, arrays and structures as the ctypes they are.

        Blocks of a `cooperative` launch may wait for each other: all of them run at once, or the launch fails. Those of
        a `cluster` run on neighbouring multiprocessors and see each other's shared memory; it divides the number of
        blocks. Of more than MAX_PORTABLE_CLUSTER, `clusters_at_once` is asked before.
        """
        values = [
            ctypes.c_void_p(a.data_ptr() if isinstance(a, Tensor) else None)
            if a is None or isinstance(a, Tensor)
            else a
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _ensure_context()
        attributes = _attributes(cooperative, self._overlapping, cluster)
        launch = _Launch((blocks, 1, 1), (threads, 1, 1), self.shared_bytes, stream, attributes, len(attributes))
        driver_call("cuLaunchKernelEx", ctypes.byref(launch), self._function, pointers, None)


_loaded: dict[tuple[object, ...], Kernel] = {}


def kernel(
    package: str,
    files: Sequence[str],
    name: str,
    defines: Mapping[str, int | str],
    shared_bytes: int,
    device: torch.device,
    overlapping: bool = False,
) -> Kernel:
    """The function `name` of the joined text `files` of `package`, compiled with `defines` for `device`.

    `overlapping` is requested where the GPU can do it.
    """
    key = (package, tuple(files), name, tuple(defines.items()), shared_bytes, device.index)
    found = _loaded.get(key)
    if found is None:
        with _LOCK:
            if key not in _loaded:
                binary = compiled(package, files, defines, architecture_of(device))
                overlapping = overlapping and torch.cuda.get_device_capability(device) >= (9, 0)
                with torch.cuda.device(device):  # a module belongs to the device that is current when it is loaded
                    _loaded[key] = Kernel(binary, name, shared_bytes, overlapping)
            found = _loaded[key]
    return found


def architecture_of(device: torch.device) -> str:
    """The architecture that kernels are compiled for on a device, such as "sm_90a"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")  # with the instructions that only this architecture has


def compiled(package: str, files: Sequence[str], defines: Mapping[str, int | str], architecture: str) -> bytes:
    """The machine code for `architecture` ("sm_90"), from the cache on disk where it is there."""
    source = "\n".join((resources.files(package) / file).read_text(encoding="utf-8") for file in files)
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{k}={v}" for k, v in defines.items())]
    made_of = (source, *options, nvrtc_version())
    return kept(made_of, "cubin", lambda: _compiled_aloud(source, options))


def _compiled_aloud(source: str, options: Sequence[str]) -> bytes:
    """`compile_source`; a user who waits for many kernels learns once what for."""
    global _seconds_compiling
    if _seconds_compiling > SILENT_SECONDS:
        _say_waiting(str(cache_folder()))
    started = time.monotonic()
    binary = compile_source(source, options)
    _seconds_compiling += time.monotonic() - started
    return binary


@cache
def _say_waiting(folder: str) -> None:
    """On standard error, or wherever the caller's `logging` sends it."""
    _LOG.warning("compiling GPU kernels, on first use alone: they are kept in %s", folder)


def compile_source(source: str, options: Sequence[str]) -> bytes:
    """CUDA C++ without headers to machine code.

    Raises:
        MissingDependencyError: there is no NVRTC.
        KernelError: the compiler's first error.
    """
    library = _nvrtc()
    program = ctypes.c_void_p()
    _nvrtc_call(library, "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"unipercept.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given) != 0:
            log = _read_string(library, "nvrtcGetProgramLog", program)
            first = next((line for line in log.splitlines() if "error" in line), log[:300])
            raise KernelError(f"NVRTC refused a kernel ({' '.join(options)}): {first}; {WITHOUT}")
        size = ctypes.c_size_t()
        _nvrtc_call(library, "nvrtcGetCUBINSize", program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        _nvrtc_call(library, "nvrtcGetCUBIN", program, binary)
        return binary.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def nvrtc_version() -> str:
    """The compiler's version, "13.0".

    Raises:
        MissingDependencyError: there is no NVRTC.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc_call(_nvrtc(), "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@cache
def why_no_compiler() -> str | None:
    """None where kernels can be compiled, else the reason in a line."""
    try:
        nvrtc_version()
    except UniperceptError as error:
        return str(error)
    return None


@cache
def _nvrtc() -> ctypes.CDLL:
    for folder in _library_folders():
        for path in sorted(folder.glob("libnvrtc.so*"), reverse=True):
            for builtins in folder.glob("libnvrtc-builtins.so*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC looks for it by name alone
            return ctypes.CDLL(str(path))
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise MissingDependencyError(
        "GPU kernels need NVRTC, which GPU builds of torch bring; pip install nvidia-cuda-nvrtc"
    )


def _library_folders() -> Iterator[Path]:
    """Folders into which pip packages put CUDA's libraries: nvidia/cu13/lib, or
    nvidia/cuda_nvrtc/lib before CUDA 13.
    """
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(root).glob("*/lib"), reverse=True)
    yield Path(torch.__file__).parent / "lib"


def _ensure_context() -> None:
    """Give this thread torch's context where it has none: autograd's threads start bare, and the
    driver makes none by itself.
    """
    if getattr(_thread, "has_context", False):
        return
    context = ctypes.c_void_p()
    driver_call("cuCtxGetCurrent", ctypes.byref(context))
    if not context:
        driver_call("cuDevicePrimaryCtxRetain", ctypes.byref(context), torch.cuda.current_device())
        driver_call("cuCtxSetCurrent", context)
    _thread.has_context = True


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def driver_call(function: str, *arguments: object) -> None:
    """Call a function of the driver.

    Raises:
        KernelError: it returned an error.
    """
    status = getattr(_driver(), function)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise KernelError(f"{function}: {(text.value or b'unknown error').decode()} ({status}); {WITHOUT}")


def _nvrtc_call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(library, function)(*arguments)
    if status != 0:
        raise KernelError(f"{function} failed with status {status}")


def _read_string(library: ctypes.CDLL, function: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _nvrtc_call(library, f"{function}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _nvrtc_call(library, function, program, text)
    return text.value.decode(errors="replace")
