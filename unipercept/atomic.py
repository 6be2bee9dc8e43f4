"""Files appear whole or not at all: written under a temporary name beside their place, then moved into it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from unipercept.errors import InputError, UniperceptError, one_line

FULL_BYTES = 1 << 24  # of free space: a library whose write failed may not have used the last bytes


def check_folder_of(path: str | Path) -> Path:
    """The path, if its folder exists.

    Call it before long work: `atomic_path` checks only when there is something to write.

    Raises:
        InputError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, what was written there
    (file or folder) takes its place.

    The temporary name keeps the suffix, so that libraries which choose a format by it still can. It starts with a dot,
    so that readers of the folder pass over what a killed process left.

    Raises:
        InputError: the folder of `path` does not exist or cannot be written, a folder has the name of the file, or the
            disk is full.
    """
    path = check_folder_of(path)
    temporary = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _share(temporary)
        _replace(temporary, path)
    except UniperceptError:
        raise
    except Exception as error:
        if _is_full(path.parent, error):
            raise InputError(f"cannot write {path}: the disk is full; make room, or name another place") from error
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error)}") from error
        raise
    finally:
        _remove(temporary)


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether a write failed because the disk is full: torch, safetensors and netCDF4 raise errors of their own."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False


def _share(path: Path) -> None:
    """Give a file the mode that new files have: safetensors makes its own readable for their owner alone."""
    if path.is_file() and path.stat().st_mode & 0o077 == 0:
        # The umask cannot be read without changing it for all threads; a new file shows what it gives.
        usual = path.with_name(f".{uuid4().hex[:8]}-mode")
        usual.touch()
        path.chmod(usual.stat().st_mode)
        usual.unlink()


def _replace(temporary: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # os.replace refuses a folder that is not empty
        if not temporary.is_dir():  # what lies in it is not ours to delete
            raise InputError(f"cannot write {path}: a folder has this name; move it away, or give another name")
        retired = path.with_name(f".{path.name}-{uuid4().hex[:8]}-old")
        os.replace(path, retired)
        os.replace(temporary, path)
        shutil.rmtree(retired)
    else:
        os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
