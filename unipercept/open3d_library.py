"""open3d, loaded on first use together with the libusb that it needs."""

import ctypes
import sys
from functools import cache
from typing import Any

from unipercept.errors import MissingDependencyError, import_optional, one_line

SYSTEM_LIBRARIES = "apt-get install libgl1 libegl1 libx11-6 libgomp1"


@cache
def load_open3d() -> Any:
    """The module, its messages off. A plain import fails where the system has no libusb.

    Raises:
        MissingDependencyError: with what to install.
    """
    load_libusb()
    try:
        open3d = import_optional("open3d", extra="pointcloud")
    except OSError as error:
        raise MissingDependencyError(f"open3d cannot load ({one_line(error)}); as root: {SYSTEM_LIBRARIES}") from error
    except MissingDependencyError as error:
        if ".so" in str(error):
            raise MissingDependencyError(f"{error}; or as root: {SYSTEM_LIBRARIES}") from error
        raise
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
    return open3d


def load_libusb() -> None:
    """libusb-1.0 comes without root in a package; open3d's library finds it only when it is loaded already."""
    if sys.platform != "linux":
        return
    try:
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
    except (ImportError, OSError, TypeError):
        pass  # the system may have its own
