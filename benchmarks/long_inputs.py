"""Memory and time of recordings that do not fit in memory: each is made, encoded in a fresh process, and removed.

    python benchmarks/long_inputs.py            # writes benchmarks/results/long_inputs.md

Peak memory is that of the process above the idle model: the same process after it has encoded one small map of the same
shape. The bar is 1.5 GB.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BAR_MB = 1500
REPOSITORY = Path(__file__).resolve().parent.parent

MEASURE = """
import json, sys, time
from pathlib import Path
import unipercept
from unipercept.datasets.synthetic import write_samples
modality, path, folder = sys.argv[1:]
def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) / 1024
pipe = unipercept.pipeline(modality, device="cpu")
small = write_samples(folder)[modality] if modality != "weather" else None
if small:
    pipe.encode(small)
else:
    import numpy as np, torch
    from unipercept.embedding import EmbeddingMap
    pipe.model.pooled(EmbeddingMap(torch.randn(1, 10, 181, 360), "weather"))
Path("/proc/self/clear_refs").write_text("5")
idle = status("VmRSS:")
start = time.perf_counter()
maps = sum(len(emap) for emap in pipe.maps(path))
reading = time.perf_counter() - start
start = time.perf_counter()
vector = pipe.encode(path)
print(json.dumps({"idle": idle, "peak": status("VmHWM:"), "maps": maps, "reading": reading,
                  "encoding": time.perf_counter() - start, "threads": __import__("torch").get_num_threads()}))
"""


def hour_of_audio(folder: Path) -> Path:
    """An hour of 48 kHz stereo, 16 bit: 691 MB."""
    import soundfile

    path, rng = folder / "hour.wav", np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 48000, 2, "PCM_16") as file:
        for _ in range(60):
            file.write((0.1 * rng.normal(size=(48000 * 60, 2))).astype(np.float32))
    return path


def ten_minutes_of_video(folder: Path) -> Path:
    """Ten minutes of 1280x720 at 25 frames a second, MPEG-4."""
    import av

    path, rng = folder / "ten.mp4", np.random.default_rng(0)
    textures = [rng.integers(0, 255, (90, 160, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1280, 720, "yuv420p", 4_000_000
        for i in range(600 * 25):
            picture = np.roll(textures[i // 250 % 8], 4 * i % 1280, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def ten_million_points(folder: Path) -> Path:
    """Ten million points of a torus as a binary ply: 120 MB."""
    from unipercept.datasets.synthetic import torus, write_ply

    path = folder / "cloud.ply"
    write_ply(path, torus(10_000_000))
    return path


def two_gigabytes_of_zarr(folder: Path, time_chunked: bool = True) -> Path:
    """Two gigabytes of one-degree fields, ten channels, 776 times, a chunk a time (or a chunk a patch of all times)."""
    import zarr

    path, rng = folder / f"fields-{time_chunked}.zarr", np.random.default_rng(0)
    times, names = 776, ("t2m", "msl", "u10", "v10", "sp", "tcwv", "tcc", "sst", "u100", "v100")
    group = zarr.open_group(path, mode="w")
    chunk = (1, 181, 360) if time_chunked else (times, 61, 120)
    for name in names:
        array = group.create_array(
            name, shape=(times, 181, 360), chunks=chunk, dtype="f4", dimension_names=("time", "latitude", "longitude")
        )
        units = {"t2m": "K", "msl": "Pa", "sp": "Pa"}.get(name, "m s-1")
        array.attrs["units"] = units
        for start in range(0, times, 97):
            array[start : start + 97] = rng.normal(size=(97, 181, 360)).astype(np.float32)
    for name, values in (
        ("latitude", np.linspace(90, -90, 181)),
        ("longitude", np.arange(360.0)),
        ("time", np.arange(times)),
    ):
        group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(name,))[:] = values
    return path


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/long_inputs.md")
    output = arguments.parse_args().output
    makers = {
        "an hour of audio (48 kHz stereo wav)": ("audio", hour_of_audio),
        "a 10-minute 720p video (mp4)": ("video", ten_minutes_of_video),
        "a cloud of 10 million points (ply)": ("pointcloud", ten_million_points),
        "a 2 GB Zarr, a chunk a time": ("weather", two_gigabytes_of_zarr),
        "a 2 GB Zarr, chunks over all times": ("weather", lambda folder: two_gigabytes_of_zarr(folder, False)),
    }
    rows = []
    for title, (modality, make) in makers.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder))
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, modality, str(path), folder],
                capture_output=True,
                text=True,
                env=environment,
            )
        if done.returncode:
            raise SystemExit(f"{title}: {done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        above = found["peak"] - found["idle"]
        verdict = "met" if above < BAR_MB else "MISSED"
        rows.append(
            f"| {title} | {found['maps']} | {found['reading']:.1f} | {found['encoding']:.1f} | {found['idle']:.0f} | {above:.0f} | {verdict} |"
        )
        print(rows[-1], flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report(rows, found["threads"]), encoding="utf-8")


def report(rows: list[str], threads: int) -> str:
    """The table with what it was measured on."""
    import torch

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {threads} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    head = "| recording | maps | reading and embedding, s | encoding, s | idle, MB | peak above idle, MB | bar of 1500 MB |"
    lines = [
        "# Long recordings, encoded whole",
        "",
        f"{machine}; {versions}; `python benchmarks/long_inputs.py`.",
        "",
        head,
    ]
    return "\n".join([*lines, "| --- | ---: | ---: | ---: | ---: | ---: | --- |", *rows, ""])


if __name__ == "__main__":
    main()
