"""A server of the web demo in this process, with a tiny cascade, and recordings to send to it."""

import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipercept.app.web.gradio_import import import_gradio
from unipercept.errors import MissingDependencyError

with suppress(MissingDependencyError):  # each file skips without it
    import_gradio()  # half the time of a plain import

MAX_FILE_BYTES = 3_000_000
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session", autouse=True)
def works_for_workers() -> Iterator[None]:
    """Workers find what tests send them: functions of modules of the tests, which are not installed."""
    sys.path.append(str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="session")
def tiny_weather(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cascade of two untrained stages, and fields that it can start from."""
    for library in ("xarray", "zarr", "dask", "netCDF4"):
        pytest.importorskip(library)
    from tests.app.forecaster.conftest import CHANNELS, tiny_model, waves
    from unipercept.app.forecaster.cascade_file import save_cascade
    from unipercept.app.forecaster.frames import Frames

    folder = tmp_path_factory.mktemp("cascade")
    waves(40).to_netcdf(folder / "fields.nc")
    frames = Frames(folder / "fields.nc", CHANNELS)
    for seed, name in enumerate(("short", "medium")):
        tiny_model(frames, seed=seed).save(folder / f"{name}.safetensors")
    stages = [{"name": n, "model": f"{n}.safetensors", "steps": s} for n, s in (("short", 3), ("medium", 100))]
    save_cascade(folder / "cascade.json", stages)
    return folder, folder / "fields.nc"


@pytest.fixture(scope="session")
def server(tiny_weather: tuple[Path, Path]) -> Iterator[object]:
    """Running, on a free port of this machine alone."""
    pytest.importorskip("gradio")
    from unipercept.app.demo import build
    from unipercept.app.web.options import AppOptions

    cascade, fields = tiny_weather
    built = build(AppOptions(port=0, max_file_bytes=MAX_FILE_BYTES, cascade=str(cascade), weather=fields))
    built.url = built.start()  # type: ignore[attr-defined]
    yield built
    built.close()


@pytest.fixture
def client(server):
    """A fresh visitor."""
    gradio_client = pytest.importorskip("gradio_client")
    return gradio_client.Client(server.url, verbose=False)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory, tiny_weather: tuple[Path, Path]) -> dict[str, Path]:
    """Small ones: picture, table, fields, broken, and a zip of class folders."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / "picture.png")
    Image.fromarray(rng.integers(0, 90, (64, 96, 3), dtype=np.uint8)).save(folder / "dark.png")
    hours = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[h]")
    load = 10 + np.sin(np.arange(len(hours)) * 2 * np.pi / 24) + 0.1 * rng.normal(size=len(hours))
    rows = "\n".join(f"{t},{v:.4f}" for t, v in zip(hours.astype(str), load, strict=True))
    (folder / "load.csv").write_text("date,load\n" + rows + "\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with zipfile.ZipFile(folder / "classes.zip", "w") as archive:
        for name, low in (("bright", 160), ("dark", 0)):
            for number in range(8):
                pixels = rng.integers(low, low + 90, (32, 32, 3), dtype=np.uint8)
                archive.writestr(f"{name}/{number}.png", png(pixels))
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for name in ("picture.png", "dark.png", "load.csv"):
            archive.write(folder / name, f"recordings/{name}")
    names = ("archive.zip", "picture.png", "dark.png", "load.csv", "broken.png", "classes.zip")
    return {"fields": tiny_weather[1], **{name.split(".")[0]: folder / name for name in names}}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
