"""Hostile input, end to end through the command line: one clear line, the right status,
no traceback, bounded memory.
"""

import io
import json
import os
import resource
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import apart
from unipercept.cli import main
from unipercept.errors import InputError
from unipercept.pipelines import pipeline_class
from unipercept.pipelines.detect import MODALITY_OF_SUFFIX, check_input, detect_modality

MEMORY_ALLOWED_MB = 700  # above a process that has read one small picture


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large, with next to nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def cut_mp4(tmp_path: Path) -> bytes:
    av = pytest.importorskip("av")
    path = tmp_path / "whole.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for seed in range(30):
            pixels = np.random.default_rng(seed).integers(0, 256, (144, 176, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    content = path.read_bytes()
    path.unlink()
    return content[: len(content) // 2]


def grib_without_messages() -> bytes:
    return b"GRIB\xff\xff\xff\x01" + bytes(200)


WAV_THAT_CLAIMS_4_GB = (
    b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x02\0\x80\xbb\0\0\0\xee\x02\0\x04\0\x10\0data\xf0\xff\xff\xff"
)
HOSTILE = {
    "empty.jpg": b"",
    "letter.wav": b"Dear reader, this is a letter. It is not a sound.\n" * 20,
    "nan.xyz": b"nan nan nan\n" * 50,
    "nan.ply": b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\nnan nan nan\nnan nan nan\n",
    "one_row.csv": b"date,load\n2020-01-01,1\n",
    "header_only.csv": b"date,load\n",
    "words.csv": b"name,town\nann,bern\nbob,rome\n",
    "no_variable.grib": grib_without_messages(),
    "huge.png": png_header(50_000, 50_000),
    "bomb.png": png_header(2**31 - 1, 2**31 - 1),
    "huge.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty double x\nproperty double y\nproperty double z\nend_header\n",
    "huge.pcd": b"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 4000000000\nHEIGHT 1\nPOINTS 4000000000\nDATA binary\n",
    "claims_4_gb.wav": WAV_THAT_CLAIMS_4_GB,
    "cut.flac": b"fLaC\x00\x00\x00\x22" + bytes(20),
    "cut.nc": b"CDF\x01\x00\x00",
    "cut.parquet": b"PAR1" + bytes(10),
    "cut.glb": b"glTF\x02\0\0\0\xff\xff\xff\x7f",
    "faces_without_points.obj": b"v 0 0 0\nf 1 2 3\nf 9 9 9\n",
}


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder with every hostile file, and one good picture among them."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, content in HOSTILE.items():
        (folder / name).write_bytes(content)
    (folder / "cut.mp4").write_bytes(cut_mp4(tmp_path))
    (folder / "dead_link.jpg").symlink_to(folder / "gone.jpg")
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.csv").symlink_to("/dev/zero")
    (folder / "good.png").write_bytes(good_picture())
    return folder


def good_picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def run(capsys):
    """The command line in this process: (exit status, stdout, stderr)."""

    def run_here(*arguments: str | Path) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return run_here


@pytest.mark.parametrize("name", [*HOSTILE, "cut.mp4", "dead_link.jpg", "pipe.wav", "device.csv", ""])
@pytest.mark.parametrize("verb", ["perceive", "encode"])
def test_one_bad_file_gives_one_line(hostile, tmp_path, run, verb, name):
    options = ["-o", tmp_path / "v.parquet"] if verb == "encode" else []
    path = hostile / name if name else hostile.parent / "absent.wav"
    status, said, complained = run(verb, path, *options)
    assert status == 2, complained
    assert len(complained.strip().splitlines()) == 1, complained
    assert path.name in complained or verb == "perceive"  # a file that can be told may first find that there is no head
    assert "Traceback" not in complained + said
    assert "Error:" not in complained, "the line names an exception class: the reader did not expect this file"


def test_a_batch_of_them_finishes_within_bounded_memory(hostile, tmp_path):
    """In a process of its own, so that its peak is its own."""
    status, said, peak_mb = run_apart(tmp_path / "said", "encode", hostile, "-o", tmp_path / "v.parquet", "--json")
    _, _, usual_mb = run_apart(tmp_path / "usual", "encode", hostile / "good.png", "-o", tmp_path / "good.parquet")
    assert status == 3, said
    report = said[said.index("{") : said.rindex("}") + 1]
    assert json.loads(report)["n_vectors"] == 1
    assert len(said.replace(report, "").strip().splitlines()) <= len(HOSTILE) + 5, said
    assert "Traceback" not in said
    assert peak_mb - usual_mb < MEMORY_ALLOWED_MB


def run_apart(said: Path, *arguments: str | Path) -> tuple[int, str, float]:
    """The command line in a process of its own: (exit status, what it said, peak memory in MB)."""
    status = apart.run(measured_command_line, *arguments, said=said)
    text, _, peak = said.read_text().rpartition("\npeak ")
    return status, text, float(peak) / 1024


def measured_command_line(*arguments: str | Path) -> None:
    try:
        apart.command_line(*arguments)
    finally:
        sys.stderr.write(f"\npeak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WAVEfmt ", b"fLaC", b"ply\n", b"# .PCD", b"CDF\x01", b"GRIB", b"PAR1", b"OFF\n", b"v 0 0 0\n", b"a,b\n1,2\n", b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"glTF"]),
    soup=st.binary(min_size=1, max_size=300),
    suffix=st.sampled_from(sorted(MODALITY_OF_SUFFIX)),
)  # fmt: skip
def test_byte_soup_under_any_suffix_gives_maps_or_one_line(tmp_path, head, soup, suffix):
    path = tmp_path / f"soup{suffix}"
    path.write_bytes(head + soup)
    assert read_or_refused(path)


def read_or_refused(path: Path) -> bool:
    """Whether a file gave finite maps, or an InputError of one line.

    Anything else passes through and fails the test.
    """
    try:
        check_input(path)
        for emap in pipeline_class(detect_modality(path))().maps(path):
            assert emap.tensor.isfinite().all()
    except InputError as error:
        return "\n" not in str(error)
    return True
