"""How much of an encode job's time is the backbone's: many small pictures and sounds, against the bare network.

    python benchmarks/encode_throughput.py [--files 10000] [--kinds picture sound] [--folder DIR] [--model NAME]
                                           [--decoders t4 p8 p16]

Prints files/s of the whole job (reading, hashing, decoding, batching, writing), files/s of the bare network on the same
ready-made batches, their ratio, and the peak memory above the idle model; with --decoders, also files/s by so many
decoding threads (t) or processes (p), without the start of these, and what part of it the network waits for files.
Files are generated: JPEG of 224 to 640 pixels and one-second WAV, as many of each kind.
"""

import argparse
import platform
import resource
import tempfile
import time
import wave
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from unipercept.decoders import Decoders
from unipercept.encode_chunk import EncodeSettings, encode_chunks
from unipercept.encode_job import FILES_PER_PART, encode_files, list_inputs
from unipercept.models import Model, load_model
from unipercept.pipelines import pipeline_class
from unipercept.pipelines.detect import detect_modality
from unipercept.processors import n_processors

SUFFIXES = {"picture": "jpg", "sound": "wav"}
SAMPLE_FILES = 128  # how many ready-made maps the bare network is timed on


def make_files(folder: Path, n_files: int, kinds: list[str]) -> None:
    """Seeded pictures and sounds in turn; those already there are kept."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_files):
        kind = kinds[index % len(kinds)]
        path = folder / f"{index:06d}.{SUFFIXES[kind]}"
        if path.exists():
            continue
        if kind == "sound":
            samples = np.cumsum(rng.normal(0, 300, 16_000)).clip(-32_768, 32_767).astype("<i2")
            with wave.open(str(path), "wb") as sound:
                sound.setparams((1, 2, 16_000, 16_000, "NONE", ""))
                sound.writeframes(samples.tobytes())
        else:
            height, width = rng.integers(224, 641, 2)
            coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, quality=90)


def network_seconds_per_file(paths: list[str], settings: EncodeSettings) -> float:
    """The bare network on batches made beforehand, as large as the job's."""
    groups: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for path in paths:
        for emap in pipeline_class(detect_modality(path))().maps(path):
            groups.setdefault(tuple(emap.tensor.shape[1:]), []).extend(emap.tensor)
    batches = [torch.stack(g[i : i + settings.batch_size]) for g in groups.values() for i in range(0, len(g), settings.batch_size)]  # fmt: skip
    for batch in batches[:1] + batches[-1:]:
        load_model(settings.model, in_channels=batch.shape[1]).features(batch)
    start = time.perf_counter()
    for batch in batches:
        load_model(settings.model, in_channels=batch.shape[1]).features(batch)
    return (time.perf_counter() - start) / len(paths)


def seconds_with(decoders: Decoders, paths: list[str], settings: EncodeSettings) -> tuple[float, float]:
    """Of a second pass over the files, when all processes have started; and of these, in the network."""
    model, inside = load_model(settings.model), 0.0

    def timed(maps: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        started = time.perf_counter()
        features = Model.features(model, maps)
        inside += time.perf_counter() - started
        return features

    chunks = [paths[i : i + FILES_PER_PART] for i in range(0, len(paths), FILES_PER_PART)]
    with patch.object(model, "features", timed):
        for _ in range(2):
            inside, started = 0.0, time.perf_counter()
            for _ in encode_chunks(chunks, settings, decoders):
                pass
            seconds = time.perf_counter() - started
    return seconds, inside


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=list(SUFFIXES), default=list(SUFFIXES))
    parser.add_argument("--folder", type=Path, help="where the files are kept; a temporary folder by default")
    parser.add_argument("--model", default="unireplknet_a")
    parser.add_argument("--decoders", nargs="+", default=[], help="such as t4 for four threads, p16 for 16 processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "files"
        make_files(folder, arguments.files, arguments.kinds)
        settings = EncodeSettings(arguments.model)
        paths = list_inputs([folder])[: arguments.files]
        bare = network_seconds_per_file(paths[:SAMPLE_FILES], settings)
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        summary = encode_files(paths, Path(temporary) / "vectors.parquet", settings)
        seconds = (time.perf_counter() - start) / len(paths)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = []
        for spec in arguments.decoders:
            with Decoders(len(paths), int(spec[1:]), processes=spec[0] == "p") as decoders:
                total, inside = seconds_with(decoders, paths, settings)
            rows.append(f"  {spec:15} {len(paths) / total:8.1f} files/s   ({inside / total:.0%} in the network)")
    device = load_model(arguments.model).device
    print(f"encode of {len(paths)} small files, {arguments.model} on {device}, {n_processors()} processors, {platform.processor() or platform.machine()}, torch {torch.__version__}")  # fmt: skip
    print(f"  whole job       {1 / seconds:8.1f} files/s   ({len(summary.failures)} failures)")
    print(f"  bare network    {1 / bare:8.1f} files/s")
    print(f"  outside network {max(0.0, 1 - bare / seconds):8.1%}")
    print(f"  peak memory     {(peak - idle) / 1024:8.0f} MB above the idle process")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
