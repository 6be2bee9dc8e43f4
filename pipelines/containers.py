"""The tracks of a multimedia container, from its headers alone: video, audio, or neither.

MP4 and QuickTime are trees of boxes (ISO/IEC 14496-12), Matroska and WebM trees of EBML elements (RFC 8794, RFC 9559).
Only headers are read and every walk is bounded, so a damaged file costs a few seeks, never memory.
"""

from collections.abc import Iterator
from typing import BinaryIO

MAX_STEPS = 10_000  # headers looked at before giving up; a film of an hour has some hundreds
_MP4_FOLDERS = (b"moov", b"trak", b"mdia")
_EBML_SEGMENT, _EBML_TRACKS, _EBML_TRACK_ENTRY, _EBML_TRACK_TYPE = 0x18538067, 0x1654AE6B, 0xAE, 0x83
_EBML_FOLDERS = (_EBML_SEGMENT, _EBML_TRACKS, _EBML_TRACK_ENTRY)
_MATROSKA_KINDS = {1: "video", 2: "audio"}  # RFC 9559, 5.1.4.1.3
_MP4_HANDLERS = {b"vide": "video", b"soun": "audio"}
ASF_VIDEO_STREAM = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")  # GUID of ASF_Video_Media, as stored


def mp4_tracks(file: BinaryIO, size: int) -> set[str]:
    """The kinds of track ("video", "audio") of an MP4, M4A, MOV or 3GP file of `size` bytes."""
    kinds: set[str] = set()
    for name, start, _ in _boxes(file, 0, size, [MAX_STEPS]):
        if name == b"hdlr":
            file.seek(start + 8)  # version, flags, pre_defined
            kind = _MP4_HANDLERS.get(file.read(4))
            kinds |= {kind} if kind else set()
    return kinds


def _boxes(file: BinaryIO, start: int, end: int, steps: list[int]) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte of the content, end) of the boxes between `start` and `end`, folders entered."""
    while start + 8 <= end and steps[0] > 0:
        steps[0] -= 1
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        length, name, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:  # a 64-bit length follows
            length, content = int.from_bytes(head[8:16], "big"), start + 16
        stop = end if length == 0 else min(start + length, end)
        if stop < content:
            return
        yield name, content, stop
        if name in _MP4_FOLDERS:
            yield from _boxes(file, content, stop, steps)
        start = stop


def matroska_tracks(file: BinaryIO, size: int) -> set[str]:
    """The kinds of track ("video", "audio") of a Matroska or WebM file of `size` bytes."""
    kinds: set[str] = set()
    for element, start, stop in _elements(file, 0, size, [MAX_STEPS]):
        if element == _EBML_TRACK_TYPE and 0 < stop - start <= 8:
            file.seek(start)
            kind = _MATROSKA_KINDS.get(int.from_bytes(file.read(stop - start), "big"))
            kinds |= {kind} if kind else set()
    return kinds


def _elements(file: BinaryIO, start: int, end: int, steps: list[int]) -> Iterator[tuple[int, int, int]]:
    """(id, first byte of the content, end) of the elements between `start` and `end`, folders entered."""
    while start < end and steps[0] > 0:
        steps[0] -= 1
        file.seek(start)
        head = file.read(12)
        id_length = _vint_length(head[:1], limit=4)
        size_length = _vint_length(head[id_length : id_length + 1], limit=8)
        if not id_length or not size_length or len(head) < id_length + size_length:
            return
        element = int.from_bytes(head[:id_length], "big")
        bits = 7 * size_length
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << bits) - 1)
        content = start + id_length + size_length
        stop = end if length == (1 << bits) - 1 else min(content + length, end)  # all ones: length not known
        yield element, content, stop
        if element in _EBML_FOLDERS:
            yield from _elements(file, content, stop, steps)
        if element == _EBML_TRACKS:
            return
        start = stop


def _vint_length(first: bytes, limit: int) -> int:
    """How many bytes a variable-size integer takes, by its first byte; 0 where it is none."""
    if not first or not first[0]:
        return 0
    length = 9 - first[0].bit_length()
    return length if length <= limit else 0


def ogg_kind(head: bytes) -> str:
    """ "video" where the first pages announce a picture codec, else "audio"."""
    return "video" if b"\x80theora" in head or b"OVP80" in head or b"BBCD\x00" in head else "audio"


def is_mpeg_audio(head: bytes) -> bool:
    """Whether bytes start with two MPEG audio frames, one right after the other (ISO/IEC 11172-3), or an ADTS frame."""
    if len(head) < 4 or head[0] != 0xFF:
        return False
    if head[1] & 0xF6 == 0xF0:  # ADTS: layer 0; the length stands in bits 30-42
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if len(head) > 5 else 0
        return 7 <= length <= len(head) and head[length : length + 1] in (b"", b"\xff")
    length = _mpeg_frame_bytes(head[:4])
    following = head[length : length + 2]
    return 4 < length <= len(head) and (len(following) < 2 or (following[0] == 0xFF and following[1] & 0xE0 == 0xE0))


def _mpeg_frame_bytes(header: bytes) -> int:
    """Length of the MPEG-1/2/2.5 layer I-III frame that starts with these four bytes; 0 where they start none."""
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # version: 0 is 2.5, 2 is 2, 3 is 1
    rate_index, frequency_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if header[1] & 0xE0 != 0xE0 or version == 1 or layer == 4 or rate_index in (0, 15) or frequency_index == 3:
        return 0
    tables = {
        (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
        (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
        (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
        (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
        (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    }
    is_first = version == 3
    bits_per_second = tables[is_first, layer if is_first else min(layer, 2)][rate_index - 1] * 1000
    frequency = (44100, 48000, 32000)[frequency_index] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return (12 * bits_per_second // frequency + padding) * 4
    return (144 if is_first or layer == 2 else 72) * bits_per_second // frequency + padding
