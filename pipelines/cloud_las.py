"""LAS and LAZ, the files of airborne and terrestrial laser scanning, read in chunks of points.

Shapes: N points.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, import_optional
from unipercept.pipelines.cloud_headers import check_count, check_length
from unipercept.pipelines.cloud_records import gathered
from unipercept.pipelines.files import open_error

CHUNK_POINTS = 1 << 20  # 20 to 67 bytes each in the file, and as many again while they are scaled
NOISE_CLASSES = (7, 18)  # low and high noise: birds, haze, multiple paths; they lie far off and would shrink all else
EXPECTED = "a LAS or LAZ point cloud"


def read_las(path: Path, facts: dict[str, Any]) -> NDArray[np.float32]:
    """Nx3 float32 points in the units of the file, about an origin where they lie far from zero.

    Points flagged as withheld or classified as noise are left out and counted: the standard asks so of the former.

    Raises:
        InputError: it was cut short, is damaged, or holds no point that counts.
        MissingDependencyError: laspy, or lazrs for a LAZ file, is absent.

    Source: ASPRS, LAS Specification 1.4 R15, tables 8 and 17.
    """
    laspy = import_optional("laspy", extra="pointcloud")
    try:
        with laspy.open(path, read_evlrs=False) as file:
            header = file.header
            check_count(path, header.point_count)
            if header.are_points_compressed:
                import_optional("lazrs", extra="pointcloud")
            else:
                needed = header.point_count * header.point_format.size
                check_length(
                    path, header.point_count, needed, path.stat().st_size - header.offset_to_point_data, "bytes"
                )
            facts["format"] = "laz" if header.are_points_compressed else "las"
            return _points(path, file, header.point_count, facts)
    except (laspy.LaspyException, ValueError, RuntimeError, OSError, struct.error, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise open_error(path, EXPECTED, error) from error


def _points(path: Path, file: Any, count: int, facts: dict[str, Any]) -> NDArray[np.float32]:
    n_noise = 0

    def chunks() -> Iterator[NDArray[np.float64]]:
        nonlocal n_noise
        for chunk in file.chunk_iterator(CHUNK_POINTS):
            counts = ~(np.asarray(chunk.withheld, bool) | np.isin(np.asarray(chunk.classification), NOISE_CLASSES))
            n_noise += int((~counts).sum())
            yield np.stack([np.asarray(chunk[name], np.float64)[counts] for name in "xyz"], axis=1)

    points = gathered(chunks(), count, facts)
    if len(points) + n_noise < count:
        raise InputError(
            f"{path} was cut short: its header declares {count} points, and it holds {len(points) + n_noise}; make or fetch it again"
        )
    if n_noise:
        facts["noise_points"] = n_noise
    if not len(points):
        raise InputError(f"{path} holds no points" + (" but noise" if n_noise else ""))
    return points
