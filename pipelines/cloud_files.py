"""Point clouds and meshes from files, as points; the format is detected from the content; open3d reads those
formats that it reads correctly.

Shapes: N points, M triangles.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.open3d_library import load_open3d
from unipercept.pipelines.cloud_headers import HEADER_BYTES, MAX_POINTS, check_declared_size
from unipercept.pipelines.cloud_las import read_las
from unipercept.pipelines.cloud_records import find_records, origin_of, read_records
from unipercept.pipelines.cloud_text import (
    TextLayout,
    read_obj,
    read_off,
    read_text_ply,
    read_text_points,
    text_layout,
    text_ply,
)
from unipercept.pipelines.files import check_file, open_error
from unipercept.pipelines.quiet import quiet_stderr

Points = NDArray[np.float32]
CLOUD_SUFFIXES = (".ply", ".pcd", ".xyz", ".xyzn", ".xyzrgb", ".pts")
MESH_SUFFIXES = (".obj", ".stl", ".off", ".glb", ".gltf")
MAX_COLUMNS = 16  # of fewer points than columns: with more, the points lie along the rows
EXPECTED = "a point cloud or mesh (ply, pcd, xyz, las, laz, obj, stl, off, glb, npy)"


def read_points(path: str | Path, mesh_points: int, seed: int) -> tuple[Points, dict[str, Any]]:
    """Nx3 float32 points of a cloud, or `mesh_points` of them spread evenly over a mesh; and facts for the metadata.

    Points that are not finite are dropped and counted.

    Raises:
        InputError: the file cannot be read, or holds no finite point.
        MissingDependencyError: open3d, or a system library that it needs, is absent.
    """
    path = check_file(path)
    kind = _format_of(path)
    facts: dict[str, Any] = {"format": kind.removeprefix(".")}
    if kind == ".npy":
        points = _read_npy(path, facts)
    elif kind == ".las":
        points = read_las(path, facts)
    elif kind in (".obj", ".off"):
        check_declared_size(path, kind)
        points = _on_surface(*(read_obj if kind == ".obj" else read_off)(path), mesh_points, seed, facts)
    elif kind == ".xyz" and not (layout := text_layout(_head(path)) or TextLayout()).is_plain:
        points = _single(read_text_points(path, layout), facts)
    else:
        points = _read_others(path, kind, mesh_points, seed, facts)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        facts["dropped_points"] = int((~finite).sum())
        points = points[finite]
    if not len(points):
        raise InputError(f"{path} holds no finite point; expected {EXPECTED}")
    facts["n_points"] = len(points)
    return points, facts


def sample_mesh(vertices: NDArray[Any], triangles: NDArray[Any], count: int, seed: int) -> NDArray[Any]:
    """`count` points spread evenly over the area of a mesh, the same for the same seed.

    Source: Osada et al. (2002), Shape distributions, equation 1.
    """
    rng = np.random.default_rng(seed)
    corners = vertices[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    area = np.nan_to_num(area)
    if not area.sum() > 0:
        return np.asarray(vertices)
    chosen = corners[rng.choice(len(area), count, p=area / area.sum())]
    root, along = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    points: NDArray[Any] = (1 - root) * chosen[:, 0] + root * (1 - along) * chosen[:, 1] + root * along * chosen[:, 2]
    return points


def _format_of(path: Path) -> str:
    """The suffix that the content asks for; the file's own where the content does not say (xyz, obj, binary stl)."""
    head = _head(path)
    text = head[:512].lstrip().lower()
    for magic, suffix in (
        (b"\x93numpy", ".npy"),
        (b"lasf", ".las"),
        (b"ply", ".ply"),
        (b"gltf", ".glb"),
        (b"# .pcd", ".pcd"),
    ):
        if text.startswith(magic):
            return suffix
    if text.startswith((b"off", b"coff", b"noff")):
        return ".off"
    if text.startswith(b"solid") and b"facet" in text:
        return ".stl"
    if b"version" in text[:200] and b"fields" in text:
        return ".pcd"
    suffix = path.suffix.lower()
    if suffix == ".pts" and len(head.lstrip().partition(b"\n")[0].split()) > 1:
        return ".xyz"  # without the count in its first line that open3d asks for, as ShapeNet's are
    if suffix in CLOUD_SUFFIXES[2:] or suffix in MESH_SUFFIXES:
        return suffix
    if text.startswith((b"v ", b"#", b"mtllib", b"o ", b"g ")) and b"\nv " in b"\n" + text:
        return ".obj"
    return ".xyz" if b"\0" not in head and text_layout(head) is not None else suffix or ".xyz"


def _head(path: Path, n_bytes: int = 1 << 12) -> bytes:
    with path.open("rb") as file:
        return file.read(n_bytes)


def _read_npy(path: Path, facts: dict[str, Any]) -> Points:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise open_error(path, EXPECTED, error) from error
    if len(array) > MAX_POINTS:
        raise InputError(f"{path} holds {len(array)} points; 0 to {MAX_POINTS} are read: split or thin it out")
    return points_of_array(array, str(path), facts)


def points_of_array(array: NDArray[Any], source: str, facts: dict[str, Any]) -> Points:
    """The first three columns of an array as float32 points; `facts` gets the origin that was taken off.

    Raises:
        InputError: it is not Nx3 or wider, holds no real numbers, or is wide like the transpose of a cloud.
    """
    expected = f"{source} must be Nx3 numbers (further columns are left out), got {array.dtype} of shape {array.shape}"
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise InputError(expected)
    if array.shape[1] > max(len(array), MAX_COLUMNS):
        raise InputError(f"{expected}; transpose it")
    return _single(array[:, :3], facts)


def _read_others(path: Path, kind: str, mesh_points: int, seed: int, facts: dict[str, Any]) -> Points:
    if kind not in CLOUD_SUFFIXES and kind not in MESH_SUFFIXES:
        raise InputError(f"cannot read {path}: unknown content; expected {EXPECTED}")
    check_declared_size(path, kind)
    if (records := find_records(path, kind)) is not None:
        return read_records(path, records, facts)
    if kind == ".ply" and (ply := text_ply(_head(path, HEADER_BYTES))) is not None:
        vertices, triangles = read_text_ply(path, ply)
        return _on_surface(vertices, triangles, mesh_points, seed, facts) if ply.n_faces else _single(vertices, facts)
    open3d = load_open3d()
    with _named(path, kind) as named, quiet_stderr(), _memory_errors_named(path):
        if kind in MESH_SUFFIXES or (kind == ".ply" and _ply_has_faces(path)):
            mesh = open3d.io.read_triangle_mesh(str(named))
            vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
            if len(triangles) and int(triangles.max()) >= len(vertices):
                triangles = triangles[:0]  # damaged; the vertices still say where the object is
            points = _on_surface(vertices, triangles, mesh_points, seed, facts)
        elif kind == ".pcd" and b"\nDATA binary_compressed" in _head(path, HEADER_BYTES):
            cloud = open3d.t.io.read_point_cloud(str(named))  # the other reader makes zeros of double precision
            points = _single(cloud.point.positions.numpy() if "positions" in cloud.point else np.empty((0, 3)), facts)
        else:
            options = {"format": "xyz"} if kind == ".xyz" else {}
            cloud = open3d.io.read_point_cloud(str(named), remove_nan_points=False, **options)
            points = _single(np.asarray(cloud.points), facts)
    if not len(points):
        raise InputError(f"{path} holds no points, or is damaged; expected {EXPECTED}")
    return points


def _on_surface(
    vertices: NDArray[Any], triangles: NDArray[Any], mesh_points: int, seed: int, facts: dict[str, Any]
) -> Points:
    """Points spread over a mesh; its vertices, where it has no faces."""
    facts |= {"n_vertices": len(vertices), "n_triangles": len(triangles)}
    return _single(sample_mesh(vertices, triangles, mesh_points, seed) if len(triangles) else vertices, facts)


def _single(points: NDArray[Any], facts: dict[str, Any]) -> Points:
    """Points as float32. Far from zero (map coordinates in metres) single precision holds centimetres at best, so an
    origin is taken off first and kept among the facts."""
    origin = origin_of(points)
    if origin is None or not origin.any():
        return np.asarray(points, np.float32)
    facts["origin"] = origin.tolist()
    moved = np.empty(points.shape, np.float32)
    with np.errstate(over="ignore"):  # what overflows is infinite, and dropped and counted as such
        np.subtract(points, origin, out=moved, casting="unsafe")
    return moved


@contextmanager
def _memory_errors_named(path: Path) -> Iterator[None]:
    """open3d's readers allocate what a header asks for; a refusal is the file's fault and is said in one line."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{path} asks for more memory than there is; it is too large or damaged") from error


class _named:
    """The file under a name with the suffix that open3d goes by: itself, or a link in a temporary folder."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self._path.suffix.lower() == self._kind:
            return self._path
        self._folder = tempfile.TemporaryDirectory(prefix="unipercept-")
        link = Path(self._folder.name) / f"cloud{self._kind}"
        link.symlink_to(self._path.resolve())
        return link

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _ply_has_faces(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(1 << 16).split(b"end_header")[0]
    for line in header.splitlines():
        words = line.split()
        if words[:2] == [b"element", b"face"]:
            return words[2:3] != [b"0"]
    return False
