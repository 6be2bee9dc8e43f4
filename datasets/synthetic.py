"""Small seeded recordings of every modality, written as common files: for tests, README and the demo.

They are generated and look it; `source` attributes and file names say so.

Shapes: H rows, W columns, T frames or steps, N points.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import import_optional

SAMPLE_RATE = 16000
EARTH_RADIUS_M = 6.371e6
EARTH_ROTATION = 7.292e-5  # rad/s
GRAVITY = 9.80665


def picture(height: int = 240, width: int = 320, seed: int = 0) -> NDArray[np.uint8]:
    """HxWx3: discs of seeded colours and places on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x / width, y / height, np.full_like(x, 0.5, dtype=float)], axis=-1) * 160 + 40
    for _ in range(12):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.04, 0.18) * height
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return image.astype(np.uint8)


def tone(seconds: float = 2.0, seed: int = 0) -> NDArray[np.float32]:
    """A rising tone with harmonics and a little noise, in [-1, 1], at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * (220 * t + 60 * t**2 / max(seconds, 1e-9))
    wave = sum(np.sin(k * phase) / k for k in range(1, 6)) * 0.25
    return (wave + 0.01 * rng.normal(size=len(t))).astype(np.float32)


def frames(n_frames: int = 48, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """TxHxWx3: a bright disc that crosses the picture."""
    y, x = np.mgrid[:height, :width]
    clip = np.full((n_frames, height, width, 3), 30, np.uint8)
    for i in range(n_frames):
        cx, cy = width * (i + 0.5) / n_frames, height * (0.5 + 0.3 * np.sin(2 * np.pi * i / n_frames))
        clip[i][(y - cy) ** 2 + (x - cx) ** 2 < (height / 8) ** 2] = (240, 200, 60)
    return clip


def torus(n_points: int = 4000, seed: int = 0) -> NDArray[np.float32]:
    """Nx3 points spread over a torus."""
    rng = np.random.default_rng(seed)
    around, tube = rng.uniform(0, 2 * np.pi, (2, n_points))
    ring = 1 + 0.35 * np.cos(tube)
    return np.stack([ring * np.cos(around), ring * np.sin(around), 0.35 * np.sin(tube)], axis=1).astype(np.float32)


def hourly_load(n_steps: int = 24 * 60, seed: int = 0) -> Any:
    """A DataFrame of T hours: a load with daily and weekly cycles, and a temperature."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    t = np.arange(n_steps)
    daily, weekly = np.sin(2 * np.pi * t / 24), np.sin(2 * np.pi * t / 168)
    noise = np.cumsum(rng.normal(size=(n_steps, 2)) * 0.05, axis=0)
    load, warmth = 50 + 10 * daily + 4 * weekly + noise[:, 0], 12 + 5 * daily + noise[:, 1]
    return pd.DataFrame(
        {"date": pd.date_range("2024-01-01", periods=n_steps, freq="h"), "load": load, "temperature": warmth}
    )


def weather_state(n_times: int = 2, rows: int = 64, columns: int = 128, seed: int = 0) -> Any:
    """A Dataset with ERA5 names: random 500 hPa waves with the winds that balance them, and temperatures.

    Geopotential is a sum of zonal waves of seeded phase under a mid-latitude envelope on a
    pole-to-equator slope; winds are geostrophic, u = -(1/f) dPhi/dy and v = (1/f) dPhi/dx, with f held at
    its value at 15 degrees nearer the equator.
    """
    import xarray

    rng = np.random.default_rng(seed)
    latitude = 90 - (np.arange(rows) + 0.5) * 180 / rows
    longitude = np.arange(columns) * 360 / columns
    phi, lam = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None, :]
    envelope = np.exp(-(((np.abs(latitude) - 48) / 16) ** 2))[:, None]
    height = np.zeros((n_times, rows, columns))
    waves = [(k, rng.uniform(0, 2 * np.pi), rng.normal() * 1500 / k**0.5) for k in range(2, 9)]
    for i in range(n_times):
        height[i] = 57000 - 9500 * np.sin(phi) ** 2
        for k, phase, amplitude in waves:
            height[i] += amplitude * envelope * np.sin(k * lam + phase - 0.15 * i * k / 4)
    coriolis = 2 * EARTH_ROTATION * np.sin(np.where(np.abs(phi) < np.deg2rad(15), np.sign(phi) * np.deg2rad(15), phi))
    slope_y = np.gradient(height, axis=1) / (np.gradient(np.deg2rad(latitude))[:, None] * EARTH_RADIUS_M)
    wrapped = np.concatenate([height[..., -1:], height, height[..., :1]], axis=2)
    step_x = 2 * np.deg2rad(360 / columns) * EARTH_RADIUS_M * np.cos(phi)
    slope_x = (wrapped[..., 2:] - wrapped[..., :-2]) / step_x
    surface = 288 - 40 * np.sin(phi) ** 2 + (height - height.mean(axis=2, keepdims=True)) / 250
    fields = {
        "geopotential": (height, "m2 s-2"),
        "u_component_of_wind": (-slope_y / coriolis, "m s-1"),
        "v_component_of_wind": (slope_x / coriolis, "m s-1"),
        "2m_temperature": (surface, "K"),
    }
    data = {}
    for name, (values, unit) in fields.items():
        upper = name != "2m_temperature"
        dims = ("time", "level", "latitude", "longitude") if upper else ("time", "latitude", "longitude")
        data[name] = (dims, (values[:, None] if upper else values).astype(np.float32), {"units": unit})
    coords = {
        "time": np.datetime64("2024-01-01", "ns") + np.arange(n_times) * np.timedelta64(6, "h"),
        "level": [500],
        "latitude": latitude,
        "longitude": longitude,
    }
    return xarray.Dataset(
        data, coords, attrs={"source": "synthetic: random balanced waves, unipercept.datasets.synthetic"}
    )


def write_samples(folder: str | Path, seed: int = 0) -> dict[str, Path]:
    """One generated recording of every modality in `folder`, by modality."""
    folder = Path(folder)
    paths = {
        "image": folder / "picture.png",
        "audio": folder / "tone.wav",
        "video": folder / "disc.mp4",
        "pointcloud": folder / "torus.ply",
        "timeseries": folder / "load.csv",
        "weather": folder / "waves.nc",
    }
    from PIL import Image

    Image.fromarray(picture(seed=seed)).save(paths["image"])
    import_optional("soundfile", extra="audio").write(paths["audio"], tone(seed=seed), SAMPLE_RATE)
    _write_video(paths["video"])
    write_ply(paths["pointcloud"], torus(seed=seed))
    hourly_load(seed=seed).to_csv(paths["timeseries"], index=False)
    weather_state(seed=seed).to_netcdf(paths["weather"])
    return paths


def _write_video(path: Path, rate: int = 12) -> None:
    av = import_optional("av", extra="video")
    clip = frames()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


def write_ply(path: Path, points: NDArray[np.float32]) -> None:
    """Nx3 points as a binary PLY file."""
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    header += "property float x\nproperty float y\nproperty float z\nend_header\n"
    path.write_bytes(header.encode() + points.astype("<f4").tobytes())
