"""What works on this machine, what does not, and the command that fixes it (outer ring)."""

from __future__ import annotations

import ctypes.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from unipercept.errors import WeightsError, one_line
from unipercept.open3d_library import load_libusb
from unipercept.processors import n_processors

MIN_PYTHON = (3, 11)
CORE = (
    "torch",
    "numpy",
    "scipy",
    "einops",
    "safetensors",
    "pillow",
    "pandas",
    "pyarrow",
    "xarray",
    "matplotlib",
    "typer",
    "rich",
)
# (import name, names of the distributions that bring it, install extra, what is off without it)
OPTIONAL = (
    ("librosa", ("librosa",), "audio", "sound"),
    ("soundfile", ("soundfile",), "audio", "sound"),
    ("soxr", ("soxr",), "audio", "sound of other sample rates than the model's"),
    ("av", ("av",), "video", "video, except what decord reads"),
    ("decord", ("eva-decord", "decord"), "video", "fallback video reader, where PyAV is missing"),
    ("open3d", ("open3d-cpu", "open3d"), "pointcloud", "point clouds"),
    ("laspy", ("laspy",), "pointcloud", "LAS"),
    ("lazrs", ("lazrs",), "pointcloud", "LAZ"),
    ("llvmlite", ("llvmlite",), "cpu", "fast kernels on the CPU"),
    ("netCDF4", ("netCDF4",), "weather", "NetCDF"),
    ("zarr", ("zarr",), "weather", "Zarr"),
    ("dask", ("dask",), "weather", "weather files larger than memory"),
    ("cfgrib", ("cfgrib",), "weather", "GRIB"),
    ("gradio", ("gradio",), "app", "web demo, and no sample inputs of the offline one"),
    ("plotly", ("plotly",), "app", "charts of the web demo"),
    ("tensorboard", ("tensorboard",), "train", "training curves in TensorBoard"),
    ("onnxruntime", ("onnxruntime",), "onnx", "released weather models"),
    ("statsmodels", ("statsmodels",), "forecast", "exponential smoothing as statsmodels estimates it"),
    ("openpyxl", ("openpyxl",), "excel", "Excel workbooks"),
)
APT_PACKAGE = {"GL": "libgl1", "EGL": "libegl1", "X11": "libx11-6", "usb-1.0": "libusb-1.0-0"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `state`: "ok"; "off": something optional is missing; "broken": the core cannot work."""

    name: str
    state: str
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)


def examine() -> list[Check]:
    """Look at everything; never raises. Importing all libraries takes some seconds."""
    checks = [_python(), *_core_libraries(), _device(), _threads(), _network(), _kernels()]
    checks += [*_optional_libraries(), *_system_libraries(), *_codecs(), _cache()]
    return checks


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        return Check("python", "broken", found, f"install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or later")
    return Check("python", "ok", found)


def _core_libraries() -> Iterator[Check]:
    for name in CORE:
        try:
            import_module("PIL" if name == "pillow" else name)
            yield Check(name, "ok", version(name))
        except Exception as error:  # a broken library may raise anything
            yield Check(name, "broken", one_line(error), f"pip install --upgrade {name}")


def _optional_libraries() -> Iterator[Check]:
    for name, distributions, extra, purpose in OPTIONAL:
        found = next((v for v in map(_version, distributions) if v), None)
        if found is None:
            yield Check(name, "off", f"not installed: no {purpose}", f"pip install 'unipercept[{extra}]'")
            continue
        try:
            if name == "open3d":
                load_libusb()
            import_module(name)
            yield Check(name, "ok", found)
        except Exception as error:
            yield Check(name, "off", f"{found}, does not load: {one_line(error, 120)}", _loading_remedy(name, error))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _loading_remedy(name: str, error: Exception) -> str:
    missing = [package for library, package in APT_PACKAGE.items() if f"lib{library}.so" in str(error)]
    if missing and sys.platform.startswith("linux"):
        return f"apt-get install -y {' '.join(missing)}"
    return f"pip install --force-reinstall --no-deps {name}"


def _system_libraries() -> Iterator[Check]:
    if not sys.platform.startswith("linux"):
        return
    for library in ("GL", "EGL", "X11"):
        path = ctypes.util.find_library(library)
        if path:
            yield Check(f"lib{library}", "ok", path)
        else:
            yield Check(
                f"lib{library}", "off", "not found: no point clouds", f"apt-get install -y {APT_PACKAGE[library]}"
            )
    if _version("libusb-package") or ctypes.util.find_library("usb-1.0"):
        yield Check("libusb", "ok", f"libusb-package {_version('libusb-package') or '(of the system)'}")
    else:
        yield Check("libusb", "off", "not found: no point clouds", "pip install libusb-package")


def _codecs() -> Iterator[Check]:
    yield _attempt("pictures", _picture_codecs)
    yield _attempt("sound", _sound_codecs)
    yield _attempt("grib", lambda: f"ecCodes {import_module('eccodes').codes_get_api_version()}")


def _picture_codecs() -> str:
    from PIL import features

    wanted = ("jpg", "zlib", "webp", "avif", "jpg_2000", "libtiff")
    have = [name for name in wanted if name in features.get_supported()]
    return "Pillow with " + ", ".join(have)


def _sound_codecs() -> str:
    formats = import_module("soundfile").available_formats()
    return "libsndfile with " + ", ".join(name for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF") if name in formats)


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except Exception as error:  # the library's own check names the remedy
        return Check(name, "off", one_line(error, 120))


def _device() -> Check:
    def look() -> str:
        import torch

        from unipercept.devices import resolve_device

        device = resolve_device("auto")
        what = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        return f"{device} ({what})"

    return _attempt("device", look)


def _threads() -> Check:
    def look() -> str:
        import torch

        return f"torch uses {torch.get_num_threads()}; this process may use {n_processors()} of {os.cpu_count()} processors"

    return _attempt("threads", look)


def _network() -> Check:
    """One pass through the whole core: a small picture through the default model."""
    try:
        import torch

        from unipercept.models import load_model

        model = load_model("default", in_channels=3, device="auto")
        features = model.features(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))
        return Check("network", "ok", f"{model.name} gives {features.shape[1]} numbers")
    except Exception as error:
        return Check("network", "broken", one_line(error), "pip install --force-reinstall unipercept")


def _kernels() -> Check:
    def look() -> str:
        import torch

        from unipercept.kernels.depthwise_conv2d.gpu import why_not_device

        forced = os.environ.get("UNIPERCEPT_KERNELS")
        chosen = f"{forced} (forced by UNIPERCEPT_KERNELS)" if forced else "chosen by device and shape"
        missing = why_not_device(torch.cuda.current_device()) if torch.cuda.is_available() else None
        return f"{chosen}; large convolutions run on plain PyTorch: {missing}" if missing else chosen

    return _attempt("kernels", look)


def _cache() -> Check:
    from unipercept.download import cache_folder

    try:
        folder = cache_folder()
    except WeightsError as error:
        return Check("cache", "off", one_line(error), "set UNIPERCEPT_CACHE to a folder that can be written")
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not os.access(above, os.W_OK):
        return Check("cache", "off", f"{folder} cannot be written", "set UNIPERCEPT_CACHE to a folder that can")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    return Check("cache", "ok", f"{folder} ({size / 1e6:.0f} MB)")
