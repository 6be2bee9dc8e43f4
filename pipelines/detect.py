"""Detects the modality of a file: from its content first, by its name only if the content is inconclusive.

Binary formats are told by their signatures, multimedia containers by the tracks they hold, text by its first lines.
At most `HEAD_BYTES` of a file are read, plus the headers of a container.
"""

import bz2
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from unipercept.errors import InputError, one_line
from unipercept.pipelines.containers import ASF_VIDEO_STREAM, is_mpeg_audio, matroska_tracks, mp4_tracks, ogg_kind
from unipercept.pipelines.files import check_file
from unipercept.pipelines.text_formats import decode_text, text_modality

HEAD_BYTES = 1 << 16
ZARR_FILES = (".zgroup", ".zarray", ".zmetadata", "zarr.json")

# Suffixes decide where the content is binary and of no known signature (damaged, or a format without one).
SUFFIXES = {
    "image": [
        "jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff", "webp", "avif", "jp2", "ico", "tga", "ppm", "pgm",
        "pbm", "pcx", "psd", "qoi", "dds", "icns", "sgi", "im", "fits",
    ],
    "audio": [
        "wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "m4a", "aac", "au", "caf", "wma",
        "w64",
    ],
    "video": ["mp4", "m4v", "mov", "avi", "webm", "mkv", "mpg", "mpeg", "ts", "m2ts", "3gp", "ogv", "flv", "wmv"],
    "pointcloud": ["ply", "pcd", "las", "laz", "off", "stl", "obj", "glb", "gltf", "xyz", "xyzn", "xyzrgb", "pts", "asc"],
    "timeseries": ["csv", "tsv", "xlsx", "parquet", "pq", "feather", "arrow"],
    "weather": ["nc", "nc4", "cdf", "netcdf", "grib", "grib2", "grb", "grb2", "zarr", "h5", "hdf5"],
}  # fmt: skip
MODALITY_OF_SUFFIX = {f".{suffix}": modality for modality, suffixes in SUFFIXES.items() for suffix in suffixes}

# Signatures at byte 0, the longer first where one begins another.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF87a", "image"),
    (b"GIF89a", "image"),
    (b"II*\x00", "image"),
    (b"MM\x00*", "image"),
    (b"II+\x00", "image"),
    (b"MM\x00+", "image"),
    (b"8BPS", "image"),
    (b"qoif", "image"),
    (b"DDS ", "image"),
    (b"icns", "image"),
    (b"\x00\x00\x01\x00", "image"),
    (b"\x00\x00\x00\x0cjP  ", "image"),
    (b"\xff\x4f\xff\x51", "image"),
    (b"fLaC", "audio"),
    (b"ID3", "audio"),
    (b".snd", "audio"),
    (b"#!AMR", "audio"),
    (b"\x0bw", "audio"),  # AC-3
    (b"caff", "audio"),
    (b"wvpk", "audio"),  # WavPack
    (b"TTA1", "audio"),
    (b"riff\x2e\x91\xcf\x11", "audio"),  # Sony Wave64
    (b"FLV\x01", "video"),
    (b"\x00\x00\x01\xba", "video"),
    (b"\x00\x00\x01\xb3", "video"),
    (b"ply\n", "pointcloud"),
    (b"ply\r", "pointcloud"),
    (b"glTF", "pointcloud"),
    (b"LASF", "pointcloud"),
    (b"PAR1", "timeseries"),
    (b"ARROW1", "timeseries"),
    (b"FEA1", "timeseries"),
    (b"CDF\x01", "weather"),
    (b"CDF\x02", "weather"),
    (b"CDF\x05", "weather"),
    (b"\x89HDF\r\n\x1a\n", "weather"),
    (b"GRIB", "weather"),
)
# Known, and not read: the line says what it is instead of guessing.
NOT_READ: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document; export the page as PNG"),
    (b"PK\x03\x04", "a ZIP archive; unpack it and give the files"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls, .doc); save the table as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it and give the files"),
    (b"Rar!", "a RAR archive; unpack it and give the files"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data; decompress it first"),
    (
        b"\x93NUMPY",
        "a NumPy array, which does not say what it measures; choose its modality (pointcloud, for Nx3 points)",
    ),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (b"ASTM-E57", "an E57 point cloud; convert it to PLY (CloudCompare, PDAL)"),
    (b"MThd", "a MIDI file, notes without a sound; play it into a WAV file"),
    (b"\x7fELF", "a program"),
)
# What lies in a ZIP archive says what it is.
EXCEL_PART = "xl/workbook.xml"
ZIPPED = (
    ("xl/workbook", "a binary Excel workbook; save it as .xlsx or CSV"),
    ("word/document.xml", "a Word document; save its table as CSV"),
    ("content.xml", "an OpenDocument file; save the sheet as CSV"),
    (".npy", "a set of NumPy arrays, which does not say what it measures"),
)
TEXT_NOT_READ = (
    (("{", "["), "JSON; write the table as CSV, for example by pandas.read_json(...).to_csv(...)"),
    (("<svg", "<?xml", "<!DOCTYPE", "<html"), "XML or HTML (also SVG); export a picture as PNG, a table as CSV"),
)
COMPRESSED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", lambda head: zlib.decompressobj(31).decompress(head, HEAD_BYTES)),
    (b"\xfd7zXZ\x00", lambda head: lzma.LZMADecompressor(memlimit=256 << 20).decompress(head, HEAD_BYTES)),
    (b"BZh", lambda head: bz2.BZ2Decompressor().decompress(head, HEAD_BYTES)),
)


def detect_modality(path: str | Path) -> str:
    """The modality of a file, or of a Zarr folder: "image", "audio", "video", "pointcloud", "timeseries" or "weather".

    >>> unipercept.detect_modality("photo.png")
    'image'

    Raises:
        InputError: it is missing, empty, not a file, or of no kind that is read; the line says what was seen.
    """
    path = check_input(path)
    if path.is_dir():
        return "weather"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            modality = _by_signature(head) or _by_container(path, head, file, size)
    except OSError as error:
        raise InputError(f"cannot open {path}: {one_line(error)}") from error
    return modality or _by_layout(path, head, size) or _by_name(path, head)


def check_input(path: str | Path) -> Path:
    """The path, if it is a file with content or a Zarr folder.

    Raises:
        InputError: it is neither.
    """
    path = check_file(path, folder=True)
    try:
        is_other_folder = path.is_dir() and not is_zarr(path)
        if is_other_folder:
            os.scandir(path).close()
    except OSError as error:
        raise InputError(f"cannot search the folder {path}: {error.strerror}") from error
    if is_other_folder:
        raise InputError(f"{path} is a folder; give a file, or use `unipercept encode` for a folder of files")
    return path


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr store (version 2 or 3), which counts as one input."""
    return any((folder / name).is_file() for name in ZARR_FILES)


def _by_signature(head: bytes) -> str | None:
    for signature, modality in SIGNATURES:
        if head.startswith(signature):
            return modality
    if head[:2] == b"BM" and len(head) >= 18 and head[14:18] in _BMP_HEADER_SIZES:
        return "image"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return {b"WAVE": "audio", b"AVI ": "video", b"WEBP": "image"}.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio"
    if head[:16] == bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"):  # ASF
        return "video" if ASF_VIDEO_STREAM in head else "audio"
    for first, packet in (
        (0, 188),
        (4, 192),
    ):  # MPEG transport stream; on Blu-ray discs each packet has a time before it
        if head[first::packet][:3] == b"GGG":
            return "video"
    if b"GRIB" in head[:128] and decode_text(head[:128]) is None:  # a bulletin header may stand before the message
        return "weather"
    return None


_BMP_HEADER_SIZES = tuple(struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124))


def _by_container(path: Path, head: bytes, file: BinaryIO, size: int) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        if zipped_zarr(file) is not None:
            return "weather"
        names = _names_in_zip(file)
        if EXCEL_PART in names or _hold_one_table(names):
            return "timeseries"
    if head[4:12] == b"ftypcrx ":
        raise InputError(f"{path} is a raw picture of a Canon camera (CR3); export it as JPEG or TIFF")
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return "image"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        tracks = mp4_tracks(file, size)
        sound_only = "video" not in tracks and ("audio" in tracks or head[8:12] in (b"M4A ", b"M4B "))
        return "audio" if sound_only else "video"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "audio" if matroska_tracks(file, size) == {"audio"} else "video"
    if head[:4] == b"OggS":
        return ogg_kind(head)
    return "audio" if is_mpeg_audio(head) else None


def zipped_zarr(file: str | Path | BinaryIO) -> str | None:
    """The place of a Zarr store in a ZIP archive: "" at its root, or the name of its one
    folder; None where there is none.
    """
    tops = [name.rpartition("/")[0] for name in _names_in_zip(file) if name.split("/")[-1] in ZARR_FILES]
    shortest = min(tops, key=lambda top: (top.count("/"), len(top)), default=None)
    shallow = [top for top in set(tops) if shortest is not None and top.count("/") == shortest.count("/")]
    return shortest if shortest == "" or (len(shallow) == 1 and shortest is not None) else None


def _names_in_zip(file: str | Path | BinaryIO) -> list[str]:
    """Names in an archive; none if it is damaged or no archive: the caller then reports a file of unknown kind."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return []


def is_content(name: str) -> bool:
    """Whether an entry of a ZIP archive is a file that a person put there: no folder, nothing that systems add."""
    return not name.endswith("/") and not name.startswith("__MACOSX/") and Path(name).name[:1] != "."


def _hold_one_table(names: list[str]) -> bool:
    files = [Path(name) for name in names if is_content(name)]
    return len(files) == 1 and MODALITY_OF_SUFFIX.get(files[0].suffix.lower()) == "timeseries"


def _by_layout(path: Path, head: bytes, size: int) -> str | None:
    """Formats without a signature: binary STL, HDF5 behind a user block, compressed tables, text, rarer pictures."""
    if size > 84 and len(head) >= 84 and size == 84 + 50 * int.from_bytes(head[80:84], "little"):
        return "pointcloud"
    if any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (512, 1024, 2048)):
        return "weather"
    for signature, decompress in COMPRESSED:
        if head.startswith(signature):
            return _compressed_modality(path, head, decompress)
    text = decode_text(head)
    if text is not None:
        return text_modality(text, MODALITY_OF_SUFFIX.get(path.suffix.lower()), is_whole=size <= len(head))
    return "image" if _pillow_accepts(head[:16]) else None


def _compressed_modality(path: Path, head: bytes, decompress: Callable[[bytes], bytes]) -> str:
    try:
        inner = decompress(head)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{path} is damaged compressed data: {one_line(error)}") from error
    text, named = decode_text(inner), MODALITY_OF_SUFFIX.get(Path(path.stem).suffix.lower())
    if text is not None and text_modality(text, named, is_whole=len(inner) < HEAD_BYTES) == "timeseries":
        return "timeseries"
    raise InputError(f"{path} is compressed and holds no table; decompress it first")


def _pillow_accepts(prefix: bytes) -> bool:
    """Whether one of Pillow's readers claims these 16 bytes. Its stubs for other people's formats do not count."""
    from PIL import Image

    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        if accept is not None and name not in ("BUFR", "GRIB", "HDF5", "MPEG", "WMF"):
            try:
                if accept(prefix) is True:
                    return True
            except (IndexError, struct.error):  # a prefix shorter than the reader expects
                continue
    return False


def _by_name(path: Path, head: bytes) -> str:
    """The last resort for unknown binary content: its name. The reader will report an error if the name is wrong."""
    for signature, what in NOT_READ:
        if head.startswith(signature):
            raise InputError(f"{path} is {_zipped_kind(path) or what}")
    if not head.strip(b"\0"):
        raise InputError(f"{path} holds only zero bytes; expected a recording")
    text = decode_text(head)
    named = MODALITY_OF_SUFFIX.get(path.suffix.lower())
    if text is None and named is not None:
        return named
    for starts, what in TEXT_NOT_READ:
        if (text or "").lstrip().startswith(starts):
            raise InputError(f"{path} is {what}")
    start = " ".join((text or "")[:200].split())[:40]
    seen = f"it is text that starts with {start!r}" if text else f"it starts with the bytes {head[:8].hex(' ')}"
    but = f", though its name says {named}" if named else ""
    raise InputError(
        f"cannot tell what {path} is: {seen}{but}; expected a picture, sound, video, point cloud, table or weather field"
    )


def _zipped_kind(path: Path) -> str | None:
    names = _names_in_zip(path)
    return next((what for part, what in ZIPPED if any(part in name for name in names)), None)
