"""Runs CUDA C++ kernels on the CPU, with g++: index arithmetic, barriers and bounds are checked where no GPU is.

`emulation.h` holds the emulated device and says how it works; this file compiles a kernel with it and calls it.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

HEADER = Path(__file__).with_name("emulation.h")
SOURCE_NAME = "kernel.cu"  # what messages call the kernel's source
MAX_THREADS = 1024
MAX_SHARED_BYTES = 227 * 1024  # of one block on sm_90
ALIGNMENT = 16  # of a tensor's storage; on the GPU it is more, but no access is wider than this

FLAGS = (  # -Og: compiling takes most of the time, and -O1 takes a third more of it
    *("-Og", "-std=c++17", "-fno-strict-aliasing", "-fPIC", "-w"),
    "-foptimize-sibling-calls",  # fewer returns on the way from fiber to fiber: each is mispredicted
    *(
        "-gdwarf-4",
        "-g1",
    ),  # lines alone (the last counts); with version 5, addr2line of Debian 12 takes the one file for the other
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to leave one stack for another
)
SANITIZE_FLAGS = (  # -Og: compiling takes most of the time, and -O1 takes a third more of it
    "-DEMU_SANITIZE",
    "-fsanitize=bounds,bounds-strict,alignment,shift,integer-divide-by-zero,signed-integer-overflow",
    "-fsanitize=thread",
    "-ftrivial-auto-var-init=pattern",  # local variables that nobody sets hold -1.7e38
)

Argument = torch.Tensor | int | float | tuple[int, str] | None


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("host", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("phase", ctypes.c_uint64),
        ("map", ctypes.c_void_p),
        ("map_bytes", ctypes.c_uint64),
        ("copy", ctypes.c_void_p),
    )


class _Argument(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("buffer", ctypes.c_int), ("value", ctypes.c_uint64))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32),
        ("reverse", ctypes.c_int),
        ("timeout", ctypes.c_int),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int64),
        ("arguments", ctypes.POINTER(_Argument)),
        ("argument_count", ctypes.c_int64),
        ("fault", ctypes.c_uint64),
    )


# The emulated device is one: its signal handlers belong to the process.
_device = threading.Lock()


emulated = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="kernels are emulated with g++ on Linux"
)


def emulate(
    source: str,
    kernel: str,
    grid: tuple[int, ...],
    block: int,
    shared_bytes: int,
    args: Sequence[Argument],
    defines: Mapping[str, str | int] | None = None,
    sanitize: bool = False,
    *,
    reverse: bool = False,
    timeout: int = 120,
) -> None:
    """Run `kernel` of `source` over the grid; what it writes is in the tensors among `args` afterwards.

    A tensor is passed as a pointer (None: null), an int as `long long`, `(value, "int")` as `int`, a float as `float`.
    `sanitize` also finds races in shared memory, indices outside of local arrays, misaligned vectors and signed
    overflow; it takes some four times as long. `reverse` runs the warps and lanes in the opposite order, so that a
    missing barrier which one order hides shows in the other. `timeout` is in seconds of processor time.

    Raises RuntimeError with one line for a deadlock, an overrun of shared memory or a tensor, a misaligned address, an
    endless loop; the tensors are then as they were.
    """
    if block % 32 or not 0 < block <= MAX_THREADS:
        raise ValueError(f"a block has a multiple of 32 threads, up to {MAX_THREADS}; not {block}")
    if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
        raise ValueError(f"a block has up to {MAX_SHARED_BYTES} bytes of shared memory, not {shared_bytes}")
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f"a grid has one to three positive sizes; not {grid}")
    path = _compiled(source, kernel, shared_bytes, tuple(sorted((defines or {}).items())), sanitize)
    launch = _Launch(kernel=kernel.encode(), block=block, reverse=reverse, timeout=timeout)
    launch.grid[:] = [*grid, 1, 1][:3]
    buffers, arguments = _memory(args)
    launch.buffers, launch.buffer_count = buffers, len(buffers)
    launch.arguments, launch.argument_count = arguments, len(arguments)
    with _device:
        message = _library(path).emu_run(ctypes.byref(launch))
    if message is not None:
        raise RuntimeError(message.decode() + (_line_of(path, launch.fault) if launch.fault else ""))


def _memory(args: Sequence[Argument]) -> tuple[ctypes.Array[_Buffer], ctypes.Array[_Argument]]:
    """The arguments, and the pieces of memory they point to. Tensors that overlap stay one piece, as they alias."""
    spans = []
    for tensor in (a for a in args if isinstance(a, torch.Tensor)):
        if tensor.device.type != "cpu":
            raise ValueError(f"the emulation takes tensors on the CPU, not on {tensor.device}")
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start, size = tensor.data_ptr(), (last + 1) * tensor.element_size() if tensor.numel() else 0
        spans.append((start, start + size, (start - tensor.untyped_storage().data_ptr()) % ALIGNMENT))
    pieces: list[tuple[int, int, int]] = []
    for start, end, phase in sorted(spans):
        if pieces and start < pieces[-1][1]:
            pieces[-1] = (pieces[-1][0], max(end, pieces[-1][1]), pieces[-1][2])
        elif not pieces or (start, end) != pieces[-1][:2]:
            pieces.append((start, end, phase))
    buffers = (_Buffer * len(pieces))(*(_Buffer(host=s, bytes=e - s, phase=phase) for s, e, phase in pieces))

    arguments = (_Argument * len(args))()
    for slot, value in zip(arguments, args, strict=True):
        slot.buffer = -1
        match value:
            case torch.Tensor():
                pointer, empty = value.data_ptr(), value.numel() == 0
                slot.kind, slot.value = ord("p"), pointer
                slot.buffer = next(
                    i for i, (s, e, _) in enumerate(pieces) if s <= pointer < e or (empty and s == pointer)
                )
            case None:
                slot.kind = ord("p")
            case (int(number), "int"):
                slot.kind, slot.value = ord("i"), number & 0xFFFFFFFF
            case bool():
                raise TypeError("a kernel takes no bool: pass an int")
            case int():
                slot.kind, slot.value = ord("q"), value & 0xFFFFFFFFFFFFFFFF
            case float():
                slot.kind = ord("f")
                slot.value = int.from_bytes(bytes(ctypes.c_float(value)), "little")
            case _:
                raise TypeError(f"a kernel takes tensors, ints, (int, 'int') and floats, not {value!r}")
    return buffers, arguments


@functools.cache
def _compiled(
    source: str, kernel: str, shared_bytes: int, defines: tuple[tuple[str, str | int], ...], sanitize: bool
) -> Path:
    """The shared library for a kernel; one for each size of shared memory, whose place depends on it."""
    if re.search(r"^\s*(static\s+)?__shared__", source, re.MULTILINE):
        raise ValueError("only `extern __shared__ unsigned char smem[]` is emulated, no other shared variables")
    unit = "\n".join(
        (
            f'#include "{HEADER.name}"',
            *(f"#define {name} {value}" for name, value in defines),
            f'#include "{SOURCE_NAME}"',
            f"EMU_PLACE_SHARED({shared_bytes})",
            'extern "C" __attribute__((visibility("default")))',
            f"const char* emu_run(emu::Launch* launch) {{ return emu::run(launch, {kernel}); }}",
            "",
        )
    )
    # Hidden names: one library's must not stand in for another's.
    flags = [*FLAGS, "-fvisibility=hidden", *(SANITIZE_FLAGS if sanitize else ())]
    library = _cache() / f"{_key(unit, source, *flags)}.so"
    if not library.exists():
        header = _compiled_header(tuple(flags))
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            (Path(folder) / "unit.cpp").write_text(unit, "utf-8")
            (Path(folder) / SOURCE_NAME).write_text(source, "utf-8")
            # Two steps: with -fsanitize the linker would add libraries that have to be loaded before Python.
            _gxx(folder, *flags, f"-I{header}", f"-I{HEADER.parent}", "-c", "unit.cpp", "-o", "unit.o")
            _gxx(folder, "-shared", "unit.o", "-o", "unit.so")
            os.replace(Path(folder) / "unit.so", library)
    return library


@functools.cache
def _compiled_header(flags: tuple[str, ...]) -> Path:
    """A folder with `emulation.h` compiled, which saves each kernel a third of its time; g++ finds it by its name."""
    place = _cache() / f"{_key(*flags)}-header"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            _gxx(folder, *flags, "-x", "c++-header", str(HEADER), "-o", f"{HEADER.name}.gch")
            place.mkdir(exist_ok=True)
            os.replace(Path(folder) / f"{HEADER.name}.gch", place / f"{HEADER.name}.gch")
    return place


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join((HEADER.read_text("utf-8"), _version(), *parts)).encode()).hexdigest()[:32]


def _gxx(folder: str, *options: str) -> None:
    environment = os.environ | {"LC_ALL": "C"}  # messages in English and ASCII
    done = subprocess.run(["g++", *options], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ does not compile the kernel:\n{done.stderr}")


@functools.cache
def _version() -> str:
    return subprocess.run(["g++", "-v"], capture_output=True, text=True, check=True).stderr


def _cache() -> Path:
    """A folder of this user alone: what lies in it is loaded and run."""
    folder = Path(tempfile.gettempdir()) / f"unipercept-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or folder.is_symlink():
        raise RuntimeError(f"{folder} is not this user's alone; remove it")
    return folder


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emu_run.restype = ctypes.c_char_p
    return library


def _line_of(path: Path, offset: int) -> str:
    """Where in the kernel's source that instruction comes from, if binutils can tell."""
    if shutil.which("addr2line") is None:
        return ""
    # -i: also the calls that were inlined, innermost first; the innermost may lie in the header.
    command = ["addr2line", "-i", "-e", str(path), hex(offset)]
    places = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(rf"{re.escape(SOURCE_NAME)}:(\d+)", places)
    return f", at line {found[1]}" if found else ""
