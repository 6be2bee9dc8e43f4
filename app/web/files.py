"""Archives that visitors send: unpacked within limits, or refused in one line, with nothing left on disk."""

from __future__ import annotations

import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from unipercept.errors import InputError, one_line

MAX_ENTRIES = 5_000
MAX_RATIO = 200  # a zip bomb packs a thousandfold; recordings hardly at all
MAX_DEPTH = 6
BLOCK = 1 << 20
UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


def unpack(archive: Path, folder: Path, max_bytes: int, tell: Callable[[float], object] = lambda share: None) -> Path:
    """Unpack a zip file of recordings into `folder`; gives the folder that holds its content (a
    single outer one is left out).

    Raises:
        InputError: it is no zip file, is encrypted, holds links or names that lead out of it, or unpacks to too much;
            `folder` is then gone.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked(opened, archive, max_bytes)
            folder.mkdir(parents=True, exist_ok=True)
            left = max_bytes
            for number, (entry, parts) in enumerate(entries):
                left = _write(opened, entry, folder.joinpath(*parts), left)
                tell((number + 1) / len(entries))
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        NotImplementedError,  # a compression that zipfile does not have
        RuntimeError,  # a password is asked for
        EOFError,
        OSError,
    ) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"no room on this machine to unpack {archive.name}; send a smaller one") from error
        raise InputError(f"{archive.name} is not a zip file that can be read: {one_line(error, 120)}") from error
    except BaseException:  # too much, or told to stop
        shutil.rmtree(folder, ignore_errors=True)
        raise
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return (
        inside[0]
        if len(inside) == 1 and inside[0].is_dir() and any(p.is_dir() for p in inside[0].iterdir())
        else folder
    )


def recordings_below(folder: Path, limit: int) -> list[Path]:
    """Files of an unpacked archive, in order; hidden ones are passed over."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return found[: limit + 1]


def _checked(opened: zipfile.ZipFile, archive: Path, max_bytes: int) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """The files to write, each with the parts of its path."""
    entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    if not entries:
        raise InputError(f"{archive.name} is an empty zip file")
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{archive.name} holds {len(entries):,} files; at most {MAX_ENTRIES:,} are taken")
    total = sum(entry.file_size for entry in entries)
    packed = max(1, archive.stat().st_size)
    if total > max_bytes or total > MAX_RATIO * packed + BLOCK:
        raise InputError(
            f"{archive.name} would unpack from {packed / 1e6:.1f} MB to {total / 1e6:,.0f} MB, which is more than is allowed"
        )
    chosen = []
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        mode = entry.external_attr >> 16
        if stat.S_ISLNK(mode) or (mode and stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            raise InputError(f"{archive.name} holds a link or a device ({_shown(name)}); only plain files are taken")
        if name.startswith("/") or ".." in parts or ":" in name or UNSAFE.search(name) or len(parts) > MAX_DEPTH:
            raise InputError(f"{archive.name} holds a name that leads out of it or is not allowed: {_shown(name)}")
        if entry.flag_bits & 1:
            raise InputError(f"{archive.name} is encrypted; send it without a password")
        if not parts[0].startswith("__MACOSX") and not parts[-1].startswith("."):
            chosen.append((entry, parts))
    if not chosen:
        raise InputError(f"{archive.name} holds no recordings")
    return chosen


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one file in blocks; sizes in the directory may lie, so that bytes are counted here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(entry) as source, target.open("xb") as out:
        while block := source.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise InputError("the zip file unpacks to more than it says, and more than is allowed")
            out.write(block)
    return left


def _shown(name: str) -> str:
    return repr(name[:60])
