"""NetCDF files, opened lazily and read by one thread at a time.

The C libraries below netCDF4 are not safe to call from two threads. xarray holds a lock while it reads values, but not
while it reads headers, nor when a file is closed because nobody holds its dataset any more: a folder of files encoded
by several threads crashed the process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.errors import import_optional
from unipercept.pipelines.netcdf_classic import check_is_whole

if TYPE_CHECKING:
    import xarray


class _OneAtATime:
    """A lock that a thread may take again, and that closes what was given up meanwhile before it lets go."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._given_up: deque[Any] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        while self._given_up:
            if (file := self._given_up.popleft()).isopen():
                file.close()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()

    def give_up(self, file: Any) -> None:
        """Close a file now, or where another thread is reading as soon as that is done.

        Safe in a garbage collection.
        """
        self._given_up.append(file)
        if self.acquire(blocking=False):
            self.release()


_NETCDF = _OneAtATime()


class _OpenFile:
    """A file for as long as somebody holds a variable of it: what xarray calls a file manager."""

    def __init__(self, file: Any) -> None:
        self._file = file

    @contextmanager
    def acquire_context(self, needs_lock: bool = True) -> Iterator[Any]:
        yield self._file

    def close(self, needs_lock: bool = True) -> None:
        _NETCDF.give_up(self._file)

    def __del__(self) -> None:
        self.close()


def open_netcdf(path: str | Path) -> tuple[xarray.Dataset, dict[str, xarray.Dataset]]:
    """What lies at the root of a NetCDF file, lazily; and of each group in it, however deep, by its path.

    Raises:
        MissingDependencyError: netCDF4 is not installed.
        InputError: the file was cut short.
        OSError: the file is damaged, or none.
    """
    netcdf: Any = import_optional("netCDF4", extra="weather")
    import xarray as xr

    store: Any = xr.backends.NetCDF4DataStore

    def opened(group: str | None) -> xarray.Dataset:
        return xr.open_dataset(store(held, group, mode="r", lock=_NETCDF))

    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OSError("its name is not UTF-8, which the NetCDF library needs; rename the file") from error
    with Path(path).open("rb") as stream:
        is_classic = stream.read(3) == b"CDF"
    if is_classic:
        check_is_whole(Path(path))
    with _NETCDF:
        file = netcdf.Dataset(str(path), mode="r")
        held: Any = _OpenFile(file)
        return opened(None), {name: opened(name) for name in _groups_below(file)}


def _groups_below(group: Any) -> list[str]:
    return [name for child in group.groups.values() for name in (child.path, *_groups_below(child))]
