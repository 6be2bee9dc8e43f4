"""Content decides, the name only breaks ties; what is no recording is refused in one line."""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unipercept.errors import InputError
from unipercept.pipelines.detect import SUFFIXES, detect_modality

IMAGE_FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "ICO",
    "TGA",
    "PCX",
    "SGI",
    "DDS",
    "JPEG2000",
    "ICNS",
]
SOUND_FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("CAF", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")]  # fmt: skip
TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def picture(format_name: str) -> bytes:
    stream = io.BytesIO()
    size = 1024 if format_name == "ICNS" else 32
    Image.effect_noise((size, size), 50).convert("RGB").save(stream, format_name)
    return stream.getvalue()


@pytest.mark.parametrize("format_name", IMAGE_FORMATS)
def test_every_picture_format_is_an_image(tmp_path, format_name):
    path = tmp_path / ("x.tga" if format_name == "TGA" else "x.bin")  # TGA has no signature: its name must tell
    path.write_bytes(picture(format_name))
    assert detect_modality(path) == "image"


def test_an_animated_gif_is_an_image(tmp_path):
    frames = [Image.new("P", (16, 16), i) for i in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert detect_modality(tmp_path / "a.gif") == "image"


@pytest.mark.parametrize(("format_name", "subtype"), SOUND_FORMATS)
def test_every_sound_format_is_audio_whatever_its_name(tmp_path, format_name, subtype):
    soundfile = pytest.importorskip("soundfile")
    noise = np.random.default_rng(0).normal(0, 0.1, (48_000, 2)).astype("float32")
    soundfile.write(tmp_path / "x.jpg", noise, 48_000, format=format_name, subtype=subtype)
    assert detect_modality(tmp_path / "x.jpg") == "audio"


@pytest.mark.parametrize("codec", ["wavpack", "tta"])
def test_lossless_sound_of_recorders_is_audio(tmp_path, codec):
    av = pytest.importorskip("av")
    with av.open(tmp_path / "x.jpg", "w", format={"wavpack": "wv"}.get(codec, codec)) as container:
        stream = container.add_stream(codec, rate=8_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4_096), np.int16), format="s16p", layout="mono")
        frame.sample_rate = 8_000
        resampled = av.AudioResampler(format=stream.codec_context.format.name).resample(frame)
        container.mux([packet for part in [*resampled, None] for packet in stream.encode(part)])
    assert detect_modality(tmp_path / "x.jpg") == "audio"


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_mpeg_audio_of_every_rate_is_a_sound(tmp_path, rate):
    soundfile = pytest.importorskip("soundfile")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, rate)
    soundfile.write(tmp_path / "x.jpg", noise, rate, format="MP3", subtype="MPEG_LAYER_III")
    assert detect_modality(tmp_path / "x.jpg") == "audio"


@pytest.mark.parametrize("container", ["mp4", "mov", "avi", "webm", "matroska", "mpegts", "flv", "ogg", "3gp"])
def test_a_picture_track_makes_a_container_video(tmp_path, container):
    path = tmp_path / "x.dat"
    write_tracks(path, container, video=True, audio=False)
    assert detect_modality(path) == "video"


@pytest.mark.parametrize(("container", "audio_codec"), [("mp4", "aac"), ("mov", "pcm_s16le"), ("matroska", "pcm_s16le"), ("webm", "libopus"), ("ipod", "aac"), ("adts", "aac")])  # fmt: skip
def test_a_container_with_sound_alone_is_audio(tmp_path, container, audio_codec):
    path = tmp_path / "x.mp4"
    write_tracks(path, container, video=False, audio=True, audio_codec=audio_codec)
    assert detect_modality(path) == "audio"


def write_tracks(path: Path, container: str, *, video: bool, audio: bool, audio_codec: str = "aac") -> None:
    av = pytest.importorskip("av")
    codecs = {"webm": "libvpx", "flv": "flv", "ogg": "libtheora", "mpegts": "mpeg2video", "3gp": "h263"}
    try:
        with av.open(str(path), "w", format=container) as file:
            if video:
                stream = file.add_stream(codecs.get(container, "mpeg4"), rate=25)
                stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
                for _ in range(5):
                    file.mux(
                        stream.encode(av.VideoFrame.from_ndarray(np.zeros((144, 176, 3), np.uint8), format="rgb24"))
                    )
                file.mux(stream.encode(None))
            if audio:
                stream = file.add_stream(audio_codec, rate=48_000)
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
                frame.sample_rate = 48_000
                for part in av.AudioResampler(stream.format, stream.layout, 48_000, stream.frame_size or None).resample(frame):  # fmt: skip
                    file.mux(stream.encode(part))
                file.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write {container}: {error}")


def stl_binary() -> bytes:
    return b"solid by a program that says so".ljust(80) + struct.pack("<I", 2) + bytes(100)


POINT_FILES = {
    "ply": b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n0 0 0\n",
    "pcd": b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z\n",
    "pcd without comment": b"VERSION .7\nFIELDS x y z\n",
    "off": b"OFF\n4 4 6\n0 0 0\n",
    "coff": b"COFF\n4 4 6\n0 0 0 255 0 0\n",
    "stl ascii": b"solid a\n facet normal 0 0 1\n  outer loop\n   vertex 0 0 0\nendsolid\n",
    "stl binary": stl_binary(),
    "obj": b"# made by hand\nmtllib a.mtl\no a\nv 0 0 0\nv 1 0 0\nv 0 1e0 -0.5\nf 1 2 3\n",
    "glb": b"glTF\x02\x00\x00\x00" + bytes(64),
    "gltf": b'{\n "asset": {"version": "2.0"},\n "meshes": []\n}',
    "xyz": b"0 0 0\n1.5 -2e3 0.1\n3 4 5\n",
    "xyz tabs and colours": b"0\t0\t0\t255\t0\t0\n1\t1\t1\t0\t255\t0\n",
    "xyz with comment": b"// X Y Z\n0 0 0\n1 1 1\n",
    "pts": b"2\n0 0 0 1\n1 1 1 1\n",
}
TABLES = {
    "header": b"date,load\n2020-01-01,1\n2020-01-02,2\n",
    "header, byte order mark": b"\xef\xbb\xbfdate,load\n2020-01-01,1\n2020-01-02,2\n",
    "utf-16": "date;load\n2020-01-01;1\n".encode("utf-16"),
    "semicolon": b"date;load\r\n2020-01-01;1,5\r\n2020-01-02;2\r\n",
    "tab": b"time\tvalue\n0\t1\n1\t2\n",
    "no header": b"0.5,1.5,2.5\n1,2,3\n",
    "latin-1 unit": b"date,T (\xb0C)\n2020-01-01,1\n2020-01-02,2\n",
    "quoted": b'"date","a, b"\n"2020-01-01",1\n"2020-01-02",2\n',
    "one column": b"value\n1\n2\n3\n",
    "gzip": gzip.compress(b"date,load\n2020-01-01,1\n2020-01-02,2\n", mtime=0),
    "parquet": b"PAR1" + bytes(20) + b"PAR1",
    "feather": b"ARROW1\0\0" + bytes(20),
}
FIELDS = {
    "netcdf classic": b"CDF\x01" + bytes(40),
    "netcdf 64-bit": b"CDF\x02" + bytes(40),
    "netcdf-4": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "hdf5 user block": bytes(511) + b"\x01" + b"\x89HDF\r\n\x1a\n" + bytes(40),
    "grib": b"GRIB\x00\x00\x10\x01" + bytes(40),
    "grib behind a bulletin header": b"\r\r\n123\r\r\nHTXA99 KWBC 010000\r\r\nGRIB\x00\x00\x10\x01" + bytes(40),
}


@pytest.mark.parametrize("suffix", ["", ".bin", ".txt", ".jpg"])
@pytest.mark.parametrize(
    ("content", "modality"),
    [
        *(pytest.param(content, "pointcloud", id=name) for name, content in POINT_FILES.items()),
        *(pytest.param(content, "timeseries", id=name) for name, content in TABLES.items()),
        *(pytest.param(content, "weather", id=name) for name, content in FIELDS.items()),
    ],
)
def test_content_decides_whatever_the_name(tmp_path, content, modality, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert detect_modality(path) == modality


def test_the_name_settles_what_numbers_alone_cannot(tmp_path):
    for name, content, modality in [
        ("a.csv", b"1 2 3\n4 5 6\n", "timeseries"),
        ("a.xyz", b"1,2,3\n4,5,6\n", "pointcloud"),
        ("a.txt", b"1,2,3\n4,5,6\n", "timeseries"),
        ("a.csv", b"a,b\n", "timeseries"),  # a header alone: the reader says that there are no rows
    ]:
        (tmp_path / name).write_bytes(content)
        assert detect_modality(tmp_path / name) == modality, (name, content)


def test_a_zarr_folder_is_weather_and_another_folder_is_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{}")
    assert detect_modality(tmp_path / "a.zarr") == "weather"
    with pytest.raises(InputError, match="is a folder"):
        detect_modality(tmp_path)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return file.getvalue()


@pytest.mark.parametrize("names", [("zarr.json", "t/zarr.json"), ("qg.zarr/.zgroup", "qg.zarr/t/.zarray")])
def test_a_zipped_zarr_store_is_weather(tmp_path, names):
    (tmp_path / "a.zip").write_bytes(zipped(*names))
    assert detect_modality(tmp_path / "a.zip") == "weather"


def test_an_archive_of_one_table_is_a_table(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped("loads/load.csv", "__MACOSX/loads/._load.csv", "loads/.DS_Store"))
    assert detect_modality(tmp_path / "a.zip") == "timeseries"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.wav", b"hello, this is a letter.\nIt is not a sound.\n", "it is text that starts with 'hello, this"),
        ("a.jpg", b"", "is empty"),
        ("a.mp4", bytes(1000), "holds only zero bytes"),
        ("a.pdf", b"%PDF-1.7 ...", "is a PDF document"),
        ("a.npz", b"PK\x03\x04" + bytes(30), "is a ZIP archive"),
        ("a.xlsb", zipped("xl/workbook.bin"), "a binary Excel workbook; save it as .xlsx or CSV"),
        ("a.npz", zipped("points.npy"), "a set of NumPy arrays"),
        ("a.zip", zipped("load.csv", "price.csv"), "is a ZIP archive; unpack it"),
        ("a.zip", zipped("one/zarr.json", "two/zarr.json"), "is a ZIP archive; unpack it"),
        ("a.json", b'[{"time": "2024-01-01", "load": 3}]', "is JSON; write the table as CSV"),
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "export a picture as PNG"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(99), "raw picture of a Canon camera"),
        ("a.e57", b"ASTM-E57" + bytes(99), "convert it to PLY"),
        ("a.gz", gzip.compress(b"prose without a table", mtime=0), "holds no table"),
        ("a.gz", b"\x1f\x8b\x08\x00garbage", "compressed"),
        ("noname", bytes(range(1, 200)), "starts with the bytes 01 02"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        detect_modality(tmp_path / name)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pipes_devices_and_dead_links_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for path in (tmp_path / "pipe.wav", tmp_path / "dead.jpg", tmp_path / "loop.jpg", tmp_path / "absent", Path("/dev/zero"), Path("a\0b")):  # fmt: skip
        with pytest.raises(InputError):
            detect_modality(path)


def test_real_recordings_are_told(shared_data):
    for pattern, modality in [
        ("video_samples/*.m*", "video"),
        ("pcd_samples/*.pcd", "pointcloud"),
        ("dales_objects/xyz_samples/*.xyz", "pointcloud"),
        ("weather_*/*.nc", "weather"),
        ("weather_*/*.grib", "weather"),
        ("sr_set5_set14/*/*.png", "image"),
        ("ett/*.csv", "timeseries"),
        ("exchange_rate/*.gz", "timeseries"),
        ("weather_jena/*.xz", "timeseries"),
    ]:
        files = sorted(shared_data.glob(pattern))
        assert files, pattern
        assert {path: detect_modality(path) for path in files} == dict.fromkeys(files, modality)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"", b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypisom", b"OggS", b"\xff\xfb", b"\x1f\x8b", b"BM", b"solid", b"{"]),
    soup=st.binary(max_size=400),
    suffix=st.sampled_from(["", *sorted({s for suffixes in SUFFIXES.values() for s in suffixes})]),
)  # fmt: skip
def test_any_bytes_give_a_modality_or_one_line(tmp_path, head, soup, suffix):
    path = tmp_path / f"soup.{suffix}"
    path.write_bytes(head + soup)
    assert detected_or_refused(path) in {*SUFFIXES, "refused in one line"}


def detected_or_refused(path: Path) -> str:
    try:
        return detect_modality(path)
    except InputError as error:
        return "refused in one line" if "\n" not in str(error) else str(error)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("https://example.org/a.jpg", "download it"),
        ("s3://bucket/a.nc", "download it"),
        ("-", "save it to a file first"),
    ],
)
def test_addresses_and_standard_input_say_what_to_do(path, line):
    with pytest.raises(InputError, match=line):
        detect_modality(path)
